"""What a manager does on the side: what says nothing leaves the store, and what was learned is learned again."""

import asyncio
from dataclasses import replace

from small_house import budget, level_of, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.sqlite.stores import open_database
from headgate.core.errors import StoreError
from headgate.core.limits import Rolling, Window
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.manager import FORGET_EVERY_S
from headgate.testing.exercises.ledger import an_attempt, keep
from headgate.testing.virtual_time import run

DAY_S = 86_400
EACH = "session:*"
LIMITS = (
    rate("output_tokens", 60_000, scope=EACH),
    slots(5, scope=EACH),
    LimitRule(EACH, Window("", EACH, "requests", 1_000, Calendar("day"))),
    LimitRule(EACH, Rolling("", EACH, "input_tokens", 10**6, 600)),
)
FOR_EVER = budget(1_000_000, scope=EACH)


def call(session: str) -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(session=session))


async def names(levels) -> list[str]:
    return [name for name in await levels.names("") if name != "health"]


def test_levels_of_sessions_that_are_over_leave_the_store_but_for_lifetime_budgets(house):
    async def main():
        levels = MemoryLevelStore()
        async with house(*LIMITS, FOR_EVER, stores=(levels, MemoryLedgerStore())) as here:
            for number in range(500):
                async with here.manager.admit(call(f"{number:03}")):
                    pass
            assert len(await names(levels)) == 5 * 500
            used = {view.name: view.used for view in await here.manager.limits()}
            await asyncio.sleep(DAY_S + 2 * FORGET_EVERY_S)
            kept = await names(levels)
            assert kept == [f"session:{number:03} * micro_usd lifetime" for number in range(500)]
            assert {view.name: view.used for view in await here.manager.limits()} == {name: used[name] for name in kept}

    run(main(), max_virtual_s=1e9)


def test_a_level_that_still_says_something_stays(house):
    async def main():
        levels = MemoryLevelStore()
        async with house(*LIMITS, stores=(levels, MemoryLedgerStore())) as here:
            async with here.manager.admit(call("ended")):
                pass
            async with here.manager.admit(call("long")):
                await asyncio.sleep(6 * FORGET_EVERY_S)
                kept = await names(levels)
                assert [name.removeprefix("session:") for name in kept if name.startswith("session:")] == [
                    "ended * requests day",
                    "long * output_tokens rate-60s",
                    "long * requests day",
                    "long * slots gauge",
                ]
                assert level_of(await here.manager.limits(), "slots").held == 1

    run(main(), max_virtual_s=1e9)


def test_levels_that_no_limit_keeps_here_wait_forty_days_untouched(house, tmp_path):
    async def main():
        async with open_database(tmp_path / "headgate.db") as stores:
            levels, clock_s = stores.levels, [1_000_000_000.0]
            levels._now_s = lambda: clock_s[0]
            kept = {"run:1 * micro_usd lifetime": (1, 2, 3, 4, 5), "hold/host:1:2:3/a": (2, 10**19, (), False)}
            await levels.transact([], lambda _: ({**kept, "run:1 * requests rate-60s": (4, 0, 0, 0, 0)}, None))
            for days, names_left in ((39, 3), (41, 2)):
                clock_s[0] = 1_000_000_000.0 + days * DAY_S
                async with house(stores=(levels, MemoryLedgerStore())):
                    await asyncio.sleep(1)
                assert len(await names(levels)) == names_left
            assert await names(levels) == sorted(kept)

    run(main(), max_virtual_s=1e9)


def rows_of_the_last_run(output_tokens: int):
    usage = Usage(1_000, output_tokens=output_tokens)
    done = [
        replace(an_attempt(number), model="claude-test", state="done", usage=usage, cost_micro_usd=1)
        for number in range(100)
    ]
    misleading = replace(done[0], usage=Usage(1_000, output_tokens=30_000))
    others = [
        replace(misleading, id=f"misleading-{number}-{at}", **facts)
        for number in range(20)
        for at, facts in enumerate(
            (
                {"state": "in_flight"},
                {"state": "cancelled"},
                {"usage": misleading.usage._replace(reported=False)},
                {"model": "claude-other"},
            )
        )
    ]
    return [*done, *others]


async def held_for_output(here) -> int:
    what = Call("claude-test", text_bytes=400, max_output_tokens=64_000)
    async with here.manager.admit(what):
        return level_of(await here.manager.limits(), "output_tokens").held


def test_a_restarted_gateway_knows_how_long_answers_are(house):
    async def main():
        ledger = MemoryLedgerStore()
        limit = rate("output_tokens", 6_000_000)
        async with house(limit, stores=(MemoryLevelStore(), ledger)) as here:
            await asyncio.sleep(1)
            assert await held_for_output(here) == 4_096
        await keep(ledger, rows_of_the_last_run(250))
        async with house(limit, stores=(MemoryLevelStore(), ledger)) as here:
            await asyncio.sleep(1)
            assert await held_for_output(here) == 250

    run(main())


class SlowLedger(MemoryLedgerStore):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def attempts(self, run, most=10**6):
        await asyncio.sleep(self.seconds)
        raise StoreError("the disk failed")


def test_learning_again_keeps_no_start_waiting_and_its_failure_is_one_line(house, caplog):
    async def main():
        ledger = SlowLedger(30)
        async with house(*LIMITS, stores=(MemoryLevelStore(), ledger)):
            assert asyncio.get_running_loop().time() == 0
            await asyncio.sleep(31)
            (line,) = [record.getMessage() for record in caplog.records]
            assert "the disk failed" in line
        async with house(*LIMITS, stores=(MemoryLevelStore(), SlowLedger(1e6))):
            pass

    run(main())
