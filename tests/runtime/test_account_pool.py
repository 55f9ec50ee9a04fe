"""Several accounts of one owner as one pool: in virtual time, over a memory store."""

import asyncio
from collections import Counter

import pytest
from small_house import rate

from headgate.core.accounts import Account
from headgate.core.limits import Window
from headgate.core.planning import Planned, Wanted
from headgate.core.retries import Failure
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import OpenedByUse
from headgate.core.usage import Usage
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

TWO = (Account("a", "anthropic"), Account("b", "anthropic"))
FAILS = Reply(failure=Failure("server", "api_error", 500))


def of_each(dimension: str, amount: int, burst: int | None = None) -> tuple[LimitRule, ...]:
    return tuple(rate(dimension, amount, burst, scope=f"account:{name}") for name in "ab")


def call(tokens: int = 100, session: str | None = None) -> Call:
    return Call(
        "claude-test", input_tokens=tokens, max_output_tokens=1, scopes=Scopes(session=session), max_wait_s=36_000
    )


async def use(here, tokens: int = 100, session: str | None = None) -> str:
    async with here.manager.admit(call(tokens, session)) as grant:
        grant.settle(Usage(tokens))
    return grant.account


async def carry(here) -> str:
    what = call()
    request = Request("POST", "/v1/messages", (), b"{}", what.id)
    async with here.manager.carry(what, request) as exchange:
        async for _chunk in here.manager.read(exchange):
            pass
    return exchange.grant.account


def pooled(house, *rules: LimitRule, replies: dict[str, list[Reply]] | None = None, accounts=TWO, **parts):
    scripted = {account.name: ScriptedProvider((replies or {}).get(account.name, [Reply()])) for account in accounts}
    return house(*rules, accounts=accounts, providers=scripted, **parts)


def test_calls_go_where_there_is_room_and_both_quotas_are_used(house):
    async def main():
        async with pooled(house, *of_each("input_tokens", 6_000, burst=1_000)) as here:
            started_s = asyncio.get_running_loop().time()
            served = Counter(await asyncio.gather(*(use(here, 500) for _ in range(24))))
            took_s = asyncio.get_running_loop().time() - started_s
        assert served == {"a": 12, "b": 12}
        assert took_s == pytest.approx(50, abs=1), "12,000 tokens, 2,000 at once and then 200 a second"

    run(main())


def test_an_overloaded_account_fails_over_at_once_and_is_left_alone_for_a_while(house):
    async def main():
        async with pooled(house, replies={"a": [FAILS] * 5 + [Reply()]}) as here:
            for _ in range(5):
                started_s = asyncio.get_running_loop().time()
                assert await carry(here) == "b"
                assert asyncio.get_running_loop().time() == started_s, "nobody waits for the account that failed"
            (_at, _model, choice) = here.manager.pool.choices[-1]
            before = len(here.manager.pool.choices)
            assert await carry(here) == "b"
            assert len(here.manager.pool.choices) == before + 1, "its circuit is open: it is not tried"
            why = dict(here.manager.pool.choices[-1][2].others)
            assert "closed for another" in why["a"]
            await asyncio.sleep(16)
            assert await carry(here) == "a", "one tries, and closes it again"
            assert choice.account == "b"

    run(main())


def test_a_call_that_no_account_can_serve_fails_with_the_last_error(house):
    async def main():
        async with pooled(house, replies={"a": [FAILS], "b": [FAILS]}) as here:
            what = call()
            request = Request("POST", "/v1/messages", (), b"{}", what.id)
            async with here.manager.carry(what, request) as exchange:
                assert exchange.answer.failure is not None
            assert exchange.attempts == 4, "bounded"

    run(main())


def test_the_furthest_behind_its_plan_goes_first_and_none_beyond_its_soft_ceiling(house):
    async def main():
        plans = tuple(
            LimitRule(scope, Window("", scope, "input_tokens", 100_000, OpenedByUse(18_000)))
            for scope in ("account:a", "account:b")
        )
        accounts = (Account("a", "anthropic", soft_ceiling=0.5), Account("b", "anthropic"))
        async with pooled(house, *plans, accounts=accounts) as here:
            served = [await use(here, 10_000) for _ in range(15)]
        assert Counter(served[:10]) == {"a": 5, "b": 5}, "in step with each other"
        assert Counter(served) == {"a": 6, "b": 9}, "beyond its ceiling it serves only what no other can"

    run(main())


def test_while_one_account_has_maintenance_calls_go_to_the_other(house):
    async def main():
        closed = MaintenanceRule("all day", lambda from_s, until_s: [(from_s - 100, until_s)], "account:a")
        async with pooled(house, *of_each("input_tokens", 6_000), maintenance=[closed]) as here:
            assert [await use(here) for _ in range(5)] == ["b"] * 5

    run(main())


def test_a_call_goes_to_the_account_where_something_is_reserved_for_it(house):
    async def main():
        async with pooled(house, *of_each("input_tokens", 6_000)) as here:
            now_s = int(here.clock.now_s())
            (limit,) = here.manager.limits_met(Scopes(account="b", run="mine"), "claude-test")
            planned = await here.manager.reserve(Wanted("p", "run:mine", 3_000, now_s, now_s + 60), limit)
            assert isinstance(planned, Planned)
            await asyncio.sleep(60 - 1)
            while sum(level.used for level in await here.manager.limits()) < 9_000:
                await use(here, 500)
            mine = Call("claude-test", input_tokens=500, max_output_tokens=1, scopes=Scopes(run="mine"))
            async with here.manager.admit(mine) as grant:
                grant.settle(Usage(500))
            assert grant.account == "b"
            assert grant.wait_s == 0

    run(main())
