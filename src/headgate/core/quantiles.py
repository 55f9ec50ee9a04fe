"""Quantiles of what was observed last, as split-conformal prediction takes them.

One rule: with too few observations for a share there is no quantile, and None is said.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from math import ceil

SAMPLES = 500
"""Rolling samples per quantile: the window that decision 3 of the design was measured with."""

RARE = 0.999
RARE_SAMPLES = 999
MOST_RARE_SAMPLES = 1_998
"""What limits that hold the likely hold of output: the p99.9 of so many samples. Of fewer than 999 there is none, and
of 999 to 1,998 it is the largest. It was exceeded by 4 of 23,822 calls (decision 0022)."""


class RollingQuantile:
    """The quantile of the last `size` observations; observing costs O(size) in the worst case, asking O(1)."""

    def __init__(self, size: int = SAMPLES) -> None:
        """Keep at most `size` observations."""
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self._size = size

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[float]:
        """Iterate over the observations, oldest first."""
        return iter(self._order)

    def observe(self, value: float) -> None:
        """Add an observation; the oldest leaves when there are too many."""
        self._order.append(value)
        insort(self._sorted, value)
        if len(self._order) > self._size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def value(self, share: float) -> float | None:
        """Give the value that at least `share` of a new observation's likes stay under, or None without enough data.

        The rank is (n + 1) x share, rounded up, as in split-conformal prediction: with too few observations for the
        share there is no such value.
        """
        seen = self._sorted
        rank = ceil((len(seen) + 1) * share)
        return None if rank > len(seen) else seen[rank - 1 if rank > 1 else 0]


class LongestSeen:
    """The p99.9 of the last 1,998 observations, which is their largest; observing and asking cost O(1) on average.

    Kept are only those that no later one reaches: about 8 of observations in random order.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._seen = 0
        self._falling: deque[tuple[int, int]] = deque()

    def observe(self, value: int) -> None:
        """Add an observation; the oldest leaves when there are too many."""
        falling = self._falling
        while falling and falling[-1][1] <= value:
            falling.pop()
        self._seen += 1
        falling.append((self._seen, value))
        if falling[0][0] <= self._seen - MOST_RARE_SAMPLES:
            falling.popleft()

    def value(self) -> int | None:
        """Give what 99.9 % of a new observation's likes stay under at least, or None without enough data."""
        return self._falling[0][1] if self._seen >= RARE_SAMPLES else None
