"""`headgate serve`: the gateway, until it is told to stop.

One rule: it says one line when it is ready, and drains when it is told to end: what runs may finish, what waits is
told to come back, and everything is settled and recorded before the process goes.
"""

import asyncio
import gc
import ipaddress
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from headgate.adapters.allocator import keep_freed_memory
from headgate.adapters.config import Config
from headgate.adapters.server import App, RunningServer, run, serve, serve_handed
from headgate.cli.reloading import Reloading, said_of_keys
from headgate.compose import House, announce, open_house, read_config, withdraw
from headgate.core.errors import ConfigError, HeadgateError
from headgate.gateway.application import Gateway, GatewaySettings
from headgate.gateway.terms import Terms


def serve_gateway(config_path: Path | None, listen: str | None, workers: int = 1) -> None:
    """Serve until SIGTERM or SIGINT, with so many processes.

    Raises:
        ConfigError: the configuration cannot be used.
        HeadgateError: the store or the address cannot be used.
    """
    config = read_config(config_path)
    host, port = listen_address(listen, (config.server.host, config.server.port))
    require_accounts(config)
    if workers == 1:
        keep_freed_memory()
        run(_serve(config, host, port))
    else:
        from headgate.cli.workers import serve_with_workers  # noqa: PLC0415 - only several need it

        serve_with_workers(config, host, port, workers)


@asynccontextmanager
async def gateway_of(
    house: House,
    host: str,
    port: int,
    *,
    open_to_all: bool | None = None,
    around: Callable[[App], App] = lambda gateway: gateway,
    reloading: Reloading | None = None,
    reload: Callable[[], Awaitable[Sequence[str]]] | None = None,
    handed: socket.socket | None = None,
) -> AsyncIterator[RunningServer]:
    """Serve the gateway of a house until the block is left; open on loopback, unless `open_to_all` says otherwise.

    What is served is what `around` makes of it. `reloading` puts its configuration in force anew when it is asked to.
    `reload` is what the control API does instead, where there are others to agree with.
    Connections come over `handed`, where another process listens at this address.

    Raises:
        ConfigError: it would be open to more than this machine without any key.
        ListenError: the address cannot be listened on.
        ConfigError: an account's provider would be this gateway itself.
    """
    settings = house.config.server
    loopback = is_loopback(host)
    token = settings.admin_token.reveal() if settings.admin_token is not None else None
    require_token(house.config, host, port)
    gateway = Gateway(
        house.manager,
        GatewaySettings(
            max_body_bytes=settings.max_body_bytes,
            max_wait_s=settings.max_wait_s,
            open_to_all=loopback if open_to_all is None else open_to_all,
            admin_token=token,
            allowed_hosts=settings.allowed_hosts,
            keys=said_of_keys(house.config),
            reload=reload if reload is not None or reloading is None else reloading.reload,
            hosts=house.client.stats,
            store=house.stores.stats,
            terms=Terms(settings.while_waiting, settings.ping_every_s, settings.refuse_after_s),
        ),
    )
    if reloading is not None:
        reloading.take_keys = gateway.take_keys
    app = around(gateway)
    serving = (
        serve(app, host, port, drain_s=settings.drain_s)
        if handed is None
        else serve_handed(app, (host, port), handed, drain_s=settings.drain_s)
    )
    async with serving as server:
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


def require_token(config: Config, host: str, port: int) -> None:
    """Raise ConfigError when other machines could reach the gateway and no admin token keeps its control API."""
    if config.server.admin_token is None and not is_loopback(host):
        raise ConfigError(
            f"listen = {host}:{port} is open to other machines and needs an admin token: set [server] admin_token = "
            '"env:NAME", or listen on 127.0.0.1'
        )


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
            say(ready_line(config, server.address))
            reloads = asyncio.create_task(reload_on(hung_up, reloading.reload), name="reload on SIGHUP")
            await stopped.wait()
            reloads.cancel()
            say(draining_line(config))
            # What waits in a lane is told at once; what was sent may end.
            await asyncio.gather(house.manager.drain(), server.stop(config.server.drain_s))


def ready_line(config: Config, address: tuple[str, int]) -> str:
    """Say where what is served."""
    accounts = ", ".join(f"{entry.account.name} ({entry.account.provider})" for entry in config.accounts)
    url = f"http://{_in_url(address[0])}:{address[1]}"
    return f"headgate: serving {url} for {accounts}; {len(config.limits)} limits"


def draining_line(config: Config) -> str:
    """Say what is waited for before the end."""
    return f"headgate: draining, up to {config.server.drain_s:.0f} s for calls on their way"


async def reload_on(hung_up: asyncio.Event, reload: Callable[[], Awaitable[Sequence[str]]]) -> None:
    """Read the configuration again each time the signal comes; those that come meanwhile are one."""
    while True:
        await hung_up.wait()
        hung_up.clear()
        try:
            changed = await reload()
        except HeadgateError as error:
            print(f"headgate: not reloaded, nothing has changed:\n{error}", file=sys.stderr, flush=True)  # noqa: T201 - the command speaks
        else:
            say("\n  ".join([f"headgate: reloaded, {len(changed) or 'no'} changes", *changed]))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def say(line: str) -> None:
    """Say a line on stdout."""
    print(line, file=sys.stdout, flush=True)  # noqa: T201 - the command's one line
