"""The official SDKs, unmodified, plain and streaming, sync and async, through the gateway to the simulated provider."""

import asyncio

import anthropic
import openai
import pytest

from headgate.testing.provider import Latency, ProviderSettings

CLAUDE = {"model": "claude-opus-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "How are you?"}]}
CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "How are you?"}], "max_completion_tokens": 64}


async def _agrees(stack, calls: int) -> None:
    """The ledger says what the provider says."""
    total, truth = await stack.total(), stack.provider.usage()["total"]
    assert total["requests"] == truth["requests_served"] == calls
    assert total["input_tokens"] == truth["input_tokens"]
    assert total["output_tokens"] == truth["output_tokens"] > 0
    assert total["cache_read_tokens"] == truth["cache_read_tokens"]
    assert total["estimated"] == total["failed"] == 0


def test_anthropic_async(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            message = await client.messages.create(**CLAUDE)
            assert message.content[0].text
            async with client.messages.stream(**CLAUDE) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
            assert text == final.content[0].text
            assert final.usage.output_tokens > 0
            counted = await client.messages.count_tokens(model="claude-opus-4-6", messages=CLAUDE["messages"])
            assert counted.input_tokens > 0
            raw = await client.messages.with_raw_response.create(**CLAUDE)
            assert raw.headers["x-headgate-account"] == "claude"
            assert int(raw.headers["x-headgate-cost-micro-usd"]) > 0
            assert int(raw.headers["x-headgate-wait-ms"]) >= 0
            assert raw.headers["x-headgate-call-id"]
        await _agrees(stack, 3)

    with_stack(test)


def test_anthropic_sync(with_stack):
    def talk(url: str) -> str:
        with anthropic.Anthropic(base_url=url, auth_token="any", max_retries=0) as client:
            message = client.messages.create(**CLAUDE)
            with client.messages.stream(**CLAUDE) as stream:
                text = "".join(stream.text_stream)
        return text + message.content[0].text

    async def test(stack):
        assert await asyncio.to_thread(talk, stack.url)
        await _agrees(stack, 2)

    with_stack(test)


def test_openai_async(with_stack):
    async def test(stack):
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any", max_retries=0) as client:
            answer = await client.chat.completions.create(**CHAT)
            assert answer.choices[0].message.content
            chunks = [chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)]
            assert all(chunk.usage is None for chunk in chunks), "the chunk that meters is not for the client"
            assert all(chunk.choices for chunk in chunks)
            asked = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
            assert [chunk async for chunk in asked][-1].usage.completion_tokens > 0
            answer = await client.responses.create(model="gpt-5", input="How are you?", max_output_tokens=64)
            assert answer.output_text
            async with client.responses.stream(model="gpt-5", input="How are you?") as stream:
                events = [event.type async for event in stream]
            assert events[-1] == "response.completed"
            vector = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
            assert len(vector.data) == 2
        await _agrees(stack, 6)

    with_stack(test)


def test_openai_sync(with_stack):
    def talk(url: str) -> int:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            assert client.chat.completions.create(**CHAT).choices[0].message.content
            return sum(len(chunk.choices) for chunk in client.chat.completions.create(**CHAT, stream=True))

    async def test(stack):
        assert await asyncio.to_thread(talk, stack.url) > 2
        await _agrees(stack, 2)

    with_stack(test)


def test_models_are_listed_in_both_shapes(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any") as client:
            assert [model.id async for model in client.models.list(limit=1000)] == ["claude-opus-4-6", "gpt-5"]
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any") as client:
            assert [model.id async for model in client.models.list()]
        assert (await stack.total())["requests"] == 0

    with_stack(test, provider=ProviderSettings(latency=Latency.none(), models=("claude-opus-4-6", "gpt-5")))


def test_an_sdk_is_told_the_truth_by_a_refusal(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0, timeout=1.0) as client:
            await client.messages.create(**CLAUDE)
            try:
                await client.messages.create(**CLAUDE)
            except anthropic.RateLimitError as refused:
                error = refused.response
        assert error.json()["error"]["type"] == "rate_limit_error"
        assert 50 < int(error.headers["retry-after"]) <= 61
        assert error.headers["x-should-retry"] == "true"
        assert (await stack.total())["requests"] == 1
        assert stack.provider.usage()["total"]["requests_received"] == 1

    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nrequests_per_minute = 1\nburst_s = 60')


def test_an_sdk_gives_up_at_once_where_a_retry_cannot_help(with_stack):
    """With its retries on: `x-should-retry: false` goes before the 429."""

    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any") as client:
            with pytest.raises(anthropic.RateLimitError, match=r"at most \$0\.01 can be had; ask for less") as refused:
                await client.messages.create(**{**CLAUDE, "max_tokens": 90_000}, timeout=600)
        async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any") as client:
            with pytest.raises(
                openai.RateLimitError, match=r"at most \$0\.01 can be had; ask for less"
            ) as also_refused:
                await client.chat.completions.create(**{**CHAT, "max_completion_tokens": 90_000})
        for error in (refused.value, also_refused.value):
            assert error.response.request.headers["x-stainless-retry-count"] == "0"
            assert "retry-after" not in error.response.headers
        total = await stack.total()
        assert (total["requests"], total["refused"], total["cost_micro_usd"]) == (0, 2, 0)
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test, limits='[[limit]]\nscope = "account:*"\nusd_per_day = 0.01')
