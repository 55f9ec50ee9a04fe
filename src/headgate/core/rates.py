"""Rates: so many units a minute, continuously refilled.

One rule: sums are whole numbers, so that they are exact and do not depend on their order; what is held does not drain.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.instants import NS_PER_S
from headgate.core.levels import FOREVER_NS, Booked, Kind, Level, Never, Reading, Short, ceil_div, lane_named

PARTS = 16
"""An answer that is charged as it goes by is charged so often while a full bucket drains: each part not charged yet is
held beside what comes next, so with fewer parts less of the limit is used, with more there are more transactions."""

LEAST_PART_NS = NS_PER_S // 4


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
    place: int = field(init=False, repr=False, compare=False)
    lane: str = field(init=False, repr=False, compare=False)
    period_ns: int = field(init=False, repr=False, compare=False)
    most_held: int = field(init=False, repr=False, compare=False)
    is_drawn: bool = field(init=False, repr=False, compare=False)

    kind: ClassVar[Kind] = "rate"
    holds_likely: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", DIMENSIONS.index(self.dimension))
        object.__setattr__(self, "lane", lane_named(self.scope, self.models))
        object.__setattr__(self, "period_ns", self.period_s * NS_PER_S)
        object.__setattr__(self, "most_held", FOREVER_NS if self.charged_at_start else self.largest or self.burst)
        object.__setattr__(self, "is_drawn", self.dimension == "output_tokens" and not self.charged_at_start)

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Booked | Short | Never:
        """Hold `units` until they are settled, or say when there is room."""
        # As in `_drained`, in one call less: this and `settle` are on the way of every call, once for each limit.
        if level is None or (now_ns >= level[3] and level[2]):
            level = self._drained(level, now_ns)
        at_ns, backlog, held, lapse_ns, generation = level
        if now_ns > at_ns:
            if backlog and (backlog := backlog - (now_ns - at_ns) * self.amount) < 0:
                backlog = 0
            at_ns = now_ns
        burst = needed = self.burst
        if units <= burst:
            needed = units
        elif units > (self.largest or burst):
            return Never(self.largest or burst)
        over = held + needed - burst
        if over > 0 or (backlog and backlog + over * self.period_ns > 0):
            return self._short(level, needed, now_ns)
        if self.charged_at_start:
            return (at_ns, backlog + units * self.period_ns, held, lapse_ns, generation), at_ns
        if expires_ns > lapse_ns:  # noqa: PLR1730 - max() costs three times as much, on the way of every call
            lapse_ns = expires_ns
        return (at_ns, backlog, held + units, lapse_ns, generation), generation

    def part_of_stream(self, tokens_per_s: int) -> int:
        """Give how much of an answer goes by between two charges, at its pace: what is not charged yet stays held."""
        drains, least = self.burst * self.period_ns, PARTS * LEAST_PART_NS * self.amount
        return -(-tokens_per_s * (drains if drains > least else least) // (PARTS * self.amount * NS_PER_S))  # noqa: FURB136 - as in `hold`

    def ahead_of_stream(self, tokens_per_s: int) -> int:
        """Give what to hold of an answer of that pace which is charged as it goes by: what comes next, not all of it.

        That is what it writes while a full bucket drains, and a part that is not charged yet. It is enough: let streams
        of paces r hold r x D each, D = burst / amount, in what a backlog leaves of the burst. Within D they write what
        they hold; in any longer t, sum(r) x t <= (1 - backlog / burst) x amount x t, which is less than what drains.
        """
        ahead = -(-tokens_per_s * self.burst * self.period_ns // (self.amount * NS_PER_S))
        return ahead + self.part_of_stream(tokens_per_s)

    def settle(self, level: Level | None, held: int, actual: int, token: int, now_ns: int, *, lapsed: bool) -> Level:
        """Replace a hold by what was used; more than the hold becomes debt."""
        if level is None or (now_ns >= level[3] and level[2]):
            level = self._drained(level, now_ns)
        at_ns, backlog, all_held, lapse_ns, generation = level
        if now_ns > at_ns:
            if backlog and (backlog := backlog - (now_ns - at_ns) * self.amount) < 0:
                backlog = 0
            at_ns = now_ns
        if self.charged_at_start:
            more = (actual - held) * self.period_ns
            if more < 0:
                if token < generation:  # it was closed since, and what was counted before stands for nothing
                    return (at_ns, backlog, all_held, lapse_ns, generation)
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

    def drained(self, level: Level, now_ns: int) -> Level:
        """Give the level as it is now: what is to happen to it from now on may follow another pace."""
        return self._drained(level, now_ns)

    def set_back(self, level: Level | None, now_ns: int, beyond_ns: int) -> Level | None:
        """Let a level that is ahead of a clock that was set back drain from now on; None if it is so by less.

        What it holds and what is still to drain stays: nothing is given anew, and what was closed fills from empty.
        """
        if level is None or level[0] - now_ns <= beyond_ns:
            return None
        _at_ns, backlog, held, lapse_ns, generation = level
        if self.charged_at_start and generation > now_ns:  # the instant from which what was charged counts
            generation = now_ns
        return (now_ns, backlog, held, lapse_ns, generation)

    def freed(self, level: Level, now_ns: int) -> Level:
        """Give the level as it would be if all that is held came back unused now."""
        at_ns, backlog, _held, _lapse_ns, generation = self._drained(level, now_ns)
        return (at_ns, backlog, 0, 0, generation)

    def corrected(self, level: Level | None, least: int, most: int | None, now_ns: int, ease: int = 0) -> Level | None:
        """Let at least `least` and at most `most` units be in use, counting what is held; None if that is so.

        `least` is known where others spend too, `most` where the bucket is smaller than it was: it is empty at most.
        `ease` units are taken back before: they were counted here, and not by the provider.
        """
        at_ns, backlog, held, lapse_ns, generation = self._drained(level, now_ns)
        corrected = max(0, backlog - ease * self.period_ns, (least - held) * self.period_ns)
        if most is not None:
            corrected = max(0, min(corrected, (most - held) * self.period_ns))
        return (at_ns, corrected, held, lapse_ns, generation) if corrected != backlog else None

    def closed(
        self, level: Level | None, units: int, until_ns: int, now_ns: int, *, exactly: bool = False
    ) -> Level | None:
        """Let `units` fit at `until_ns` and none before, if no hold comes back; None if they do not sooner anyway.

        From then on the bucket fills from empty: one call goes, and the next ones at the pace of the rate. The level is
        that of a full backlog at an instant to come, until which nothing drains, as after a clock that stepped back.
        """
        at_ns, backlog, held, lapse_ns, generation = self._drained(level, now_ns)
        units = min(units, self.burst)
        full = self.burst * self.period_ns
        fits_now = backlog + units * self.period_ns <= full  # also where nothing drains before an instant to come
        full_at_ns = until_ns - ceil_div(units * self.period_ns, self.amount)
        if full_at_ns <= now_ns:  # the backlog that drains to make room at `until_ns`
            full_at_ns, full = now_ns, full - units * self.period_ns + max(0, until_ns - now_ns) * self.amount
        left = max(0, backlog - (full_at_ns - at_ns) * self.amount)
        if left == full or (left > full and not exactly and not (fits_now and now_ns < until_ns)):
            return None
        if self.charged_at_start:  # what was charged before is in it, and does not come back
            generation = full_at_ns
        return (full_at_ns, full, held, lapse_ns, generation)

    def read(self, level: Level | None, now_ns: int) -> Reading:
        """Read the level; `resets_ns` is when the bucket is full again if nothing more is used."""
        at_ns, backlog, held, _lapse_ns, _generation = self._drained(level, now_ns)
        used = ceil_div(backlog, self.period_ns)
        resets_ns = at_ns + ceil_div(backlog, self.amount) if backlog else None
        return Reading(used, held, max(0, self.burst - used - held), resets_ns)

    def idle_from_ns(self, level: Level) -> int:
        """Give the instant from which the level says no more than None would."""
        at_ns, backlog, held, lapse_ns, _generation = level
        backlog += held * self.period_ns
        return max(at_ns, lapse_ns) + ceil_div(backlog, self.amount)

    def _short(self, level: Level | None, needed: int, now_ns: int) -> Short:
        """Say when `needed` units fit, which do not now."""
        at_ns, backlog, held, lapse_ns, _generation = self._drained(level, now_ns)
        unheld_excess = backlog + (needed - self.burst) * self.period_ns
        earliest_ns = at_ns + ceil_div(unheld_excess, self.amount) if unheld_excess > 0 else now_ns
        over = (held + needed - self.burst) * self.period_ns
        if over <= 0:
            return Short(at_ns + ceil_div(backlog + over, self.amount), earliest_ns)
        # The holds alone leave no room: at the latest they lapse, count as spent, and drain.
        drained = max(0, backlog - max(0, lapse_ns - at_ns) * self.amount)
        return Short(max(at_ns, lapse_ns) + ceil_div(drained + over, self.amount), earliest_ns)

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
