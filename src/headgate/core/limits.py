"""Limits: a bound on one dimension in one scope, and the arithmetic of its level.

One rule: a limit is a value and a level is a tuple of whole numbers; every method takes a level and gives a new one.
Which limits a call meets is `scopes`' affair, all of them together is `quota`'s. All kinds have one face; rates and
windows have a file each.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.levels import FOREVER_NS, Booked, Kind, Level, Never, Reading, Short, lane_named
from headgate.core.rates import Rate
from headgate.core.windows import SAME_END_NS, Rolling, Window

__all__ = [
    "FOREVER_NS",
    "SAME_END_NS",
    "Booked",
    "Gauge",
    "Kind",
    "Level",
    "Limit",
    "Never",
    "Rate",
    "Reading",
    "Rolling",
    "Short",
    "Window",
]


@dataclass(frozen=True, slots=True)
class Gauge:
    """At most `amount` units in use at the same time.

    The level is `(held, lapse_ns, generation)`; a lost hold is released, at the latest at `lapse_ns`, when the last of
    the holds has expired.
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    models: str | None = None
    place: int = field(init=False, repr=False, compare=False)
    lane: str = field(init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "gauge"
    holds_likely: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", DIMENSIONS.index(self.dimension))
        object.__setattr__(self, "lane", lane_named(self.scope, self.models))

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:
        """Take `units`, or say when the last holder's lease ends."""
        if units > self.amount:
            return Never(self.amount)
        held, lapse_ns, generation = self._current(level, now_ns)
        if held + units <= self.amount:
            return (held + units, max(lapse_ns, expires_ns), generation), generation
        return Short(lapse_ns, now_ns)

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:  # noqa: ARG002 - one face for all limits
        """Give the units back; what was used does not stay used."""
        return level or (0, 0, token) if lapsed else self.lapse(level, held, token, now_ns)

    def lapse(self, level: Level | None, held: int, token: int, now_ns: int) -> Level:
        """Give the units of a lost hold back."""
        all_held, lapse_ns, generation = self._current(level, now_ns)
        if token != generation:
            return (all_held, lapse_ns, generation)
        return (all_held - held, lapse_ns if all_held > held else 0, generation)

    def renewed(self, level: Level, token: int, expires_ns: int) -> Level:
        """Let the lease of a hold last until `expires_ns`, unless it has lapsed."""
        held, lapse_ns, generation = level
        return (held, max(lapse_ns, expires_ns), generation) if token == generation else level

    def freed(self, level: Level, now_ns: int) -> Level:
        """Give the level as it would be if all that is held came back now."""
        return (0, 0, self._current(level, now_ns)[2])

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the level; nothing of it resets by itself while its holders live."""
        held, _lapse_ns, _generation = self._current(level, now_ns)
        return Reading(0, held, max(0, self.amount - held), None)

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        return level[1]

    def _current(self, level: Level | None, now_ns: int) -> tuple[int, int, int]:
        if level is None:
            return 0, 0, now_ns
        held, lapse_ns, generation = level
        if held and now_ns >= lapse_ns:
            return 0, 0, generation + 1
        return held, lapse_ns, generation


Limit = Rate | Window | Rolling | Gauge
