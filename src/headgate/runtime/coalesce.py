"""Coalescing: identical calls that are under way at the same time are made once, and answered all.

One rule: the call goes on as long as one of those that asked for it waits, whoever it was that asked first; and each
has a row of its own in the ledger, of which one alone has a cost. What is identical is for the caller to say.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from headgate.core.ledger import Attempt
from headgate.core.scopes import fit
from headgate.core.usage import NO_USAGE
from headgate.ports import Clock, Headers
from headgate.runtime.grants import Call, Grant
from headgate.runtime.held_answers import HeldAnswer, HeldAnswers
from headgate.runtime.settlements import Settlements

MOST_SHARING = 1_000
"""Calls that wait for one answer; whoever comes then makes a call of its own."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer, and the grant of the attempt that got it, settled."""

    status: int
    headers: Headers
    held: HeldAnswer
    grant: Grant

    @property
    def body(self) -> bytes:
        """All of it."""
        return self.held.whole()


Work = Callable[[], Coroutine[Any, Any, Answered]]


class _UnderWay:
    __slots__ = ("task", "waiting")

    def __init__(self, task: "asyncio.Task[Answered]") -> None:
        self.task = task
        self.waiting = 0


class Coalescing:
    """The calls of one process that others may share."""

    def __init__(self, settlements: Settlements, clock: Clock, owner: str) -> None:
        """Begin with none."""
        self._settlements = settlements
        self._clock = clock
        self._owner = owner
        self._under_way: dict[bytes, _UnderWay] = {}
        self.held = HeldAnswers()
        """The answers that clients of this process share, batched ones too."""
        self.shared = 0
        """Calls that were answered with another's answer."""
        self.saved_micro_usd = 0

    async def join(self, identity: bytes, work: Work) -> tuple[Answered, bool]:
        """Give the answer of the identical call that is under way, or of `work`; and whether it was this one's own.

        What goes wrong with it is raised to all. It is cancelled when the last of those that wait is.
        """
        under_way = self._under_way.get(identity)
        is_own = under_way is None or under_way.waiting >= MOST_SHARING
        if under_way is None or is_own:
            under_way = self._under_way[identity] = _UnderWay(asyncio.create_task(work(), name="shared call"))
            under_way.task.add_done_callback(lambda task: self._ended(identity, task))
        under_way.waiting += 1
        try:
            return await asyncio.shield(under_way.task), is_own
        finally:
            under_way.waiting -= 1
            if not under_way.waiting and not under_way.task.done():
                self._forget(identity, under_way.task)  # nobody may join it any more
                under_way.task.cancel()

    async def note(self, call: Call, answered: Answered, came_s: float, *, saves: bool = True) -> None:
        """Record a call that shared another's answer: it used and cost nothing, and saved what the other cost.

        Without `saves` its part of the other's was made for it, and nothing is saved.
        """
        made = answered.grant.attempt
        saved = made.cost_micro_usd if saves and made.state == "done" else None
        now_s = self._clock.now_s()
        row = Attempt(
            id=f"{call.id}.1",
            call=call.id,
            attempt=1,
            owner=self._owner,
            scopes=fit(call.scopes)._replace(account=made.scopes.account),
            endpoint=call.endpoint,
            model=made.model,
            queued_s=came_s,
            admitted_s=came_s,
            usage=NO_USAGE,
            cost_micro_usd=0,
            sent=False,
            saved_micro_usd=saved,
            shared_with=made.call,
        )
        self.shared += saves
        self.saved_micro_usd += saved or 0
        ended = replace(
            row,
            state=made.state,
            status=made.status,
            error_type=made.error_type,
            model_served=made.model_served,
            provider_request=made.provider_request,
            done_s=now_s,
        )
        await self._settlements.note(row, ended)

    def _ended(self, identity: bytes, task: "asyncio.Task[Answered]") -> None:
        self._forget(identity, task)
        if not task.cancelled():
            task.exception()  # seen, so that nobody warns of it where all have left

    def _forget(self, identity: bytes, task: "asyncio.Task[Answered]") -> None:
        under_way = self._under_way.get(identity)
        if under_way is not None and under_way.task is task:
            del self._under_way[identity]
