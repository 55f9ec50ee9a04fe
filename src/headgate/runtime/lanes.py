"""Lanes: the calls of one process that wait for one scarce thing, and what each of them stands for in their order.

One rule: a lane knows who goes next, not whether it may: trying is `admission`'s. The order is the core's (`ordering`);
here costs are measured in the lane's own limits, and shares are charged when a call is admitted, waiting or not.

Who has a planned reservation stands in its lane as everybody does, and beside that in a line of the reservation's.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from headgate.core.amounts import Amounts, Demand
from headgate.core.choosing import POLICIES
from headgate.core.levels import Level
from headgate.core.limits import Gauge, Limit, Rate
from headgate.core.ordering import Line
from headgate.core.quota import Wait, wait_under
from headgate.core.scheduling import ORDINARY, Scheduling, Standing
from headgate.core.scopes import Scopes, lane_of
from headgate.core.shares import Waiter
from headgate.runtime.alike import Alike, Asks
from headgate.runtime.hold_times import HoldTimes
from headgate.runtime.records import made_quickly
from headgate.runtime.turns import Turns

GUESSED_HOLD_S = 10.0
"""How long calls are taken to hold a slot until some have ended: for their order and between accounts, which need some
number of seconds, never for what is told or ruled."""

ASK_AGAIN_S = 5.0
"""A call that is tried so long after it was estimated is estimated anew: calls that ended meanwhile taught more."""


Again = Callable[[float, Sequence[Limit]], tuple[Demand, Standing]]
"""An instant and the limits that a call meets in, what it asks of them by then and how it stands out."""


@made_quickly
@dataclass(frozen=True, slots=True)
class Ticket:
    """An attempt that wants to go: what it meets and asks, whose it is, and until when it would wait.

    `again` estimates it anew: what it asks by then, and how it stands. `queued_s` and `order` are when its call came,
    and as which (None: it comes now): an attempt after one that failed does not go to the end of its lane.
    """

    attempt: str
    limits: tuple[Limit, ...]
    asked: Demand
    scopes: Scopes
    model: str
    queued_s: float
    deadline_s: float
    standing: Standing = ORDINARY
    again: Again | None = field(default=None, repr=False, compare=False)
    order: int | None = None
    route: "Route | None" = field(default=None, repr=False, compare=False)

    def asking(self, asked: Demand) -> "Ticket":
        """Give it with what it asks by now."""
        return self if asked is self.asked else replace(self, asked=asked)

    def asked_at(self, now_s: float) -> Demand:
        """Give what it asks for by now: more of what is scarce once its prompt cache has died while it waited."""
        warm_until_s, cold = self.standing.warm_until_s, self.standing.cold
        if cold is None or warm_until_s is None or now_s < warm_until_s:
            return self.asked
        return self.asked._replace(expected=cold)


class Elsewhere(NamedTuple):
    """Where a waiting call should be tried instead: a ticket of the same attempt, or None where it stays for now.

    Asking again is worth it at `again_s` (infinite: only when something changes). With `leaves_room` another account
    has room that this call passes up, so those behind it are worth asking.
    """

    ticket: Ticket | None
    again_s: float
    leaves_room: bool = False


class Route(Protocol):
    """The ways of an attempt that several accounts could serve."""

    @property
    def scopes(self) -> frozenset[str]:
        """The accounts that it may go to, as scopes: when one of them gets room, it is worth asking."""
        ...

    async def elsewhere(
        self, here: Ticket, wait: Wait, ahead_s: float, told: tuple[str | None, Wait] | None
    ) -> Elsewhere:
        """Say whether it should go elsewhere: here its lane's first has to `wait`, and `ahead_s` goes before it then.

        `told` is what the store has just said of an account.

        Raises:
            StoreError: the store cannot be read.
        """
        ...

    def took(self, there: Ticket) -> None:
        """Hear that it went there, to wait or for good."""
        ...


class Queued(NamedTuple):
    """Calls that wait for a limit: in how many seconds the first goes, and the seconds of the limit that all take."""

    first_s: float
    cost_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket in a lane; `wait` is what the core said last. It has left when `admitted` is done, however it ended.

    `plans` names the reservations that it may go by, now or later.
    """

    ticket: Ticket
    order: int
    wait: Wait
    admitted: asyncio.Future[Demand]
    lane: "Lane | None" = None
    place: Waiter | None = None
    plans: frozenset[str] = frozenset()
    moves: int = 0
    estimated_s: float = -math.inf
    kind: tuple[str, ...] = ()
    again_s: float = math.inf
    """When time alone could let it go before the head that it waits behind, as it was tried last."""

    @property
    def asks_again_s(self) -> float:
        """From when on it is estimated anew."""
        if self.ticket.again is None:
            return math.inf
        return max(self.estimated_s, self.ticket.queued_s) + ASK_AGAIN_S

    def asked_at(self, now_s: float) -> Demand:
        """Give what it asks for by now, estimated anew if that was long ago."""
        ticket = self.ticket
        if ticket.again is not None and now_s >= self.asks_again_s:
            asked, standing = ticket.again(now_s, ticket.limits)
            self.ticket = ticket = replace(ticket, asked=asked, standing=standing)
            self.estimated_s = now_s
        return ticket.asked_at(now_s)


PlansOf = Callable[[Ticket], frozenset[str]]
"""The reservations that a call has, by their ids."""


class Lane:
    """The calls that wait for the limits of one scope and class of models."""

    def __init__(
        self,
        limit: Limit,
        scheduling: Scheduling,
        held: HoldTimes,
        plans_of: PlansOf = lambda _ticket: frozenset(),
        plans_serial: int = 0,
    ) -> None:
        """Start empty, for limits of the scope and class of models that `limit` has; `held` learns of its slots."""
        self.name = lane_of(limit)
        self.scope = limit.scope
        self.models = limit.models
        self.nudged = asyncio.Event()
        self.turns: Turns[Waiting] = Turns()
        self.kinds: dict[tuple[str, ...], Alike[Waiting]] = {}
        """Its calls by the limits of which they ask something."""
        self._tried: Waiting | None = None
        self._opens_s = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.pump: asyncio.Task[None] | None = None
        self.line = Line(POLICIES[scheduling.policy_of(limit.scope, limit.models or "*")]())
        self.waiting_cost_s = 0.0
        self.elsewhere: Counter[str] = Counter()
        """How many of its calls may go to an account, by its scope."""
        self._scheduling = scheduling
        self._held = held
        self._has_rate = False
        self._slots: int | None = None
        self._waiting: dict[int, Waiting] = {}
        self._plans_of = plans_of
        self._plans_serial = plans_serial
        self._of_plans: dict[str, Line] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self._waiting.values()))

    @property
    def policy(self) -> str:
        """The name of the policy in force."""
        return self.line.policy.name

    @property
    def plans(self) -> list[str]:
        """The reservations that somebody here has."""
        return list(self._of_plans)

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Go by another configuration from now on; what its sharers have had stays counted."""
        self._scheduling = scheduling
        policy = scheduling.policy_of(self.scope, self.models or "*")
        if policy != self.policy:
            for line in (self.line, *self._of_plans.values()):
                line.set_policy(POLICIES[policy]())

    def enter(self, waiting: Waiting) -> None:
        """Take a place."""
        waiting.lane = self
        waiting.place = self.place_of(waiting.ticket, waiting.order)
        self._waiting[waiting.order] = waiting
        self.line.add(waiting.place)
        self.waiting_cost_s += waiting.place.cost_s
        if waiting.ticket.route is not None:
            self.elsewhere.update(waiting.ticket.route.scopes)
        self._join_plans(waiting)
        for limit in waiting.ticket.limits:
            if limit.scope == self.scope and limit.models == self.models:
                self._has_rate = self._has_rate or isinstance(limit, Rate)
                self._slots = limit.amount if isinstance(limit, Gauge) else self._slots
        waiting.kind = _kind(waiting.ticket)
        self.kinds.setdefault(waiting.kind, Alike()).add(waiting, asks_of(waiting.ticket))
        self.turns.comes(waiting)

    def nudge(self) -> None:
        """Have the head tried, and those behind it that can pass it: something may have become free."""
        self.turns.changed()
        self.nudged.set()

    def may_overtake(self) -> Iterator[Waiting]:
        """Give those that may go before all others that wait: nobody that is alike is before them."""
        for alike in self.kinds.values():
            yield from (waiting for waiting, _ in alike.first().values())

    def alike(self, ticket: Ticket) -> Alike[Waiting] | None:
        """Give those that wait here and are like a call; None: none is."""
        return self.kinds.get(_kind(ticket))

    def leave(self, waiting: Waiting) -> bool:
        """Give up a place; False if it was left already, which changes nothing."""
        if self._waiting.pop(waiting.order, None) is None or waiting.place is None:
            return False
        self.line.remove(waiting.place)
        self._leave_plans(waiting)
        self._gone(waiting, waiting.place)
        return True

    async def wait_nudged(self, head: Waiting, within_s: float, opens_s: float) -> None:
        """Wait until it is worth trying again: after so many seconds, or when nudged.

        Before `opens_s` no hold that comes back lets this head go (`came_back`).
        """
        self._tried, self._opens_s = head, opens_s
        self._timer = asyncio.get_running_loop().call_later(within_s, self.nudged.set)
        await self.nudged.wait()
        self._tried, self._opens_s = None, -math.inf
        self._timer.cancel()

    def came_back(self, levels: Mapping[str, Level], now_s: float) -> None:
        """Let the head be tried because a hold came back, but not before that can help it, by the `levels` it left.

        Most tries of a lane whose limit is spent were such: they found what the one before had said.
        """
        self.turns.changed()
        if self.nudged.is_set():
            return
        head, opens_s = self._tried, self._opens_s
        if head is None or self._timer is None or self.head(now_s) is not head:
            self.nudged.set()
            return
        if -math.inf < opens_s <= now_s < head.asks_again_s and (level := levels.get(head.wait.limit.name)) is not None:
            # Where what it waits for is too scarce still, it waits on, whatever else it meets.
            wait = wait_under(head.wait.limit, level, head.ticket.asked_at(now_s), now_s)
            if wait is not None and wait.earliest_s <= head.ticket.deadline_s:  # else it is told that it is too late
                head.wait, opens_s = wait, wait.until_s
        if opens_s <= now_s:
            self.nudged.set()
            return
        loop = asyncio.get_running_loop()
        opens_in_s = opens_s - now_s
        if self._timer.when() > loop.time() + opens_in_s:
            self._timer.cancel()
            self._timer = loop.call_later(opens_in_s, self.nudged.set)

    def waiting_s(self, unknown_hold_s: float | None) -> float | None:
        """Give the seconds of the lane's scarcest rate or slots that those who wait take; None: nobody knows.

        Calls hold a slot as long as others did; where none has ended yet, for `unknown_hold_s`. What waits for a window
        waits for its end, however many they are.
        """
        by_rates_s = self.waiting_cost_s if self._has_rate else None
        hold_s = self._held.mean_s(self.name)
        hold_s = unknown_hold_s if hold_s is None else hold_s
        if self._slots is None or hold_s is None:
            return by_rates_s
        return max(by_rates_s or 0.0, len(self._waiting) * hold_s / self._slots)

    def head(self, now_s: float) -> Waiting | None:
        """Give the call that goes next; those that gave up leave on the way."""
        while (place := self.line.head(now_s)) is not None:
            waiting = self._waiting[place.order]
            if not waiting.admitted.done():
                return waiting
            self.leave(waiting)
            self.nudge()  # whoever serves the lane waits for that one still, and need not be who asks
        return None

    def would_lead(self, waiting: Waiting, now_s: float) -> bool:
        """Whether a call that waits in another lane would go next if it waited here."""
        return self.line.would_lead(self.place_of(waiting.ticket, waiting.order), now_s)

    def behind(self, now_s: float, most: int) -> list[Waiting]:
        """Give the first `most` behind the head, in order."""
        places = self.line.next_few(now_s, most)
        found = (self._waiting[place.order] for place in places)
        return [waiting for waiting in found if not waiting.admitted.done()]

    def admitted(self, ticket: Ticket, order: int, now_s: float) -> tuple[Waiter, float]:
        """Charge an admission, of a call that waits here or of one that went at once; give what `settled` needs."""
        waiting = self._waiting.pop(order, None)
        if waiting is None or waiting.place is None:
            place = self.place_of(ticket, order)
        else:
            place = waiting.place
            self._gone(waiting, place)
            self._leave_plans(waiting, now_s)
        return place, self.line.admitted(place, now_s)

    def look_at_plans(self, serial: int) -> None:
        """Ask anew who has a reservation, if something was reserved or cancelled since: the serial is another one."""
        if serial != self._plans_serial:
            self._plans_serial = serial
            self._of_plans.clear()
            for waiting in self:
                self._join_plans(waiting)

    def holders(self, plan_id: str, now_s: float, most: int) -> list[Waiting]:
        """Give the first of those that have a reservation, in the order of the lane's policy."""
        line = self._of_plans.get(plan_id)
        first = line.head(now_s) if line is not None else None
        if line is None or first is None:
            return []
        places = (first, *line.next_few(now_s, most - 1))
        found = (self._waiting[place.order] for place in places)
        return [waiting for waiting in found if not waiting.admitted.done()]

    def place_of(self, ticket: Ticket, order: int) -> Waiter:
        """Say what a call stands for in this lane."""
        standing, scopes = ticket.standing, ticket.scopes
        sharer, weight = self._scheduling.sharer_of(scopes)
        cost_s = self.cost_s(ticket.limits, ticket.asked.expected)
        return Waiter(
            order,
            ticket.queued_s,
            cost_s,
            standing.priority,
            sharer,
            weight,
            scopes.agent or scopes.session or sharer,
            scopes.session or scopes.agent,
            None if standing.program_cost is None else self.cost_s(ticket.limits, standing.program_cost),
            standing.warm_until_s,
            cost_s if standing.cold is None else self.cost_s(ticket.limits, standing.cold),
            standing.interactive,
        )

    def cost_s(self, limits: Sequence[Limit], amounts: Amounts, held_s: float | None = None) -> float:
        """Give the seconds of this lane's scarcest rate that amounts take.

        If it has none, those of its slots, which are held for `held_s`, or as long as by others; of windows the share.
        """
        most_s = slots_s = share = 0.0
        for limit in limits:
            if limit.scope == self.scope and limit.models == self.models:
                units = amounts[limit.place] or 0
                if isinstance(limit, Rate):
                    most_s = max(most_s, units * limit.period_s / limit.amount)
                elif isinstance(limit, Gauge):
                    hold_s = self._held.mean_s(self.name) if held_s is None else held_s
                    slots_s = units * (GUESSED_HOLD_S if hold_s is None else hold_s) / limit.amount
                else:
                    share = max(share, units / limit.amount)
        return most_s or slots_s or share

    def _join_plans(self, waiting: Waiting) -> None:
        waiting.plans = self._plans_of(waiting.ticket)
        assert waiting.place is not None
        for plan_id in waiting.plans:
            if plan_id not in self._of_plans:
                self._of_plans[plan_id] = Line(POLICIES[self.policy]())
            self._of_plans[plan_id].add(waiting.place)

    def _leave_plans(self, waiting: Waiting, admitted_s: float | None = None) -> None:
        assert waiting.place is not None
        for plan_id in waiting.plans:
            line = self._of_plans.get(plan_id)
            if line is None:
                continue
            if admitted_s is None:
                line.remove(waiting.place)
            else:
                line.admitted(waiting.place, admitted_s)
            if not len(line):
                del self._of_plans[plan_id]

    def _gone(self, waiting: Waiting, place: Waiter) -> None:
        self.waiting_cost_s = self.waiting_cost_s - place.cost_s if self._waiting else 0.0
        alike = self.kinds[waiting.kind]
        if alike.remove(waiting):
            self.turns.changed()  # others are first of their kind now, and were not tried yet
        self.turns.leaves(waiting)
        if not len(alike):
            del self.kinds[waiting.kind]
        if waiting.ticket.route is not None:
            self.elsewhere -= Counter(waiting.ticket.route.scopes)  # drops what is 0


def asks_of(ticket: Ticket) -> Asks:
    """Give what a call asks of each limit of which it asks something."""
    return tuple(units for limit in ticket.limits if (units := _units(limit, ticket.asked)))


def _kind(ticket: Ticket) -> tuple[str, ...]:
    return tuple(limit.name for limit in ticket.limits if _units(limit, ticket.asked))


def _units(limit: Limit, asked: Demand) -> int | None:
    return (asked.expected if isinstance(limit, Rate) else asked.at_most)[limit.place]
