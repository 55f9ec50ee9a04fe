"""`headgate serve`: the gateway, until it is told to stop.

One rule: it says one line when it is ready, and drains when it is told to end: what runs may finish, what waits is
told to come back, and everything is settled and recorded before the process goes.
"""

import asyncio
import gc
import ipaddress
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from headgate.adapters.allocator import keep_freed_memory
from headgate.adapters.config import Config
from headgate.adapters.server import App, RunningServer, run, serve
from headgate.cli.reloading import Reloading, said_of_keys
from headgate.compose import House, announce, open_house, read_config, withdraw
from headgate.core.errors import ConfigError, HeadgateError
from headgate.gateway.application import Gateway, GatewaySettings
from headgate.gateway.terms import Terms


def serve_gateway(config_path: Path | None, listen: str | None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the configuration cannot be used.
        HeadgateError: the store or the address cannot be used.
    """
    config = read_config(config_path)
    host, port = listen_address(listen, (config.server.host, config.server.port))
    require_accounts(config)
    keep_freed_memory()
    run(_serve(config, host, port))


@asynccontextmanager
async def gateway_of(
    house: House,
    host: str,
    port: int,
    *,
    open_to_all: bool | None = None,
    around: Callable[[App], App] = lambda gateway: gateway,
    reloading: Reloading | None = None,
) -> AsyncIterator[RunningServer]:
    """Serve the gateway of a house until the block is left; open on loopback, unless `open_to_all` says otherwise.

    What is served is what `around` makes of it. `reloading` puts its configuration in force anew when it is asked to.

    Raises:
        ConfigError: it would be open to more than this machine without any key.
        ListenError: the address cannot be listened on.
        ConfigError: an account's provider would be this gateway itself.
    """
    settings = house.config.server
    loopback = is_loopback(host)
    token = settings.admin_token.reveal() if settings.admin_token is not None else None
    if not loopback and token is None:
        raise ConfigError(
            f"listen = {host}:{port} is open to other machines and needs an admin token: set [server] admin_token = "
            '"env:NAME", or listen on 127.0.0.1'
        )
    gateway = Gateway(
        house.manager,
        GatewaySettings(
            max_body_bytes=settings.max_body_bytes,
            max_wait_s=settings.max_wait_s,
            open_to_all=loopback if open_to_all is None else open_to_all,
            admin_token=token,
            keys=said_of_keys(house.config),
            reload=None if reloading is None else reloading.reload,
            hosts=house.client.stats,
            terms=Terms(settings.while_waiting, settings.ping_every_s, settings.refuse_after_s),
        ),
    )
    if reloading is not None:
        reloading.take_keys = gateway.take_keys
    async with serve(around(gateway), host, port, drain_s=settings.drain_s) as server:
        refuse_to_call_itself(house.config, server.address[1], host)
        await announce(house, house.config)
        try:
            yield server
        finally:
            await withdraw(house)


LOOK_FOR_GARBAGE_EVERY = 20_000
"""Objects that are made between two looks for garbage among them, where Python has 700: nothing that a call leaves
needs it, and the looks were 6 % of a call."""


def calm_garbage_collection() -> None:
    """Look for garbage seldom, and never again among what is there now: modules, settings, the price list."""
    gc.freeze()
    gc.set_threshold(LOOK_FOR_GARBAGE_EVERY, *gc.get_threshold()[1:])


def refuse_to_call_itself(config: Config, port: int, host: str) -> None:
    """Raise ConfigError when an account's address is the one served: each call would call again, and be charged again.

    Names are not looked up: of this machine's, `localhost` and loopback addresses are known.
    """
    for entry in config.accounts:
        parts = urlsplit(entry.base_url)
        theirs = parts.port or {"http": 80, "https": 443}[parts.scheme]
        if theirs == port and parts.hostname is not None and (is_loopback(parts.hostname) or parts.hostname == host):
            raise ConfigError(
                f"account {entry.account.name}: base_url {entry.base_url} is where this gateway itself listens; "
                "give it the provider's address"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_address(text: str | None, default: tuple[str, int]) -> tuple[str, int]:
    """Give host and port of `host:port`.

    Raises:
        ConfigError: it is not of that form.
    """
    if text is None:
        return default
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004 - the largest port
        raise ConfigError(f"--listen {text!r}: expected host:port, such as 127.0.0.1:8484")
    return host.strip("[]"), int(port)


def require_accounts(config: Config) -> None:
    """Raise ConfigError when there is no provider to call."""
    if not config.accounts:
        raise ConfigError(
            "no provider account: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or write [[account]] in headgate.toml; "
            "to try without one, start `headgate provider` and point an account's base_url at it"
        )


async def _serve(config: Config, host: str, port: int) -> None:
    stopped, hung_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    async with open_house(config, warm=True) as house:
        reloading = Reloading(house)
        async with gateway_of(house, host, port, reloading=reloading) as server:
            calm_garbage_collection()
            address = f"http://{_in_url(server.address[0])}:{server.address[1]}"
            accounts = ", ".join(f"{entry.account.name} ({entry.account.provider})" for entry in config.accounts)
            _say(f"headgate: serving {address} for {accounts}; {len(config.limits)} limits")
            reloads = asyncio.create_task(_reload_on(hung_up, reloading), name="reload on SIGHUP")
            await stopped.wait()
            reloads.cancel()
            _say(f"headgate: draining, up to {config.server.drain_s:.0f} s for calls on their way")
            # What waits in a lane is told at once; what was sent may end.
            await asyncio.gather(house.manager.drain(), server.stop(config.server.drain_s))


async def _reload_on(hung_up: asyncio.Event, reloading: Reloading) -> None:
    """Read the configuration again each time the signal comes; those that come meanwhile are one."""
    while True:
        await hung_up.wait()
        hung_up.clear()
        try:
            changed = await reloading.reload()
        except HeadgateError as error:
            print(f"headgate: not reloaded, nothing has changed:\n{error}", file=sys.stderr, flush=True)  # noqa: T201 - the command speaks
        else:
            _say("\n  ".join([f"headgate: reloaded, {len(changed) or 'no'} changes", *changed]))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)  # noqa: T201 - the command's one line
