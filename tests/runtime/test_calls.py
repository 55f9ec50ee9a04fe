"""The life of a call: sent, retried, cut off, settled once and recorded once."""

import asyncio
from dataclasses import replace

import pytest
from small_house import budget, level_of, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import CallerError, CallerGoneError, ProviderError, StoreError, UnknownModelError
from headgate.core.ledger import UsageQuery
from headgate.core.limits import Window
from headgate.core.retries import Failure
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Fate, Request
from headgate.runtime.calls import Call
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
OVERLOADED = Reply(failure=Failure("overloaded", "overloaded_error", 529))
LIMITS = (rate("input_tokens", 6_000_000), rate("output_tokens", 6_000_000), rate("requests", 6_000), slots(5))


def call(**facts) -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=100, **facts)


async def carry(house, what: Call | None = None) -> bytes:
    async with house.manager.carry(what or call(), REQUEST) as carried:
        return b"".join([chunk async for chunk in house.manager.read(carried)])


async def total(house):
    (group,) = await house.manager.usage(UsageQuery())
    return group


async def held(house) -> int:
    return sum(view.held for view in await house.manager.limits())


def test_a_call_is_recorded_with_what_it_used_and_nothing_stays_held(house):
    async def main():
        async with house(*LIMITS) as here:
            assert await carry(here, call(scopes=Scopes(run="r", agent="a"))) == b"piece 0piece 1"
            (group,) = await here.manager.usage(UsageQuery(("account", "run", "agent", "model", "state")))
            assert group.group == {
                "account": "main",
                "run": "r",
                "agent": "a",
                "model": "claude-test",
                "state": "done",
            }
            assert (group.requests, group.input_tokens, group.output_tokens) == (1, 100, 50)
            assert group.cost_micro_usd == 100 * 3 + 50 * 15
            assert await held(here) == 0
            assert level_of(await here.manager.limits(), "input_tokens").used == 100

    run(main())


def test_an_overloaded_provider_is_tried_again_and_each_attempt_is_a_row(house):
    async def main():
        provider = ScriptedProvider([OVERLOADED, OVERLOADED, Reply()])
        async with house(*LIMITS, provider=provider) as here:
            await carry(here)
            first, second, third = (at_s for at_s, _request in provider.sent)
            assert 0.25 <= second - first <= 0.5
            assert 0.5 <= third - second <= 1.0
            group = await total(here)
            assert (group.requests, group.failed, group.output_tokens) == (3, 2, 50)
            assert await held(here) == 0

    run(main())


def test_a_call_that_is_tried_again_keeps_its_place_in_the_lane(house):
    async def main():
        provider = ScriptedProvider([OVERLOADED, OVERLOADED, *[Reply()] * 20])
        async with house(rate("requests", 60, burst=1), provider=provider) as here:
            first = asyncio.create_task(carry(here, call(id="first")))
            await asyncio.sleep(0.1)
            others = [asyncio.create_task(carry(here, call(id=str(number)))) for number in range(15)]
            await first
            assert sum(task.done() for task in others) <= 3, "those that came later went before it"
            await asyncio.gather(*others)

    run(main())


def test_a_retry_after_is_honoured_in_full(house):
    async def main():
        limited = Reply(failure=Failure("limited", "rate_limit_error", 429, retry_after_s=20))
        provider = ScriptedProvider([limited, Reply()])
        async with house(*LIMITS, provider=provider) as here:
            await carry(here)
            (first, _), (second, _) = provider.sent
            assert 20 <= second - first <= 22

    run(main())


@pytest.mark.parametrize(
    "failure",
    [
        Failure("rejected", "invalid_request_error", 400),
        Failure("limited", "enforced_spend_limit_reached", 429, retryable=False),
        Failure("limited", "rate_limit_error", 429, retry_after_s=10_000),
    ],
)
def test_what_a_retry_cannot_change_goes_to_the_caller(house, failure):
    async def main():
        provider = ScriptedProvider([Reply(failure=failure), Reply()])
        async with house(*LIMITS, provider=provider) as here:
            async with here.manager.carry(call(), REQUEST) as carried:
                assert carried.answer.failure == failure
            assert len(provider.sent) == 1
            assert (await total(here)).failed == 1

    run(main())


def test_retries_are_bounded(house):
    async def main():
        provider = ScriptedProvider([Reply(failure=Failure("connection", "refused", sent=False))])
        async with house(*LIMITS, provider=provider) as here:
            with pytest.raises(ProviderError):
                await carry(here)
            assert len(provider.sent) == 4
            group = await total(here)
            assert (group.requests, group.attempts, group.failed, group.input_tokens) == (0, 4, 4, 0)
            assert level_of(await here.manager.limits(), "input_tokens").used == 0
            assert await held(here) == 0

    run(main())


def test_nothing_is_retried_once_a_byte_has_gone_to_the_caller(house):
    async def main():
        provider = ScriptedProvider([Reply(pieces=5, breaks_after=2)])
        async with house(*LIMITS, provider=provider) as here:
            with pytest.raises(ProviderError):
                await carry(here)
            assert len(provider.sent) == 1
            group = await total(here)
            assert (group.failed, group.input_tokens) == (1, 100)
            assert await held(here) == 0

    run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.5, 2.5])
def test_a_caller_that_goes_away_cancels_upstream_and_what_was_used_is_settled(house, after_s):
    async def main():
        provider = ScriptedProvider([Reply(pieces=4, pause_s=1)])
        async with house(*LIMITS, provider=provider) as here:
            task = asyncio.create_task(carry(here))
            await asyncio.sleep(after_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.001)
            assert provider.open == 0
            assert await held(here) == 0
            if provider.sent:
                (group,) = await here.manager.usage(UsageQuery(("state",)))
                assert group.group["state"] == "cancelled"
                assert group.input_tokens > 0

    run(main())


def test_a_caller_error_in_the_block_is_told_as_cancelled(house):
    async def main():
        async with house(*LIMITS) as here:
            with pytest.raises(CallerGoneError):
                async with here.manager.carry(call(), REQUEST):
                    raise CallerGoneError("gone")
            (group,) = await here.manager.usage(UsageQuery(("state",)))
            assert group.group["state"] == "cancelled"

    run(main())


def test_settling_says_nothing_settles_at_the_estimate(house):
    async def main():
        async with house(*LIMITS) as here:
            async with here.manager.admit(call()):
                pass
            group = await total(here)
            assert (group.estimated, group.output_tokens) == (1, 100)
            assert group.input_tokens > 0

    run(main())


def test_input_is_settled_as_soon_as_the_stream_tells_it(house):
    async def main():
        provider = ScriptedProvider([Reply(pieces=10, pause_s=1)])
        limits = (rate("input_tokens", 60, burst=1000), rate("output_tokens", 60, burst=1000))
        async with house(*limits, provider=provider) as here:
            task = asyncio.create_task(carry(here))
            await asyncio.sleep(0.5)
            assert level_of(await here.manager.limits(), "input_tokens").held > 100
            await asyncio.sleep(1)
            view = level_of(await here.manager.limits(), "input_tokens")
            assert (view.held, view.used) == (0, 100)
            assert level_of(await here.manager.limits(), "output_tokens").held == 100
            await task

    run(main())


def test_an_unknown_model_is_refused_before_anything_is_counted(house):
    async def main():
        async with house(*LIMITS) as here:
            with pytest.raises(UnknownModelError, match="gpt-unknown"):
                await carry(here, replace(call(), model="gpt-unknown"))
            assert await here.manager.usage(UsageQuery()) == [] or (await total(here)).requests == 0

    run(main())


class FailingLedger(MemoryLedgerStore):
    def __init__(self) -> None:
        super().__init__()
        self.full = False

    async def finish(self, attempt):
        if self.full:
            raise StoreError("disk full")
        return await super().finish(attempt)

    async def begin(self, attempt, when=None):
        if self.full:
            raise StoreError("disk full")
        return await super().begin(attempt, when)


def test_an_outcome_that_cannot_be_written_is_written_later(house):
    async def main():
        ledger = FailingLedger()
        async with house(*LIMITS, ledger=ledger) as here:
            async with here.manager.carry(call(), REQUEST) as carried:
                _ = [chunk async for chunk in here.manager.read(carried)]
                ledger.full = True
            with pytest.raises(StoreError):
                await carry(here)
            assert len(here.provider.sent) == 1, "what cannot be recorded is not sent"
            ledger.full = False
            await asyncio.sleep(60)
            group = await total(here)
            assert (group.requests, group.output_tokens, group.estimated) == (1, 50, 0)
            assert await held(here) == 0

    run(main())


def test_a_long_call_keeps_its_hold(house):
    async def main():
        provider = ScriptedProvider([Reply(pieces=2, pause_s=900)])
        async with house(*LIMITS, provider=provider) as here:
            task = asyncio.create_task(carry(here))
            await asyncio.sleep(890)
            assert level_of(await here.manager.limits(), "slots").held == 1
            await task
            assert await held(here) == 0

    run(main())


@pytest.mark.parametrize("fate", [None, Fate(Usage(90, output_tokens=7)), Fate(NO_USAGE, arrived=False)])
def test_what_a_dead_process_held_is_settled_once_by_whoever_comes_next(house, fate):
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        alive = {"first": True}

        def is_alive(owner: str) -> bool:
            return alive.get(owner, True)

        never = ScriptedProvider([Reply(pieces=2, pause_s=1e6)])
        async with house(*LIMITS, stores=stores, owner="first", alive=is_alive, provider=never) as first:
            task = asyncio.create_task(carry(first))
            await asyncio.sleep(1)
            (row,) = await stores[1].in_flight()
            alive["first"] = False  # as if it had been killed: its task goes on here, but settles nothing any more

            fates = {} if fate is None else {row.id: fate}
            asker = ScriptedProvider(fates=fates)
            async with (
                house(*LIMITS, stores=stores, owner="second", alive=is_alive, provider=asker) as second,
                house(*LIMITS, stores=stores, owner="third", alive=is_alive, provider=asker) as third,
            ):
                await second.manager.recover()
                await third.manager.recover()
                views = await second.manager.limits()
                assert level_of(views, "slots").held == 0
                assert await held(second) == 0
                (group,) = await second.manager.usage(UsageQuery(("state",)))
                if fate is None:
                    assert group.group["state"] == "lost"
                    assert group.input_tokens == row.usage.input_tokens
                    assert level_of(views, "output_tokens").used == 100
                else:
                    assert group.group["state"] == "reconciled"
                    assert (group.input_tokens, group.output_tokens) == (
                        fate.usage.input_tokens,
                        fate.usage.output_tokens,
                    )
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await total(first)).attempts == 1

    run(main(), max_virtual_s=1e9)


def test_input_that_is_told_again_at_the_end_is_charged_in_full(house):
    async def main():
        provider = ScriptedProvider(
            [Reply(usage=Usage(2_000, output_tokens=5), pieces=3, pause_s=1, restated_input=30_000)]
        )
        day = LimitRule("run:*", Window("", "run:*", "input_tokens", 10**6, Calendar("day")))
        async with house(*LIMITS, day, provider=provider) as here:
            await carry(here, call(scopes=Scopes(run="r")))
            views = [view for view in await here.manager.limits() if view.scope == "run:r"]
            assert [(view.used, view.held) for view in views] == [(30_000, 0)]
            assert (await total(here)).input_tokens == 30_000

    run(main())


def test_a_body_that_cannot_be_sent_costs_nothing(house):
    async def main():
        def refuse(_request):
            raise CallerError("stream_options stands there twice")

        async with house(*LIMITS, provider=ScriptedProvider(refuse)) as here:
            with pytest.raises(CallerError):
                await carry(here)
            group = await total(here)
            assert (group.input_tokens, group.output_tokens, group.cost_micro_usd) == (0, 0, 0)
            assert all(view.used == view.held == 0 for view in await here.manager.limits())

    run(main())


def test_the_same_call_twice_at_once_is_refused(house):
    async def main():
        async with house(*LIMITS) as here:
            what = call()
            outcomes = await asyncio.gather(carry(here, what), carry(here, what), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [bytes, CallerError]
            assert (await total(here)).requests == 1
            assert await held(here) == 0

    run(main())


def test_names_with_spaces_keep_their_limits(house):
    async def main():
        async with house(*LIMITS, budget(10_000, scope="agent:*")) as here:
            await carry(here, call(scopes=Scopes(agent="fix the bug")))
            views = [view for view in await here.manager.limits() if view.scope == "agent:fix_the_bug"]
            assert views[0].used > 0

    run(main())
