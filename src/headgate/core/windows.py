"""Windows: so many units in each span of time, or in any stretch of one length.

One rule: a hold belongs to the window or slice in which it was taken, whenever it is settled; a lost one stays pending
at its estimate until it is reconciled.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.instants import NS_PER_S
from headgate.core.levels import FOREVER_NS, Booked, Kind, Level, Never, Reading, Short, lane_named
from headgate.core.spans import Span

SAME_END_NS = NS_PER_S
"""Ends that differ by no more are one: providers tell them in whole seconds."""


@dataclass(frozen=True, slots=True)
class Window:
    """At most `amount` units in each window of a span.

    The level is `(serial, end_ns, used, held, pending)`; the serial is the instant at which the window opened, for two
    plan windows in a row may have the same end of their own when a provider moves the first one's. A hold belongs to
    the window in which it was taken, whenever it is settled. A lost hold stays pending at its estimate until it is
    reconciled. With `holds_likely` calls hold of it what is likely, not a bound (`amounts.Demand`): what one uses
    beyond is used all the same, and can take the window over its amount. With `ends_streams` a running stream holds
    more of it by and by (`extending`), and is ended when there is no more.
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    span: Span
    models: str | None = None
    closed_until_ns: int = 0
    holds_likely: bool = False
    ends_streams: bool = False
    place: int = field(init=False, repr=False, compare=False)
    lane: str = field(init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "window"

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", DIMENSIONS.index(self.dimension))
        object.__setattr__(self, "lane", lane_named(self.scope, self.models))

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:
        """Hold `units` in the current window, or say when the next one begins."""
        if now_ns < self.closed_until_ns:
            then = self.hold(level, units, self.closed_until_ns, expires_ns)
            return Short(self.closed_until_ns, self.closed_until_ns) if isinstance(then, tuple) else then
        serial, end_ns, used, held, pending = self._current(level, now_ns)
        free = self.amount - used - held - pending
        if units <= free:
            return (serial, end_ns, used, held + units, pending), serial
        if units > self.amount or (end_ns == FOREVER_NS and units > free + held):
            return Never(max(0, free + held if end_ns == FOREVER_NS else self.amount))
        return Short(end_ns, now_ns if units <= free + held else end_ns)

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:  # noqa: ARG002 - one face for all limits
        """Replace a hold by what was used; what belongs to a window that has ended changes nothing."""
        if level is None or level[0] != token:
            return level or (token, token, 0, 0, 0)  # forgotten: it opens no new one
        serial, end_ns, used, all_held, pending = level
        if lapsed:
            return (serial, end_ns, used + actual, all_held, pending - held)
        return (serial, end_ns, used + actual, all_held - held, pending)

    def grown(self, level: Level | None, more: int, token: int, now_ns: int) -> Level | None:
        """Let a hold be so much larger where it was taken, whether that fits or not; None: that window is over."""
        if level is None or level[0] != token or now_ns >= level[1]:
            return None
        serial, end_ns, used, held, pending = level
        return (serial, end_ns, used, held + more, pending)

    def lapse(self, level: Level | None, held: int, token: int, now_ns: int) -> Level:  # noqa: ARG002 - one face for all limits
        """Keep a lost hold as pending."""
        if level is None or level[0] != token:
            return level or (token, token, 0, 0, 0)  # forgotten: it opens no new one
        serial, end_ns, used, all_held, pending = level
        return (serial, end_ns, used, all_held - held, pending + held)

    def renewed(self, level: Level, token: int, expires_ns: int) -> Level:  # noqa: ARG002 - one face for all limits
        """Change nothing: a hold in a window does not lapse by time."""
        return level

    def freed(self, level: Level, now_ns: int) -> Level:
        """Give the level as it would be if all that is held came back unused now."""
        serial, end_ns, used, _held, pending = self._current(level, now_ns)
        return (serial, end_ns, used, 0, pending)

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the current window; what is pending counts as used."""
        _serial, end_ns, used, held, pending = self._current(level, now_ns)
        spent = used + pending
        in_use = spent or held
        resets_ns = end_ns if in_use and end_ns != FOREVER_NS else None
        return Reading(spent, held, max(0, self.amount - spent - held), resets_ns)

    def pending(self, level: Level | None, now_ns: int) -> int:
        """Give how much of what counts as used was held for calls that were lost and that nobody has settled yet."""
        return self._current(level, now_ns)[4]

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        return level[1]

    def moved(self, level: Level | None, now_ns: int, ends_ns: int) -> Level | None:
        """Let the current window end when its provider says; None if that is past, or no news.

        What is used and held in it stays. A window that was not open is: its provider's is.
        """
        serial, end_ns, used, held, pending = self._current(level, now_ns)
        if ends_ns <= now_ns or abs(ends_ns - end_ns) <= SAME_END_NS:
            return None
        return (serial, ends_ns, used, held, pending)

    def _current(self, level: Level | None, now_ns: int) -> tuple[int, int, int, int, int]:
        if level is None or now_ns >= level[1]:
            opened_end_ns = self.span.end_ns(now_ns)
            end_ns = FOREVER_NS if opened_end_ns is None else opened_end_ns
            return now_ns, end_ns, 0, 0, 0
        serial, end_ns, used, held, pending = level
        return serial, end_ns, used, held, pending


@dataclass(frozen=True, slots=True)
class Rolling:
    """At most `amount` units in any stretch of `period_s`.

    The level is a run of `(slice, used, held, pending)`, oldest first; a slice is a sixtieth of the period and leaves
    when even its last instant is a whole period old, so a stretch never holds more than `amount`. `holds_likely` and
    `ends_streams` as of a `Window`.
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    period_s: int
    models: str | None = None
    holds_likely: bool = False
    ends_streams: bool = False
    place: int = field(init=False, repr=False, compare=False)
    lane: str = field(init=False, repr=False, compare=False)

    SLICES: ClassVar[int] = 60
    kind: ClassVar[Kind] = "window"

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", DIMENSIONS.index(self.dimension))
        object.__setattr__(self, "lane", lane_named(self.scope, self.models))

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:  # noqa: ARG002 - one face for all limits
        """Hold `units` in the newest slice, or say when enough old slices have left."""
        if units > self.amount:
            return Never(self.amount)
        slices = self._live(level, now_ns)
        free = self.amount - sum(used + held + pending for _index, used, held, pending in slices)
        newest = now_ns // self._slice_ns()
        if units <= free:
            if slices and slices[-1][0] >= newest:  # a clock that stepped back books into the newest slice
                index, used, held, pending = slices[-1]
                slices[-1] = (index, used, held + units, pending)
            else:
                slices.append((newest, 0, units, 0))
            return _flat(slices), slices[-1][0]
        lacking = units - free
        unheld = [(index, used, 0, pending) for index, used, _held, pending in slices]
        lacking_unheld = lacking - sum(held for _index, _used, held, _pending in slices)
        return Short(self._room_ns(slices, lacking, now_ns), self._room_ns(unheld, lacking_unheld, now_ns))

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:
        """Replace a hold by what was used, in the slice in which it was taken."""
        slices = self._live(level, now_ns)
        for position, (index, used, all_held, pending) in enumerate(slices):
            if index == token:
                left = (all_held, pending - held) if lapsed else (all_held - held, pending)
                slices[position] = (index, used + actual, *left)
        return _flat(slices)

    def grown(self, level: Level | None, more: int, token: int, now_ns: int) -> Level | None:
        """Let a hold be so much larger where it was taken, whether that fits or not; None: that slice has left."""
        slices = self._live(level, now_ns)
        for position, (index, used, held, pending) in enumerate(slices):
            if index == token:
                slices[position] = (index, used, held + more, pending)
                return _flat(slices)
        return None

    def lapse(self, level: Level | None, held: int, token: int, now_ns: int) -> Level:
        """Keep a lost hold as pending."""
        slices = self._live(level, now_ns)
        for position, (index, used, all_held, pending) in enumerate(slices):
            if index == token:
                slices[position] = (index, used, all_held - held, pending + held)
        return _flat(slices)

    def renewed(self, level: Level, token: int, expires_ns: int) -> Level:  # noqa: ARG002 - one face for all limits
        """Change nothing: a hold in a window does not lapse by time."""
        return level

    def freed(self, level: Level, now_ns: int) -> Level:
        """Give the level as it would be if all that is held came back unused now."""
        return _flat([(index, used, 0, pending) for index, used, _held, pending in self._live(level, now_ns)])

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the level; `resets_ns` is when all of it has left."""
        slices = self._live(level, now_ns)
        spent = sum(used + pending for _index, used, _held, pending in slices)
        held = sum(held for _index, _used, held, _pending in slices)
        resets_ns = self._leaves_ns(slices[-1][0]) if slices else None
        return Reading(spent, held, max(0, self.amount - spent - held), resets_ns)

    def pending(self, level: Level | None, now_ns: int) -> int:
        """Give how much of what counts as used was held for calls that were lost and that nobody has settled yet."""
        return sum(pending for _index, _used, _held, pending in self._live(level, now_ns))

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        return self._leaves_ns(level[-4]) if level else 0

    def _room_ns(self, slices: list[tuple[int, int, int, int]], needed: int, now_ns: int) -> int:
        """Give when slices with at least `needed` units have left, oldest first."""
        at_ns = now_ns
        for index, used, held, pending in slices:
            if needed <= 0:
                break
            needed -= used + held + pending
            at_ns = self._leaves_ns(index)
        return at_ns

    def _live(self, level: Level | None, now_ns: int) -> list[tuple[int, int, int, int]]:
        flat = level or ()
        slices = [(flat[i], flat[i + 1], flat[i + 2], flat[i + 3]) for i in range(0, len(flat), 4)]
        return [entry for entry in slices if self._leaves_ns(entry[0]) > now_ns]

    def _leaves_ns(self, index: int) -> int:
        return (index + 1) * self._slice_ns() + self.period_s * NS_PER_S

    def _slice_ns(self) -> int:
        return self.period_s * NS_PER_S // self.SLICES


def _flat(slices: list[tuple[int, int, int, int]]) -> Level:
    return tuple(number for entry in slices for number in entry)
