"""Moves: calls that wait for one account go to another of the pool when that pays.

One rule: a call keeps its place until it is admitted elsewhere, or the store has said that it would go clearly earlier
there; then it takes the place of its arrival in the other's lane, and it may come back the same way. Only the lane that
it waits in moves it, with nothing held, so it is never tried twice at once. Whether a move pays is its route's to say.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterator

from headgate.core.amounts import Demand
from headgate.core.errors import StoreError
from headgate.core.quota import Admitted, Wait
from headgate.ports import Clock
from headgate.runtime.lane_table import LaneTable
from headgate.runtime.lanes import Elsewhere, Lane, Ticket, Waiting
from headgate.runtime.planning import Outcome

log = logging.getLogger("headgate.admission")

MOST_PASSED = 32
"""Calls of a lane that pass up another account's room before those behind them are not asked any more."""

MOST_MOVES = 16
"""How often one call changes its lane for another account's."""

MOST_TRIED = 8
"""Accounts that one call is tried at before its lane looks after the others."""

STAYS = Elsewhere(None, math.inf)


class Moves:
    """Moves calls between the lanes of one process."""

    def __init__(
        self,
        lanes: LaneTable,
        take: Callable[[Ticket, Demand], Awaitable[Outcome]],
        let_go: Callable[[Waiting, Ticket, Demand], None],
        enter: Callable[[Waiting], None],
        fail: Callable[[Waiting, Exception], None],
        clock: Clock,
    ) -> None:
        """Move between `lanes`: `take` tries a ticket, `let_go` admits a call with one, `enter` puts it into a lane.

        What is not known to be taken or not, because the store failed, `fail`s its call, as in its own lane.
        """
        self._all = lanes
        self._take = take
        self._let_go = let_go
        self._enter = enter
        self._fail = fail
        self._clock = clock
        self.lanes: dict[str, None] = {}
        """Those with calls that could go elsewhere; some may have left."""

    def nudge(self, scopes: Collection[str], but: Collection[str] = ()) -> None:
        """Let the lanes look, `but` for some, whose calls could go to one of these accounts."""
        for name in list(self.lanes):
            lane = self._all.get(name)
            if lane is None or not lane.elsewhere:
                del self.lanes[name]
            elif name not in but and not lane.elsewhere.keys().isdisjoint(scopes):
                lane.nudged.set()

    def look_at(self, account: str) -> None:
        """Let calls that could go to an account see whether they should."""
        self.nudge({f"account:{account}"})

    async def send_elsewhere(self, lane: Lane, head: Waiting) -> float:
        """Ask the calls of a lane, whose head has to wait, in their order; give when it is worth asking again."""
        again_s = math.inf
        ahead_s = 0.0
        for waiting in self._in_order(lane, head):
            if not _waits(waiting, lane) or waiting.place is None:
                continue
            told = await self._ask(waiting, lane, head, ahead_s)
            if told is not None:
                wanted = told.ticket is not None
                told = await self._move(waiting, lane, head, ahead_s, told)
                again_s = min(again_s, told.again_s)
                if not _waits(waiting, lane):
                    continue
                if wanted or not told.leaves_room:
                    break  # who came before them could not go: nor may those behind
            ahead_s += waiting.place.cost_s
        return again_s

    def _in_order(self, lane: Lane, head: Waiting) -> Iterator[Waiting]:
        yield head
        yield from lane.behind(self._clock.now_s(), MOST_PASSED)

    async def _ask(
        self,
        waiting: Waiting,
        lane: Lane,
        head: Waiting,
        ahead_s: float,
        told: tuple[str | None, Wait] | None = None,
    ) -> Elsewhere | None:
        ticket = waiting.ticket
        # What binds another scope's lane binds it wherever it goes.
        if ticket.route is None or lane.scope != f"account:{ticket.scopes.account}" or waiting.moves >= MOST_MOVES:
            return None
        try:
            wait = self._all.guessed(head.wait, self._clock.now_s())
            return await ticket.route.elsewhere(ticket, wait, ahead_s, told)
        except StoreError as error:  # its own lane will meet that too, and say so
            log.debug("a call was not asked where else it could go: %s", error)
            return None

    async def _move(self, waiting: Waiting, lane: Lane, head: Waiting, ahead_s: float, told: Elsewhere) -> Elsewhere:
        """Try a call where it was told, until it has left this lane or stays; give what it was told last."""
        for _ in range(MOST_TRIED):
            there = told.ticket
            if there is None or not _waits(waiting, lane):
                break
            # Those who wait for one of its limits there: it takes its place among them.
            ahead = self._all.ahead(there)
            if ahead:
                self._switch(waiting, lane, there, ahead[0].wait)
                break
            asked = there.asked_at(self._clock.now_s())
            try:
                outcome = await self._take(there, asked)
            except StoreError as broken:
                self._fail(waiting, broken)
                break
            if isinstance(outcome, Admitted):
                self._tell(waiting, there)
                self._let_go(waiting, there, asked)
                break
            if not isinstance(outcome, Wait):
                return STAYS
            told_there = (there.scopes.account, self._all.guessed(outcome, self._clock.now_s()))
            again = await self._ask(waiting, lane, head, ahead_s, told_there) or STAYS
            is_same = again.ticket is not None and again.ticket.scopes.account == there.scopes.account
            if again.ticket is not None and is_same and _waits(waiting, lane):
                self._switch(waiting, lane, again.ticket, outcome)
                break
            told = STAYS if is_same else again
        return told

    def _switch(self, waiting: Waiting, lane: Lane, there: Ticket, wait: Wait) -> None:
        """Let a call wait elsewhere, at the place of its arrival."""
        lane.leave(waiting)
        self._tell(waiting, there)
        waiting.ticket, waiting.wait = there, wait
        waiting.moves += 1
        self._enter(waiting)

    def _tell(self, waiting: Waiting, there: Ticket) -> None:
        if there.route is not None and not waiting.admitted.done():
            there.route.took(there)


def _waits(waiting: Waiting, lane: Lane) -> bool:
    return waiting.lane is lane and not waiting.admitted.done()
