"""Several accounts of one owner as one pool: in virtual time, over a memory store."""

import asyncio
from asyncio import run as run_in_real_time
from collections import Counter
from dataclasses import replace

import pytest
from small_house import open_small_house, rate, slots

from headgate.adapters.sqlite.stores import open_database
from headgate.core.accounts import Account
from headgate.core.errors import DeadlineError
from headgate.core.limits import Window
from headgate.core.notices import Notices, OverageNotice, PlanNotice
from headgate.core.planning import Planned, Wanted
from headgate.core.retries import Failure
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import OpenedByUse
from headgate.core.usage import Usage
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.runtime.reservations import Reservations
from headgate.runtime.sight import LOOK_EVERY_S
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

EPOCH_S = 1_750_000_000.0  # where virtual clocks begin

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
            choice = here.manager.pool.choices[-1].choice
            before = len(here.manager.pool.choices)
            assert await carry(here) == "b"
            assert len(here.manager.pool.choices) == before + 1, "its circuit is open: it is not tried"
            why = dict(here.manager.pool.choices[-1].choice.others)
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


def test_a_conversation_stays_where_its_prompt_cache_is_from_its_second_call_on(house):
    """While they bounced, what they were foreseen to read was never there, and so nothing was foreseen."""

    async def turn(here, session: str, number: int) -> str:
        what = Call("claude-test", text_bytes=40_000 + number, max_output_tokens=1, scopes=Scopes(session=session))
        async with here.manager.admit(what) as grant:
            written = Usage(10, cache_write_5m_tokens=10_000) if number == 0 else Usage(10, 10_000)
            grant.settle(written)
            here.manager.pool.succeeded("claude-test", grant.attempt.scopes)
        return grant.account

    async def main():
        async with pooled(house, *of_each("requests", 600)) as here:
            served = {f"s{number}": [await turn(here, f"s{number}", 0)] for number in range(6)}
            for number in range(1, 5):
                for session, accounts in served.items():
                    accounts.append(await turn(here, session, number))
            assert Counter(each[0] for each in served.values()) == {"a": 3, "b": 3}
            assert all(len(set(each)) == 1 for each in served.values()), served

    run(main())


def test_calls_without_a_prompt_cache_go_where_there_is_room_whatever_their_session(house):
    async def main():
        async with pooled(house, *of_each("requests", 600)) as here:
            assert Counter([await use(here, session="s") for _ in range(10)]) == {"a": 5, "b": 5}

    run(main())


@pytest.mark.parametrize("status", [401, 402, 403])
def test_an_account_that_needs_its_owner_is_out_and_that_is_said_once(house, caplog, status):
    refused = Reply(failure=Failure("rejected", "authentication_error", status, retryable=False))

    async def main():
        async with pooled(house, replies={"a": [refused] * 2 + [Reply()]}) as here:
            assert [await carry(here) for _ in range(5)] == ["b"] * 5
            assert len(here.manager.providers["a"].sent) == 1, "it is not tried again"
            why = dict(here.manager.pool.choices[-1].choice.others)["a"]
            assert f"{status} authentication_error" in why
            await asyncio.sleep(301)
            assert await carry(here) == "b", "its key is tried by one call, which goes on elsewhere"
            assert len(here.manager.providers["a"].sent) == 2
            await asyncio.sleep(301)
            assert await carry(here) == "a"
        said = [record.getMessage() for record in caplog.records if record.name == "headgate.accounts"]
        assert [line.split(";")[0][:14] for line in said] == ["account a: its", "account a serv"], said

    run(main())


def test_one_refused_key_is_out_for_all_models_and_one_model_that_is_not_allowed_is_not(house):
    def failing(status):
        return Failure("rejected", "no", status, retryable=False)

    async def main():
        async with pooled(house) as here:
            health = here.manager.pool.health
            health.failed("a", "claude-test", failing(403))
            assert health.circuit("a", "claude-test").is_out
            assert not health.circuit("a", "claude-other").is_out
            health.failed("a", "claude-test", failing(401))
            assert health.circuit("a", "claude-other").is_out
            assert not health.circuit("b", "claude-test").is_out
            health.failed("a", "claude-test", failing(400))
            health.succeeded("a", "claude-test")
            assert health.circuits_of("a") == []

    run(main())


def test_what_the_call_itself_got_wrong_goes_to_its_caller_and_makes_nobody_ill(house):
    wrong = Reply(failure=Failure("rejected", "invalid_request_error", 400, retryable=False))

    async def main():
        async with pooled(house, replies={"a": [wrong]}) as here:
            what = call()
            async with here.manager.carry(what, Request("POST", "/v1/messages", (), b"{}", what.id)) as exchange:
                assert exchange.answer.status == 400
            assert here.manager.pool.health.circuits_of("a") == []
            assert here.manager.providers["b"].sent == []

    run(main())


@pytest.mark.parametrize(
    "failure",
    [
        Failure("connection", "not_sent_connect", sent=False),
        Failure("connection", "no_answer_reset"),
        Failure("connection", "not_sent_certificate", retryable=False, sent=False),
        Failure("overloaded", "overloaded_error", 529),
        Failure("overloaded", "overloaded_error", 529, retryable=False),
        Failure("limited", "rate_limit_error", 429, retry_after_s=7_200.0),
        Failure("limited", "insufficient_quota", 429, retryable=False),
        Failure("server", "api_error", 500, retry_after_s=30.0),
    ],
)
def test_whatever_fails_on_the_providers_side_before_the_first_byte_fails_over_at_once(house, failure):
    async def main():
        async with pooled(house, replies={"a": [Reply(failure=failure)]}) as here:
            began_s = asyncio.get_running_loop().time()
            for _ in range(3):
                assert await carry(here) == "b"
            assert asyncio.get_running_loop().time() == began_s
            rows = await here.ledger.attempts(None)
            first = [(row.scopes.account, row.state) for row in rows[:2]]
            assert first == [("a", "failed"), ("b", "done")], "both attempts are on record"

    run(main())


def test_more_calls_fail_over_than_an_account_may_have_retries(house):
    """Its retry budget keeps an account from being overrun; who goes elsewhere does not burden it."""

    async def main():
        async with pooled(
            house, replies={"a": [Reply(failure=Failure("connection", "no_answer_reset"), head_s=1)]}
        ) as here:
            tasks = [asyncio.create_task(carry(here)) for _ in range(60)]
            assert Counter(await asyncio.gather(*tasks)) == {"b": 60}
            assert len(here.manager.providers["a"].sent) == 60, "all were on their way when it broke"

    run(main())


def test_the_cooldown_is_what_the_provider_said_and_one_call_ends_it(house):
    limited = Reply(failure=Failure("overloaded", "overloaded_error", 529, retry_after_s=20.0))

    async def main():
        async with pooled(house, replies={"a": [limited, Reply(head_s=2)]}) as here:
            assert await carry(here) == "b"
            await asyncio.sleep(19.9)
            assert await carry(here) == "b"
            await asyncio.sleep(0.1)
            trying = asyncio.create_task(carry(here))
            await asyncio.sleep(1)
            assert await carry(here) == "b", "one tries, the others do not wait for it"
            assert "one call tries it just now" in dict(here.manager.pool.choices[-1].choice.others)["a"]
            assert await trying == "a"
            assert await carry(here) == "a"

    run(main())


def test_an_account_is_tried_again_after_the_call_that_was_to_try_it_was_refused(house):
    """Such an account was left alone for ever: one call was to try it, and was never sent."""

    async def main():
        async with pooled(house, *of_each("input_tokens", 600, 1_000)) as here:
            here.manager.pool.failed("a", "claude-test", Failure("overloaded", "busy", 529, retry_after_s=5.0))
            here.manager.pool.failed("b", "claude-test", Failure("overloaded", "busy", 529, retry_after_s=60.0))
            await asyncio.sleep(6)
            for account in "ab":
                async with here.manager.admit(replace(call(900), scopes=Scopes(account=account))) as grant:
                    grant.settle(Usage(900))
            with pytest.raises(DeadlineError):
                await here.manager.admit(replace(call(900), max_wait_s=1)).__aenter__()
            assert here.manager.pool.health.circuit("a", "claude-test").state(here.clock.now_s()) == "half_open"

    run(main())


# -- plan windows ------------------------------------------------------------------------------------------------


def plan_on(name: str, tokens: int) -> LimitRule:
    scope = f"account:{name}"
    return LimitRule(scope, Window("", scope, "input_tokens", tokens, OpenedByUse(18_000)))


def told(used: float, resets_in_s: float, *, status=None, overage=None) -> Reply:
    plan = PlanNotice(18_000, used_share=used, resets_s=EPOCH_S + resets_in_s, status=status)
    return Reply(notices=Notices(plans=(plan,), overage=overage))


def test_what_providers_tell_of_their_plans_paces_accounts_whose_windows_nobody_configured(house):
    """a has used 60 % with half of its window gone, b 30 %: b is behind its line, until it has caught up."""

    async def main():
        replies = {"a": [told(0.6, 9_000)], "b": [told(0.3, 9_000), told(0.58, 9_000), told(0.66, 9_000)]}
        async with pooled(house, replies=replies) as here:
            assert [await carry(here) for _ in range(2)] == ["a", "b"], "nothing is known yet of b"
            why = here.manager.pool.choices[-1].choice
            assert "no plan window of its is known" in why.why
            assert dict(why.others)["a"] == "its plan window is ahead of its line"
            await asyncio.sleep(1)
            assert await carry(here) == "b"
            await asyncio.sleep(1)
            assert await carry(here) == "b", "58 % of the window is still less than a's 60 %"
            await asyncio.sleep(1)
            assert await carry(here) == "a"

    run(main())


def test_a_soft_ceiling_holds_for_what_a_provider_tells_and_gives_way_where_nobody_else_can(house):
    async def main():
        accounts = (Account("a", "anthropic", soft_ceiling=0.8), Account("b", "anthropic"))
        replies = {"a": [told(0.81, 1_000)], "b": [told(0.99, 17_000)]}
        async with pooled(house, slots(1, "account:b"), replies=replies, accounts=accounts) as here:
            assert await carry(here) == "a"
            assert await carry(here) == "b", "far ahead of its line, but a is over its soft ceiling"
            why = dict(here.manager.pool.choices[-1].choice.others)["a"]
            assert why == "it is over its soft ceiling"
            async with here.manager.admit(replace(call(), scopes=Scopes(account="b"))):
                assert await use_within(here, 5.0) == "a", "b could not serve it in time"

    run(main())


async def use_within(here, max_wait_s: float, account: str | None = None) -> str:
    async with here.manager.admit(replace(call(), scopes=Scopes(account=account), max_wait_s=max_wait_s)) as grant:
        grant.settle(Usage(1))
    return grant.account


@pytest.mark.parametrize(
    ("overage", "allowed", "goes_on"),
    [
        (OverageNotice(status="allowed"), False, False),
        (OverageNotice(status="allowed"), True, True),
        (OverageNotice(status="rejected"), True, False),
        (None, True, False),
        (None, False, False),
    ],
)
def test_a_plan_that_is_used_up_is_not_gone_beyond_unless_its_owner_and_its_provider_allow_it(
    house, overage, allowed, goes_on
):
    """The provider would go on and bill it: its answers say that 100 % are used, and nothing of a refusal."""

    async def main():
        accounts = (Account("a", "anthropic", overage=allowed), Account("b", "anthropic"))
        replies = {"a": [told(1.0, 600, status="allowed", overage=overage)]}
        async with pooled(house, replies=replies, accounts=accounts) as here:
            assert await carry(here) == "a"
            served = [await carry(here) for _ in range(3)]
            assert served == ["b"] * 3, "whoever would be billed comes last"
            if goes_on:
                assert await use_within(here, 599.0, account="a") == "a"
            else:
                with pytest.raises(DeadlineError):
                    await use_within(here, 599.0, account="a")
                assert await use_within(here, 601.0, account="a") == "a", "it has been reset"

    run(main())


# -- other processes ---------------------------------------------------------------------------------------------


def test_a_process_sees_within_a_second_what_another_has_used_of_the_plans(tmp_path):
    """Two processes on one file: the one uses up most of a, and the other, which never used a, paces by that."""

    async def main():
        async with open_database(tmp_path / "one.sqlite") as here, open_database(tmp_path / "one.sqlite") as there:
            rules = (plan_on("a", 1_000), plan_on("b", 1_000))
            async with (
                pooled(open_small_house, *rules, stores=(here.levels, here.ledger)) as one,
                pooled(open_small_house, *rules, stores=(there.levels, there.ledger), owner="there") as other,
            ):
                assert await use(other, 10) == "a"
                async with one.manager.admit(replace(call(600), scopes=Scopes(account="a"))) as grant:
                    grant.settle(Usage(600))
                other.clock.step(LOOK_EVERY_S)
                assert [await use(other, 100) for _ in range(5)] == ["b"] * 5
                assert other.manager.pool.choices[-1].choice.others[0][0] == "a"

    run_in_real_time(main())


def test_choosing_looks_into_the_store_once_a_second_and_never_where_one_account_serves(house, monkeypatch):
    looks = 0
    look = Reservations.look

    async def counted(self, names):
        nonlocal looks
        looks += 1
        await look(self, names)

    monkeypatch.setattr(Reservations, "look", counted)

    async def main():
        nonlocal looks
        async with pooled(house, *of_each("requests", 6_000)) as here:
            for _ in range(50):
                await use(here)
                await asyncio.sleep(0.1)
            assert 5 <= looks <= 6
        looks = 0
        async with house(rate("requests", 6_000), rate("input_tokens", 60_000)) as here:
            for _ in range(50):
                await use(here)
                await asyncio.sleep(0.1)
            assert looks == 0

    run(main())


@pytest.mark.parametrize(("refuses", "why"), [(False, "more of waiting"), (True, "refuses calls")])
def test_calls_leave_out_an_account_under_maintenance(house, refuses, why):
    async def main():
        def spans(from_s: float, _until_s: float):
            return [(from_s - 10, from_s + 3_600)]

        maintenance = [MaintenanceRule("nightly", spans, scope="account:a", refuses=refuses)]
        async with pooled(house, *of_each("requests", 600), maintenance=maintenance) as here:
            assert [await use(here) for _ in range(5)] == ["b"] * 5
            assert why in dict(here.manager.pool.choices[-1].choice.others)["a"]

    run(main())
