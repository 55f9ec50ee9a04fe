"""News of limits: a threshold is warned of once in its window, also over a restart, and learned limits are told."""

import asyncio
import logging
from dataclasses import replace

from small_house import budget, open_small_house

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.limits import Rate, Window
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.limit_news import LOOK_EVERY_S
from headgate.runtime.orders import Orders
from headgate.testing.virtual_time import run

DAY_S = 86_400
DAILY = LimitRule("key:*", Window("", "key:*", "output_tokens", 1_000, Calendar("day")))


async def spend(here, tokens: int) -> None:
    call = Call("claude-test", text_bytes=2, max_output_tokens=tokens, scopes=Scopes(key="ci"))
    async with here.manager.admit(call) as grant:
        grant.settle(Usage(output_tokens=tokens))


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "headgate.limits"]


def test_each_threshold_is_warned_of_once_in_a_window(caplog):
    async def main():
        async with open_small_house(DAILY) as here:
            for used in (400, 200, 100, 50, 100):
                await spend(here, used)
                await asyncio.sleep(2 * LOOK_EVERY_S)
            assert [line.split(":")[0] for line in warned(caplog)] == ["past 50 %", "past 80 %"]
            await asyncio.sleep(DAY_S)
            await spend(here, 970)
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert warned(caplog)[2:] == ["past 95 %: 970 of 1,000 output tokens per day for key:ci used"]

    with caplog.at_level(logging.WARNING):
        run(main(), max_virtual_s=1e6)


def test_a_threshold_is_said_with_whose_it_is(caplog):
    """It read `past 50 %: 2 requests of 4 requests in all for agent:ag|key:ci used`."""

    async def main():
        lifetime = LimitRule("agent:*", Window("", "agent:*", "requests", 4, Lifetime()))
        async with open_small_house(lifetime, budget(1_000_000, "key:*")) as here:
            for _ in range(2):
                scopes = Scopes(key="ci", agent="ag", claimed=("agent",))
                async with here.manager.admit(Call("claude-test", text_bytes=2, scopes=scopes)) as grant:
                    grant.settle(Usage(output_tokens=20_000))
            await asyncio.sleep(2 * LOOK_EVERY_S)
        assert sorted(warned(caplog)) == [
            "past 50 %: $0.60 of $1.00 in all for key:ci used",
            "past 50 %: 2 of 4 requests in all for agent:ag in key:ci used",
        ]

    with caplog.at_level(logging.WARNING):
        run(main(), max_virtual_s=1e6)


def test_a_restart_does_not_warn_again_and_nobody_else_does(caplog):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with open_small_house(DAILY, stores=stores, owner="one") as here:
            await spend(here, 600)
            await asyncio.sleep(2 * LOOK_EVERY_S)
        async with open_small_house(DAILY, stores=stores, owner="two") as here:
            await spend(here, 10)
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert [view.name for view in await here.manager.limits()] == ["key:ci * output_tokens day"]
        assert len(warned(caplog)) == 1

    with caplog.at_level(logging.WARNING):
        run(main(), max_virtual_s=1e6)


def test_a_settled_call_and_a_passed_threshold_are_told_to_those_who_follow(caplog):
    async def main():
        async with open_small_house(DAILY) as here:
            with here.manager.feed.follow() as events:
                await spend(here, 960)
                told = [await anext(events) for _ in range(3)]
            assert [event.kind for event in told] == ["admitted", "settled", "limit"]
            settled, passed = told[1], told[2]
            assert (settled.scopes.key, settled.facts["output_tokens"], settled.facts["state"]) == ("ci", 960, "done")
            assert (passed.facts["scope"], passed.facts["percent"], passed.facts["used"]) == ("key:ci", 95, 960)

    run(main(), max_virtual_s=1e6)


def test_what_is_learned_of_a_limit_is_told():
    def limit(amount: int) -> dict[str, Rate]:
        return {"x": Rate("x", "account:main", "requests", amount, 60, amount)}

    async def main():
        async with open_small_house(LimitRule("account:main", limit(9)["x"])) as here:
            here.manager._rules.learn(limit(3))
            with here.manager.feed.follow() as events:
                here.manager._rules.learn(limit(5))
                here.manager._rules.learn({})
                told = [(await anext(events)).facts for _ in range(2)]
        assert [(facts["what"], facts["before"], facts["amount"]) for facts in told] == [
            ("learned", 3, 5),
            ("learned", 5, None),
        ]

    run(main(), max_virtual_s=1e6)


def test_of_a_learned_limit_that_moves_with_every_answer_only_what_is_noticeable_is_told():
    """It was an event a second for each limit."""

    def limits(amount: int, closed_until_s: int = 0) -> dict[str, Rate | Window]:
        rate = Rate("x", "account:main", "requests", amount, 60, amount)
        day = Window("y", "account:main", "requests", 9, Calendar("day"), closed_until_ns=closed_until_s)
        return {"x": rate, "y": day}

    async def main():
        async with open_small_house() as here:
            here.manager._rules.learn(limits(1_000))
            with here.manager.feed.follow() as events:
                for amount in range(1_000, 1_101):
                    here.manager._rules.learn(limits(amount))
                here.manager._rules.learn(limits(1_100, 5))
                here.manager._rules.learn({})
                told = [(await anext(events)).facts for _ in range(4)]
        assert [(facts["before"], facts["amount"]) for facts in told[:2]] == [(1_000, 1_050), (9, 9)]
        assert {(facts["limit"], facts["amount"]) for facts in told[2:]} == {("x", None), ("y", None)}

    run(main(), max_virtual_s=1e6)


def test_a_budget_that_was_raised_warns_at_its_new_thresholds(caplog):
    def daily(tokens: int) -> LimitRule:
        return LimitRule("key:*", replace(DAILY.template, amount=tokens))

    async def main():
        async with open_small_house(DAILY) as here:
            for used, amount in ((850, 2_000), (100, 2_000), (100, 1_300), (10, 1_300)):
                await spend(here, used)
                await asyncio.sleep(2 * LOOK_EVERY_S)
                await here.manager.configure(Orders([daily(amount)]))
        lines = [line.partition(" output")[0] for line in warned(caplog)]
        assert lines == ["past 80 %: 850 of 1,000", "past 50 %: 1,050 of 2,000", "past 80 %: 1,060 of 1,300"]

    with caplog.at_level(logging.WARNING):
        run(main())
