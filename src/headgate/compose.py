"""Composition: a configuration becomes a running Headgate. The only module that joins the runtime and the adapters.

One rule: what is opened here is closed here, in the opposite order, whatever happens in between.
"""

import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from headgate.adapters.config import Config, ConfiguredAccount, limit_rules, load_config
from headgate.adapters.config.settings import ConfiguredMaintenance
from headgate.adapters.owners import owner_is_alive, owner_name
from headgate.adapters.prices import GenaiPrices
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.http import HttpClient, HttpSettings, Reply, Timeouts, parse_url
from headgate.adapters.providers.http_proxies import Proxies
from headgate.adapters.providers.vendors.catalogue import CREDENTIALS, VENDORS
from headgate.adapters.sqlite.stores import SqliteStores, open_database
from headgate.core.errors import ConfigError, StoreError
from headgate.core.scopes import LimitRule
from headgate.ports import Clock, HashedKey, Headers, Provider
from headgate.runtime import announced
from headgate.runtime.announced import Announced
from headgate.runtime.manager import Manager, Parts
from headgate.runtime.orders import Orders
from headgate.runtime.planning import MaintenanceRule
from headgate.runtime.recovery import Recovered

log = logging.getLogger("headgate")

DEFAULT_CONFIG = Path("headgate.toml")

AGENT_TIMEOUTS = Timeouts(pool_s=600.0, first_byte_s=3_600.0)
"""An agent of a fleet waits for its turn as long as its gateway lets it."""


class WallClock:
    """The system's clock."""

    def now_s(self) -> float:
        """Give seconds since the epoch."""
        return time.time()


@dataclass(frozen=True, slots=True)
class House:
    """A running Headgate: the manager, the stores under it, and what it was made from."""

    manager: Manager
    stores: SqliteStores
    config: Config
    client: HttpClient
    clock: Clock
    owner: str
    prices: GenaiPrices

    def post(self, gateway: str, path: str, headers: Headers, body: bytes) -> AbstractAsyncContextManager[Reply]:
        """Post a body to a gateway, as an agent does; raises ProviderError where there is no answer."""
        origin, _ = parse_url(gateway)
        return self.client.send("POST", origin, path.encode(), headers=headers, body=body, timeouts=AGENT_TIMEOUTS)


def read_config(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    credentials: bool = True,
    text: str | None = None,
) -> Config:
    """Read the configuration at `path`, else `headgate.toml` in the working folder, else the environment alone.

    `text` is what stood in the file once. Without `credentials`, secrets that the environment lacks are made up: for
    questions that call no provider.

    Raises:
        ConfigError: it cannot be used; the message has a line for each problem.
    """
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    known = dict(os.environ if environ is None else environ)
    if not credentials and path is not None and path.is_file():
        known = _with_credentials(path.read_text(encoding="utf-8", errors="replace"), known)
    return load_config(path, known, text)


def _with_credentials(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    named = re.findall(r'"env:([A-Za-z_][A-Za-z0-9_]*)"', text)
    return {**dict.fromkeys(named, "not-needed"), **environ}


async def announce(house: House, config: Config) -> None:
    """Say in the store what this process goes by from now on, for those who ask there; without room, nobody knows."""
    if config.path is None or config.text is None:
        return
    said = Announced(house.owner, str(config.path.resolve()), config.text, house.clock.now_s())
    try:
        await announced.announce(house.stores.levels, said, owner_is_alive)
    except StoreError as error:
        log.warning("what this process goes by could not be said in the store: %s", error)


async def withdraw(house: House) -> None:
    """Say that this process goes by nothing any more."""
    try:
        await announced.withdraw(house.stores.levels, house.owner)
    except StoreError as error:
        log.warning("that this process has ended could not be said in the store: %s", error)


async def configs_in_force(house: House) -> list[tuple[Announced, Config]]:
    """Give what the gateways of this store and file go by, the newest first, as far as it can be read here."""
    path, found = house.config.path, []
    for each in await announced.announced(house.stores.levels, owner_is_alive):
        if path is None or each.path != str(path.resolve()):
            continue
        try:
            config = load_config(path, _with_credentials(each.text, os.environ), each.text)
        except ConfigError as error:  # of another version, perhaps
            log.warning("what %s goes by cannot be read: %s", each.owner, error)
            continue
        found.append((each, replace(config, store=house.config.store)))
    return found


@asynccontextmanager
async def open_manager(config: Config | Path | None = None) -> AsyncIterator[Manager]:
    """Run Headgate in this process, over the store that the configuration names; other processes may share it.

    Raises:
        ConfigError: the configuration cannot be used.
        StoreError: the store cannot be used.
    """
    async with open_house(config if isinstance(config, Config) else read_config(config)) as house:
        yield house.manager


@asynccontextmanager
async def open_house(
    config: Config,
    *,
    clock: Clock | None = None,
    make_provider: Callable[[ConfiguredAccount], Provider] | None = None,
    warm: bool = False,
    start: bool = True,
    make: bool = True,
) -> AsyncIterator[House]:
    """Run Headgate and give its parts too, for the gateway and the fleet.

    `warm` reads the price list now (0.2 s) and not with the first call. Without `start` nothing is cleaned up and no
    lease renewed: enough to ask questions, and nothing is changed. Without `make` a store that is not there is not made
    either, and reads as an empty one.
    """
    clock = clock or WallClock()
    owner = owner_name()
    client = HttpClient(HttpSettings(proxies=Proxies.of_environment(os.environ)))

    def account_provider(configured: ConfiguredAccount) -> Provider:
        return AccountProvider(
            configured.account.name,
            VENDORS[configured.account.provider],
            configured.base_url,
            None if configured.api_key is None else configured.api_key.reveal(),
            client,
            api_version=configured.api_version,
            names=dict(configured.names),
            credential=None if configured.credential is None else CREDENTIALS[configured.credential],
            reconcile=configured.reconcile,
            timeouts=timeouts_of(configured, config),
            compresses=configured.compress_requests is not None,
        )

    provide = make_provider or account_provider
    prices = GenaiPrices(config.prices, config.windows)
    if warm:
        prices.load()
    providers = {configured.account.name: provide(configured) for configured in config.accounts}
    async with open_stores(config, make=make) as stores:
        manager = Manager(
            Parts(
                levels=stores.levels,
                ledger=stores.ledger,
                keys=stores.keys,
                prices=prices,
                clock=clock,
                owner=owner,
                owner_is_alive=owner_is_alive,
                accounts=[configured.account for configured in config.accounts],
                providers=providers,
                rules=config.limits,
                rules_of_key=rules_of_key,
                retries=config.retries,
                scheduling=config.scheduling,
                maintenance=[maintenance_rule(each) for each in config.maintenance],
                model_rules=config.model_rules,
            )
        )
        recovered = Recovered()
        if start:
            recovered = await manager.start()
        else:
            await manager.know_keys()
        if recovered.lost or recovered.reconciled:
            log.warning(
                "of a process that died: %d calls count at their estimates, %d were learned from the provider",
                max(0, recovered.lost - recovered.reconciled),
                recovered.reconciled,
            )
        try:
            yield House(manager, stores, config, client, clock, owner, prices)
        finally:
            await manager.close()
            await client.close()


@asynccontextmanager
async def open_stores(config: Config, *, make: bool = True) -> AsyncIterator[SqliteStores]:
    """Open the store that the configuration names; one that is not there is made, or without `make` read as empty."""
    path = config.store.path
    with TemporaryDirectory(prefix="headgate-") if not make and not path.exists() else nullcontext() as elsewhere:
        if elsewhere is not None:
            path = Path(elsewhere) / path.name
        synchronous: Literal["FULL", "NORMAL"] = "FULL" if config.store.synchronous == "full" else "NORMAL"
        async with open_database(path, synchronous=synchronous) as stores:
            yield stores


def timeouts_of(configured: ConfiguredAccount, config: Config) -> Timeouts:
    """Give an account's time-outs: its own where it has any, else those of all."""
    usual = config.timeouts
    return Timeouts(
        dns_s=usual.dns_s,
        connect_s=usual.connect_s,
        tls_s=usual.tls_s,
        first_byte_s=usual.first_byte_s if configured.first_byte_s is None else configured.first_byte_s,
        idle_s=usual.idle_s if configured.idle_s is None else configured.idle_s,
    )


def orders_of(config: Config) -> Orders:
    """Give what a manager goes by that may change while it runs."""
    return Orders(
        rules=config.limits,
        retries=config.retries,
        scheduling=config.scheduling,
        maintenance=[maintenance_rule(each) for each in config.maintenance],
        model_rules=config.model_rules,
    )


def maintenance_rule(configured: ConfiguredMaintenance) -> MaintenanceRule:
    """Give a maintenance window as calls meet it, named by its cron expression without white space."""
    name = "_".join(configured.cron.split())
    return MaintenanceRule(
        name, configured.spans, configured.scope, configured.models, refuses=configured.action == "refuse"
    )


def rules_of_key(key: HashedKey) -> Sequence[LimitRule]:
    """Give the limits that a key carries, from the words they are stored in."""
    entries = json.loads(key.limits)
    return limit_rules(f"key:{key.name}", entries) if entries else ()
