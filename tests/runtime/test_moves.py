"""Calls that wait for one account go to another of the pool when that pays: in virtual time, over a memory store."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_house import open_small_house, rate, slots

from headgate.adapters.sqlite.stores import open_database
from headgate.core.accounts import Account
from headgate.core.amounts import Amounts, demand
from headgate.core.claims import claim
from headgate.core.errors import DeadlineError
from headgate.core.instants import to_ns
from headgate.core.limits import Window
from headgate.core.retries import Failure
from headgate.core.scopes import LimitRule, Scopes, lane_of
from headgate.core.spans import OpenedByUse
from headgate.core.usage import Usage
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.runtime.moves import MOST_PASSED
from headgate.runtime.reservations import CLAIMS
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

TWO = (Account("a", "anthropic"), Account("b", "anthropic"))
WARM = {"text_bytes": 40_000, "tokens": None}
ILL_FOR_5_S = Reply(failure=Failure("server", "api_error", 500, retry_after_s=5.0))


def on(account: str, rule) -> LimitRule:
    return rule(scope=f"account:{account}")


def tokens_on(account: str, amount: int, burst: int) -> LimitRule:
    return rate("input_tokens", amount, burst, scope=f"account:{account}")


def slots_on(account: str, amount: int = 1) -> LimitRule:
    return slots(amount, scope=f"account:{account}")


def pooled(*rules: LimitRule, replies: dict[str, list[Reply]] | None = None, accounts=TWO, **parts):
    scripted = {account.name: ScriptedProvider((replies or {}).get(account.name, [Reply()])) for account in accounts}
    return open_small_house(*rules, accounts=accounts, providers=scripted, **parts)


class Stage:
    """A house with a pool, and who was served where and when."""

    def __init__(self, here) -> None:
        self.here = here
        self.began_s = asyncio.get_running_loop().time()
        self.served: list[tuple[str, str, float]] = []

    @property
    def now_s(self) -> float:
        return asyncio.get_running_loop().time() - self.began_s

    async def call(
        self,
        name: str,
        lasts_s: float = 0.0,
        *,
        tokens: int | None = 100,
        session: str | None = None,
        account: str | None = None,
        **more,
    ) -> str:
        what = Call(
            "claude-test",
            input_tokens=tokens,
            max_output_tokens=1,
            scopes=Scopes(session=session, account=account),
            **{"max_wait_s": 3_600.0, **more},
        )
        async with self.here.manager.admit(what) as grant:
            self.served.append((name, grant.account, self.now_s))
            await asyncio.sleep(lasts_s)
            grant.settle(Usage(tokens or 1))
        return grant.account

    def begin(self, name: str, lasts_s: float = 0.0, **more) -> asyncio.Task[str]:
        return asyncio.create_task(self.call(name, lasts_s, **more), name=name)

    async def carry(self) -> str:
        what = Call("claude-test", input_tokens=100, max_output_tokens=1, max_wait_s=3_600.0)
        async with self.here.manager.carry(what, Request("POST", "/v1/messages", (), b"{}", what.id)) as exchange:
            async for _chunk in self.here.manager.read(exchange):
                pass
        self.served.append((what.id, exchange.grant.account, self.now_s))
        return exchange.grant.account

    async def all_is_given_back(self) -> None:
        assert all(view.held == 0 for view in await self.here.manager.limits())
        assert await self.here.levels.names("hold/") == []


def test_a_call_goes_where_a_slot_becomes_free_first(run_on):
    async def main(stage):
        busy = [stage.begin("on a", 50, account="a"), stage.begin("on b", 5, account="b")]
        await asyncio.sleep(1)
        waiting = [stage.begin(f"call {number}", 2) for number in range(3)]
        await asyncio.gather(*waiting)
        assert [(name, account, round(at_s)) for name, account, at_s in stage.served[2:]] == [
            ("call 0", "b", 5), ("call 1", "b", 7), ("call 2", "b", 9)
        ]  # fmt: skip
        await asyncio.gather(*busy)

    run_on(main, slots_on("a"), slots_on("b"))


def test_calls_go_to_an_account_that_has_recovered_one_first_and_then_all(run_on):
    async def main(stage):
        assert await stage.carry() == "a", "b has failed for it"
        await stage.call("fills a", tokens=900, account="a")
        waiting = [asyncio.create_task(stage.carry()) for _ in range(4)]
        await asyncio.gather(*waiting)
        assert [account for _name, account, _at_s in stage.served[2:]] == ["b"] * 4
        assert [round(at_s) for _name, _account, at_s in stage.served[2:]] == [6, 7, 7, 7], "each takes a second"
        first = stage.here.manager.pool.choices[-4]
        assert (first.left, first.choice.account) == ("a", "b")
        assert "it would take" in dict(first.choice.others)["a"]

    run_on(main, tokens_on("a", 120, 1_000), replies={"b": [ILL_FOR_5_S, Reply(head_s=1)]}, first="b")


@pytest.mark.parametrize("ends", ["fails", "is cancelled"])
def test_those_who_wait_learn_that_the_call_which_tried_an_ill_account_has_come_to_nothing(run_on, ends):
    """They waited for its word, and asked again only when something happened to their own account."""

    async def main(stage):
        pool = stage.here.manager.pool
        busy = stage.begin("on a", 59, account="a")
        pool.failed("b", "claude-test", Failure("server", "api_error", 500, retry_after_s=5.0))
        await asyncio.sleep(5)
        trying = stage.begin("tries b", 30)
        await asyncio.sleep(1)
        assert stage.served[-1][1] == "b"
        waiting = stage.begin("waits")
        await asyncio.sleep(1)
        assert not waiting.done()
        if ends == "fails":
            pool.failed("b", "claude-test", Failure("server", "api_error", 500, retry_after_s=10.0))
        else:
            trying.cancel()
        assert await waiting == "b"
        assert stage.served[-1][2] == pytest.approx(17 if ends == "fails" else 7, abs=0.1)
        await asyncio.gather(busy, trying, return_exceptions=True)

    run_on(main, slots_on("a"))


def test_a_call_that_is_cancelled_in_the_moment_in_which_it_is_admitted_elsewhere_gives_that_back(run_on):
    async def cancel(waits, admitted):
        while not admitted.done():  # noqa: ASYNC110 - it has to look before whoever waits for it is woken
            await asyncio.sleep(0)
        assert not waits.done()
        waits.cancel()

    async def main(stage):
        busy = [stage.begin("on a", 50, account="a"), stage.begin("on b", 5, account="b")]
        await asyncio.sleep(1)
        waits = stage.begin("waits")
        await asyncio.sleep(1)
        (waiting,) = stage.here.manager._admission.waiting()
        busy[1].cancel()
        await cancel(waits, waiting.admitted)
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert waiting.ticket.scopes.account == "b"
        async with asyncio.timeout(1):
            assert await stage.call("next") == "b"
        await asyncio.gather(*busy, return_exceptions=True)

    run_on(main, slots_on("a"), slots_on("b"))


def test_a_call_goes_elsewhere_when_its_wait_turns_out_longer(run_on):
    async def main(stage):
        """a would have room in 3 s and b in 6, but another takes a's room first."""
        await stage.call("fills a", tokens=1_000, account="a")
        await stage.call("fills b", tokens=1_000, account="b")
        waiting = stage.begin("waits", tokens=600)
        await asyncio.sleep(1)
        assert waiting.done() is False
        a = stage.here.manager.limits_met(Scopes(account="a"), "claude-test")[0]

        def another_process_takes(records):
            at_ns, backlog, held, lapse_ns, generation = records[a.name]
            return {a.name: (at_ns, backlog + 50 * 12_000 * 60_000_000_000 // 60, held, lapse_ns, generation)}, None

        await stage.here.levels.transact([a.name], another_process_takes)
        assert await waiting == "b"
        assert stage.served[-1][2] == pytest.approx(6, abs=0.1)

    run_on(main, tokens_on("a", 12_000, 1_000), tokens_on("b", 6_000, 1_000))


def test_a_call_goes_where_a_plan_window_ends_sooner_than_was_thought(run_on):
    async def main(stage):
        here, b = stage.here, "account:b * input_tokens plan-18000s"
        await stage.call("spends b", tokens=1_000, account="b")
        await stage.call("fills a", tokens=1_000, account="a")
        waiting = stage.begin("waits", tokens=1_000)
        await asyncio.sleep(5)
        limit = next(each for each in here.manager.limits_met(Scopes(account="b"), "claude-test") if each.name == b)

        def ends_now(records):
            now_ns = round(here.clock.now_s() * 1e9)
            return {b: limit.moved(records.get(b), now_ns, now_ns + 1_000)}, None

        await here.levels.transact([b], ends_now)
        here.manager._admission.on_changed()
        here.manager._admission.nudge([limit])
        assert await waiting == "b"
        assert stage.served[-1][2] == pytest.approx(5, abs=0.1)

    plan = LimitRule("account:b", Window("", "account:b", "input_tokens", 1_000, OpenedByUse(18_000)))
    run_on(main, tokens_on("a", 1_200, 1_000), plan)


@pytest.mark.parametrize(("busy_s", "served_by", "at_s"), [(20, "a", 20), (300, "b", 61)])
def test_a_call_stays_with_its_prompt_cache_as_long_as_that_is_cheaper_than_waiting(run_on, busy_s, served_by, at_s):
    """Its prompt of 10,000 tokens takes 60 s of b's rate where it is cold; nobody knows how long a's slot is taken."""

    async def main(stage):
        await warm_up(stage, "a", "s")
        busy = stage.begin("on a", busy_s, tokens=1, account="a")
        await asyncio.sleep(0)
        waiting = stage.begin("waits", session="s", **WARM)
        cold = stage.begin("cold", tokens=10)
        assert await cold == "b", "who has no prompt cache there need not wait behind it"
        assert stage.served[-1][2] == 0
        assert await waiting == served_by
        assert stage.served[-1][2] == pytest.approx(at_s, abs=1.1)
        busy.cancel()
        await asyncio.gather(busy, return_exceptions=True)

    rules = (tokens_on("a", 10_000, 20_000), tokens_on("b", 10_000, 20_000), slots_on("a"))
    run_on(main, *rules)


async def warm_up(stage: Stage, account: str, *sessions: str) -> None:
    """Let sessions write a prompt of 10,000 tokens each to a cache; the first reads it until that is foreseen."""
    turns = [(sessions[0], turn) for turn in range(110)] + [(session, 0) for session in sessions[1:]]
    for session, turn in turns:
        what = Call(
            "claude-test",
            text_bytes=40_000,
            max_output_tokens=1,
            scopes=Scopes(session=session, account=account),
            max_wait_s=600,
        )
        usage = Usage(10, 10_000) if turn else Usage(10, cache_write_5m_tokens=10_000)
        async with stage.here.manager.admit(what) as grant:
            grant.settle(usage)
        stage.here.manager.pool.succeeded("claude-test", grant.attempt.scopes)
    await asyncio.sleep(120)  # the accounts' rates are full again
    stage.began_s = asyncio.get_running_loop().time()


def test_those_behind_a_call_that_stays_are_asked_too(run_on):
    async def main(stage):
        sessions = [f"s{number}" for number in range(MOST_PASSED - 1)]
        await warm_up(stage, "a", *sessions)
        busy = [stage.begin("on a", 50, tokens=1, account="a"), stage.begin("on b", 5, tokens=1, account="b")]
        await asyncio.sleep(0)
        staying = [stage.begin(session, session=session, **WARM) for session in sessions]
        await asyncio.sleep(0)
        cold = stage.begin("cold", tokens=10)
        assert await cold == "b"
        assert stage.served[-1] == ("cold", "b", 5)
        assert Counter(await asyncio.gather(*staying)) == {"a": len(staying)}
        await asyncio.gather(*busy)

    rules = (tokens_on("a", 10**6, 10**6), tokens_on("b", 10_000, 20_000), slots_on("a"), slots_on("b"))
    run_on(main, *rules)


def test_a_call_that_could_not_go_in_time_here_goes_elsewhere_before_it_is_refused(run_on):
    async def main(stage):
        await stage.call("fills a", tokens=1_000, account="a")
        assert await stage.call("soft", tokens=600, max_wait_s=10.0) == "b", "over its soft ceiling, but in time"
        with pytest.raises(DeadlineError):
            await stage.call("none", tokens=1_000, max_wait_s=10.0)

    plan = LimitRule("account:b", Window("", "account:b", "input_tokens", 1_000, OpenedByUse(18_000)))
    accounts = (Account("a", "anthropic"), Account("b", "anthropic", soft_ceiling=0.0))
    run_on(main, tokens_on("a", 600, 1_000), plan, accounts=accounts, settle=("b", 1))


def test_a_move_that_does_not_pay_changes_nothing(run_on):
    """b looks free from here, but another process has taken it: the call stays first at a."""

    async def main(stage):
        here = stage.here
        busy = [stage.begin("on a", 30, account="a"), stage.begin("on b", 5, account="b")]
        await asyncio.sleep(1)
        first, second = stage.begin("first"), stage.begin("second")
        await asyncio.sleep(1)
        b = next(each for each in here.manager.limits_met(Scopes(account="b"), "claude-test"))
        taking = here.levels.transact

        async def taken_by_another(names, step):
            names = list(names)

            def full(records):
                if b.name in names:
                    held, lapse_ns, generation = records.get(b.name, (0, 0, 0))
                    full_ns = round((here.clock.now_s() + 1_000) * 1e9)
                    records = {**records, b.name: (max(1, held), max(lapse_ns, full_ns), generation)}
                return step(records)

            return await taking(names, full)

        here.levels.transact = taken_by_another
        await asyncio.gather(first, second)
        here.levels.transact = taking
        assert [(name, account) for name, account, _at_s in stage.served[2:]] == [("first", "a"), ("second", "a")]
        await asyncio.gather(*busy)

    run_on(main, slots_on("a"), slots_on("b"), is_all_given_back=False)


def test_a_call_stays_where_it_is_while_another_process_waits_for_the_other_accounts_room(run_on):
    """b has a slot, but it is claimed by a call that came before, elsewhere: waiting there would be no earlier."""

    async def main(stage):
        here = stage.here
        busy = [stage.begin("on a", 60, account="a"), stage.begin("on b", 25, account="b")]
        await asyncio.sleep(1)
        (b,) = here.manager.limits_met(Scopes(account="b"), "claude-test")
        now_s = here.clock.now_s()
        theirs = claim("elsewhere", lane_of(b), [b], demand(Amounts(slots=1)), now_s - 100, now_s)
        record = (tuple(theirs._replace(expires_ns=to_ns(now_s + 100))),)
        await here.levels.transact([CLAIMS], lambda _records: ({CLAIMS: record}, None))
        waits = stage.begin("waits")
        await asyncio.sleep(30)
        (waiting,) = here.manager._admission.waiting()
        assert (waiting.ticket.scopes.account, waiting.moves) == ("a", 0)
        assert await waits == "a"
        await asyncio.gather(*busy)

    run_on(main, slots_on("a"), slots_on("b"))


def test_a_call_that_is_cancelled_while_it_is_tried_elsewhere_gives_back_what_it_got(run_on):
    async def main(stage):
        here = stage.here
        busy = [stage.begin("on a", 50, account="a"), stage.begin("on b", 5, account="b")]
        await asyncio.sleep(1)
        waiting = stage.begin("waits")
        await asyncio.sleep(1)
        taking, tried = here.levels.transact, []

        async def slow(names, step):
            names = list(names)
            if any("account:b" in name for name in names) and not any(name.startswith("hold/") for name in names):
                outcome = await taking(names, step)
                if await here.levels.names("hold/here/" + "x") == [] and stage.now_s >= 5 and not tried:
                    holds = await here.levels.names("hold/")
                    if len(holds) > 1:  # it was admitted, and does not know it yet
                        tried.append(holds)
                        waiting.cancel()
                        await asyncio.sleep(0.5)
                return outcome
            return await taking(names, step)

        here.levels.transact = slow
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert tried, "the test met the moment that it is about"
        here.levels.transact = taking
        await asyncio.sleep(1)
        assert await stage.call("next") == "b"
        await asyncio.gather(*busy)

    run_on(main, slots_on("a"), slots_on("b"))


moments = st.floats(0, 60).map(lambda value: round(value, 1))
calls = st.lists(
    st.tuples(
        moments,
        st.sampled_from([0.5, 3.0, 12.0]),
        st.sampled_from([50, 300, 900]),
        st.none() | st.sampled_from(["s", "t", "u"]),
        st.none() | moments,
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(calls, st.lists(st.tuples(st.sampled_from("ab"), moments, st.floats(0.1, 20)), max_size=4))
def test_whatever_happens_nobody_is_admitted_twice_or_lost_and_limits_hold(asked, ills):
    async def main():
        rules = (slots_on("a", 2), slots_on("b", 1), tokens_on("a", 1_200, 1_000), tokens_on("b", 3_000, 1_000))
        async with pooled(*rules) as here:
            stage = Stage(here)
            running = Counter()

            async def one(number, at_s, lasts_s, tokens, session, cancelled_after_s):
                await asyncio.sleep(at_s)
                task = asyncio.create_task(held(number, lasts_s, tokens, session))
                if cancelled_after_s is not None:
                    done, _ = await asyncio.wait([task], timeout=cancelled_after_s)
                    if not done:
                        task.cancel()
                await asyncio.gather(task, return_exceptions=cancelled_after_s is not None)
                return task

            async def held(number, lasts_s, tokens, session):
                what = Call(
                    "claude-test",
                    input_tokens=tokens,
                    max_output_tokens=1,
                    scopes=Scopes(session=session),
                    max_wait_s=36_000,
                )
                async with here.manager.admit(what) as grant:
                    stage.served.append((str(number), grant.account, stage.now_s))
                    running[grant.account] += 1
                    assert running[grant.account] <= {"a": 2, "b": 1}[grant.account]
                    views = await here.manager.limits()
                    assert all(view.used + view.held <= view.burst for view in views if view.kind == "rate")
                    try:
                        await asyncio.sleep(lasts_s)
                    finally:
                        running[grant.account] -= 1
                    grant.settle(Usage(tokens))
                    here.manager.pool.succeeded("claude-test", grant.attempt.scopes)

            async def ill(account, at_s, for_s):
                await asyncio.sleep(at_s)
                here.manager.pool.failed(account, "claude-test", Failure("overloaded", "busy", 529, for_s))

            async with asyncio.timeout(3_000):
                tasks = await asyncio.gather(
                    *(one(n, *each) for n, each in enumerate(asked)), *(ill(*each) for each in ills)
                )
            names = [name for name, _account, _at_s in stage.served]
            assert len(names) == len(set(names)), "nobody went twice"
            for number, (task, each) in enumerate(zip(tasks[: len(asked)], asked, strict=True)):
                if each[4] is None:
                    assert task.exception() is None
                    assert str(number) in names, "nobody was lost"
            await asyncio.sleep(0)
            await stage.all_is_given_back()

    run(main())


@pytest.fixture
def run_on():
    def run_with(main, *rules, first=None, settle=None, is_all_given_back=True, **parts):
        async def whole():
            async with pooled(*rules, **parts) as here:
                stage = Stage(here)
                if first is not None:  # of equals the first goes first
                    here.manager.pool._accounts = tuple(
                        sorted(here.manager.accounts, key=lambda each: each.name != first)
                    )
                if settle is not None:
                    account, tokens = settle
                    await stage.call("settles", tokens=tokens, account=account)
                await main(stage)
                if is_all_given_back:
                    await asyncio.sleep(0)
                    await stage.all_is_given_back()

        run(whole())

    return run_with


def test_a_call_goes_where_another_process_gives_a_slot_back(tmp_path):
    """Two processes on one file, in real time: the store tells of the change, nobody asks again and again."""

    async def main():
        async with open_database(tmp_path / "one.sqlite") as here, open_database(tmp_path / "one.sqlite") as there:
            rules = (slots_on("a"), slots_on("b"))
            async with (
                pooled(*rules, stores=(here.levels, here.ledger)) as one,
                pooled(*rules, stores=(there.levels, there.ledger), owner="there") as other,
                one.manager.admit(Call("claude-test", scopes=Scopes(account="a"))),
            ):
                stage = Stage(one)
                async with other.manager.admit(Call("claude-test", scopes=Scopes(account="b"))):
                    waiting = stage.begin("waits")
                    while not one.manager.queue():  # noqa: ASYNC110 - the store's thread sets no event here
                        await asyncio.sleep(0.01)
                async with asyncio.timeout(30):
                    assert await waiting == "b"

    asyncio.run(main())
