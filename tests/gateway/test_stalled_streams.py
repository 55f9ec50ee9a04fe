"""A provider that falls silent in the middle of a stream: its client is told, its use is settled, and it is seen."""

import asyncio
import json

import anthropic
import openai
import pytest
from standing_keys import bearing

from headgate.adapters.config import load_config
from headgate.compose import timeouts_of

MESSAGES = [
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","role":"assistant",'
        b'"model":"claude-opus-4-6","content":[],"stop_reason":null,"usage":{"input_tokens":123,"output_tokens":1}}}\n\n'
    ),
    (
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
    ),
    (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"sixteen letters!"}}\n\n'
    ),
]
CHAT = [
    (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-5",'
        b'"choices":[{"index":0,"delta":{"content":"sixteen letters!"},"finish_reason":null}]}\n\n'
    )
]
ASKED = {"max_tokens": 64, "messages": [{"role": "user", "content": "How are you?"}], "stream": True}
IDLE = "[timeouts]\nidle_s = 0.05"


class FallsSilent:
    """A provider that sends the beginning of a stream, and then nothing until its client has gone."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.left = 0

    async def __call__(self, scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        self.left += 1


def test_its_client_hears_a_timeout_and_its_use_is_what_was_seen(with_stack):
    provider = FallsSilent(MESSAGES)

    async def test(stack):
        events = []
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            stream = await client.messages.create(model="claude-opus-4-6", **ASKED)
            with pytest.raises(anthropic.APIStatusError) as caught:
                await _keep(stream, events)
        assert [event.delta.text for event in events if event.type == "content_block_delta"] == ["sixteen letters!"]
        assert caught.value.body["error"]["type"] == "timeout_error"
        assert "no byte of the body came for 0.05 s" in str(caught.value)
        total = await stack.total()
        assert (total["input_tokens"], total["output_tokens"], total["estimated"], total["failed"]) == (123, 4, 1, 1)
        assert provider.left == 1

    with_stack(test, limits=IDLE, app=provider)


async def _keep(stream, events: list) -> None:
    async for event in stream:
        events.append(event)  # noqa: PERF401 - what came before the error is what is asked for


def test_a_chat_that_stalls_ends_with_an_error_the_openai_sdk_raises(with_stack):
    async def test(stack):
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(model="gpt-5", **ASKED)
            with pytest.raises(openai.APIError, match="no byte"):
                async for _ in stream:
                    pass
        total = await stack.total()
        assert (total["output_tokens"], total["estimated"], total["failed"]) == (4, 1, 1)

    with_stack(test, limits=IDLE, app=FallsSilent(CHAT))


def test_stalls_are_in_metrics_and_ledger_and_open_the_accounts_circuit(with_stack):
    provider = FallsSilent(MESSAGES)

    async def test(stack):
        body = json.dumps({"model": "claude-opus-4-6", **ASKED}).encode()
        with stack.house.manager.feed.follow() as events:
            for _ in range(5):
                assert (await stack.send("POST", "/v1/messages", body, bearing("any")))[0] == 200
            async with asyncio.timeout(10):
                settled = [event async for event in _first(events, "settled", 5)]
        assert {event.facts["error_type"] for event in settled} == {"broken_stalled"}
        _, _, metrics = await stack.send("GET", "/metrics")
        assert b'headgate_stalled_answers_total{account="claude"} 5.0' in metrics
        accounts = (await stack.get("/api/v1/accounts"))["accounts"]
        (claude,) = [each for each in accounts if each["account"] == "claude"]
        assert "broken_stalled" in json.dumps(claude)

    with_stack(test, limits=IDLE, app=provider)


async def _first(events, kind: str, count: int):
    async for event in events:
        if event.kind == kind:
            yield event
            count -= 1
            if not count:
                return


def test_an_account_has_time_outs_of_its_own(tmp_path):
    path = tmp_path / "headgate.toml"
    account = '[[account]]\nname = "{}"\nprovider = "anthropic"\napi_key = "env:KEY"\n'
    path.write_text(
        account.format("one")
        + "idle_s = 20\nfirst_byte_s = 1_200\n"
        + account.format("two")
        + IDLE.replace("0.05", "90")
    )
    config = load_config(path, {"KEY": "k"})
    one, two = (timeouts_of(each, config) for each in config.accounts)
    assert (one.idle_s, one.first_byte_s, one.connect_s) == (20, 1_200, 10)
    assert (two.idle_s, two.first_byte_s) == (90, 600)
