"""Limits: a bound on one dimension in one scope, and the arithmetic of its level.

One rule: a limit is a value and a level is a tuple of whole numbers; every method takes a level and gives a new one.
Which limits a call meets is `rules`' affair, all of them together is `quota`'s.

A level counts three things: what was used, what is held for calls on their way, and what is pending (held by calls that
were lost and may have cost money). A level that does not exist yet is None and means nothing was used.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from headgate.core.amounts import Dimension
from headgate.core.instants import NS_PER_S
from headgate.core.spans import Span

Level = tuple[int, ...]
Kind = Literal["rate", "window", "gauge"]

FOREVER_NS = 2**63 - 1
"""Later than any instant: the end of a window that never ends."""


class Booked(NamedTuple):
    """A hold was taken: the new level, and the token that finds its place in the level again."""

    level: Level
    token: int


class Short(NamedTuple):
    """There is no room now.

    `until_ns`: there is room at the latest then, if nothing else is admitted (FOREVER_NS: only a settlement can make
    room). `earliest_ns`: there is none before, even if every hold comes back unused.
    """

    until_ns: int
    earliest_ns: int


class Never(NamedTuple):
    """There will not be room: more was asked than the limit allows at all, or than is left for good."""

    free: int


class Reading(NamedTuple):
    """A level as people read it, in units of the limit's dimension; `resets_ns` is None when nothing is to reset."""

    used: int
    held: int
    free: int
    resets_ns: int | None


@dataclass(frozen=True, slots=True)
class Rate:
    """`amount` units per `period_s`, continuously refilled, at most `burst` at once (GCRA).

    The level is `(at_ns, backlog, held, lapse_ns, generation)`: at `at_ns` there were backlog / period units still to
    drain. This is the virtual-scheduling form's theoretical arrival time, `at + backlog / amount`, kept as a fraction,
    so that sums are exact and do not depend on their order (ITU-T I.371 annex A; decision 0002).

    A hold does not drain: a provider may charge it at any time until it is settled, so it is charged when it is
    settled. What is certain from the start (`charged_at_start`: a request is one request) drains from the start.
    `lapse_ns` is when the last of the holds expires; from then on they count as spent. A call of up to
    `largest` units (None: `burst`) that exceeds the burst is admitted when nothing is used or held, into debt: where
    the burst is kept below a provider's own, so that jitter cannot overflow that, a large call must still go.

    `most_held` bounds what one call holds: an estimate that is settled later is a guess, and a guess above what the
    limit can ever give must not refuse a call (agents ask for far more output than they use; cached input is free).
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    period_s: int
    burst: int
    models: str | None = None
    largest: int | None = None
    charged_at_start: bool = False
    period_ns: int = field(init=False, repr=False, compare=False)
    most_held: int = field(init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "rate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "period_ns", self.period_s * NS_PER_S)
        object.__setattr__(self, "most_held", FOREVER_NS if self.charged_at_start else self.largest or self.burst)

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:
        """Hold `units` until they are settled, or say when there is room."""
        at_ns, backlog, held, lapse_ns, generation = self._drained(level, now_ns)
        burst = self.burst
        needed = units
        if units > burst:
            if units > (self.largest or burst):
                return Never(self.largest or burst)
            needed = burst
        excess = backlog + (held + needed - burst) * self.period_ns
        if excess > 0:
            return self._short(level, needed, now_ns)
        if self.charged_at_start:
            return Booked((at_ns, backlog + units * self.period_ns, held, lapse_ns, generation), at_ns)
        if expires_ns > lapse_ns:  # noqa: PLR1730 - max() costs three times as much, on the way of every call
            lapse_ns = expires_ns
        return Booked((at_ns, backlog, held + units, lapse_ns, generation), generation)

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:
        """Replace a hold by what was used; more than the hold becomes debt."""
        at_ns, backlog, all_held, lapse_ns, generation = self._drained(level, now_ns)
        if self.charged_at_start:
            more = (actual - held) * self.period_ns
            if more < 0:
                # What has drained since cannot be given back: others have been admitted on it.
                given_back = max(0, -more - max(0, now_ns - token) * self.amount)
                return (at_ns, max(0, backlog - given_back), all_held, lapse_ns, generation)
            return (at_ns, backlog + more, all_held, lapse_ns, generation)
        if lapsed or token != generation:
            # It was counted as spent when it lapsed, and that may have drained since: only what is more is added.
            return (at_ns, backlog + max(0, actual - held) * self.period_ns, all_held, lapse_ns, generation)
        all_held -= held
        return (at_ns, backlog + actual * self.period_ns, all_held, lapse_ns if all_held else 0, generation)

    def lapse(self, level: Level | None, held: int, token: int, now_ns: int) -> Level:
        """Count a lost hold as spent."""
        at_ns, backlog, all_held, lapse_ns, generation = self._drained(level, now_ns)
        if self.charged_at_start or token != generation:
            return (at_ns, backlog, all_held, lapse_ns, generation)
        all_held -= held
        backlog += held * self.period_ns
        return (at_ns, backlog, all_held, lapse_ns if all_held else 0, generation)

    def renewed(self, level: Level, token: int, expires_ns: int) -> Level:
        """Let the lease of a hold last until `expires_ns`, unless it has lapsed."""
        at_ns, backlog, held, lapse_ns, generation = level
        return (at_ns, backlog, held, max(lapse_ns, expires_ns), generation) if token == generation else level

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the level; `resets_ns` is when the bucket is full again if nothing more is used."""
        at_ns, backlog, held, _lapse_ns, _generation = self._drained(level, now_ns)
        used = _ceil_div(backlog, self.period_ns)
        resets_ns = at_ns + _ceil_div(backlog, self.amount) if backlog else None
        return Reading(used, held, max(0, self.burst - used - held), resets_ns)

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        at_ns, backlog, held, lapse_ns, _generation = level
        backlog += held * self.period_ns
        return max(at_ns, lapse_ns) + _ceil_div(backlog, self.amount)

    def _short(self, level: Level | None, needed: int, now_ns: int) -> Short:
        """Say when `needed` units fit, which do not now."""
        at_ns, backlog, held, lapse_ns, _generation = self._drained(level, now_ns)
        unheld_excess = backlog + (needed - self.burst) * self.period_ns
        earliest_ns = at_ns + _ceil_div(unheld_excess, self.amount) if unheld_excess > 0 else now_ns
        over = (held + needed - self.burst) * self.period_ns
        if over <= 0:
            return Short(at_ns + _ceil_div(backlog + over, self.amount), earliest_ns)
        # The holds alone leave no room: at the latest they lapse, count as spent, and drain.
        drained = max(0, backlog - max(0, lapse_ns - at_ns) * self.amount)
        return Short(max(at_ns, lapse_ns) + _ceil_div(drained + over, self.amount), earliest_ns)

    def _drained(self, level: Level | None, now_ns: int) -> tuple[int, int, int, int, int]:
        if level is None:  # the instant makes the generation one that no earlier hold can name
            return now_ns, 0, 0, 0, now_ns
        at_ns, backlog, held, lapse_ns, generation = level
        if held and now_ns >= lapse_ns:
            backlog = max(0, backlog - max(0, lapse_ns - at_ns) * self.amount) + held * self.period_ns
            at_ns, held, generation = max(at_ns, lapse_ns), 0, generation + 1
            lapse_ns = 0
        if now_ns > at_ns:  # a clock that steps back drains nothing
            backlog -= (now_ns - at_ns) * self.amount
            return now_ns, backlog if backlog > 0 else 0, held, lapse_ns, generation  # noqa: FURB136 - max() costs 3 x
        return at_ns, backlog, held, lapse_ns, generation


@dataclass(frozen=True, slots=True)
class Window:
    """At most `amount` units in each window of a span.

    The level is `(serial, end_ns, used, held, pending)`; the serial is the end that the window had when it opened. A
    hold belongs to the window in which it was taken, whenever it is settled. A lost hold stays pending at its estimate
    until it is reconciled.
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    span: Span
    models: str | None = None

    kind: ClassVar[Kind] = "window"

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:  # noqa: ARG002 - one face for all limits
        """Hold `units` in the current window, or say when the next one begins."""
        serial, end_ns, used, held, pending = self._current(level, now_ns)
        free = self.amount - used - held - pending
        if units <= free:
            return Booked((serial, end_ns, used, held + units, pending), serial)
        if units > self.amount or (end_ns == FOREVER_NS and units > free + held):
            return Never(max(0, free + held if end_ns == FOREVER_NS else self.amount))
        return Short(end_ns, now_ns if units <= free + held else end_ns)

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:
        """Replace a hold by what was used; what belongs to a window that has ended changes nothing."""
        if level is None or level[0] != token:
            return level or self._current(None, now_ns)
        serial, end_ns, used, all_held, pending = level
        if lapsed:
            return (serial, end_ns, used + actual, all_held, pending - held)
        return (serial, end_ns, used + actual, all_held - held, pending)

    def lapse(self, level: Level | None, held: int, token: int, now_ns: int) -> Level:
        """Keep a lost hold as pending."""
        if level is None or level[0] != token:
            return level or self._current(None, now_ns)
        serial, end_ns, used, all_held, pending = level
        return (serial, end_ns, used, all_held - held, pending + held)

    def renewed(self, level: Level, token: int, expires_ns: int) -> Level:  # noqa: ARG002 - one face for all limits
        """Change nothing: a hold in a window does not lapse by time."""
        return level

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the current window; what is pending counts as used."""
        _serial, end_ns, used, held, pending = self._current(level, now_ns)
        spent = used + pending
        in_use = spent or held
        resets_ns = end_ns if in_use and end_ns != FOREVER_NS else None
        return Reading(spent, held, max(0, self.amount - spent - held), resets_ns)

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        return level[1]

    def moved(self, level: Level | None, now_ns: int, ends_ns: int) -> Level:
        """Replace the end of the current window by what a provider's reset header says."""
        serial, _end_ns, used, held, pending = self._current(level, now_ns)
        return (serial, ends_ns, used, held, pending)

    def _current(self, level: Level | None, now_ns: int) -> tuple[int, int, int, int, int]:
        if level is None or now_ns >= level[1]:
            opened_end_ns = self.span.end_ns(now_ns)
            end_ns = FOREVER_NS if opened_end_ns is None else opened_end_ns
            return end_ns, end_ns, 0, 0, 0
        serial, end_ns, used, held, pending = level
        return serial, end_ns, used, held, pending


@dataclass(frozen=True, slots=True)
class Rolling:
    """At most `amount` units in any stretch of `period_s`.

    The level is a run of `(slice, used, held, pending)`, oldest first; a slice is a sixtieth of the period and leaves
    when even its last instant is a whole period old, so a stretch never holds more than `amount`.
    """

    name: str
    scope: str
    dimension: Dimension
    amount: int
    period_s: int
    models: str | None = None

    SLICES: ClassVar[int] = 60
    kind: ClassVar[Kind] = "window"

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
            return Booked(_flat(slices), slices[-1][0])
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

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the level; `resets_ns` is when all of it has left."""
        slices = self._live(level, now_ns)
        spent = sum(used + pending for _index, used, _held, pending in slices)
        held = sum(held for _index, _used, held, _pending in slices)
        resets_ns = self._leaves_ns(slices[-1][0]) if slices else None
        return Reading(spent, held, max(0, self.amount - spent - held), resets_ns)

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

    kind: ClassVar[Kind] = "gauge"

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:
        """Take `units`, or say when the last holder's lease ends."""
        if units > self.amount:
            return Never(self.amount)
        held, lapse_ns, generation = self._current(level, now_ns)
        if held + units <= self.amount:
            return Booked((held + units, max(lapse_ns, expires_ns), generation), generation)
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


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _flat(slices: list[tuple[int, int, int, int]]) -> Level:
    return tuple(number for entry in slices for number in entry)
