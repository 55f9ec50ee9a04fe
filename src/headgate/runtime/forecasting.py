"""Forecasting: what every window and budget will have used at its end, and how many more agents can start now.

One rule: the ledger is the history; what is kept here can be rebuilt from it at any time, and a question changes
nothing but that. The arithmetic is `core.forecast`'s and `core.capacity`'s.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from headgate.core import quota
from headgate.core.amounts import DIMENSIONS, Dimension
from headgate.core.capacity import AgentNeed, Capacity, Room, capacity
from headgate.core.forecast import MOST_SLOTS, Forecast, Forecaster
from headgate.core.instants import to_ns, to_s
from headgate.core.ledger import UsageGroup
from headgate.core.limits import Limit, Rate, Rolling, Window
from headgate.core.planning import amount_in_words
from headgate.core.pool import FAILURES_TO_OPEN
from headgate.core.scopes import Scopes, fit
from headgate.core.season import DAY_S, HOUR_S
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse
from headgate.core.usage import Counting
from headgate.ports import Clock, LedgerStore
from headgate.runtime.monitor import LimitView, per_of
from headgate.runtime.recorded import Only, Recorded, hour_start_s, only_of, only_of_kind
from headgate.runtime.rules import Rules

MOST_FORECASTS = 1_000
"""Windows projected at once, and forecasters kept; each takes some 100 KB when it has learned."""

HISTORY_S = 28 * DAY_S
_HISTORY_WINDOWS = 3
"""Four weeks show every day of the week often enough, three windows how a long one went before."""

ENDLESS_S = 30 * DAY_S
"""How far what never resets is projected."""

MEASURED_S = 3600
_SLICE_S = 300
"""An agent was at work in each five minutes in which it called: the ledger sums calls, not the time between them."""

_SPENT_S = 900
"""What goes on now is taken from the last quarter of an hour."""

_RATE_SPENT_S = 60
"""Of a rate also from the last minute, where that is more: it may be used up by what has begun just now."""

_FAILING_S = (60, 300)
"""An account of which nothing but failures is recorded for one of these, and FAILURES_TO_OPEN of them, is down."""

_LATELY_S = (60, 300, 900, 3600)
"""Without history the rate is that of the last use: over the shortest of these that has all of the longest."""

_HOURS_AT_ONCE = 24
"""Learning from weeks is work: calls go on after so many hours, some 3 ms."""

_LONGEST_S: dict[str, int] = {"hour": HOUR_S, "day": DAY_S, "week": 7 * DAY_S, "month": 31 * DAY_S}


@dataclass(frozen=True, slots=True)
class ForecastView:
    """One window projected: what it will have used at `projected_to_s`; None where nothing can be said.

    `resets_s` is None for what never resets. `low` and `high` are the band; `runs_out_s` is when what is expected
    reaches the amount, `runs_out_earliest_s` when the upper bound does (None: not up to `projected_to_s`).
    """

    name: str
    scope: str
    models: str | None
    dimension: str
    per: str
    amount: int
    used: int
    projected_to_s: float
    resets_s: float | None
    expected: int | None
    low: int
    high: int | None
    runs_out_s: float | None
    runs_out_earliest_s: float | None
    assumed: str
    experts: tuple[tuple[str, float], ...]


@dataclass(slots=True)
class _Kept:
    forecaster: Forecaster
    read_until_s: int


class Forecasting:
    """Keeps one forecaster for each window in use, the least recently asked for forgotten first."""

    def __init__(self, ledger: LedgerStore, rules: Rules, clock: Clock, countings: Mapping[str, Counting]) -> None:
        """Learn from this ledger; `countings` says how each account's provider counts."""
        self._recorded = Recorded(ledger, countings)
        self._rules = rules
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._learning = asyncio.Lock()

    async def forecasts(self, views: Sequence[LimitView]) -> list[ForecastView]:
        """Project the windows among the limits as the monitor reads them, at most MOST_FORECASTS.

        The first question reads weeks of hours from the ledger and learns from them (some 50 ms for a window); later
        ones read what came since.
        """
        by_scope: dict[str, list[tuple[Window | Rolling, LimitView]]] = {}
        for limit, view in self._windows(views):
            by_scope.setdefault(limit.scope, []).append((limit, view))
        told = []
        async with self._learning:  # two questions at once must not feed one forecaster by turns
            for scope, windows in by_scope.items():
                now_s = self._clock.now_s()
                kept = [self._keep(limit, now_s) for limit, _view in windows]
                only = only_of(scope)
                since_s = min(now_s, *(each.read_until_s for each in kept))
                groups = await self._recorded.groups(only, since_s, now_s, ("hour",))
                for each, (limit, view) in zip(kept, windows, strict=True):
                    unclosed = await self._feed(each, limit, groups, now_s)
                    is_new = only is not None and each.forecaster.observed_until_s is None
                    past = _Past(
                        None if only is None else unclosed,
                        await self._lately_per_s(only, limit, now_s) if is_new else None,
                        groups,
                    )
                    told.append(self._view(each.forecaster, limit, view, now_s, past))
        return sorted(told, key=lambda each: each.name)

    async def capacity(
        self, views: Sequence[LimitView], scopes: Scopes, model: str, waiting: Mapping[str, int] | None = None
    ) -> Capacity:
        """Say how many more agents of a kind can start now: of these scopes (without an agent), calling this model.

        `views` are the limits as the monitor reads them, `waiting` how many calls wait for each, by name. An agent
        counts as one slot: it makes one call at a time.
        """
        now_s = self._clock.now_s()
        scopes = fit(scopes)
        read = {view.name: view for view in views}
        spent: dict[tuple[str, int], list[UsageGroup]] = {}
        rooms = []
        for limit in self._rules.limits_for(scopes, model):
            rates = []
            for span_s in (_SPENT_S, _RATE_SPENT_S) if isinstance(limit, Rate) else (_SPENT_S,):
                key = (limit.scope, span_s)
                if key not in spent:
                    spent[key] = await self._recorded.groups(only_of(limit.scope), now_s - span_s, now_s)
                rates.append(self._spent_per_s(limit, spent[key], span_s))
            known = [rate for rate in rates if rate is not None]
            room = self._room(limit, read.get(limit.name), max(known) if len(known) == len(rates) else None, now_s)
            rooms.append(replace(room, waiting=(waiting or {}).get(limit.name, 0)))
        return capacity(rooms, await self._need(only_of_kind(scopes, model), now_s), now_s)

    async def _lately_per_s(self, only: Only | None, limit: Limit, now_s: float) -> float | None:
        """Give the rate at which a limit was used last, within the hour; None where it was not."""
        used = [
            self._recorded.units(
                await self._recorded.groups(only, now_s - span_s, now_s), limit.dimension, limit.models
            ).known
            for span_s in _LATELY_S
        ]
        first = used.index(used[-1])
        return used[-1] / _LATELY_S[first] if used[-1] else None

    async def failing(self, account: str, model: str) -> tuple[int, int]:
        """Give how many calls of an account for a model failed and in how many seconds, if nothing else is recorded.

        It is how a process knows that serves no calls itself; (0, 0) where some did not fail, or too few were made.
        """
        now_s = self._clock.now_s()
        only = only_of_kind(Scopes(account=account), model)
        for span_s in _FAILING_S:
            groups = await self._recorded.groups(only, now_s - span_s, now_s, ("state",))
            failed = sum(group.attempts for group in groups if group.group["state"] == "failed")
            done = sum(group.attempts for group in groups if group.group["state"] == "done")
            if failed >= FAILURES_TO_OPEN and not done:
                return failed, span_s
        return 0, 0

    def _windows(self, views: Sequence[LimitView]) -> list[tuple[Window | Rolling, LimitView]]:
        by_name = {view.name: view for view in views}
        limits = {limit.name: limit for limit in (*self._rules.named(by_name), *self._rules.standing())}
        named = ((limits.get(name), view) for name, view in by_name.items())
        return [(limit, view) for limit, view in named if isinstance(limit, Window | Rolling)][:MOST_FORECASTS]

    def _keep(self, limit: Window | Rolling, now_s: float) -> _Kept:
        found = self._kept.get(limit.name)
        if found is None:
            period_s = _period_s(limit)
            history_s = max(HISTORY_S, _HISTORY_WINDOWS * period_s)
            found = _Kept(Forecaster(period_s), max(0, int(now_s - history_s) // HOUR_S * HOUR_S))
            self._kept[limit.name] = found
            if len(self._kept) > MOST_FORECASTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(limit.name)
        return found

    async def _feed(self, kept: _Kept, limit: Limit, groups: Sequence[UsageGroup], now_s: float) -> int:
        """Let it observe the hours that are over; give what was used since."""
        forecaster = kept.forecaster
        this_hour_s = int(now_s) // HOUR_S * HOUR_S
        by_hour: dict[int, list[UsageGroup]] = {}
        for group in groups:
            by_hour.setdefault(hour_start_s(group.group["hour"] or ""), []).append(group)
        used = {
            hour_s: self._recorded.units(by_hour[hour_s], limit.dimension, limit.models).known
            for hour_s in sorted(by_hour)
        }
        for count, (hour_s, units) in enumerate(used.items()):
            if count % _HOURS_AT_ONCE == 0:
                await asyncio.sleep(0)
            if hour_s < this_hour_s and (units or forecaster.observed_until_s is not None):
                forecaster.observe(hour_s, units)
        if forecaster.observed_until_s is not None:
            forecaster.observe(this_hour_s - HOUR_S, 0)  # changes nothing unless that hour went by without a call
        kept.read_until_s = max(kept.read_until_s, this_hour_s)
        return used.get(this_hour_s, 0)

    def _view(
        self,
        forecaster: Forecaster,
        limit: Window | Rolling,
        view: LimitView,
        now_s: float,
        past: "_Past",
    ) -> ForecastView:
        begin_s, end_s, note = _extent(limit, view.resets_s, now_s)
        used, (unclosed, lately_per_s, groups) = view.used, past
        if isinstance(limit, Rolling):
            coming = forecaster.forecast(0, begin_s, end_s, now_s, unclosed=unclosed, lately_per_s=lately_per_s)
            forecast = _rolled(coming, limit, used, now_s)
        else:
            forecast = forecaster.forecast(
                used, begin_s, end_s, now_s, amount=limit.amount, unclosed=unclosed, lately_per_s=lately_per_s
            )
        forecast, spent = _within(forecast, limit, used)
        said = [forecast.assumed, spent, note]
        if only_of(limit.scope) is None:
            said.append("the ledger keeps no sums by this scope")
        unpriced = self._recorded.units(groups, limit.dimension, limit.models).unknown
        if unpriced:
            said.append(f"{unpriced} calls without a known price are not in the history")
        return ForecastView(
            name=limit.name,
            scope=limit.scope,
            models=limit.models,
            dimension=limit.dimension,
            per=per_of(limit),
            amount=limit.amount,
            used=used,
            projected_to_s=end_s,
            resets_s=end_s if isinstance(limit, Window) and not isinstance(limit.span, Lifetime) else None,
            expected=forecast.expected,
            low=forecast.low,
            high=forecast.high,
            runs_out_s=forecast.runs_out_s,
            runs_out_earliest_s=forecast.runs_out_earliest_s,
            assumed="; ".join(part for part in said if part),
            experts=forecast.experts,
        )

    def _spent_per_s(self, limit: Limit, groups: Sequence[UsageGroup], over_s: int) -> float | None:
        if only_of(limit.scope) is None:
            return None
        spent = self._recorded.units(groups, limit.dimension, limit.models)
        return _with_unknown(spent.known, spent.unknown, spent.attempts, over_s)

    def _room(self, limit: Limit, view: LimitView | None, spent_per_s: float | None, now_s: float) -> Room:
        reading = quota.read(limit, {}, now_s)
        resets_ns = reading.resets_ns
        if isinstance(limit, Window):
            resets_ns = limit.span.end_ns(to_ns(now_s))
        resets_s = view.resets_s if view is not None else None
        if resets_s is None and resets_ns is not None:
            resets_s = to_s(resets_ns)
        return Room(
            limit=limit.name,
            dimension=limit.dimension,
            kind=limit.kind,
            amount=limit.burst if isinstance(limit, Rate) else limit.amount,
            free=reading.free if view is None else view.free,
            refill_per_s=limit.amount / limit.period_s if isinstance(limit, Rate) else 0.0,
            spent_per_s=spent_per_s,
            resets_s=resets_s,
        )

    async def _need(self, only: Only, now_s: float) -> AgentNeed | None:
        """Measure what one agent used on average in the last hour; None if none was at work."""
        agent_s = 0
        every: list[UsageGroup] = []
        for begin_s in range(0, MEASURED_S, _SLICE_S):
            since_s = now_s - MEASURED_S + begin_s
            groups = await self._recorded.groups(only, since_s, since_s + _SLICE_S, ("agent", "session", "key"))
            agent_s += _SLICE_S * len({_who(group) for group in groups})
            every += groups
        if not agent_s:
            return None
        per_s: dict[Dimension, float] = {"slots": 1.0}
        per_call: dict[Dimension, float] = {}
        for dimension in DIMENSIONS[:-1]:
            used = self._recorded.units(every, dimension)
            rate = _with_unknown(used.known, used.unknown, used.attempts, agent_s)
            if rate is not None:
                per_s[dimension] = rate
                per_call[dimension] = rate * agent_s / max(1, used.attempts)
        unnamed = any(group.attempts and not (group.group["agent"] or group.group["session"]) for group in every)
        return AgentNeed(per_s, agent_s / MEASURED_S, per_call, unnamed)


def _who(group: UsageGroup) -> str:
    """Name the agent of a group: by its own name, or else its session, or else its key."""
    named = group.group
    return next((f"{kind}:{named[kind]}" for kind in ("agent", "session", "key") if named[kind] is not None), "")


def _with_unknown(known: int, unknown: int, attempts: int, over_s: float) -> float | None:
    """Give units per second as if calls of unknown price cost what the others did; None if all are unknown."""
    if attempts and unknown >= attempts:
        return None
    return known / over_s * (attempts / (attempts - unknown) if unknown else 1)


def _period_s(limit: Window | Rolling) -> int:
    if isinstance(limit, Rolling):
        period_s = limit.period_s
    else:
        match limit.span:
            case Calendar(unit):
                period_s = ENDLESS_S if unit == "month" else _LONGEST_S[unit]
            case Fixed(period_s) | OpenedByUse(period_s):
                pass
            case Lifetime():
                period_s = ENDLESS_S
            case _:
                assert_never(limit.span)
    return min(period_s, MOST_SLOTS * HOUR_S)


def _extent(limit: Window | Rolling, resets_s: float | None, now_s: float) -> tuple[float, float, str]:
    """Give when the window around now began and ends, and what is to be said of that."""
    if isinstance(limit, Rolling):
        return now_s, now_s + limit.period_s, "a rolling window: what is used leaves it evenly"
    span = limit.span
    if isinstance(span, Lifetime):
        return now_s, now_s + ENDLESS_S, f"it never resets: projected {ENDLESS_S // DAY_S} days ahead"
    if isinstance(span, OpenedByUse) and resets_s is None:
        return now_s, now_s + span.period_s, "not open: projected as if it opened now"
    end_ns = span.end_ns(to_ns(now_s)) if resets_s is None else to_ns(resets_s)
    end_s = to_s(end_ns)
    if isinstance(span, Calendar):
        # Half an hour more than its longest, and for days and weeks the hour by which clocks change, lead into the one
        # before it: where that ends, this one begins.
        return (
            to_s(
                span.end_ns(
                    end_ns - to_ns(_LONGEST_S[span.unit] + (HOUR_S // 2 if span.unit == "hour" else 2 * HOUR_S))
                )
            ),
            end_s,
            "",
        )
    return end_s - span.period_s, end_s, ""


class _Past(NamedTuple):
    """What the ledger says of a limit's last time: since the last closed hour, per second of late, and all sums."""

    unclosed: int | None
    lately_per_s: float | None
    groups: Sequence[UsageGroup]


def _within(forecast: Forecast, limit: Window | Rolling, used: int) -> tuple[Forecast, str]:
    """Let what is expected end at what a hard limit lets through, and say what would be used if it did not."""
    most = max(limit.amount, used)
    if limit.holds_likely or forecast.expected is None or max(forecast.expected, forecast.high or 0) <= most:
        return forecast, ""
    low, expected = min(forecast.low, most), min(forecast.expected, most)
    high = None if forecast.high is None else min(forecast.high, most)
    wished = amount_in_words(limit.dimension, forecast.expected)
    is_spent = "it is spent" if used >= limit.amount else "it will be spent"
    spent = f"{is_spent}: without it {wished} would be used" if forecast.expected > most else ""
    return replace(forecast, low=low, expected=expected, high=high), spent


def _rolled(coming: Forecast, limit: Rolling, used: int, now_s: float) -> Forecast:
    """Turn what a period to come will use into what a rolling window goes through meanwhile, from `used` to that."""

    def reached_s(then: int | None) -> float | None:
        if used >= limit.amount:
            return now_s
        if then is None or then < limit.amount:
            return None
        return now_s + limit.period_s * (limit.amount - used) / (then - used)

    return Forecast(
        expected=coming.expected,
        low=coming.low,
        high=coming.high,
        runs_out_s=reached_s(coming.expected),
        runs_out_earliest_s=reached_s(coming.high),
        assumed=coming.assumed,
        experts=coming.experts,
    )
