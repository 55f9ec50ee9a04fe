"""Turns: which of the many calls behind a head have still to be tried since something changed.

One rule: a change, or an instant at which one is due, puts all of them in a row, those first whose time has come; who
stands in it keeps the place. So nobody is passed over, and nobody is tried without a reason.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar


class Tried(Protocol):
    """What is tried; as it was the last time, time alone could let it go at `again_s`."""

    @property
    def order(self) -> int:
        """Its number."""
        ...

    @property
    def again_s(self) -> float:
        """When it is worth another try."""
        ...


T = TypeVar("T", bound=Tried)


class Turns(Generic[T]):
    """The row of one lane."""

    def __init__(self) -> None:
        """Start with nobody to try."""
        self._left: OrderedDict[int, T] = OrderedDict()
        self._changed = False
        self._due_s = math.inf
        self._next_s = -math.inf

    @property
    def look_again_s(self) -> float:
        """When some are to be tried that have not been; never before the next may be, or who waits never would."""
        return self._next_s if self._left or self._changed else max(self._next_s, self._due_s)

    def comes(self, one: T) -> None:
        """Try one with the others: something may have changed while it came."""
        self._left.setdefault(one.order, one)

    def leaves(self, one: T) -> None:
        """Leave one out for good."""
        if self._left.get(one.order) is one:
            del self._left[one.order]

    def changed(self) -> None:
        """Hear that anybody may be able to go by now."""
        self._changed = True

    def was_tried(self, one: T) -> None:
        """Hear when one is to be tried again."""
        self._due_s = min(self._due_s, one.again_s)

    def next_few(self, find: Callable[[], Iterable[T]], most: int, now_s: float, pause_s: float) -> list[T]:
        """Give the next to be tried, of those that `find` finds, and the ones after them `pause_s` later."""
        if now_s < self._next_s:
            return []
        if self._changed or now_s >= self._due_s:
            for each in sorted(find(), key=lambda each: each.again_s):
                self._left.setdefault(each.order, each)  # those that wait for their try keep their places
            self._changed, self._due_s = False, math.inf
        if not self._left:
            return []
        self._next_s = now_s + pause_s
        return [self._left.popitem(last=False)[1] for _ in range(min(most, len(self._left)))]
