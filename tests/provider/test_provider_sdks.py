"""The vendors' own SDKs, unmodified, against the simulated provider over TCP."""

import asyncio
import json

import anthropic
import openai
import pytest

from headgate.testing.provider import ModelLimits

KEY = "sk-test-key-0001"
CLAUDE = "claude-sonnet-sim"
QUESTION = [{"role": "user", "content": "How high is the water?"}]
ANTHROPIC_TOOL = {
    "name": "read_gauge",
    "description": "Reads a gauge.",
    "input_schema": {
        "type": "object",
        "properties": {"gauge": {"type": "string", "enum": ["north", "south"]}, "count": {"type": "integer"}},
        "required": ["gauge", "count"],
    },
}
ARGUMENTS = {"gauge": "north", "count": 1}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "read_gauge", "parameters": ANTHROPIC_TOOL["input_schema"]},
}
RESPONSES_TOOL = {"type": "function", "name": "read_gauge", "parameters": ANTHROPIC_TOOL["input_schema"]}


def anthropic_client(served, key=KEY):
    return anthropic.Anthropic(base_url=served.url, api_key=key, max_retries=0)


def openai_client(served, key=KEY):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def test_anthropic_plain_and_streamed_messages_agree(serve):
    with anthropic_client(serve()) as sdk:
        plain = sdk.messages.create(model=CLAUDE, max_tokens=100, messages=QUESTION)
        with sdk.messages.stream(model=CLAUDE, max_tokens=100, messages=QUESTION) as stream:
            streamed = stream.get_final_message()
    assert plain.content[0].text == streamed.content[0].text
    assert len(plain.content[0].text) == 100
    assert plain.usage.output_tokens == streamed.usage.output_tokens == 25
    assert plain.usage.input_tokens == streamed.usage.input_tokens == 6
    assert plain.stop_reason == streamed.stop_reason == "end_turn"
    assert plain._request_id.startswith("req_")


def test_anthropic_async_plain_and_streamed(serve):
    served = serve()

    async def talk():
        async with anthropic.AsyncAnthropic(base_url=served.url, auth_token=KEY, max_retries=0) as sdk:
            plain = await sdk.messages.create(model=CLAUDE, max_tokens=10, messages=QUESTION)
            async with sdk.messages.stream(model=CLAUDE, max_tokens=10, messages=QUESTION) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            return plain, text

    plain, text = asyncio.run(talk())
    assert plain.content[0].text == text
    assert plain.stop_reason == "max_tokens"
    assert plain.usage.output_tokens == 10


def test_anthropic_tool_call_and_its_result(serve):
    with anthropic_client(serve(tool_calls=True)) as sdk:
        options = {"model": CLAUDE, "max_tokens": 500, "tools": [ANTHROPIC_TOOL]}
        with sdk.messages.stream(messages=QUESTION, **options) as stream:
            asked = stream.get_final_message()
        call = asked.content[-1]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "1.20 m"}
        conversation = [
            *QUESTION,
            {"role": "assistant", "content": asked.content},
            {"role": "user", "content": [result]},
        ]
        answered = sdk.messages.create(messages=conversation, **options)
    assert asked.stop_reason == "tool_use"
    assert (call.type, call.name, call.input) == ("tool_use", "read_gauge", ARGUMENTS)
    assert [block.type for block in answered.content] == ["text"]


def test_anthropic_counts_tokens_as_it_bills_them(serve):
    with anthropic_client(serve()) as sdk:
        counted = sdk.messages.count_tokens(model=CLAUDE, messages=QUESTION, system="Be brief.", tools=[ANTHROPIC_TOOL])
        billed = sdk.messages.create(
            model=CLAUDE, max_tokens=5, messages=QUESTION, system="Be brief.", tools=[ANTHROPIC_TOOL]
        )
    assert counted.input_tokens == billed.usage.input_tokens


def test_anthropic_errors_are_the_sdk_s_own_classes(serve):
    served = serve(keys={"main": KEY}, models=("claude-*",), body_limit_bytes=10_000)
    with anthropic_client(served, key="wrong") as stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(model=CLAUDE, max_tokens=5, messages=QUESTION)
    with anthropic_client(served) as sdk:
        with pytest.raises(anthropic.NotFoundError) as missing:
            sdk.messages.create(model="gpt-5", max_tokens=5, messages=QUESTION)
        with pytest.raises(anthropic.BadRequestError, match="at least one message"):
            sdk.messages.create(model=CLAUDE, max_tokens=5, messages=[])
        with pytest.raises(anthropic.APIStatusError) as large:
            sdk.messages.create(model=CLAUDE, max_tokens=5, messages=[{"role": "user", "content": "x" * 20_000}])
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            sdk.messages.create(
                model=CLAUDE, max_tokens=5, messages=QUESTION, extra_headers={"x-provider-fault": "529"}
            )
    assert missing.value.body["request_id"] == missing.value.request_id
    assert (large.value.status_code, large.value.body["error"]["type"]) == (413, "request_too_large")
    assert (overloaded.value.status_code, overloaded.value.body["error"]["type"]) == (529, "overloaded_error")


def test_anthropic_rate_limit_error_carries_retry_after(serve):
    with anthropic_client(serve(limits=(ModelLimits(requests_per_minute=1),))) as sdk:
        sdk.messages.create(model=CLAUDE, max_tokens=5, messages=QUESTION)
        with pytest.raises(anthropic.RateLimitError) as refused:
            sdk.messages.create(model=CLAUDE, max_tokens=5, messages=QUESTION)
    assert int(refused.value.response.headers["retry-after"]) in (59, 60)


def test_an_anthropic_stream_ends_with_message_stop_and_without_done(serve):
    with anthropic_client(serve(deltas_per_stream=4)) as sdk:
        raw = sdk.messages.with_raw_response.create(model=CLAUDE, max_tokens=100, messages=QUESTION, stream=True)
        text = raw.http_response.read().decode()
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[3:-3] == ["content_block_delta"] * 4
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "[DONE]" not in text


def test_openai_chat_plain_and_streamed_agree(serve):
    with openai_client(serve()) as sdk:
        plain = sdk.chat.completions.create(model="gpt-5", messages=QUESTION)
        chunks = list(sdk.chat.completions.create(model="gpt-5", messages=QUESTION, stream=True))
        with_usage = list(
            sdk.chat.completions.create(
                model="gpt-5", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert plain.choices[0].message.content == text
    assert all(chunk.usage is None for chunk in chunks)
    assert with_usage[-1].choices == []
    assert with_usage[-1].usage == plain.usage
    assert (plain.usage.prompt_tokens, plain.usage.completion_tokens, plain.usage.total_tokens) == (6, 25, 31)


def test_openai_async_chat(serve):
    served = serve()

    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as sdk:
            plain = await sdk.chat.completions.create(model="gpt-5", messages=QUESTION, max_completion_tokens=3)
            stream = await sdk.responses.create(model="gpt-5", input="Hello", stream=True)
            return plain, [event.type async for event in stream]

    plain, kinds = asyncio.run(talk())
    assert plain.choices[0].finish_reason == "length"
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_openai_chat_tool_call_and_its_result(serve):
    with openai_client(serve(tool_calls=True)) as sdk:
        plain = sdk.chat.completions.create(model="gpt-5", messages=QUESTION, tools=[CHAT_TOOL])
        with sdk.chat.completions.stream(model="gpt-5", messages=QUESTION, tools=[CHAT_TOOL]) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion()
        message = plain.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "1.20 m"}
        answered = sdk.chat.completions.create(model="gpt-5", messages=[*QUESTION, message, result], tools=[CHAT_TOOL])
    assert json.loads(message.tool_calls[0].function.arguments) == ARGUMENTS
    assert streamed.choices[0].message.tool_calls[0].function.arguments == message.tool_calls[0].function.arguments
    assert plain.choices[0].finish_reason == streamed.choices[0].finish_reason == "tool_calls"
    assert answered.choices[0].message.tool_calls is None


def test_openai_responses_plain_and_streamed_agree(serve):
    with openai_client(serve(tool_calls=True)) as sdk:
        plain = sdk.responses.create(model="gpt-5", input="How high is the water?", tools=[RESPONSES_TOOL])
        with sdk.responses.stream(model="gpt-5", input="How high is the water?", tools=[RESPONSES_TOOL]) as stream:
            numbers = [event.sequence_number for event in stream]
            streamed = stream.get_final_response()
        cut = sdk.responses.create(model="gpt-5", input="Hello", max_output_tokens=16)
    assert numbers == list(range(len(numbers)))
    assert plain.output_text == streamed.output_text
    assert json.loads(plain.output[-1].arguments) == json.loads(streamed.output[-1].arguments) == ARGUMENTS
    assert plain.usage == streamed.usage
    assert (cut.status, cut.incomplete_details.reason, cut.usage.output_tokens) == (
        "incomplete",
        "max_output_tokens",
        16,
    )


def test_openai_embeddings_depend_on_the_text_alone(serve):
    with openai_client(serve()) as sdk:
        packed = sdk.embeddings.create(model="text-embedding-3-small", input=["a river", "a gate"], dimensions=8)
        spelled = sdk.embeddings.create(
            model="text-embedding-3-small", input="a gate", dimensions=8, encoding_format="float"
        )
        tokens = sdk.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3], dimensions=8)
    assert packed.data[1].embedding == pytest.approx(spelled.data[0].embedding)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert sum(value * value for value in spelled.data[0].embedding) == pytest.approx(1, abs=1e-6)
    assert packed.usage.prompt_tokens == 4
    assert tokens.usage.prompt_tokens == 3


def test_openai_errors_are_the_sdk_s_own_classes(serve):
    served = serve(keys={"main": KEY}, models=("gpt-*",), limits=(ModelLimits(requests_per_minute=1),))
    with openai_client(served, key="wrong") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="gpt-5", messages=QUESTION)
    with openai_client(served) as sdk:
        with pytest.raises(openai.NotFoundError) as missing:
            sdk.chat.completions.create(model="claude-x", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="tool_call"):
            sdk.chat.completions.create(
                model="gpt-5", messages=[*QUESTION, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]
            )
        sdk.chat.completions.create(model="gpt-5", messages=QUESTION)
        with pytest.raises(openai.RateLimitError) as refused:
            sdk.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert missing.value.request_id.startswith("req_")
    assert missing.value.code == "model_not_found"
    assert refused.value.code == "rate_limit_exceeded"
    assert 58_000 < int(refused.value.response.headers["retry-after-ms"]) <= 60_000
    assert int(refused.value.response.headers["retry-after"]) in (59, 60)


def test_models_are_listed_in_the_shape_of_who_asks(serve):
    served = serve(models=("claude-a", "claude-b", "claude-*"))
    with anthropic_client(served) as sdk:
        assert [model.id for model in sdk.models.list(limit=1000)] == ["claude-a", "claude-b"]
        assert sdk.models.retrieve("claude-b").display_name == "claude-b"
    with openai_client(served) as sdk:
        assert [model.id for model in sdk.models.list()] == ["claude-a", "claude-b"]
        assert sdk.models.retrieve("claude-a").object == "model"
