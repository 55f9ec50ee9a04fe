"""What a client hears while its call waits: nothing, signs of life, or a 429 at once; with the official SDKs."""

import asyncio
import json

import anthropic
import openai
import pytest

from headgate.adapters.providers.http import parse_url
from headgate.core.scopes import Scopes
from headgate.runtime.calls import Call
from headgate.runtime.keys import make_key

ONE_AT_A_TIME = '[[limit]]\nscope = "account:*"\nslots = 1'
PINGS = 'while_waiting = "pings"\nping_every_s = 0.01'
ASKED = {"model": "claude-opus-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "How are you?"}]}
CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "How are you?"}], "max_completion_tokens": 64}
CODEX = {"user-agent": "codex_exec/0.153.4 (Linux)"}


class Taken:
    """Somebody else has the only slot until the block is left."""

    def __init__(self, stack) -> None:
        self._stack = stack

    async def __aenter__(self) -> None:
        self._grants = []
        for account, model, dialect in (("claude", "claude-opus-4-6", "anthropic"), ("gpt", "gpt-5", "openai")):
            call = Call(model, dialect, input_tokens=1, max_output_tokens=1, scopes=Scopes(account=account))
            self._grants.append(grant := self._stack.house.manager.admit(call))
            await grant.__aenter__()

    async def __aexit__(self, *_error) -> None:
        for grant in self._grants:
            await grant.__aexit__(None, None, None)


async def _rows(stack) -> list[dict]:
    found = await stack.get("/api/v1/usage?group_by=state,endpoint")
    return [row for row in found["groups"] if row["endpoint"] != "other"]


def _answers(status: int, body: bytes, content_type: bytes = b"application/json"):
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        await send({"type": "http.response.body", "body": body})

    return app


def test_claude_is_kept_alive_while_it_waits_and_then_gets_the_providers_own_stream(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0, timeout=5.0) as client:
            async with Taken(stack):
                stream = await client.messages.create(**ASKED, stream=True)  # its head is there: it waits still
                assert stack.provider.usage()["total"]["requests_received"] == 0
                assert stream.response.headers["x-headgate-call-id"]
            events = [event.type async for event in stream]
            assert events[0] == "message_start"
            assert events[-1] == "message_stop"
            async with client.messages.stream(**ASKED) as plain:
                await plain.get_final_message()
        total = await stack.total()
        assert total["output_tokens"] == stack.provider.usage()["total"]["output_tokens"] + 2 > 2

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS)


def test_openai_and_codex_are_kept_alive_while_they_wait(with_stack):
    async def test(stack):
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            async with Taken(stack):
                chat = await client.chat.completions.create(**CHAT, stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in chat if chunk.choices])
            async with Taken(stack):
                waiting = asyncio.create_task(_helped(client))
                body = b'{"model":"gpt-5","input":"hi","stream":true}'
                origin, _ = parse_url(stack.url)
                codex = [(b"user-agent", b"codex_exec/0.153.4 (Linux)")]
                async with stack.http.send("POST", origin, b"/v1/responses", headers=codex, body=body) as reply:
                    first = await anext(reply)
                assert first.startswith(b'event: keepalive\ndata: {"type":"keepalive"}\n\n')
            assert await waiting

    async def _helped(client) -> str:
        async with client.responses.stream(model="gpt-5", input="hi") as stream:
            return (await stream.get_final_response()).output_text

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS)


@pytest.mark.parametrize(
    "told", [b'{"type":"error","error":{"type":"api_error","message":"Bad d\\u00e4y"}}', b"<html>"]
)
def test_what_a_provider_refuses_after_the_200_is_an_error_event_in_its_own_words(with_stack, told):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            async with Taken(stack):
                stream = await client.messages.create(**ASKED, stream=True)
            with pytest.raises(anthropic.APIStatusError) as caught:
                async for _ in stream:
                    pass
        assert caught.value.body["error"]["type"] == "api_error"
        assert ("Bad däy" in str(caught.value)) == (told != b"<html>")
        groups = (await stack.get("/api/v1/usage?group_by=state"))["groups"]
        assert {row["state"]: row["attempts"] for row in groups} == {"done": 2, "failed": 1}

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS, app=_answers(400, told))


@pytest.mark.parametrize(("path", "headers"), [("chat", {}), ("responses", {}), ("responses", CODEX)])
def test_openais_clients_are_told_of_it_too(with_stack, path, headers):
    refusal = b'{\n "error": {"message": "No", "type": "invalid_request_error", "param": "model", "code": "nope"}\n}'

    async def test(stack):
        async with openai.AsyncOpenAI(base_url=stack.url + "/v1", api_key="any", max_retries=0) as client:
            async with Taken(stack):
                if path == "chat":
                    stream = await client.chat.completions.create(**CHAT, stream=True)
                else:
                    stream = await client.responses.create(model="gpt-5", input="a", stream=True, extra_headers=headers)
            if headers:
                events = [event async for event in stream]
                assert [event.type for event in events] == ["keepalive"] * (len(events) - 1) + ["response.failed"]
                assert (events[-1].response.error.code, events[-1].response.error.message) == ("nope", "No")
                return
            with pytest.raises(openai.APIError) as caught:
                async for _ in stream:
                    pass
        assert (caught.value.message, caught.value.code, caught.value.param) == ("No", "nope", "model")

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS, app=_answers(400, refusal))


def test_a_document_where_a_stream_was_asked_for_is_no_stream(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client:
            async with Taken(stack):
                stream = await client.messages.create(**ASKED, stream=True)
            with pytest.raises(anthropic.APIStatusError, match="answered 200"):
                async for _ in stream:
                    pass

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS, app=_answers(200, b'{"type":"message"}'))


def test_a_gateway_that_ends_tells_those_whom_it_kept_alive(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=0) as client, Taken(stack):
            stream = await client.messages.create(**ASKED, stream=True)
            await stack.house.manager.drain()
            with pytest.raises(anthropic.APIStatusError) as caught:
                async for _ in stream:
                    pass
            assert caught.value.body["error"]["type"] == "overloaded_error"

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS)


def test_who_leaves_while_it_is_kept_alive_leaves_nothing_behind(with_stack):
    async def test(stack):
        origin, _ = parse_url(stack.url)
        body = json.dumps({**ASKED, "stream": True}).encode()
        async with Taken(stack):
            async with stack.http.send("POST", origin, b"/v1/messages", headers=[], body=body):
                assert len(stack.house.manager.queue()) == 1
            while stack.house.manager.queue():  # noqa: ASYNC110 - a queue that empties has no event
                await asyncio.sleep(0)
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test, limits=ONE_AT_A_TIME, server=PINGS)


def test_a_key_that_wants_to_know_is_told_at_once_and_others_wait(with_stack):
    async def test(stack):
        now_s = stack.house.clock.now_s()
        hasty, patient = make_key("hasty", now_s), make_key("patient", now_s)
        await stack.house.manager.keys.add([hasty.stored, patient.stored])
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=hasty.secret, max_retries=0) as client:
            await client.messages.create(**ASKED)
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(**ASKED)
            told = caught.value.response.headers
            # Of a request every half minute the next is due then, whatever this test took.
            assert 0 < int(told["retry-after-ms"]) <= 30_000
            assert int(told["retry-after"]) == -(-int(told["retry-after-ms"]) // 1000)
            assert told["x-should-retry"] == "true"
            waiting = asyncio.create_task(
                client.with_options(api_key=patient.secret).messages.create(**ASKED, extra_headers={})
            )
            while not stack.house.manager.queue():  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    limits = '[[limit]]\nscope = "account:*"\nrequests_per_minute = 2\nburst_s = 1\n'
    with_stack(test, limits=limits + '[[key]]\nname = "hasty"\nwhile_waiting = "refuse"')


def test_a_spent_budget_is_not_worth_another_try(with_stack):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="any", max_retries=2) as client:
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(**ASKED)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in caught.value.response.headers

    limits = '[[limit]]\nscope = "account:*"\nusd_per_lifetime = 0.000001'
    with_stack(test, limits=limits, server='while_waiting = "refuse"')
