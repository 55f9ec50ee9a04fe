"""Turns: which of the many kinds of calls behind a head have still to be tried since something changed.

One rule: a round tries each of them once, those first whose time has come; a change in its middle begins another one
after it. So nobody is passed over, and nobody is tried without a reason.
"""

import math
from collections import OrderedDict
from collections.abc import Collection
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
    """The rounds of one lane."""

    def __init__(self) -> None:
        """Start with nobody to try."""
        self._left: OrderedDict[int, T] = OrderedDict()
        self._changed = False
        self._due_s = math.inf
        self._next_s = -math.inf

    @property
    def look_again_s(self) -> float:
        """When some are to be tried that have not been."""
        return self._next_s if self._left else self._due_s

    def comes(self, one: T) -> None:
        """Try one with the others: it is new, or something may have changed while it came."""
        self._left[one.order] = one

    def leaves(self, one: T) -> None:
        """Leave one out for good."""
        self._left.pop(one.order, None)

    def changed(self) -> None:
        """Hear that anybody may be able to go by now."""
        self._changed = True

    def was_tried(self, one: T) -> None:
        """Hear when one is to be tried again."""
        self._due_s = min(self._due_s, one.again_s)

    def next_few(self, all_: Collection[T], most: int, now_s: float, pause_s: float) -> list[T]:
        """Give the next to be tried, of all there are, and the ones after them `pause_s` later."""
        if not self._left and (self._changed or now_s >= self._due_s):
            self._left.update((each.order, each) for each in sorted(all_, key=lambda each: each.again_s))
            self._changed, self._due_s = False, math.inf
        if now_s < self._next_s or not self._left:
            return []
        self._next_s = now_s + pause_s
        return [self._left.popitem(last=False)[1] for _ in range(min(most, len(self._left)))]
