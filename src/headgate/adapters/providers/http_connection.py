"""One upstream connection, which fills the reply it is reading: httptools (llhttp) over an asyncio transport.

One rule: a connection serves one reply at a time, and another only when that one ended exactly where it said it would.
It has one timer, which moves rarely, and no task. It opens nothing and chooses nothing: that is the pool's.
"""

import asyncio
import math
import select
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NoReturn, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from headgate.adapters.providers.http_errors import Broken, NoAnswer, Why
from headgate.adapters.providers.http_reply import Reply
from headgate.ports import Headers

__all__ = ["Connection", "Owner", "Timeouts"]

# Up to here one write of a joined copy is cheaper than a second buffer for the kernel to gather.
_JOIN_BELOW_BYTES = 16 * 1024
_MARGIN_S = 1.0  # a server that says when it will close an idle connection is not believed to the second


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each part of a call may take, in seconds; the whole of it is the caller's to bound."""

    pool_s: float = 30.0
    """Until a connection is free, where all that a host may have are in use."""
    dns_s: float = 5.0
    """Looking up the host's name."""
    connect_s: float = 10.0
    """Connecting to one of its addresses, or to the proxy before it."""
    tls_s: float = 10.0
    """The handshake of TLS."""
    first_byte_s: float = 600.0
    """From sending to the complete head; a model may think for minutes before it answers (the SDKs' 600 s)."""
    idle_s: float = 300.0
    """Between two parts of the body."""


class Owner(Protocol):
    """Who keeps the connection between calls."""

    def idle(self, connection: "Connection") -> None:
        """The reply ended and the connection is fit for another."""

    def gone(self, connection: "Connection") -> None:
        """The connection cannot be used any more; may be said twice."""

    def lost(self, connection: "Connection") -> None:
        """The transport is closed for good."""


class Connection(asyncio.Protocol):
    """A connection to one host, from `connection_made` until it is closed by either side."""

    __slots__ = (
        "_complete", "_deadline_s", "_fault", "_has_body", "_head_done", "_head_limit_bytes", "_headers",
        "_idle_s", "_keep_alive", "_loop", "_owner", "_parser", "_paused", "_pieces", "_quiet_bytes",
        "_reason", "_reply", "_sends_more", "_status", "_timeouts", "_timer", "_timer_s", "_transport",
        "_unread_limit_bytes", "_until_close", "_watch", "_writable", "label", "on_body", "served",
    )  # fmt: skip

    _headers: list[tuple[bytes, bytes]]
    _fault: tuple[Why, str] | None
    _paused: bool
    _head_done: bool
    _complete: bool

    def __init__(
        self, owner: Owner, label: str, *, idle_s: float, head_limit_bytes: int, unread_limit_bytes: int
    ) -> None:
        self._owner = owner
        self.label = label
        self._idle_s = idle_s
        self._head_limit_bytes = head_limit_bytes
        self._unread_limit_bytes = unread_limit_bytes
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._watch: select.poll | None = None
        self._deadline_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._timeouts = Timeouts()
        self._reply: Reply | None = None
        self.served = 0
        """Replies that ended well."""
        # llhttp's callback for the body is `append` itself: no Python runs for a piece of the body.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._sends_more = False
        self._writable: asyncio.Future[None] | None = None
        self._begin_reply(has_body=True)

    @property
    def usable(self) -> bool:
        """Whether a call may be started on it, as far as is known to the kernel."""
        if self._reply is not None or self._transport is None or self._transport.is_closing():
            return False
        # A call written to a connection that its server has closed is not sent again, so it is worth a look (1 us) for
        # a close that the loop has had no turn to tell. Whatever is there to be read, nobody asked for it.
        return not self.served or self._watch is None or not self._watch.poll(0)

    def start(self, reply: Reply, head: bytes, body: bytes, *, has_body: bool, timeouts: Timeouts) -> None:
        """Send a request whose answer goes to `reply`; `has_body` is False for HEAD, whose answer has only a head."""
        assert self._transport is not None
        assert self._reply is None, "one call at a time"
        self._begin_reply(has_body=has_body)
        self._reply = reply
        self._sends_more = False
        self._timeouts = timeouts
        if len(body) <= _JOIN_BELOW_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        self._expect_within(timeouts.first_byte_s)

    async def upload(self, pieces: AsyncIterator[bytes], *, chunked: bool) -> None:
        """Send a body piece by piece, as fast as the server takes it.

        The time for the first byte of an answer begins anew with each piece.
        """
        self._sends_more = True
        async for piece in pieces:
            if not piece:
                continue
            self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if self._writable is not None:
                await self._writable
        if chunked:
            self._write(b"0\r\n\r\n")
        self._sends_more = False

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._reply is None:
            return  # closed: whoever reads the reply is told why
        self._transport.write(data)
        if not self._head_done:
            self._expect_within(self._timeouts.first_byte_s)

    def pause_writing(self) -> None:
        """Wait with more: the server takes it slowly."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """Go on."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def resume(self) -> None:
        """Read on: the reply's bytes were taken."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            self._expect_within(self._timeouts.idle_s)

    def abort(self) -> None:
        """Close at once, without waiting for anything; the call on it, if any, hears no more of it."""
        self._reply = None
        if self._transport is not None:
            self._transport.abort()
        self._owner.gone(self)

    def close(self) -> None:
        """Close at once; the call on it, if any, ends with an error."""
        if self._reply is None:
            self.abort()
        else:
            self._fail("closed", "the client was closed")

    # --- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports have all methods of an asyncio.Transport without being one.
        self._transport = cast(asyncio.Transport, transport)
        plug = transport.get_extra_info("socket")
        if plug is not None:
            # Both loops set it themselves today; forgetting it would cost every call 40 ms of delayed acknowledgement.
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._watch = select.poll()
            self._watch.register(plug.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Parse what came and tell the reply once, however many pieces it was."""
        reply, parser = self._reply, self._parser
        if reply is None or parser is None:
            # An idle server that speaks unasked says that it will close (408), or answers what nobody asked.
            self.abort()
            return
        fault = None
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            fault = self._fault or ("malformed", f"the answer is not HTTP/1.1: {error}")
        if self._head_done and not reply.status:
            fault = self._hand_over_head(reply, len(data)) or fault
        if self._pieces and self._head_done:
            reply.take_in(self._pieces)
            self._quiet_bytes = 0
        else:
            fault = self._count_quiet(len(data)) or fault
        self._pieces.clear()
        if self._complete:
            self._end(reply, reusable=self._keep_alive and fault is None)
        elif fault is not None:
            self._fail(*fault)
        else:
            self._go_on(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the reply that was on its way: well if only the server's closing could end it, else with an error."""
        reply = self._reply
        if reply is not None:
            if self._until_close and exc is None:
                self._end(reply, reusable=False)
            else:
                reply.stale = self.served > 0 and not self._head_done and not self._quiet_bytes
                cut = "in the middle of the body" if self._head_done else "before it answered"
                self._fail("reset", f"the server closed the connection {cut}")
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        # The parser holds this object's methods: without this cut each connection would wait for the garbage collector.
        self._transport = self._parser = self._timer = self._watch = None
        self._owner.gone(self)
        self._owner.lost(self)

    # --- what the parser says

    def on_message_begin(self) -> None:
        """Refuse a second answer to one request."""
        if self._complete:
            self._refuse("malformed", "the server sent more than one answer")

    def on_status(self, reason: bytes) -> None:
        """Collect the reason phrase, which may come in parts."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are not wanted."""
        if not self._head_done:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Decide how the body ends; an interim answer (1xx) is forgotten."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status == 101:  # noqa: PLR2004 - Switching Protocols
            self._refuse("malformed", "the server switched protocols, which nobody asked for")
        if status < 200:  # noqa: PLR2004 - interim
            self._headers, self._reason = [], b""
            return
        self._head_done = True
        self._status = status
        self._keep_alive = self._parser.should_keep_alive()
        if not self._has_body:
            # llhttp does not know that this was a HEAD and would read a body: it is stopped here, and its connection
            # not used again. HEAD is a client's probe, too rare for more.
            self._complete, self._keep_alive = True, False
            self._refuse("malformed", "HEAD")
        self._until_close = not self._keep_alive and not _says_its_length(self._headers)

    def on_message_complete(self) -> None:
        """Note the end of the body; that of an interim answer means nothing."""
        self._complete = self._head_done

    def _refuse(self, why: Why, what: str) -> NoReturn:
        self._fault = (why, what)
        raise _StopParserError

    # --- the reply's way

    def _begin_reply(self, *, has_body: bool) -> None:
        self._has_body = has_body
        self._headers = []
        self._reason = b""
        self._head_done = self._complete = self._until_close = self._keep_alive = self._paused = False
        self._status = 0
        self._quiet_bytes = 0
        self._fault = None

    def _hand_over_head(self, reply: Reply, read_bytes: int) -> tuple[Why, str] | None:
        if self._quiet_bytes + read_bytes > self._head_limit_bytes:
            head_bytes = sum(len(name) + len(value) for name, value in self._headers)
            if head_bytes > self._head_limit_bytes:
                self._head_done = self._complete = False
                return self._head_too_large()
        reply.status = self._status
        reply.reason = self._reason
        reply.headers = self._headers
        if self.served == 0:
            self._heed_keep_alive_header()
        return None

    def _count_quiet(self, read_bytes: int) -> tuple[Why, str] | None:
        """Bound what brings no body: a head without end, interim answers, trailers, chunk extensions."""
        self._quiet_bytes += read_bytes
        if self._quiet_bytes <= self._head_limit_bytes or self._complete:
            return None
        if not self._head_done:
            return self._head_too_large()
        return "malformed", f"more than {self._head_limit_bytes} bytes of framing brought no byte of the body"

    def _head_too_large(self) -> tuple[Why, str]:
        return "too_large", f"the answer's head is larger than the limit of {self._head_limit_bytes} bytes"

    def _go_on(self, reply: Reply) -> None:
        if not self._head_done:
            return  # The time for the head runs on: it is not to be had byte by byte.
        if reply.unread_bytes > max(self._unread_limit_bytes, reply.wanted_bytes) and not self._paused:
            assert self._transport is not None
            self._paused = True
            self._transport.pause_reading()
        self._expect_within(self._timeouts.idle_s)
        reply.wake()

    def _end(self, reply: Reply, *, reusable: bool) -> None:
        self._reply = None
        reply.end()
        transport = self._transport
        # A server that answered before it had read the request is about to close.
        reusable = reusable and not self._sends_more
        if reusable and transport is not None and not transport.is_closing() and not transport.get_write_buffer_size():
            self.served += 1
            self.resume()
            self._expect_within(self._idle_s)
            self._owner.idle(self)
        else:
            self.abort()

    def _fail(self, why: Why, what: str) -> None:
        reply = self._reply
        assert reply is not None
        reply.fail(Broken if self._head_done else NoAnswer, why, what)
        self.abort()

    def _heed_keep_alive_header(self) -> None:
        """Close before the server does where it says when (`keep-alive: timeout=5`): that race costs a retry."""
        for name, value in self._headers:
            if name.lower() == b"keep-alive":
                for parameter in value.split(b","):
                    key, _, seconds = parameter.strip().partition(b"=")
                    if key.lower() == b"timeout" and seconds.isdigit() and len(seconds) < 7:  # noqa: PLR2004 - 11 days
                        self._idle_s = min(self._idle_s, max(int(seconds) - _MARGIN_S, 0.0))

    # --- the one timer: the deadline moves with each read, the timer only when it fires or has to fire earlier

    def _expect_within(self, wait_s: float) -> None:
        self._deadline_s = deadline_s = self._loop.time() + wait_s
        if deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(deadline_s)

    def _set_timer(self, at_s: float) -> None:
        self._timer_s = at_s
        self._timer = self._loop.call_at(at_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer, self._timer_s = None, math.inf
        if self._paused:
            # The reader is slow, not the server.
            self._expect_within(self._timeouts.idle_s)
        elif self._loop.time() < self._deadline_s:
            self._set_timer(self._deadline_s)
        elif self._reply is None:
            self.abort()
        elif self._head_done:
            self._fail("stalled", f"no byte of the body came for {self._timeouts.idle_s:g} s")
        else:
            self._fail("timeout", f"no answer came within {self._timeouts.first_byte_s:g} s")


class _StopParserError(Exception):
    """Thrown through llhttp to stop it; the reason is in the connection's `_fault`."""


def _says_its_length(headers: Headers) -> bool:
    for name, value in headers:
        if (lower := name.lower()) == b"content-length":
            return True
        if lower == b"transfer-encoding" and value.strip().lower().endswith(b"chunked"):
            return True
    return False
