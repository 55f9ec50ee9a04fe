"""One HTTP exchange as the gateway's parts see it, over ASGI.

One rule: a body is bounded before it is read, and an answer is started once. What is in it is not known here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from headgate.adapters.http_call import WHEN_GONE
from headgate.adapters.providers.refusals import RefusalKind
from headgate.core.errors import CallerError, CallerGoneError
from headgate.ports import Headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
WhenGone = Callable[[Callable[[], None] | None], None]


class BodyTooLargeError(CallerError):
    """The request's body is larger than is allowed."""


class KeepsOpen(Protocol):
    """What keeps a stream open whose answer has not begun."""

    def error_event(self, kind: RefusalKind, message: str, request_id: str) -> bytes:
        """Give the event that ends the stream with an error."""
        ...


@dataclass(slots=True)
class HttpExchange:
    """A request that came in, and the way back."""

    method: str
    path: str
    query: bytes
    headers: Headers
    receive: Receive
    send: Send
    started: bool = False
    ended: bool = False
    named: dict[bytes, bytes] = field(default_factory=dict)
    when_gone: WhenGone | None = None
    """Says whom to call when the client goes; None where the server only tells who asks for it (`receive`)."""
    kept_open: "KeepsOpen | None" = None
    """Says how an error looks while nothing but signs of life has gone to the client."""

    @classmethod
    def of(cls, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> "HttpExchange":
        """Take an exchange from the server; where a header is repeated, `named` has the first."""
        headers = scope["headers"]
        named: dict[bytes, bytes] = {}
        for name, value in headers:
            named.setdefault(name, value)
        raw_path = scope.get("raw_path") or scope["path"].encode()
        path = raw_path.partition(b"?")[0].decode("ascii", "replace")
        when_gone = (scope.get("extensions") or {}).get(WHEN_GONE)
        return cls(
            scope["method"], path, scope["query_string"], headers, receive, send, named=named, when_gone=when_gone
        )

    @property
    def target(self) -> str:
        """The path with its query, as it came."""
        return f"{self.path}?{self.query.decode('ascii', 'replace')}" if self.query else self.path

    def header(self, name: bytes) -> str | None:
        """Give a header's value; the name in lower case."""
        value = self.named.get(name)
        return None if value is None else value.decode("latin-1")

    async def body(self, most_bytes: int, *, raised_by: str | None = None) -> bytes:
        """Read the request's body; `raised_by` names the setting that allows more, None where none does.

        Raises:
            BodyTooLargeError: it is larger than `most_bytes`.
            CallerGoneError: the client went away before its end.
        """
        chunks = [chunk async for chunk in self.chunks(most_bytes, raised_by=raised_by)]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def chunks(self, most_bytes: int, *, raised_by: str | None = None) -> AsyncIterator[bytes]:
        """Give the request's body as it comes; raises as `body`."""
        stated = self.header(b"content-length")
        if stated is not None and stated.isdigit() and int(stated) > most_bytes:
            raise _too_large(int(stated), most_bytes, raised_by)
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise CallerGoneError("the client went away while it sent its request")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most_bytes:
                raise _too_large(size, most_bytes, raised_by)
            yield chunk
            if not message.get("more_body", False):
                return

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of the answer."""
        self.started = True
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, *, more: bool = True) -> None:
        """Send a piece of the answer's body."""
        self.ended = not more
        await self.send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; a HEAD request gets its head alone."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.write(b"" if self.method == "HEAD" else body, more=False)


def _too_large(size: int, most_bytes: int, raised_by: str | None) -> BodyTooLargeError:
    takes, way_out = ("path", "") if raised_by is None else ("gateway", f", or raise {raised_by}")
    return BodyTooLargeError(
        f"the request's body of {size:,} bytes is larger than the {most_bytes:,} bytes that this {takes} takes; send "
        f"less{way_out}"
    )
