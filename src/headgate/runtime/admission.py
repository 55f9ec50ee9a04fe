"""Admission: calls go now, wait in a lane, or are told that they cannot go.

One rule: nobody overtakes: a call waits behind whoever waits for a limit that it meets too. A lane's head is tried when
something is settled and at the exact time its wait ends; there is no polling. Who goes next in a lane is first in,
first out. The arithmetic is the core's, the record of what is held is `reservations`'.
"""

import asyncio
import heapq
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from headgate.core.amounts import MICRO_USD_PER_USD, NOTHING, Amounts, Demand, Dimension
from headgate.core.errors import BudgetError, DeadlineError, LimitError, ShuttingDownError, StoreError, UnpricedError
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.quota import Admitted, Refused, Wait
from headgate.core.scopes import Scopes, lane_of
from headgate.ports import Clock, LevelStore
from headgate.runtime.reservations import Reservations

log = logging.getLogger("headgate.admission")

MOST_WAITING = 20_000
"""Calls that may wait at once: 1,000 agents with 20 calls each."""

MINUTE_S = 60

LONGEST_TIMER_S = 60.0
"""A timer runs on the loop's clock and a wait ends on the wall's: look again before the two can drift far apart."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """An attempt that wants to go: what it meets and asks, whose it is, and until when it would wait."""

    attempt: str
    limits: tuple[Limit, ...]
    asked: Demand
    scopes: Scopes
    model: str
    queued_s: float
    deadline_s: float


@dataclass(slots=True)
class Waiting:
    """A ticket in a lane; `wait` is what the core said last. It has left when `admitted` is done, however it ended."""

    ticket: Ticket
    order: int
    wait: Wait
    admitted: asyncio.Future[None]

    def __lt__(self, other: "Waiting") -> bool:
        return self.order < other.order


class _Lane:
    """The calls waiting for one scope and pool of models, first come first. Those that left are dropped lazily."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heap: list[Waiting] = []
        self.nudged = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None

    def head(self) -> Waiting | None:
        """Give the first that still waits; amortised O(log n)."""
        while self.heap and self.heap[0].admitted.done():
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None

    def ahead_of(self, waiting: Waiting) -> int:
        """Count those that go before a waiting call; O(n)."""
        return sum(1 for other in self.heap if other.order < waiting.order and not other.admitted.done())

    def leave(self, waiting: Waiting) -> None:
        """Give up a place, to wait in another lane; O(n)."""
        self.heap.remove(waiting)
        heapq.heapify(self.heap)

    def enter(self, waiting: Waiting) -> None:
        """Take a place by order of arrival."""
        heapq.heappush(self.heap, waiting)
        if len(self.heap) > 2 * MOST_WAITING:  # mostly those that left: the lane is bounded by what lives
            self.heap = [entry for entry in self.heap if not entry.admitted.done()]
            heapq.heapify(self.heap)


class Admission:
    """The lanes of one process over a level store that other processes may share."""

    def __init__(
        self, store: LevelStore, reservations: Reservations, clock: Clock, *, most_waiting: int = MOST_WAITING
    ) -> None:
        """Start with empty lanes."""
        self._store = store
        self._reservations = reservations
        self._clock = clock
        self._most_waiting = most_waiting
        self._lanes: dict[str, _Lane] = {}
        self._order = 0
        self._waiting = 0
        self._draining = False
        self._listener: asyncio.Task[None] | None = None
        self._giving_back: set[asyncio.Task[bool]] = set()

    async def admit(self, ticket: Ticket) -> None:
        """Return when the attempt may go and what it asked is held; the caller has to settle it.

        Raises:
            DeadlineError: it cannot go before its deadline; told as soon as that is certain.
            BudgetError: it can never go.
            UnpricedError: a limit on money meets a model without a price.
            LimitError: too many calls wait already.
            ShuttingDownError: the process is draining.
        """
        if self._draining:
            raise ShuttingDownError("Headgate is shutting down and admits no new call; try again in a moment")
        self._order += 1
        order = self._order
        wait = self._wait_behind(ticket)
        if wait is None:
            outcome = await self._take(ticket)
            if isinstance(outcome, Admitted):
                return
            if isinstance(outcome, Refused):
                raise _refusal(outcome, ticket)
            self._check_deadline(ticket, outcome)
            wait = outcome
        await self._wait(ticket, order, wait)

    async def settle(
        self,
        attempt: str,
        limits: Sequence[Limit],
        actual: Amounts,
        dimensions: Collection[Dimension] | None = None,
    ) -> bool:
        """Replace what an attempt holds by what it used, and let the lanes look; False if it was settled before."""
        settled = await self._reservations.settle(attempt, limits, actual, dimensions)
        self.nudge(limits)
        return settled

    def nudge(self, limits: Sequence[Limit] | None = None) -> None:
        """Let the heads of the lanes of these limits (or of all) try again: something may have become free."""
        if not self._lanes:
            return
        names = self._lanes.keys() if limits is None else {lane_of(limit) for limit in limits}
        for name in names:
            if name in self._lanes:
                self._lanes[name].nudged.set()

    def waiting(self) -> list[Waiting]:
        """Give all that wait, lane by lane, first to go first."""
        return [
            waiting for lane in self._lanes.values() for waiting in sorted(lane.heap) if not waiting.admitted.done()
        ]

    async def drain(self) -> None:
        """Admit no new call, and refuse those that wait."""
        self._draining = True
        for waiting in self.waiting():
            _fail(waiting, ShuttingDownError("Headgate is shutting down; the call was not sent; try again in a moment"))
        self.nudge()
        # A pump ends by itself once nobody waits; cancelling one could lose a hold that was just taken.
        pumps = [lane.pump for lane in self._lanes.values() if lane.pump is not None]
        await asyncio.gather(*pumps, return_exceptions=True)
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await asyncio.gather(*self._giving_back, return_exceptions=True)

    async def _take(self, ticket: Ticket) -> Admitted | Wait | Refused:
        try:
            return await self._reservations.take(ticket.attempt, ticket.limits, ticket.asked)
        except asyncio.CancelledError:
            # The store keeps what was asked of it even if nobody waits for the answer any more.
            self._give_back(ticket)
            raise

    def _give_back(self, ticket: Ticket) -> None:
        task = asyncio.create_task(self.settle(ticket.attempt, ticket.limits, NOTHING), name=f"back {ticket.attempt}")
        self._giving_back.add(task)
        task.add_done_callback(self._given_back)

    def _given_back(self, task: asyncio.Task[bool]) -> None:
        self._giving_back.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a hold stays until its lease ends: %s", error)

    def _wait_behind(self, ticket: Ticket) -> Wait | None:
        for limit in ticket.limits:
            lane = self._lanes.get(lane_of(limit))
            head = lane.head() if lane is not None else None
            if head is not None:
                return Wait(head.wait.until_s, self._clock.now_s(), head.wait.limit)
        return None

    async def _wait(self, ticket: Ticket, order: int, wait: Wait) -> None:
        if self._waiting >= self._most_waiting:
            raise LimitError(
                f"{self._waiting} calls wait already, the most that one process keeps; send fewer at once",
                limit=wait.limit.name,
                retry_after_s=1.0,
            )
        loop = asyncio.get_running_loop()
        waiting = Waiting(ticket, order, wait, loop.create_future())
        self._enter(lane_of(wait.limit), waiting)
        self._waiting += 1
        timer = loop.call_later(max(0.0, ticket.deadline_s - self._clock.now_s()), self._too_late, waiting)
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            # Admitted in the same moment as it was cancelled: give back what it will never use.
            if not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self._give_back(ticket)
            raise
        finally:
            timer.cancel()
            self._waiting -= 1
            self.nudge(ticket.limits)

    def _enter(self, name: str, waiting: Waiting) -> None:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name)
            lane.pump = asyncio.create_task(self._pump(lane), name=f"lane {name}")
        lane.enter(waiting)
        if lane.head() is waiting:
            lane.nudged.set()
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="lanes of other processes")

    async def _pump(self, lane: _Lane) -> None:
        """Try the lane's head until nobody waits."""
        try:
            while (head := lane.head()) is not None:
                await self._serve(lane, head)
        finally:
            # Whatever ended it, nobody must be left in a lane that nobody serves.
            for waiting in lane.heap:
                _fail(waiting, ShuttingDownError("the lane was closed; the call was not sent; try again in a moment"))
            del self._lanes[lane.name]

    async def _serve(self, lane: _Lane, head: Waiting) -> None:
        """Try a lane's head, and wait until it is worth another try."""
        lane.nudged.clear()
        wait = await self._try(head)
        if wait is None:
            return
        if lane_of(wait.limit) != lane.name:
            lane.leave(head)
            self._enter(lane_of(wait.limit), head)
            return
        delay_s = min(LONGEST_TIMER_S, max(0.0, wait.until_s - self._clock.now_s()))
        timer = asyncio.get_running_loop().call_later(delay_s, lane.nudged.set)
        await lane.nudged.wait()
        timer.cancel()

    async def _try(self, head: Waiting) -> Wait | None:
        """Try to admit a lane's head; None when it has left the lane, else how long it still waits."""
        ticket = head.ticket
        older = self._older(head)
        if older is not None:
            head.wait = Wait(older.wait.until_s, self._clock.now_s(), older.wait.limit)
            return head.wait
        try:
            outcome = await self._reservations.take(ticket.attempt, ticket.limits, ticket.asked)
        except StoreError as broken:
            _fail(head, broken)
            return None
        if isinstance(outcome, Admitted):
            if head.admitted.done():  # it gave up while it was tried
                self._give_back(ticket)
            else:
                head.admitted.set_result(None)
            return None
        if isinstance(outcome, Refused):
            _fail(head, _refusal(outcome, ticket))
            return None
        head.wait = outcome
        if head.admitted.done():
            return None
        try:
            self._check_deadline(ticket, outcome)
        except DeadlineError as too_late:
            _fail(head, too_late)
            return None
        return outcome

    def _older(self, head: Waiting) -> Waiting | None:
        """Give the first of another lane that came before this lane's head and waits for a limit that it meets too."""
        for limit in head.ticket.limits:
            lane = self._lanes.get(lane_of(limit))
            first = lane.head() if lane is not None else None
            if first is not None and first.order < head.order:
                return first
        return None

    def _too_late(self, waiting: Waiting) -> None:
        lane = self._lanes.get(lane_of(waiting.wait.limit))
        ahead = lane.ahead_of(waiting) if lane is not None else 0
        first = lane.head() if lane is not None else None
        wait = waiting.wait if first is None else first.wait
        _fail(waiting, _deadline_error(waiting.ticket, wait, self._clock.now_s(), ahead))

    def _check_deadline(self, ticket: Ticket, wait: Wait) -> None:
        if wait.earliest_s > ticket.deadline_s:
            raise _deadline_error(ticket, wait, self._clock.now_s())

    async def _listen(self) -> None:
        """Let the lanes look again when another process has changed a level, while there are lanes."""
        while self._lanes:
            await self._store.wait_changed()
            self.nudge()


def _fail(waiting: Waiting, error: Exception) -> None:
    if not waiting.admitted.done():
        waiting.admitted.set_exception(error)


def _deadline_error(ticket: Ticket, wait: Wait, now_s: float, ahead: int = 0) -> DeadlineError:
    waited_s = now_s - ticket.queued_s
    allowed_s = ticket.deadline_s - ticket.queued_s
    if math.isinf(wait.until_s):
        retry_after_s, when = max(1.0, wait.earliest_s - now_s), "when calls on their way settle"
    else:
        retry_after_s = max(0.0, wait.until_s - now_s)
        when = f"in {retry_after_s:.3f} s at the latest"
    if ahead:
        # How long those before it take is not known: each of them needs the limit that binds too.
        retry_after_s = max(1.0, retry_after_s)
        when = f"after {ahead} others that came before it, and not before {retry_after_s:.3f} s"
    return DeadlineError(
        f"limit reached: {describe(wait.limit)}; the call waited {waited_s:.3f} s of the {allowed_s:.3f} s it may, "
        f"and would be admitted {when}",
        limit=wait.limit.name,
        retry_after_s=retry_after_s,
    )


def _refusal(refused: Refused, ticket: Ticket) -> BudgetError | UnpricedError:
    limit = refused.limit
    if refused.asked is None:
        return UnpricedError(
            f"no price is known for model {ticket.model!r}, so it cannot be held to {describe(limit)}; "
            "give it one with [[price]] in the configuration"
        )
    asked, free = amount_in_words(limit.dimension, refused.asked), amount_in_words(limit.dimension, refused.free)
    message = (
        f"limit reached: {describe(limit)}; the call may use {asked}, and at most {free} can be had; "
        "ask for less (max_tokens, a shorter prompt) or raise the limit"
    )
    return BudgetError(message, limit=limit.name, retry_after_s=None)


def describe(limit: Limit) -> str:
    """Name a limit for people: how much of what, over what time, and where."""
    models = f" ({limit.models})" if limit.models else ""
    match limit:
        case Rate():
            over = "per minute" if limit.period_s == MINUTE_S else f"per {limit.period_s} s"
        case Rolling():
            over = f"in any {limit.period_s} s"
        case Window():
            over = "in all" if limit.span.name == "lifetime" else f"per {limit.span.name}"
        case Gauge():
            over = "at once"
    return f"{amount_in_words(limit.dimension, limit.amount)} {over} for {limit.scope}{models}"


def amount_in_words(dimension: Dimension, amount: int) -> str:
    """Write an amount of a dimension: $0.001, 50,000 output tokens."""
    if dimension != "micro_usd":
        return f"{amount:,} {dimension.replace('_', ' ')}"
    digits = f"{amount / MICRO_USD_PER_USD:,.6f}".rstrip("0")
    whole, _, cents = digits.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"
