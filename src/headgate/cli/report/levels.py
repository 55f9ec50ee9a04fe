"""Levels after the fact: how full a limit was at any time, from what each call used of it.

One rule: use is measured as the provider meters it (requests and input when a call is admitted, output as it is
produced), against what the limit had to give, so that 100 % means that not one unit more could have been had.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headgate.core.instants import to_ns
from headgate.core.ledger import Attempt
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.usage import CHARGES, Counting

__all__ = ["Charge", "LevelUse", "Span", "charges_of", "ended_s", "level_use", "merged", "pauses", "seconds_of"]

# Output flows; a piece for each second of an answer is near enough to a flow, and there are only so many.
_MOST_PIECES = 64


class Span(NamedTuple):
    """A stretch of time, in seconds since the epoch."""

    from_s: float
    to_s: float


class Charge(NamedTuple):
    """Units that a level was charged at an instant; of a gauge: how many more (or fewer) were in use from then on."""

    at_s: float
    units: float


@dataclass(frozen=True, slots=True)
class LevelUse:
    """How far a limit was used, as shares of 1; None where there was nothing to measure.

    `highest` is the fullest that the level ever was. `average` is what was used of all that the limit had to give while
    calls were under way, `while_waiting` the same for the time in which calls waited: a limit that binds is near 1.
    """

    highest: float | None = None
    average: float | None = None
    while_waiting: float | None = None


def charges_of(calls: Iterable[Attempt], limit: Limit, counting: Counting) -> list[Charge]:
    """Give what calls charged a limit, in order of time."""
    charges: list[Charge] = []
    for call in calls:
        begun_s = call.admitted_s
        over_s = begun_s if call.done_s is None else max(begun_s, call.done_s)
        if isinstance(limit, Gauge):
            charges += (Charge(begun_s, 1), Charge(over_s, -1))
            continue
        units = getattr(CHARGES[counting](call.usage, call.cost_micro_usd), limit.dimension) or 0
        if not units:
            continue
        if limit.dimension == "output_tokens":
            first_s = min(over_s, max(begun_s, call.first_byte_s or begun_s))
            pieces = max(1, min(_MOST_PIECES, round(over_s - first_s)))
            step_s = (over_s - first_s) / pieces
            charges += (Charge(first_s + (piece + 0.5) * step_s, units / pieces) for piece in range(pieces))
        else:
            charges.append(Charge(over_s if limit.dimension == "micro_usd" else begun_s, units))
    # Ends before beginnings at one instant: a slot that is handed over is not in use twice.
    charges.sort()
    return charges


def level_use(limit: Limit, charges: Sequence[Charge], calls: Sequence[Attempt]) -> LevelUse:
    """Measure the use of a limit by charges that are sorted by time."""
    if not charges:
        return LevelUse()
    under_way = merged(Span(call.queued_s, ended_s(call)) for call in calls)
    waiting = merged(Span(call.queued_s, call.admitted_s) for call in calls if call.admitted_s > call.queued_s)
    match limit:
        case Rate():
            return _rate_use(limit, charges, under_way, waiting)
        case Gauge():
            return _gauge_use(limit, charges, under_way, waiting)
        case Window() | Rolling():
            return LevelUse(highest=_window_highest(limit, charges))


def ended_s(call: Attempt) -> float:
    """Give when a call ended; one whose process died ended, as far as is known, when it was admitted.

    Its row says only when its end was learned: when the run was resumed.
    """
    if call.done_s is None or call.state in ("lost", "reconciled"):
        return call.admitted_s
    return max(call.done_s, call.admitted_s)


def merged(spans: Iterable[Span]) -> list[Span]:
    """Join stretches that overlap; sorted."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.from_s <= joined[-1].to_s:
            joined[-1] = Span(joined[-1].from_s, max(joined[-1].to_s, span.to_s))
        else:
            joined.append(span)
    return joined


def pauses(calls: Sequence[Attempt]) -> list[Span]:
    """Give when the run stood still between two runners, as its calls show: each runner's carry its own name.

    Runners that work side by side make no pause.
    """
    began_s: dict[str, float] = {}
    admitted_s: dict[str, float] = {}
    for call in calls:
        began_s[call.owner] = min(call.queued_s, began_s.get(call.owner, call.queued_s))
        admitted_s[call.owner] = max(call.admitted_s, admitted_s.get(call.owner, call.admitted_s))
    signs_s = sorted(sign_s for call in calls for sign_s in (call.admitted_s, ended_s(call)))
    found: list[Span] = []
    owners = sorted(began_s, key=began_s.__getitem__)
    last_admitted_s = float("inf")
    for number, owner in enumerate(owners):
        start_s = began_s[owner]
        if number and last_admitted_s < start_s:
            found.append(Span(signs_s[bisect_left(signs_s, start_s) - 1], start_s))
        last_admitted_s = admitted_s[owner] if not number else max(last_admitted_s, admitted_s[owner])
    return found


def seconds_of(spans: Iterable[Span], within: Span) -> float:
    """Give how many seconds of stretches lie within another one."""
    return sum(max(0.0, min(span.to_s, within.to_s) - max(span.from_s, within.from_s)) for span in spans)


def _rate_use(limit: Rate, charges: Sequence[Charge], under_way: list[Span], waiting: list[Span]) -> LevelUse:
    """Run the bucket again: full at the start, refilled at its rate; while it is full, its refill is lost."""
    rate = limit.amount / limit.period_s
    backlog, highest, used, at_s = 0.0, 0.0, 0.0, under_way[0].from_s
    full: list[Span] = []
    last = Charge(max(under_way[-1].to_s, charges[-1].at_s), 0.0)
    for charge in (*charges, last):
        # A clock that stepped back between two processes must not drain anything twice.
        now_s = max(at_s, charge.at_s)
        emptied_s = at_s + backlog / rate
        if emptied_s < now_s:
            full.append(Span(emptied_s, now_s))
        backlog = max(0.0, backlog - (now_s - at_s) * rate) + charge.units
        highest, used, at_s = max(highest, backlog), used + charge.units, now_s
    left = max(0.0, limit.burst - backlog)
    lost = [(span, rate) for span in full]
    offered = used + _overlap(lost, under_way) + left
    waited_s = sum(span.to_s - span.from_s for span in waiting)
    return LevelUse(
        highest=highest / limit.burst,
        average=used / offered,
        while_waiting=1 - _overlap(lost, waiting) / (rate * waited_s) if waited_s > 0 else None,
    )


def _gauge_use(limit: Gauge, charges: Sequence[Charge], under_way: list[Span], waiting: list[Span]) -> LevelUse:
    in_use, highest, at_s = 0.0, 0.0, charges[0].at_s
    steps: list[tuple[Span, float]] = []
    for charge in charges:
        if charge.at_s > at_s:
            steps.append((Span(at_s, charge.at_s), in_use))
        in_use, at_s = in_use + charge.units, charge.at_s
        highest = max(highest, in_use)

    def average(over: list[Span]) -> float | None:
        over_s = sum(span.to_s - span.from_s for span in over)
        if over_s <= 0:
            return None
        return _overlap(steps, over) / over_s / limit.amount

    return LevelUse(highest / limit.amount, average(under_way), average(waiting))


def _window_highest(limit: Window | Rolling, charges: Sequence[Charge]) -> float:
    if isinstance(limit, Rolling):
        return _rolling_highest(limit, charges)
    used, highest = 0.0, 0.0
    end_ns: int | None = 0
    for charge in charges:
        at_ns = to_ns(charge.at_s)
        if end_ns is not None and at_ns >= end_ns:
            used, end_ns = 0.0, limit.span.end_ns(at_ns)
        used += charge.units
        highest = max(highest, used)
    return highest / limit.amount


def _rolling_highest(limit: Rolling, charges: Sequence[Charge]) -> float:
    used, highest, oldest = 0.0, 0.0, 0
    for charge in charges:
        used += charge.units
        while charges[oldest].at_s <= charge.at_s - limit.period_s:
            used -= charges[oldest].units
            oldest += 1
        highest = max(highest, used)
    return highest / limit.amount


def _overlap(some: Sequence[tuple[Span, float]], others: Sequence[Span]) -> float:
    """Sum the seconds in which stretches of both lists coincide, times the weight of the first; both are sorted."""
    total = 0.0
    first = 0
    for span, weight in some:
        while first < len(others) and others[first].to_s <= span.from_s:
            first += 1
        at = first
        while at < len(others) and others[at].from_s < span.to_s:
            total += weight * (min(span.to_s, others[at].to_s) - max(span.from_s, others[at].from_s))
            at += 1
    return total
