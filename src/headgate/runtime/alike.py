"""Alike: the calls of a lane that ask something of the same limits, and which of them asks for least.

One rule: of calls that are alike none that asks for as much passes one that came before it. So only the cheapest is
worth a try out of its turn: where it cannot go, neither can the others.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """A call that waits."""

    @property
    def order(self) -> int:
        """Its number; who came earlier has the smaller one."""
        ...


W = TypeVar("W", bound=Waits)


class Alike(Generic[W]):
    """Calls that are alike, by what they ask for in all."""

    def __init__(self, order: int, still_waits: Callable[[W], bool]) -> None:
        """Start with none; `order` tells the groups of a lane apart."""
        self.order = order
        self.again_s = math.inf
        """When time alone could let its cheapest go before the head, as that was tried last."""
        self.count = 0
        self._still_waits = still_waits
        self._heap: list[tuple[float, int, int, W]] = []
        self._numbers = count()  # a later attempt of a call has its order, and may ask for as much

    def add(self, call: W, size: float) -> bool:
        """Add one; True if none is cheaper."""
        heappush(self._heap, (size, call.order, next(self._numbers), call))
        self.count += 1
        return self.cheapest is call

    @property
    def cheapest(self) -> W | None:
        """The one that asks for least; of several the one that came first."""
        heap = self._heap
        while heap and not self._still_waits(heap[0][3]):
            heappop(heap)
        return heap[0][3] if heap else None

    @property
    def least(self) -> float:
        """What the cheapest asks for."""
        return math.inf if self.cheapest is None else self._heap[0][0]
