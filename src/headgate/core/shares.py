"""Shares: what each sharer and each program has had of a lane, and where one that comes back begins.

One rule: whoever was idle begins near the least served of those who wait, at most RETURN_CALLS average calls lower, so
that nobody saves up. Amounts are seconds of the lane's scarcest limit. It orders nothing: policies read it.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

LEAST_COST_S = 0.001
"""What every admission counts at least, so that calls that cost nothing cannot go first for ever."""

MOST_IDLE = 10_000
"""Sharers, programs and agents without a waiting call that are remembered."""

MOST_JOINING = 64
"""Agents that come while a round lasts and still get their turn in it; later ones begin in the next round."""

RETURN_CALLS = 3
"""Who was idle begins as many average calls below the floor at most: a sharer with few calls need not wait in line with
those who never pause. On row C1's trace (24 engines) its light half's p90 is 6.8 s with 0 of them, 5.9 s with 3."""

_PLACES = 2**40
"""Places are numbered on from round to round, and never so many."""

SEEN_CALLS = 64
"""The average call is one of about so many last ones; it is taken for smaller until as many have been seen."""

CREEP = 1 / 4
"""The floor's pace as a part of the fair pace: without it, ever new sharers near the floor would starve an old one."""

VIRTUAL_PACE = 1 / 16
"""The pace of virtual time as a part of what serving all programs that wait at once would give. Slower is better for
the mean and worse for the longest: at 1/4, 1/8, 1/16, 1/32 row C2 (--quick, a noisy guess) has a mean of 300, 288, 281,
279 s, and a longest of 7,720, 7,820, 8,320, 10,440 s."""

LEAD_CALLS = 1.0
"""A program whose calls have all gone, and that comes again, comes at most so many of its calls before now: a session
that paused would else go before every new one. Row C2 (--quick, a noisy guess): mean 281 s without, 280 with it."""

CARRIED_S = 60.0
"""How far one may be behind the most served when `fair` comes into force."""


class Waiter(NamedTuple):
    """What a policy knows of a waiting call.

    Costs are seconds that the call takes of the lane's scarcest limit: the largest of expected units / (amount per
    second) over its rates. `order` is the number of its arrival, unique in a lane. Fairness is between `sharer`s (keys,
    teams, agents) by `weight`, which is above 0. `program_cost_s` guesses the whole program. The call's prompt cache
    lives until `warm_until_s`, and the call costs `cold_cost_s` once that has passed. `interactive`: a person waits.
    """

    order: int
    queued_s: float
    cost_s: float = 0.0
    priority: int = 0
    sharer: Hashable = ""
    weight: float = 1.0
    agent: Hashable = ""
    program: Hashable = None
    program_cost_s: float | None = None
    warm_until_s: float | None = None
    cold_cost_s: float = 0.0
    interactive: bool = False


@dataclass(slots=True)
class Program:
    """A program's place: the virtual time at which it came, what it has had, and what it is thought to need in all."""

    came_s: float
    had_s: float
    guess_s: float | None


class Shares:
    """Counters of one lane. They are kept when its policy changes."""

    def __init__(self) -> None:
        """Start with nobody known."""
        self.floor_s = 0.0
        self._mean_cost_s = 0.0
        self.virtual_s = 0.0
        self.round = 0
        self._joined = 0
        self._places = 0
        self._had_turn: OrderedDict[Hashable, int] = OrderedDict()
        self._served_s: dict[Hashable, float] = {}
        self._programs: dict[Hashable, Program] = {}
        self._waiting: dict[Hashable, int] = {}
        self._waiting_programs: dict[Hashable, int] = {}
        self._weight_of: dict[Hashable, float] = {}
        self._weights = 0.0

    def served_s(self, sharer: Hashable) -> float:
        """Give what a sharer has had, divided by its weight; one that is not known stands at the floor."""
        return self._served_s.get(sharer, self.floor_s)

    def program(self, name: Hashable) -> Program | None:
        """Give a program's place, if it is known."""
        return self._programs.get(name)

    def next_turn(self, agent: Hashable) -> int:
        """Give an agent the last place of the round that lasts, or of the next one if it has had its turn in this."""
        self._places += 1
        if self._had_turn.get(agent, -1) >= self.round or self._joined >= MOST_JOINING:
            return (self.round + 1) * _PLACES + self._places
        self._joined += 1
        return self.round * _PLACES + self._places

    def took_turn(self, agent: Hashable, turn: int) -> None:
        """Remember that an agent has had a turn; the first of a next round begins it."""
        if turn // _PLACES > self.round:
            self.round, self._joined = turn // _PLACES, 0
        self._had_turn[agent] = self.round
        self._had_turn.move_to_end(agent)
        if len(self._had_turn) > MOST_IDLE:
            self._had_turn.popitem(last=False)

    def enters(self, waiter: Waiter) -> None:
        """Begin to count a waiting call."""
        sharer = waiter.sharer
        waiting = self._waiting.get(sharer, 0)
        self._waiting[sharer] = waiting + 1
        if not waiting:
            self._weight_of[sharer] = waiter.weight
            self._weights += waiter.weight
            self._served_s[sharer] = self._begins_s(sharer)
        name = waiter.program
        if name is not None:
            calls = self._waiting_programs.get(name, 0)
            self._waiting_programs[name] = calls + 1
            program = self._know(waiter)
            if not calls:  # what went by while it wanted nothing is no claim
                program.came_s = max(program.came_s, self.virtual_s - LEAD_CALLS * waiter.cost_s)

    def leaves(self, waiter: Waiter) -> None:
        """Stop counting a waiting call."""
        if _count_down(self._waiting, waiter.sharer):
            weight = self._weight_of.pop(waiter.sharer)
            self._weights = self._weights - weight if self._waiting else 0.0  # no rounding is carried on
            if len(self._served_s) > 2 * (len(self._waiting) + MOST_IDLE):
                self._forget_sharers()
        if waiter.program is not None:
            _count_down(self._waiting_programs, waiter.program)

    def charge(self, waiter: Waiter, cost_s: float, least_served_s: float | None) -> None:
        """Charge an admission. `least_served_s` is the smallest counter of those who wait, None when nobody does."""
        cost_s = max(cost_s, LEAST_COST_S)
        self._mean_cost_s += (cost_s - self._mean_cost_s) / SEEN_CALLS
        waits = waiter.sharer in self._waiting
        begins_s = self._served_s[waiter.sharer] if waits else self._begins_s(waiter.sharer)
        self._served_s[waiter.sharer] = begins_s + cost_s / waiter.weight
        lowest_s = begins_s if least_served_s is None else min(begins_s, least_served_s)
        creeping_s = self.floor_s + CREEP * cost_s / max(self._weights, waiter.weight)
        self.floor_s = max(creeping_s, lowest_s)
        self.virtual_s += VIRTUAL_PACE * cost_s / max(1, len(self._waiting_programs))
        if waiter.program is not None:
            self._know(waiter).had_s += cost_s

    def correct(self, waiter: Waiter, more_s: float) -> None:
        """Add what a settled call used more (or less) than it was charged."""
        if waiter.sharer in self._served_s:
            self._served_s[waiter.sharer] += more_s / waiter.weight
        if waiter.program in self._programs:
            program = self._programs[waiter.program]
            program.had_s = max(0.0, program.had_s + more_s)

    def carry(self) -> None:
        """Let nobody who waits begin more than CARRIED_S behind the most served of them; O(n)."""
        if self._waiting:
            counters = [self._served_s[sharer] for sharer in self._waiting]
            self.floor_s = max(min(counters), max(counters) - CARRIED_S)
            for sharer in self._waiting:
                self._served_s[sharer] = max(self._served_s[sharer], self.floor_s)

    def _begins_s(self, sharer: Hashable) -> float:
        lowest_s = self.floor_s - RETURN_CALLS * self._mean_cost_s
        return max(self._served_s.get(sharer, -math.inf), lowest_s)

    def _know(self, waiter: Waiter) -> Program:
        program = self._programs.get(waiter.program)
        if program is None:
            program = self._programs[waiter.program] = Program(self.virtual_s, 0.0, waiter.program_cost_s)
            if len(self._programs) > 2 * (len(self._waiting_programs) + MOST_IDLE):
                self._forget_programs()
        elif waiter.program_cost_s is not None:
            program.guess_s = waiter.program_cost_s
        return program

    def _forget_sharers(self) -> None:
        """Keep those who wait and the idle ones whose debt is the largest; one at the floor has nothing to remember."""
        idle = [sharer for sharer in self._served_s if sharer not in self._waiting]
        idle.sort(key=self._served_s.__getitem__)
        for sharer in idle[:-MOST_IDLE]:
            del self._served_s[sharer]

    def _forget_programs(self) -> None:
        """Keep those who wait and the youngest of the others: an old one that comes back counts as new."""
        idle = [name for name in self._programs if name not in self._waiting_programs]
        for name in idle[:-MOST_IDLE]:
            del self._programs[name]


def _count_down(counts: dict[Hashable, int], name: Hashable) -> bool:
    """Take one off; True when none is left."""
    left = counts[name] - 1
    if left:
        counts[name] = left
    else:
        del counts[name]
    return not left
