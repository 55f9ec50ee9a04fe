"""What is reserved ahead and what is closed for maintenance, as calls meet it: in virtual time, over a memory store."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from small_house import rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.sqlite.stores import open_database
from headgate.core.errors import DeadlineError
from headgate.core.limits import Window
from headgate.core.planning import Denied, Planned, Wanted
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.virtual_time import run

INPUT = rate("input_tokens", 6_000, burst=6_000)
TOKENS = LimitRule("account:main", Window("", "account:main", "input_tokens", 1_000, Lifetime()))


async def use(house, tokens: int, key: str, **facts) -> float:
    started_s = asyncio.get_running_loop().time()
    facts.setdefault("max_wait_s", 36_000.0)
    async with house.manager.admit(
        Call("claude-test", input_tokens=tokens, max_output_tokens=1, scopes=Scopes(key=key), **facts)
    ) as grant:
        waited_s = asyncio.get_running_loop().time() - started_s
        grant.settle(Usage(tokens))
    return waited_s


async def reserve(here, units: int, scope: str, *, after_s: float, for_s: float, id_: str = "p1"):
    now_s = here.clock.now_s()
    (limit,) = here.manager.limits_met(Scopes(account="main"), "claude-test")
    return await here.manager.reserve(
        Wanted(id_, scope, units, int(now_s + after_s), int(now_s + after_s + for_s)), limit
    )


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
            with pytest.raises(DeadlineError, match='maintenance "hourly" for key:\\*') as told:
                await use(here, 10, "a")
            assert told.value.retry_after_s == pytest.approx(540, abs=1)

    run(main())


async def wait_until_queued(here, calls: int) -> None:
    while len(here.manager.queue()) < calls:  # noqa: ASYNC110 - nothing tells; and no time passes
        await asyncio.sleep(0)


def test_one_that_waits_far_behind_goes_at_the_instant_at_which_its_reservation_opens(house):
    async def main():
        async with house(INPUT) as here:
            assert isinstance(await reserve(here, 3_000, "key:mine", after_s=133, for_s=60), Planned)
            await use(here, 6_000, "others")
            ahead = [asyncio.create_task(use(here, 1_000, "others")) for _ in range(30)]
            await wait_until_queued(here, 30)
            # One goes each 10 s, so that it would be its turn after five minutes.
            assert await use(here, 2_900, "mine", max_wait_s=140) == pytest.approx(133, abs=0.01)
            assert await asyncio.gather(*ahead)

    run(main())


def test_one_that_waits_goes_when_a_slot_is_reserved_for_it_and_one_comes_free(house):
    async def main():
        async with house(slots(2)) as here:
            log: list[str] = []

            async def hold(key: str, for_s: float) -> None:
                call = Call(
                    "claude-test", input_tokens=1, max_output_tokens=1, scopes=Scopes(key=key), max_wait_s=9_000
                )
                async with here.manager.admit(call) as grant:
                    log.append(f"{key} {asyncio.get_running_loop().time():.2f}")
                    await asyncio.sleep(for_s)
                    grant.settle(Usage(1))

            tasks = [asyncio.create_task(hold(*each)) for each in (("a", 100), ("b", 200), ("c", 50), ("mine", 10))]
            await wait_until_queued(here, 2)
            assert isinstance(await reserve(here, 1, "key:mine", after_s=0, for_s=3_600), Planned)
            await asyncio.gather(*tasks)
            # The running two are not interrupted; what "a" gives back is mine, before "c" who came first.
            assert log == ["a 0.00", "b 0.00", "mine 100.00", "c 200.00"]

    run(main())


@pytest.fixture(params=["here", "there"])
def two_houses(request, house, tmp_path):
    """Two processes on one file, the first of which has the calls; reservations are made and cancelled by either."""

    @asynccontextmanager
    async def open_both():
        async with (
            open_database(tmp_path / "levels.sqlite") as one,
            open_database(tmp_path / "levels.sqlite") as two,
            house(TOKENS, stores=(one.levels, one.ledger)) as here,
            house(TOKENS, stores=(two.levels, two.ledger), owner="there") as there,
        ):
            yield here, here if request.param == "here" else there

    return open_both


NOTICED_S = 0.1
"""Another process's change is seen within 50 ms."""


def test_who_waits_for_a_reservation_goes_when_it_is_cancelled_or_over(two_houses):
    async def main():
        async with two_houses() as (here, by):
            assert isinstance(await reserve(by, 600, "key:other", after_s=0, for_s=100), Planned)
            waits = asyncio.gather(use(here, 500, "a"), use(here, 500, "b"))
            await asyncio.sleep(20)
            assert await by.manager.cancel_reservation("p1") is not None
            assert await waits == pytest.approx([20, 20], abs=NOTICED_S)

    run(main())


def test_who_waits_for_a_reservation_goes_at_the_instant_at_which_it_is_over(two_houses):
    async def main():
        async with two_houses() as (here, by):
            assert isinstance(await reserve(by, 600, "key:other", after_s=0, for_s=100), Planned)
            assert await asyncio.gather(use(here, 500, "a"), use(here, 500, "b")) == pytest.approx([100, 100], abs=1)
            assert asyncio.get_running_loop().time() <= 100

    run(main())


def test_who_waits_behind_another_goes_when_a_reservation_is_made_for_it(two_houses):
    """650 wait until 600 of 1,000 are free again; 390 would delay them, but may go when they are reserved."""

    async def main():
        async with two_houses() as (here, by):
            assert isinstance(await reserve(by, 600, "key:other", after_s=0, for_s=3_600), Planned)
            large = asyncio.create_task(use(here, 650, "a"))
            await wait_until_queued(here, 1)
            mine = asyncio.create_task(use(here, 390, "mine"))
            await asyncio.sleep(20)
            assert not mine.done()
            assert isinstance(await reserve(by, 400, "key:mine", after_s=0, for_s=3_600, id_="p2"), Planned)
            assert await mine == pytest.approx(20, abs=NOTICED_S)
            large.cancel()
            await asyncio.gather(large, return_exceptions=True)

    run(main())


def test_small_calls_go_at_once_while_a_large_one_waits_for_the_end_of_a_reservation(house):
    async def main():
        async with house(TOKENS) as here:
            assert isinstance(await reserve(here, 600, "key:other", after_s=0, for_s=3_600), Planned)
            large = asyncio.create_task(use(here, 500, "a"))
            await wait_until_queued(here, 1)
            assert await use(here, 400, "b") == 0, "500 are there all the same when the reservation is over"
            late = asyncio.create_task(use(here, 200, "b"))
            assert await large == pytest.approx(3_600, abs=1)
            late.cancel()
            await asyncio.gather(late, return_exceptions=True)

    run(main())


def test_small_calls_go_on_at_the_pace_of_a_rate_while_a_large_one_waits_for_the_end_of_a_reservation(house):
    async def main():
        async with house(rate("tokens", 6_000, burst=6_000)) as here:
            assert isinstance(await reserve(here, 50_000, "key:other", after_s=0, for_s=600), Planned)
            large = asyncio.create_task(use(here, 5_000, "a"))
            await wait_until_queued(here, 1)
            waits = [await use(here, 499, "b") for _ in range(20)]
            # The bucket of 6,000 has 1,000 for others and refills by 100 a second, all of it while the holder is idle.
            assert sum(waits) == pytest.approx(18 * 5, abs=1)
            assert await large == pytest.approx(600, abs=1)

    run(main())


def test_a_call_that_has_more_than_its_reservation_goes_the_common_way_and_is_not_overtaken_there(house):
    async def main():
        async with house(INPUT) as here:
            assert isinstance(await reserve(here, 600, "key:mine", after_s=0, for_s=600), Planned)  # 60 at once
            await use(here, 5_900, "others")
            log: list[str] = []

            async def go(name: str, tokens: int, key: str) -> None:
                await use(here, tokens, key)
                log.append(name)

            tasks = [asyncio.create_task(go("large", 3_000, "mine"))]
            await wait_until_queued(here, 1)
            for number in range(5):
                tasks.append(asyncio.create_task(go(f"other {number}", 1_000, "others")))
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)
            assert log[0] == "large"

    run(main())


def test_a_reservation_to_come_lets_nobody_overtake(house):
    async def main():
        async with house(INPUT) as here:
            assert isinstance(await reserve(here, 3_000, "key:mine", after_s=3_000, for_s=600), Planned)
            await use(here, 6_000, "others")
            first = asyncio.create_task(use(here, 3_000, "others"))
            await wait_until_queued(here, 1)
            assert await use(here, 100, "mine") == pytest.approx(31, abs=0.1)
            assert await first == pytest.approx(30, abs=0.1)

    run(main())


async def reserve_slots(here, units: int):
    now_s = int(here.clock.now_s())
    limits = here.manager.limits_met(Scopes(account="main", key="mine"), "claude-test")
    (limit,) = [each for each in limits if each.dimension == "slots"]
    return await here.manager.reserve(Wanted("p1", "key:mine", units, now_s, now_s + 3_600), limit)


def test_a_reservation_of_one_limit_lets_nobody_be_overtaken_in_another(house):
    async def main():
        async with house(INPUT, slots(10)) as here:
            assert isinstance(await reserve_slots(here, 5), Planned)
            await use(here, 6_000, "others")
            head = asyncio.create_task(use(here, 6_000, "others"))
            await wait_until_queued(here, 1)
            small = [asyncio.create_task(use(here, 100, "mine")) for _ in range(20)]
            assert await head == pytest.approx(60, abs=0.01)
            await asyncio.gather(*small)

    run(main())


def test_of_those_that_have_a_reservation_none_is_starved_by_the_others(house):
    async def main():
        async with house(INPUT) as here:
            assert isinstance(await reserve(here, 3_000, "key:mine", after_s=0, for_s=60), Planned)
            await use(here, 6_000, "others")
            first = asyncio.create_task(use(here, 3_000, "others"))
            await wait_until_queued(here, 1)
            large = asyncio.create_task(use(here, 1_000, "mine"))
            await wait_until_queued(here, 2)
            small = [asyncio.create_task(use(here, 100, "mine")) for _ in range(20)]
            # 50 a second are its own and the bucket was full of them, once the 6,000 have left it room.
            assert await large == pytest.approx(10, abs=1.1)
            await asyncio.gather(first, *small)

    run(main())


def hourly(key: str, tokens: int) -> LimitRule:
    return LimitRule(f"key:{key}", Window("", f"key:{key}", "input_tokens", tokens, Calendar("hour")))


@pytest.mark.parametrize("gives_up", [False, True])
def test_who_has_a_reservation_waits_behind_those_of_other_lanes_until_they_have_gone(house, gives_up):
    """Behind one of its own key that waits for the next hour, and one of another that waits for the common rate."""

    async def main():
        async with house(hourly("mine", 1_000), INPUT, slots(10)) as here:
            assert isinstance(await reserve_slots(here, 5), Planned)
            await use(here, 950, "mine")
            await use(here, 5_000, "others")
            other = asyncio.create_task(use(here, 6_000, "others"))
            await wait_until_queued(here, 1)
            hour = asyncio.create_task(use(here, 1_000, "mine"))
            await wait_until_queued(here, 2)
            mine = asyncio.create_task(use(here, 10, "mine"))
            await asyncio.sleep(20)
            if gives_up:
                other.cancel()
            assert await mine == pytest.approx(20 if gives_up else 59.5, abs=0.5)
            hour.cancel()
            await asyncio.gather(other, hour, return_exceptions=True)

    run(main())
