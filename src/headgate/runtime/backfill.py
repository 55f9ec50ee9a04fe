"""Backfill: calls behind a lane's head go before it where that delays nobody ahead of them.

One rule: of those that wait, the ones that the policy puts next are tried at every change; beyond them, in turn, those
that nobody is before who is alike and asks for no more (`alike`), and at once a call that comes if it is such a one. So
where n are such, one that could go is tried within (n / MOST_IN_TURN + 2) x TURN_S of the change that lets it, however
much changes, and nothing is tried for ever where nothing does.
"""

import math
from collections.abc import Awaitable, Callable, Sequence

from headgate.core.limits import Gauge, Rate
from headgate.core.quota import Wait
from headgate.ports import Clock
from headgate.runtime.lane_table import LaneTable
from headgate.runtime.lanes import Lane, Ticket, Waiting, asks_of
from headgate.runtime.planning import PlannedReservations

MOST_BEHIND = 4
"""Calls behind a head that are tried at each change, and as many of each reservation that somebody there has."""

MOST_IN_TURN = 16
TURN_S = 0.1
"""Beyond them so many are tried at a time, so often: 160 tries a second in each lane take some 2 % of a core."""

TryBehind = Callable[[Waiting, Sequence[Waiting]], Awaitable[float]]
"""Tries a call behind others that it must not delay; gives when to try again, infinite when it has left."""


class Backfill:
    """Who behind the head of a lane is tried when the head has to wait."""

    def __init__(self, lanes: LaneTable, planned: PlannedReservations, try_behind: TryBehind, clock: Clock) -> None:
        """Look at nothing yet."""
        self._lanes = lanes
        self._planned = planned
        self._try_behind = try_behind
        self._clock = clock

    async def let_pass(self, lane: Lane, head: Waiting) -> float:
        """Let those behind a head go that do not delay it; give when one of them is to be tried again.

        They ask nothing of what it waits for, or what it leaves, or what is reserved for them.
        """
        until_s = math.inf
        plan_ids = [plan_id for plan_id in lane.plans if self._planned.is_open(plan_id)]
        if self.may_pass(lane, head.wait):
            first = lane.behind(self._clock.now_s(), MOST_BEHIND)
            for waiting in first:
                until_s = min(until_s, await self._try(waiting, head, plan_ids))
            until_s = min(until_s, await self._in_turn(lane, head, first, plan_ids))
        for plan_id in plan_ids:
            ahead = [head]
            for waiting in lane.holders(plan_id, self._clock.now_s(), MOST_BEHIND):
                if waiting is not head:
                    others = self._lanes.ahead(waiting.ticket, than=waiting)
                    until_s = min(until_s, await self._try_behind(waiting, [*ahead, *others]))
                    if not waiting.admitted.done():
                        ahead.append(waiting)
        return until_s

    def may_pass(self, lane: Lane, wait: Wait) -> bool:
        """Whether one behind a head may go without delaying it: not where all ask for what drains, or comes back."""
        alike = len(lane.kinds) == 1 and isinstance(wait.limit, Rate | Gauge)
        return not alike or self._planned.changes_at(wait.until_s)

    def may_overtake(self, lane: Lane, wait: Wait, ticket: Ticket) -> bool:
        """Whether a call that comes may go before all that wait: nobody is before it that asks for no more."""
        alike = lane.alike(ticket)
        return alike is None or (self.may_pass(lane, wait) and alike.before(asks_of(ticket)) is None)

    async def _in_turn(self, lane: Lane, head: Waiting, first: Sequence[Waiting], plan_ids: Sequence[str]) -> float:
        """Try those that nobody alike is before, some at a time; give when the others are to be tried."""
        if len(lane) <= 1 + len(first):
            return math.inf
        for waiting in lane.turns.next_few(lane.may_overtake, MOST_IN_TURN, self._clock.now_s(), TURN_S):
            alike = lane.kinds.get(waiting.kind) if waiting.lane is lane else None
            if alike is None or waiting is head or waiting in first or waiting.order not in alike.first():
                continue
            waiting.again_s = await self._try(waiting, head, plan_ids)
            lane.turns.was_tried(waiting)
        return lane.turns.look_again_s

    async def _try(self, waiting: Waiting, head: Waiting, plan_ids: Sequence[str]) -> float:
        has_own = not waiting.plans.isdisjoint(plan_ids)
        if waiting.admitted.done() or has_own or self._lanes.ahead(waiting.ticket, than=waiting):
            return math.inf
        return await self._try_behind(waiting, [head])
