"""What only the stores in memory do: they stay small, and tell that nobody else can change them."""

import asyncio
from dataclasses import replace

import pytest

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.ledger import UsageQuery
from headgate.testing.exercises.ledger import an_attempt, keep
from headgate.testing.exercises.levels import add_one
from headgate.testing.virtual_time import run


def test_the_oldest_final_attempts_leave_and_open_ones_stay() -> None:
    async def main() -> None:
        ledger = MemoryLedgerStore(most_attempts=3)
        await ledger.begin(an_attempt(100))
        await keep(ledger, [replace(an_attempt(n), state="done", cost_micro_usd=10**n) for n in range(5)])
        (group,) = await ledger.usage(UsageQuery(only=(("state", "done"),)))
        assert group.cost_micro_usd == 11_100
        assert [row.id for row in await ledger.in_flight()] == ["attempt-100"]

    run(main())


def test_no_other_process_changes_what_is_in_memory() -> None:
    async def main() -> None:
        levels = MemoryLevelStore()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.gather(levels.wait_changed(), add_one(levels, "a"))

    run(main())
