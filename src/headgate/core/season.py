"""Season: how use differs by hour of the day and day of the week, as factors around 1.

One rule: a factor is learned from whole days of UTC alone, each beside that day's own mean, so that growth is not taken
for a habit; what was seen seldom stays near 1. How much use there is at all is `forecast`'s affair.
"""

from math import floor

HOUR_S = 3600
DAY_S = 24 * HOUR_S
WEEK_HOURS = 7 * 24
_WEEK_DAYS = 7

LEAST_FACTOR = 0.05
"""No hour counts for less: a factor divides, and a quiet hour must not turn one call into a flood."""

_DAYS_OF_DOUBT = 2.0
"""So many average days are put before the first real one, for hours of the day and for days of the week alike."""

_DAY_FADES = 0.97
_WEEK_FADES = 0.8
"""What a day (for the hours) and a week (for the days) are worth when the next one comes: habits change in months."""


class Season:
    """Learns the factors of a week's 168 hours; asking is O(1)."""

    def __init__(self) -> None:
        """Start without a habit: every factor is 1."""
        self._hours = [0.0] * 24
        self._hour_ratios = [0.0] * 24
        self._days_seen = 0.0
        self._totals: list[float] = []
        self._weekday_ratios = [0.0] * 7
        self._weekday_weights = [0.0] * 7
        self._begun_s: float | None = None
        self._factors = [1.0] * WEEK_HOURS
        self._sums = [float(hour) for hour in range(WEEK_HOURS + 1)]

    @property
    def whole_days(self) -> bool:
        """Whether a whole day was seen."""
        return self._days_seen > 0

    def observe(self, start_s: int, end_s: int, units: float) -> None:
        """Take in what was used in a slot within one hour; slots come in order and without gaps."""
        if self._begun_s is None:
            self._begun_s = start_s
        self._hours[start_s // HOUR_S % 24] += units
        if end_s % DAY_S == 0:
            if self._begun_s <= end_s - DAY_S:
                self._learn_day(end_s // DAY_S - 1)
            self._hours = [0.0] * 24

    def between(self, start_s: float, end_s: float) -> float:
        """Give the mean factor of a stretch, at least LEAST_FACTOR."""
        if end_s <= start_s:
            return max(LEAST_FACTOR, self._factors[floor(start_s / HOUR_S) % WEEK_HOURS])
        return max(LEAST_FACTOR, self.hours_worth(start_s, end_s) * HOUR_S / (end_s - start_s))

    def hours_worth(self, start_s: float, end_s: float) -> float:
        """Give how many average hours' use a stretch is worth."""
        return self._until(end_s) - self._until(start_s)

    def _until(self, at_s: float) -> float:
        hours = at_s / HOUR_S
        whole = floor(hours)
        weeks, hour = divmod(whole, WEEK_HOURS)
        return weeks * self._sums[WEEK_HOURS] + self._sums[hour] + (hours - whole) * self._factors[hour]

    def _learn_day(self, day: int) -> None:
        total = sum(self._hours)
        self._totals = [*self._totals[-6:], total]
        if total <= 0:
            return
        self._days_seen = self._days_seen * _DAY_FADES + 1
        for hour, units in enumerate(self._hours):
            self._hour_ratios[hour] = self._hour_ratios[hour] * _DAY_FADES + units * 24 / total
        if len(self._totals) == _WEEK_DAYS:
            weekday = day % _WEEK_DAYS
            self._weekday_ratios[weekday] = self._weekday_ratios[weekday] * _WEEK_FADES + total * _WEEK_DAYS / sum(
                self._totals
            )
            self._weekday_weights[weekday] = self._weekday_weights[weekday] * _WEEK_FADES + 1
        self._refresh()

    def _refresh(self) -> None:
        hours = [(ratio + _DAYS_OF_DOUBT) / (self._days_seen + _DAYS_OF_DOUBT) for ratio in self._hour_ratios]
        days = [
            (ratio + _DAYS_OF_DOUBT) / (weight + _DAYS_OF_DOUBT)
            for ratio, weight in zip(self._weekday_ratios, self._weekday_weights, strict=True)
        ]
        total = 0.0
        for hour in range(WEEK_HOURS):
            self._factors[hour] = max(LEAST_FACTOR, days[hour // 24] * hours[hour % 24])
            total += self._factors[hour]
            self._sums[hour + 1] = total
