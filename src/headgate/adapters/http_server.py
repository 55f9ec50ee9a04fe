"""One client's connection: HTTP/1.1 by httptools (llhttp), each request a call of an ASGI app in a task of its own.

One rule: what is kept of a client that sends more than is taken, or takes less than is sent, is bounded: it is not read
on, or the app waits; and each answer stands in its request's place. No timers run here: the server's sweep tells who is
silent for long.
"""

import asyncio
from collections import deque
from logging import Logger
from typing import NoReturn, cast
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from headgate.adapters.http_call import STATUS_LINES, WHEN_GONE, App, Call, Message

__all__ = ["Connection", "Connections"]

HEAD_LIMIT_BYTES = 64 * 1024
_TOO_LARGE = f"The head of the request is larger than {HEAD_LIMIT_BYTES} bytes."
_VERSIONS = frozenset({"1.0", "1.1"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
MOST_PIPELINED = 16
"""Requests that a client may send before it has its answer; those beyond wait in its socket."""

_QUIET_SWEEPS = 2  # without a whole head; so a client has one sweep's time for it at the least
_IDLE_SWEEPS = 4  # between two calls
STUCK_SWEEPS = 20  # 10 minutes
"""In which a client took nothing of an answer that it is sent: it holds a slot and its part of limits for as long."""
LEAST_BODY_BYTES = 1024
"""Of a body, from one sweep to the next, unless it is we who do not read: a modem sends a hundred times as much."""


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
        "_body_bytes",
        "_buffered_bytes",
        "_call",
        "_client",
        "_expects",
        "_fault",
        "_has_asked",
        "_head_bytes",
        "_headers",
        "_hosts",
        "_in_head",
        "_is_known",
        "_is_upgrade",
        "_loop",
        "_parser",
        "_pipeline",
        "_refusal",
        "_server",
        "_sweeps",
        "_unread_bytes",
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
        self._parser: HttpRequestParser | None = self._make_parser()
        self._call: Call | None = None
        self._pipeline: deque[Call] = deque()
        self.drained: asyncio.Future[None] | None = None
        self._in_head = False
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""
        self._sweeps = self._hosts = 0
        self._body_bytes = self._unread_bytes = self._buffered_bytes = 0
        self._refusal: bytes | None = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._has_asked = False
        self._expects = False
        self._fault: str | None = None
        self._is_upgrade = self._is_known = False
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
        self._unread_bytes += len(data)  # until it is found to be something
        while (parser := self._parser) is not None:
            try:
                parser.feed_data(data)
                break
            except HttpParserUpgrade as upgrade:
                data = self._as_before(data[upgrade.args[0] :])
            except HttpParserError:
                self._refuse(self._fault or "Invalid HTTP request received.")
                return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(_TOO_LARGE)
        elif self._unread_bytes > HEAD_LIMIT_BYTES:
            # Trailers and what else stands between the pieces of a body: the parser keeps as much of it as there is.
            self._refuse(_TOO_LARGE)

    def _make_parser(self) -> HttpRequestParser:
        parser = HttpRequestParser(self)
        # After `connection: close` a client may have sent more before it read that; it is not answered.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _as_before(self, data: bytes) -> bytes:
        """Give what to read after a head that asks for another protocol: it counts as any other (RFC 9110, 7.8).

        llhttp takes what follows for that protocol: another parser has to read it, which is told what frames the body.
        """
        framing = [b"%b: %b\r\n" % each for each in self._headers if each[0] in _FRAMING]
        self._parser = self._make_parser()
        self._is_known, self._is_upgrade = True, False
        return b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(framing) + data

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
        if self._is_known:
            return
        self._in_head, self._head_bytes = True, 0
        self._headers, self._url = [], b""
        self._expects, self._hosts = False, 0

    def on_url(self, url: bytes) -> None:
        """Collect the target, which may come in parts."""
        if not self._is_known:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are not wanted."""
        if self._in_head:
            name = name.lower()
            if name == b"host":
                self._hosts += 1
            elif name == b"expect" and value.lower() == b"100-continue":
                self._expects = True
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin a call, or queue it behind the one that is not answered yet."""
        parser = self._parser
        assert parser is not None
        if self._is_known:
            self._is_known = False
            return
        self._in_head, self._sweeps, self._has_asked = False, 0, True
        self._body_bytes = self._unread_bytes = 0
        self._is_upgrade = parser.should_upgrade()
        version, url = parser.get_http_version(), self._url
        if version not in _VERSIONS:
            self._stop("This server speaks HTTP/1.1 and HTTP/1.0.")
        if self._hosts > 1 or (self._hosts == 0 and version != "1.0"):  # RFC 9112, section 3.2
            self._stop("A request names its host once.")
        if sum(len(name) + len(value) + 4 for name, value in self._headers) + len(url) > HEAD_LIMIT_BYTES:
            self._stop(_TOO_LARGE)
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
        call = Call(self, keep_alive=keep_alive, is_head=method == "HEAD", takes_chunks=version != "1.0")
        call.expects_continue = self._expects and version != "1.0"
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
        self._body_bytes += len(body)
        self._unread_bytes = 0
        call = self._pipeline[-1] if self._pipeline else self._call
        if call is not None:
            call.take_in(body)

    def on_message_complete(self) -> None:
        """Tell the call that its body is whole."""
        if self._is_upgrade:
            return  # only its head is
        self._unread_bytes = 0
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

    def answered(self, call: "Call") -> None:
        """Go on with the next request, or close."""
        if call is not self._call:
            return
        self._call = None
        if not call.keep_alive or self.is_ending:
            self.transport.close()
        elif self._pipeline:
            self._begin(self._pipeline.popleft())
        elif self._refusal is not None:
            self._write_refusal(self._refusal)
        self.read_on(wanted=True)

    def _begin(self, call: "Call") -> None:
        self._call = call
        tasks = self._all.tasks
        task = self._loop.create_task(call.run(self._all.app, self._all.log))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _stop(self, why: str) -> NoReturn:
        """Refuse a request from within the parser."""
        self._fault = why
        raise ValueError(why)

    def _refuse(self, why: str, status: int = 400) -> None:
        """Refuse what comes, and all behind it; requests that came whole before it have their answers first."""
        if self.transport.is_closing() or self._refusal is not None:
            return
        self._parser = None
        body = why.encode()
        head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        refusal = STATUS_LINES[status] + head % len(body) + body
        if self._pipeline and not self._pipeline[-1].is_whole:
            self._pipeline.pop()
        broken = self._call if self._call is not None and not self._call.is_whole else None
        if broken is not None and broken.is_started:
            self.transport.close()  # within an answer, nothing can be said
        elif broken is not None or self._call is None:
            self._write_refusal(refusal)
        else:
            self._refusal = refusal

    def _write_refusal(self, refusal: bytes) -> None:
        self.transport.write(refusal)
        self.transport.close()

    # --- for the server

    def shutdown(self) -> None:
        """Close, once the call on it has its answer."""
        self.is_ending = True
        if self._call is None:
            self.transport.close()

    def swept(self) -> None:
        """Close where for some sweeps in a row no call came, no whole head, little of a body, or no answer was read."""
        last = self._pipeline[-1] if self._pipeline else self._call
        if last is None:
            self._sweeps += 1
            if self._sweeps >= (_QUIET_SWEEPS if self._in_head or not self._has_asked else _IDLE_SWEEPS):
                self.transport.abort()
        elif self.drained is not None:
            buffered_bytes = self.transport.get_write_buffer_size()
            self._sweeps = self._sweeps + 1 if buffered_bytes >= self._buffered_bytes else 0
            self._buffered_bytes = buffered_bytes
            if self._sweeps >= STUCK_SWEEPS:
                self.transport.abort()  # its call ends, and what that holds is settled
        elif not last.is_whole and self.is_reading and not last.expects_continue:
            self._sweeps = self._sweeps + 1 if self._body_bytes < LEAST_BODY_BYTES else 0
            if self._sweeps >= _QUIET_SWEEPS:
                self._refuse("The body of the request came too slowly.", 408)
        else:
            self._sweeps = 0
        self._body_bytes = 0


def _address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    found = transport.get_extra_info(which)
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None
