"""Cron expressions with a time zone and a duration, as spans of time.

One rule: a span begins when Debian's cron would start a job (so at a change of clocks too) and lasts a number of real
seconds. What happens during one is not known here. The expressions are read by cronsim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import islice, pairwise

from cronsim import CronSim, CronSimError

FIELDS = ("minute", "hour", "day of month", "month", "day of week")
MOST_CHARS = 200
MOST_SPANS = 1_000

_TRIED = 400
"""Occurrences looked at for whether one begins before the last has ended: more than a year of days."""

_TRIED_FROM = datetime(2024, 1, 1, tzinfo=UTC)  # a leap year


class CronError(ValueError):
    """The expression cannot be used; the message says what was expected."""


@dataclass(frozen=True)
class CronSpans:
    """A span of `duration_s` from each instant that an expression of five fields names in a time zone.

    Raises:
        CronError: it is none, names no instant, or names one before the last span has ended.
    """

    expression: str
    zone: tzinfo
    duration_s: int

    def __post_init__(self) -> None:
        if len(self.expression) > MOST_CHARS or len(self.expression.split()) != len(FIELDS):
            raise CronError(f"expected five fields ({', '.join(FIELDS)}), such as 30 2 * * sun")
        try:
            begins_s = list(islice(self._from(_TRIED_FROM.astimezone(self.zone)), _TRIED))
        except CronSimError as error:
            field = str(error).removeprefix("Bad ").replace("-", " ")
            raise CronError(f"the {field} cannot be used; expected five fields such as 30 2 * * sun") from error
        if not begins_s:
            raise CronError("names no instant in 50 years")
        least_s = min((later - earlier for earlier, later in pairwise(begins_s)), default=float("inf"))
        if least_s <= self.duration_s:
            raise CronError(
                f"begins again after {least_s:,.0f} s, before {self.duration_s:,} s are over; it would never end"
            )

    def __call__(self, from_s: float, until_s: float) -> list[tuple[float, float]]:
        """Give every span that touches the time between two instants, in order, at most MOST_SPANS."""
        found: list[tuple[float, float]] = []
        for begins_s in self._from(datetime.fromtimestamp(from_s - self.duration_s - 60, self.zone)):
            ends_s = begins_s + self.duration_s
            if begins_s >= until_s or len(found) >= MOST_SPANS:
                break
            if ends_s > from_s:
                found.append((begins_s, ends_s))
        return found

    def _from(self, at: datetime) -> Iterator[float]:
        """Give the instants after one; two that a change of clocks makes one are one."""
        last_s = float("-inf")
        for each in CronSim(self.expression, at):
            if each.timestamp() > last_s:
                last_s = each.timestamp()
                yield last_s
