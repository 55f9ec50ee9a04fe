"""After a crash: who is asked what became of its calls, how often, and what an operator can settle by hand."""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest
from small_house import budget, level_of, rate

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import ProviderError
from headgate.core.ledger import UsageQuery
from headgate.core.retries import Failure
from headgate.core.scopes import Scopes
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Cost, Fate
from headgate.runtime.calls import Call
from headgate.runtime.manager import LEASE_S
from headgate.runtime.recovery import LATE_S
from headgate.testing.scripted import ScriptedProvider
from headgate.testing.virtual_time import run

LIMITS = (rate("output_tokens", 6_000_000), budget(1_000_000))


def alive(owner: str) -> bool:
    return owner != "dead"


async def left_by_a_dead_process(house, calls: int):
    """Give stores in which a process that was killed left so many calls in flight."""
    levels, ledger = MemoryLevelStore(), MemoryLedgerStore()
    for number in range(calls):
        stores = (levels, UnfinishedLedger(ledger))
        async with house(*LIMITS, stores=(KillableLevels(levels), stores[1]), owner="dead") as dying:
            what = Call(
                "claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run="r"), id=f"call-{number}"
            )
            async with dying.manager.admit(what):
                dying.levels.killed = stores[1].killed = True
    return levels, ledger


class KillableLevels(MemoryLevelStore):
    """Changes nothing any more once its process is killed."""

    def __init__(self, levels: MemoryLevelStore) -> None:
        super().__init__()
        self._records = levels._records
        self.killed = False

    async def transact(self, names, step):
        if self.killed:
            return False
        return await super().transact(names, step)


class UnfinishedLedger(MemoryLedgerStore):
    def __init__(self, ledger: MemoryLedgerStore) -> None:
        super().__init__()
        self._open, self._final = ledger._open, ledger._final
        self.killed = False

    async def finish(self, attempt):
        return not self.killed and await super().finish(attempt)


@dataclass(slots=True)
class TroubledProvider(ScriptedProvider):
    """Cannot be asked for some calls."""

    trouble: Failure | None = None
    troubled: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    async def look_up(self, call_id):
        self.asked.append(call_id)
        if self.trouble is not None and (not self.troubled or call_id in self.troubled):
            raise ProviderError("nobody is there", self.trouble)
        return Fate(Usage(90, output_tokens=7))


NOBODY = Failure("connection", "refused", sent=False)


def test_a_provider_that_is_not_there_is_asked_once_a_sweep_and_not_for_every_call(house, caplog):
    async def main():
        stores = await left_by_a_dead_process(house, 5)
        provider = TroubledProvider(trouble=NOBODY)
        async with house(*LIMITS, stores=stores, owner="next", alive=alive, provider=provider) as here:
            assert provider.asked == ["call-0.1"]
            (line,) = [record.getMessage() for record in caplog.records if record.name == "headgate.recovery"]
            assert "account main" in line
            assert "nobody is there" in line
            provider.trouble = None
            recovered = await here.manager.recover()
            assert recovered.reconciled == 5
            assert len(provider.asked) == 6

    with caplog.at_level(logging.INFO):
        run(main())


def test_one_call_of_which_a_provider_tells_nonsense_does_not_hide_the_others(house):
    async def main():
        stores = await left_by_a_dead_process(house, 3)
        provider = TroubledProvider(trouble=Failure("server", "unreadable_call", 500), troubled=("call-0.1",))
        async with house(*LIMITS, stores=stores, owner="next", alive=alive, provider=provider):
            assert provider.asked == ["call-0.1", "call-1.1", "call-2.1"]
            assert [row.id for row in await stores[1].in_flight()] == ["call-0.1"]

    run(main())


@pytest.mark.parametrize(
    ("fate", "cost", "used"),
    [
        (Fate(NO_USAGE, arrived=False), Cost(0, None), 0),
        (Fate(Usage(1, output_tokens=1)), Cost(12_300, "by hand"), 12_300),
        (Fate(Usage(1, output_tokens=1)), Cost(None, None), "all that was held"),
    ],
)
@pytest.mark.parametrize("swept", [True, False])
def test_money_that_is_pending_for_ever_can_be_settled_by_hand_once(house, fate, cost, used, swept):
    async def main():
        stores = await left_by_a_dead_process(house, 2)
        async with house(*LIMITS, stores=stores, owner="next", alive=alive if swept else None) as here:
            if not swept:  # as a command does that sweeps nothing
                here.manager._recovery._owner_is_alive = alive
            row, other = await here.manager.lost()
            assert (row.id, row.state) == ("call-0.1", "lost" if swept else "in_flight")
            each = level_of(await here.manager.limits(), "micro_usd")
            pending = (each.used + each.held) // 2
            assert pending == row.held_micro_usd
            assert await here.manager.settle_lost(row, fate, cost) == (True, True)
            assert await here.manager.settle_lost(row, fate, cost) == (False, False)
            view = level_of(await here.manager.limits(), "micro_usd")
            assert view.used + view.held == pending + (pending if used == "all that was held" else used)
            assert await here.manager.lost() == [other]
            (group,) = await here.manager.usage(UsageQuery(only=(("state", "reconciled"),)))
            assert (group.attempts, group.requests, group.cost_micro_usd) == (1, int(fate.arrived), cost.micro_usd or 0)
            versions = {kept.id: kept.price_version for kept in await stores[1].attempts("r")}
            assert versions[row.id] == cost.version

    run(main())


def test_a_call_on_its_way_in_a_living_process_is_not_lost(house):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with (
            house(*LIMITS, stores=stores, owner="first") as first,
            house(stores=stores, owner="asks") as here,
            first.manager.admit(Call("claude-test", text_bytes=400, max_output_tokens=100)),
        ):
            assert [row.owner for row in await stores[1].in_flight()] == ["first"]
            assert await here.manager.lost() == []
            assert await first.manager.lost() == []

    run(main())


def test_a_hold_without_a_row_never_left_and_comes_back_whole(house):
    class Unwritten(MemoryLedgerStore):
        async def begin(self, attempt, when=None):
            """Killed between the hold and the row."""

    async def main():
        levels = MemoryLevelStore()
        what = Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run="r"))
        dying_stores = (KillableLevels(levels), Unwritten())
        async with house(*LIMITS, stores=dying_stores, owner="dead") as dying, dying.manager.admit(what):
            dying.levels.killed = True
        async with house(*LIMITS, stores=(levels, MemoryLedgerStore()), owner="next", alive=alive) as here:
            views = {view.dimension: view for view in await here.manager.limits()}
            # One that was lost would be spent of the rate, and pending of the budget.
            assert [(views[name].used, views[name].held) for name in ("output_tokens", "micro_usd")] == [(0, 0)] * 2
            assert not [name for name in await levels.names("hold/") if "/call" in name or "/dead" in name]

    run(main())


def test_a_call_of_an_owner_that_is_silent_for_long_is_lost_wherever_that_was(house):
    async def main():
        stores = await left_by_a_dead_process(house, 1)
        async with house(*LIMITS, stores=stores, owner="next") as here:  # on another host nobody knows that it died
            await asyncio.sleep(LEASE_S + LATE_S - 30)
            (row,) = await stores[1].in_flight()
            assert row.state == "in_flight"
            await asyncio.sleep(60)
            (row,) = await stores[1].in_flight()
            assert row.state == "lost"
            view = level_of(await here.manager.limits(), "output_tokens")
            assert view.held == 0
            assert await here.manager.lost() == [row]

    run(main())


def test_calls_are_marked_as_lost_however_many_older_ones_nobody_can_tell_of(house):
    class ByTwo(MemoryLedgerStore):
        async def in_flight(self, after=None):
            return (await super().in_flight(after))[:2]

    async def main():
        levels, kept = await left_by_a_dead_process(house, 5)
        ledger = ByTwo()
        ledger._open, ledger._final = kept._open, kept._final
        asker = ScriptedProvider()  # cannot tell of any
        async with house(*LIMITS, stores=(levels, ledger), owner="next", alive=alive, provider=asker) as here:
            assert [row.state for row in await kept.in_flight()] == ["lost"] * 5
            # Each is spent, for each had its row.
            assert level_of(await here.manager.limits(), "output_tokens").used == 500

    run(main())
