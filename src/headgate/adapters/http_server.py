"""One client's connection: HTTP/1.1 by httptools (llhttp), each request a call of an ASGI app in a task of its own.

One rule: what is kept of a client that sends more than is taken, or takes less than is sent, is bounded: it is not read
on, or the app waits. No timers run here: who is silent for long is for the server's sweep to say.
"""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from logging import Logger
from typing import Any, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

__all__ = ["WHEN_GONE", "App", "Connection", "Connections", "Message", "Receive", "Send"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI 3 application; only scopes of type `http` come."""

WHEN_GONE = "headgate.when_gone"
"""The extension of a scope that calls a function once the client has gone before it had its answer: no task need wait
in `receive` for that. Given None, it calls nobody any more."""

HEAD_LIMIT_BYTES = 64 * 1024
MOST_UNREAD_BYTES = 256 * 1024
"""Of a body, before the app takes it; more is not read. So much comes with one read of the socket."""
MOST_PIPELINED = 16
"""Requests that a client may send before it has its answer; those beyond wait in its socket."""

_QUIET_SWEEPS = 2  # without a whole head; so a client has one sweep's time for it at the least
_IDLE_SWEEPS = 4  # between two calls

_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {status: b"HTTP/1.1 %d %b\r\n" % (status, _PHRASES.get(status, b"")) for status in range(100, 600)}
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
# What would let a value begin a header of its own (RFC 9110, sections 5.1 and 5.5).
_UNFIT_NAMES = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_UNFIT_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_END = b"0\r\n\r\n"


class Connections:
    """The connections of one server, and the calls on them."""

    def __init__(self, app: App, log: Logger) -> None:
        """Serve `app`; what is the app's fault goes to `log`."""
        self.app = app
        self.log = log
        self.open: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.lost = asyncio.Event()


class Connection(asyncio.Protocol):
    """A connection of one client, whose requests are answered in order."""

    __slots__ = (
        "_all",
        "_call",
        "_client",
        "_expects",
        "_has_asked",
        "_head_bytes",
        "_headers",
        "_in_head",
        "_loop",
        "_parser",
        "_pipeline",
        "_server",
        "_sweeps",
        "_url",
        "drained",
        "is_ending",
        "is_reading",
        "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        self._all = connections
        self._loop = asyncio.get_running_loop()
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        # After `connection: close` a client may have sent more before it read that; it is not answered.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._call: _Call | None = None
        self._pipeline: deque[_Call] = deque()
        self.drained: asyncio.Future[None] | None = None
        self._in_head = False
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._sweeps = 0
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._has_asked = False
        self._expects = False
        self.is_ending = False
        self.is_reading = True

    # --- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports have all methods of an asyncio.Transport without being one.
        self.transport = cast(asyncio.Transport, transport)
        self._all.open.add(self)
        self._client, self._server = _address(transport, "peername"), _address(transport, "sockname")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost
        """Tell the calls on it that their client has gone."""
        self._all.open.discard(self)
        self._parser = None  # it holds this object's methods
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        for call in (self._call, *self._pipeline):
            if call is not None:
                call.lost()
        self._pipeline.clear()
        self._all.lost.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        parser = self._parser
        if parser is None:
            return
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            pass  # no other protocol is spoken: the request is answered as any other, by RFC 9110 section 7.8
        except HttpParserError:
            self._refuse("Invalid HTTP request received.")
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(f"The head of the request is larger than {HEAD_LIMIT_BYTES} bytes.")

    def pause_writing(self) -> None:
        """Let the app wait: the client takes less than is sent."""
        self.drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let the app go on."""
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        self.drained = None

    # --- what the parser says

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head, self._head_bytes = True, 0
        self._headers, self._url = [], b""
        self._expects = False

    def on_url(self, url: bytes) -> None:
        """Collect the target, which may come in parts."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are not wanted."""
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self._expects = True
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin a call, or queue it behind the one that is not answered yet."""
        parser = self._parser
        assert parser is not None
        self._in_head, self._sweeps, self._has_asked = False, 0, True
        version, url = parser.get_http_version(), self._url
        if url.startswith(b"/") and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
        path = raw_path.decode("ascii")
        method = parser.get_method().decode("ascii")
        scope: Message = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
        }
        keep_alive = version != "1.0" and parser.should_keep_alive() and not self.is_ending
        call = _Call(self, keep_alive=keep_alive, is_head=method == "HEAD", takes_chunks=version != "1.0")
        call.expects_continue = self._expects
        scope["extensions"] = {WHEN_GONE: call.when_gone}
        call.scope = scope
        if self._call is None:
            self._begin(call)
        else:
            self._pipeline.append(call)
            if len(self._pipeline) >= MOST_PIPELINED:
                self.read_on(wanted=False)

    def on_body(self, body: bytes) -> None:
        """Hand on a piece of the body to the call that it belongs to, which is the last."""
        call = self._pipeline[-1] if self._pipeline else self._call
        if call is not None:
            call.take_in(body)

    def on_message_complete(self) -> None:
        """Tell the call that its body is whole."""
        call = self._pipeline[-1] if self._pipeline else self._call
        if call is not None:
            call.whole()

    # --- for the calls

    def read_on(self, *, wanted: bool) -> None:
        """Read the socket, or leave there what comes."""
        if wanted != self.is_reading and not self.transport.is_closing():
            self.is_reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def answered(self, call: "_Call") -> None:
        """Go on with the next request, or close."""
        if call is not self._call:
            return
        self._call = None
        if not call.keep_alive or self.is_ending:
            self.transport.close()
        elif self._pipeline:
            self._begin(self._pipeline.popleft())
        self.read_on(wanted=True)

    def _begin(self, call: "_Call") -> None:
        self._call = call
        tasks = self._all.tasks
        task = self._loop.create_task(call.run(self._all.app, self._all.log))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _refuse(self, why: str) -> None:
        if not self.transport.is_closing():
            body = why.encode()
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(_STATUS_LINES[400] + head % len(body) + body)
            self.transport.close()

    # --- for the server

    def shutdown(self) -> None:
        """Close, once the call on it has its answer."""
        self.is_ending = True
        if self._call is None:
            self.transport.close()

    def swept(self) -> None:
        """Close if there has been neither a call nor a whole head for so many sweeps in a row."""
        if self._call is None:
            self._sweeps += 1
            if self._sweeps >= (_QUIET_SWEEPS if self._in_head or not self._has_asked else _IDLE_SWEEPS):
                self.transport.abort()


class _Call:
    """One request and its answer, as ASGI has them."""

    __slots__ = (
        "_connection", "_gone", "_is_chunked", "_is_ended", "_is_head", "_is_lost", "_is_started", "_is_taken",
        "_is_whole", "_left_bytes", "_pieces", "_takes_chunks", "_unread_bytes", "_waiter", "expects_continue",
        "keep_alive", "scope",
    )  # fmt: skip

    scope: Message

    def __init__(self, connection: Connection, *, keep_alive: bool, is_head: bool, takes_chunks: bool) -> None:
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
        names, values, lines = [], [], [_STATUS_LINES[status]]
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


def _address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(which)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
