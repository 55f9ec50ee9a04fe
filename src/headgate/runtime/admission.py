"""Admission: calls go now, wait in a lane, or are told that they cannot go.

One rule: nobody overtakes a call that waits for a limit that it meets too, unless the lane's policy says so, it delays
nobody, or goes by what is reserved for it. A lane's head is tried when something is settled and at the exact time its
wait ends, those that have a reservation also when that opens, is made or cancelled; there is no polling. The arithmetic
and the order are the core's, the record of what is held is `reservations`'.
"""

import asyncio
import logging
import math
import random
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Sequence

from headgate.core.amounts import NOTHING, Amounts, Demand, Dimension
from headgate.core.claims import SAY_AGAIN_S
from headgate.core.errors import DeadlineError, HeadgateError, LimitError, ShuttingDownError, StoreError
from headgate.core.limits import Gauge, Limit, Rate
from headgate.core.quota import Admitted, Behind, Refused, Wait
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import lane_of
from headgate.core.set_aside import Closure
from headgate.core.shares import Waiter
from headgate.ports import Clock, LevelStore
from headgate.runtime.feed import Feed, Kind
from headgate.runtime.hold_times import HoldTimes
from headgate.runtime.lanes import GUESSED_HOLD_S, Lane, Ticket, Waiting
from headgate.runtime.planning import Outcome
from headgate.runtime.reservations import Begin, Reservations
from headgate.runtime.telling import late_behind, never_fits, too_late

log = logging.getLogger("headgate.admission")

MOST_WAITING = 20_000
"""Calls that may wait at once: 1,000 agents with 20 calls each."""

MOST_LANES = 1_000
"""Lanes that are remembered with what their sharers have had; those that nobody waits in leave first."""

MOST_BEHIND = 4
"""Calls behind a head that are tried when it has to wait, and as many of each reservation that somebody there has."""

LONGEST_TIMER_S = 60.0
"""A timer runs on the loop's clock and a wait ends on the wall's: look again before the two can drift far apart."""

CLAIM_AFTER_S = 0.5
"""A head that waits so long while other processes work says so to them."""

OTHERS_WORK_S = 60.0
"""Other processes count as at work so long after the store was changed by one."""

LISTEN_AGAIN_S = 1.0
"""After a trouble of the store, other processes' changes are looked for again within this."""


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
        self._store = store
        self._reservations = reservations
        self._clock = clock
        self._scheduling = scheduling or Scheduling()
        self._feed = feed or Feed(clock)
        self._most_waiting = most_waiting
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._held = HoldTimes()
        self._charged: dict[str, list[tuple[Lane, Waiter, float]]] = {}
        self._order = 0
        self._waiting = 0
        self._draining = False
        self._others_seen_s = -math.inf
        self._listener: asyncio.Task[None] | None = None
        self._to_give_back: dict[str, Ticket] = {}
        self._giving_back: set[asyncio.Task[None]] = set()
        reservations.planned.on_changed = self.nudge

    async def admit(self, ticket: Ticket, begin: Begin | None = None) -> tuple[Demand, bool]:
        """Return when the attempt may go, with what it asked by then, which is held; the caller has to settle it.

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
        ahead = self._ahead(ticket) if self._waiting else []
        wait = self._wait_behind(ahead) if ahead else None
        if wait is None or self._plans_of(ticket):  # what is reserved for it is nobody's to wait for
            asked = ticket.asked_at(self._clock.now_s())
            outcome, begun = await self._take(ticket, asked, begin, ahead)
            if isinstance(outcome, Admitted):
                self._charge(ticket, order)
                return asked, begun
            if isinstance(outcome, Refused):
                self._tell("refused", ticket, limit=outcome.limit.name)
                raise never_fits(outcome, ticket)
            if isinstance(outcome, Wait):
                try:
                    self._check_deadline(ticket, outcome)
                except DeadlineError:
                    self._tell("refused", ticket, limit=outcome.limit.name)
                    raise
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
            was_sent = actual.requests > 0
            held_s = self._held.ended(attempt, limits, self._clock.now_s(), counts=was_sent)
            if attempt in self._charged:
                used = actual._replace(slots=int(was_sent))
                for lane, place, cost_s in self._charged.pop(attempt):
                    lane.line.settled(place, cost_s, lane.cost_s(limits, used, held_s))
        self.nudge(limits)

    async def draw(self, attempt: str, limits: Sequence[Limit], asked: Demand, so_far: Amounts) -> None:
        """Charge what an attempt that goes on has used of its rates so far: it drains from now on."""
        if await self._reservations.draw(attempt, limits, asked, so_far):
            self.nudge(limits)

    def nudge(self, limits: Sequence[Limit] | None = None) -> None:
        """Let the heads of the lanes of these limits (or of all) try again: something may have become free."""
        if not self._waiting:
            return
        names = self._lanes.keys() if limits is None else {lane_of(limit) for limit in limits}
        for name in names:
            if name in self._lanes:
                self._lanes[name].nudged.set()
        if limits is not None and self._reservations.planned.standing:
            # Who has a reservation goes when nobody before it is delayed, in whichever lane that one waits.
            for lane in self._lanes.values():
                if lane.plans:
                    lane.nudged.set()

    def waiting_s(self, limits: Sequence[Limit], binding: Limit | None = None) -> float:
        """Give the seconds of their scarcest limits that calls take which wait for any of these.

        Where slots are `binding`, with the time until one of those that hold them ends. It is a guess as long as no
        call has told how long it holds them (`known_waiting_s`).
        """
        return self._waiting_s(limits, binding, GUESSED_HOLD_S) or 0.0

    def known_waiting_s(self, limits: Sequence[Limit], binding: Limit | None = None) -> float | None:
        """Give the same as far as it is known; None: nobody knows."""
        return self._waiting_s(limits, binding, None)

    def _waiting_s(self, limits: Sequence[Limit], binding: Limit | None, unknown_hold_s: float | None) -> float | None:
        lanes = [self._lanes.get(name) for name in {lane_of(limit) for limit in limits}] if self._waiting else []
        waits = [lane.waiting_s(unknown_hold_s) for lane in lanes if lane is not None and len(lane)]
        next_s: float | None = 0.0
        if binding is not None and type(binding) is Gauge:
            hold_s = self._held.mean_s(lane_of(binding))
            hold_s = unknown_hold_s if hold_s is None else hold_s
            next_s = None if hold_s is None else hold_s / binding.amount
        wait_s = max((each for each in waits if each is not None), default=0.0) + (next_s or 0.0)
        return None if not wait_s and (None in waits or next_s is None) else wait_s

    @property
    def scheduling(self) -> Scheduling:
        """Who goes next, as it is configured now."""
        return self._scheduling

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Order all lanes by another configuration from now on; nobody who waits is lost."""
        self._scheduling = scheduling
        for lane in self._lanes.values():
            lane.set_scheduling(scheduling)
        self.nudge()

    def waiting(self) -> list[Waiting]:
        """Give all that wait, lane by lane, first to go first."""
        now_s = self._clock.now_s()
        found: list[Waiting] = []
        for lane in self._lanes.values():
            head = lane.head(now_s)
            if head is not None:
                found += [head, *lane.behind(now_s, len(lane))]
        return found

    def reason(self, waiting: Waiting) -> str:
        """Say in words what places a waiting call where it is."""
        if (lane := waiting.lane) is None or (place := waiting.place) is None or place not in lane.line:
            return "it has left its lane"
        return lane.line.reason(place, self._clock.now_s())

    async def drain(self) -> None:
        """Admit no new call, and refuse those that wait."""
        self._draining = True
        for waiting in self.waiting():
            self._fail(
                waiting, ShuttingDownError("Headgate is shutting down; the call was not sent; try again in a moment")
            )
        self.nudge()
        # A pump ends by itself once nobody waits; cancelling one could lose a hold that was just taken.
        pumps = [lane.pump for lane in self._lanes.values() if lane.pump is not None]
        await asyncio.gather(*pumps, return_exceptions=True)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await asyncio.gather(*self._giving_back, return_exceptions=True)

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
            self._give_back(ticket)
            raise

    async def give_back(self, ticket: Ticket) -> None:
        """Give back what an attempt holds that was never sent; where the store fails, `give_back_again` goes on."""
        self._to_give_back[ticket.attempt] = ticket
        try:
            await self.settle(ticket.attempt, ticket.limits, NOTHING)
        except StoreError as error:
            log.warning("the hold of %s is given back later: %s", ticket.attempt, error)
        else:
            self._to_give_back.pop(ticket.attempt, None)

    async def give_back_again(self) -> int:
        """Try again what could not be given back; give how many holds are left."""
        for ticket in list(self._to_give_back.values()):
            await self.give_back(ticket)
        return len(self._to_give_back)

    def _give_back(self, ticket: Ticket) -> None:
        task = asyncio.create_task(self.give_back(ticket), name=f"back {ticket.attempt}")
        self._giving_back.add(task)
        task.add_done_callback(self._giving_back.discard)

    def _ahead(self, ticket: Ticket, *, than: Waiting | None = None) -> list[Waiting]:
        """Give the first of each lane that a call would wait in.

        Of one that waits (`than`) those of other lanes that came before it and would go before it there as well: one
        that their lane's policy lets it overtake would let it back to the lane it came from, and so on for ever.
        """
        now_s = self._clock.now_s()
        names = dict.fromkeys(lane_of(limit) for limit in ticket.limits)
        found = []
        for lane in [self._lanes[name] for name in names if name in self._lanes]:
            head = lane.head(now_s) if than is None or lane is not than.lane else None
            if head is None:
                continue
            if than is None or (head.order < than.order and not lane.would_lead(than, now_s)):
                found.append(head)
        return found

    def _wait_behind(self, ahead: Sequence[Waiting]) -> Wait:
        return Wait(ahead[0].wait.until_s, self._clock.now_s(), ahead[0].wait.limit)

    def _plans_of(self, ticket: Ticket) -> frozenset[str]:
        """Give the reservations that a call may go by, now or later."""
        planned = self._reservations.planned
        return planned.held_by(ticket.limits, ticket.scopes.path()) if planned.standing else frozenset()

    async def _wait(self, ticket: Ticket, order: int, wait: Wait) -> Demand:
        if self._waiting >= self._most_waiting:
            raise LimitError(
                f"{self._waiting} calls wait already, the most that one process keeps; send fewer at once",
                limit=wait.limit.name,
                retry_after_s=1.0,
            )
        loop = asyncio.get_running_loop()
        waiting = Waiting(ticket, order, wait, loop.create_future())
        self._waiting += 1
        self._tell("waiting", ticket, limit=wait.limit.name)
        timer = None
        try:
            self._enter(waiting)
            if not waiting.admitted.done():
                left_s = max(0.0, ticket.deadline_s - self._clock.now_s())
                timer = loop.call_later(left_s, self._too_late, waiting)
            return await waiting.admitted
        except asyncio.CancelledError:
            # Admitted in the same moment as it was cancelled: give back what it will never use.
            if not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self._give_back(ticket)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(waiting)
            self.nudge(ticket.limits)
            self._waiting -= 1

    def _enter(self, waiting: Waiting) -> None:
        """Put a call into the lane of the limit that it waits for."""
        now_s = self._clock.now_s()
        limit = waiting.wait.limit
        lane = self._lanes.get(lane_of(limit))
        if lane is None:
            serial = self._reservations.planned.serial
            lane = self._lanes[lane_of(limit)] = Lane(limit, self._scheduling, self._held, self._plans_of, serial)
            self._forget_lanes()
        self._lanes.move_to_end(lane.name)
        lane.enter(waiting)
        if not waiting.plans and (late := late_behind(lane, waiting, now_s)) is not None:
            self._fail(waiting, late)
            return
        if lane.pump is None:
            lane.pump = asyncio.create_task(self._pump(lane), name=f"lane {lane.name}")
        head = lane.head(now_s)
        if head is waiting or waiting.plans or (head is not None and self._may_be_passed(lane, head.wait)):
            lane.nudged.set()
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="lanes of other processes")

    def _leave(self, waiting: Waiting) -> None:
        if waiting.lane is not None:
            waiting.lane.leave(waiting)
            # Whoever serves the lane must see that; it need not be one of a limit of the call's (maintenance).
            waiting.lane.nudged.set()

    def _forget_lanes(self) -> None:
        if len(self._lanes) > MOST_LANES:
            for name in [name for name, lane in self._lanes.items() if lane.pump is None][: MOST_LANES // 10]:
                del self._lanes[name]

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
        if lane_of(wait.limit) != lane.name:
            lane.leave(head)
            self._enter(head)
            return
        until_s = min(wait.until_s, self._reservations.planned.next_change_s())
        if len(lane) > 1:
            until_s = min(until_s, await self._backfill(lane, head))
        now_s = self._clock.now_s()
        longest_s = LONGEST_TIMER_S if self._claim_of(head, now_s + CLAIM_AFTER_S) is None else SAY_AGAIN_S
        delay_s = min(longest_s, max(0.0, until_s - now_s))
        timer = asyncio.get_running_loop().call_later(delay_s, lane.nudged.set)
        await lane.nudged.wait()
        timer.cancel()

    async def _backfill(self, lane: Lane, head: Waiting) -> float:
        """Let those behind a head go that do not delay it; give when one of them is to be tried again.

        They ask nothing of what it waits for, or what it leaves, or what is reserved for them.
        """
        until_s = math.inf
        planned = self._reservations.planned
        plan_ids = [plan_id for plan_id in lane.plans if planned.is_open(plan_id)]
        if self._may_be_passed(lane, head.wait):
            for waiting in lane.behind(self._clock.now_s(), MOST_BEHIND):
                has_own = not waiting.plans.isdisjoint(plan_ids)
                if not has_own and not self._ahead(waiting.ticket, than=waiting):
                    until_s = min(until_s, await self._try_behind(waiting, [head]))
        for plan_id in plan_ids:
            ahead = [head]
            for waiting in lane.holders(plan_id, self._clock.now_s(), MOST_BEHIND):
                if waiting is not head:
                    others = self._ahead(waiting.ticket, than=waiting)
                    until_s = min(until_s, await self._try_behind(waiting, [*ahead, *others]))
                    if not waiting.admitted.done():
                        ahead.append(waiting)
        return until_s

    def _may_be_passed(self, lane: Lane, wait: Wait) -> bool:
        """Whether one behind a head may go without delaying it: not where all ask for what drains, or comes back."""
        alike = lane.uniform and isinstance(wait.limit, Rate | Gauge)
        return not alike or self._reservations.planned.changes_at(wait.until_s)

    async def _try(self, head: Waiting) -> Wait | None:
        """Try to admit the first of a lane; None when it has left, else how long it waits."""
        older = self._ahead(head.ticket, than=head)
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
        if head.admitted.done():
            return None
        try:
            self._check_deadline(head.ticket, outcome)
        except DeadlineError as late:
            self._fail(head, late)
            return None
        return outcome

    async def _try_behind(self, waiting: Waiting, ahead: Sequence[Waiting]) -> float:
        """Try to admit one behind others that it must not delay; give when to try again, infinite when it has left."""
        outcome = await self._ask(waiting, ahead)
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
            if waiting.admitted.done():  # it gave up while it was tried
                self._give_back(ticket)
            else:
                self._charge(ticket, waiting.order)
                waiting.admitted.set_result(asked)
            return None
        if isinstance(outcome, Refused):
            self._fail(waiting, never_fits(outcome, ticket))
            return None
        return outcome

    def _claim_of(self, head: Waiting, now_s: float) -> str | None:
        """Give the lane in whose name a head says to other processes that it waits; None: nobody need know."""
        others_work = now_s - self._others_seen_s < OTHERS_WORK_S
        waits_long = now_s - head.ticket.queued_s >= CLAIM_AFTER_S
        return head.lane.name if others_work and waits_long and head.lane is not None else None

    def _too_late(self, waiting: Waiting) -> None:
        lane = waiting.lane
        now_s = self._clock.now_s()
        first = lane.head(now_s) if lane is not None else None
        wait = waiting.wait if first is None else first.wait
        ahead = 0 if lane is None or first is waiting else sum(1 for other in lane if other.order < waiting.order)
        self._fail(waiting, too_late(waiting.ticket, wait, now_s, ahead))

    def _check_deadline(self, ticket: Ticket, wait: Wait) -> None:
        closed = isinstance(wait.limit, Closure) and wait.limit.refuses
        if wait.earliest_s > ticket.deadline_s or closed:
            raise too_late(ticket, wait, self._clock.now_s())

    def _fail(self, waiting: Waiting, error: Exception) -> None:
        self._leave(waiting)
        if not waiting.admitted.done():
            self._tell("refused", waiting.ticket, limit=waiting.wait.limit.name)
            waiting.admitted.set_exception(error)

    def _charge(self, ticket: Ticket, order: int) -> None:
        """Count an admission in each lane that the call meets and that keeps shares."""
        self._tell("admitted", ticket)
        now_s = self._clock.now_s()
        self._held.began(ticket.attempt, ticket.limits, now_s)
        if not self._lanes:
            return
        found = {lane_of(limit): limit for limit in ticket.limits}
        lanes = [self._lanes[name] for name in found if name in self._lanes]
        if lanes:
            places = [(lane, *lane.admitted(ticket, order, now_s)) for lane in lanes]
            self._charged[ticket.attempt] = places

    def _tell(self, kind: Kind, ticket: Ticket, **facts: object) -> None:
        if self._feed.is_followed:
            waited_s = round(self._clock.now_s() - ticket.queued_s, 6)
            self._feed.tell(kind, ticket.scopes, call=ticket.attempt, model=ticket.model, waited_s=waited_s, **facts)

    async def _listen(self) -> None:
        """Let the lanes look again when another process has changed a level, while there are lanes."""
        troubled = False
        while self._waiting:
            try:
                await self._store.wait_changed()
            except StoreError as error:
                # The lanes are not nudged: their heads would meet the same trouble, which ends a wait.
                if not troubled:
                    log.warning("what other processes change is not seen for now: %s", error)
                troubled = True
                await asyncio.sleep(LISTEN_AGAIN_S * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
            else:
                troubled = False
                self._others_seen_s = self._clock.now_s()
                self.nudge()
