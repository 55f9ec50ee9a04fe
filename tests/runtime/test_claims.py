"""Two processes on one store: the head of one's lane is not overtaken by the other's calls that came later."""

import asyncio

import pytest
from small_house import budget, open_small_house, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.planning import Planned, Wanted
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.runtime.reservations import CLAIMS
from headgate.testing.virtual_time import run


class SharedLevels(MemoryLevelStore):
    """One process's view of levels that another process changes too."""

    def __init__(self, other: "SharedLevels | None" = None) -> None:
        super().__init__()
        self.changed, self.other = asyncio.Event(), other
        if other is not None:
            self._records, other.other = other._records, self

    async def transact(self, names, step):
        def watched(records):
            changes, outcome = step(records)
            if changes:
                self.other.changed.set()
            return changes, outcome

        return await super().transact(names, watched)

    async def wait_changed(self):
        await self.changed.wait()
        await asyncio.sleep(0.05)  # as a store that is polled
        self.changed.clear()


def call(tokens, **facts):
    facts.setdefault("max_wait_s", 3_600.0)
    return Call("claude-test", input_tokens=tokens, max_output_tokens=0, **facts)


async def use(here, what, *, holds_s=0.0):
    begun_s = asyncio.get_running_loop().time()
    async with here.manager.admit(what) as grant:
        waited_s = asyncio.get_running_loop().time() - begun_s
        await asyncio.sleep(holds_s)
        grant.settle(Usage(what.input_tokens))
    return waited_s


def two_processes(*rules, **parts):
    one = SharedLevels()
    two = SharedLevels(one)
    ledger = MemoryLedgerStore()
    return open_small_house(*rules, stores=(one, ledger), owner="one", **parts), open_small_house(
        *rules, stores=(two, ledger), owner="two", **parts
    )


async def loop_of(here, tokens, **facts):
    while True:
        await use(here, call(tokens, **facts))


async def reserve(here, units, *, in_s=0, for_s=60):
    from_s = int(here.clock.now_s()) + in_s
    (limit,) = here.manager.limits_met(Scopes(account="main"), "claude-test")
    return await here.manager.reserve(Wanted("p1", "key:mine", units, from_s, from_s + for_s), limit)


async def end(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("beside", ["nothing", "maintenance", "a reservation"])
def test_a_large_call_is_not_starved_by_another_process(beside):
    async def main():
        later = MaintenanceRule("later", lambda from_s, _until_s: [(from_s + 90_000, from_s + 90_060)])
        maintenance = [later] if beside == "maintenance" else []
        first, second = two_processes(rate("input_tokens", 60_000, burst=1_000), maintenance=maintenance)
        async with first as one, second as two:
            if beside == "a reservation":
                assert isinstance(await reserve(two, 100, in_s=90_000), Planned)
            loops = [asyncio.create_task(loop_of(two, 50)) for _ in range(20)]
            await asyncio.sleep(5)
            waited_s = await use(one, call(900, max_wait_s=10))
            assert waited_s < 4
            await end(loops)
            await asyncio.sleep(3)
            assert await use(one, call(50)) == 0
            assert await one.levels.transact([CLAIMS], lambda records: ({}, records.get(CLAIMS))) is None

    run(main())


def test_a_slot_goes_to_the_call_that_came_first_in_whatever_process():
    async def main():
        first, second = two_processes(slots(2))
        async with first as one, second as two:
            log = []

            async def job(here, name, holds_s):
                await use(here, call(1), holds_s=holds_s)
                log.append(name)

            running = [asyncio.create_task(job(two, "long", 10)) for _ in range(2)]
            await asyncio.sleep(1)
            waiting = [asyncio.create_task(job(one, "one", 1))]
            await asyncio.sleep(1)
            waiting += [asyncio.create_task(job(two, "two", 1)) for _ in range(4)]
            await asyncio.gather(*running, *waiting)
            assert log.index("one") <= 3

    run(main())


def test_a_head_that_waits_for_its_own_key_or_for_a_budget_holds_nobody_back():
    rules = (rate("input_tokens", 6_000_000), rate("input_tokens", 60, scope="key:*"), budget(2_000, "run:*"))

    async def main():
        first, second = two_processes(*rules)
        async with first as one, second as two:
            mine, other = Scopes(key="mine", run="a"), Scopes(key="other", run="b")
            loops = [asyncio.create_task(loop_of(two, 1, scopes=other)) for _ in range(2)]
            await use(one, call(60, scopes=mine))
            slow = asyncio.create_task(use(one, call(60, scopes=mine)))
            await asyncio.sleep(10)
            assert not slow.done()
            assert await use(two, call(1, scopes=Scopes(key="third", run="c"))) == 0
            await end([*loops, slow])

    run(main())


def test_a_claim_of_a_process_that_died_lapses():
    async def main():
        first, second = two_processes(rate("input_tokens", 60_000, burst=1_000))
        async with second as two:
            async with first as one:
                loops = [asyncio.create_task(loop_of(two, 50)) for _ in range(20)]
                await asyncio.sleep(5)
                dying = asyncio.create_task(use(one, call(900)))
                await asyncio.sleep(0.7)
                claims = await one.levels.transact([CLAIMS], lambda records: ({}, records.get(CLAIMS)))
                assert "one" in [each.owner for each in claims]
                dying.cancel()  # nothing takes its claim back
            await end(loops)
            assert await use(two, call(50)) < 4

    run(main())


def test_what_is_reserved_for_a_call_is_no_other_processs_to_claim():
    async def main():
        first, second = two_processes(rate("input_tokens", 60_000, burst=1_000))
        async with first as one, second as two:
            assert isinstance(await reserve(one, 27_000, for_s=60), Planned)  # 450 a second, 450 at once
            loops = [asyncio.create_task(loop_of(two, 50)) for _ in range(20)]
            head = asyncio.create_task(use(one, call(540)))
            await asyncio.sleep(0.7)
            waits = [await use(two, call(200, scopes=Scopes(key="mine"))) for _ in range(10)]
            assert sum(waits) <= 10 * 200 / 450 + 0.5
            await end([*loops, head])

    run(main())
