"""One request and its answer, as an ASGI app has them, over whatever connection it came.

One rule: what is kept of a body that the app does not take is bounded, and an app that sends faster than its client
reads waits. It parses nothing; the connection says what came.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from logging import Logger
from typing import Any, Protocol

__all__ = ["MOST_UNREAD_BYTES", "STATUS_LINES", "WHEN_GONE", "App", "Call", "Line", "Message", "Receive", "Send"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application; only scopes of type `http` come."""

WHEN_GONE = "headgate.when_gone"
"""The extension of a scope that calls a function once the client has gone before it had its answer: no task need wait
in `receive` for that. Given None, it calls nobody any more."""

MOST_UNREAD_BYTES = 256 * 1024
"""Of a body, before the app takes it; more is not read. So much comes with one read of the socket."""

_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 600)}
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
# What would let a value begin a header of its own (RFC 9110, sections 5.1 and 5.5).
_UNFIT_NAMES = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_UNFIT_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_END = b"0\r\n\r\n"


class Line(Protocol):
    """As much of a connection as a call needs."""

    transport: asyncio.Transport
    drained: asyncio.Future[None] | None
    """What to wait for before more is written, if anything."""

    def read_on(self, *, wanted: bool) -> None:
        """Read the socket, or leave there what comes."""

    def answered(self, call: "Call") -> None:
        """The answer is complete."""


class Call:
    """One request and its answer, as ASGI has them."""

    __slots__ = (
        "_connection", "_gone", "_is_chunked", "_is_ended", "_is_head", "_is_lost", "_is_started", "_is_taken",
        "_is_whole", "_left_bytes", "_pieces", "_takes_chunks", "_unread_bytes", "_waiter", "expects_continue",
        "keep_alive", "scope",
    )  # fmt: skip

    scope: Message

    def __init__(self, connection: Line, *, keep_alive: bool, is_head: bool, takes_chunks: bool) -> None:
        self._connection = connection
        self.keep_alive = keep_alive
        self.expects_continue = False
        self._is_head = is_head
        self._takes_chunks = takes_chunks
        self._pieces: list[bytes] = []
        self._unread_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._gone: Callable[[], None] | None = None
        self._left_bytes: int | None = 0  # of the body that was announced; None where no length was
        self._is_whole = self._is_taken = self._is_lost = False
        self._is_started = self._is_ended = self._is_chunked = False

    # --- for the connection

    def take_in(self, piece: bytes) -> None:
        """Add a piece of the body, unless nobody wants it any more."""
        if not self._is_ended:
            self._pieces.append(piece)
            self._unread_bytes += len(piece)
            if self._unread_bytes >= MOST_UNREAD_BYTES:
                self._connection.read_on(wanted=False)
                self._wake()

    @property
    def is_whole(self) -> bool:
        """Whether all of the body is there."""
        return self._is_whole

    @property
    def is_started(self) -> bool:
        """Whether something of the answer was sent."""
        return self._is_started

    def whole(self) -> None:
        """All of the body is there."""
        self._is_whole = True
        self._wake()

    def lost(self) -> None:
        """The client has gone."""
        self._is_lost = True
        self._wake()
        if self._gone is not None and not self._is_ended:
            self._gone()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self, app: App, log: Logger) -> None:
        """Call the app; what it leaves undone is said to the client, and to the log."""
        error: Exception | None = None
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._connection.transport.close()
            raise
        except Exception as raised:  # noqa: BLE001 - the boundary of a task: it ends with its call
            error = raised
        if error is None and (self._is_ended or self._is_lost):
            return
        log.error("the app failed" if error is not None else "the app's answer is not complete", exc_info=error)
        if self._is_started or self._is_lost:
            self._connection.transport.close()
        else:
            await self._fail()

    async def _fail(self) -> None:
        said = HTTPStatus.INTERNAL_SERVER_ERROR.phrase.encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(said)),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": said})

    # --- for the app

    @property
    def transport(self) -> asyncio.Transport:
        """The client's connection, for what ASGI has no word for: to cut it (uvicorn's has it by this name too)."""
        return self._connection.transport

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Call a function (None: none any more) when the client has gone before its answer is complete."""
        self._gone = call
        if call is not None and self._is_lost:
            call()

    async def receive(self) -> Message:
        """Give the body, whole or as much as may be kept of it; after that, wait until the client has gone."""
        if self.expects_continue and not self._is_started and not self._is_lost:
            self.expects_continue = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self._is_lost and not self._is_ended:
            if not self._is_taken and (self._is_whole or self._unread_bytes >= MOST_UNREAD_BYTES):
                return self._take_out()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return {"type": "http.disconnect"}

    def _take_out(self) -> Message:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._unread_bytes = [], 0
        self._is_taken = self._is_whole
        if not self._is_whole:
            self._connection.read_on(wanted=True)
        return {"type": "http.request", "body": body, "more_body": not self._is_whole}

    async def send(self, message: Message) -> None:
        """Send the head or a piece of the body; what goes to a client that has gone is dropped."""
        drained = self._connection.drained
        if drained is not None and not self._is_lost:
            await drained
        if self._is_lost:
            return
        kind = message["type"]
        if kind == "http.response.body" and self._is_started and not self._is_ended:
            self._write(message.get("body", b""), more=message.get("more_body", False))
        elif kind == "http.response.start" and not self._is_started:
            self._start(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"{kind} was sent out of its order")

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        names, values, lines = [], [], [STATUS_LINES[status]]
        says_length = says_close = False
        for given, value in headers:
            name = given.lower()
            names.append(name)
            values.append(value)
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                says_length, self._left_bytes = True, int(value)
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self._is_chunked = True
            elif name == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                says_close, self.keep_alive = True, False
        if _UNFIT_NAMES.search(b"".join(names)) or _UNFIT_VALUES.search(b"".join(values)):
            raise RuntimeError("a header of the answer has characters that no header can have")
        # A client that was not asked for its body need not say whether it comes all the same (RFC 9110, 10.1.1).
        self.keep_alive = self.keep_alive and not self.expects_continue
        has_body = not self._is_head and status not in _WITHOUT_BODY
        if has_body and not says_length:
            if self._takes_chunks and not self._is_chunked:
                self._is_chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            self._left_bytes = None
        if not has_body:
            self._left_bytes = 0
        if not self.keep_alive and not says_close:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._is_started = True
        self._connection.transport.write(b"".join(lines))

    def _write(self, body: bytes, *, more: bool) -> None:
        transport = self._connection.transport
        if self._is_head:
            body = b""
        elif self._is_chunked:
            if body:
                transport.write(b"%x\r\n%b\r\n%b" % (len(body), body, b"" if more else _END))
            elif not more:
                transport.write(_END)
        elif body:
            if self._left_bytes is not None:
                self._left_bytes -= len(body)
                if self._left_bytes < 0:
                    raise RuntimeError("the body of the answer is longer than its content-length")
            transport.write(body)
        if not more:
            if self._left_bytes and not self._is_chunked:
                raise RuntimeError("the body of the answer is shorter than its content-length")
            self._is_ended = True
            self._pieces.clear()
            self._gone = None
            self._connection.answered(self)
