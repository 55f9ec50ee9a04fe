"""Deadlines: until when each of many calls would wait, behind one timer of the loop's.

One rule: who has left is told nothing. A loop orders its timers by a method in Python, and with a timer for each call
that waits every other timer would cost log n of those; here plain tuples are ordered, and the first alone has a timer.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

_SPARE = 64


class Deadlines(Generic[T]):
    """The deadlines of all that wait; adding costs O(log n), removing O(1) on average."""

    def __init__(self, passed: Callable[[T], None]) -> None:
        """Tell `passed` of each whose deadline has come."""
        self._passed = passed
        self._live: dict[int, T] = {}
        self._due: list[tuple[float, int]] = []
        self._added = 0
        self._fires_s = inf
        self._timer: asyncio.TimerHandle | None = None

    def add(self, one: T, left_s: float) -> int:
        """Let one wait for so long; gives the number by which it is removed."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + left_s
        self._added += 1
        self._live[self._added] = one
        heappush(self._due, (due_s, self._added))
        if due_s < self._fires_s:
            self._fire_at(loop, due_s)
        return self._added

    def remove(self, number: int) -> None:
        """Let one wait no more, whatever became of it."""
        self._live.pop(number, None)
        due = self._due
        if not self._live:
            due.clear()
            self._fires_s = inf
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif len(due) > 2 * len(self._live) + _SPARE:
            due[:] = [each for each in due if each[1] in self._live]
            heapify(due)

    def _fire_at(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_s = due_s
        self._timer = loop.call_at(due_s, self._fire, due_s)

    def _fire(self, until_s: float) -> None:
        self._timer, self._fires_s = None, inf
        due, live = self._due, self._live
        while due and (due[0][0] <= until_s or due[0][1] not in live):
            one = live.pop(heappop(due)[1], None)
            if one is not None:
                self._passed(one)
        if due:
            self._fire_at(asyncio.get_running_loop(), due[0][0])
