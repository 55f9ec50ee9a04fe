"""The first calls to a provider of whose limits nobody has told: few at once, and soon all, told limit or none."""

import asyncio

import pytest
from learning_stage import LearningStage, Silent, open_learning_stage

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.limits import Rate
from headgate.core.scopes import LimitRule
from headgate.testing.provider import Latency, SimulatedProvider
from headgate.testing.virtual_time import run


class SilentOnWaits(Silent):
    waits = False


def under_way(stage: LearningStage) -> int:
    return sum(each.in_flight for each in stage.manager._learning._traffics.all())


def call_at_once(stage: LearningStage, agents: int, **facts) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(stage.ask(max_wait_s=3_600, **facts)) for _ in range(agents)]


@pytest.mark.parametrize(
    ("kind", "most_refused"),
    [(SimulatedProvider, 8), (Silent, 30), (SilentOnWaits, 30)],
    ids=["told", "wait", "silent"],
)
def test_a_hundred_agents_in_front_of_an_untold_limit_of_ten_a_minute_are_not_all_refused_first(kind, most_refused):
    """Of 100 first calls 90 were refused, before anything was known."""

    async def main():
        async with open_learning_stage(kind=kind, requests_per_minute=10) as stage:
            assert set(await asyncio.gather(*call_at_once(stage, 100))) == {200}
            assert stage.refused() <= most_refused

    run(main())


@pytest.mark.parametrize("kind", [SimulatedProvider, SilentOnWaits])
def test_five_hundred_agents_in_front_of_much_room_wait_for_one_answer_and_no_longer(kind):
    async def main():
        latency = Latency(0.5, 200.0, 0.2)  # an answer takes about a second
        async with open_learning_stage(kind=kind, latency=latency, requests_per_minute=100_000) as stage:
            calls = call_at_once(stage, 500)
            await asyncio.sleep(0.1)
            assert under_way(stage) == 16
            await asyncio.sleep(2)
            assert under_way(stage) + stage.done == 500
            assert set(await asyncio.gather(*calls)) == {200}
            assert stage.refused() == 0
            assert [view for view in await stage.manager.limits() if view.dimension == "slots"] == []
            call_at_once(stage, 500)
            await asyncio.sleep(0.1)
            assert under_way(stage) == 500, "it is no beginning any more"

    run(main())


def test_answers_that_take_minutes_hold_nothing_back_for_longer_than_a_refusal_would_take():
    async def main():
        latency = Latency(300.0, 200.0, 0.0)
        async with open_learning_stage(kind=Silent, latency=latency, requests_per_minute=100_000) as stage:
            calls = call_at_once(stage, 100)
            await asyncio.sleep(1)
            assert under_way(stage) == 16
            await asyncio.sleep(12)
            assert under_way(stage) == 100
            assert set(await asyncio.gather(*calls)) == {200}

    run(main())


def test_where_a_limit_is_configured_no_first_call_is_held_back():
    async def main():
        rule = LimitRule("account:*", Rate("", "", "requests", 100_000, 60, 100_000))
        async with open_learning_stage(rule, kind=Silent, requests_per_minute=100_000) as stage:
            calls = call_at_once(stage, 100)
            await asyncio.sleep(0.1)
            assert under_way(stage) == 100
            await asyncio.gather(*calls)

    run(main())


def test_a_process_that_starts_where_limits_are_known_holds_nothing_back():
    async def main():
        stores = MemoryLevelStore(), MemoryLedgerStore()
        async with open_learning_stage(stores=stores, requests_per_minute=100_000) as stage:
            await stage.ask()
        async with open_learning_stage(stores=stores, requests_per_minute=100_000) as stage:
            call_at_once(stage, 100)
            await asyncio.sleep(0.1)
            assert under_way(stage) == 100

    run(main())


def test_how_one_process_begins_bounds_no_other_that_has_begun():
    """What one wrote of its slow start another took up, and grew from there for minutes."""

    async def main():
        stores = MemoryLevelStore(), MemoryLedgerStore()
        facts = {"kind": SilentOnWaits, "stores": stores, "requests_per_minute": 100_000}
        async with (
            open_learning_stage(**facts) as first,
            open_learning_stage(**facts, simulated=first.simulated, owner="other") as second,
        ):
            await asyncio.gather(*call_at_once(first, 40))
            beginning = call_at_once(second, 100)
            await asyncio.sleep(0.1)
            assert under_way(second) == 16, "each begins on its own"
            await first.manager._learning.refresh()
            calls = call_at_once(first, 100)
            await asyncio.sleep(0.1)
            assert under_way(first) == 100
            await asyncio.gather(*beginning, *calls)
            assert [name for name in await stores[0].names("learned/") if " slots " in name] == []

    run(main())


def test_a_slow_start_after_a_closing_is_not_ended_by_what_is_told_beside_it():
    async def main():
        async with open_learning_stage(requests_per_minute=100_000) as stage:
            calls = call_at_once(stage, 20)
            await asyncio.sleep(0.1)
            learning = stage.manager._learning
            (traffic,) = [each for each in learning._traffics.all() if each.models]
            now_s = stage.clock.now_s()
            learning.limits.close(traffic.key("requests", 3_600), "429", now_s + 30, now_s)
            learning._start_slowly(now_s)
            await asyncio.sleep(5)
            assert traffic.concurrency is not None
            assert traffic.concurrency.amount == 1
            await asyncio.gather(*calls)

    run(main())
