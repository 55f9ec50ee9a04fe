"""Hold times: how long calls hold the slots of a gauge, so that a wait for slots can be told in seconds.

One rule: only calls that were sent and have ended count; where none has, nobody knows, and None is said.
"""

from collections import OrderedDict
from collections.abc import Sequence

from headgate.core.limits import Gauge, Limit

FORGETS_AFTER = 50
"""The mean is plain for so many calls, and then the newest counts a fiftieth: models and work change."""

MOST_LANES = 1_000
"""Lanes whose mean is kept; the one in which no call has ended for longest leaves first."""


class HoldTimes:
    """The mean hold of each lane with slots, in one process; on the way of every call, so it keeps two numbers each."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._began_s: dict[str, float] = {}
        self._means: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def began(self, attempt: str, limits: Sequence[Limit], now_s: float) -> None:
        """Note that an attempt holds its slots from now on."""
        for limit in limits:
            if type(limit) is Gauge:
                self._began_s[attempt] = now_s
                return

    def ended(self, attempt: str, limits: Sequence[Limit], now_s: float, *, counts: bool) -> float | None:
        """Give how long an attempt held its slots, which counts if it was sent; None if it held none."""
        began_s = self._began_s.pop(attempt, None)
        if began_s is None:
            return None
        held_s = max(0.0, now_s - began_s)
        if counts:
            for name in {limit.lane for limit in limits if type(limit) is Gauge}:
                mean_s, calls = self._means.get(name, (0.0, 0))
                calls = min(FORGETS_AFTER, calls + 1)
                self._means[name] = (mean_s + (held_s - mean_s) / calls, calls)
                self._means.move_to_end(name)
                if len(self._means) > MOST_LANES:
                    self._means.popitem(last=False)
        return held_s

    def mean_s(self, lane: str) -> float | None:
        """Give how long calls hold a slot of a lane on average; None: nobody knows yet."""
        known = self._means.get(lane)
        return None if known is None else known[0]
