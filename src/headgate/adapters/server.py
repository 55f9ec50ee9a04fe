"""The seam to the HTTP server: an ASGI app under uvicorn's httptools protocol, in the loop that is running.

One rule: the process is the caller's: no signal handler, no log set-up, no exit and no lasting task is made here.
It knows nothing of what the app answers; bounds on bodies and on calls are the app's own affair.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headgate.core.errors import CallerError

try:
    from uvloop import new_event_loop
except ImportError:  # uvloop does not exist for Windows, where asyncio's own loop serves.
    from asyncio import new_event_loop  # type: ignore[assignment]  # another loop, made the same way

__all__ = ["App", "ListenError", "Message", "Receive", "RunningServer", "Send", "run", "serve"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application; only scopes of type `http` come."""

_Result = TypeVar("_Result")

_LOGGER = logging.getLogger("headgate.server")
_BACKLOG = 2048  # what the kernel holds until it is accepted: a fleet's agents all start at once
# Longer than common clients keep theirs (httpx 5 s, Node's fetch 4 s), so that none sends into one just closed.
_KEEP_ALIVE_S = 75
_MAX_PORT = 65_535
_HEAD_LIMIT_BYTES = 64 * 1024
_HEAD_WAIT_S = 30.0
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
    # Not uvicorn's own Server: it exits the process where it cannot listen, installs signal handlers, starts and stops
    # in ticks of 0.1 s, and wakes ten times a second for ever. Its protocol class is the part that is hard to write.
    config = Config(
        lambda: app,
        factory=True,  # otherwise uvicorn calls the app without arguments to find out whether it is a factory
        http=HttpToolsProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        forwarded_allow_ips="",
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    config.load()
    _LOGGER.addFilter(_is_worth_a_line)
    server = RunningServer(config)
    await server.start(host, port)
    try:
        yield server
    finally:
        await server.stop(drain_s)


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine as `asyncio.run` does, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


class RunningServer:
    """A server in the running loop; `address` is the host and port really bound."""

    def __init__(self, config: Config) -> None:
        self.address: tuple[str, int] = ("", 0)
        self._config = config
        self._state = ServerState()
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Server | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._lost = asyncio.Event()

    async def start(self, host: str, port: int) -> None:
        """Listen; whoever connects from now on is served."""
        if not 0 <= port <= _MAX_PORT:  # uvloop would take such a port modulo 65536
            raise ListenError(f"cannot listen on {host}:{port}: a port is a number from 0 to {_MAX_PORT}")
        try:
            self._listener = await self._loop.create_server(self._connection, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ListenError(_explain(host, port, error)) from error
        self.address = self._listener.sockets[0].getsockname()[:2]
        self._sweep_timer = self._loop.call_later(_HEAD_WAIT_S, self._sweep)

    async def stop(self, drain_s: float) -> None:
        """Accept nothing more, let calls on their way end for `drain_s` seconds, then cut off those that remain.

        An app learns of the cut as of a client that went away (`http.disconnect`), and has two seconds to clean up
        before it is cancelled. It may be called again, even while it runs, with less patience.
        """
        if self._listener is not None:
            self._listener.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        try:
            for connection in tuple(self._state.connections):
                connection.shutdown()
            await self._wait_until_idle(drain_s)
        finally:
            for connection in tuple(self._state.connections):
                connection.transport.abort()
        await self._wait_until_idle(_CLEAN_UP_S)
        for task in tuple(self._state.tasks):
            task.cancel()
        await self._wait_until_idle(_CLEAN_UP_S)
        if self._state.tasks:
            _LOGGER.error("%d calls go on although they were cancelled: the app does not end", len(self._state.tasks))

    async def _wait_until_idle(self, wait_s: float) -> None:
        with suppress(TimeoutError):  # Whoever calls looks at what is left.
            async with asyncio.timeout(wait_s):
                while self._state.tasks or self._state.connections:
                    if self._state.tasks:
                        await asyncio.wait(self._state.tasks)
                    else:
                        self._lost.clear()
                        await self._lost.wait()

    def _connection(self) -> "_Connection":
        return _Connection(self._config, self._state, self._lost)

    def _sweep(self) -> None:
        for connection in tuple(self._state.connections):
            assert isinstance(connection, _Connection)
            connection.close_if_silent()
        self._sweep_timer = self._loop.call_later(_HEAD_WAIT_S, self._sweep)


class _Connection(HttpToolsProtocol):
    """uvicorn's protocol with the bounds on heads that it leaves to others."""

    def __init__(self, config: Config, state: ServerState, lost: asyncio.Event) -> None:
        super().__init__(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
        self.logger = _LOGGER
        self._lost = lost
        self._in_head = False
        self._head_bytes = 0
        self._seen_silent_after: object = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_LIMIT_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The head of the request is larger than {_HEAD_LIMIT_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def close_if_silent(self) -> None:
        """Close if there has been neither a call nor a whole head since the sweep before this one.

        Between calls uvicorn has a timer of its own; it has none for a client that never sends a head, or half of one.
        """
        call_on_its_way = not getattr(self.cycle, "response_complete", True)  # None before the first call
        if call_on_its_way or self.timeout_keep_alive_task is not None:
            self._seen_silent_after = self
        elif self._seen_silent_after is self.cycle:
            self.transport.abort()
        else:
            self._seen_silent_after = self.cycle


def _explain(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        way_out = f"the host is not known ({error.strerror}): choose 127.0.0.1, or 0.0.0.0 for all addresses"
    else:
        way_out = _WAYS_OUT.get(error.errno or 0, error.strerror or str(error))
    return f"cannot listen on {host}:{port}: {way_out}"


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Keep what is our fault: garbage gets its 400 without a line, lest anyone fill the log, and a stop is no error."""
    error = record.exc_info[1] if record.exc_info else None
    return record.levelno >= logging.ERROR and not isinstance(error, asyncio.CancelledError)
