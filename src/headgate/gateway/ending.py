"""The end of an answer, which goes to the client when the call is settled and recorded.

One rule: whoever has read an answer to its end finds it in the ledger; but nobody waits longer than `MOST_HELD_S` for
a ledger, or for a provider that has said its last word and does not hang up. Which bytes are the end is not known here.
"""

import asyncio
from types import TracebackType
from typing import Self

from headgate.gateway.exchange import HttpExchange
from headgate.ports import Headers

MOST_HELD_S = 1.0
"""Settling takes milliseconds; a store that is locked or broken may take half a minute, which is no client's affair."""


class Ending:
    """The body of one answer: what may be its end is held back; leaving the block ends the body."""

    def __init__(self, exchange: HttpExchange) -> None:
        """Hold nothing yet."""
        self._exchange = exchange
        self._head: tuple[int, Headers] | None = None
        self._held = b""
        self._is_whole = False
        self._timer: asyncio.TimerHandle | None = None
        self._late: asyncio.Task[None] | None = None

    def begin(self, status: int, headers: Headers) -> None:
        """Let the head of the answer go with the first piece that goes, which spares a small answer a write."""
        self._head = status, headers

    async def write(self, chunk: bytes) -> None:
        """Send a piece, behind what was held: that was not the end."""
        if self._timer is not None:
            await self._let_go()
        await self._send(chunk)

    async def hold(self, chunk: bytes) -> None:
        """Keep back a piece that may be the last."""
        if self._timer is not None:
            await self._let_go()
        self._held = chunk
        self._timer = self._in_time()

    async def whole(self) -> None:
        """Say that nothing more will come: what is still held, or nothing, is the end."""
        if self._late is not None:
            await self._let_go()
        self._is_whole = True
        if self._timer is None:
            self._timer = self._in_time()

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the body, unless the block was left by an error: then it is not whole, and must not look so."""
        if self._timer is not None:
            self._timer.cancel()
        if self._late is not None:
            await self._late
        if error is None and not self._exchange.ended:
            await self._send(self._held, more=False)

    async def _let_go(self) -> None:
        """Send what is held, or wait until it is sent."""
        assert self._timer is not None, "something was held"
        self._timer.cancel()
        self._timer = None
        if self._late is not None:
            await self._late
            self._late = None
            return
        held, self._held = self._held, b""
        await self._send(held)

    async def _send(self, chunk: bytes, *, more: bool = True) -> None:
        if self._head is not None:
            (status, headers), self._head = self._head, None
            await self._exchange.start(status, headers)
        await self._exchange.write(chunk, more=more)

    def _in_time(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(MOST_HELD_S, self._too_late)

    def _too_late(self) -> None:
        held, self._held = self._held, b""
        self._late = asyncio.create_task(self._send(held, more=not self._is_whole), name="end of an answer")
