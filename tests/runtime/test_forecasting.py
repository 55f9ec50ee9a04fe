"""Forecasts and capacity from a ledger: what the windows will have used, and how many more agents fit."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from headgate.adapters.memory import MemoryLedgerStore
from headgate.core.ledger import Attempt, AttemptState, UsageGroup, UsageQuery
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.season import DAY_S, HOUR_S
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse
from headgate.core.usage import Usage
from headgate.runtime.forecasting import Forecasting, ForecastView
from headgate.runtime.monitor import LimitView, per_of
from headgate.runtime.rules import Rules

MONDAY_S = datetime(2026, 11, 16, tzinfo=UTC).timestamp()
MODEL = "claude-sonnet-4-5"
MAIN = Scopes(account="main", key="ci")


@dataclass
class SetClock:
    at_s: float

    def now_s(self) -> float:
        return self.at_s


class CountingLedger(MemoryLedgerStore):
    """Remembers from when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.since_s: list[float | None] = []

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        self.since_s.append(query.since_s)
        return await super().usage(query)


class Scene:
    """Limits, a ledger with calls, and the monitor's reading of them."""

    def __init__(self, *limits: Limit, now_s: float = MONDAY_S) -> None:
        self.rules = Rules([LimitRule(limit.scope, limit) for limit in limits])
        self.clock = SetClock(now_s)
        self.ledger = CountingLedger()
        self.forecasting = Forecasting(self.ledger, self.rules, self.clock, {"main": "anthropic", "open": "openai"})
        self._calls = 0

    async def call(
        self,
        at_s: float,
        *,
        cost: int | None = 100,
        scopes: Scopes = MAIN,
        model: str = MODEL,
        state: AttemptState = "done",
    ) -> None:
        self._calls += 1
        attempt = Attempt(
            id=str(self._calls),
            call=str(self._calls),
            attempt=1,
            owner="here",
            scopes=scopes,
            endpoint="messages",
            model=model,
            queued_s=at_s,
            admitted_s=at_s,
            usage=Usage(input_tokens=60, cache_read_tokens=1000, cache_write_5m_tokens=40, output_tokens=10),
            cost_micro_usd=cost,
        )
        await self.ledger.begin(attempt)
        await self.ledger.finish(replace(attempt, state=state, done_s=at_s + 1))

    async def calls_each_hour(self, days: int, *, until_s: float | None = None, **call: Any) -> None:
        end_s = self.clock.at_s if until_s is None else until_s
        for hour in range(days * 24):
            await self.call(end_s - (hour + 0.5) * HOUR_S, **call)

    def views(self, used: int = 0, resets_s: float | None = None) -> list[LimitView]:
        return [
            LimitView(
                name=limit.name,
                scope=limit.scope,
                models=limit.models,
                dimension=limit.dimension,
                kind=limit.kind,
                amount=limit.amount,
                per=per_of(limit),
                burst=limit.burst if isinstance(limit, Rate) else limit.amount,
                used=used,
                held=0,
                free=limit.amount - used,
                resets_s=resets_s,
            )
            for limit in self.rules.standing()
        ]

    async def forecast(self, used: int = 0, resets_s: float | None = None) -> ForecastView:
        (view,) = await self.forecasting.forecasts(self.views(used, resets_s))
        return view


def window(dimension: Any, span: Any, *, scope: str = "account:main", amount: int = 10_000, **more: Any) -> Window:
    return Window("", scope, dimension, amount, span, **more)


def test_a_days_budget_is_projected_from_the_ledger() -> None:
    async def check() -> None:
        scene = Scene(window("micro_usd", Calendar("day"), amount=2000), now_s=MONDAY_S + 6 * HOUR_S)
        await scene.calls_each_hour(14)
        view = await scene.forecast(used=600, resets_s=MONDAY_S + DAY_S)
        assert (view.expected, view.projected_to_s, view.resets_s) == (2000, MONDAY_S + DAY_S, MONDAY_S + DAY_S)
        assert "it will be spent: without it $0.0024 would be used" in view.assumed
        assert view.runs_out_s == pytest.approx(MONDAY_S + 20 * HOUR_S, abs=HOUR_S / 2)
        assert (view.per, view.amount, view.used) == ("day", 2000, 600)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("dimension", "per_hour"), [("requests", 1), ("input_tokens", 100), ("output_tokens", 10), ("tokens", 110)]
)
def test_units_are_those_that_the_provider_counts(dimension: str, per_hour: int) -> None:
    async def check() -> None:
        scene = Scene(window(dimension, Fixed(5 * HOUR_S)), now_s=MONDAY_S)
        await scene.calls_each_hour(7)
        view = await scene.forecast(used=0, resets_s=MONDAY_S + 5 * HOUR_S)
        assert view.expected == 5 * per_hour

    asyncio.run(check())


def test_another_providers_formula_is_used_for_its_account() -> None:
    async def check() -> None:
        scene = Scene(window("tokens", Fixed(5 * HOUR_S), scope="account:open"))
        await scene.calls_each_hour(7, scopes=Scopes(account="open"))
        assert (await scene.forecast(resets_s=MONDAY_S + 5 * HOUR_S)).expected == 5 * 1110

    asyncio.run(check())


def test_only_the_pools_own_models_count() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Fixed(5 * HOUR_S), models="claude-*"))
        await scene.calls_each_hour(7)
        await scene.calls_each_hour(7, model="gpt-6")
        await scene.calls_each_hour(7, scopes=Scopes(account="other"))
        assert (await scene.forecast(resets_s=MONDAY_S + 5 * HOUR_S)).expected == 5

    asyncio.run(check())


def test_the_next_question_reads_only_what_came_since() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Calendar("day")))
        await scene.calls_each_hour(7)
        await scene.forecast()
        for hour in range(3):
            await scene.call(MONDAY_S + hour * HOUR_S + 60)
        scene.clock.at_s = MONDAY_S + 3 * HOUR_S
        later = await scene.forecast(used=3)
        assert scene.ledger.since_s[-1] == MONDAY_S
        assert later.expected == 24

    asyncio.run(check())


def test_asking_twice_says_the_same_and_so_does_a_new_process() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Calendar("day")), now_s=MONDAY_S + 9.5 * HOUR_S)
        await scene.calls_each_hour(9, until_s=MONDAY_S + 8 * HOUR_S)
        first, second = await scene.forecast(used=9), await scene.forecast(used=9)
        scene.forecasting = Forecasting(scene.ledger, scene.rules, scene.clock, {})
        assert first == second == await scene.forecast(used=9)

    asyncio.run(check())


def test_hours_without_a_call_count_as_unused() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Fixed(5 * HOUR_S)))
        await scene.calls_each_hour(7)
        busy = (await scene.forecast(resets_s=MONDAY_S + 5 * HOUR_S)).expected
        scene.clock.at_s = MONDAY_S + 48 * HOUR_S
        idle = await scene.forecast(resets_s=MONDAY_S + 53 * HOUR_S)
        assert busy is not None
        assert idle.expected is not None
        assert idle.expected < busy / 2
        assert "history ended" not in idle.assumed

    asyncio.run(check())


@pytest.mark.parametrize(
    ("span", "begins_s", "ends_s"),
    [
        (Calendar("hour"), MONDAY_S + 9 * HOUR_S, MONDAY_S + 10 * HOUR_S),
        (Calendar("week"), MONDAY_S, MONDAY_S + 7 * DAY_S),
        (Calendar("month"), MONDAY_S - 15 * DAY_S, MONDAY_S + 15 * DAY_S),
        (Fixed(5 * HOUR_S, int(MONDAY_S) + HOUR_S), MONDAY_S + 6 * HOUR_S, MONDAY_S + 11 * HOUR_S),
    ],
)
def test_without_history_the_rate_since_the_window_began_goes_on(span: Any, begins_s: float, ends_s: float) -> None:
    async def check() -> None:
        now_s = MONDAY_S + 9.5 * HOUR_S
        view = await Scene(window("requests", span), now_s=now_s).forecast(used=50)
        assert view.projected_to_s == ends_s
        assert view.expected == 50 + round(50 * (ends_s - now_s) / (now_s - begins_s))
        assert view.assumed.startswith("no history")

    asyncio.run(check())


def test_without_history_the_rate_of_what_was_used_last_goes_on() -> None:
    """A run's requests a day would run out "in 6 h 20 min", by the rate since midnight; they were spent in 10 s."""

    async def check() -> None:
        scene = Scene(window("requests", Calendar("day"), amount=40), now_s=MONDAY_S + 9.4 * HOUR_S)
        for number in range(20):
            await scene.call(scene.clock.at_s - 10 + number / 2)
        view = await scene.forecast(used=20)
        assert view.runs_out_s == pytest.approx(scene.clock.at_s + 60, abs=1)
        assert view.assumed.startswith("no history: the rate of what was used last goes on")
        scene.clock.at_s += 600
        slower = await scene.forecast(used=20)
        assert slower.runs_out_s == pytest.approx(scene.clock.at_s + 900, abs=1)

    asyncio.run(check())


@pytest.mark.parametrize(("likely", "expected"), [(0, 40), (1, 214)])
def test_no_more_is_expected_of_a_hard_limit_than_it_lets_through(likely: int, expected: int) -> None:
    """Once spent, "823" were expected at the end of a hard 40."""

    async def check() -> None:
        limit = window("output_tokens", Calendar("day"), amount=40, holds_likely=bool(likely))
        scene = Scene(limit, now_s=MONDAY_S + 6 * HOUR_S)
        await scene.calls_each_hour(14)
        view = await scene.forecast(used=40, resets_s=MONDAY_S + DAY_S)
        assert view.runs_out_s == scene.clock.at_s
        assert view.expected == expected
        assert likely or view.low == view.high == 40
        assert ("it is spent: without it 214 output tokens would be used" in view.assumed) != likely

    asyncio.run(check())


def test_a_plan_window_that_is_not_open_is_projected_as_if_it_opened_now() -> None:
    async def check() -> None:
        scene = Scene(window("requests", OpenedByUse(5 * HOUR_S)), now_s=MONDAY_S)
        await scene.calls_each_hour(7)
        view = await scene.forecast()
        assert (view.expected, view.projected_to_s) == (5, MONDAY_S + 5 * HOUR_S)
        assert "not open" in view.assumed

    asyncio.run(check())


def test_a_budget_for_life_is_projected_a_month_ahead() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Lifetime(), amount=1000))
        await scene.calls_each_hour(7)
        view = await scene.forecast(used=500)
        assert (view.expected, view.resets_s) == (1000, None)
        assert "without it 1,220 requests would be used" in view.assumed
        assert view.runs_out_s == pytest.approx(MONDAY_S + 500 * HOUR_S, rel=1e-6)
        assert "never resets" in view.assumed

    asyncio.run(check())


def test_a_rolling_window_runs_out_when_more_comes_than_leaves() -> None:
    async def check() -> None:
        scene = Scene(Rolling("", "account:main", "requests", 4, 5 * HOUR_S))
        await scene.calls_each_hour(7)
        view = await scene.forecast(used=3)
        assert view.expected == 4
        assert view.runs_out_s == MONDAY_S + 2.5 * HOUR_S
        assert (await scene.forecast(used=4)).runs_out_s == MONDAY_S
        assert (await scene.forecast(used=6)).runs_out_s == MONDAY_S

    asyncio.run(check())


def test_a_tag_has_no_sums_and_that_is_said() -> None:
    async def check() -> None:
        scene = Scene(window("requests", Calendar("day"), scope="tag:team=x"), now_s=MONDAY_S + 6 * HOUR_S)
        await scene.calls_each_hour(7)
        view = await scene.forecast(used=6)
        assert view.expected == 24
        assert "keeps no sums by this scope" in view.assumed

    asyncio.run(check())


def test_calls_without_a_price_are_told() -> None:
    async def check() -> None:
        scene = Scene(window("micro_usd", Calendar("day")))
        await scene.calls_each_hour(3)
        await scene.call(MONDAY_S - 7200, cost=None)
        assert "1 calls without a known price" in (await scene.forecast()).assumed

    asyncio.run(check())


def test_rates_and_slots_are_not_projected() -> None:
    async def check() -> None:
        scene = Scene(Rate("", "account:main", "requests", 60, 60, 60), Gauge("", "account:main", "slots", 4))
        assert await scene.forecasting.forecasts(scene.views()) == []

    asyncio.run(check())


async def agents_at_work(scene: Scene, agents: Sequence[str], *, cost: int | None = 100) -> None:
    """Each calls once in every five minutes of the last hour."""
    for slice_ in range(12):
        for agent in agents:
            await scene.call(scene.clock.at_s - 3600 + slice_ * 300 + 10, scopes=MAIN._replace(agent=agent), cost=cost)


def test_how_many_more_agents_fit() -> None:
    """Two agents use 100 input tokens in 5 min each, 2/3 of a token a second for both; the limit gives 100 a minute."""

    async def check() -> None:
        rate = Rate("", "account:main", "input_tokens", 100, 60, 100)
        scene = Scene(rate, window("micro_usd", Calendar("day"), amount=10**9))
        await agents_at_work(scene, ["a", "b"])
        answer = await scene.forecasting.capacity(scene.views(), MAIN, MODEL)
        spare_per_s = 100 / 600 + 100 / 60 - 2 * 100 / 300
        assert answer.agents == int(spare_per_s / (100 / 300))
        assert answer.binding == "account:main * input_tokens rate-60s"
        assert "2 at work at a time" in answer.assumed

    asyncio.run(check())


def test_that_the_threads_of_a_key_which_name_no_agent_count_as_one_is_said() -> None:
    """Thirty threads of one key were one agent that used thirty times as much, and nothing said so."""

    async def told(names: Sequence[str | None]) -> str:
        scene = Scene(Rate("", "account:main", "input_tokens", 100, 60, 100))
        for name in names:
            await scene.call(scene.clock.at_s - 600, scopes=MAIN._replace(agent=name))
            await scene.call(scene.clock.at_s - 600, scopes=MAIN._replace(session=name))
        return (await scene.forecasting.capacity(scene.views(), MAIN, MODEL)).assumed

    assert "named neither agent nor session" in asyncio.run(told(["a", None]))
    assert "named neither" not in asyncio.run(told(["a", "b"]))


def test_a_rate_that_has_been_used_up_for_a_minute_has_nothing_to_spare() -> None:
    """The mean of a quarter of an hour said that most of it was free."""

    async def check() -> None:
        scene = Scene(Rate("", "account:main", "requests", 60, 60, 5))
        for ago_s in range(60):
            await scene.call(scene.clock.at_s - ago_s - 0.5, scopes=MAIN._replace(agent="a"))
        assert (await scene.forecasting.capacity(scene.views(), MAIN, MODEL)).agents == 0
        scene.clock.at_s += 120
        assert ((await scene.forecasting.capacity(scene.views(), MAIN, MODEL)).agents or 0) > 0

    asyncio.run(check())


def test_an_account_of_which_only_failures_are_recorded_is_known_to_fail() -> None:
    async def check() -> None:
        scene = Scene()
        for number in range(6):
            assert await scene.forecasting.failing("main", MODEL) == ((number, 300) if number >= 5 else (0, 0))
            await scene.call(scene.clock.at_s - 100, state="failed")
        assert await scene.forecasting.failing("other", MODEL) == (0, 0)
        await scene.call(scene.clock.at_s - 90)
        assert await scene.forecasting.failing("main", MODEL) == (0, 0)
        for _ in range(5):
            await scene.call(scene.clock.at_s - 10, state="failed")
        assert await scene.forecasting.failing("main", MODEL) == (5, 60), "it served until a minute ago"

    asyncio.run(check())


def test_a_budget_must_last_until_it_resets() -> None:
    async def check() -> None:
        scene = Scene(window("micro_usd", Calendar("day"), amount=100_000), now_s=MONDAY_S + 14 * HOUR_S)
        await agents_at_work(scene, ["a"])
        answer = await scene.forecasting.capacity(scene.views(), MAIN, MODEL)
        assert answer.agents == int(100_000 / (1200 * 10)) - 1
        assert answer.changes_s == MONDAY_S + DAY_S

    asyncio.run(check())


def test_agents_of_unknown_price_are_not_judged_by_dollars() -> None:
    async def check() -> None:
        scene = Scene(window("micro_usd", Calendar("day")), Gauge("", "account:main", "slots", 4))
        await agents_at_work(scene, ["a"], cost=None)
        answer = await scene.forecasting.capacity(scene.views(), MAIN, MODEL)
        assert (answer.agents, answer.binding) == (4, "account:main * slots gauge")
        assert "not judged" in answer.assumed

    asyncio.run(check())


def test_without_such_agents_there_is_no_number() -> None:
    async def check() -> None:
        scene = Scene(window("micro_usd", Calendar("day")))
        answer = await scene.forecasting.capacity(scene.views(), MAIN, MODEL)
        assert (answer.agents, answer.binding) == (None, None)

    asyncio.run(check())


def test_a_limit_that_nobody_has_met_yet_is_free() -> None:
    async def check() -> None:
        scene = Scene(Gauge("", "run:*", "slots", 3))
        await agents_at_work(scene, ["a"])
        answer = await scene.forecasting.capacity([], MAIN._replace(run="new"), MODEL)
        assert answer.agents is None  # no agent of this run was at work
        await scene.call(scene.clock.at_s - 10, scopes=MAIN._replace(run="new"))
        assert (await scene.forecasting.capacity([], MAIN._replace(run="new"), MODEL)).agents == 3

    asyncio.run(check())
