"""The connections to one host: which one a call gets, how many there are, and who waits for one.

One rule: connections open and being opened never exceed the bound, and a place that is given up goes to whoever waits.
It sends nothing.
"""

import asyncio
import math
import socket
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto

from headgate.adapters.providers.http_connection import Connection, Timeouts
from headgate.adapters.providers.http_dialing import DialError, dial
from headgate.adapters.providers.http_errors import NotSent, Why
from headgate.adapters.providers.http_proxies import NO_PROXIES, Proxies, Proxy
from headgate.adapters.providers.http_request import Origin

__all__ = ["HostPool", "HostStats", "HttpSettings"]

_CLOSED = "the client was closed"

_GROWTH = 1.5
_SHRINK_BELOW = 0.3
"""Where, in the time for which an unused one is kept, fewer than this part of the connections that there may be were in
use at once, the bound shrinks as it grew (design.md section 5, "pools")."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The bounds of a client; the defaults suit a gateway on one machine."""

    connections_per_host: int = 1_000
    """The most there can ever be. How many there may be now begins at `first_connections`, and follows the load."""
    first_connections: int = 128
    grow_after_s: float = 0.005
    """When a call has waited so long for a connection, half as many more may be opened."""
    waiting_per_host: int = 10_000
    """Calls that may wait for a connection at the same time; the next one fails at once."""
    idle_s: float = 300.0
    """How long an unused connection is kept. Cloudflare, before both big providers, closes after 400 s
    (developers.cloudflare.com/fundamentals/reference/connection-limits, 2026); a server that names an earlier time in a
    `keep-alive` header is heeded."""
    head_limit_bytes: int = 64 * 1024
    unread_limit_bytes: int = 128 * 1024
    """A body's bytes that may lie unread before the connection stops reading; one read may add 256 KiB to them."""
    proxies: Proxies = NO_PROXIES
    tls: ssl.SSLContext | None = None
    """None for the system's certificate authorities; one given should offer ALPN `http/1.1`."""


@dataclass(frozen=True, slots=True)
class HostStats:
    """How one host's connections are used, now and since the start."""

    bound: int
    open: int
    idle: int
    in_use: int
    waiting: int
    opened: int
    reused: int
    stale_retries: int
    grown: int
    shrunk: int
    waited_s: float


class _Grant(Enum):
    """What a waiting call may get instead of a connection."""

    PLACE = auto()
    TIMEOUT = auto()
    CLOSED = auto()


class HostPool:
    """The connections to `origin`, and the calls that wait for one; `tls` is None for plain http."""

    def __init__(self, origin: Origin, settings: HttpSettings, tls: ssl.SSLContext | None) -> None:
        self.opened = 0
        self.reused = 0
        self.stale_retries = 0
        self.grown = 0
        self.shrunk = 0
        self.waited_s = 0.0
        """What calls have waited for a connection, all together."""
        self.proxy = settings.proxies.proxy_for(origin)
        self._origin = origin
        self._label = origin.label
        self._settings = settings
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._places = 0  # connections open and being opened
        self._open: set[Connection] = set()
        self._closing: set[Connection] = set()  # their place is free, their transport not yet gone
        self._idle: list[Connection] = []  # the most recently used last
        # First come, first served; the value says whether the call must have a new connection.
        self._waiting: OrderedDict[asyncio.Future[Connection | _Grant], bool] = OrderedDict()
        self._bound = min(settings.first_connections, settings.connections_per_host)
        self._most_in_use = 0  # since the bound was last looked at
        self._growing: asyncio.TimerHandle | None = None
        self._shrinking: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_lost: asyncio.Future[None] | None = None

    @property
    def is_unused(self) -> bool:
        """Whether it could be forgotten without anybody noticing."""
        return not (self._places or self._closing or self._waiting)

    @property
    def plain_proxy(self) -> Proxy | None:
        """The proxy that is told with each call where it goes; through a tunnel it does not see it."""
        return None if self._tls is not None else self.proxy

    def stats(self) -> HostStats:
        """Give the figures of this moment."""
        open_now, idle = len(self._open), len(self._idle)
        return HostStats(
            bound=self._bound, open=open_now, idle=idle, in_use=open_now - idle, waiting=len(self._waiting),
            opened=self.opened, reused=self.reused, stale_retries=self.stale_retries,
            grown=self.grown, shrunk=self.shrunk, waited_s=self.waited_s,
        )  # fmt: skip

    def take_idle(self) -> Connection | None:
        """Give the idle connection that was used last, if there is one: it is the least likely to be stale."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self.reused += 1
                self._note_use()
                return connection
            connection.abort()
        return None

    async def acquire(self, timeouts: Timeouts, started_s: float, *, fresh: bool = False) -> Connection:
        """Open a connection, or wait until one is free; `fresh` for one that is new, and before all others.

        Raises:
            NotSent: None could be had.
        """
        while True:
            if fresh and self._idle and self._places >= self._bound:
                self._idle[0].abort()
            if self._places < self._bound:
                self._places += 1
                return await self._connect(timeouts, started_s)
            granted = await self._wait(timeouts, started_s, fresh=fresh)
            if isinstance(granted, Connection):
                if granted.usable:
                    self.reused += 1
                    self._note_use()
                    return granted
                granted.abort()
                fresh = True  # It died on the way here; this call has waited its turn.
            elif granted is _Grant.PLACE:
                return await self._connect(timeouts, started_s)
            elif granted is _Grant.TIMEOUT:
                what = f"none of {self._places} connections became free within {timeouts.pool_s:g} s"
                raise self._not_sent("pool", what, started_s)
            else:
                raise self._not_sent("closed", _CLOSED, started_s)

    async def close(self) -> None:
        """Close every connection, calls on their way included, and return when their sockets are closed."""
        self._closed = True
        for timer in (self._growing, self._shrinking):
            if timer is not None:
                timer.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(_Grant.CLOSED)
        self._waiting.clear()
        for connection in tuple(self._open):
            connection.close()
        if self._closing:
            self._all_lost = self._loop.create_future()
            await self._all_lost

    # --- what connections say (http_connection.Owner)

    def idle(self, connection: Connection) -> None:
        """Hand the connection to the first that waits, or keep it."""
        if next((fresh for waiter, fresh in self._waiting.items() if not waiter.done()), False):
            connection.abort()  # Its place goes to the one that waits.
        elif not self._grant(connection):
            self._idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """Give the connection's place to the first that waits, or free it."""
        if connection in self._open:
            self._open.discard(connection)
            self._closing.add(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._give_up_place()

    def lost(self, connection: Connection) -> None:
        """Forget the connection."""
        self._closing.discard(connection)
        if self._all_lost is not None and not self._closing and not self._all_lost.done():
            self._all_lost.set_result(None)

    # --- places

    def _grant(self, what: Connection | _Grant) -> bool:
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(what)
                return True
        return False

    def _give_up_place(self) -> None:
        if self._places > self._bound or not self._grant(_Grant.PLACE):
            self._places -= 1

    # --- how many there may be: more when calls wait, fewer when few are used

    def _note_use(self) -> None:
        self._most_in_use = max(self._most_in_use, len(self._open) - len(self._idle))

    def _watch_waiting(self) -> None:
        if self._growing is None and self._bound < self._settings.connections_per_host:
            self._growing = self._loop.call_later(self._settings.grow_after_s, self._grow)

    def _grow(self) -> None:
        self._growing = None
        if not self._waiting:
            return
        self._bound = min(self._settings.connections_per_host, math.ceil(self._bound * _GROWTH))
        self.grown += 1
        while self._places < self._bound and self._grant(_Grant.PLACE):
            self._places += 1
        if self._shrinking is None:
            self._shrinking = self._loop.call_later(self._settings.idle_s, self._shrink)
        if self._waiting:
            self._watch_waiting()

    def _shrink(self) -> None:
        self._shrinking = None
        first = min(self._settings.first_connections, self._settings.connections_per_host)
        most = max(self._most_in_use, len(self._open) - len(self._idle))
        self._most_in_use = 0
        if most < _SHRINK_BELOW * self._bound:
            self._bound = max(first, math.ceil(self._bound / _GROWTH))
            self.shrunk += 1
            for connection in self._idle[: max(0, self._places - self._bound)]:
                connection.abort()
        if self._bound > first:
            self._shrinking = self._loop.call_later(self._settings.idle_s, self._shrink)

    async def _wait(self, timeouts: Timeouts, started_s: float, *, fresh: bool) -> Connection | _Grant:
        if len(self._waiting) >= self._settings.waiting_per_host:
            raise self._not_sent("pool", f"{len(self._waiting)} calls wait for a connection already", started_s)
        waiter: asyncio.Future[Connection | _Grant] = self._loop.create_future()
        timer = self._loop.call_later(timeouts.pool_s, _time_out, waiter)
        since_s = self._loop.time()
        self._watch_waiting()
        self._waiting[waiter] = fresh
        if fresh:
            self._waiting.move_to_end(waiter, last=False)
        try:
            return await waiter
        except asyncio.CancelledError:
            # What was granted in the same moment goes to the next.
            if waiter.done() and not waiter.cancelled():
                granted = waiter.result()
                if granted is _Grant.PLACE:
                    self._give_up_place()
                elif isinstance(granted, Connection) and granted.usable:
                    self.idle(granted)
            raise
        finally:
            timer.cancel()
            self.waited_s += self._loop.time() - since_s
            self._waiting.pop(waiter, None)

    async def _connect(self, timeouts: Timeouts, started_s: float) -> Connection:
        settings = self._settings
        connection = Connection(
            self, self._label, idle_s=settings.idle_s, head_limit_bytes=settings.head_limit_bytes,
            unread_limit_bytes=settings.unread_limit_bytes,
        )  # fmt: skip
        try:
            dialed = await dial(
                self._origin.host,
                self._origin.port,
                self.proxy,
                tunnel=self._tls is not None,
                dns_s=timeouts.dns_s,
                connect_s=timeouts.connect_s,
            )
            await self._shake_hands(connection, dialed, timeouts)
            self._open.add(connection)
        except DialError as error:
            raise self._not_sent(error.why, error.what, started_s) from error
        except TimeoutError as error:
            raise self._not_sent("timeout", f"no TLS within {timeouts.tls_s:g} s", started_s) from error
        except ssl.SSLCertVerificationError as error:
            what = f"the certificate is not trusted: {error.verify_message}"
            raise self._not_sent("certificate", what, started_s) from error
        except ssl.SSLError as error:
            raise self._not_sent("tls", f"TLS failed: {error.reason or error}", started_s) from error
        except OSError as error:
            raise self._not_sent("connect", f"no connection: {error.strerror or error}", started_s) from error
        finally:
            # A transport that was on its way is closed by the loop.
            if connection not in self._open:
                self._give_up_place()
        if self._closed or not connection.usable:
            connection.abort()
            # It may have been lost before the pool knew of it; said twice does no harm.
            self.lost(connection)
            if self._closed:
                raise self._not_sent("closed", _CLOSED, started_s)
            raise self._not_sent("connect", "the server closed the connection at once", started_s)
        self.opened += 1
        self._note_use()
        return connection

    async def _shake_hands(self, connection: Connection, dialed: socket.socket, timeouts: Timeouts) -> None:
        # From here on the socket is the loop's, which closes it with the transport, whatever goes wrong.
        async with asyncio.timeout(timeouts.tls_s):
            await self._loop.create_connection(
                lambda: connection,
                sock=dialed,
                ssl=self._tls,
                server_hostname=self._origin.host if self._tls else None,
            )

    def _not_sent(self, why: Why, what: str, started_s: float) -> NotSent:
        return NotSent(self._label, why, what, elapsed_s=self._loop.time() - started_s)


def _time_out(waiter: "asyncio.Future[Connection | _Grant]") -> None:
    if not waiter.done():
        waiter.set_result(_Grant.TIMEOUT)
