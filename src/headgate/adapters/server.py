"""The seam to the HTTP server: an ASGI app in the loop that is running.

One rule: the process is the caller's: no signal handler, no log set-up, no exit and no lasting task is made here.
It knows nothing of what the app answers; bounds on bodies and on calls are the app's own affair.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from headgate.adapters.handing import Handed
from headgate.adapters.http_call import App, Message, Receive, Send
from headgate.adapters.http_server import Connection, Connections
from headgate.core.errors import CallerError

try:
    from uvloop import new_event_loop
except ImportError:  # uvloop does not exist for Windows, where asyncio's own loop serves.
    from asyncio import new_event_loop  # type: ignore[assignment]  # another loop, made the same way

__all__ = [
    "App", "ListenError", "Message", "Receive", "RunningServer", "Send", "listeners", "run", "serve", "serve_handed",
]  # fmt: skip

_Result = TypeVar("_Result")

_LOGGER = logging.getLogger("headgate.server")
_BACKLOG = 2048  # what the kernel holds until it is accepted: a fleet's agents all start at once
_MAX_PORT = 65_535
# A client without a whole head is let go after 30 to 60 s, and one between two calls after 90 to 120 s: longer than
# common clients keep a connection (httpx 5 s, Node's fetch 4 s), so that none sends into one just closed.
_SWEEP_EVERY_S = 30.0
# An app whose client has gone cancels its upstream call and settles: microseconds of work and a little I/O.
_CLEAN_UP_S = 2.0

_WAYS_OUT = {
    errno.EADDRINUSE: "something listens there already: stop it, or choose another port (0 takes a free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose 127.0.0.1, or 0.0.0.0 for all it has",
    errno.EACCES: "not allowed: ports below 1024 need special rights, choose a higher one",
}


class ListenError(CallerError):
    """The address cannot be listened on; the message names it and says what to do."""


@asynccontextmanager
async def serve(app: App, host: str, port: int, *, drain_s: float = 10.0) -> AsyncIterator["RunningServer"]:
    """Serve `app` until the block is left, which is `RunningServer.stop(drain_s)`; it is ready on entering.

    Port 0 takes a free one. No `server` or `date` header is added: a gateway hands on those of the provider.

    Raises:
        ListenError: The address is in use, not this machine's, or not allowed.
    """
    server = RunningServer(app)
    await server.start(host, port)
    try:
        yield server
    finally:
        await server.stop(drain_s)


@asynccontextmanager
async def serve_handed(
    app: App, address: tuple[str, int], channel: socket.socket, *, drain_s: float = 10.0
) -> AsyncIterator["RunningServer"]:
    """Serve `app` on the connections that another process accepts at `address` and hands on over `channel`."""
    server = RunningServer(app)
    server.take_from(channel, address)
    try:
        yield server
    finally:
        await server.stop(drain_s)


def listeners(host: str, port: int) -> list[socket.socket]:
    """Listen on an address, for others to serve: a socket for each that the host has, all of one port.

    Raises:
        ListenError: The address is in use, not this machine's, or not allowed.
    """
    _check_port(host, port)
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _name, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            opened.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Where a free port is asked for, that of the first is the others' too.
            taken = opened[0].getsockname()[1] if len(opened) > 1 else port
            listener.bind((address[0], taken, *address[2:]))
            listener.listen(_BACKLOG)
    except OSError as error:
        for listener in opened:
            listener.close()
        raise ListenError(_explain(host, port, error)) from error
    return opened


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine as `asyncio.run` does, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


class RunningServer:
    """A server in the running loop; `address` is the host and port really bound."""

    def __init__(self, app: App) -> None:
        self.address: tuple[str, int] = ("", 0)
        self._connections = Connections(app, _LOGGER)
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._handed: Handed | None = None
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Listen; whoever connects from now on is served."""
        _check_port(host, port)
        try:
            self._listener = await self._loop.create_server(self._connection, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ListenError(_explain(host, port, error)) from error
        self.address = self._listener.sockets[0].getsockname()[:2]
        self._sweep_timer = self._loop.call_later(_SWEEP_EVERY_S, self._sweep)

    def take_from(self, channel: socket.socket, address: tuple[str, int]) -> None:
        """Serve what another process accepts at an address."""
        self.address = address
        self._handed = Handed(channel, self._take)
        self._sweep_timer = self._loop.call_later(_SWEEP_EVERY_S, self._sweep)

    async def stop(self, drain_s: float) -> None:
        """Accept nothing more, let calls on their way end for `drain_s` seconds, then cut off those that remain.

        An app learns of the cut as of a client that went away (`http.disconnect`), and has two seconds to clean up
        before it is cancelled. It may be called again, even while it runs, with less patience.
        """
        if self._listener is not None:
            self._listener.close()
        if self._handed is not None:
            self._handed.end()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        try:
            for connection in tuple(self._connections.open):
                connection.shutdown()
            await self._wait_until_idle(drain_s)
        finally:
            for connection in tuple(self._connections.open):
                connection.transport.abort()
        await self._wait_until_idle(_CLEAN_UP_S)
        for task in tuple(self._connections.tasks):
            task.cancel()
        await self._wait_until_idle(_CLEAN_UP_S)
        if self._connections.tasks:
            _LOGGER.error(
                "%d calls go on although they were cancelled: the app does not end", len(self._connections.tasks)
            )

    async def _wait_until_idle(self, wait_s: float) -> None:
        with suppress(TimeoutError):  # Whoever calls looks at what is left.
            async with asyncio.timeout(wait_s):
                while self._connections.tasks or self._connections.open:
                    if self._connections.tasks:
                        await asyncio.wait(self._connections.tasks)
                    else:
                        self._connections.lost.clear()
                        await self._connections.lost.wait()

    def _connection(self) -> Connection:
        return Connection(self._connections)

    def _take(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._open(connection), name="connection handed on")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        handed = self._handed
        assert handed is not None
        try:
            with suppress(OSError):  # it has gone already
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(lambda: _HandedConnection(self._connections, handed), connection)
        except OSError as error:
            connection.close()
            handed.closed()
            _LOGGER.info("a connection was gone before it was served: %s", error)

    def _sweep(self) -> None:
        for connection in tuple(self._connections.open):
            connection.swept()
        self._sweep_timer = self._loop.call_later(_SWEEP_EVERY_S, self._sweep)


class _HandedConnection(Connection):
    """A connection that another process accepted, which is told when it ends."""

    __slots__ = ("_handed",)

    def __init__(self, connections: Connections, handed: Handed) -> None:
        super().__init__(connections)
        self._handed = handed

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._handed.closed()


def _check_port(host: str, port: int) -> None:
    if not 0 <= port <= _MAX_PORT:  # uvloop would take such a port modulo 65536
        raise ListenError(f"cannot listen on {host}:{port}: a port is a number from 0 to {_MAX_PORT}")


def _explain(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        way_out = f"the host is not known ({error.strerror}): choose 127.0.0.1, or 0.0.0.0 for all addresses"
    else:
        way_out = _WAYS_OUT.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host}:{port}: {way_out}"
