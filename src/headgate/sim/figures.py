"""Figures of a simulation: what was used, who waited how long, what came of the programs, and how fairly.

One rule: a figure has one definition, here, whether a table, a page or JSON shows it; what there was nothing of is
None, never 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil

from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.limits import Gauge, Limit, Rate
from headgate.core.scopes import LimitRule, level_name
from headgate.runtime.monitor import per_of
from headgate.sim.buckets import MINUTE_S
from headgate.sim.driver import Played
from headgate.sim.tally import AccountTally, Sample, Share

__all__ = [
    "AccountUse",
    "Figures",
    "LearnedLimit",
    "LimitUse",
    "RefusedBy",
    "Series",
    "Spread",
    "figures_of",
    "jain",
    "quantile",
]


@dataclass(frozen=True, slots=True)
class Spread:
    """How times are spread, in seconds."""

    count: int
    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How far a limit was used, as shares of 1.

    A rate: `overall` of all that its bucket gave, `while_waiting` of its refill while calls waited, counted at the
    provider's bucket. A window, budget or slots: the mean and `highest` of how full it was when looked at.
    """

    scope: str
    models: str | None
    dimension: Dimension
    kind: str
    amount: int
    per: str
    overall: float | None
    while_waiting: float | None
    highest: float | None


@dataclass(frozen=True, slots=True)
class RefusedBy:
    """A limit that refused calls: `scopes` of its kind did, `spent` of the `calls` could never have gone.

    The first came at `first_s`, when the limit was used to the share `used`, with what running calls held of it (None:
    it has no level); the last at `last_s`. `limit` is its level's name, with the scope as it is configured.
    `most_spent` is the share that was really used when most of it was; with `holds_bounds` it holds for each call the
    most that it could use, where it could be told to hold what is likely.
    """

    limit: str
    calls: int
    spent: int
    scopes: int
    first_s: float
    last_s: float
    used: float | None
    most_spent: float | None
    holds_bounds: bool


@dataclass(frozen=True, slots=True)
class LearnedLimit:
    """What was known of a provider's limit at the end: from a `header`, a `429`, or slow answers (`latency`)."""

    account: str
    models: str
    what: str
    amount: int
    source: str


@dataclass(frozen=True, slots=True)
class AccountUse:
    """What one account did. `failures` counts attempts that went wrong, by kind; `pauses` are circuits that opened."""

    account: str
    served: int
    share: float | None
    cache_hits: float | None
    cost_micro_usd: int
    failures: Mapping[str, int]
    pauses: int
    paused_s: float


@dataclass(frozen=True, slots=True)
class Series:
    """How things went: a point for each look, at its time.

    What is counted over time, and the use of rates in `limits`, are of the minute before, or since the look before
    where that is longer ago.
    """

    at_s: list[float]
    waiting: list[int]
    under_way: list[int]
    served_per_minute: list[float]
    failures_per_minute: list[float]
    limits: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a workload: `offered` calls are `served`, `refused`, `failed`, or at the end `waiting`, `under_way`.

    Failures of a provider's (`answered_429` and `provider_failures`) are of attempts; `failed` are the calls whose
    agents were told. `warmed` calls waited `warming_s` in all for another's first token, to read what it writes.

    A sharer's served share is what it was served of the work that it asked for: of these `least_served`, `most_served`
    and Jain's index. `behind` is the VTC paper's difference in service: per window of 60 s, how far the sharers are
    behind the most served one, but no further than behind what they asked for; here their mean, as a part of what that
    one was served.
    """

    took_s: float
    offered: int
    served: int
    refused: int
    failed: int
    waiting: int
    under_way: int
    answered_429: int
    provider_failures: int
    retries: int
    refusals: Sequence[RefusedBy]
    failures: Mapping[str, int]
    accounts: Sequence[AccountUse]
    learned: Sequence[LearnedLimit]
    warmed: int
    warming_s: float
    waits: Mapping[str, Spread]
    waits_by_priority: Mapping[str, Spread]
    longest_wait_s: float
    programs_begun: int
    programs_given_up: int
    programs: Mapping[str, Spread]
    limits: Sequence[LimitUse]
    jain: float | None
    least_served: float | None
    most_served: float | None
    behind_mean: float | None
    behind_max: float | None
    sharers: int
    cost_micro_usd: int
    unknown_cost: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cache_hits: float | None
    uncached_per_program: float | None
    wait_curve: Mapping[str, Sequence[float]]
    series: Series


CLASSES = ("batch", "interactive")
_CURVE_POINTS = 100
_LIKELY = frozenset(("micro_usd", "tokens", "input_tokens", "output_tokens"))
"""Of these a window can be told to hold what is likely."""


def figures_of(played: Played) -> Figures:
    """Compute the figures of a simulation."""
    tally, usage = played.tally, played.tally.usage
    waits = [
        _merged(each for (of_person, _), each in tally.waits_s.items() if of_person == interactive)
        for interactive in (False, True)
    ]
    priorities = sorted({priority for _, priority in tally.waits_s}, reverse=True)
    programs = [sorted(each) for each in tally.programs_s]
    done = sum(map(len, programs))
    served = [sum(share.served.values()) / sum(share.asked.values()) for share in tally.shares.values()]
    behind = list(_behind(tally.shares.values()))
    return Figures(
        took_s=round(played.took_s, 6),
        offered=tally.offered,
        served=tally.served,
        refused=tally.refused,
        failed=tally.failed,
        waiting=len(tally.waiting),
        under_way=len(tally.under_way),
        answered_429=tally.answered_429,
        provider_failures=tally.provider_failures,
        retries=tally.retries,
        refusals=_refusals(played),
        failures=dict(tally.failures.most_common()),
        accounts=[_account(name, each, tally.served) for name, each in tally.accounts.items()],
        learned=_learned(played),
        warmed=tally.warmed,
        warming_s=_rounded(tally.warming_s),
        waits=_by_class(waits),
        waits_by_priority={
            str(priority): _spread(_merged(each for (_, of), each in tally.waits_s.items() if of == priority))
            for priority in priorities
        },
        longest_wait_s=_rounded(tally.longest_wait_s),
        programs_begun=tally.programs_begun,
        programs_given_up=tally.programs_given_up,
        programs=_by_class(programs),
        limits=list(_limits(played)),
        jain=jain(served),
        least_served=_rounded(min(served)) if served else None,
        most_served=_rounded(max(served)) if served else None,
        behind_mean=_rounded(sum(behind) / len(behind)) if behind else None,
        behind_max=_rounded(max(behind)) if behind else None,
        sharers=len(tally.shares),
        cost_micro_usd=tally.cost_micro_usd,
        unknown_cost=tally.unknown_cost,
        input_tokens=usage.prompt_tokens - usage.cache_read_tokens,
        cached_tokens=usage.cache_read_tokens,
        output_tokens=usage.output_tokens,
        cache_hits=_rounded(usage.cache_read_tokens / usage.prompt_tokens) if usage.prompt_tokens else None,
        uncached_per_program=round(tally.uncached_of_done / done, 1) if done else None,
        wait_curve={name: _curve(each) for name, each in zip(CLASSES, waits, strict=True)},
        series=_series(played),
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Give the smallest value that at least `share` of the ordered ones do not exceed; None of nothing."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


def jain(amounts: Sequence[float]) -> float | None:
    """Give Jain's fairness index: 1 where all have the same, 1/n where one has all (Jain, Chiu, Hawe 1984)."""
    squares = sum(amount * amount for amount in amounts)
    return _rounded(sum(amounts) ** 2 / (len(amounts) * squares)) if squares else None


def _merged(waits_s: Iterable[Iterable[float]]) -> list[float]:
    return sorted(wait_s for each in waits_s for wait_s in each)


def _refusals(played: Played) -> list[RefusedBy]:
    """Give what refused calls, most of them first; the limits of many scopes that one rule makes are one."""
    refusals, sampler = played.tally.refusals, played.sampler
    groups: dict[str, list[str]] = {}
    for name in refusals:
        groups.setdefault(_as_configured(name, played.config.limits), []).append(name)
    found = []
    for name, names in groups.items():
        each = [refusals[of] for of in names]
        limits = [sampler.limits[of] for of in names if of in sampler.limits]
        first = min(each, key=lambda refusal: refusal.first_s)
        found.append(
            RefusedBy(
                name,
                sum(refusal.calls for refusal in each),
                sum(refusal.spent for refusal in each),
                len(each),
                _rounded(first.first_s),
                _rounded(max(refusal.last_s for refusal in each)),
                None if first.used is None else _rounded(first.used),
                max((_rounded(sampler.spent[of]) for of in names if of in sampler.spent), default=None),
                any(limit.dimension in _LIKELY and _is_window(limit) and not limit.holds_likely for limit in limits),
            )
        )
    return sorted(found, key=lambda by: -by.calls)


def _is_window(limit: Limit) -> bool:
    return not isinstance(limit, Rate | Gauge)


def _as_configured(name: str, rules: Sequence[LimitRule]) -> str:
    scope, found, _ = name.partition(" ")
    for rule in rules if found else ():
        if fnmatchcase(scope, rule.scope) and level_name(scope, rule.template) == name:
            return level_name(rule.scope, rule.template)
    return name


def _account(name: str, account: AccountTally, served: int) -> AccountUse:
    return AccountUse(
        name,
        account.served,
        _rounded(account.served / served) if served else None,
        _rounded(account.cached_tokens / account.prompt_tokens) if account.prompt_tokens else None,
        account.cost_micro_usd,
        dict(account.failures.most_common()),
        account.pauses,
        _rounded(account.paused_s),
    )


def _learned(played: Played) -> list[LearnedLimit]:
    """Give the rates that were learned beside or below what is configured, and bounds on calls at once."""
    configured = {
        (rule.scope, rule.template.dimension): rule.template.amount
        for rule in played.config.limits
        if isinstance(rule.template, Rate)
    }
    found = []
    for key, learned in played.learned.items():
        own = configured.get((key.scope, key.what)) if key.what in DIMENSIONS else None
        if own is None or learned.amount < own:
            found.append(LearnedLimit(key.account, key.models, key.what, learned.amount, learned.source))
    return found


def _by_class(ordered: Sequence[list[float]]) -> dict[str, Spread]:
    every = sorted(value for each in ordered for value in each)
    return {name: _spread(each) for name, each in zip((*CLASSES, "all"), (*ordered, every), strict=True)}


def _spread(ordered: Sequence[float]) -> Spread:
    mean_s = _rounded(sum(ordered) / len(ordered)) if ordered else None
    parts = (quantile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Spread(len(ordered), mean_s, *(None if part is None else _rounded(part) for part in parts))


def _curve(ordered: Sequence[float]) -> list[float]:
    """Give the waits that 0, 1, ... 100 % of the calls do not exceed."""
    values = (quantile(ordered, point / _CURVE_POINTS) for point in range(_CURVE_POINTS + 1))
    return [_rounded(value) for value in values if value is not None]


def _behind(shares: Iterable[Share]) -> Iterable[float]:
    windows: dict[int, list[tuple[int, int]]] = {}
    for share in shares:
        for window in share.asked.keys() | share.served.keys():
            windows.setdefault(window, []).append((share.served.get(window, 0), share.asked.get(window, 0)))
    for pairs in windows.values():
        most = max(served for served, _ in pairs)
        if most:
            yield sum(min(most - served, abs(asked - served)) for served, asked in pairs) / (most * len(pairs))


def _limits(played: Played) -> Iterable[LimitUse]:
    samples, waited_s = played.sampler.samples, played.meters.waited_s
    for name, limit in played.sampler.limits.items():
        if not isinstance(limit, Rate):
            full = [sample.levels.get(name, 0.0) for sample in samples]
            busy = [sample.levels.get(name, 0.0) for sample in samples if sample.waiting]
            yield _use(limit, _mean(full), _mean(busy), max(full, default=None))
        elif (bucket := played.meters.followed.get(name)) is not None:
            offered = bucket.used + bucket.lost + max(0.0, bucket.level)
            waiting = 1 - bucket.lost_waiting / (bucket.rate * waited_s) if waited_s > 0 else None
            lowest = min(
                (sample.buckets[name][1] for sample in samples if name in sample.buckets), default=bucket.level
            )
            yield _use(limit, bucket.used / offered, waiting, 1 - lowest / bucket.capacity)


def _use(limit: Limit, overall: float | None, while_waiting: float | None, highest: float | None) -> LimitUse:
    shares = (None if share is None else _rounded(share) for share in (overall, while_waiting, highest))
    return LimitUse(limit.scope, limit.models, limit.dimension, limit.kind, limit.amount, per_of(limit), *shares)


def _series(played: Played) -> Series:
    pairs = list(_minutes(played.sampler.samples))
    limits: dict[str, list[float | None]] = {}
    for name, limit in played.sampler.limits.items():
        if not isinstance(limit, Rate):
            limits[name] = [_rounded(after.levels.get(name, 0.0)) for _, after in pairs]
        elif name in played.meters.followed:
            limits[name] = [_used_between(played, name, before, after) for before, after in pairs]
    return Series(
        [_rounded(after.at_s) for _, after in pairs],
        [after.waiting for _, after in pairs],
        [after.under_way for _, after in pairs],
        [_per_minute(after.served - before.served, before, after) for before, after in pairs],
        [_per_minute(_failures(after) - _failures(before), before, after) for before, after in pairs],
        limits,
    )


def _minutes(samples: Sequence[Sample]) -> Iterable[tuple[Sample, Sample]]:
    """Give each look with the last one that is a minute before it or more, or else the first."""
    since = 0
    for at, after in enumerate(samples[1:], 1):
        while since + 1 < at and after.at_s - samples[since + 1].at_s >= MINUTE_S:
            since += 1
        yield samples[since], after


def _failures(sample: Sample) -> int:
    return sample.answered_429 + sample.provider_failures


def _per_minute(count: int, before: Sample, after: Sample) -> float:
    return round(60 * count / (after.at_s - before.at_s), 3)


def _used_between(played: Played, name: str, before: Sample, after: Sample) -> float | None:
    """Give what was used of what a bucket gave between two looks: its refill, and what was taken out of it beside."""
    bucket = played.meters.followed[name]
    used_before, level_before = before.buckets.get(name, (0.0, bucket.capacity))
    used_after, level_after = after.buckets.get(name, (0.0, bucket.capacity))
    gave = bucket.rate * (after.at_s - before.at_s) + max(0.0, level_before) - max(0.0, level_after)
    return _rounded((used_after - used_before) / gave) if gave > 0 else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: float) -> float:
    return round(value, 4)
