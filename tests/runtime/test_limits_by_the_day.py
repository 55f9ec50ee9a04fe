"""Limits by the day and windows that last hours, learned end to end: nobody configured them."""

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest
from learning_stage import MODEL, open_learning_stage
from small_house import open_small_house
from test_learning import carry, limited

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import DeadlineError
from headgate.core.notices import Notices, PlanNotice, RateNotice
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

DAY_S = 86_400
NOW_S = 1_750_000_000.0


def test_a_limit_by_the_day_is_learned_from_the_first_answers_and_used_whole_without_a_429():
    async def main():
        async with open_learning_stage(dialect="openai", requests_per_day=240) as stage:
            await stage.loops(8, 90)
            (view,) = [view for view in await stage.manager.limits() if view.learned]
            facts = (view.learned, view.per, view.learned_from, view.configured)
            assert facts == (240, f"{DAY_S}s", "header", False)
            assert 237 <= stage.done <= 242, "all but the reserve goes at once: it is there"
            later = await asyncio.gather(*[stage.ask(max_wait_s=6_000) for _ in range(10)])
            assert later == [200] * 10, "then one each six minutes, as it comes back"
            assert stage.refused() == 0

    run(main())


def test_tokens_by_the_day_bound_beside_requests_by_the_minute():
    async def main():
        async with open_learning_stage(dialect="openai", requests_per_minute=600, tokens_per_day=50_000) as stage:
            await stage.loops(8, 90)
            learned = {(view.dimension, view.per): view.learned for view in await stage.manager.limits()}
            assert learned == {("requests", "60s"): 600, ("tokens", f"{DAY_S}s"): 50_000}
            assert stage.refused() == 0
            assert stage.served("tokens") >= 0.95 * 50_000

    run(main(), max_virtual_s=2 * DAY_S)


def day(remaining: int, resets_in_s: float, limit: int = 1_000) -> Reply:
    return Reply(notices=Notices((RateNotice("requests", limit, remaining, NOW_S + resets_in_s),)))


def test_a_window_that_ends_at_its_reset_is_closed_until_then_once_it_is_spent():
    async def main():
        hours_8 = 8 * 3_600
        provider = ScriptedProvider([day(1, hours_8), day(0, hours_8), Reply()])
        async with open_small_house(provider=provider) as here:
            assert await carry(here) == 200
            await asyncio.sleep(1)
            assert await carry(here) == 200
            with pytest.raises(DeadlineError) as error:
                await carry(here, max_wait_s=60)
            assert error.value.retry_after_s == pytest.approx(hours_8, abs=2)
            (view,) = [view for view in await here.manager.limits() if view.closed_until_s is not None]
            assert (view.learned, view.learned_from, view.kind) == (None, "header", "window")
            assert await carry(here, max_wait_s=DAY_S) == 200
            assert asyncio.get_running_loop().time() == pytest.approx(hours_8, abs=1)

    run(main(), max_virtual_s=2 * DAY_S)


def test_what_was_taken_for_a_bucket_by_the_day_and_is_a_window_is_forgotten():
    async def main():
        provider = ScriptedProvider([day(999, 80), day(998, 60), day(997, 40), day(1_000, DAY_S - 10)])
        async with open_small_house(provider=provider) as here:
            await carry(here)
            learned = [(view.learned, view.per) for view in await here.manager.limits()]
            assert learned == [(1_000, f"{DAY_S}s")], "of one request in 80 s nobody can tell"
            for _ in range(3):
                await asyncio.sleep(1)
                await carry(here)
            assert await here.manager.limits() == []

    run(main())


def test_a_window_of_a_minute_is_never_taken_for_a_limit_by_the_day():
    """Headgate stood still for half an hour: of 60 requests one was missing, and back after 60 s."""

    async def main():
        provider = ScriptedProvider(
            [day(59, 60, 60), day(58, 50, 60), day(57, 40, 60), day(0, 20, 60), day(59, 60, 60)]
        )
        async with open_small_house(provider=provider) as here:
            for _ in range(8):
                assert await carry(here, max_wait_s=90) == 200
                assert {(view.learned, view.per) for view in await here.manager.limits()} == {(60, "60s")}
                await asyncio.sleep(1)

    run(main())


def test_a_limit_by_the_day_that_turns_out_to_be_by_the_minute_is_forgotten():
    async def main():
        async with open_small_house(provider=ScriptedProvider([day(999, 80), day(500, 30)])) as here:
            await carry(here)
            assert [(view.learned, view.per) for view in await here.manager.limits()] == [(1_000, f"{DAY_S}s")]
            for _ in range(2):
                await asyncio.sleep(1)
                await carry(here)
            await asyncio.sleep(1)
            assert [(view.learned, view.per) for view in await here.manager.limits()] == [(1_000, "60s")]

    run(main())


@pytest.mark.parametrize(
    ("facts", "closed_s"),
    [
        ({"retry_after_s": 7_200}, 7_200),
        ({"retry_after_s": 80_000, "dimension": "output_tokens"}, 80_000),
        ({"retry_after_s": 432, "dimension": "requests", "period_s": DAY_S}, 432),
        ({"retry_after_s": None, "dimension": "requests", "period_s": DAY_S}, 600),
        ({"retry_after_s": 1e9}, 3_600),
    ],
)
def test_a_429_of_hours_closes_exactly_until_then_and_says_nothing_of_a_minute(facts, closed_s):
    async def main():
        provider = ScriptedProvider([limited(**facts), Reply()])
        async with open_small_house(provider=provider) as here:
            calling = asyncio.create_task(carry(here, max_wait_s=2 * DAY_S))
            await asyncio.sleep(1)
            view, start = sorted(await here.manager.limits(), key=lambda view: view.kind, reverse=True)
            assert (start.dimension, start.learned, start.learned_from) == ("slots", 1, "start")
            assert (view.kind, view.dimension) == ("window", facts.get("dimension", "requests"))
            with suppress(DeadlineError):
                assert await calling in (200, 429)
            with suppress(DeadlineError):
                assert await carry(here, max_wait_s=2 * DAY_S) == 200
            assert provider.sent[1][0] == pytest.approx(closed_s, abs=1)
            await asyncio.sleep(15)
            left = {view.dimension for view in await here.manager.limits()}
            assert left <= {"slots"}, "open again, and nothing was learned of a minute"
            await asyncio.sleep(700)
            assert await here.manager.limits() == []

    run(main(), max_virtual_s=4 * DAY_S)


@pytest.mark.parametrize("after", ["for another model", "after a restart", "in another process"])
def test_a_plan_that_opens_again_gets_one_call_first_whoever_heard_that_it_was_spent(after):
    async def main():
        ends_s = 900.0
        spent = Reply(notices=Notices(plans=(PlanNotice(18_000, 1.0, NOW_S + ends_s, "rejected"),)))
        provider = ScriptedProvider([spent, Reply(pieces=1, pause_s=3.0, head_s=1.0)])
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with AsyncExitStack() as stack:
            here = await stack.enter_async_context(open_small_house(stores=stores, provider=provider))
            there = await stack.enter_async_context(open_small_house(stores=stores, provider=provider, owner="there"))
            await carry(here)
            await asyncio.sleep(1)
            if after == "after a restart":
                there = await stack.enter_async_context(open_small_house(stores=stores, provider=provider, owner="new"))
            house, model = (here, "claude-opus-4-1") if after == "for another model" else (there, MODEL)
            await asyncio.gather(*[carry(house, model, max_wait_s=5_000) for _ in range(16)])
            sent_s = [at_s for at_s, _request in provider.sent][1:]
            by = [sum(1 for at_s in sent_s if at_s < ends_s + second - 0.5) for second in (1, 2, 3, 4, 5, 6)]
            assert by == [1, 2, 3, 4, 6, 9]

    run(main())


@pytest.mark.parametrize("closing", ["429", "header", "plan"])
def test_when_a_window_opens_again_one_call_goes_and_then_twice_as_many_for_each_that_was_answered(closing):
    async def main():
        ends_s = 900.0
        first = {
            "429": limited(retry_after_s=ends_s),
            "header": day(0, ends_s),
            "plan": Reply(notices=Notices(plans=(PlanNotice(18_000, 1.0, NOW_S + ends_s, "rejected"),))),
        }[closing]
        provider = ScriptedProvider([first, Reply(pieces=1, pause_s=3.0, head_s=1.0)])
        async with open_small_house(provider=provider) as here:
            began = [asyncio.create_task(carry(here, max_wait_s=5_000))]
            await asyncio.sleep(0.1)
            began += [asyncio.create_task(carry(here, max_wait_s=5_000)) for _ in range(15)]
            await asyncio.gather(*began)
            sent_s = [at_s for at_s, _request in provider.sent][1:]
            assert sent_s[0] == pytest.approx(ends_s, abs=1)
            # Answers begin after 1 s and end after 4: each lets one more go beside the one whose place it leaves.
            by = [sum(1 for at_s in sent_s if at_s < ends_s + second - 0.5) for second in (1, 2, 3, 4, 5, 6)]
            assert by == [1, 2, 3, 4, 6, 9]
            assert sent_s[-1] <= ends_s + 8

    run(main())
