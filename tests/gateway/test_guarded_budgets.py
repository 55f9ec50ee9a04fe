"""A running stream whose budget is spent ends well, as one that came to its max_tokens; by default nothing ends it."""

import asyncio
import json
from contextlib import suppress

import anthropic
import openai
import pytest
from standing_keys import a_standing_key, bearing
from test_reservations import WITH_ADMIN, ask

from headgate.core.quantiles import RARE_SAMPLES

LETTERS = "x" * 64
BUDGET = '[[limit]]\nscope = "account:*"\noutput_tokens_per_lifetime = {}\nhold = "{}"'
SPENT = "budget_spent:account:{} * output_tokens lifetime"


def event(name: str, **data) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


START = event(
    "message_start",
    message={
        "id": "m", "type": "message", "role": "assistant", "model": "claude-opus-4-6", "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 10, "output_tokens": 1},
    },
)  # fmt: skip
MESSAGES = (
    START + event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": LETTERS}),
)
OF_CHAT = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5"}
CHAT = tuple(
    b"data: %b\n\n" % json.dumps({**OF_CHAT, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode()
    for delta in ({"role": "assistant", "content": ""}, {"content": LETTERS})
)
RESPONSE = {"id": "r", "object": "response", "created_at": 1, "model": "gpt-5", "status": "in_progress", "output": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
ITEM = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
PART = {"type": "output_text", "text": "", "annotations": []}
RESPONSES = (
    event("response.created", sequence_number=0, response=RESPONSE)
    + event("response.output_item.added", sequence_number=1, output_index=0, item=ITEM)
    + event(
        "response.content_part.added", sequence_number=2, item_id="i", output_index=0, content_index=0, part=PART
    ),
    event(
        "response.output_text.delta", sequence_number=3, item_id="i", output_index=0, content_index=0, delta=LETTERS,
        logprobs=[],
    ),
)  # fmt: skip


class Endless:
    """A provider that writes 16 tokens after 16 tokens, `most` times, until its client has gone."""

    def __init__(self, pieces, most: int = 100_000, last: bytes = b"") -> None:
        self._first, self._next = pieces
        self._most, self._last = most, last
        self.left = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        for _ in range(self._most):
            await send({"type": "http.response.body", "body": self._next, "more_body": True})
            await asyncio.sleep(0)
            if gone.done():
                self.left.set()
                return
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        await send({"type": "http.response.body", "body": self._last, "more_body": False})


def _teach(stack) -> None:
    for model in ("claude-opus-4-6", "gpt-5"):
        stack.house.manager._estimator.recall_longest(model, [20] * RARE_SAMPLES)


async def _was_ended(stack, provider: Endless, account: str) -> None:
    async with asyncio.timeout(10):
        await provider.left.wait()
    total = await stack.total()
    assert 500 <= total["output_tokens"] <= 600, "a little more than its budget at the most, one look of the guard"
    assert (total["estimated"], total["failed"]) == (1, 0)
    (row,) = await stack.house.manager._ledger.attempts(None)
    assert (row.state, row.error_type) == ("done", SPENT.format(account))
    assert not stack.house.manager.pool.health.circuits_of(account)


def test_claude_is_told_that_it_came_to_max_tokens(with_stack):
    provider = Endless(MESSAGES)

    async def test(stack):
        _teach(stack)
        async with (
            anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client,
            client.messages.stream(
                model="claude-opus-4-6", max_tokens=32_000, messages=[{"role": "user", "content": "hi"}]
            ) as stream,
        ):
            message = await stream.get_final_message()
        assert message.stop_reason == "max_tokens"
        assert set(message.content[0].text) == {"x"}
        # What had arrived and was not passed on any more is charged too.
        told = message.usage.output_tokens
        assert 500 <= told == len(message.content[0].text) / 4 <= (await stack.total())["output_tokens"]
        await _was_ended(stack, provider, "claude")

    with_stack(test, limits=BUDGET.format(560, "guarded"), app=provider)


def test_a_chat_ends_with_length(with_stack):
    provider = Endless(CHAT)

    async def test(stack):
        _teach(stack)
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-5", max_completion_tokens=32_000, messages=[{"role": "user", "content": "hi"}], stream=True
            )
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert {chunk.id for chunk in chunks} == {"c"}
        await _was_ended(stack, provider, "gpt")

    with_stack(test, limits=BUDGET.format(560, "guarded"), app=provider)


@pytest.mark.parametrize("asks", [True, False])
def test_a_chat_of_several_choices_ends_each_that_is_open_and_tells_its_usage_to_who_asked(with_stack, asks):
    def chunk(index: int, reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": {"content": LETTERS[:32]}, "finish_reason": reason}
        return b"data: %b\n\n" % json.dumps({**OF_CHAT, "choices": [choice]}).encode()

    provider = Endless((chunk(0) + chunk(1) + chunk(2) + chunk(1, "stop"), chunk(0) + chunk(2)))

    async def test(stack):
        _teach(stack)
        options = {"stream_options": {"include_usage": True}} if asks else {}
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-5", max_completion_tokens=32_000, messages=[{"role": "user", "content": "hi"}], stream=True,
                n=3, **options,
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
        ends = [(each.index, each.finish_reason) for chunk in chunks for each in chunk.choices if each.finish_reason]
        assert ends == [(1, "stop"), (0, "length"), (2, "length")]
        told = [chunk.usage for chunk in chunks if chunk.usage is not None]
        assert len(told) == asks
        if asks:
            assert (chunks[-1].choices, chunks[-1].usage) == ([], told[0])
            assert told[0].completion_tokens > 400
            assert told[0].total_tokens == told[0].prompt_tokens + told[0].completion_tokens
        await _was_ended(stack, provider, "gpt")

    with_stack(test, limits=BUDGET.format(560, "guarded"), app=provider)


def test_a_response_is_incomplete(with_stack):
    provider = Endless(RESPONSES)

    async def test(stack):
        _teach(stack)
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            stream = await client.responses.create(model="gpt-5", max_output_tokens=32_000, input="hi", stream=True)
            events = [each async for each in stream]
        last = events[-1]
        assert last.type == "response.incomplete"
        assert last.response.incomplete_details.reason == "max_output_tokens"
        assert last.response.usage.output_tokens > 0
        await _was_ended(stack, provider, "gpt")

    with_stack(test, limits=BUDGET.format(560, "guarded"), app=provider)


@pytest.mark.parametrize(("amount", "hold"), [(560, "likely"), (1_000_000, "guarded")])
def test_not_a_byte_is_changed_where_nobody_asks_for_it_or_enough_is_left(with_stack, amount, hold):
    last = event("content_block_stop", index=0) + event(
        "message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 1_600}
    ) + event("message_stop")  # fmt: skip
    provider = Endless(MESSAGES, 100, last)

    async def test(stack):
        _teach(stack)
        body = b'{"model":"claude-opus-4-6","max_tokens":32000,"stream":true,"messages":[]}'
        _, _, got = await stack.send("POST", "/v1/messages", body)
        assert got == MESSAGES[0] + MESSAGES[1] * 100 + last
        total = await stack.total()
        assert (total["output_tokens"], total["estimated"]) == (1_600, 0)

    with_stack(test, limits=BUDGET.format(amount, hold), app=provider)


def test_the_budget_says_what_the_ledger_says_where_the_end_tells_of_a_prompt_that_was_cached(with_stack):
    usage = {"prompt_tokens": 20_000, "completion_tokens": 400, "total_tokens": 20_400,
             "prompt_tokens_details": {"cached_tokens": 19_000}}  # fmt: skip
    last = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({**OF_CHAT, "choices": [], "usage": usage}).encode()

    async def test(stack):
        _teach(stack)
        asked = {"model": "gpt-5", "max_completion_tokens": 32_000, "stream": True,
                 "messages": [{"role": "user", "content": "word " * 20_000}]}  # fmt: skip
        status, _, _ = await stack.send("POST", "/v1/chat/completions", json.dumps(asked).encode())
        assert status == 200
        cost = (await stack.total())["cost_micro_usd"]
        limits = (await stack.get("/api/v1/limits"))["limits"]
        of_money = [each for each in limits if (each["scope"], each["dimension"]) == ("account:gpt", "micro_usd")]
        assert [(each["used"], each["held"]) for each in of_money] == [(cost, 0)]
        assert cost > 0

    budget = '[[limit]]\nscope = "account:*"\nusd_per_lifetime = 50\nhold = "guarded"\n'
    with_stack(test, limits=budget, app=Endless(CHAT, 100, last))


@pytest.mark.parametrize("is_planned_elsewhere", [False, True])
def test_a_stream_leaves_alone_what_is_set_aside_for_others(with_stack, is_planned_elsewhere):
    provider = Endless(MESSAGES)
    wish = {"scope": "key:ci", "of": "account:claude", "dimension": "output_tokens", "amount": 2_000, "until": "1h"}

    async def test(stack):
        _teach(stack)
        await a_standing_key(stack, "ci")
        other = await a_standing_key(stack, "other")
        status, made = await ask(stack, "POST", wish=wish)
        assert status == 201, made
        body = b'{"model":"claude-opus-4-6","max_tokens":32000,"stream":true,"messages":[]}'
        sending = asyncio.create_task(stack.send("POST", "/v1/messages", body, bearing(other.secret)))
        if is_planned_elsewhere:
            planned = stack.house.manager._admission.planned
            async with asyncio.timeout(10):
                while not stack.house.manager.in_flight():  # noqa: ASYNC110 - who is admitted has no event
                    await asyncio.sleep(0)
            planned._serial, planned.standing = 0, ()
        await sending
        await provider.left.wait()
        [row] = await stack.house.manager._ledger.attempts(None)
        # What the provider writes while the guard looks comes on top; without the plans it would be 3,000.
        assert 900 <= row.usage.output_tokens <= 2_000

    limits = '[[limit]]\nscope = "account:claude"\noutput_tokens_per_day = 3000\nhold = "guarded"\n'
    with_stack(test, limits=limits, server=WITH_ADMIN, app=provider)
