"""Policies: who goes next among the calls of one lane, each with the bound on waiting that it keeps.

One rule: a call's rank in its group never changes while it waits, and a group's key only when it is charged or its
first call changes; time counts through `queued_s` alone. So a heap serves, and no policy needs a clock. What stands
over all policies (interactive before batch, warm prompt caches) is the line's, in `ordering`.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

from headgate.core.shares import MOST_JOINING, Program, Shares, Waiter
from headgate.core.wording import seconds_text

MOST_PRIORITY = 10
"""Priorities beyond it, up or down, count as this much."""

SMALLEST_COST_S = 0.001
MOST_DOUBLINGS = 20
"""Costs are told apart from a millisecond of the limit to about 17 minutes of it."""


class Entry:
    """A call in the line: what it costs by now, and whether it still waits."""

    __slots__ = ("cost_s", "group", "waiter", "waits")

    def __init__(self, waiter: Waiter, cost_s: float) -> None:
        """Begin to wait."""
        self.waiter = waiter
        self.cost_s = cost_s
        self.waits = True
        self.group: Group | None = None

    def __lt__(self, _other: "Entry") -> bool:
        # Heaps meet two entries of one rank and order only when a call left and came back: one of them has left.
        return False


class Group:
    """The waiting calls that a policy takes for one, in its order. `heap[0]` always waits."""

    __slots__ = ("cost_s", "heap", "item", "name", "turn", "waiting")

    def __init__(self, name: Hashable, turn: int) -> None:
        """Start empty."""
        self.name = name
        self.turn = turn
        self.heap: list[tuple[float, int, Entry]] = []
        self.item: tuple[float, int, int, Group] | None = None
        self.waiting = 0
        self.cost_s = 0.0

    @property
    def first(self) -> Entry:
        """The call that goes first of the group."""
        return self.heap[0][2]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who goes next: the group with the lowest key, in it the call with the lowest rank; ties go by arrival.

    `bound` says in words how long a call can wait. With `most_lead_s`, nobody goes before a call who came more than
    that much later. `rank` places a call of a cost in its group, `key` a group among the others; without `group_of`
    all calls are one group. `cost_before_s` says what another group gets before a call that has so many others, of so
    much cost together, before it in its own group. `lives_on` says what it needs to be kept beside the calls.
    """

    name: str
    bound: str
    rank: Callable[[Waiter, float], float]
    reason: Callable[[Shares, Entry], str]
    group_of: Callable[[Waiter], Hashable] | None = None
    key: Callable[[Shares, Group], float] = lambda _shares, _group: 0.0
    cost_before_s: Callable[[Shares, Group, Group, float, int], float] = lambda _shares, _other, _mine, _s, _n: 0.0
    lives_on: Literal["calls", "turns", "shares", "programs"] = "calls"
    most_lead_s: float | None = None


def fifo() -> Policy:
    """First come, first served. Bound: nobody who comes later goes before a call."""
    return Policy(
        name="fifo",
        bound="nobody goes first who came later",
        rank=_arrival,
        reason=lambda _shares, _entry: "calls go in the order in which they came",
    )


def priority(point_s: float = 60.0) -> Policy:
    """Higher priority first; a point of it is worth `point_s` of waiting, up to MOST_PRIORITY points either way.

    Bound: nobody goes before a call who came more than 2 x MOST_PRIORITY x `point_s` after it.
    """
    most_lead_s = 2 * MOST_PRIORITY * point_s
    return Policy(
        name="priority",
        bound=f"nobody goes first who came more than {most_lead_s:g} s later",
        rank=lambda waiter, _cost_s: waiter.queued_s - point_s * _bounded(waiter.priority),
        reason=lambda _shares, entry: (
            f"its priority is {entry.waiter.priority}, and a point of it is worth {point_s:g} s of waiting"
        ),
        most_lead_s=most_lead_s,
    )


def shortest(halving_s: float = 20.0) -> Policy:
    """Cheapest first; half the cost is worth `halving_s` of waiting, so the scale of the costs does not matter.

    Bound: nobody goes before a call who came more than MOST_DOUBLINGS x `halving_s` after it.
    """
    most_lead_s = MOST_DOUBLINGS * halving_s
    return Policy(
        name="shortest",
        bound=f"nobody goes first who came more than {most_lead_s:g} s later",
        rank=lambda waiter, cost_s: waiter.queued_s + halving_s * _doublings(cost_s),
        reason=lambda _shares, entry: (
            f"it takes {seconds_text(entry.cost_s)} of the limit; what takes half as much goes before it, unless it "
            f"came more than {halving_s:g} s later"
        ),
        most_lead_s=most_lead_s,
    )


def round_robin() -> Policy:
    """The agents in turn, each agent's calls by arrival; an agent that comes takes the last place of the round.

    One that has had its turn in this round, also with a call that went at once, waits for the next. Bound: from the
    moment an agent's call is the first of its agent, every other agent goes once at most before it; of those that come
    later only the first MOST_JOINING of the round.
    """
    return Policy(
        name="round_robin",
        bound=(
            "every other agent goes once at most before it is this one's turn, and of those that come later the first "
            f"{MOST_JOINING} of the round"
        ),
        rank=_arrival,
        reason=lambda _shares, entry: (
            f"agents go in turn, who had theirs the longest ago first; it is {entry.waiter.agent}'s"
        ),
        group_of=lambda waiter: waiter.agent,
        key=lambda _shares, group: group.turn,
        cost_before_s=lambda _shares, other, mine, _ahead_s, ahead: (
            other.cost_s * min(1.0, (ahead + (other.turn < mine.turn)) / other.waiting)
        ),
        lives_on="turns",
    )


def fair() -> Policy:
    """Weighted virtual counters (VTC, Sheng et al., OSDI 2024) over the dominant share; a sharer's calls by arrival.

    Charged at admission with the estimate, corrected at settle; a sharer's place is what it will have had with its next
    call (virtual finish times, as in weighted fair queueing), so small calls do not wait for large ones. Bound: while
    two sharers have calls waiting, what each is served, divided by its weight, differs by two costliest calls at most,
    divided by theirs, and by RETURN_CALLS average ones where one of them has just come; and a sharer that is d above
    the floor, with its next call, goes within (d + RETURN_CALLS average calls) x 4 x the weights of those who wait,
    however many others come.
    """
    return Policy(
        name="fair",
        bound="what sharers with waiting calls are served differs from their weights by two calls at most",
        rank=_arrival,
        reason=lambda shares, entry: (
            f"{entry.waiter.sharer} has had {seconds_text(shares.served_s(entry.waiter.sharer) - shares.floor_s)} of "
            "the limit by its weight beyond the floor; who will have had least with its next call goes first"
        ),
        group_of=lambda waiter: waiter.sharer,
        key=_fair_finish_s,
        cost_before_s=_fairly_before_s,
        lives_on="shares",
    )


def program() -> Policy:
    """Whole programs by their virtual finish time, where a guess is known; by least attained service where none is.

    A program that came at virtual time v, has c left and asks for a call of cost k goes at v + sqrt(c x k): between
    its virtual finish (c, which keeps small calls of large programs waiting long) and that of the call alone (k, which
    forgets whose it is). What it has had counts for it, so one that runs goes before a new one of its size.
    Without a guess it is thought to need as much as it has had, past a guess half of that: tails of program sizes are
    heavy (arXiv 2502.13965, Autellix, orders by attained service for the same reason). Bound: nobody goes before a
    program who comes after virtual time v + c, and that passes within 16 x c x (programs that wait) of service.
    """
    return Policy(
        name="program",
        bound="nobody goes before a program who comes after all that wait could have had 16 times what it needs",
        rank=_arrival,
        reason=_program_in_words,
        group_of=lambda waiter: ("call", waiter.order) if waiter.program is None else waiter.program,
        key=_virtual_finish_s,
        cost_before_s=_all_before_s,
        lives_on="programs",
    )


def score(point_s: float = 30.0, halving_s: float = 10.0) -> Policy:
    """A weighted score of waiting, priority and cost, in seconds of waiting.

    Bound: nobody goes before a call who came more than the sum of both weights after it.
    """
    most_lead_s = 2 * MOST_PRIORITY * point_s + MOST_DOUBLINGS * halving_s
    return Policy(
        name="score",
        bound=f"nobody goes first who came more than {most_lead_s:g} s later",
        rank=lambda waiter, cost_s: (
            waiter.queued_s - point_s * _bounded(waiter.priority) + halving_s * _doublings(cost_s)
        ),
        reason=lambda _shares, entry: (
            f"waiting, priority ({entry.waiter.priority}) and cost ({seconds_text(entry.cost_s)} of the limit) make "
            "its score"
        ),
        most_lead_s=most_lead_s,
    )


def _arrival(waiter: Waiter, _cost_s: float) -> float:
    return waiter.order


def _bounded(points: int) -> int:
    return max(-MOST_PRIORITY, min(MOST_PRIORITY, points))


def _doublings(cost_s: float) -> float:
    if cost_s <= SMALLEST_COST_S:
        return 0.0
    return min(MOST_DOUBLINGS, math.log2(cost_s / SMALLEST_COST_S))


def _fair_finish_s(shares: Shares, group: Group) -> float:
    return shares.served_s(group.name) + group.first.cost_s / group.first.waiter.weight


def _fairly_before_s(shares: Shares, other: Group, mine: Group, ahead_s: float, _ahead: int) -> float:
    until_s = _fair_finish_s(shares, mine) + ahead_s / mine.first.waiter.weight
    return min(other.cost_s, max(0.0, until_s - shares.served_s(other.name)) * other.first.waiter.weight)


def _all_before_s(_shares: Shares, other: Group, mine: Group, _ahead_s: float, _ahead: int) -> float:
    return other.cost_s if other.item is not None and mine.item is not None and other.item < mine.item else 0.0


def _virtual_finish_s(shares: Shares, group: Group) -> float:
    cost_s = group.first.cost_s
    known = shares.program(group.name)
    if known is None:
        return shares.virtual_s + cost_s
    return known.came_s + math.sqrt(max(_left_s(known), cost_s) * cost_s)


def _left_s(known: Program) -> float:
    """Give what a program is thought to need still; one past its guess, or without, as much as it has had."""
    if known.guess_s is None:
        return known.had_s
    return max(known.guess_s - known.had_s, known.had_s / 2)


def _program_in_words(shares: Shares, entry: Entry) -> str:
    known = shares.program(entry.waiter.program)
    if known is None:
        return f"it belongs to no program and takes {seconds_text(entry.cost_s)} of the limit"
    if known.guess_s is not None and known.had_s < known.guess_s:
        return (
            f"its program is guessed to need {seconds_text(known.guess_s)} of the limit in all and has had "
            f"{seconds_text(known.had_s)}; the one that would finish first goes first"
        )
    had = seconds_text(known.had_s)
    return f"its program has had {had} of the limit; who has had least, for when it came, goes first"
