"""Carrying: the blocks in which a call is admitted, and carried to its provider and back.

One rule: whoever has entered leaves once, however the block ends. What is done on entering and leaving is `calls`'.
They are classes because a generator's context manager costs three times as much, and every call goes through here.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from headgate.core.errors import ProviderError
from headgate.ports import Answer, Request
from headgate.runtime.grants import Call, Exchange, Grant

if TYPE_CHECKING:
    from headgate.runtime.calls import Calls

OnItsWay = tuple[AbstractAsyncContextManager[Answer], Answer]
"""An answer of which the head is there, and what ends it."""


class Admitting(AbstractAsyncContextManager[Grant]):
    """The block in which a grant is held."""

    __slots__ = ("_call", "_calls", "_grant")

    _grant: Grant

    def __init__(self, calls: "Calls", call: Call) -> None:
        """Ask for nothing before the block is entered."""
        self._calls = calls
        self._call = call

    async def __aenter__(self) -> Grant:
        """Wait for the grant."""
        self._grant = await self._calls.enter(self._call)
        return self._grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle and record it."""
        await self._calls.leave(self._call, self._grant, error)


class Carrying(AbstractAsyncContextManager[Exchange]):
    """The block in which an answer is read."""

    __slots__ = ("_call", "_calls", "_exchange", "_request", "_sending")

    _exchange: Exchange
    _sending: AbstractAsyncContextManager[Answer]

    def __init__(self, calls: "Calls", call: Call, request: Request) -> None:
        """Ask for nothing before the block is entered."""
        self._calls = calls
        self._call = call
        self._request = request

    async def __aenter__(self) -> Exchange:
        """Make one attempt after the other, until one has an answer to be read."""
        calls, call = self._calls, self._call
        came = calls.come()
        queued_s: float | None = came[0]
        deadline_s = came[0] + call.max_wait_s
        attempt, waited_s = 1, 0.0
        avoid: list[str] = []
        while True:
            grant = await calls.enter(
                call, attempt=attempt, queued_s=queued_s, came=came, avoid=avoid, is_read_here=True
            )
            waited_s += grant.wait_s
            try:
                sent = await calls.send(self._request, grant, attempt, deadline_s)
            except ProviderError as error:
                await calls.leave(call, grant, error)
                raise _with_accounts(error, attempt, [*avoid, grant.account]) from error
            except BaseException as error:
                await calls.leave(call, grant, error)
                raise
            if isinstance(sent, tuple):
                self._sending, answer = sent
                self._exchange = Exchange(grant, answer, attempt, waited_s)
                return self._exchange
            await calls.leave(call, grant, None)
            if grant.account not in avoid:
                avoid.append(grant.account)
            if sent:
                await asyncio.sleep(sent)
            queued_s = None  # it waits from now
            attempt += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the answer, wherever it is, and settle and record the attempt."""
        grant = self._exchange.grant
        try:
            await self._sending.__aexit__(kind, error, trace)
        except BaseException as broken:
            await self._leave(grant, broken)
            raise
        await self._leave(grant, error)

    async def _leave(self, grant: Grant, error: BaseException | None) -> None:
        self._calls.ended(grant, self._exchange.answer)
        if isinstance(error, ProviderError):
            self._calls.broke(grant, error)
        await self._calls.leave(self._call, grant, error)


def _with_accounts(error: ProviderError, attempts: int, accounts: list[str]) -> ProviderError:
    """Give the last attempt's error with every account that was tried: its own words have the last one's address."""
    named = list(dict.fromkeys(accounts))
    times = "once" if attempts == 1 else f"{attempts} times"
    where = f"account {named[0]}" if len(named) == 1 else f"accounts {', '.join(named[:-1])} and {named[-1]}"
    return ProviderError(f"{error}; tried {times}, with {where}", error.failure)
