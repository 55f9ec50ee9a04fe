"""The lanes of one process: which there are, who waits first in each, and what their sharers were charged.

One rule: it moves nobody and tries nothing: who goes when is `admission`'s. Lanes that nobody waits in are kept for
what their sharers have had, up to a bound.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from headgate.core.amounts import Amounts
from headgate.core.levels import Level
from headgate.core.limits import Gauge, Limit
from headgate.core.quota import Wait
from headgate.core.scheduling import Scheduling
from headgate.core.shares import Waiter
from headgate.ports import Clock
from headgate.runtime.hold_times import HoldTimes
from headgate.runtime.lanes import GUESSED_HOLD_S, Lane, PlansOf, Queued, Ticket, Waiting

MOST_LANES = 1_000
"""Lanes that are remembered with what their sharers have had; those that nobody waits in leave first."""

_TURNS = "round_robin"


class LaneTable:
    """All lanes, by name."""

    def __init__(self, clock: Clock, scheduling: Scheduling, plans_of: PlansOf, serial: Callable[[], int]) -> None:
        """Start with none; `plans_of` and `serial` are of what is reserved, as `lanes.Lane` has it."""
        self._clock = clock
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._held = HoldTimes()
        self._charged: dict[str, list[tuple[Lane, Waiter, float]]] = {}
        self._plans_of = plans_of
        self._serial = serial
        self.scheduling = scheduling
        self._in_turns = _has_turns(scheduling)

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def get(self, name: str) -> Lane | None:
        """Give a lane, if somebody ever waited in it."""
        return self._lanes.get(name)

    def enter(self, waiting: Waiting) -> Lane:
        """Put a call into the lane of the limit that it waits for."""
        name = waiting.wait.limit.lane
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._open(waiting.wait.limit)
        self._lanes.move_to_end(name)
        lane.enter(waiting)
        return lane

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Order all lanes by another configuration from now on."""
        self.scheduling = scheduling
        self._in_turns = _has_turns(scheduling)
        for lane in self:
            lane.set_scheduling(scheduling)

    def nudge(self, names: Iterable[str] | None, came_back: Mapping[str, Level] | None = None) -> None:
        """Let the heads of these lanes (or of all) try again.

        Where only a hold `came_back`, those that it can help, by the levels that it left.
        """
        now_s = 0.0 if came_back is None else self._clock.now_s()
        for name in self._lanes if names is None else names:
            if (lane := self._lanes.get(name)) is None:
                continue
            if came_back is None:
                lane.nudge()
            else:
                lane.came_back(came_back, now_s)

    def waiting(self) -> list[Waiting]:
        """Give all that wait, lane by lane, first to go first."""
        now_s = self._clock.now_s()
        found: list[Waiting] = []
        for lane in self:
            head = lane.head(now_s)
            if head is not None:
                found += [head, *lane.behind(now_s, len(lane))]
        return found

    def reason(self, waiting: Waiting) -> str:
        """Say in words what places a waiting call where it is."""
        if (lane := waiting.lane) is None or (place := waiting.place) is None or place not in lane.line:
            return "it has left its lane"
        return lane.line.reason(place, self._clock.now_s())

    def ahead(self, ticket: Ticket, *, than: Waiting | None = None) -> list[Waiting]:
        """Give the first of each lane that a call would wait in.

        Of one that waits (`than`) those of other lanes that came before it and would go before it there as well: one
        that their lane's policy lets it overtake would let it back to the lane it came from, and so on for ever.
        """
        now_s = self._clock.now_s()
        found = []
        for lane in self._met(ticket.limits):
            head = lane.head(now_s) if than is None or lane is not than.lane else None
            if head is None:
                continue
            if than is None or (head.order < than.order and not lane.would_lead(than, now_s)):
                found.append(head)
        return found

    def queued(self, limits: Sequence[Limit]) -> Queued:
        """Say what waits for any of these limits; for how long slots are held is a guess until some call has ended."""
        now_s = self._clock.now_s()
        met = [lane for lane in self._met(limits) if len(lane)]
        heads = [head for lane in met if (head := lane.head(now_s)) is not None]
        first_s = max((head.wait.earliest_s - now_s for head in heads), default=0.0)
        return Queued(max(0.0, first_s), max((lane.waiting_s(GUESSED_HOLD_S) or 0.0 for lane in met), default=0.0))

    def guessed(self, wait: Wait, now_s: float) -> Wait:
        """Give a wait of which it is guessed, where slots bind, when one of those ends that hold them."""
        next_s = self._next_s(wait.limit, GUESSED_HOLD_S) or 0.0
        return wait._replace(earliest_s=min(wait.until_s, max(wait.earliest_s, now_s + next_s))) if next_s else wait

    def known_waiting_s(self, limits: Sequence[Limit], binding: Limit | None = None) -> float | None:
        """Give the seconds of their scarcest limits that calls take which wait for any of these; None: nobody knows.

        Where slots are `binding`, with the time until one of those that hold them ends.
        """
        waits = [lane.waiting_s(None) for lane in self._met(limits) if len(lane)]
        next_s = 0.0 if binding is None else self._next_s(binding, None)
        wait_s = max((each for each in waits if each is not None), default=0.0) + (next_s or 0.0)
        return None if not wait_s and (None in waits or next_s is None) else wait_s

    def _next_s(self, limit: Limit, unknown_hold_s: float | None) -> float | None:
        """Give how long it takes until one of those ends that hold slots, 0 where a limit is none of slots."""
        if type(limit) is not Gauge:
            return 0.0
        hold_s = self._held.mean_s(limit.lane)
        hold_s = unknown_hold_s if hold_s is None else hold_s
        return None if hold_s is None else hold_s / limit.amount

    def charge(self, ticket: Ticket, order: int) -> None:
        """Count an admission in each lane that the call meets and that keeps shares.

        Where calls go in turns that is every lane: who goes at once before anybody waits has had its turn.
        """
        now_s = self._clock.now_s()
        if self._in_turns:
            for limit in ticket.limits:
                policy = self.scheduling.policy_of(limit.scope, limit.models or "*")
                if policy == _TURNS and limit.lane not in self._lanes:
                    self._open(limit)
        self._held.began(ticket.attempt, ticket.limits, now_s)
        if self._lanes and (lanes := self._met(ticket.limits)):
            self._charged[ticket.attempt] = [(lane, *lane.admitted(ticket, order, now_s)) for lane in lanes]

    def settled(self, attempt: str, limits: Sequence[Limit], actual: Amounts) -> None:
        """Let the shares follow what an attempt really used."""
        was_sent = actual.requests > 0
        held_s = self._held.ended(attempt, limits, self._clock.now_s(), counts=was_sent)
        if attempt in self._charged:
            used = actual._replace(slots=int(was_sent))
            for lane, place, cost_s in self._charged.pop(attempt):
                lane.line.settled(place, cost_s, lane.cost_s(limits, used, held_s))

    def _open(self, limit: Limit) -> Lane:
        lane = self._lanes[limit.lane] = Lane(limit, self.scheduling, self._held, self._plans_of, self._serial())
        if len(self._lanes) > MOST_LANES:
            for each in [each for each in self if each.pump is None and each is not lane][: MOST_LANES // 10]:
                del self._lanes[each.name]
        return lane

    def _met(self, limits: Sequence[Limit]) -> list[Lane]:
        lanes = self._lanes
        if not lanes:
            return []
        found: dict[str, Lane] = {}
        for limit in limits:
            name = limit.lane
            if name in lanes and name not in found:
                found[name] = lanes[name]
        return list(found.values())


def _has_turns(scheduling: Scheduling) -> bool:
    return _TURNS in (scheduling.policy, *(rule.policy for rule in scheduling.lanes))
