"""Spans: when a window of time begins and ends.

One rule: a span answers only where the window around `now` ends; how much was used in it is the level's affair.
Calendar spans follow the wall clock of a time zone, so a day of 23 or 25 hours is one day.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal, assert_never

from headgate.core.instants import NS_PER_S, to_ns

HOUR_NS = 3600 * NS_PER_S

CalendarUnit = Literal["hour", "day", "week", "month"]


@dataclass(frozen=True, slots=True)
class Calendar:
    """The current hour, day, week (from Monday) or month in a time zone."""

    unit: CalendarUnit
    zone: tzinfo = UTC

    @property
    def name(self) -> str:
        """The span as level names carry it."""
        return self.unit if self.zone is UTC else f"{self.unit}@{self.zone}"

    def end_ns(self, now_ns: int) -> int:
        """Give the first instant after the calendar unit that holds `now_ns`."""
        # Whole seconds are enough: calendar units begin on them in every time zone.
        local = datetime.fromtimestamp(now_ns // NS_PER_S, self.zone).replace(tzinfo=None, minute=0, second=0)
        match self.unit:
            case "hour":
                return self._hour_end_ns(now_ns)
            case "day":
                end = local.replace(hour=0) + timedelta(days=1)
            case "week":
                end = local.replace(hour=0) + timedelta(days=7 - local.weekday())
            case "month":
                end = (local.replace(hour=0, day=1) + timedelta(days=32)).replace(day=1)
            case _:
                assert_never(self.unit)
        return to_ns(end.replace(tzinfo=self.zone).timestamp())

    def _hour_end_ns(self, now_ns: int) -> int:
        # Wall arithmetic would go wrong in the hour that a change of clocks repeats: count from the offset instead.
        offset = datetime.fromtimestamp(now_ns // NS_PER_S, self.zone).utcoffset() or timedelta()
        offset_ns = to_ns(offset.total_seconds())
        return ((now_ns + offset_ns) // HOUR_NS + 1) * HOUR_NS - offset_ns


@dataclass(frozen=True, slots=True)
class Fixed:
    """Windows of `period_s` laid end to end from `anchor_s` (seconds since the epoch), whatever the clocks on walls do.

    Anchors that are whole periods apart lay the same windows, but name other levels: see `anchored`.
    """

    period_s: int
    anchor_s: int = 0

    @classmethod
    def anchored(cls, period_s: int, at_s: int) -> "Fixed":
        """Give the windows of which one begins at `at_s`, the same for every such instant."""
        return cls(period_s, at_s % period_s)

    @property
    def name(self) -> str:
        """The span as level names carry it."""
        return f"every-{self.period_s}s" + (f"+{self.anchor_s}" if self.anchor_s else "")

    def end_ns(self, now_ns: int) -> int:
        """Give the end of the window that holds `now_ns`."""
        period_ns, anchor_ns = self.period_s * NS_PER_S, self.anchor_s * NS_PER_S
        return ((now_ns - anchor_ns) // period_ns + 1) * period_ns + anchor_ns


@dataclass(frozen=True, slots=True)
class OpenedByUse:
    """A plan window: opened by the first call after the last one ended, floored to the hour.

    Source: observed behaviour of Anthropic's 5 h and 7 d subscription windows (wire.md section 2, November 2026,
    undocumented); what the provider's reset header says replaces this.
    """

    period_s: int

    @property
    def name(self) -> str:
        """The span as level names carry it."""
        return f"plan-{self.period_s}s"

    def end_ns(self, now_ns: int) -> int:
        """Give the end of a window that a call opens at `now_ns`."""
        return now_ns // HOUR_NS * HOUR_NS + self.period_s * NS_PER_S


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The whole life of a scope: a budget that never resets."""

    @property
    def name(self) -> str:
        """The span as level names carry it."""
        return "lifetime"

    def end_ns(self, now_ns: int) -> None:
        """Give no end."""


Span = Calendar | Fixed | OpenedByUse | Lifetime
