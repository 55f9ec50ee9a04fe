"""Who goes, who waits, who is told no: in virtual time, over a memory store."""

import asyncio
from itertools import pairwise

import pytest
from small_house import budget, level_of, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import BudgetError, DeadlineError, ShuttingDownError, StoreError, UnpricedError
from headgate.core.limits import Window
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Lifetime
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.reservations import Reservations
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import run


def call(tokens: int = 100, *, output: int = 0, **facts) -> Call:
    facts.setdefault("max_wait_s", 3600.0)
    return Call("claude-test", input_tokens=tokens, max_output_tokens=output, **facts)


async def use(house, what: Call, *, usage: Usage | None = None, holds_s: float = 0.0, log: list | None = None) -> float:
    started = asyncio.get_running_loop().time()
    async with house.manager.admit(what) as grant:
        waited = asyncio.get_running_loop().time() - started
        if log is not None:
            log.append(what.id)
        await asyncio.sleep(holds_s)
        grant.settle(usage or Usage(what.input_tokens or 0))
    return waited


def test_calls_go_first_in_first_out_at_the_exact_time(house):
    async def main():
        log: list[str] = []
        async with house(rate("input_tokens", 6000, burst=1000)) as here:
            calls = [call(500, id=str(number)) for number in range(6)]
            waits = await asyncio.gather(*(use(here, each, log=log) for each in calls))
        assert log == ["0", "1", "2", "3", "4", "5"]
        # 1,000 at once, then 100 tokens a second: one call of 500 every 5 s.
        assert waits == pytest.approx([0, 0, 5, 10, 15, 20], abs=1e-5)

    run(main())


def test_a_large_call_is_not_starved_by_small_ones(house):
    async def main():
        async with house(rate("input_tokens", 60_000, burst=1000)) as here:

            async def loop():
                while True:
                    await use(here, call(50))

            loops = [asyncio.create_task(loop()) for _ in range(20)]
            await asyncio.sleep(3)
            waited = await use(here, call(900))
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        assert waited <= 1.0 + 20 * 0.05  # its own 0.9 s, behind the 20 that came before it

    run(main())


def test_a_call_that_waits_for_its_own_budget_does_not_hold_up_others(house):
    async def main():
        async with house(rate("input_tokens", 600, scope="run:*"), slots(10)) as here:
            one, other = Scopes(run="one"), Scopes(run="other")
            await use(here, call(600, scopes=one))
            blocked = asyncio.create_task(use(here, call(600, scopes=one)))
            await asyncio.sleep(0.1)
            assert await use(here, call(600, scopes=other)) == 0
            assert await blocked == pytest.approx(60, abs=0.2)

    run(main())


def test_a_settlement_lets_the_next_one_go_at_once(house):
    async def main():
        async with house(slots(1)) as here:
            waits = await asyncio.gather(*(use(here, call(), holds_s=2) for _ in range(4)))
        assert waits == [0, 2, 4, 6]

    run(main())


@pytest.mark.parametrize(("used", "waits_s"), [(100, 10.0), (0, 9.0)])
def test_a_head_is_tried_when_what_comes_back_can_help_it_and_not_before(house, monkeypatch, used, waits_s):
    tries = 0
    take = Reservations.take

    async def counted(self, attempt, *arguments, **more):
        nonlocal tries
        tries += attempt == "large.1"
        return await take(self, attempt, *arguments, **more)

    monkeypatch.setattr(Reservations, "take", counted)

    async def main():
        async with house(rate("input_tokens", 6000, burst=1000)) as here:
            small = [use(here, call(100), usage=Usage(used), holds_s=1.0 + number) for number in range(9)]
            tasks = [asyncio.create_task(each) for each in small]
            await asyncio.sleep(0)
            waited_s = await use(here, call(1000, id="large"))
            await asyncio.gather(*tasks)
        return waited_s

    assert run(main()) == pytest.approx(waits_s, abs=1e-5)
    assert tries <= 3  # when it comes, when it goes, and once between; the nine that end help it only together


def test_no_hold_is_left_when_waiting_calls_are_cancelled_at_any_moment(house):
    async def main():
        async with house(slots(2), rate("input_tokens", 60_000, burst=500)) as here:
            for delay_ms in range(0, 60, 3):
                tasks = [asyncio.create_task(use(here, call(90), holds_s=0.01)) for _ in range(12)]
                await asyncio.sleep(delay_ms / 1000)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(1)
            views = await here.manager.limits()
            assert level_of(views, "slots").held == 0
            assert level_of(views, "input_tokens").held == 0
            assert here.manager.queue() == []
            assert await here.levels.names("hold/") == []

    run(main())


def test_past_its_deadline_a_call_is_told_when_it_would_run(house):
    async def main():
        async with house(rate("input_tokens", 600, burst=600)) as here:
            await use(here, call(600))
            with pytest.raises(DeadlineError, match="600 input tokens per minute for account:main") as too_late:
                await use(here, call(600, max_wait_s=10))
            assert too_late.value.retry_after_s == pytest.approx(60, abs=0.1)
            assert asyncio.get_running_loop().time() < 1, "it is told at once that it cannot make it"
            assert await use(here, call(600, max_wait_s=61)) == pytest.approx(60, abs=0.01)

    run(main())


def test_a_deadline_ends_a_wait_that_only_a_settlement_could_end(house):
    async def main():
        async with house(slots(1)) as here:
            holder = asyncio.create_task(use(here, call(), holds_s=30))
            await asyncio.sleep(0)
            started = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineError):
                await use(here, call(max_wait_s=5))
            assert asyncio.get_running_loop().time() - started == pytest.approx(5)
            await holder

    run(main())


def test_a_hard_cap_is_never_passed_and_refuses_nothing_that_fits(house):
    """200 concurrent calls against $0.45; each may cost $0.015 and does cost between nothing and that."""

    async def main():
        async with house(budget(450_000)) as here:
            scopes = Scopes(run="r")
            spent, refused = 0, 0

            async def one(number: int) -> None:
                nonlocal spent, refused
                tokens = number * 37 % 1000
                usage = Usage(0, output_tokens=tokens)
                try:
                    async with here.manager.admit(call(0, output=1000, scopes=scopes)) as grant:
                        await asyncio.sleep(1)
                        grant.settle(usage)
                        spent += FlatPrices().cost("", usage, 0).micro_usd or 0
                except BudgetError:
                    refused += 1
                    # Refused only once what is left, all holds given back, is less than it may cost.
                    assert 450_000 - spent < 15_000

            await asyncio.gather(*(one(number) for number in range(200)))
            view = level_of(await here.manager.limits(), "micro_usd")
            assert view.used == spent <= 450_000
            assert spent > 435_000
            assert refused > 0
            assert view.held == 0

    run(main())


def test_an_unknown_price_is_refused_by_a_money_limit_and_by_nothing_else(house):
    async def main():
        prices = FlatPrices(unknown=frozenset({"claude-test"}))
        async with house(budget(450_000), rate("requests", 60), prices=prices) as here:
            assert await use(here, call()) == 0
            with pytest.raises(UnpricedError, match="no price is known for model 'claude-test'"):
                await use(here, call(scopes=Scopes(run="r")))

    run(main())


def test_draining_refuses_what_waits_and_lets_the_rest_end(house):
    async def main():
        async with house(slots(1)) as here:
            running = asyncio.create_task(use(here, call(), holds_s=3))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(use(here, call()))
            await asyncio.sleep(1)
            await here.manager.close()
            with pytest.raises(ShuttingDownError):
                await waiting
            assert await running == 0

    run(main())


class SlowStore(MemoryLevelStore):
    """As SQLite's group commit: the work is queued, and done also when nobody waits for it any more."""

    async def transact(self, names, step):
        work = asyncio.ensure_future(self._later(names, step))
        return await asyncio.shield(work)

    async def _later(self, names, step):
        await asyncio.sleep(0.001)
        return await super().transact(names, step)


def test_a_call_that_is_cancelled_while_its_hold_is_written_gives_it_back(house):
    async def main():
        async with house(slots(1), stores=(SlowStore(), MemoryLedgerStore())) as here:
            task = asyncio.create_task(use(here, call()))
            await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await use(here, call()) < 1
            assert await here.levels.names("hold/") == []

    run(main())


def test_nobody_overtakes_across_lanes(house):
    """A large call waits for the account; small ones of a key that has a lane of its own must not pass it for ever."""

    async def main():
        rules = (slots(1, scope="key:*"), rate("input_tokens", 6_000, burst=6_000))
        async with house(*rules) as here:
            after_large: list[str] = []
            large_is_in = asyncio.Event()

            async def loop():
                while True:
                    await use(here, call(50, scopes=Scopes(key="small")))
                    if not large_is_in.is_set() and large_started:
                        after_large.append("one")

            large_started = False
            loops = [asyncio.create_task(loop()) for _ in range(10)]
            await asyncio.sleep(120)
            large_started = True
            waited = await use(here, call(5_400, scopes=Scopes(key="large")))
            large_is_in.set()
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        assert waited < 70
        assert len(after_large) <= 10, "only those that had come before it"

    run(main())


def test_a_refusal_behind_others_does_not_promise_the_heads_time(house):
    async def main():
        async with house(rate("requests", 6, burst=1)) as here:
            await use(here, call())
            waiting = [asyncio.create_task(use(here, call())) for _ in range(5)]
            await asyncio.sleep(0.1)
            before_s = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineError, match="behind the 5 that wait already") as too_late:
                await use(here, call(max_wait_s=15))
            assert too_late.value.retry_after_s == pytest.approx(60, abs=0.2)
            assert asyncio.get_running_loop().time() == before_s, "it is told at once"
            assert [view.until_s is None for view in here.manager.queue()] == [
                False,
                *[True] * (len(here.manager.queue()) - 1),
            ]
            with pytest.raises(DeadlineError, match="the call waited"):  # near enough to hope: a guess may be wrong
                await use(here, call(max_wait_s=50))
            await asyncio.gather(*waiting)

    run(main())


class BrokenOnce(MemoryLevelStore):
    broken = False

    async def transact(self, names, step):
        if self.broken:
            self.broken = False
            raise StoreError("full")
        return await super().transact(names, step)


def test_a_store_that_fails_once_does_not_close_a_lane_for_good(house):
    async def main():
        store = BrokenOnce()
        async with house(rate("requests", 60, burst=1), stores=(store, MemoryLedgerStore())) as here:
            await use(here, call())
            unlucky = asyncio.create_task(use(here, call()))
            await asyncio.sleep(0.5)
            store.broken = True
            with pytest.raises(StoreError):
                await unlucky
            assert await use(here, call()) < 2

    run(main())


class DeafFor(MemoryLevelStore):
    """Another process's store as this one sees it: it cannot look for changes `times` times, then tells of one."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times
        self.asked_s: list[float] = []

    async def wait_changed(self):
        self.asked_s.append(asyncio.get_running_loop().time())
        if len(self.asked_s) <= self.times:
            raise StoreError("locked")
        if len(self.asked_s) > self.times + 1:
            await super().wait_changed()


def test_lanes_notice_other_processes_again_after_a_passing_trouble(house, caplog):
    async def main():
        store = DeafFor(3)
        async with house(slots(1), stores=(store, MemoryLedgerStore())) as here, here.manager.admit(call()):
            waiting = asyncio.create_task(use(here, call()))
            await asyncio.sleep(0.01)
            # As if another process had held the slot and given it back: nobody but the store tells of it.
            await store.transact((), lambda records: (dict.fromkeys(records), None))
            waited_s = await waiting
        first_s, *later_s = store.asked_s
        assert waited_s == later_s[2] - first_s
        assert all(0.4 < later - earlier <= 1.0 for earlier, later in pairwise(store.asked_s[:4]))
        assert caplog.text.count("locked") == 1

    run(main())


def test_a_refusal_under_slots_promises_no_leases_end(house):
    """Two slots, calls of half a second: the lease ends in 120 s, but nobody waits for that."""

    async def main():
        async with house(slots(2)) as here:
            busy = [asyncio.create_task(use(here, call(), holds_s=0.5)) for _ in range(6)]
            await asyncio.sleep(0.1)
            for max_wait_s in (0.2, 0.3):
                with pytest.raises(DeadlineError) as too_late:
                    await use(here, call(max_wait_s=max_wait_s))
                assert too_late.value.retry_after_s == 1
            await asyncio.gather(*busy)

    run(main())


def test_who_meets_a_spent_lifetime_is_not_told_to_ask_for_less(house):
    async def main():
        limits = [LimitRule("account:main", Window("", "account:main", "requests", 1, Lifetime()))]
        async with house(*limits) as here:
            async with here.manager.admit(Call("claude-test", input_tokens=1, max_output_tokens=1)) as grant:
                grant.settle(Usage(1))
            with pytest.raises(BudgetError) as refused:
                async with here.manager.admit(Call("claude-test", input_tokens=1, max_output_tokens=1)):
                    pass
            assert "it never resets; raise the limit" in str(refused.value)
            assert "ask for less" not in str(refused.value)

    run(main())


def test_the_queue_names_no_instant_where_only_a_call_that_ends_lets_the_first_go(house):
    async def main():
        async with house(slots(1)) as here:
            calls = [asyncio.create_task(use(here, call(), holds_s=5.0)) for _ in range(2)]
            await asyncio.sleep(1)
            assert [view.until_s for view in here.manager.queue()] == [None]
            await asyncio.gather(*calls)

    run(main())


def test_a_gateway_ends_at_once_although_somebody_looked_at_the_queue_as_its_last_call_gave_up(house):
    async def main():
        async with house(slots(1)) as here:
            async with here.manager.admit(call()):
                waiting = asyncio.create_task(use(here, call()))
                await asyncio.sleep(1)
                waiting.cancel()
                here.manager.queue()  # it has given up, and is not yet gone
                await asyncio.gather(waiting, return_exceptions=True)
            started_s = asyncio.get_running_loop().time()
            await here.manager.drain()
            assert asyncio.get_running_loop().time() == started_s

    run(main())
