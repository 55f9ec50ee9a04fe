"""Admission: calls go now, wait in a lane, or are told that they cannot go.

One rule: nobody overtakes a call that waits for a limit that it meets too, unless the lane's policy says so, it delays
nobody, or goes by what is reserved for it. A lane's head is tried when something is settled and at the exact time its
wait ends, those that have a reservation also when that opens, is made or cancelled; there is no polling. The arithmetic
and the order are the core's, the record of what is held is `reservations`'.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence

from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.claims import SAY_AGAIN_S
from headgate.core.errors import HeadgateError, LimitError, ShuttingDownError, StoreError
from headgate.core.limits import Limit
from headgate.core.quota import Admitted, Behind, Refused, Wait
from headgate.core.scheduling import Scheduling
from headgate.ports import Clock, LevelStore
from headgate.runtime.backfill import Backfill
from headgate.runtime.deadlines import Deadlines
from headgate.runtime.feed import Feed, Kind
from headgate.runtime.giving_back import GivingBack
from headgate.runtime.lane_table import LaneTable
from headgate.runtime.lanes import Lane, Ticket, Waiting
from headgate.runtime.listening import Listening
from headgate.runtime.moves import Moves
from headgate.runtime.planning import Outcome, PlannedReservations
from headgate.runtime.reservations import Begin, Reservations, StepUnder
from headgate.runtime.telling import late_behind, late_for, never_fits, too_late_in_lane

MOST_WAITING = 20_000
"""Calls that may wait at once: 1,000 agents with 20 calls each."""

LONGEST_TIMER_S = 60.0
"""A timer runs on the loop's clock and a wait ends on the wall's: look again before the two can drift far apart."""

CLAIM_AFTER_S = 0.5
"""A head that waits so long while other processes work says so to them."""


class Admission:
    """The lanes of one process over a level store that other processes may share."""

    def __init__(
        self,
        store: LevelStore,
        reservations: Reservations,
        clock: Clock,
        *,
        scheduling: Scheduling | None = None,
        feed: Feed | None = None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """Start with empty lanes."""
        self._reservations = reservations
        self._clock = clock
        self._feed = feed or Feed(clock)
        self._most_waiting = most_waiting
        self.lanes = LaneTable(clock, scheduling or Scheduling(), self._plans_of, lambda: reservations.planned.serial)
        self._order = 0
        self._waiting = 0
        self._draining = False
        self._deadlines = Deadlines(self._time_out)
        self._listening = Listening(store, clock, lambda: self._waiting, self._heard)
        self.giving_back = GivingBack(self.settle)
        self._backfill = Backfill(self.lanes, reservations.planned, self._try_behind, clock)
        self.moves = Moves(self.lanes, self._take_elsewhere, self._let_go, self._enter, self._fail, clock)
        self.on_changed: Callable[[], None] = lambda: None  # another process has changed something
        reservations.planned.on_changed = self.nudge

    async def admit(self, ticket: Ticket, begin: Begin | None = None) -> tuple[Ticket, bool]:
        """Return when the attempt may go and what it asked is held; the caller has to settle it.

        Gives the ticket with which it was admitted, with what it asked by then: while it waited its route may have led
        it to another account.
        What `begin` asks of the store is kept together with the hold where the call goes at once: True is given then,
        and otherwise it was not asked, or said that it did nothing. After any error it may have been kept all the same.

        Raises:
            DeadlineError: it cannot go before its deadline; told as soon as that is certain.
            BudgetError: it can never go.
            UnpricedError: a limit on money meets a model without a price.
            LimitError: too many calls wait already.
            ShuttingDownError: the process is draining.
        """
        if self._draining:
            raise ShuttingDownError("Headgate is shutting down and admits no new call; try again in a moment")
        order = ticket.order or self.next_order()
        ahead = self.lanes.ahead(ticket) if self._waiting else []
        wait = self._wait_behind(ahead) if ahead else None
        if wait is None or self._may_pass(ticket, ahead):
            asked = ticket.asked_at(self._clock.now_s())
            outcome, begun = await self._take(ticket, asked, begin, ahead)
            if isinstance(outcome, Admitted):
                self._went(ticket, order)
                return ticket.asking(asked), begun
            if isinstance(outcome, Refused):
                self._tell("refused", ticket, limit=outcome.limit.name)
                raise never_fits(outcome, ticket)
            if isinstance(outcome, Wait):
                late = late_for(ticket, outcome, self._clock.now_s())
                if late is not None and ticket.route is None:  # else another account may be in time
                    self._tell("refused", ticket, limit=outcome.limit.name)
                    raise late
                wait = outcome
        assert wait is not None, "only those ahead of it can be delayed"
        return await self._wait(ticket, order, wait), False

    def next_order(self) -> int:
        """Give the place of a call that comes now; its later attempts keep it (`Ticket.order`)."""
        self._order += 1
        return self._order

    async def settle(
        self,
        attempt: str,
        limits: Sequence[Limit],
        actual: Amounts,
        dimensions: Collection[Dimension] | None = None,
    ) -> bool:
        """Replace what an attempt holds by what it used, and let the lanes look; False if it was settled before."""
        settled = await self._reservations.settle(attempt, limits, actual, dimensions)
        self.settled(attempt, limits, None if dimensions is not None else actual)
        return settled

    def settling(self, attempt: str, limits: Sequence[Limit], actual: Amounts) -> Awaitable[bool]:
        """As `settle` of all, but queued now; `settled` has to be told once it is done."""
        return self._reservations.settle(attempt, limits, actual)

    def settled(self, attempt: str, limits: Sequence[Limit], actual: Amounts | None) -> None:
        """Let the lanes look, and the shares follow what an attempt used in all (None: it goes on)."""
        if actual is not None:
            self.lanes.settled(attempt, limits, actual)
        # What was not sent gives back what was charged at its start too, and no wait reckons with that.
        self.nudge(limits, came_back=actual is None or actual.requests > 0)

    async def change(self, attempt: str, limits: Sequence[Limit], step: StepUnder, reads: Sequence[str] = ()) -> None:
        """Change what an attempt that goes on holds, by a step of the core's."""
        if await self._reservations.change(attempt, limits, step, reads):
            self.nudge(limits, came_back=True)

    def nudge(self, limits: Sequence[Limit] | None = None, *, came_back: bool = False, but: Lane | None = None) -> None:
        """Let the heads of the lanes of these limits (or of all) try again: something may have become free.

        With `came_back` that is a hold, and nothing else; `but` for a lane that looks by itself.
        """
        if not self._waiting:
            return
        if limits is None:
            self.lanes.nudge(None)
            return
        names: dict[str, None] = {limit.lane: None for limit in limits}  # in their order: who is first asks first
        if self.moves.lanes:  # before these: who comes from another lane may have come earlier
            self.moves.nudge({limit.scope for limit in limits}, but=names)
        if but is not None:
            but.turns.changed()
            names.pop(but.name, None)
        self.lanes.nudge(names, self._reservations.left if came_back else None)
        if self._reservations.planned.standing:
            # Who has a reservation goes when nobody before it is delayed, in whichever lane that one waits.
            self.lanes.nudge([lane.name for lane in self.lanes if lane.plans])

    def waiting(self) -> list[Waiting]:
        """Give all that wait, lane by lane, first to go first."""
        return self.lanes.waiting()

    @property
    def planned(self) -> PlannedReservations:
        """The reservations beside which calls are admitted."""
        return self._reservations.planned

    @property
    def scheduling(self) -> Scheduling:
        """Who goes next, as it is configured now."""
        return self.lanes.scheduling

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Order all lanes by another configuration from now on; nobody who waits is lost."""
        self.lanes.set_scheduling(scheduling)
        self.nudge()

    async def drain(self) -> None:
        """Admit no new call, and refuse those that wait."""
        self._draining = True
        for waiting in self.lanes.waiting():
            self._fail(
                waiting, ShuttingDownError("Headgate is shutting down; the call was not sent; try again in a moment")
            )
        self.nudge()
        # A pump ends by itself once nobody waits; cancelling one could lose a hold that was just taken.
        pumps = [lane.pump for lane in self.lanes if lane.pump is not None]
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._listening.close()
        await self.giving_back.close()

    async def _take(
        self, ticket: Ticket, asked: Demand, begin: Begin | None, ahead: Sequence[Waiting]
    ) -> tuple[Outcome, bool]:
        try:
            return await self._reservations.take_with(
                begin,
                ticket.attempt,
                ticket.limits,
                asked,
                ticket.scopes,
                ticket.model,
                ahead=ahead,
                came_s=ticket.queued_s,
            )
        except (asyncio.CancelledError, HeadgateError):
            # The store keeps what was asked of it even if nobody waits for the answer any more.
            self.giving_back.soon(ticket)
            raise

    def _may_pass(self, ticket: Ticket, ahead: Sequence[Waiting]) -> bool:
        """Whether a call that comes may go before those ahead; what is reserved for it is nobody's to wait for."""
        if self._plans_of(ticket):
            return True
        return all(
            head.lane is not None and self._backfill.may_overtake(head.lane, head.wait, ticket) for head in ahead
        )

    def _wait_behind(self, ahead: Sequence[Waiting]) -> Wait:
        return Wait(ahead[0].wait.until_s, self._clock.now_s(), ahead[0].wait.limit)

    def _plans_of(self, ticket: Ticket) -> frozenset[str]:
        """Give the reservations that a call may go by, now or later."""
        planned = self._reservations.planned
        return planned.held_by(ticket.limits, ticket.scopes.path()) if planned.standing else frozenset()

    async def _wait(self, ticket: Ticket, order: int, wait: Wait) -> Ticket:
        if self._waiting >= self._most_waiting:
            raise LimitError(
                f"{self._waiting} calls wait already, the most that one process keeps; send fewer at once",
                limit=wait.limit.name,
                retry_after_s=1.0,
            )
        waiting = Waiting(ticket, order, wait, asyncio.get_running_loop().create_future())
        self._waiting += 1
        self._tell("waiting", ticket, limit=wait.limit.name)
        deadline = None
        try:
            self._enter(waiting)
            if not waiting.admitted.done():
                deadline = self._deadlines.add(waiting, max(0.0, ticket.deadline_s - self._clock.now_s()))
            asked = await waiting.admitted
        except asyncio.CancelledError:
            # Admitted in the same moment as it was cancelled: give back what it will never use.
            if not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self.giving_back.soon(waiting.ticket)
            raise
        else:
            return waiting.ticket.asking(asked)
        finally:
            if deadline is not None:
                self._deadlines.remove(deadline)
            # The lane in which it was let go went on with the next one; in others some may have waited behind it.
            self.nudge(waiting.ticket.limits, but=None if self._leave(waiting) else waiting.lane)
            self._waiting -= 1

    def _enter(self, waiting: Waiting) -> None:
        """Put a call into the lane of the limit that it waits for."""
        now_s = self._clock.now_s()
        lane = self.lanes.enter(waiting)
        if waiting.ticket.route is not None:
            self.moves.lanes[lane.name] = None
        # That a move pays was just reckoned.
        if not waiting.plans and not waiting.moves and (late := late_behind(lane, waiting, now_s)) is not None:
            self._fail(waiting, late)
            return
        if lane.pump is None:
            lane.pump = asyncio.create_task(self._pump(lane), name=f"lane {lane.name}")
        head = lane.head(now_s)
        if head is waiting or waiting.plans or (head is not None and self._backfill.may_pass(lane, head.wait)):
            lane.nudged.set()
        self._listening.begin()

    def _leave(self, waiting: Waiting) -> bool:
        """Take a call out of its lane, if it still stands there."""
        if waiting.lane is None or not waiting.lane.leave(waiting):
            return False
        # Whoever serves the lane must see that; it need not be one of a limit of the call's (maintenance).
        waiting.lane.nudge()
        return True

    async def _pump(self, lane: Lane) -> None:
        """Try the lane's head until nobody waits."""
        try:
            while (head := lane.head(self._clock.now_s())) is not None:
                await self._serve(lane, head)
        finally:
            # Whatever ended it, nobody must be left in a lane that nobody serves.
            lane.pump = None
            for waiting in lane:
                self._fail(
                    waiting, ShuttingDownError("the lane was closed; the call was not sent; try again in a moment")
                )

    async def _serve(self, lane: Lane, head: Waiting) -> None:
        """Try a lane's head, and wait until it is worth another try."""
        lane.nudged.clear()
        lane.look_at_plans(self._reservations.planned.serial)
        wait = await self._try(head)
        if wait is None:
            return
        if wait.limit.lane != lane.name:
            lane.leave(head)
            self._enter(head)
            return
        until_s = min(wait.until_s, self._reservations.planned.next_change_s())
        if lane.elsewhere:
            until_s = min(until_s, await self.moves.send_elsewhere(lane, head))
            if head.lane is not lane:
                return
            self._fail_if_late(head, head.wait)
            if head.admitted.done():
                return
        if len(lane) > 1:
            until_s = min(until_s, await self._backfill.let_pass(lane, head))
        now_s = self._clock.now_s()
        longest_s = LONGEST_TIMER_S if self._claim_of(head, now_s + CLAIM_AFTER_S) is None else SAY_AGAIN_S
        delay_s = min(longest_s, max(0.0, until_s - now_s))
        await lane.wait_nudged(head, delay_s, self._opens_s(lane, head, wait))

    def _opens_s(self, lane: Lane, head: Waiting, wait: Wait) -> float:
        """Give the instant before which no hold that comes back lets a lane's head, or one behind it, go.

        After a while it is estimated anew, and may then ask for less.
        """
        others_may_go = lane.elsewhere or (len(lane) > 1 and self._backfill.may_pass(lane, wait))
        if others_may_go or not self._reservations.is_plain:
            return -math.inf
        return min(wait.earliest_s, head.asks_again_s)

    async def _try(self, head: Waiting) -> Wait | None:
        """Try to admit the first of a lane; None when it has left, else how long it waits."""
        older = self.lanes.ahead(head.ticket, than=head)
        outcome: Wait | Behind | None
        if older and not head.plans:
            outcome = Behind(older[0].wait.until_s)
        else:
            outcome = await self._ask(head, older, self._claim_of(head, self._clock.now_s()))
        if outcome is None:
            return None
        if isinstance(outcome, Behind):
            # One of them may have left meanwhile: then its lane goes on with the next.
            head.wait = self._wait_behind(older)
            return head.wait
        head.wait = outcome
        if head.ticket.route is None:
            self._fail_if_late(head, head.wait)
        return None if head.admitted.done() else outcome

    def _fail_if_late(self, waiting: Waiting, wait: Wait) -> None:
        late = late_for(waiting.ticket, wait, self._clock.now_s())
        if late is not None and not waiting.admitted.done():
            self._fail(waiting, late)

    async def _try_behind(self, waiting: Waiting, ahead: Sequence[Waiting]) -> float:
        """Try to admit one behind others that it must not delay; give when to try again, infinite when it has left."""
        outcome = await self._ask(waiting, ahead)
        if isinstance(outcome, Wait):
            waiting.wait = outcome
            if waiting.ticket.route is None:
                self._fail_if_late(waiting, outcome)
        # One ahead that may go now is its own lane's to try, which nudges this one.
        return outcome.until_s if outcome is not None and outcome.until_s > self._clock.now_s() else math.inf

    async def _ask(
        self, waiting: Waiting, ahead: Sequence[Waiting], claim_of: str | None = None
    ) -> Wait | Behind | None:
        """Take what a waiting call asks for, if that delays nobody ahead of it; None when it has left its lane."""
        asked = waiting.asked_at(self._clock.now_s())
        ticket = waiting.ticket
        try:
            outcome = await self._reservations.take(
                ticket.attempt,
                ticket.limits,
                asked,
                ticket.scopes,
                ticket.model,
                ahead=ahead,
                came_s=ticket.queued_s,
                claim_of=claim_of,
            )
        except StoreError as broken:
            self._fail(waiting, broken)
            return None
        if isinstance(outcome, Admitted):
            self._let_go(waiting, ticket, asked)
            return None
        if isinstance(outcome, Refused):
            self._fail(waiting, never_fits(outcome, ticket))
            return None
        return outcome

    async def _take_elsewhere(self, ticket: Ticket, asked: Demand) -> Outcome:
        outcome, _begun = await self._take(ticket, asked, None, ())
        return outcome

    def _let_go(self, waiting: Waiting, ticket: Ticket, asked: Demand) -> None:
        """Let a call go with what was just taken for it."""
        if waiting.admitted.done():  # it gave up while it was tried
            self.giving_back.soon(ticket)
            return
        waiting.ticket = ticket
        self._went(ticket, waiting.order)
        waiting.admitted.set_result(asked)

    def _claim_of(self, head: Waiting, now_s: float) -> str | None:
        """Give the lane in whose name a head says to other processes that it waits; None: nobody need know."""
        waits_long = now_s - head.ticket.queued_s >= CLAIM_AFTER_S
        others_work = self._listening.others_work(now_s)
        return head.lane.name if others_work and waits_long and head.lane is not None else None

    def _time_out(self, waiting: Waiting) -> None:
        self._fail(waiting, too_late_in_lane(waiting, self._clock.now_s()))

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        self._leave(waiting)
        if not waiting.admitted.done():
            self._tell("refused", waiting.ticket, limit=waiting.wait.limit.name)
            waiting.admitted.set_exception(error)

    def _went(self, ticket: Ticket, order: int) -> None:
        self._tell("admitted", ticket)
        self.lanes.charge(ticket, order)

    def _tell(self, kind: Kind, ticket: Ticket, **facts: object) -> None:
        if self._feed.is_followed:
            waited_s = round(self._clock.now_s() - ticket.queued_s, 6)
            self._feed.tell(kind, ticket.scopes, call=ticket.attempt, model=ticket.model, waited_s=waited_s, **facts)

    def _heard(self) -> None:
        self.on_changed()
        self.nudge()
