"""Quota: admit a call under every limit it meets, settle what it used, expire what was lost.

One rule: all dimensions or none; a call that is refused or has to wait consumes nothing.
The functions are pure: the store gives atomicity (`ports.LevelStore.transact`), this gives the arithmetic.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.instants import NS_PER_S, to_ns, to_s
from headgate.core.levels import Short
from headgate.core.limits import FOREVER_NS, Level, Limit, Never, Rate, Reading

Hold = tuple[str, int, int]
"""What a reservation holds of one limit: the level's name, the units, and the token that finds its place again."""


class Reservation(NamedTuple):
    """What is held for a call, and until when it may be silent before it counts as lost.

    `charged` has what was charged of each hold before the call's end, in their order; empty: nothing yet.
    """

    at_ns: int
    expires_ns: int
    holds: tuple[Hold, ...]
    lapsed: bool = False
    charged: tuple[int, ...] = ()


# A named tuple's own constructor takes three times as long.
_reservation = partial(tuple.__new__, Reservation)


class Admitted(NamedTuple):
    """The call may go now: the levels that changed, and what is held for it."""

    levels: dict[str, Level]
    reservation: Reservation


_admitted = partial(tuple.__new__, Admitted)


class Wait(NamedTuple):
    """The call has to wait.

    If nothing else is admitted meanwhile, it is admitted at `until_s` (infinite when only a settlement can make room);
    it cannot be admitted before `earliest_s`, even if all that is held comes back. `limit` is the one that binds, and
    `aside` what planned reservations keep of it from this call.
    """

    until_s: float
    earliest_s: float
    limit: Limit
    aside: int = 0


_wait = partial(tuple.__new__, Wait)


class Refused(NamedTuple):
    """The call can never be admitted under `limit`: it asks `asked` (None: unknown) where at most `free` can be had."""

    limit: Limit
    asked: int | None
    free: int


class Behind(NamedTuple):
    """The call would delay one that waits before it, which goes at `until_s` at the latest."""

    until_s: float


_ALL_THAT_IS_HELD = Amounts(*[None] * len(Amounts._fields))  # type: ignore[arg-type]  # unknown: each hold is spent


def admit(  # noqa: C901 - one loop over the limits, on the way of every call
    limits: Sequence[Limit], levels: Mapping[str, Level], asked: Demand, now_s: float, *, lease_s: float = 600.0
) -> Admitted | Wait | Refused:
    """Hold what a call asks of every limit, or say when it fits, or that it never will.

    Rates hold the expected amounts (of a guess, at most what the limit can give), windows and gauges the upper bounds,
    but windows whose owner prefers that (`holds_likely`) what is likely, where it is known. The hold counts as lost
    `lease_s` after `now_s`. Cost: one pass over the limits.
    """
    now_ns = round(now_s * NS_PER_S)
    expires_ns = now_ns + round(lease_s * NS_PER_S)
    expected, at_most, stream_per_s, likely = asked
    changed: dict[str, Level] = {}
    holds: list[Hold] = []
    binding: Limit | None = None
    until_ns = earliest_ns = now_ns
    for limit in limits:
        units: int | None
        if isinstance(limit, Rate):
            units = expected[limit.place]  # as in `units_of`, in one call less
            if units is not None and units > limit.most_held:
                units = limit.most_held
            if stream_per_s and units and limit.is_drawn and units > (ahead := limit.ahead_of_stream(stream_per_s)):
                units = ahead
        else:
            units = (likely if likely is not None and limit.holds_likely else at_most)[limit.place]
        if not units:
            if units is None:
                return Refused(limit, None, limit.read(levels.get(limit.name), now_ns).free)
            continue
        name = limit.name
        outcome = limit.hold(levels.get(name), units, now_ns, expires_ns)
        if isinstance(outcome, tuple):
            changed[name], token = outcome
            holds.append((name, units, token))
        elif isinstance(outcome, Never):
            return Refused(limit, units, outcome.free)
        else:
            earliest_ns = max(earliest_ns, outcome.earliest_ns)
            if binding is None or outcome.until_ns > until_ns:
                binding, until_ns = limit, outcome.until_ns
    if binding is not None:
        return wait_for(binding, until_ns, earliest_ns)
    return _admitted((changed, _reservation((now_ns, expires_ns, tuple(holds), False, ()))))


def wait_for(limit: Limit, until_ns: int, earliest_ns: int) -> Wait:
    """Give the wait for a limit that binds until an instant."""
    return _wait((_instant_s(until_ns), _instant_s(earliest_ns), limit, 0))


def wait_under(limit: Limit, level: Level | None, asked: Demand, now_s: float) -> Wait | None:
    """Give how long a call has to wait for one limit alone, None where it does not; others may keep it longer."""
    units, now_ns = units_of(limit, asked), round(now_s * NS_PER_S)
    outcome = limit.hold(level, units, now_ns, now_ns) if units else None
    return wait_for(limit, outcome.until_ns, outcome.earliest_ns) if isinstance(outcome, Short) else None


def units_of(limit: Limit, asked: Demand) -> int | None:
    """Give what a call asks of a limit; None: nobody knows."""
    if not isinstance(limit, Rate):
        return (asked.likely if asked.likely is not None and limit.holds_likely else asked.at_most)[limit.place]
    units = asked.expected[limit.place]
    if units is None:
        return None
    if asked.output_tokens_per_s and limit.is_drawn:
        units = min(units, limit.ahead_of_stream(asked.output_tokens_per_s))
    return min(units, limit.most_held)


_NEVER = repeat(0)


def settle(  # noqa: C901 - one loop over the holds, on the way of every call
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    reserved: Reservation | None,
    actual: Amounts,
    now_s: float,
    dimensions: Collection[Dimension] | None = None,
) -> tuple[dict[str, Level], Reservation | None]:
    """Replace holds by what was used; give the levels that changed and what is still held (None: nothing).

    `actual` is all that the call used; what was charged of that before is not charged again. With `dimensions` only the
    holds in these are settled (a stream's first event tells the input long before the output is known); nothing stays
    held of those, and what a later settlement tells beyond is added. An actual amount of None (no price known) spends
    the hold. A hold whose limit is no longer configured is dropped. Settling what is not held any more changes nothing.
    """
    if reserved is None:
        return {}, None
    now_ns = round(now_s * NS_PER_S)
    at_ns, expires_ns, holds, lapsed, charged = reserved
    by_name: dict[str, Limit] | None = None
    in_order = iter(limits)
    changed: dict[str, Level] = {}
    kept: list[Hold] = []
    kept_charged: list[int] = []
    for (name, units, token), before in zip(holds, charged or _NEVER, strict=False):
        limit = next(in_order, None)
        if limit is None or limit.name != name:  # holds stand in the order of the limits, but for what has changed
            if by_name is None:
                by_name = {limit.name: limit for limit in limits}
            limit = by_name.get(name)
            if limit is None:
                continue
        if dimensions is not None and limit.dimension not in dimensions:
            kept.append((name, units, token))
            kept_charged.append(before)
            continue
        used = actual[limit.place]
        if used is None:
            used = units
        elif before:
            used = max(0, used - before)
        changed[name] = limit.settle(levels.get(name), units, used, token, now_ns, lapsed=lapsed)
        if dimensions is not None:
            kept.append((name, 0, token))  # its place stays: the last word may tell more
            kept_charged.append(before + used)
    if dimensions is None:
        return changed, None
    return changed, _reservation((at_ns, expires_ns, tuple(kept), lapsed, tuple(kept_charged)))


def spend(limits: Sequence[Limit], admitted: Admitted, now_s: float) -> dict[str, Level]:
    """Give the levels that an admission leaves if the call uses all that it holds, now."""
    return settle(limits, admitted.levels, admitted.reservation, _ALL_THAT_IS_HELD, now_s)[0]


def draw(
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    reserved: Reservation,
    so_far: Amounts,
    now_s: float,
    *,
    asked: Demand | None = None,
) -> tuple[dict[str, Level], Reservation]:
    """Charge what a call that goes on has used so far of rates; what is left of its holds stays held.

    A rate drains from then on as the provider's does, that counts what is produced when it is produced; what is used
    beyond a hold is debt before the call's end, as it is there. Drawing what was drawn already changes nothing.
    A call that `asked` with a pace goes on holding as much, for what comes next, until less than that is to come.
    """
    now_ns = to_ns(now_s)
    by_name: dict[str, Limit] | None = None
    in_order = iter(limits)
    changed: dict[str, Level] = {}
    kept: list[Hold] = []
    kept_charged: list[int] = []
    at_ns, expires_ns, holds, lapsed, charged = reserved
    for (name, units, token), before in zip(holds, charged or _NEVER, strict=False):
        limit = next(in_order, None)
        if limit is None or limit.name != name:  # as in `settle`
            if by_name is None:
                by_name = {limit.name: limit for limit in limits}
            limit = by_name.get(name)
        more, left = 0, units
        if isinstance(limit, Rate) and not limit.charged_at_start and not lapsed:
            used = so_far[limit.place] or 0
            if used > before:
                more = used - before
                left = units - more if units > more else 0
            if asked is not None and asked.output_tokens_per_s and limit.is_drawn:
                left = min(units, max(left, (asked.expected[limit.place] or 0) - max(used, before)))
        if more and limit is not None:
            # As if the hold were two: one that was used, and the rest.
            changed[name] = limit.settle(levels.get(name), units - left, more, token, now_ns, lapsed=False)
        kept.append((name, left, token))
        kept_charged.append(before + more)
    return changed, _reservation((at_ns, expires_ns, tuple(kept), lapsed, tuple(kept_charged)))


def expire(
    limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation, now_s: float
) -> tuple[dict[str, Level], Reservation]:
    """Count a lost reservation: spent for rates, released for gauges, pending for windows until it is settled.

    Expiring twice changes nothing.
    """
    if reserved.lapsed:
        return {}, reserved
    now_ns = to_ns(now_s)
    by_name = {limit.name: limit for limit in limits}
    changed = {
        name: by_name[name].lapse(levels.get(name), units, token, now_ns)
        for name, units, token in reserved.holds
        if name in by_name
    }
    return changed, reserved._replace(lapsed=True)


def renew(
    limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation, now_s: float, *, lease_s: float
) -> tuple[dict[str, Level], Reservation]:
    """Let a living call's reservation expire only `lease_s` after `now_s`."""
    expires_ns = to_ns(now_s) + to_ns(lease_s)
    by_name = {limit.name: limit for limit in limits}
    changed = {
        name: by_name[name].renewed(levels[name], token, expires_ns)
        for name, _units, token in reserved.holds
        if name in by_name and name in levels
    }
    return changed, reserved._replace(expires_ns=max(reserved.expires_ns, expires_ns))


def read(limit: Limit, levels: Mapping[str, Level], now_s: float) -> Reading:
    """Read one limit's level as people read it: used, held, free, and when it resets."""
    return limit.read(levels.get(limit.name), to_ns(now_s))


def _instant_s(instant_ns: int) -> float:
    return math.inf if instant_ns >= FOREVER_NS else to_s(instant_ns)
