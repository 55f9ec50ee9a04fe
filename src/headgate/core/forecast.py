"""Forecast: how much of a window will be used at its end, between which bounds, and when it runs out.

One rule: everything is judged on its own past: at every slot of history the experts project windows that began earlier,
and when these end, their weights and the width of the band follow from how wrong they were. Nothing looks ahead, and
without history the forecast says so. Where the history comes from is the caller's affair.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil, exp

from headgate.core.experts import LEAST_RESIDUALS, Point, Projection, Views
from headgate.core.season import DAY_S, HOUR_S, Season

BAND = 0.8
"""The share of windows that end within the band."""

MOST_SLOTS = 10_000
"""A window has at most so many slots; a longer gap in the history begins a new one."""

_POINTS = 10
"""Shares of the window at which past projections are judged: 0, 0.1, ... 0.9."""

_RECENT_WINDOWS = 0.1
_NEWEST_WINDOWS = 1 / 30
_LONG_WINDOWS = 3.0
"""Time constants of the averages, in windows: 30 min, 10 min and 15 h of a 5 h window (chosen on B8's trace)."""

_LEAST_SHARE = 0.05
"""Before this share of a window has passed its own rate says nothing: one call in its first second is no flood."""

_LEAST_SPAN_S = 1.0
"""A shorter stretch has no rate."""

_MOST_UNITS = 2**63 - 1
"""What a store can hold; more is reckoned as this."""

_WINDOW_DRIFT = 0.2
_MOST_DRIFT = 0.03
"""How far a band may move by the windows that end during one: they overlap, and are one piece of evidence together."""

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


class Forecaster:
    """Projects windows of one length from a history of slots, which may begin at any time.

    Bounded: one window of sums, at most 60 open projections and 300 residuals for each of ten points, a week's hours.
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
        self._drift = min(_MOST_DRIFT, _WINDOW_DRIFT * self._stride / self._slots)
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
        self._close(start_s, _bounded(units))
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
        lately_per_s: float | None = None,
    ) -> Forecast:
        """Project a window of which `used` units are used now, up to its end; `amount` is what it allows.

        `unclosed` is what the history will show for the time since the last observed slot, where that is known;
        `lately_per_s` is the rate that goes on where there is no history yet (None: that since the window began).
        """
        end_s = max(window_begin_s, window_end_s)
        now_s = min(end_s, max(window_begin_s, now_s))
        rest_s = end_s - now_s
        used = max(0, used)
        if rest_s <= 0:
            return self._told(used, (0, 0, 0), (now_s, end_s), amount, "the window is over", ())
        elapsed_s = now_s - window_begin_s
        average = _bounded(used) / elapsed_s if elapsed_s >= _LEAST_SPAN_S else None
        if self._until_s is None:
            return self._without_history(used, average, (now_s, end_s), amount, lately_per_s)
        share = elapsed_s / (end_s - window_begin_s)
        point = min(self._points, key=lambda point: abs(point.slots - share * self._slots))
        views = self._views(point, average if share >= _LEAST_SHARE else None, now_s, rest_s, unclosed)
        rest = point.mixed(views.rates) * rest_s
        scale = rest + _SCALE_FLOOR * views.long * rest_s
        band = point.band()
        low, high = (0.0, _GUESSED_BAND * rest) if band is None else (rest + side * scale for side in band)
        expected = round(rest)
        bounds = (min(expected, max(0, int(low))), expected, max(expected, ceil(high)))
        return self._told(used, bounds, (now_s, end_s), amount, self._assumed(point, now_s), point.weighed(views.rates))

    def _begin(self) -> None:
        self._until_s: int | None = None
        self._season = Season()
        self._totals: deque[int] = deque([0], maxlen=self._slots + 1)
        self._count = 0
        self._newest = self._newest_factor = self._recent = self._recent_factor = self._long = 0.0
        self._points = [
            Point(slots, self._tail, self._drift)
            for slots in sorted({i * self._slots // _POINTS for i in range(_POINTS)})
        ]

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
                point.learn(projection, actual, self._window_s)
            if self._count % self._stride == 0 and self._count >= point.slots:
                point.pending.append(self._project(point, end_s))

    def _project(self, point: Point, now_s: int) -> Projection:
        used = self._totals[-1] - self._totals[-1 - point.slots]
        rest_s = float((self._slots - point.slots) * self._slot_s)
        average = used / (point.slots * self._slot_s) if point.slots else None
        views = self._views(point, average, now_s, rest_s, None)
        rest = point.mixed(views.rates) * rest_s
        return Projection(
            due=self._count + self._slots - point.slots,
            total_then=self._totals[-1],
            used=used,
            rest_s=rest_s,
            views=views,
            rest=rest,
            scale=rest + _SCALE_FLOOR * views.long * rest_s,
            band=point.band(),
        )

    def _views(self, point: Point, average: float | None, now_s: float, rest_s: float, unclosed: int | None) -> Views:
        assert self._until_s is not None
        newest, recent = self._newest, self._recent
        open_s = now_s - self._until_s
        if unclosed is not None and open_s >= _LEAST_SPAN_S:
            rate = _bounded(unclosed) / open_s
            newest += self._part(_NEWEST_WINDOWS, open_s) * (rate - newest)
            recent += self._part(_RECENT_WINDOWS, open_s) * (rate - recent)
        coming = self._season.between(now_s, now_s + rest_s)
        seasonal_newest = newest * coming / self._newest_factor
        seasonal_long = self._long * coming
        return Views(
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

    def _without_history(
        self,
        used: int,
        average: float | None,
        span_s: tuple[float, float],
        amount: int | None,
        lately_per_s: float | None,
    ) -> Forecast:
        now_s, end_s = span_s
        if lately_per_s is not None:
            rest = lately_per_s * (end_s - now_s)
            bounds = (0, round(rest), ceil(_GUESSED_BAND * rest))
            assumed = "no history: the rate of what was used last goes on; the band is a guess"
            return self._told(used, bounds, span_s, amount, assumed, (("recent", 1.0),))
        if average is None:
            is_out = amount is not None and used >= amount
            out_s = now_s if is_out else None
            return Forecast(None, used, None, out_s, out_s, "no history, and the window has only begun")
        rest = average * (end_s - now_s)
        bounds = (0, round(rest), ceil(_GUESSED_BAND * rest))
        assumed = "no history: the rate of this window so far goes on; the band is a guess"
        return self._told(used, bounds, span_s, amount, assumed, (("average", 1.0),))

    def _assumed(self, point: Point, now_s: float) -> str:
        assert self._until_s is not None
        days = self._count * self._slot_s / DAY_S
        judged = len(point.residuals)
        said = [f"{days:.1f} days of history"]
        if judged < LEAST_RESIDUALS:
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


def _bounded(units: int) -> int:
    return min(max(0, units), _MOST_UNITS)
