"""Extending: a stream that goes beyond what it holds of a budget holds more, as long as there is any.

One rule: the hold itself grows, and nothing is charged on the way, so that the settlement replaces all that was only
thought; and it never grows into what planned reservations set aside for others. When to ask is not decided here.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from headgate.core.amounts import Amounts
from headgate.core.instants import to_ns
from headgate.core.levels import Level
from headgate.core.limits import Limit, Rolling, Window
from headgate.core.planning import Part
from headgate.core.quota import Hold, Reservation
from headgate.core.set_aside import untaken, without

__all__ = ["ends_streams", "extend"]


def ends_streams(limit: Limit) -> bool:
    """Whether a running stream ends when this limit is spent."""
    return isinstance(limit, Window | Rolling) and limit.ends_streams


class _Hold(NamedTuple):
    """What is held of one level, where that is, and what was charged of it before."""

    units: int
    token: int
    charged: int


def extend(
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    reserved: Reservation,
    so_far: Amounts,
    ahead: Amounts,
    now_s: float,
    parts: Sequence[Part] = (),
) -> tuple[dict[str, Level], Reservation, Limit | None]:
    """Hold of each limit that ends streams up to `ahead`, for a call that has used `so_far`.

    Gives the levels that changed, what is held then, and the first limit that has not so much left (None: all have).
    Of that one nothing changes: its hold stays, and the settlement charges all. A lapsed hold is extended by nobody.
    `parts` is all that is reserved of these limits: a call goes on with its own while that has room, and else takes
    what nobody has set aside.
    """
    if reserved.lapsed:
        return {}, reserved, None
    now_ns = to_ns(now_s)
    by_name = {limit.name: limit for limit in limits}
    charges = zip(reserved.holds, reserved.charged or repeat(0), strict=False)
    held = {name: _Hold(units, token, charged) for (name, units, token), charged in charges}
    grown: dict[str, tuple[Level, _Hold]] = {}
    spent: Limit | None = None
    for name, before in held.items():
        limit = by_name.get(name)
        if not isinstance(limit, Window | Rolling) or not limit.ends_streams:
            continue
        used, wanted = so_far[limit.place] or 0, ahead[limit.place] or 0
        more = wanted - before.charged - before.units
        if more <= 0:
            continue
        of_limit = [part for part in parts if part.parent.name == name]
        own = _own_with_room(of_limit, held, levels, more, now_ns)
        room = limit if own is not None else without(limit, untaken(of_limit, levels, now_ns))
        larger = None if room is None else _larger(room, levels.get(name), before, (used, wanted), now_ns)
        if larger is None:
            spent = spent or limit
            continue
        grown[name] = larger
        if own is not None:
            own_hold = held[own.limit.name]
            taken = _larger(
                own.limit, levels.get(own.limit.name), own_hold, (0, own_hold.charged + own_hold.units + more), now_ns
            )
            if taken is not None:
                grown[own.limit.name] = taken
    if not grown:
        return {}, reserved, spent
    now_held = held | {name: hold for name, (_level, hold) in grown.items()}
    at_ns, expires_ns, _holds, lapsed, _charged = reserved
    holds: tuple[Hold, ...] = tuple((name, units, token) for name, (units, token, _) in now_held.items())
    charged = tuple(hold.charged for hold in now_held.values())
    changed = {name: level for name, (level, _hold) in grown.items()}
    return changed, Reservation(at_ns, expires_ns, holds, lapsed, charged), spent


def _own_with_room(
    parts: Sequence[Part], held: Mapping[str, _Hold], levels: Mapping[str, Level], more: int, now_ns: int
) -> Part | None:
    """Give the reservation by which a call went, if all that comes next fits into it."""
    for part in parts:
        if part.limit.name in held and part.is_open(now_ns):
            outcome = part.limit.hold(part.level(levels, now_ns), more, now_ns, now_ns)
            return part if isinstance(outcome, tuple) else None
    return None


def _larger(
    limit: Limit, level: Level | None, before: _Hold, used_wanted: tuple[int, int], now_ns: int
) -> tuple[Level, _Hold] | None:
    """Give a hold that reaches to what is wanted, and its level; None: there is not so much left.

    It stays in the window or slice in which it was taken. Where that is over, what was used until now is thought to
    belong there, and the rest is held of the new one.
    """
    if not isinstance(limit, Window | Rolling):
        return None
    used, wanted = used_wanted
    more = wanted - before.charged - before.units
    grown = limit.grown(level, more, before.token, now_ns)
    if grown is not None:
        fits = isinstance(limit.hold(level, more, now_ns, now_ns), tuple)
        return (grown, _Hold(before.units + more, before.token, before.charged)) if fits else None
    charged = max(before.charged, used)
    left = limit.settle(level, before.units, charged - before.charged, before.token, now_ns, lapsed=False)
    outcome = limit.hold(left, max(1, wanted - charged), now_ns, now_ns)
    if not isinstance(outcome, tuple):
        return None
    return outcome[0], _Hold(max(1, wanted - charged), outcome[1], charged)
