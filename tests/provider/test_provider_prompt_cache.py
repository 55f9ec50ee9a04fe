"""Prompt caching by prefix: what is read, what is written, and from when on."""

import asyncio

from headgate.testing.provider import Latency, ModelLimits
from headgate.testing.virtual_time import run

MARK = {"cache_control": {"type": "ephemeral"}}
MARK_1H = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
# 8,000 characters are 2,000 tokens.
LONG = "word" * 2_000


def text(words, mark=None):
    return {"type": "text", "text": words, **(mark or {})}


def user(*blocks):
    return {"role": "user", "content": list(blocks)}


def prompt_usage(answer):
    usage = answer.json["usage"]
    return usage["input_tokens"], usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]


def test_a_marked_prefix_is_written_once_and_read_afterwards(client):
    async def scenario():
        caller = client(limits=(ModelLimits(input_tokens_per_minute=100_000),))
        marked = [text(LONG, MARK)]
        first = await caller.message("abcd", system=marked)
        second = await caller.message("abcdefgh", system=marked)
        return prompt_usage(first), prompt_usage(second), caller.provider.usage()

    first, second, usage = run(scenario())
    assert first == (1, 2_000, 0)
    assert second == (2, 0, 2_000)
    # What is read does not count against the input limit.
    assert usage["buckets"][0]["charged_total"] == 2_003


def test_a_mark_that_moves_with_the_conversation_finds_its_old_place(client):
    async def scenario():
        caller = client()
        first = [user(text(LONG, MARK))]
        second = [
            user(text(LONG)),
            {"role": "assistant", "content": [text("Yes.")]},
            user(text("b" * 4_000, MARK)),
        ]
        return [prompt_usage(await caller.message(messages=messages)) for messages in (first, second, second)]

    # "Yes." is one token and 4,000 characters are a thousand.
    assert run(scenario()) == [(0, 2_000, 0), (0, 1_001, 2_000), (0, 0, 3_001)]


def test_a_bare_string_and_its_text_block_are_the_same_prompt(client):
    async def scenario():
        caller = client()
        await caller.message(messages=[user(text(LONG, MARK))])
        after = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes."}, user(text("more", MARK))]
        return prompt_usage(await caller.message(messages=after))

    assert run(scenario()) == (0, 2, 2_000)


def test_a_mark_looks_back_twenty_blocks_and_no_further(client):
    async def scenario(blocks_between):
        caller = client()
        await caller.message(messages=[user(text(LONG, MARK))])
        between = [text("abcd") for _ in range(blocks_between)]
        return prompt_usage(await caller.message(messages=[user(text(LONG), *between, text("abcd", MARK))]))

    assert run(scenario(18)) == (0, 19, 2_000)
    assert run(scenario(19)) == (0, 2_020, 0)


def test_less_than_1024_tokens_are_not_cached(client):
    async def scenario():
        caller = client()
        short = [text("word" * 1_023, MARK)]
        return [prompt_usage(await caller.message("abcd", system=short)) for _ in range(2)]

    assert run(scenario()) == [(1_024, 0, 0)] * 2


def test_tools_come_before_system_and_system_before_messages(client):
    async def scenario():
        caller = client()
        tool = {"name": "read", "input_schema": {"type": "object", "description": "d" * 8_000}, **MARK}
        await caller.message("abcd", tools=[tool], system=[text("one", MARK)])
        same_tools = await caller.message("abcd", tools=[tool], system=[text("two", MARK)])
        other_tools = await caller.message("abcd", tools=[{**tool, "name": "other"}], system=[text("one", MARK)])
        return prompt_usage(same_tools), prompt_usage(other_tools)

    same_tools, other_tools = run(scenario())
    assert same_tools[2] > 2_000
    assert other_tools[2] == 0


def test_five_minutes_and_one_hour_are_told_apart_and_expire(client):
    async def scenario():
        caller = client()
        blocks = [text(LONG, MARK_1H), text("abcd", MARK)]
        first = (await caller.message("abcd", system=blocks)).json["usage"]
        await asyncio.sleep(301)
        second = prompt_usage(await caller.message("abcd", system=blocks))
        # Use renewed the hour: it counts from the last read.
        await asyncio.sleep(3_500)
        third = prompt_usage(await caller.message("abcd", system=blocks))
        await asyncio.sleep(3_601)
        return first, second, third, prompt_usage(await caller.message("abcd", system=blocks))

    first, second, third, fourth = run(scenario())
    assert first["cache_creation"] == {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2_000}
    assert second == third == (1, 1, 2_000)
    assert fourth == (1, 2_001, 0)


def test_reading_a_prefix_renews_it_where_no_mark_stands_any_more(client):
    async def scenario():
        caller = client()
        await caller.message(messages=[user(text(LONG, MARK))])
        for words in ("one", "two"):
            await asyncio.sleep(200)
            read = prompt_usage(await caller.message(messages=[user(text(LONG), text(words, MARK))]))
        return read

    assert run(scenario()) == (0, 1, 2_000)


def test_what_is_cached_fits_even_where_the_whole_prompt_would_not(client):
    async def scenario():
        caller = client(limits=(ModelLimits(input_tokens_per_minute=2_010),))
        return [(await caller.message("abcd", system=[text(LONG, MARK)])).status for _ in range(3)]

    assert run(scenario()) == [200, 200, 200]


def test_requests_that_start_together_all_pay_until_the_first_token_exists(client):
    async def scenario():
        caller = client(latency=Latency(first_token_s=2.0, tokens_per_second=10.0, jitter=0.0))
        system = [text(LONG, MARK)]
        together = [asyncio.create_task(caller.message("abcd", system=system)) for _ in range(2)]
        await asyncio.sleep(1.9)
        together.append(asyncio.create_task(caller.message("abcd", system=system)))
        await asyncio.sleep(0.2)
        # The first token exists, the answer does not yet.
        assert not any(task.done() for task in together)
        together.append(asyncio.create_task(caller.message("abcd", system=system)))
        return [prompt_usage(answer) for answer in await asyncio.gather(*together)]

    assert run(scenario()) == [(1, 2_000, 0)] * 3 + [(1, 0, 2_000)]


def test_a_call_that_was_cancelled_before_its_first_token_warms_nothing(client):
    async def scenario():
        caller = client(latency=Latency(first_token_s=2.0, tokens_per_second=100.0, jitter=0.0))
        leave = asyncio.Event()
        leaving = asyncio.create_task(caller.message("abcd", system=[text(LONG, MARK)], leave=leave))
        await asyncio.sleep(1)
        leave.set()
        await leaving
        return prompt_usage(await caller.message("abcd", system=[text(LONG, MARK)]))

    assert run(scenario()) == (1, 2_000, 0)


def test_caches_of_credentials_and_models_are_separate(client):
    async def scenario():
        caller = client()
        system = [text(LONG, MARK)]
        await caller.message("abcd", system=system)
        other_key = await caller.message("abcd", system=system, headers={"x-api-key": "sk-test-0002"})
        other_model = await caller.message("abcd", system=system, model="claude-haiku-4-5")
        return prompt_usage(other_key), prompt_usage(other_model)

    assert run(scenario()) == ((1, 2_000, 0), (1, 2_000, 0))


def test_too_many_marks_and_a_wrong_order_of_lives_are_refused(client):
    async def scenario():
        caller = client()
        five = await caller.message(messages=[user(*[text("abcd", MARK) for _ in range(5)])])
        order = await caller.message(messages=[user(text("abcd", MARK), text("abcd", MARK_1H))])
        return five, order

    five, order = run(scenario())
    assert (five.status, order.status) == (400, 400)
    assert "Found 5" in five.json["error"]["message"]


def test_openai_caches_prefixes_by_itself_in_steps_of_128_tokens(client):
    def cached(answer):
        return answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def scenario():
        caller = client()
        system = {"role": "system", "content": LONG}
        first = await caller.chat(messages=[system, {"role": "user", "content": "one"}])
        whole = await caller.chat(messages=[system, {"role": "user", "content": "two"}])
        half = {"role": "system", "content": LONG[:6_000] + "x" * 2_000}
        partly = await caller.chat(messages=[half, {"role": "user", "content": "one"}])
        little = {"role": "system", "content": LONG[:4_000] + "y" * 4_000}
        below = await caller.chat(messages=[little, {"role": "user", "content": "one"}])
        return [cached(answer) for answer in (first, whole, partly, below)], whole.json["usage"]["prompt_tokens"]

    steps, prompt_tokens = run(scenario())
    # 2,000 tokens are 15 steps of 128; 1,500 are 11; a thousand are fewer than the 1,024 that count.
    assert steps == [0, 1_920, 1_408, 0]
    assert prompt_tokens == 2_001
