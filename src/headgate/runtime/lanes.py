"""Lanes: the calls of one process that wait for one scarce thing, and what each of them stands for in their order.

One rule: a lane knows who goes next, not whether it may: trying is `admission`'s. The order is the core's (`ordering`);
here costs are measured in the lane's own limits, and shares are charged when a call is admitted, waiting or not.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headgate.core.amounts import Amounts, Demand
from headgate.core.choosing import POLICIES
from headgate.core.limits import Limit, Rate
from headgate.core.ordering import Line
from headgate.core.quota import Wait
from headgate.core.scheduling import ORDINARY, Scheduling, Standing
from headgate.core.scopes import Scopes, lane_of
from headgate.core.shares import Waiter


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
    standing: Standing = ORDINARY

    def asked_at(self, now_s: float) -> Demand:
        """Give what it asks for by now: more of what is scarce once its prompt cache has died while it waited."""
        warm_until_s, cold = self.standing.warm_until_s, self.standing.cold
        if cold is None or warm_until_s is None or now_s < warm_until_s:
            return self.asked
        return self.asked._replace(expected=cold)


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket in a lane; `wait` is what the core said last. It has left when `admitted` is done, however it ended."""

    ticket: Ticket
    order: int
    wait: Wait
    admitted: asyncio.Future[None]
    lane: "Lane | None" = None
    place: Waiter | None = None


class Lane:
    """The calls that wait for the limits of one scope and class of models."""

    def __init__(self, limit: Limit, scheduling: Scheduling) -> None:
        """Start empty, for the limits that share a scope and a class of models with `limit`."""
        self.name = lane_of(limit)
        self.scope = limit.scope
        self.models = limit.models
        self.nudged = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None
        self.line = Line(POLICIES[scheduling.policy_of(limit.scope, limit.models or "*")]())
        self.uniform = True
        self.waiting_cost_s = 0.0
        self._scheduling = scheduling
        self._waiting: dict[int, Waiting] = {}
        self._shape: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(list(self._waiting.values()))

    @property
    def policy(self) -> str:
        """The name of the policy in force."""
        return self.line.policy.name

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Go by another configuration from now on; what its sharers have had stays counted."""
        self._scheduling = scheduling
        policy = scheduling.policy_of(self.scope, self.models or "*")
        if policy != self.policy:
            self.line.set_policy(POLICIES[policy]())

    def enter(self, waiting: Waiting) -> None:
        """Take a place."""
        waiting.lane = self
        waiting.place = self.place_of(waiting.ticket, waiting.order)
        self._waiting[waiting.order] = waiting
        self.line.add(waiting.place)
        self.waiting_cost_s += waiting.place.cost_s
        shape = tuple(limit.name for limit in waiting.ticket.limits if _units(limit, waiting.ticket.asked))
        if len(self._waiting) == 1:
            self._shape, self.uniform = shape, True
        elif shape != self._shape:
            self.uniform = False

    def leave(self, waiting: Waiting) -> None:
        """Give up a place; one that has left already changes nothing."""
        if self._waiting.pop(waiting.order, None) is not None and waiting.place is not None:
            self.line.remove(waiting.place)
            self._gone(waiting.place)

    def head(self, now_s: float) -> Waiting | None:
        """Give the call that goes next; those that gave up leave on the way."""
        while (place := self.line.head(now_s)) is not None:
            waiting = self._waiting[place.order]
            if not waiting.admitted.done():
                return waiting
            self.leave(waiting)
        return None

    def behind(self, now_s: float, most: int) -> list[Waiting]:
        """Give the first `most` behind the head, in order."""
        places = self.line.next_few(now_s, most)
        found = (self._waiting[place.order] for place in places)
        return [waiting for waiting in found if not waiting.admitted.done()]

    def admitted(self, ticket: Ticket, order: int, now_s: float) -> tuple[Waiter, float]:
        """Charge an admission, of a call that waits here or of one that went at once; give what `settled` needs."""
        waiting = self._waiting.pop(order, None)
        place = waiting.place if waiting is not None else None
        if place is None:
            place = self.place_of(ticket, order)
        else:
            self._gone(place)
        return place, self.line.admitted(place, now_s)

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

    def cost_s(self, limits: Sequence[Limit], amounts: Amounts) -> float:
        """Give the seconds of this lane's scarcest rate that amounts take; the share of its limits if it has none."""
        most_s = share = 0.0
        for limit in limits:
            if limit.scope == self.scope and limit.models == self.models:
                units = amounts[limit.place] or 0
                if isinstance(limit, Rate):
                    most_s = max(most_s, units * limit.period_s / limit.amount)
                else:
                    share = max(share, units / limit.amount)
        return most_s or share

    def _gone(self, place: Waiter) -> None:
        self.waiting_cost_s = self.waiting_cost_s - place.cost_s if self._waiting else 0.0


def _units(limit: Limit, asked: Demand) -> int | None:
    return (asked.expected if isinstance(limit, Rate) else asked.at_most)[limit.place]
