"""Forecast: how much of a window will be used at its end, between which bounds, and when it runs out.

One rule: everything is judged on its own past: at every slot of history the experts project windows that began earlier,
and when these end, their weights and the width of the band follow from how wrong they were. Nothing looks ahead, and
without history the forecast says so. Where the history comes from is the caller's affair.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil, exp, log
from typing import NamedTuple

from headgate.core.estimates import RollingQuantile
from headgate.core.season import DAY_S, HOUR_S, Season

EXPERTS = ("average", "recent", "seasonal", "returning", "seasonal_returning")
"""`average`: the window's own rate so far goes on (what claude-monitor projects). `recent`: an EWMA of the rate.
`seasonal`: that, times what the coming hours of the week use beside the past ones. The two that return take the newest
rate and let it go back to the long mean, as far as it did in the past at this point of the window."""

_FIRST_WEIGHTS = (0.1, 0.1, 0.1, 0.35, 0.35)
"""Before anything is learned: those that return were the best alone on ServeGen's rates (benchmark B8)."""

BAND = 0.8
"""The share of windows that end within the band."""

MOST_SLOTS = 10_000
"""A window has at most so many slots; a longer gap in the history begins a new one."""

_POINTS = 10
"""Shares of the window at which past projections are judged: 0, 0.1, ... 0.9."""

_RESIDUALS = 300
_LEAST_RESIDUALS = 20
"""With fewer past projections there is no band to be learned."""

_RECENT_WINDOWS = 0.1
_NEWEST_WINDOWS = 1 / 30
_LONG_WINDOWS = 3.0
"""Time constants of the averages, in windows: 30 min, 10 min and 15 h of a 5 h window (chosen on B8's trace)."""

_LEARNING_RATE = 0.05
_FORGETTING = 0.002
"""Exponentiated gradient with a fixed share of the first weights, so that an expert can come back (Kivinen and Warmuth
1997; Herbster and Warmuth 1998)."""

_BAND_RATE = 0.007
_MOST_DRIFT = 0.2
"""Adaptive conformal inference (Gibbs and Candes 2021): every window that ends outside the band widens it, every one
inside narrows it, so that the promise holds when use changes its nature. It moves a tail's share by up to _MOST_DRIFT
in both directions alike, or the bound itself would bend the mean."""

_RETURN_DOUBT = 2.0
_FIRST_PERSISTENCE = 0.8
_LEAST_RATIO = 0.02
_SCALE_FLOOR = 0.1
"""Residuals are taken relative to what was projected plus this share of the long mean, so that they exist at zero."""

_GUESSED_BAND = 4.0
"""A guessed band reaches from nothing more to so many times what is projected."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a window will have used at its end; None where nothing can be said.

    `runs_out_s` is when what is expected reaches the amount, `runs_out_earliest_s` when the upper bound does (None: not
    in this window). `experts` are the weights of those who spoke, which sum to 1.
    """

    expected: int | None
    low: int
    high: int | None
    runs_out_s: float | None
    runs_out_earliest_s: float | None
    assumed: str
    experts: tuple[tuple[str, float], ...] = ()


class _Return:
    """How much of a deviation from the long mean is left later: one exponent, by least squares on logarithms."""

    __slots__ = ("_products", "_squares")

    def __init__(self) -> None:
        self._products = _RETURN_DOUBT * _FIRST_PERSISTENCE
        self._squares = _RETURN_DOUBT

    def rate(self, newest: float, usual: float) -> float:
        return float(usual * _ratio(newest, usual) ** self._persistence()) if usual > 0 else newest

    def learn(self, newest: float, usual: float, actual: float) -> None:
        if usual > 0:
            deviation = log(_ratio(newest, usual))
            self._products += deviation * log(_ratio(actual, usual))
            self._squares += deviation * deviation

    def _persistence(self) -> float:
        return min(1.0, max(0.0, self._products / self._squares))


class _Views(NamedTuple):
    """What the experts say, in units per second, and what the returning ones said it from."""

    rates: tuple[float | None, ...]
    newest: float
    seasonal_newest: float
    long: float
    seasonal_long: float


class _Projection(NamedTuple):
    due: int
    total_then: int
    used: int
    rest_s: float
    views: _Views
    rest: float
    scale: float
    band: tuple[float, float] | None


@dataclass(slots=True)
class _Point:
    """What was learned at one elapsed share of the window, `slots` slots after its beginning."""

    slots: int
    weights: list[float] = field(default_factory=lambda: list(_FIRST_WEIGHTS))
    returning: _Return = field(default_factory=_Return)
    seasonal_returning: _Return = field(default_factory=_Return)
    residuals: RollingQuantile = field(default_factory=lambda: RollingQuantile(_RESIDUALS))
    drifts: list[float] = field(default_factory=lambda: [0.0, 0.0])
    pending: deque[_Projection] = field(default_factory=deque)

    def mixed(self, rates: tuple[float | None, ...]) -> float:
        """Give the weighted mean of those who have something to say."""
        spoken = [(weight, rate) for weight, rate in zip(self.weights, rates, strict=True) if rate is not None]
        return sum(weight * rate for weight, rate in spoken) / sum(weight for weight, _rate in spoken)

    def band(self, tail: float) -> tuple[float, float] | None:
        """Give the residuals between which a share of 1 - 2 x tail lies; None with too few of them."""
        if len(self.residuals) < _LEAST_RESIDUALS:
            return None
        below, above = self.drifts
        return max(-1.0, self._residual(tail + below)), self._residual(1 - tail - above)

    def learn(self, projection: _Projection, actual: int, window_s: float, tail: float) -> None:
        """Learn from a projected window that has ended, in whose rest `actual` units were used."""
        views, rest_s = projection.views, projection.rest_s
        self.returning.learn(views.newest, views.long, actual / rest_s)
        self.seasonal_returning.learn(views.seasonal_newest, views.seasonal_long, actual / rest_s)
        if projection.scale > 0:
            residual = (actual - projection.rest) / projection.scale
            if projection.band is not None:
                low, high = projection.band
                self._drift(0, tail, missed=residual < low)
                self._drift(1, tail, missed=residual > high)
            self.residuals.observe(residual)
        self._weigh(projection, actual, window_s)

    def _weigh(self, projection: _Projection, actual: int, window_s: float) -> None:
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

    def _drift(self, side: int, tail: float, *, missed: bool) -> None:
        moved = self.drifts[side] + _BAND_RATE * (tail - missed)
        self.drifts[side] = min(_MOST_DRIFT, max(-_MOST_DRIFT, moved))

    def _residual(self, share: float) -> float:
        """Give a quantile of the residuals; shares beyond 0 and 1 reach past the outermost ones."""
        count = len(self.residuals)
        inside = min(max(share, 0.5 / (count + 1)), (count - 0.5) / (count + 1))
        value = self.residuals.value(inside)
        first, last = self.residuals.value(0.0), self.residuals.value((count - 0.5) / (count + 1))
        assert value is not None and first is not None and last is not None
        return value + 2 * (share - min(max(share, 0.0), 1.0)) * (last - first)


class Forecaster:
    """Projects windows of one length from a history of slots, which may begin at any time.

    Bounded: one window of sums, at most 30 open projections and 300 residuals for each of ten points, a week's hours.
    Observing a slot costs at most O(points), and at windows of many slots most slots cost O(1).
    """

    def __init__(self, window_s: int, slot_s: int = HOUR_S, *, band: float = BAND) -> None:
        """Start without history. A slot divides an hour; a window that is shorter than a slot counts as one.

        Raises:
            ValueError: a slot that does not divide an hour, a window without length or of over MOST_SLOTS slots, a band
                that is no share.
        """
        if slot_s <= 0 or HOUR_S % slot_s:
            raise ValueError(f"a slot of {slot_s} s: it must divide an hour")
        if not 0 < window_s <= MOST_SLOTS * slot_s:
            raise ValueError(f"a window of {window_s} s: it must have 1 to {MOST_SLOTS} slots of {slot_s} s")
        if not 0 < band < 1:
            raise ValueError(f"a band of {band}: it must lie between 0 and 1")
        self._window_s = window_s
        self._slot_s = slot_s
        self._slots = max(1, round(window_s / slot_s))
        self._stride = max(1, self._slots // 30)
        self._tail = (1 - band) / 2
        self._begin()

    @property
    def observed_until_s(self) -> int | None:
        """When the last observed slot ended; None without history."""
        return self._until_s

    def observe(self, slot_start_s: int, units: int) -> bool:
        """Take in what was used in a slot that is over; slots that are left out count as unused.

        False, and nothing changes, for a slot that is not after the last one: its sum was taken in (a clock stepped
        back, or an hour is told twice).
        """
        start_s = slot_start_s // self._slot_s * self._slot_s
        if self._until_s is None or start_s - self._until_s > MOST_SLOTS * self._slot_s:
            self._begin()
        elif start_s < self._until_s:
            return False
        else:
            for gap_s in range(self._until_s, start_s, self._slot_s):
                self._close(gap_s, 0)
        self._close(start_s, max(0, units))
        return True

    def forecast(
        self,
        used: int,
        window_begin_s: float,
        window_end_s: float,
        now_s: float,
        *,
        amount: int | None = None,
        unclosed: int | None = None,
    ) -> Forecast:
        """Project a window of which `used` units are used now, up to its end; `amount` is what it allows.

        `unclosed` is what the history will show for the time since the last observed slot, where that is known.
        """
        end_s = max(window_begin_s, window_end_s)
        now_s = min(end_s, max(window_begin_s, now_s))
        rest_s = end_s - now_s
        used = max(0, used)
        if rest_s <= 0:
            return self._told(used, (0, 0, 0), (now_s, end_s), amount, "the window is over", ())
        elapsed_s = now_s - window_begin_s
        average = used / elapsed_s if elapsed_s > 0 else None
        if self._until_s is None:
            return self._without_history(used, average, (now_s, end_s), amount)
        views = self._views(average, now_s, rest_s, unclosed)
        point = self._nearest(elapsed_s / (end_s - window_begin_s))
        rest = point.mixed(views.rates) * rest_s
        scale = rest + _SCALE_FLOOR * views.long * rest_s
        band = point.band(self._tail)
        low, high = (0.0, _GUESSED_BAND * rest) if band is None else (rest + side * scale for side in band)
        expected = round(rest)
        bounds = (min(expected, max(0, int(low))), expected, max(expected, ceil(high)))
        return self._told(
            used, bounds, (now_s, end_s), amount, self._assumed(point, now_s), _told_weights(point, views)
        )

    def _begin(self) -> None:
        self._until_s: int | None = None
        self._season = Season()
        self._totals: deque[int] = deque([0], maxlen=self._slots + 1)
        self._count = 0
        self._newest = self._newest_factor = self._recent = self._recent_factor = self._long = 0.0
        self._points = [_Point(slots) for slots in sorted({round(i * self._slots / _POINTS) for i in range(_POINTS)})]

    def _close(self, start_s: int, units: int) -> None:
        end_s = start_s + self._slot_s
        rate, factor = units / self._slot_s, self._season.between(start_s, end_s)
        first = self._count == 0
        newest, recent = (1.0, 1.0) if first else (self._part(_NEWEST_WINDOWS), self._part(_RECENT_WINDOWS))
        self._newest += newest * (rate - self._newest)
        self._newest_factor += newest * (factor - self._newest_factor)
        self._recent += recent * (rate - self._recent)
        self._recent_factor += recent * (factor - self._recent_factor)
        self._count += 1
        self._long += max(self._part(_LONG_WINDOWS), 1 / self._count) * (rate - self._long)
        self._season.observe(start_s, end_s, units)
        self._totals.append(self._totals[-1] + units)
        self._until_s = end_s
        for point in self._points:
            while point.pending and point.pending[0].due <= self._count:
                projection = point.pending.popleft()
                actual = self._totals[-1] - projection.total_then
                point.learn(projection, actual, self._window_s, self._tail)
            if self._count % self._stride == 0 and self._count >= point.slots:
                point.pending.append(self._project(point, end_s))

    def _project(self, point: _Point, now_s: int) -> _Projection:
        used = self._totals[-1] - self._totals[-1 - point.slots]
        rest_s = float((self._slots - point.slots) * self._slot_s)
        views = self._views(used / (point.slots * self._slot_s) if point.slots else None, now_s, rest_s, None)
        rest = point.mixed(views.rates) * rest_s
        return _Projection(
            due=self._count + self._slots - point.slots,
            total_then=self._totals[-1],
            used=used,
            rest_s=rest_s,
            views=views,
            rest=rest,
            scale=rest + _SCALE_FLOOR * views.long * rest_s,
            band=point.band(self._tail),
        )

    def _views(self, average: float | None, now_s: float, rest_s: float, unclosed: int | None) -> _Views:
        assert self._until_s is not None
        newest, recent = self._newest, self._recent
        open_s = now_s - self._until_s
        if unclosed is not None and open_s > 0:
            rate = max(0, unclosed) / open_s
            newest += self._part(_NEWEST_WINDOWS, open_s) * (rate - newest)
            recent += self._part(_RECENT_WINDOWS, open_s) * (rate - recent)
        coming = self._season.between(now_s, now_s + rest_s)
        seasonal_newest = newest * coming / self._newest_factor
        seasonal_long = self._long * coming
        point = self._nearest(1 - rest_s / self._window_s)
        return _Views(
            (
                average,
                recent,
                recent * coming / self._recent_factor,
                point.returning.rate(newest, self._long),
                point.seasonal_returning.rate(seasonal_newest, seasonal_long),
            ),
            newest,
            seasonal_newest,
            self._long,
            seasonal_long,
        )

    def _part(self, windows: float, span_s: float | None = None) -> float:
        """Give the weight of a new stretch in an average whose time constant is so many windows."""
        return 1 - exp(-(self._slot_s if span_s is None else span_s) / (windows * self._window_s))

    def _nearest(self, share: float) -> _Point:
        return min(self._points, key=lambda point: abs(point.slots - share * self._slots))

    def _without_history(
        self, used: int, average: float | None, span_s: tuple[float, float], amount: int | None
    ) -> Forecast:
        now_s, end_s = span_s
        if average is None:
            is_out = amount is not None and used >= amount
            out_s = now_s if is_out else None
            return Forecast(None, used, None, out_s, out_s, "no history, and the window has only begun")
        rest = average * (end_s - now_s)
        bounds = (0, round(rest), ceil(_GUESSED_BAND * rest))
        assumed = "no history: the rate of this window so far goes on; the band is a guess"
        return self._told(used, bounds, span_s, amount, assumed, (("average", 1.0),))

    def _assumed(self, point: _Point, now_s: float) -> str:
        assert self._until_s is not None
        days = self._count * self._slot_s / DAY_S
        judged = len(point.residuals)
        said = [f"{days:.1f} days of history"]
        if judged < _LEAST_RESIDUALS:
            said.append(f"only {judged} past projections to judge by: the band is a guess")
        else:
            said.append(f"the band from {judged} past projections at {point.slots / self._slots:.0%} of the window")
        if not self._season.whole_days:
            said.append("no whole day seen: every hour alike")
        if now_s - self._until_s > 2 * self._slot_s:
            said.append(f"the history ended {(now_s - self._until_s) / HOUR_S:.1f} h ago")
        return "; ".join(said)

    def _told(
        self,
        used: int,
        bounds: tuple[int, int, int],
        span_s: tuple[float, float],
        amount: int | None,
        assumed: str,
        experts: tuple[tuple[str, float], ...],
    ) -> Forecast:
        low, expected, high = bounds
        left = None if amount is None else amount - used
        return Forecast(
            expected=used + expected,
            low=used + low,
            high=used + high,
            runs_out_s=self._reached_s(left, expected, span_s),
            runs_out_earliest_s=self._reached_s(left, high, span_s),
            assumed=assumed,
            experts=experts,
        )

    def _reached_s(self, left: int | None, rest: int, span_s: tuple[float, float]) -> float | None:
        """Give when `left` of the `rest` units are used, if the hours of the week share them as they usually do."""
        now_s, end_s = span_s
        if left is None or left > rest:
            return None
        if left <= 0:
            return now_s
        wanted = self._season.hours_worth(now_s, end_s) * (left / rest)
        early_s, late_s = now_s, end_s
        for _halving in range(40):
            middle_s = (early_s + late_s) / 2
            if self._season.hours_worth(now_s, middle_s) < wanted:
                early_s = middle_s
            else:
                late_s = middle_s
        return late_s


def _told_weights(point: _Point, views: _Views) -> tuple[tuple[str, float], ...]:
    spoken = [
        (name, weight)
        for name, weight, rate in zip(EXPERTS, point.weights, views.rates, strict=True)
        if rate is not None
    ]
    whole = sum(weight for _name, weight in spoken)
    return tuple((name, weight / whole) for name, weight in spoken)


def _ratio(rate: float, usual: float) -> float:
    return max(rate / usual, _LEAST_RATIO)
