"""Series over time for the plots: agents at work, use of the limits, waits.

One rule: a point stands for a bin of equal length and is its exact average (of what is counted over time) or its exact
sum (of what happens at an instant), so that coarse and fine plots tell the same story.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from headgate.cli.report.figures import LimitFigures, RunFigures
from headgate.cli.report.levels import Charge, Span, ended_s
from headgate.core.instants import to_ns
from headgate.core.limits import Gauge, Rate, Rolling, Window
from headgate.core.scopes import scope_name

__all__ = ["Bins", "LimitSeries", "Series", "bins_of", "series_of"]

_MOST_BINS = 240
_STEPS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
_LIMITS_PLOTTED = 8
# Rates are shown over at least so long a stretch: below that, single calls make spikes that mean nothing.
_SMOOTH_OVER_S = 10.0
_WAIT_EDGES_S = (0.01, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal bins from `from_s` on."""

    from_s: float
    step_s: float
    count: int

    def at(self, instant_s: float) -> int:
        """Give the bin of an instant; what lies outside belongs to the first or last."""
        return min(self.count - 1, max(0, int((instant_s - self.from_s) / self.step_s)))

    def middles_s(self) -> list[float]:
        """Give the middle of each bin, in seconds since the first one began."""
        return [round((index + 0.5) * self.step_s, 3) for index in range(self.count)]


@dataclass(frozen=True, slots=True)
class LimitSeries:
    """The use of one limit, as shares of 1: of a window or slots how full it was.

    Of a rate it is what was used of all that it gave in that time: its refill, and what was taken out of its bucket
    beside that. Only a debt goes beyond 1: an answer that used more than was held for it.
    """

    limit: LimitFigures
    shares: list[float]


@dataclass(frozen=True, slots=True)
class Series:
    """All series of a run. `wait_counts` counts calls by wait: up to each edge, and beyond the last.

    `pauses` are the stretches between a runner's last sign of life and the first of the one that resumed the run.
    """

    bins: Bins
    pauses: list[Span]
    working: list[float]
    waiting: list[float]
    calling: list[float]
    mean_wait_s: list[float | None]
    longest_wait_s: list[float | None]
    limits: list[LimitSeries]
    smooth_s: float
    wait_edges_s: Sequence[float]
    wait_counts: list[int]


def bins_of(from_s: float, to_s: float) -> Bins:
    """Cut a stretch of time into at most 240 bins of a round length."""
    took_s = max(to_s - from_s, _STEPS_S[0])
    step_s = next((step for step in _STEPS_S if took_s / step <= _MOST_BINS), took_s / _MOST_BINS)
    return Bins(from_s, step_s, max(1, -int(-took_s // step_s)))


def series_of(figures: RunFigures) -> Series:
    """Compute the series of a run, in O(calls + bins) for each."""
    calls = figures.sent
    bins = bins_of(figures.began_s, figures.ended_s)
    means, longest = _waits(figures, bins)
    still = list(figures.pauses)
    smooth_s = max(_SMOOTH_OVER_S, bins.step_s)
    plotted = sorted(figures.limits, key=lambda limit: -(limit.use.highest or 0.0))[:_LIMITS_PLOTTED]
    counts = [0] * (len(_WAIT_EDGES_S) + 1)
    for wait_s in figures.waits_s:
        counts[next((at for at, edge in enumerate(_WAIT_EDGES_S) if wait_s <= edge), len(_WAIT_EDGES_S))] += 1
    return Series(
        bins=bins,
        pauses=still,
        working=occupancy(_outside(_lives(figures), still), bins),
        waiting=occupancy((Span(call.queued_s, call.admitted_s) for call in calls), bins),
        calling=occupancy((Span(call.admitted_s, ended_s(call)) for call in calls), bins),
        mean_wait_s=means,
        longest_wait_s=longest,
        limits=[LimitSeries(limit, _limit_shares(limit, bins, smooth_s)) for limit in plotted],
        smooth_s=smooth_s,
        wait_edges_s=_WAIT_EDGES_S,
        wait_counts=counts,
    )


def occupancy(spans: Iterable[Span], bins: Bins) -> list[float]:
    """Give how many stretches lay in each bin on average: a stretch over half a bin counts one half."""
    whole = [0.0] * (bins.count + 1)
    parts = [0.0] * bins.count
    for span in spans:
        if span.to_s <= span.from_s:
            continue
        first, last = bins.at(span.from_s), bins.at(span.to_s)
        begin, end = (span.from_s - bins.from_s) / bins.step_s, (span.to_s - bins.from_s) / bins.step_s
        if first == last:
            parts[first] += end - begin
            continue
        parts[first] += first + 1 - begin
        parts[last] += end - last
        whole[first + 1] += 1
        whole[last] -= 1
    return [part + covered for part, covered in zip(parts, accumulate(whole[:-1]), strict=True)]


def _lives(figures: RunFigures) -> list[Span]:
    """Give when agents were at work: the last attempt as the job has it, those before it as their calls show."""
    lives: list[Span] = []
    last_start_s: dict[str, float] = {}
    for job in figures.report.jobs:
        if job.started_s is not None:
            last_start_s[scope_name(job.name)] = job.started_s
            lives.append(Span(job.started_s, figures.ended_s if job.ended_s is None else job.ended_s))
    earlier: dict[str, Span] = {}
    for call in figures.sent:
        name = scope_name(call.scopes.agent or "")
        start_s = last_start_s.get(name)
        if start_s is None or call.queued_s < start_s:
            before = earlier.get(name, Span(call.queued_s, call.queued_s))
            until_s = ended_s(call) if start_s is None else min(ended_s(call), start_s)
            earlier[name] = Span(min(before.from_s, call.queued_s), max(before.to_s, until_s))
    return [*lives, *earlier.values()]


def _outside(spans: Iterable[Span], gaps: Sequence[Span]) -> list[Span]:
    """Give what of the stretches lies outside of gaps that are sorted: a dead runner's agents were not at work."""
    parts: list[Span] = []
    for span in spans:
        from_s = span.from_s
        for gap in gaps:
            if gap.to_s > from_s and gap.from_s < span.to_s:
                parts.append(Span(from_s, gap.from_s))
                from_s = gap.to_s
        parts.append(Span(from_s, span.to_s))
    return [part for part in parts if part.to_s > part.from_s]


def _waits(figures: RunFigures, bins: Bins) -> tuple[list[float | None], list[float | None]]:
    sums, counts, longest = [0.0] * bins.count, [0] * bins.count, [0.0] * bins.count
    for call in figures.sent:
        at = bins.at(call.admitted_s)
        sums[at] += call.wait_s
        counts[at] += 1
        longest[at] = max(longest[at], call.wait_s)
    means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    return means, [wait_s if count else None for wait_s, count in zip(longest, counts, strict=True)]


def _limit_shares(figures: LimitFigures, bins: Bins, smooth_s: float) -> list[float]:
    limit = figures.limit
    match limit:
        case Rate():
            return _rate_shares(limit, figures.charges, bins, max(1, round(smooth_s / bins.step_s)))
        case Gauge():
            return [in_use / limit.amount for in_use in occupancy(_held(figures.charges), bins)]
        case Rolling():
            window = max(1, round(limit.period_s / bins.step_s))
            used = _per_bin(figures.charges, bins)
            return [share * min(window, at + 1) / limit.amount for at, share in enumerate(_trailing_mean(used, window))]
        case Window():
            return [used / limit.amount for used in _filled(figures.charges, limit, bins)]


def _rate_shares(limit: Rate, charges: Sequence[Charge], bins: Bins, window: int) -> list[float]:
    rate = limit.amount / limit.period_s
    used = [0.0, *accumulate(_per_bin(charges, bins))]
    free = _free_at_edges(limit, charges, bins)
    shares = []
    for end in range(1, bins.count + 1):
        begin = max(0, end - window)
        taken_out = max(0.0, max(0.0, free[begin]) - max(0.0, free[end]))
        gave = (end - begin) * bins.step_s * rate + taken_out
        shares.append((used[end] - used[begin] + max(0.0, -free[begin])) / gave)
    return shares


def _free_at_edges(limit: Rate, charges: Sequence[Charge], bins: Bins) -> list[float]:
    """Give how full a rate's bucket was at each edge of the bins; below 0 it was in debt."""
    rate = limit.amount / limit.period_s
    free, at_s, next_charge = float(limit.burst), bins.from_s, 0
    edges = [free]
    for index in range(bins.count):
        while next_charge < len(charges) and bins.at(charges[next_charge].at_s) <= index:
            charge = charges[next_charge]
            now_s = max(at_s, charge.at_s)
            free = min(limit.burst, free + (now_s - at_s) * rate) - charge.units
            at_s, next_charge = now_s, next_charge + 1
        edge_s = max(at_s, bins.from_s + (index + 1) * bins.step_s)
        free, at_s = min(limit.burst, free + (edge_s - at_s) * rate), edge_s
        edges.append(free)
    return edges


def _per_bin(charges: Sequence[Charge], bins: Bins) -> list[float]:
    sums = [0.0] * bins.count
    for charge in charges:
        sums[bins.at(charge.at_s)] += charge.units
    return sums


def _trailing_mean(values: Sequence[float], window: int) -> list[float]:
    sums = [0.0, *accumulate(values)]
    return [(sums[at + 1] - sums[max(0, at + 1 - window)]) / min(window, at + 1) for at in range(len(values))]


def _filled(charges: Sequence[Charge], limit: Window, bins: Bins) -> list[float]:
    levels = [0.0] * bins.count
    used, at = 0.0, 0
    end_ns: int | None = 0
    for charge in charges:
        here = bins.at(charge.at_s)
        levels[at:here] = [used] * (here - at)
        at = here
        now_ns = to_ns(charge.at_s)
        if end_ns is not None and now_ns >= end_ns:
            used, end_ns = 0.0, limit.span.end_ns(now_ns)
        used += charge.units
    levels[at:] = [used] * (bins.count - at)
    return levels


def _held(charges: Sequence[Charge]) -> list[Span]:
    """Pair each beginning with an end; which one is of no account, for only their number is shown."""
    begins = [charge.at_s for charge in charges if charge.units > 0]
    ends = [charge.at_s for charge in charges if charge.units < 0]
    return [Span(begin, end) for begin, end in zip(begins, ends, strict=True)]
