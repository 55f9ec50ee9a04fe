"""Calls that are cancelled at the worst moment: what they hold comes back, and what they used is kept."""

import asyncio

import pytest
from small_house import budget, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import StoreError
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.testing.virtual_time import run


def call() -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run="r"))


class SlowLedger(MemoryLedgerStore):
    def __init__(self) -> None:
        super().__init__()
        self.writes = asyncio.Event()
        self.go_on = asyncio.Event()

    async def finish(self, attempt):
        self.writes.set()
        await self.go_on.wait()
        return await super().finish(attempt)


def test_what_a_call_used_is_kept_also_when_it_is_cancelled_while_that_is_written(house):
    async def main():
        ledger = SlowLedger()
        async with house(rate("output_tokens", 6_000), slots(1), ledger=ledger) as here:

            async def use() -> None:
                async with here.manager.admit(call()) as grant:
                    grant.settle(Usage(90, output_tokens=7))

            task = asyncio.create_task(use())
            await ledger.writes.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            ledger.go_on.set()
            await here.manager.close()
            (row,) = await ledger.attempts("r")
            assert (row.state, row.usage) == ("done", Usage(90, output_tokens=7))
            assert all(view.held == 0 for view in await here.manager.limits())

    run(main())


def test_a_call_admitted_and_cancelled_at_the_same_moment_is_given_back(house):
    async def cancel(waits, admitted):
        while not admitted.done():  # noqa: ASYNC110 - it has to look before whoever waits for it is woken
            await asyncio.sleep(0)
        assert not waits.done()
        waits.cancel()

    async def main():
        async with house(slots(1)) as here:
            async with here.manager.admit(call()):
                waits = asyncio.create_task(here.manager.admit(call()).__aenter__())
                await asyncio.sleep(1)
                (waiting,) = here.manager._admission.waiting()
                cancelling = asyncio.create_task(cancel(waits, waiting.admitted))
            await cancelling
            with pytest.raises(asyncio.CancelledError):
                await waits
            async with asyncio.timeout(1), here.manager.admit(call()):
                assert [view.held for view in await here.manager.limits()] == [1]

    run(main())


class FailingLevels(MemoryLevelStore):
    """A store that keeps what it was asked while its caller was cancelled, and then fails for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = self.broken = False

    async def transact(self, names, step):
        if self.broken:
            raise StoreError("disk full")
        kept = await super().transact(names, step)
        if self.slow:
            await asyncio.sleep(1)
        return kept


def test_what_a_cancelled_call_held_comes_back_although_the_store_failed_when_it_was_given_back(house):
    async def main():
        levels = FailingLevels()
        async with house(budget(1_000_000), stores=(levels, MemoryLedgerStore())) as here:

            async def held():
                return [view.held for view in await here.manager.limits()]

            levels.slow = True
            taking = asyncio.create_task(here.manager.admit(call()).__aenter__())
            await asyncio.sleep(0.5)
            levels.slow, levels.broken = False, True
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            await asyncio.sleep(1)
            levels.broken = False
            assert await held() != [0]
            await asyncio.sleep(60)
            assert await held() == [0]

    run(main())
