"""Waiting for slots is told in seconds, as long as calls hold them, and is unknown until some have ended."""

import asyncio
import math
from dataclasses import replace

import pytest
from small_house import budget, rate, slots

from headgate.core.accounts import Account
from headgate.core.limits import Gauge, Rate
from headgate.core.model_rules import ModelRule
from headgate.core.retries import Failure
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.usage import Usage
from headgate.runtime import hold_times
from headgate.runtime.calls import Call
from headgate.runtime.hold_times import FORGETS_AFTER, HoldTimes
from headgate.testing.scripted import ScriptedProvider
from headgate.testing.virtual_time import run

BIG, SMALL = "claude-big", "claude-small"
RULE = ModelRule("late", models=BIG, wait_over_s=60.0, use=SMALL)


def call(**facts) -> Call:
    return Call(BIG, input_tokens=10, max_output_tokens=10, max_wait_s=100_000, **facts)


def gauge(amount: int, models: str | None = None) -> LimitRule:
    return LimitRule("account:main", Gauge("", "account:main", "slots", amount, models))


async def hold(here, for_s: float, asked: Call | None = None) -> str:
    async with here.manager.admit(asked or call()) as grant:
        await asyncio.sleep(for_s)
        grant.settle(Usage(10, output_tokens=10))
    return grant.account


async def model_now(here) -> str:
    return (await here.manager.model_for(call(may_degrade=True))).model


def test_a_rule_about_waiting_fires_where_calls_wait_for_slots(house):
    """With slots for 2 and 42 calls of 300 s each the wait was told as 20 shares of the limit, and no rule fired."""

    async def main():
        async with house(gauge(2, BIG), model_rules=(RULE,)) as here:
            tasks = [asyncio.create_task(hold(here, 300)) for _ in range(42)]
            await asyncio.sleep(1)
            limits = here.manager.limits_met(Scopes(account="main"), BIG)
            known = here.manager._admission.lanes.known_waiting_s
            assert known(limits) is None
            assert known(limits, limits[0]) is None
            assert await model_now(here) == BIG, "nobody knows yet how long they hold their slots"
            await asyncio.sleep(300)
            assert known(limits) == pytest.approx(38 * 150)
            assert known(limits, limits[0]) == pytest.approx(39 * 150), "and one that holds a slot has to end"
            assert await model_now(here) == SMALL
            await asyncio.sleep(19 * 300)
            assert len(here.manager.queue()) == 0
            assert await model_now(here) == SMALL, "nobody waits, and both slots are taken: 150 s on average"
            await asyncio.gather(*tasks)
            assert await model_now(here) == BIG

    run(main())


def test_short_calls_are_worth_waiting_for(house):
    async def main():
        async with house(gauge(2, BIG), model_rules=(RULE,)) as here:
            await asyncio.gather(*(hold(here, 1) for _ in range(4)))
            tasks = [asyncio.create_task(hold(here, 1)) for _ in range(42)]
            await asyncio.sleep(0.5)
            assert await model_now(here) == BIG
            await asyncio.gather(*tasks)

    run(main())


def test_of_a_rate_and_slots_in_one_lane_the_scarcer_counts(house):
    async def main():
        tokens = LimitRule("account:main", Rate("", "account:main", "input_tokens", 60, 60, 60))
        async with house(gauge(1), tokens) as here:
            await hold(here, 100)
            limits = here.manager.limits_met(Scopes(account="main"), BIG)
            tasks = [asyncio.create_task(hold(here, 100)) for _ in range(4)]
            await asyncio.sleep(1)
            assert here.manager._admission.lanes.known_waiting_s(limits) == pytest.approx(300)
            by_rate = replace(call(), input_tokens=600)
            tasks += [asyncio.create_task(hold(here, 100, replace(by_rate, id=f"c{n}"))) for n in range(20)]
            await asyncio.sleep(1)
            assert here.manager._admission.lanes.known_waiting_s(limits) == pytest.approx(3 * 10 + 20 * 600)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


def test_how_long_calls_wait_for_a_window_is_no_share_of_it(house):
    async def main():
        async with house(budget(1_000, "account:main", lifetime=False)) as here:
            limits = here.manager.limits_met(Scopes(account="main"), BIG)
            async with here.manager.admit(call()) as grant:
                grant.settle(Usage(300))
            task = asyncio.create_task(hold(here, 1))
            await asyncio.sleep(1)
            assert len(here.manager.queue()) == 1
            assert here.manager._admission.lanes.known_waiting_s(limits) is None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


@pytest.mark.parametrize(("for_s", "expected"), [(400.0, "b"), (0.5, "a")])
def test_a_session_leaves_its_account_where_waiting_for_a_slot_takes_longer_than_reading_anew(house, for_s, expected):
    async def main():
        accounts = [Account("a", "anthropic"), Account("b", "anthropic")]
        providers = {"a": ScriptedProvider(), "b": ScriptedProvider()}
        limits = [slots(1, "account:a"), slots(1, "account:b"), rate("input_tokens", 60_000, scope="account:b")]
        async with house(*limits, accounts=accounts, providers=providers) as here:
            on_a = call(scopes=Scopes(account="a"))
            await hold(here, for_s, replace(on_a, id="first"))
            here.manager.pool.succeeded(BIG, Scopes(account="a", session="s"))
            holding = asyncio.create_task(hold(here, for_s, replace(on_a, id="held")))
            await asyncio.sleep(0.1)
            asked = replace(call(scopes=Scopes(session="s")), input_tokens=20_000)  # 20 s of the rate of b
            assert await hold(here, 0.1, asked) == expected
            await holding

    run(main())


@pytest.mark.parametrize(("for_s", "chosen"), [(30.0, "score"), (0.5, "shortest")])
def test_adaptive_takes_calls_for_short_by_the_seconds_that_they_hold_slots(house, for_s, chosen):
    async def main():
        async with house(slots(2), scheduling=Scheduling("adaptive")) as here:

            async def work() -> None:
                for _ in range(60):
                    await hold(here, for_s, call(scopes=Scopes(agent="one")))

            await asyncio.gather(*(work() for _ in range(5)))
            (lane,) = here.manager._admission.lanes
            assert lane.line.policy.rule.name == chosen
            if chosen == "shortest":
                assert "of the limit on average, under 1 s" in lane.line.policy.why

    run(main())


def test_fair_shares_slots_by_the_seconds_that_they_were_held(house):
    async def main():
        async with house(slots(1), scheduling=Scheduling("fair", share_by=("agent",))) as here:
            ended: list[str] = []

            async def work(agent: str, for_s: float) -> None:
                await hold(here, for_s, call(scopes=Scopes(agent=agent)))
                ended.append(agent)

            tasks = [asyncio.create_task(work(agent, for_s)) for agent, for_s in [("long", 90), ("short", 10)] * 40]
            await asyncio.sleep(2_000)
            times = {agent: ended.count(agent) * for_s for agent, for_s in (("long", 90), ("short", 10))}
            assert times["short"] == 400, "all of them"
            assert times["long"] >= 1_400
            assert ended[:22].count("short") >= 18, "of 10 s each nine go for one of 90 s"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main())


# -- the means themselves

ONE = Gauge("account:a * slots gauge", "account:a", "slots", 2)
OTHER = Gauge("run:r * slots gauge", "run:r", "slots", 2)
TOKENS = Rate("account:a * tokens rate-60s", "account:a", "tokens", 10, 60, 10)


def test_the_mean_is_of_those_that_were_sent_and_follows_what_changes():
    held = HoldTimes()
    for number, (for_s, counts) in enumerate([(10, True), (30, True), (500, False)]):
        held.began(f"a{number}", (ONE, TOKENS), 100.0)
        assert held.ended(f"a{number}", (ONE, TOKENS), 100.0 + for_s, counts=counts) == for_s
    assert held.mean_s("account:a *") == 20
    assert held.mean_s("run:r *") is None
    assert held.ended("a0", (ONE,), 900.0, counts=True) is None, "it has ended before"
    for for_s, times in ((10.0, 8), (100.0, 3)):
        for _ in range(times * FORGETS_AFTER):
            held.began("b", (ONE, OTHER), 0.0)
            held.ended("b", (ONE, OTHER), for_s, counts=True)
    assert held.mean_s("account:a *") == pytest.approx(95.5, abs=0.5)
    assert held.mean_s("run:r *") == pytest.approx(95.5, abs=0.5)


def test_a_clock_that_steps_back_and_calls_without_slots_leave_nothing_odd():
    held = HoldTimes()
    held.began("a", (TOKENS,), 0.0)
    assert held.ended("a", (TOKENS,), 5.0, counts=True) is None
    held.began("b", (ONE,), 100.0)
    assert held.ended("b", (ONE,), 50.0, counts=True) == 0.0
    assert math.isclose(held.mean_s("account:a *") or 0.0, 0.0)
    assert not held._began_s


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(hold_times, "MOST_LANES", 3)
    held = HoldTimes()
    for number in range(9):
        limit = replace(ONE, scope=f"run:{number}")
        held.began("a", (limit,), 0.0)
        held.ended("a", (limit,), 1.0, counts=True)
    assert [name for name in (f"run:{n} *" for n in range(9)) if held.mean_s(name)] == ["run:6 *", "run:7 *", "run:8 *"]


def test_nothing_is_left_of_calls_that_were_admitted_however_they_end(house):
    async def main():
        async with house(slots(2), rate("input_tokens", 100)) as here:
            tasks = [asyncio.create_task(hold(here, 5)) for _ in range(9)]
            await asyncio.sleep(1)
            for task in tasks[:7]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with here.manager.admit(call()) as grant:
                await asyncio.sleep(500)
                grant.failed(Failure("rejected", "invalid_request", sent=False))
            admission = here.manager._admission
            assert not admission.lanes._held._began_s
            assert not admission.lanes._charged
            assert admission.lanes._held.mean_s("account:main *") < 6, "what was not sent does not count"

    run(main())
