"""Claims: what the heads of other processes' lanes wait for, so that nobody overtakes them from another process.

One rule: a call goes only if those of other processes that came before it, and wait in front of their lanes, would
still fit after it. Budgets are left out: a head that waits for midnight must not hold back small calls elsewhere. A
claim is said anew while its call waits, and lapses with a process that dies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from headgate.core.amounts import Demand
from headgate.core.instants import to_ns
from headgate.core.limits import FOREVER_NS, Gauge, Level, Limit, Never, Rate
from headgate.core.quota import Admitted, Refused, Wait, units_of, wait_for
from headgate.core.scopes import lane_of

LIFE_S = 3.0
"""How long a claim holds without being said again."""

SAY_AGAIN_S = LIFE_S / 3

MOST_CLAIMS = 64
"""Claims of all processes together; those that came first are kept."""


class Claim(NamedTuple):
    """What the first call of a lane waits for: whose it is, since when, until when that is said, and units by level."""

    owner: str
    lane: str
    came_ns: int
    expires_ns: int
    wanted: tuple[tuple[str, int], ...]


def read(record: Sequence[Sequence[Any]]) -> tuple[Claim, ...]:
    """Give the claims of a store's record, which may have made lists of tuples."""
    return tuple(
        Claim(owner, lane, came_ns, expires_ns, tuple((name, units) for name, units in wanted))
        for owner, lane, came_ns, expires_ns, wanted in record
    )


def claim(owner: str, lane: str, limits: Sequence[Limit], asked: Demand, came_s: float, now_s: float) -> Claim:
    """Give the claim of a call that waits first in its lane: on what gave the lane its name, not on all it meets."""
    of_lane = (limit for limit in limits if isinstance(limit, Rate | Gauge) and lane_of(limit) == lane)
    wanted = ((limit.name, units_of(limit, asked) or 0) for limit in of_lane)
    return Claim(owner, lane, to_ns(came_s), to_ns(now_s + LIFE_S), tuple(each for each in wanted if each[1]))


def said(claims: Sequence[Claim], mine: Claim, now_s: float) -> tuple[Claim, ...] | None:
    """Give all claims that hold, with this one instead of what its owner said of its lane before.

    None if that was the same not long ago: each change wakes the other processes.
    """
    fresh_ns = to_ns(now_s + LIFE_S - SAY_AGAIN_S)
    if any(each[:3] == mine[:3] and each.wanted == mine.wanted and each.expires_ns > fresh_ns for each in claims):
        return None
    return _kept([*without(claims, mine.owner, mine.lane), mine], now_s)


def without(claims: Iterable[Claim], owner: str, lane: str) -> tuple[Claim, ...]:
    """Give the claims that are left when a lane's first call goes."""
    return tuple(each for each in claims if (each.owner, each.lane) != (owner, lane))


def any_holds(claims: Iterable[Claim], now_s: float) -> bool:
    """Whether one of them has not lapsed."""
    now_ns = to_ns(now_s)
    return any(now_ns < each.expires_ns for each in claims)


def wanted_before(claims: Iterable[Claim], owner: str, came_s: float, now_s: float) -> Mapping[str, int]:
    """Give what other owners' calls want of each level that came before `came_s`."""
    now_ns, came_ns = to_ns(now_s), to_ns(came_s)
    wanted: dict[str, int] = {}
    for each in claims:
        if each.owner != owner and each.came_ns < came_ns and now_ns < each.expires_ns:
            for name, units in each.wanted:
                wanted[name] = wanted.get(name, 0) + units
    return wanted


def beside(
    outcome: Admitted | Wait | Refused, limits: Sequence[Limit], wanted: Mapping[str, int], now_s: float
) -> Admitted | Wait | Refused:
    """Let a call that was admitted wait after all if what is `wanted` by those before it would not fit any more."""
    if not isinstance(outcome, Admitted):
        return outcome
    now_ns = to_ns(now_s)
    for limit in limits:
        units, level = wanted.get(limit.name), outcome.levels.get(limit.name)
        if units and level is not None and (short := _short(limit, level, units, now_ns)) is not None:
            return wait_for(limit, *short)
    return outcome


def _short(limit: Limit, level: Level, units: int, now_ns: int) -> tuple[int, int] | None:
    """Give when so much fits too, and when at the earliest; None: now."""
    found = limit.hold(level, units, now_ns, now_ns)
    if isinstance(found, tuple):
        return None
    return (FOREVER_NS, now_ns) if isinstance(found, Never) else (found.until_ns, now_ns)


def _kept(claims: Iterable[Claim], now_s: float) -> tuple[Claim, ...]:
    now_ns = to_ns(now_s)
    live = sorted((each for each in claims if now_ns < each.expires_ns), key=lambda each: each.came_ns)
    return tuple(live[:MOST_CLAIMS])
