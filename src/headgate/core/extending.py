"""Extending: a stream that goes beyond what it holds of a budget holds more, as long as there is any.

One rule: what it has used is charged before more is held, so that two streams never count on the same rest. Whether to
ask, and how a stream ends, is not decided here.
"""

from collections.abc import Mapping, Sequence
from itertools import repeat

from headgate.core.amounts import Amounts
from headgate.core.instants import to_ns
from headgate.core.levels import Level
from headgate.core.limits import Limit, Rolling, Window
from headgate.core.quota import Hold, Reservation

__all__ = ["ends_streams", "extend"]


def ends_streams(limit: Limit) -> bool:
    """Whether a running stream ends when this limit is spent."""
    return isinstance(limit, Window | Rolling) and limit.ends_streams


def extend(
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    reserved: Reservation,
    so_far: Amounts,
    ahead: Amounts,
    now_s: float,
) -> tuple[dict[str, Level], Reservation, Limit | None]:
    """Hold of each limit that ends streams up to `ahead`, for a call that has used `so_far`.

    Gives the levels that changed, what is held then, and the first limit that has not so much left (None: all have).
    Of that one nothing changes: its hold stays, and the settlement charges all. A lapsed hold is extended by nobody.
    """
    if reserved.lapsed:
        return {}, reserved, None
    now_ns = to_ns(now_s)
    by_name = {limit.name: limit for limit in limits if ends_streams(limit)}
    changed: dict[str, Level] = {}
    kept: list[Hold] = []
    kept_charged: list[int] = []
    spent: Limit | None = None
    for hold, before in zip(reserved.holds, reserved.charged or repeat(0), strict=False):
        name, units, token = hold
        used, wanted = before, 0
        limit = by_name.get(name)
        if limit is not None:
            used, wanted = max(before, so_far[limit.place] or 0), ahead[limit.place] or 0
        if limit is None or wanted <= before + units:
            kept.append(hold)
            kept_charged.append(before)
            continue
        level = limit.settle(levels.get(name), units, used - before, token, now_ns, lapsed=False)
        outcome = limit.hold(level, max(1, wanted - used), now_ns, reserved.expires_ns)
        if isinstance(outcome, tuple):
            changed[name], token = outcome
            kept.append((name, max(1, wanted - used), token))
            kept_charged.append(used)
        else:
            spent = spent or limit
            kept.append(hold)
            kept_charged.append(before)
    if not changed:
        return {}, reserved, spent
    at_ns, expires_ns, _holds, lapsed, _charged = reserved
    return changed, Reservation(at_ns, expires_ns, tuple(kept), lapsed, tuple(kept_charged)), spent
