"""Experts: the simple projections that a forecast mixes, and what each learned from its past at one point of a window.

One rule: a point learns only from projections whose windows have ended, and from what was thought of them when they
were made. Rates are units per second; `forecast` says what they are in.
"""

from collections import deque
from dataclasses import dataclass, field
from math import exp, log
from typing import NamedTuple

from headgate.core.quantiles import RollingQuantile

EXPERTS = ("average", "recent", "seasonal", "returning", "seasonal_returning")
"""`average`: the window's own rate so far goes on (what claude-monitor projects). `recent`: an EWMA of the rate.
`seasonal`: that, times what the coming hours of the week use beside the past ones. The two that return take the newest
rate and let it go back to the long mean, as far as it did in the past at this point of the window."""

_FIRST_WEIGHTS = (0.1, 0.1, 0.1, 0.35, 0.35)
"""Before anything is learned: those that return were the best alone on ServeGen's rates (benchmark B8)."""

_RESIDUALS = 300
LEAST_RESIDUALS = 20
"""With fewer past projections there is no band to be learned."""

_LEARNING_RATE = 0.05
_FORGETTING = 0.002
"""Exponentiated gradient with a fixed share of the first weights, so that an expert can come back (Kivinen and Warmuth
1997; Herbster and Warmuth 1998)."""

_MOST_DRIFT = 0.2
"""Adaptive conformal inference (Gibbs and Candes 2021): every window that ends outside the band widens it, every one
inside narrows it, so that the promise holds when use changes its nature. It moves a tail's share by up to _MOST_DRIFT
in both directions alike, or the bound itself would bend the mean."""

_FIRST_PERSISTENCE = 0.8
_RETURN_DOUBT = 2.0
"""What is thought of returning at first, and for how much (in squares of a logarithm) that counts."""

_LEAST_RATIO = 0.02
"""Nothing used counts as so little of what is usual: it has no logarithm."""


class Return:
    """How much of a deviation from the long mean is left later: one exponent, by least squares on logarithms."""

    __slots__ = ("_products", "_squares")

    def __init__(self) -> None:
        self._products = _RETURN_DOUBT * _FIRST_PERSISTENCE
        self._squares = _RETURN_DOUBT

    def rate(self, newest: float, usual: float) -> float:
        """Give the mean rate to come, from the newest one and the usual one."""
        return float(usual * _ratio(newest, usual) ** self._persistence()) if usual > 0 else newest

    def learn(self, newest: float, usual: float, actual: float) -> None:
        """Learn from the rate that came."""
        if usual > 0:
            deviation = log(_ratio(newest, usual))
            self._products += deviation * log(_ratio(actual, usual))
            self._squares += deviation * deviation

    def _persistence(self) -> float:
        return min(1.0, max(0.0, self._products / self._squares))


class Views(NamedTuple):
    """What the experts say, in units per second, and what the returning ones said it from."""

    rates: tuple[float | None, ...]
    newest: float
    seasonal_newest: float
    long: float
    seasonal_long: float


class Projection(NamedTuple):
    """What was thought of a window: `due` is the slot after which it ends, `total_then` all that was used before."""

    due: int
    total_then: int
    used: int
    rest_s: float
    views: Views
    rest: float
    scale: float
    band: tuple[float, float] | None


@dataclass(slots=True)
class Point:
    """What was learned at one elapsed share of the window, `slots` slots after its beginning.

    A share of 1 - 2 x `tail` of the windows is to end in the band, and each that ends moves it by up to `drift`.
    """

    slots: int
    tail: float
    drift: float
    weights: list[float] = field(default_factory=lambda: list(_FIRST_WEIGHTS))
    returning: Return = field(default_factory=Return)
    seasonal_returning: Return = field(default_factory=Return)
    residuals: RollingQuantile = field(default_factory=lambda: RollingQuantile(_RESIDUALS))
    drifts: list[float] = field(default_factory=lambda: [0.0, 0.0])
    pending: deque[Projection] = field(default_factory=deque)

    def weighed(self, rates: tuple[float | None, ...]) -> tuple[tuple[str, float], ...]:
        """Give the weights of those who have something to say, which sum to 1."""
        awake = [rate is not None for rate in rates]
        whole = sum(weight for weight, speaks in zip(self.weights, awake, strict=True) if speaks)
        named = zip(EXPERTS, self.weights, awake, strict=True)
        return tuple((name, weight / whole) for name, weight, speaks in named if speaks)

    def mixed(self, rates: tuple[float | None, ...]) -> float:
        """Give the weighted mean of those who have something to say."""
        whole = total = 0.0
        for weight, rate in zip(self.weights, rates, strict=True):
            if rate is not None:
                whole += weight
                total += weight * rate
        return total / whole

    def band(self) -> tuple[float, float] | None:
        """Give the residuals between which a share of 1 - 2 x tail lies; None with too few of them."""
        if len(self.residuals) < LEAST_RESIDUALS:
            return None
        below, above = self.drifts
        return max(-1.0, self._residual(self.tail + below)), self._residual(1 - self.tail - above)

    def learn(self, projection: Projection, actual: int, window_s: float) -> None:
        """Learn from a projected window that has ended, in whose rest `actual` units were used."""
        views, rest_s = projection.views, projection.rest_s
        self.returning.learn(views.newest, views.long, actual / rest_s)
        self.seasonal_returning.learn(views.seasonal_newest, views.seasonal_long, actual / rest_s)
        if projection.scale > 0:
            residual = (actual - projection.rest) / projection.scale
            if projection.band is not None:
                low, high = projection.band
                self._move(0, missed=residual < low)
                self._move(1, missed=residual > high)
            self.residuals.observe(residual)
        self._weigh(projection, actual, window_s)

    def _weigh(self, projection: Projection, actual: int, window_s: float) -> None:
        size = max(projection.used + actual, 0.05 * projection.views.long * window_s)
        if size <= 0 or projection.rest == actual:
            return
        side = 1.0 if projection.rest > actual else -1.0
        raised = []
        for weight, rate in zip(self.weights, projection.views.rates, strict=True):
            apart = 0.0 if rate is None else (rate * projection.rest_s - projection.rest) / size
            raised.append(weight * exp(-_LEARNING_RATE * side * min(2.0, max(-2.0, apart))))
        whole = sum(raised)
        self.weights = [
            (1 - _FORGETTING) * weight / whole + _FORGETTING * first
            for weight, first in zip(raised, _FIRST_WEIGHTS, strict=True)
        ]

    def _move(self, side: int, *, missed: bool) -> None:
        moved = self.drifts[side] + self.drift * (self.tail - missed)
        self.drifts[side] = min(_MOST_DRIFT, max(-_MOST_DRIFT, moved))

    def _residual(self, share: float) -> float:
        """Give a quantile of the residuals; shares beyond 0 and 1 reach past the outermost ones."""
        count = len(self.residuals)
        inside = min(max(share, 0.5 / (count + 1)), (count - 0.5) / (count + 1))
        value = self.residuals.value(inside)
        first, last = self.residuals.value(0.0), self.residuals.value((count - 0.5) / (count + 1))
        assert value is not None
        assert first is not None
        assert last is not None
        return value + 2 * (share - min(max(share, 0.0), 1.0)) * (last - first)


def _ratio(rate: float, usual: float) -> float:
    return max(rate / usual, _LEAST_RATIO)
