"""Calls that begin alike: one goes first and writes the prompt cache, the others read it; nobody waits for ever."""

import asyncio
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from small_house import rate, slots

from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.prefix import prompt_marks
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.errors import DeadlineError, ProviderError
from headgate.core.ledger import UsageQuery
from headgate.core.retries import Failure
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import Scopes
from headgate.core.warm_up import LEAST_BYTES, MOST_WARM_UP_S, UNSEEN_WARM_UP_S, Mark
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.testing.in_process import InProcess
from headgate.testing.provider import Latency, ProviderSettings, SimulatedProvider
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
SHARED = {"type": "text", "text": "word" * 10_000, "cache_control": {"type": "ephemeral"}}
"""10,000 tokens."""

MARKS = (Mark(1, 2 * LEAST_BYTES, 300.0),)


def call(**facts: Any) -> Call:
    return Call("claude-test", text_bytes=40_000, max_output_tokens=100, prompt_marks=lambda: MARKS, **facts)


async def carry(house: Any, what: Call, request: Request = REQUEST) -> float:
    """Carry a call to its end; gives how long it waited."""
    async with house.manager.carry(what, request) as carried:
        async for _piece in house.manager.read(carried):
            pass
    return round(carried.waited_s, 3)


def started_s(provider: ScriptedProvider) -> list[float]:
    begin_s = provider.sent[0][0]
    return [round(at_s - begin_s, 3) for at_s, _request in provider.sent]


@pytest.mark.parametrize(
    ("warm_up", "reads", "took_s"),
    [(True, 19, (2.0, 3.0)), (False, 0, (1.0, 2.0))],
)
def test_of_twenty_agents_that_begin_alike_one_pays_for_the_prompt(house, warm_up, reads, took_s):
    simulated = SimulatedProvider(ProviderSettings(latency=Latency(1.0, 1_000.0, 0.0), mean_output_tokens=25))
    provider = AccountProvider("main", VENDORS["anthropic"], "http://provider", "sk-test-0001", InProcess(simulated))

    async def main():
        async with house(
            rate("input_tokens", 10_000_000), provider=provider, scheduling=Scheduling(warm_up=warm_up)
        ) as here:
            begin_s = asyncio.get_running_loop().time()

            async def ask(number: int) -> float:
                messages = [{"role": "user", "content": [SHARED, {"type": "text", "text": f"part {number}"}]}]
                body = json.dumps({"model": "claude-test", "max_tokens": 100, "stream": True, "messages": messages})
                what = replace(call(), id=f"{number}", prompt_marks=partial(prompt_marks, body.encode()))
                return await carry(here, what, replace(REQUEST, body=body.encode()))

            await asyncio.gather(*map(ask, range(20)))
            (used,) = await here.manager.usage(UsageQuery())
            assert (used.cache_read_tokens, used.cache_write_tokens) == (reads * 10_000, (20 - reads) * 10_000)
            assert took_s[0] < asyncio.get_running_loop().time() - begin_s < took_s[1]
            await ask(20)
            (used,) = await here.manager.usage(UsageQuery())
            assert used.cache_read_tokens == (reads + 1) * 10_000

    run(main())


def test_calls_wait_before_anything_is_held_for_them(house):
    async def main():
        provider = ScriptedProvider([Reply(head_s=2.0)])
        async with house(slots(1), provider=provider) as here:
            tasks = [asyncio.create_task(carry(here, call())) for _ in range(3)]
            await asyncio.sleep(1)
            assert here.manager.queue() == []
            assert len(here.manager.in_flight()) == 1
            await asyncio.gather(*tasks)
            assert started_s(provider) == [0.0, 2.0, 4.0]  # the slot alone keeps them apart then

    run(main())


@pytest.mark.parametrize(
    "fails",
    [
        Reply(failure=Failure("rejected", "invalid_request_error", 400), head_s=1.0),
        Reply(failure=Failure("connection", "refused", retryable=False), head_s=1.0),
        Reply(head_s=1.0, pause_s=1.0, breaks_after=0),
    ],
    ids=["refused", "no answer", "broken"],
)
def test_a_first_call_that_fails_hands_its_turn_on(house, fails):
    async def main():
        provider = ScriptedProvider([fails, Reply(head_s=1.0), Reply()])
        async with house(provider=provider) as here:
            outcomes = await asyncio.gather(*(carry(here, call()) for _ in range(5)), return_exceptions=True)
            assert sum(isinstance(each, ProviderError) for each in outcomes) <= 1
            first, second, *others = started_s(provider)
            assert len(others) == 3
            assert 1.0 <= second - first <= 2.0
            assert {each - second for each in others} == {1.0}

    run(main())


def test_a_first_call_that_is_cancelled_hands_its_turn_on(house):
    async def main():
        provider = ScriptedProvider([Reply(head_s=100.0), Reply(head_s=1.0), Reply()])
        async with house(provider=provider) as here:
            first = asyncio.create_task(carry(here, call()))
            await asyncio.sleep(1)
            others = [asyncio.create_task(carry(here, call())) for _ in range(3)]
            waiting = asyncio.create_task(carry(here, call()))
            await asyncio.sleep(1)
            waiting.cancel()
            first.cancel()
            await asyncio.gather(*others)
            assert started_s(provider) == [0.0, 2.0, 3.0, 3.0]

    run(main())


def test_a_first_call_that_is_never_admitted_hands_its_turn_on(house):
    async def main():
        provider = ScriptedProvider()
        async with house(slots(1), provider=provider) as here:
            async with here.manager.admit(replace(call(), prompt_marks=None)):
                with pytest.raises(DeadlineError):
                    await carry(here, call(max_wait_s=1.0))
                second = asyncio.create_task(carry(here, call()))
                await asyncio.sleep(1)
            assert await second == 1.0

    run(main())


@pytest.mark.parametrize(
    ("facts", "wait_s"),
    [
        ({}, MOST_WARM_UP_S),
        ({"max_wait_s": 7.0}, 7.0),
        ({"is_streamed": False}, UNSEEN_WARM_UP_S),
    ],
)
def test_nobody_waits_longer_than_a_first_token_takes_or_its_own_deadline(house, facts, wait_s):
    async def main():
        provider = ScriptedProvider([Reply(head_s=200.0)])
        async with house(provider=provider) as here:
            tasks = [asyncio.create_task(carry(here, call(**facts))) for _ in range(4)]
            await asyncio.gather(*tasks)
            assert started_s(provider) == [0.0, wait_s, wait_s, wait_s]

    run(main())


def test_a_first_call_that_waits_in_its_lane_is_awaited_from_when_it_is_sent(house):
    async def main():
        provider = ScriptedProvider([Reply(head_s=2.0 * MOST_WARM_UP_S), *[Reply(head_s=2.0)] * 10])
        async with house(slots(1, scope="key:*"), provider=provider) as here:
            other = asyncio.create_task(carry(here, Call("claude-test", scopes=Scopes(key="busy"))))
            await asyncio.sleep(1)
            first = asyncio.create_task(carry(here, call(scopes=Scopes(key="busy"))))
            await other
            await asyncio.sleep(1)
            others = [asyncio.create_task(carry(here, call(scopes=Scopes(key=f"k{n}")))) for n in range(3)]
            await asyncio.gather(first, *others)
            assert started_s(provider) == [0.0, 60.0, 62.0, 62.0, 62.0]

    run(main())


def test_calls_that_say_nothing_of_a_cache_wait_for_nobody(house):
    async def main():
        provider = ScriptedProvider([Reply(head_s=5.0)])
        async with house(provider=provider) as here:
            plain = [replace(call(), id=f"{number}", prompt_marks=None) for number in range(3)]
            unmarked = [replace(call(), id=f"u{number}", prompt_marks=lambda: ()) for number in range(3)]
            assert await asyncio.gather(*(carry(here, each) for each in (*plain, *unmarked))) == [0.0] * 6

    run(main())


def test_whoever_waits_for_its_turn_is_let_go_when_the_process_ends(house):
    async def main():
        provider = ScriptedProvider([Reply(head_s=20.0)])
        async with house(provider=provider) as here:
            first, second = (asyncio.create_task(carry(here, call())) for _ in range(2))
            await asyncio.sleep(1)
            await here.manager.drain()
            await asyncio.sleep(0)
            assert second.done()
            assert "shutting down" in str(second.exception())
            await first

    run(main())
