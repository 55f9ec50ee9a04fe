"""One HTTP exchange over ASGI: the request's body, the answer's bytes, and the client who may go away.

One rule: whoever waits on behalf of a client waits here, so that a client who leaves is noticed at once.
It knows nothing of vendors, limits or tokens.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, runtime_checkable

from headgate.testing.provider.dialect import Headers
from headgate.testing.provider.doors import door_of

__all__ = ["BodyTooLargeError", "ClientGoneError", "ConnectionDroppedError", "Exchange", "Receive", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGoneError(Exception):
    """The client closed its connection before the answer was complete."""


class BodyTooLargeError(Exception):
    """The request's body is larger than the limit."""


class ConnectionDroppedError(ConnectionError):
    """A connection was dropped on purpose, under a server whose transport cannot be reached."""


@runtime_checkable
class _Abortable(Protocol):
    """A transport that can be torn down; uvloop's are no subclasses of asyncio's."""

    def abort(self) -> None: ...


class Exchange:
    """One request and its answer; used by a single task."""

    __slots__ = ("_gone", "_listener", "_receive", "_send", "_waiter", "counting", "headers", "method", "path")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path, self.counting = door_of(scope["path"], scope.get("query_string", b""))
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._gone = False
        self._listener: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> str | None:
        """Give a request header as text, or None."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def body(self, limit_bytes: int) -> bytes:
        """Read the request's body, unpacked where it is gzip.

        Raises:
            BodyTooLargeError: it is longer than `limit_bytes`.
            ClientGoneError: the client left before it was complete.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise BodyTooLargeError
        chunks: list[bytes] = []
        size_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise BodyTooLargeError
            chunks.append(chunk)
            if not message.get("more_body", False):
                break
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return _unpacked(body, limit_bytes) if self.headers.get(b"content-encoding") == b"gzip" else body

    def listen(self) -> None:
        """Begin to notice when the client leaves; call it once the body is read."""
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._wait_for_departure())

    async def _wait_for_departure(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
        self._gone = True
        self._release()

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Let time pass; nothing at all happens for 0 seconds.

        Raises:
            ClientGoneError: the client left meanwhile, or before.
        """
        if seconds > 0 and not self._gone:
            self.listen()
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            alarm = loop.call_later(seconds, self._release)
            try:
                await self._waiter
            finally:
                alarm.cancel()
                self._waiter = None
        if self._gone:
            raise ClientGoneError

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer in one go."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        await self._put({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a part of the body, and wait while the client does not read.

        Raises:
            ClientGoneError: the client left.
        """
        if self._gone:
            raise ClientGoneError
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last part of the body."""
        self.close()
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def _put(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError as error:
            # ASGI 2.4 lets a server say this way that nobody is there any more; uvicorn stays silent instead.
            raise ClientGoneError from error

    def close(self) -> None:
        """Stop to listen for the client."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    async def drop(self) -> None:
        """Close the connection abruptly, without an end to the answer.

        ASGI has no word for it. Raising, or returning without an answer, makes a server log an error, and before the
        first byte it even sends a 500. The `send` of Headgate's server, and of uvicorn, is a bound method of an object
        that has the TCP transport, so that is aborted, and the departure awaited: of a client that is gone they say
        nothing.

        Raises:
            ConnectionDroppedError: the server's transport cannot be reached, as in a test without a server.
        """
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if not isinstance(transport, _Abortable):
            self.close()
            raise ConnectionDroppedError("the simulated provider dropped this connection on purpose")
        # uvloop writes at the end of a turn of the loop: what was sent so far must leave before the connection dies.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        transport.abort()
        self.listen()
        assert self._listener is not None
        await self._listener
        self.close()


def _unpacked(body: bytes, limit_bytes: int) -> bytes:
    """Undo gzip; what is none stays as it is, and is no JSON."""
    try:
        unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, limit_bytes + 1)
    except zlib.error:
        return body
    if len(unpacked) > limit_bytes:
        raise BodyTooLargeError
    return unpacked
