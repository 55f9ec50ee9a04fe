"""Planned reservations: so much of a limit for one scope between two instants, accepted or denied with a reason.

One rule: what was accepted can be honoured: all that is reserved of a limit at an instant is within it. How calls are
admitted beside reservations is `set_aside`'s affair (decision 0013).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from headgate.core.amounts import MICRO_USD_PER_USD, Dimension
from headgate.core.instants import NS_PER_S, to_ns, to_s
from headgate.core.limits import FOREVER_NS, Gauge, Level, Limit, Rate, Rolling, Window
from headgate.core.scopes import SCOPE_KINDS, unfit_scope
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse
from headgate.core.wording import level_text

MOST_PLANS = 100
"""Reservations in force or to come; a call looks at those of the limits that it meets."""

MOST_AHEAD_S = 31 * 86_400
"""How far ahead one may end. Its level must live so long, and stores forget what is untouched for 40 days."""

MOST_PERCENT_OF_RATE = 90
"""Of a rate: what is reserved and unused flows to others through the rest of the bucket, so some must be left."""

PAST_S = 5
"""A beginning that is longer ago is a mistake; a shorter one is the time that a request takes."""


class Plan(NamedTuple):
    """A planned reservation; `limit` is the name of the level it is carved out of. Instants are whole seconds.

    `made_s` is rounded up: nothing of it fills before it was made. It is set back where the bucket had room for all of
    it: then it is full when it begins, as if it had been made in time.
    """

    id: str
    scope: str
    limit: str
    units: int
    from_s: int
    until_s: int
    made_s: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants to reserve, under an id that nobody has used."""

    id: str
    scope: str
    units: int
    from_s: int
    until_s: int


@dataclass(frozen=True, slots=True)
class Planned:
    """It was accepted. Up to `at_once` units are certain to fit from `certain_s` on; more takes the common way."""

    plan: Plan
    at_once: int
    certain_s: float


@dataclass(frozen=True, slots=True)
class Denied:
    """It cannot be honoured; the reason has the value, and what would be possible."""

    reason: str


@dataclass(frozen=True, slots=True)
class Part:
    """A reservation beside the limit that it is carved out of, its parent.

    What of it the holder's calls use is counted in a level of its own, beside the parent's, which counts everything.
    From `begins_ns` others leave it alone (of a window: once that in which it begins is open); from `from_ns` its
    holder may use it. Slots are left alone as they come free: calls on their way when it begins go on.
    """

    limit: Rate | Window | Gauge
    parent: Limit
    begins_ns: int
    from_ns: int
    until_ns: int

    def level(self, levels: Mapping[str, Level], now_ns: int) -> Level | None:
        """Give its level; a rate's begins used up at `begins_ns`, for until then others could use all."""
        level = levels.get(self.limit.name)
        if level is None and isinstance(self.limit, Rate):
            return (self.begins_ns, self.limit.burst * self.limit.period_ns, 0, 0, now_ns)
        return level

    @property
    def at_once(self) -> int:
        """The most that its holder can use at once."""
        return self.limit.burst if isinstance(self.limit, Rate) else self.limit.amount

    @property
    def certain_ns(self) -> int:
        """From when its holder can use that if it used nothing before: a rate's has filled by then."""
        if not isinstance(self.limit, Rate):
            return self.from_ns
        return max(self.from_ns, self.begins_ns + _fills_ns(self.limit))

    def filling(self, now_ns: int) -> int:
        """Give what of a rate's depth its holder cannot use yet because it has not filled since it began."""
        return self.limit.read(self.level({}, now_ns), now_ns).used if isinstance(self.limit, Rate) else 0

    def is_open(self, now_ns: int) -> bool:
        """Whether its holder may use it."""
        return self.from_ns <= now_ns < self.until_ns

    def untaken(self, levels: Mapping[str, Level], now_ns: int) -> int:
        """Give what others have to leave alone at an instant; nothing before it begins and when it is over."""
        if not self.begins_ns <= now_ns < self.until_ns or not self._is_near(levels, now_ns):
            return 0
        reading = self.limit.read(self.level(levels, now_ns), now_ns)
        # What of a rate was used is in its parent's backlog, and drains there; only what is held stands for itself.
        return self.limit.burst - reading.held if isinstance(self.limit, Rate) else reading.free

    def _is_near(self, levels: Mapping[str, Level], now_ns: int) -> bool:
        """Whether what is used now would be missing when it begins."""
        match self.parent:
            case Window():
                level = levels.get(self.parent.name)
                end_ns = level[1] if level is not None and now_ns < level[1] else self.parent.span.end_ns(now_ns)
                return end_ns is None or self.from_ns < end_ns
            case Rolling():
                return self.from_ns < now_ns + self.parent.period_s * NS_PER_S
            case _:
                return True


def part_of(plan: Plan, parent: Limit) -> Part:
    """Give the part of a limit that a reservation is."""
    name = f"{plan.scope} {parent.models or '*'} {parent.dimension} plan-{plan.id}"
    from_ns, until_ns = plan.from_s * NS_PER_S, plan.until_s * NS_PER_S
    if isinstance(parent, Gauge):
        slots = Gauge(name, plan.scope, parent.dimension, plan.units, parent.models)
        return Part(slots, parent, from_ns, from_ns, until_ns)
    if not isinstance(parent, Rate):
        whole = Window(
            name,
            plan.scope,
            parent.dimension,
            plan.units,
            Lifetime(),
            parent.models,
            holds_likely=parent.holds_likely,
        )
        return Part(whole, parent, 0, from_ns, until_ns)
    duration_s = plan.until_s - plan.from_s
    # As deep, compared with its pace, as the whole bucket.
    burst = max(1, parent.burst * plan.units * parent.period_s // (duration_s * parent.amount))
    paced = Rate(
        name,
        plan.scope,
        parent.dimension,
        plan.units,
        duration_s,
        burst,
        parent.models,
        charged_at_start=parent.charged_at_start,
    )
    return Part(paced, parent, max(plan.made_s * NS_PER_S, from_ns - _fills_ns(paced)), from_ns, until_ns)


def _fills_ns(paced: Rate) -> int:
    """Give how long a bucket takes to fill; rounded up, so that it is full then."""
    return -(-paced.burst * paced.period_ns // paced.amount)


def plan(
    existing: Iterable[Plan],
    wanted: Wanted,
    limit: Limit | None,
    now_s: float,
    levels: Mapping[str, Level],
    own: Iterable[Limit] = (),
) -> Planned | Denied:
    """Accept a reservation of a limit, or say why not.

    `levels` has the level of the limit and of the reservations that exist of it; what the holder's `own` limits keep it
    from using cannot be reserved for it.
    """
    standing = [each for each in existing if each.until_s > now_s]
    denied = _unfit(wanted, limit, now_s) or _too_many(standing, wanted) or _beyond_own(wanted, limit, own)
    if denied is not None:
        return Denied(denied)
    assert limit is not None
    new = Plan(
        wanted.id,
        wanted.scope,
        limit.name,
        wanted.units,
        max(wanted.from_s, int(now_s)),
        wanted.until_s,
        math.ceil(now_s),
    )
    others = [each for each in standing if each.limit == limit.name]
    match limit:
        case Rate():
            reason = _beyond_rate(new, others, limit)
        case Gauge():
            reason = _beyond_amount(new, others, limit)
        case _:
            reason = _beyond_amount(new, others, limit) or _beyond_what_is_left(new, others, limit, now_s, levels)
    if reason is not None:
        return Denied(reason)
    if isinstance(limit, Rate):
        new = _full_where_there_is_room(new, others, limit, now_s, levels)
    part = part_of(new, limit)
    return Planned(new, part.at_once, to_s(part.certain_ns))


def _full_where_there_is_room(
    new: Plan, others: Sequence[Plan], limit: Rate, now_s: float, levels: Mapping[str, Level]
) -> Plan:
    """Let a reservation be full when it begins if the bucket has room for it now, beside the others in full.

    Else it begins used up: others hold what it would give. What it keeps from them is the same in both cases, from now
    on; so the room stays until its holder takes it (decision 0013 has why).
    """
    now_ns, part = to_ns(now_s), part_of(new, limit)
    aside = sum(part_of(each, limit).untaken(levels, now_ns) for each in others)
    used, held, _free, _resets_ns = limit.read(levels.get(limit.name), now_ns)
    if used + held + aside + part.at_once > limit.burst:
        return new
    assert isinstance(part.limit, Rate)
    return new._replace(made_s=min(new.made_s, (part.from_ns - _fills_ns(part.limit)) // NS_PER_S))


def unkept(standing: Sequence[Plan], limit: Limit, now_s: float, levels: Mapping[str, Level]) -> dict[str, str]:
    """Say of each reservation of a limit that can no longer be kept in full why, by its id: the limit may be cut."""
    found: dict[str, str] = {}
    for each in standing:
        others = [other for other in standing if other is not each]
        if isinstance(limit, Rate):
            reason = _beyond_rate(each, others, limit)
        elif isinstance(limit, Gauge):
            reason = _beyond_amount(each, others, limit)
        else:
            part = part_of(each, limit)
            rest = each._replace(units=part.limit.read(part.level(levels, to_ns(now_s)), to_ns(now_s)).free)
            reason = _beyond_amount(each, others, limit) or _beyond_what_is_left(rest, others, limit, now_s, levels)
        if reason is not None:
            found[each.id] = reason
    return found


def amount_in_words(dimension: Dimension, amount: int) -> str:
    """Write an amount for people: $12.50, 3,000 output tokens, 1 request."""
    if dimension == "micro_usd":
        exact = f"{amount / MICRO_USD_PER_USD:,.6f}".rstrip("0")
        return "$" + exact + "0" * max(0, 2 - len(exact.partition(".")[2]))
    units = dimension.replace("_", " ")
    return f"{amount:,} {units.removesuffix('s') if amount == 1 else units}"


def unfit_holder(scope: str) -> str | None:
    """Say why a scope cannot hold a reservation; None where it can."""
    kind, _, name = scope.partition(":")
    if kind in SCOPE_KINDS and kind != "account" and name:
        unfit = unfit_scope(scope)
    else:
        kinds = ", ".join(kind for kind in SCOPE_KINDS if kind != "account")
        unfit = f"expected one {kinds} by name, such as run:nightly"
    return None if unfit is None else f"{scope[:100]!r} cannot hold a reservation; {unfit}"


def _unfit(wanted: Wanted, limit: Limit | None, now_s: float) -> str | None:
    """Say what is wrong with a wish by itself."""
    unfit = unfit_holder(wanted.scope)
    if unfit is not None:
        return unfit
    if limit is None:
        return "there is no such limit; `headgate limits` lists those that can be reserved of"
    if limit.scope == wanted.scope:
        return f"{_name(limit)} is {wanted.scope}'s own, nobody else draws from it; expected a limit that is shared"
    if wanted.units < 1:
        return f"{amount_in_words(limit.dimension, wanted.units)}: expected at least 1"
    if wanted.until_s <= int(now_s):
        return f"it would end at {_at(wanted.until_s)}, which is past; expected later than {_at(now_s)}"
    if wanted.until_s <= wanted.from_s:
        return f"it would end at {_at(wanted.until_s)}, and begin at {_at(wanted.from_s)}; expected an end after that"
    if wanted.from_s < now_s - PAST_S:
        return f"it would begin at {_at(wanted.from_s)}, which is past; expected {_at(now_s)} or later"
    if wanted.until_s > now_s + MOST_AHEAD_S:
        latest = _at(int(now_s) + MOST_AHEAD_S)
        return f"it would end at {_at(wanted.until_s)}; expected at most {MOST_AHEAD_S // 86_400} days ahead ({latest})"
    return None


def _too_many(standing: Sequence[Plan], wanted: Wanted) -> str | None:
    if any(each.id == wanted.id for each in standing):
        return f"the id {wanted.id!r} is taken"
    if len(standing) >= MOST_PLANS:
        return f"{len(standing)} reservations stand, the most there can be; cancel one, or wait until one is over"
    return None


def _beyond_own(wanted: Wanted, limit: Limit | None, own: Iterable[Limit]) -> str | None:
    """Say if the holder's own limits let it use less in that time, whatever is reserved."""
    assert limit is not None
    for each in own:
        if each.dimension != limit.dimension or each.models not in (None, limit.models):
            continue
        possible = _most_used(each, wanted.from_s * NS_PER_S, wanted.until_s * NS_PER_S)
        if wanted.units > possible:
            return (
                f"{amount_in_words(limit.dimension, wanted.units)} is more than {wanted.scope} may use in that time "
                f"under its own {each.name}; possible: at most {amount_in_words(limit.dimension, possible)}"
            )
    return None


def _most_used(limit: Limit, from_ns: int, until_ns: int) -> int:
    """Give how much of a limit can be used between two instants, if nothing of it is before."""
    match limit:
        case Rate():
            return limit.burst + (until_ns - from_ns) * limit.amount // limit.period_ns
        case Gauge() | Window(span=Lifetime()):
            return limit.amount
        case Window(span=OpenedByUse(period_s)) | Rolling(period_s=period_s):
            return limit.amount * (2 + (until_ns - from_ns) // (period_s * NS_PER_S))
        case Window(span=span):
            windows, at_ns = 0, from_ns
            while at_ns < until_ns:
                end_ns = span.end_ns(at_ns)
                assert end_ns is not None, "a lifetime is one window"
                windows, at_ns = windows + 1, end_ns
            return limit.amount * windows


def _beyond_rate(new: Plan, others: Sequence[Plan], limit: Rate) -> str | None:
    """Say if the rates together are more than may be reserved, or the buckets leave nothing for others."""
    duration_s = new.until_s - new.from_s
    parts = [part_of(each, limit) for each in (*others, new)]
    at_ns = _fullest(parts[-1], parts)
    in_force = [part for part in parts if part.begins_ns <= at_ns < part.until_ns]
    # Units per second as fractions over one denominator would be exact; rounding each up is exact enough, and safe.
    reserved = sum(-(-part.limit.amount * NS_PER_S // _period_s(part)) for part in in_force if part is not parts[-1])
    most = limit.amount * NS_PER_S * MOST_PERCENT_OF_RATE // (100 * limit.period_s)
    possible = max(0, (most - reserved) * duration_s // NS_PER_S)
    if new.units <= possible and sum(_burst(part) for part in in_force) < limit.burst:
        return None
    if new.units <= possible:
        return f"a bucket of {limit.burst:,} cannot be divided further; cancel another reservation of {_name(limit)}"
    beside = f", and others have reserved of it at {_at(at_ns // NS_PER_S)}" if reserved else ""
    return (
        f"{amount_in_words(limit.dimension, new.units)} in {duration_s:,} s is more than {MOST_PERCENT_OF_RATE} % of "
        f"{amount_in_words(limit.dimension, limit.amount)} per {limit.period_s} s{beside}; possible: at most "
        f"{amount_in_words(limit.dimension, possible)}"
    )


def _fullest(new: Part, parts: Sequence[Part]) -> int:
    """Give the instant within a part at which the most is reserved."""
    instants = {new.begins_ns} | {part.begins_ns for part in parts if new.begins_ns < part.begins_ns < new.until_ns}

    def reserved(at_ns: int) -> float:
        return sum(part.limit.amount / _period_s(part) for part in parts if part.begins_ns <= at_ns < part.until_ns)

    return max(sorted(instants), key=reserved)


def _period_s(part: Part) -> int:
    assert isinstance(part.limit, Rate)
    return part.limit.period_s


def _burst(part: Part) -> int:
    assert isinstance(part.limit, Rate)
    return part.limit.burst


def _beyond_amount(new: Plan, others: Sequence[Plan], limit: Limit) -> str | None:
    """Say if all that is reserved of one window, or of the slots at one time, is more than there is."""
    begin, end = _extent(new, limit)
    beside = [(*_extent(each, limit), each.units) for each in others]
    instants = {begin} | {first for first, _last, _units in beside if begin < first < end}
    reserved = max(sum(units for first, last, units in beside if first <= at < last) for at in instants)
    if new.units + reserved <= limit.amount:
        return None
    others_have = f", of which others have reserved {amount_in_words(limit.dimension, reserved)}" if reserved else ""
    where = "at once of" if isinstance(limit, Gauge) else "in one window of"
    return (
        f"{amount_in_words(limit.dimension, new.units)} is more than there is {where} {_name(limit)}: "
        f"{amount_in_words(limit.dimension, limit.amount)}{others_have}; possible: at most "
        f"{amount_in_words(limit.dimension, max(0, limit.amount - reserved))}"
    )


def _beyond_what_is_left(
    new: Plan, others: Sequence[Plan], limit: Window | Rolling, now_s: float, levels: Mapping[str, Level]
) -> str | None:
    """Say if less is left of the window in which it begins: it may be the one that is open now."""
    now_ns = to_ns(now_s)
    used, held, _free, _resets_ns = limit.read(levels.get(limit.name), max(now_ns, new.from_s * NS_PER_S))
    begin, end = _extent(new, limit, first_only=True)
    reserved = 0
    for each in others:
        first, last = _extent(each, limit)
        if first < end and begin < last:
            part = part_of(each, limit)
            reserved += part.limit.read(part.level(levels, now_ns), now_ns).free
    left = limit.amount - used - held - reserved
    if new.units <= left:
        return None
    return (
        f"{amount_in_words(limit.dimension, new.units)} is more than is left of {_name(limit)} when it would begin: of "
        f"{amount_in_words(limit.dimension, limit.amount)}, {amount_in_words(limit.dimension, used)} are used, "
        f"{amount_in_words(limit.dimension, held)} held and {amount_in_words(limit.dimension, reserved)} reserved; "
        f"possible: at most {amount_in_words(limit.dimension, max(0, left))}, or a later window"
    )


def _extent(plan: Plan, limit: Limit, *, first_only: bool = False) -> tuple[int, int]:
    """Give where a reservation counts, so that two share a window when their extents overlap.

    Windows whose ends are known stand for themselves by their end; one that use opens can lie anywhere.
    """
    from_ns = plan.from_s * NS_PER_S
    until_ns = plan.until_s * NS_PER_S
    match limit:
        case Window(span=Lifetime()):
            return 0, FOREVER_NS
        case Window(span=Calendar() | Fixed() as span):
            first = span.end_ns(from_ns)
            return first, (first if first_only else span.end_ns(until_ns - 1)) + 1
        case Window(span=OpenedByUse(period_s)) | Rolling(period_s=period_s):
            return from_ns, (from_ns if first_only else until_ns) + period_s * NS_PER_S
        case Gauge():
            return from_ns, until_ns
        case _:
            raise AssertionError(f"{limit.name} is a rate")


def _name(limit: Limit) -> str:
    return level_text(limit.name)


def _at(instant_s: float) -> str:
    return f"{datetime.fromtimestamp(int(instant_s), UTC):%Y-%m-%d %H:%M:%S} UTC"
