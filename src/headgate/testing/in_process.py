"""An account's way to a provider that runs in the same process: the simulated one, in virtual time and without sockets.

One rule: what a caller sees is what it would see over HTTP: a head, then pieces as they are written, and whoever leaves
early is gone for the provider. It stands for an HTTP client where one is asked for, and knows none.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from headgate.core.errors import ProviderError
from headgate.core.retries import Failure
from headgate.ports import Upload

__all__ = ["InProcess"]

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_END = b""


@dataclass(slots=True)
class _Arriving:
    """An answer on its way."""

    status: int = 0
    headers: Sequence[tuple[bytes, bytes]] = ()
    pieces: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    whole: bool = False

    def __aiter__(self) -> "_Arriving":
        return self

    def arrived(self) -> bytes:
        """Take what has arrived, without waiting for more."""
        found = []
        while not self.pieces.empty() and (piece := self.pieces.get_nowait()) is not _END:
            found.append(piece)
        return b"".join(found)

    async def __anext__(self) -> bytes:
        piece = await self.pieces.get()
        if piece is _END:
            self.pieces.put_nowait(_END)  # whoever asks again is told again, as over HTTP
            if not self.whole:
                raise _broken(sent=True)
            raise StopAsyncIteration
        return piece


class InProcess:
    """Calls an ASGI application as `AccountProvider` calls its HTTP client."""

    def __init__(self, application: Application) -> None:
        """Call this application."""
        self._application = application

    @asynccontextmanager
    async def send(
        self,
        method: str,
        origin: object,
        target: bytes,
        *,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes = b"",
        timeouts: object = None,
        passage: object = None,
        upload: Upload | None = None,
    ) -> AsyncIterator[_Arriving]:
        """Send a call; entered with the head of its answer."""
        del origin, timeouts, passage
        if upload is not None:
            body = b"".join([piece async for piece in upload])
        arriving, left = _Arriving(), asyncio.Event()
        inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if inbox:
                return inbox.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                arriving.status, arriving.headers = message["status"], list(message["headers"])
                arriving.begun.set()
                return
            if message["body"]:
                arriving.pieces.put_nowait(message["body"])
            arriving.whole = not message.get("more_body", False)
            await asyncio.sleep(0)

        path, _, query = target.partition(b"?")
        scope: Message = {
            "type": "http",
            "method": method,
            "path": path.decode(),
            "query_string": query,
            "headers": [(name.lower(), value) for name, value in headers],
        }

        async def serve() -> None:
            try:
                await self._application(scope, receive, tell)
            finally:
                arriving.begun.set()
                arriving.pieces.put_nowait(_END)

        serving = asyncio.create_task(serve(), name="a call in process")
        try:
            await arriving.begun.wait()
            if not arriving.status:
                raise _broken(sent=True)
            yield arriving
        finally:
            left.set()
            await asyncio.wait([serving])


def _broken(*, sent: bool) -> ProviderError:
    return ProviderError("the provider broke off", Failure("connection", "no_answer_reset", sent=sent))
