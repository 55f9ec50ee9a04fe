"""What an owner changes while calls wait and are on their way: in virtual time, over a memory store."""

import asyncio

import pytest
from small_house import budget, level_of, open_small_house, rate, slots

from headgate.core.bounds import Reach
from headgate.core.errors import BudgetError, RuledOutError, StoreError, UnboundedError
from headgate.core.limits import Window
from headgate.core.model_rules import ModelRule
from headgate.core.planning import Planned, Wanted
from headgate.core.scheduling import Scheduling, Standing
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Lifetime
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.runtime.orders import Orders
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import run


async def use(here, tokens: int, key: str = "k", *, holds_s: float = 0.0, **facts) -> float:
    began_s = asyncio.get_running_loop().time()
    facts.setdefault("max_wait_s", 36_000.0)
    facts.setdefault("scopes", Scopes(key=key))
    async with here.manager.admit(Call("claude-test", input_tokens=tokens, max_output_tokens=0, **facts)) as grant:
        waited_s = asyncio.get_running_loop().time() - began_s
        await asyncio.sleep(holds_s)
        grant.settle(Usage(tokens))
    return waited_s


async def queued(here, calls: int) -> None:
    while len(here.manager.queue()) < calls:  # noqa: ASYNC110 - nothing tells; and no time passes
        await asyncio.sleep(0)


async def configure(here, *rules: LimitRule, **orders) -> None:
    await here.manager.configure(Orders(rules, **orders))


async def used(here, dimension: str) -> int:
    return level_of(await here.manager.limits(), dimension).used


def tokens_in_all(amount: int) -> LimitRule:
    return LimitRule("account:main", Window("", "account:main", "input_tokens", amount, Lifetime()))


def test_a_call_that_waits_goes_when_the_limit_is_raised_and_nothing_counted_is_lost(house):
    async def main():
        async with house(tokens_in_all(1_000)) as here:
            first = asyncio.create_task(use(here, 900, holds_s=50))
            await asyncio.sleep(1)
            waits = asyncio.create_task(use(here, 500))
            await asyncio.sleep(20)
            await configure(here, tokens_in_all(1_500))
            assert await waits == 20
            await first
            assert await used(here, "input_tokens") == 1_400

    run(main())


def test_a_call_that_waits_is_told_when_the_limit_is_lowered_below_what_it_asks(house):
    async def main():
        async with house(tokens_in_all(1_000)) as here:
            first = asyncio.create_task(use(here, 900, holds_s=50))
            await asyncio.sleep(1)
            waits = asyncio.create_task(use(here, 500))
            await queued(here, 1)
            await configure(here, tokens_in_all(400))
            with pytest.raises(BudgetError, match="400 input tokens in all"):
                await waits
            await first
            assert await used(here, "input_tokens") == 900

    run(main())


@pytest.mark.parametrize(("before", "after"), [(6_000, 600), (600, 6_000), (6_000, 60_000)])
def test_a_rate_drains_at_its_old_pace_until_then_and_at_its_new_one_from_then_on(house, before, after):
    async def main():
        async with house(rate("input_tokens", before, burst=5_000)) as here:
            await use(here, 4_000)
            flight = asyncio.create_task(use(here, 300, holds_s=15))
            await asyncio.sleep(10)
            await configure(here, rate("input_tokens", after, burst=5_000))
            left = 4_000 - 10 * before // 60
            assert await used(here, "input_tokens") == left
            await flight
            left = max(0, left - 5 * after // 60) + 300
            assert await used(here, "input_tokens") == pytest.approx(left, abs=1)
            await asyncio.sleep(2)
            assert await used(here, "input_tokens") == pytest.approx(max(0, left - 2 * after // 60), abs=1)

    run(main())


def test_a_limit_that_is_gone_is_met_by_nobody_and_is_as_it_was_left_when_it_comes_back(house):
    async def main():
        async with house(tokens_in_all(1_000), slots(1)) as here:
            first = asyncio.create_task(use(here, 900, holds_s=50))
            await asyncio.sleep(1)
            waits = [asyncio.create_task(use(here, 500)) for _ in range(3)]
            await queued(here, 3)
            await configure(here)
            assert await asyncio.gather(*waits) == [0, 0, 0]
            assert [view.dimension for view in await here.manager.limits()] == []
            await first
            await configure(here, tokens_in_all(1_000), slots(1))
            views = await here.manager.limits()
            assert (level_of(views, "input_tokens").used, level_of(views, "input_tokens").held) == (900, 0)
            assert level_of(views, "slots").held == 0
            with pytest.raises(BudgetError):
                await use(here, 101)

    run(main())


def test_a_limit_that_went_two_changes_ago_is_met_by_nobody_who_waits(house):
    async def main():
        async with house(tokens_in_all(1_000), slots(1)) as here:
            first = asyncio.create_task(use(here, 900, holds_s=50))
            await asyncio.sleep(1)
            waits = asyncio.create_task(use(here, 500))
            await queued(here, 1)
            for _ in range(2):
                await configure(here, slots(1))
            assert await waits == 49
            await first

    run(main())


def test_calls_that_wait_meet_a_limit_that_is_new_and_hold_what_they_can_cost_at_the_most(house):
    async def main():
        async with house(slots(1)) as here:
            first = asyncio.create_task(use(here, 1, holds_s=50))
            await asyncio.sleep(1)
            asks = [Call("claude-test", text_bytes=900, max_output_tokens=100, max_wait_s=900.0) for _ in range(2)]
            held: list[int] = []

            async def go(call: Call) -> None:
                async with here.manager.admit(call) as grant:
                    held.append(grant.asked.at_most.micro_usd)
                    grant.settle(Usage(1, output_tokens=1))

            waits = [asyncio.create_task(go(call)) for call in asks]
            await queued(here, 2)
            await configure(here, slots(1), budget(1_000_000, "account:main"))
            await asyncio.gather(*waits)
            assert len(held) == 2
            assert min(held) >= 3 * 900 + 15 * 100, "a token for each byte, and all that it may write"
            assert await used(here, "micro_usd") == 2 * (3 + 15)
            await first

    run(main())


def test_a_call_that_nothing_bounds_is_told_so_when_a_budget_is_new(house):
    async def main():
        async with house(slots(1), prices=FlatPrices(reaches=Reach())) as here:
            first = asyncio.create_task(use(here, 1, holds_s=50))
            await asyncio.sleep(1)

            async def go() -> None:
                async with here.manager.admit(Call("claude-test", text_bytes=10, media=1, max_wait_s=900.0)):
                    pass

            waits = asyncio.create_task(go())
            await queued(here, 1)
            await configure(here, slots(1), budget(1_000_000, "account:main"))
            with pytest.raises(UnboundedError):
                await waits
            await first

    run(main())


def closed(for_s: float, here) -> MaintenanceRule:
    begins_s = here.clock.now_s()
    return MaintenanceRule("now", lambda _from_s, _until_s: [(begins_s, begins_s + for_s)])


def test_maintenance_that_is_new_holds_calls_and_lets_them_go_when_it_is_gone(house):
    async def main():
        async with house(slots(5)) as here:
            rules = (slots(5),)
            await configure(here, *rules, maintenance=[closed(3_600, here)])
            waits = [asyncio.create_task(use(here, 1)) for _ in range(3)]
            await asyncio.sleep(100)
            assert len(here.manager.queue()) == 3
            await configure(here, *rules)
            assert await asyncio.gather(*waits) == [100, 100, 100]

    run(main())


def test_policies_model_rules_and_retries_are_as_ordered_from_then_on(house):
    async def main():
        async with house(rate("requests", 6, burst=1)) as here:
            await use(here, 1)
            log: list[str] = []

            async def go(name: str, priority: int) -> None:
                await use(here, 1, standing=Standing(priority))
                log.append(name)

            waits = [asyncio.create_task(go(*each)) for each in (("low", -5), ("high", 5))]
            await queued(here, 2)
            out = ModelRule("out", models="claude-*", then="refuse")
            await configure(here, rate("requests", 6, burst=1), scheduling=Scheduling("priority"), model_rules=[out])
            await asyncio.gather(*waits)
            assert log == ["high", "low"]
            with pytest.raises(RuledOutError):
                await use(here, 1, may_degrade=True)

    run(main())


def test_a_reservation_is_kept_while_its_limit_is_gone(house):
    async def main():
        async with house(tokens_in_all(1_000)) as here:
            now_s = int(here.clock.now_s())
            (limit,) = here.manager.limits_met(Scopes(account="main"), "claude-test")
            wanted = Wanted("p1", "key:mine", 600, now_s, now_s + 3_600)
            assert isinstance(await here.manager.reserve(wanted, limit), Planned)
            await configure(here)
            (view,) = await here.manager.reservations()
            assert (view.is_kept, view.dimension) == (False, "input_tokens")
            assert await use(here, 5_000) == 0
            await configure(here, tokens_in_all(1_000))
            (view,) = await here.manager.reservations()
            assert (view.is_kept, view.free) == (True, 600)

    run(main())


def test_a_store_that_fails_leaves_all_as_it_was():
    async def main():
        async with open_small_house(rate("requests", 6, burst=1)) as here:

            async def broken(_prefix):
                raise StoreError("the disk is full")

            here.levels.names, kept = broken, here.levels.names
            with pytest.raises(StoreError):
                await configure(here, rate("requests", 60, burst=1))
            here.levels.names = kept
            assert level_of(await here.manager.limits(), "requests").amount == 6

    run(main())
