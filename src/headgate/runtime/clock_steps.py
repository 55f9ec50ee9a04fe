"""Clock steps: a wall clock that was set back must not stop what the store keeps by it for as long as it was set back.

One rule: nothing is given anew: a rate keeps its backlog, which drains from now on; a spent window stays spent. What is
closed is tried by one call where nobody can say until when it is. Small steps are left alone: they cost what they are.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from headgate.core.instants import to_ns
from headgate.core.ledger import UsageGroup, UsageQuery
from headgate.core.limits import Level, Limit, Rate
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.learned import LEAST_STEP_S, LearnedLimits
from headgate.runtime.rules import Rules

log = logging.getLogger("headgate.clock")

MOST_RATES = 500
"""Levels set right in one transaction."""

_RATE = " rate-"


class Counts(Protocol):
    """The part of a ledger that says what all processes were admitted."""

    async def usage(self, query: UsageQuery) -> Sequence[UsageGroup]:
        """Sum attempts."""
        ...


class ClockSteps:
    """Watches the wall clock of one process beside its loop's, and sets right what is ahead of it."""

    def __init__(
        self,
        store: LevelStore,
        clock: Clock,
        rules: Rules,
        learned: LearnedLimits,
        seen: dict[str, Level],
        nudge: Callable[[Sequence[Limit]], None],
    ) -> None:
        """Begin to watch at the first look."""
        self._store = store
        self._clock = clock
        self._rules = rules
        self._learned = learned
        self._seen = seen
        self._nudge = nudge
        self._ahead_s: float | None = None

    async def begin(self, counts: Counts) -> None:
        """Set right what is ahead, if calls were recorded in what is to come: the clock was set back meanwhile."""
        await self.look()
        now_s = self._clock.now_s()
        recorded = await counts.usage(UsageQuery(since_s=now_s + LEAST_STEP_S))
        if any(group.attempts for group in recorded):
            log.warning("calls were recorded at a time to come: the clock was set back; rates go on from now")
            await self.set_right()

    async def look(self) -> None:
        """Set right what is ahead, if the clock was set back since the last look."""
        ahead_s = self._clock.now_s() - asyncio.get_running_loop().time()
        back_s, self._ahead_s = (self._ahead_s or ahead_s) - ahead_s, ahead_s
        if back_s > LEAST_STEP_S:
            log.warning("the clock was set back by %.0f s: rates go on from now", back_s)
            self._learned.set_back(back_s)
            await self.set_right()

    async def set_right(self) -> None:
        """Let no rate in the store be ahead of the clock."""
        names = [name for name in await self._store.names("") if _RATE in name]
        for first in range(0, len(names), MOST_RATES):
            kept = self._rules.named(names[first : first + MOST_RATES])
            rates = [limit for limit in kept if isinstance(limit, Rate)]

            def step(
                found: Mapping[str, Record], rates: Sequence[Rate] = rates
            ) -> tuple[dict[str, Level], dict[str, Level]]:
                now_ns = to_ns(self._clock.now_s())
                levels = {
                    rate.name: level
                    for rate in rates
                    if (level := rate.set_back(found.get(rate.name), now_ns, to_ns(LEAST_STEP_S))) is not None
                }
                return levels, levels

            changed = await self._store.transact([rate.name for rate in rates], step)
            self._seen.update(changed)
            self._nudge([rate for rate in rates if rate.name in changed])
