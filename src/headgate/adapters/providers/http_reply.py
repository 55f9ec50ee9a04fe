"""One answer as its caller sees it: the head, and the body as it arrives.

One rule: whatever arrived is given out before any error, and an error is given in place of every end that was not one.
It reads no socket: a connection fills it, and is asked to read on when the caller waits for more.
"""

import asyncio
from typing import Protocol

from headgate.adapters.providers.http_errors import Broken, HttpError, NoAnswer, Why

__all__ = ["Reply", "Source"]


class Source(Protocol):
    """The connection behind a reply, while the reply has not ended."""

    label: str

    def resume(self) -> None:
        """Read on, if reading was paused."""

    def abort(self) -> None:
        """Close at once."""


class Reply:
    """One answer, valid inside the `async with` that gave it.

    `headers` are raw: in order, names as they were sent. The body is undecoded (content-encoding is the caller's) and
    without chunked framing; what has arrived since the last look comes as one piece.
    """

    __slots__ = (
        "_ended", "_error", "_loop", "_source", "_started_s", "_unread", "_waiter", "headers", "reason", "stale",
        "status", "unread_bytes", "wanted_bytes",
    )  # fmt: skip

    def __init__(self, source: Source, started_s: float) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.stale = False
        """Whether the connection had been used before and closed without one byte for this call."""
        self.unread_bytes = 0
        self.wanted_bytes = 0
        """The caller waits for as many."""
        self._source = source
        self._started_s = started_s
        self._loop = asyncio.get_running_loop()
        self._unread: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: HttpError | None = None

    # --- for the caller

    def __aiter__(self) -> "Reply":
        """Iterate over the body; a second loop goes on where the first one stopped."""
        return self

    async def __anext__(self) -> bytes:
        """Give what has arrived, at least one byte.

        Raises:
            Broken: After the last byte of a body that did not end well.
        """
        while not self._unread:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wait_for(1)
        return self._take_out()

    def arrived(self) -> bytes:
        """Take what has arrived, perhaps nothing, without waiting for more."""
        return self._take_out() if self._unread else b""

    async def read(self, max_bytes: int) -> bytes:
        """Give all of the body that was not taken yet.

        Raises:
            Broken: It did not end well, or is larger than `max_bytes` (`why` is then "too_large").
        """
        while not self._ended and self.unread_bytes <= max_bytes:
            await self._wait_for(max_bytes + 1)
        if self._error is not None:
            raise self._error
        if self.unread_bytes > max_bytes:
            self.fail(Broken, "too_large", f"the body is larger than the limit of {max_bytes} bytes")
            self.leave()
            assert self._error is not None
            raise self._error
        return self._take_out()

    # --- for the client

    async def wait_for_head(self) -> None:
        """Return when `status` is there; raises `NoAnswer` when it cannot be had."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait_for(0)

    def leave(self) -> None:
        """Take no more: closes the connection unless the body has ended."""
        if not self._ended:
            self.fail(Broken, "closed", "the rest of the body was not wanted")
            self._source.abort()

    # --- for the connection

    def take_in(self, pieces: list[bytes]) -> None:
        """Add what one read brought, as one piece; wakes nobody."""
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._unread.append(piece)
        self.unread_bytes += len(piece)

    def wake(self) -> None:
        """Let the caller go on, if it has what it waits for."""
        waiter = self._waiter
        if waiter is not None and (self._ended or self.unread_bytes >= self.wanted_bytes) and not waiter.done():
            waiter.set_result(None)

    def end(self) -> None:
        """The body has ended where it should."""
        self._ended = True
        self.wake()

    def fail(self, family: type[NoAnswer | Broken], why: Why, what: str) -> None:
        """The answer ends here, too early."""
        self._error = family(self._source.label, why, what, elapsed_s=self._loop.time() - self._started_s)
        self.end()

    async def _wait_for(self, wanted_bytes: int) -> None:
        assert self._waiter is None, "a reply has one reader"
        self.wanted_bytes = wanted_bytes
        self._source.resume()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take_out(self) -> bytes:
        unread = self._unread
        data = unread[0] if len(unread) == 1 else b"".join(unread)
        unread.clear()
        self.unread_bytes = 0
        return data
