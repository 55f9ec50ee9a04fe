"""What is reserved ahead and what is closed for maintenance, as calls meet it: in virtual time, over a memory store."""

import asyncio

import pytest
from small_house import rate

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import DeadlineError
from headgate.core.planning import Denied, Planned, Wanted
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.virtual_time import run

INPUT = rate("input_tokens", 6_000, burst=6_000)


async def use(house, tokens: int, key: str, **facts) -> float:
    started_s = asyncio.get_running_loop().time()
    facts.setdefault("max_wait_s", 36_000.0)
    async with house.manager.admit(
        Call("claude-test", input_tokens=tokens, max_output_tokens=1, scopes=Scopes(key=key), **facts)
    ) as grant:
        waited_s = asyncio.get_running_loop().time() - started_s
        grant.settle(Usage(tokens))
    return waited_s


async def reserve(here, units: int, scope: str, *, after_s: float, for_s: float):
    now_s = here.clock.now_s()
    (limit,) = here.manager.limits_met(Scopes(account="main"), "claude-test")
    return await here.manager.reserve(Wanted("p1", scope, units, now_s + after_s, now_s + after_s + for_s), limit)


def test_what_is_reserved_is_there_for_its_holder_however_hard_others_push(house):
    async def main():
        async with house(INPUT) as here:
            assert isinstance(await reserve(here, 30_000, "key:mine", after_s=60, for_s=600), Planned)

            async def push():
                while True:
                    await use(here, 500, "others")

            pushing = [asyncio.create_task(push()) for _ in range(20)]
            await asyncio.sleep(120)
            waits = [await use(here, 500, "mine") for _ in range(20)]
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)
            # 30,000 in 600 s are 500 every 10 s, while twenty others want all of it.
            assert sum(waits) <= 20 * 10.5
            assert max(waits) <= 11

    run(main())


def test_others_of_another_process_leave_it_alone_too(house):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with house(INPUT, stores=stores) as here, house(INPUT, stores=stores, owner="there") as there:
            await use(there, 100, "others")
            assert isinstance(await reserve(here, 5_000, "key:mine", after_s=0, for_s=60), Planned)
            await use(there, 900, "others")
            with pytest.raises(DeadlineError):
                await use(there, 900, "others", max_wait_s=1)
            assert await use(here, 400, "mine") <= 400 / 5_000 * 60  # at the pace that was promised

    run(main())


def test_a_reservation_that_cannot_be_honoured_is_denied_and_a_cancelled_one_gives_all_back(house):
    async def main():
        async with house(INPUT) as here:
            denied = await reserve(here, 100_000, "key:mine", after_s=0, for_s=600)
            assert isinstance(denied, Denied)
            assert "100,000" in denied.reason
            assert isinstance(await reserve(here, 50_000, "key:mine", after_s=0, for_s=600), Planned)
            assert await here.manager.cancel_reservation("p1") is not None
            assert await use(here, 5_900, "others") == 0

    run(main())


def closed(*, refuses: bool) -> MaintenanceRule:
    def spans(from_s: float, until_s: float) -> list[tuple[float, float]]:
        start_s = from_s - from_s % 3_600 + 600  # ten minutes past every hour, for ten minutes
        found = [(start_s + hour * 3_600, start_s + hour * 3_600 + 600) for hour in range(-1, 3)]
        return [(begin_s, end_s) for begin_s, end_s in found if end_s > from_s and begin_s < until_s]

    return MaintenanceRule("hourly", spans, "key:*", refuses=refuses)


def test_calls_are_held_until_maintenance_is_over(house):
    async def main():
        async with house(INPUT, maintenance=[closed(refuses=False)]) as here:
            await asyncio.sleep(
                600 - here.clock.now_s() % 3_600 + (3_600 if here.clock.now_s() % 3_600 > 600 else 0) + 60
            )
            assert await use(here, 10, "a") == pytest.approx(540, abs=1)

    run(main())


def test_calls_are_told_at_once_where_maintenance_refuses(house):
    async def main():
        async with house(INPUT, maintenance=[closed(refuses=True)]) as here:
            await asyncio.sleep(
                600 - here.clock.now_s() % 3_600 + (3_600 if here.clock.now_s() % 3_600 > 600 else 0) + 60
            )
            with pytest.raises(DeadlineError, match="maintenance hourly") as told:
                await use(here, 10, "a")
            assert told.value.retry_after_s == pytest.approx(540, abs=1)

    run(main())
