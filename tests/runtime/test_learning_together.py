"""Several processes on one store learn together: what one was refused holds for the others at their next admission."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from learning_stage import LearningStage, Silent, open_learning_stage
from small_house import level_of, open_small_house
from test_learning import OVERLOADED, carry, limited, told

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.sqlite.stores import open_database
from headgate.core.errors import ProviderError
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.provider import Latency, SimulatedProvider
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

RATE, LOOPS, MINUTES = 300, 20, 3


@asynccontextmanager
async def processes(count: int, kind: type[SimulatedProvider], path=None, **limits):
    """Open managers that share a store, each over a connection of its own where it is a file, and one provider."""
    shared = (MemoryLevelStore(), MemoryLedgerStore())
    simulated = None
    async with AsyncExitStack() as stack:
        stages: list[LearningStage] = []
        for number in range(count):
            stores = shared
            if path is not None:
                opened = await stack.enter_async_context(open_database(path))
                stores = (opened.levels, opened.ledger)
            stage = await stack.enter_async_context(
                open_learning_stage(
                    kind=kind,
                    simulated=simulated,
                    stores=stores,
                    owner=f"process-{number}",
                    latency=Latency(0.3, 1_000.0, 0.2),
                    **limits,
                )
            )
            simulated = stage.simulated
            stages.append(stage)
        yield stages


async def measure(count: int, kind: type[SimulatedProvider], path=None) -> tuple[int, int]:
    """Let loops call, spread over processes; give the 429s and what was served."""
    async with processes(count, kind, path, requests_per_minute=RATE) as stages:
        await asyncio.gather(*[stage.loops(LOOPS // count, MINUTES * 60.0) for stage in stages])
        assert [stage.failed for stage in stages] == [[]] * count
        return stages[0].refused(), stages[0].served()


def test_several_processes_use_a_told_limit_whole_without_a_429(tmp_path):
    refused, served = run(measure(3, SimulatedProvider, tmp_path / "headgate.db"))
    assert refused == 0
    assert served >= 0.98 * RATE * (MINUTES + 1)


def test_several_processes_find_an_untold_limit_with_no_more_429s_than_one(tmp_path):
    """Each of them has calls on their way when the first 429 comes, but together they are as many as one's would be."""
    one, alone = run(measure(1, Silent))
    for count, path in ((2, tmp_path / "headgate.db"), (4, None)):
        refused, served = run(measure(count, Silent, path))
        assert refused <= one + 3 * (count - 1), count
        assert served >= 0.97 * alone, count


@asynccontextmanager
async def two_houses(provider_here: ScriptedProvider, provider_there: ScriptedProvider, path, **parts):
    async with AsyncExitStack() as stack:
        houses = []
        shared = (MemoryLevelStore(), MemoryLedgerStore())
        for owner, provider in (("here", provider_here), ("there", provider_there)):
            stores = shared
            if path is not None:
                opened = await stack.enter_async_context(open_database(path))
                stores = (opened.levels, opened.ledger)
            houses.append(
                await stack.enter_async_context(
                    open_small_house(stores=stores, owner=owner, provider=provider, **parts)
                )
            )
        yield houses


@pytest.mark.parametrize("stored", ["memory", "sqlite"])
@pytest.mark.parametrize("facts", [{}, {"dimension": "output_tokens"}, {"retry_after_s": 700}])
def test_what_one_process_was_refused_is_closed_for_the_others_at_their_next_call(stored, facts, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        refusing, other = ScriptedProvider([limited(**facts), Reply()]), ScriptedProvider([Reply()])
        path = None if stored == "memory" else tmp_path / "headgate.db"
        async with two_houses(refusing, other, path) as (here, there):
            assert await carry(there) == 200
            calling = asyncio.create_task(carry(here, max_wait_s=10_000))
            await asyncio.sleep(0.5)
            before_s = loop.time()
            await carry(there, max_wait_s=10_000)
            assert loop.time() - before_s >= facts.get("retry_after_s", 20) - 0.6
            assert await calling == 200

    run(main())


@pytest.mark.parametrize("maintenance", [(), (MaintenanceRule("never", lambda _from_s, _until_s: ()),)])
def test_what_one_process_was_told_holds_for_the_others_at_their_next_call(maintenance):
    async def main():
        telling, other = ScriptedProvider([told(60, 0)]), ScriptedProvider([Reply()])
        async with two_houses(telling, other, None, maintenance=maintenance) as (here, there):
            await carry(there)
            await carry(here)
            await asyncio.sleep(0.1)
            before_s = asyncio.get_running_loop().time()
            await carry(there)
            assert asyncio.get_running_loop().time() - before_s >= 0.8

    run(main())


def test_what_another_process_bounded_grows_back_by_whoever_gets_answers():
    async def main():
        async with two_houses(ScriptedProvider([OVERLOADED]), ScriptedProvider([Reply()]), None) as (here, there):
            with suppress(ProviderError):
                await carry(here)
            assert level_of(await there.manager.limits(), "slots").learned == 1
            for _ in range(200):
                await carry(there)
                await asyncio.sleep(1)
            assert [view for view in await there.manager.limits() if view.dimension == "slots"] == []

    run(main())
