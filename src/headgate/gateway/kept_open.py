"""Kept open: a streaming client hears a sign of life while its call waits for its turn, or its provider for a thought.

One rule: signs end before the answer begins; what has gone by then is a head and signs alone, so that whatever becomes
of the call can still be told as an event.
"""

import asyncio
from types import TracebackType
from typing import Self

from headgate.adapters.providers.life_signs import LifeSigns
from headgate.adapters.providers.refusals import RefusalKind
from headgate.gateway.exchange import HttpExchange
from headgate.ports import Answer


class KeptOpen:
    """The block in which a stream is kept open, until `end`."""

    def __init__(self, exchange: HttpExchange, signs: LifeSigns, call_id: str, every_s: float) -> None:
        """Let the first sign, and the head before it, be due in `every_s`."""
        self._exchange = exchange
        self._signs = signs
        self._call_id = call_id
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin."""
        self._set_timer()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, if that was not done."""
        await self.end()

    async def end(self) -> None:
        """Send no more signs; return when the last one has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    @property
    def is_begun(self) -> bool:
        """Whether the head has gone."""
        return self._exchange.kept_open is self

    def begin_answer(self) -> None:
        """Say that the provider's own bytes come next: what becomes of the call now is the relay's affair."""
        self._exchange.kept_open = None

    def error_event(self, kind: RefusalKind, message: str, request_id: str) -> bytes:
        """Give the event that ends the stream with an error."""
        return self._signs.error_event(kind, message, request_id)

    def told_as_event(self, answer: Answer, body: bytes) -> bytes:
        """Give the event that ends the stream with what a provider told instead of one."""
        return self._signs.told_as_event(answer, body, self._call_id)

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._is_due)

    def _is_due(self) -> None:
        self._timer = None
        self._writing = asyncio.create_task(self._write(), name="life sign")

    async def _write(self) -> None:
        if not self.is_begun:
            self._exchange.kept_open = self
            await self._exchange.start(200, [*self._signs.head, (b"x-headgate-call-id", self._call_id.encode())])
        await self._exchange.write(self._signs.sign)
        if self._writing is asyncio.current_task():  # nobody waits for this to be the last
            self._set_timer()
