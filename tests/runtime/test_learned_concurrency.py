"""How many calls go at once, learned end to end: a provider in trouble gets fewer, one that writes long does not."""

import asyncio
from dataclasses import replace

from learning_stage import LearningStage, open_learning_stage

from headgate.core import concurrency
from headgate.testing.provider import Faults, Latency
from headgate.testing.virtual_time import run

AGENTS = 32


def set_latency(stage: LearningStage, latency: Latency) -> None:
    service = stage.simulated._service
    service.settings = replace(service.settings, latency=latency)


async def slots_until(stage: LearningStage, until_s: float, **facts) -> list[int | None]:
    """Let agents call, and give each second how many calls may go at once (None: as many as like)."""
    seen: list[int | None] = []

    async def watch() -> None:
        while asyncio.get_running_loop().time() < until_s - 0.5:
            await asyncio.sleep(1)
            bounds = [view.amount for view in await stage.manager.limits() if view.dimension == "slots"]
            seen.append(bounds[0] if bounds else None)

    await asyncio.gather(watch(), stage.loops(AGENTS, until_s, **facts))
    return seen


def test_an_overloaded_provider_gets_fewer_calls_at_once_and_more_again_when_it_has_recovered():
    async def main():
        latency = Latency(0.5, 400.0, 0.2)
        async with open_learning_stage(latency=latency, requests_per_minute=100_000) as stage:
            assert set(await slots_until(stage, 20, is_streamed=True)) == {None}
            stage.simulated.set_faults(Faults(probability={"529": 0.5}))
            trouble = await slots_until(stage, 50, is_streamed=True)
            assert min(each for each in trouble if each is not None) <= 4
            stage.simulated.set_faults(Faults())
            after = await slots_until(stage, 120, is_streamed=True)
            bounded = [each for each in after if each is not None]
            assert bounded == sorted(bounded), "it only grows"
            assert after[-1] is None or after[-1] >= AGENTS

    run(main())


def test_answers_that_begin_much_later_than_usual_shrink_the_calls_at_once_and_they_grow_back():
    async def main():
        usual = Latency(0.5, 400.0, 0.2)
        async with open_learning_stage(latency=usual, requests_per_minute=100_000) as stage:
            assert set(await slots_until(stage, 30, is_streamed=True)) == {None}
            set_latency(stage, replace(usual, first_token_s=4.0))
            slow = await slots_until(stage, 60, is_streamed=True)
            assert min(each for each in slow if each is not None) <= AGENTS / 2
            assert min(each for each in slow if each is not None) >= 3, "slowness alone never ends all"
            set_latency(stage, usual)
            after = await slots_until(stage, 120, is_streamed=True)
            assert after[-1] is None or after[-1] >= AGENTS

    run(main())


def test_long_healthy_answers_and_long_prompts_are_not_slow():
    async def main():
        async with open_learning_stage(latency=Latency(0.5, 400.0, 0.2), requests_per_minute=100_000) as stage:
            assert set(await slots_until(stage, 20, is_streamed=True)) == {None}
            set_latency(stage, Latency(0.5, 3.0, 0.2))  # a hundred tokens now take half a minute
            assert set(await slots_until(stage, 120, is_streamed=True)) == {None}
            # Not streamed, the first byte comes with the last.
            assert set(await slots_until(stage, 220, is_streamed=False)) == {None}
            set_latency(stage, Latency(5.0, 400.0, 0.2))  # as prompts of a hundred times the size have
            assert set(await slots_until(stage, 320, is_streamed=True, prompt_bytes=40_000)) == {None}

    run(main())


def test_a_bound_that_was_forgotten_in_hours_of_silence_does_not_come_back():
    """200 calls at once went one by one, because of a trouble of three hours ago."""

    async def main():
        async with open_learning_stage(requests_per_minute=100_000) as stage:
            calls = [asyncio.create_task(stage.ask()) for _ in range(40)]
            await asyncio.sleep(0.2)
            learning = stage.manager._learning
            (traffic,) = [each for each in learning._traffics.all() if each.models]
            for now_s in (stage.clock.now_s() + number for number in range(6)):
                found = concurrency.troubled(traffic.concurrency, traffic.in_flight, now_s, now_s)
                learning._bound(traffic, found, now_s)
            await asyncio.gather(*calls)
            assert [view.learned for view in await stage.manager.limits() if view.dimension == "slots"] != []
            await asyncio.sleep(3 * 3_600)
            await stage.ask()
            await asyncio.sleep(1)
            assert [view.learned for view in await stage.manager.limits() if view.dimension == "slots"] == []

    run(main(), max_virtual_s=86_400)
