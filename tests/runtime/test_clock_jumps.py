"""A clock that is set forward, or a laptop that slept: what living processes hold stays held."""

import asyncio

import pytest
from small_house import budget, level_of, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import DeadlineError
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.reservations import HOLD_PREFIX
from headgate.testing.virtual_time import run

LIMITS = (slots(2), rate("output_tokens", 6_000), budget(10**9))


def call(**facts) -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run="r"), **facts)


async def held(house) -> dict[str, int]:
    return {view.dimension: view.held for view in await house.manager.limits()}


@pytest.mark.parametrize("jump_s", [130.0, 3_600.0])
@pytest.mark.parametrize("judge", ["the holder", "a neighbour", "a sweep"])
def test_no_slot_of_a_living_call_is_given_away_when_the_clock_jumps(house, jump_s, judge):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with (
            house(*LIMITS, stores=stores, owner="holder") as holder,
            house(*LIMITS, stores=stores, owner="neighbour") as neighbour,
            holder.manager.admit(call()) as one,
            holder.manager.admit(call()) as two,
        ):
            before = await held(holder)
            await asyncio.sleep(1)
            for each in (holder, neighbour):
                each.clock.step(jump_s)
            here = holder if judge == "the holder" else neighbour
            if judge == "a sweep":
                await here.manager.recover()
            results = await asyncio.gather(*(enter(here) for _ in range(3)), return_exceptions=True)
            assert [type(result) for result in results] == [DeadlineError] * 3
            await here.manager.recover()
            assert await held(here) == before
            await asyncio.sleep(60)
            assert await held(here) == before
            for grant in (one, two):
                grant.settle(Usage(90, output_tokens=7))
        async with house(*LIMITS, stores=stores) as later:
            assert set((await held(later)).values()) == {0}
            assert level_of(await later.manager.limits(), "output_tokens").used <= 14

    async def enter(here) -> None:
        async with here.manager.admit(call(max_wait_s=0)):
            pass

    run(main())


def test_what_a_dead_process_held_comes_back_however_the_clock_jumps(house):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        alive = {"holder": True}
        async with (
            house(*LIMITS, stores=stores, owner="holder") as holder,
            holder.manager.admit(call()),
            holder.manager.admit(call()),
            house(*LIMITS, stores=stores, owner="next", alive=lambda owner: alive.get(owner, True)) as here,
        ):
            alive["holder"] = False
            here.clock.step(3_600)
            async with here.manager.admit(call(max_wait_s=0)):
                assert (await held(here))["slots"] == 1

    run(main())


class CountingLevels(MemoryLevelStore):
    listed = 0

    async def names(self, prefix: str) -> list[str]:
        self.listed += prefix == HOLD_PREFIX
        await asyncio.sleep(0)
        return await super().names(prefix)


def test_many_calls_that_come_after_a_jump_renew_once(house):
    async def main():
        levels = CountingLevels()
        async with house(slots(9), stores=(levels, MemoryLedgerStore())) as here, here.manager.admit(call()):
            here.clock.step(3_600)
            levels.listed = 0
            await asyncio.gather(*(pass_through(here) for _ in range(5)))
            assert levels.listed == 1

    async def pass_through(here) -> None:
        async with here.manager.admit(call()):
            pass

    run(main())
