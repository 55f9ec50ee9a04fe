"""A wall clock that is set back by an hour: rates go on at their pace, and nothing is given anew."""

import asyncio

import pytest
from learning_stage import Silent, open_learning_stage
from small_house import rate

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.limits import Rate
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.testing.virtual_time import run

A_MINUTE = 60
BACK_S = 3_600.0


async def passed(house, for_s: float) -> int:
    """Let calls go one after the other for so long; give how many went."""
    count = 0
    loop = asyncio.get_running_loop()
    until_s = loop.time() + for_s
    while loop.time() < until_s:
        async with house.manager.admit(Call("claude-test", text_bytes=400, max_output_tokens=100)) as grant:
            grant.settle(Usage(90, output_tokens=7))
        count += 1
    return count


@pytest.mark.parametrize("dimension", ["requests", "output_tokens"])
@pytest.mark.parametrize("restarts", [False, True])
def test_rates_go_on_within_seconds_and_give_no_more(house, dimension, restarts):
    amount = A_MINUTE if dimension == "requests" else A_MINUTE * 7

    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        limit = rate(dimension, amount, burst=amount // 6 if dimension == "requests" else 100)
        async with house(limit, stores=stores) as here:
            await passed(here, 60)
            if not restarts:
                here.clock.step(-BACK_S)
                return await passed(here, 120)
        started_s = asyncio.get_running_loop().time()
        async with house(limit, stores=stores, epoch_s=1_750_000_000.0 - BACK_S) as later:
            return await passed(later, 120 - (asyncio.get_running_loop().time() - started_s))

    assert 100 <= run(main()) <= 121 + (0 if dimension == "requests" else 15)


def test_a_waiting_call_goes_though_it_began_to_wait_before(house):
    async def main():
        async with house(rate("requests", 1, burst=1)) as here:
            await passed(here, 1)
            waiting = asyncio.create_task(passed(here, 1))
            await asyncio.sleep(5)
            here.clock.step(-BACK_S)
            began_s = asyncio.get_running_loop().time()
            await waiting
            return asyncio.get_running_loop().time() - began_s

    assert run(main()) < 80


def test_what_is_closed_opens_as_late_as_it_was_told():
    async def main():
        async with open_learning_stage(kind=Silent, requests_per_minute=60) as stage:
            await stage.loops(5, 30)
            stage.clock.step(-BACK_S)
            before = stage.done
            await stage.loops(5, 150)
            return stage.done - before, stage.refused()

    done, refused = run(main())
    assert done > 80
    assert refused < 20


def test_levels_that_are_ahead_by_little_are_left_alone():
    limit = Rate("r", "account:main", "requests", 60, 60, 10, charged_at_start=True)
    level = (100, 5, 0, 0, 100)
    assert limit.set_back(level, 95, 10) is None
    assert limit.set_back(None, 95, 10) is None
    assert limit.set_back(level, 50, 10) == (50, 5, 0, 0, 50)
