"""What the upstream gets and what the client gets: bytes as they were, credentials replaced, nothing else."""

import json

import anthropic
import pytest

from headgate.testing.provider import Faults, Latency, ProviderSettings

PLANTED = b"sk-planted-provider-secret"


class Upstream:
    """A provider that keeps what it was sent and answers with given bytes, in given pieces."""

    def __init__(self, pieces: list[bytes], content_type: bytes = b"application/json", status: int = 200) -> None:
        self.pieces = pieces
        self.head = [(b"content-type", content_type), (b"Request-Id", b"req_upstream"), (b"x-odd", b"caf\xe9")]
        self.status = status
        self.scopes: list[dict] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope, receive, send) -> None:
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": self.head})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


ANSWER = (
    b'{ "id":"msg_1","type":"message","role":"assistant","model":"claude-opus-4-6",\n "content":[{"type":"thinking",'
    b'"thinking":"\\u00e9\\ud83d\\ude00","signature":"EqQB+/=="},{"type":"text","text":"hi"}],"unknown":1e400,'
    b'"huge":123456789012345678901234567890,"usage":{"input_tokens":3,"cache_read_input_tokens":7,"output_tokens":5}}'
)
_DELTA = b'{"type":"content_block_delta","delta":{"type":"signature_delta","signature":"a/+="}}'
_START = (
    b'{"type":"message_start","message":{"id":"msg_1","model":"claude-opus-4-6","usage":{"input_tokens":11,'
    b'"cache_creation_input_tokens":4,"cache_read_input_tokens":7,"output_tokens":1}}}'
)
_END = b'{"type":"message_delta","delta":{},"usage":{"output_tokens":9}}'
STREAM = [
    b": a comment\r\nevent: message_start\r\n",
    b"data: " + _START + b"\r\n\r\n",
    b"event: ping\ndata: {}\n\n",
    b"event: content_block_delta\ndata:" + _DELTA + b"\n",
    b"\nevent: message_delta\ndata: " + _END + b"\n\nevent: message_stop\n",
    b'data: {"type":"message_stop"}\n\n',
]
ODD_BODY = (
    b'{"max_tokens" :  5,\n"model":"claude-opus-4-6","messages":[{"role":"user","content":"\\u0068\\ud83d\\ude00"}],'
    b'"unknown_field":{"big":123456789012345678901234567890,"z":1,"a":1.0e2},"stream":%b}'
)


async def _send(stack, body: bytes, path: str = "/v1/messages?beta=true"):
    headers = [
        (b"x-api-key", b"whatever"),
        (b"Anthropic-Version", b"2023-06-01"),
        (b"anthropic-beta", b"context-1m-2025-08-07,unknown-beta"),
        (b"X-Claude-Code-Session-Id", b"s-1"),
        (b"content-type", b"application/json"),
    ]
    return await stack.send("POST", path, body, headers)


@pytest.mark.parametrize(
    ("stream", "pieces"), [(b"false", [ANSWER]), (b"false", [ANSWER[:50], ANSWER[50:]]), (b"true", STREAM)]
)
def test_bytes_pass_both_ways_as_they_are(with_stack, stream, pieces):
    upstream = Upstream(pieces, b"text/event-stream" if stream == b"true" else b"application/json")

    async def test(stack):
        body = ODD_BODY % stream
        status, headers, answer = await _send(stack, body)
        assert status == 200
        assert upstream.bodies == [body]
        assert answer == b"".join(pieces)
        assert headers[b"x-odd"] == b"caf\xe9"
        assert headers[b"request-id"] == b"req_upstream"
        (scope,) = upstream.scopes
        sent = dict(scope["headers"])
        assert scope["query_string"] == b"beta=true"
        assert sent[b"x-api-key"] == PLANTED
        assert b"whatever" not in b"".join(sent.values())
        assert sent[b"anthropic-beta"] == b"context-1m-2025-08-07,unknown-beta"
        assert sent[b"anthropic-version"] == b"2023-06-01"
        assert sent[b"x-claude-code-session-id"] == b"s-1"
        assert not any(name.startswith(b"x-headgate") for name in sent)
        total = await stack.total()
        if stream == b"true":
            assert (total["input_tokens"], total["cache_read_tokens"], total["cache_write_tokens"]) == (11, 7, 4)
            assert total["output_tokens"] == 9
        else:
            assert (total["input_tokens"], total["cache_read_tokens"], total["output_tokens"]) == (3, 7, 5)
        by_session = await stack.get("/api/v1/usage?group_by=session,account")
        assert by_session["groups"][0]["session"] == "s-1"

    with_stack(test, app=upstream)


def test_a_providers_own_error_reaches_the_client_byte_for_byte(with_stack):
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens"}}'
    upstream = Upstream([body], status=400)

    async def test(stack):
        status, _, answer = await _send(stack, ODD_BODY % b"false")
        assert (status, answer) == (400, body)
        assert len(upstream.bodies) == 1
        total = await stack.total()
        assert (total["requests"], total["failed"], total["cost_micro_usd"]) == (1, 1, 0)

    with_stack(test, app=upstream)


@pytest.mark.parametrize("fault", ["529", "500"])
def test_a_provider_that_is_overloaded_now_and_then_is_not_noticed(with_stack, fault):
    async def test(stack):
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key="x", max_retries=0) as client:
            for _ in range(6):
                await client.messages.create(
                    model="claude-opus-4-6", max_tokens=5, messages=[{"role": "user", "content": "hi"}]
                )
        total, truth = await stack.total(), stack.provider.usage()["total"]
        assert truth["requests_failed"] >= 3
        assert total["requests"] == truth["requests_received"]
        assert total["failed"] == truth["requests_failed"]
        assert total["output_tokens"] == truth["output_tokens"]

    with_stack(test, provider=ProviderSettings(latency=Latency.none(), faults=Faults(every={fault: 2})))


def test_a_stream_that_the_provider_breaks_off_ends_with_an_error_event(with_stack):
    async def test(stack):
        headers = [(b"x-provider-fault", b"disconnect-mid"), (b"anthropic-version", b"2023-06-01")]
        status, _, body = await stack.send("POST", "/v1/messages", ODD_BODY % b"true", headers)
        assert status == 200
        last = body.rstrip().split(b"\n\n")[-1]
        assert last.startswith(b"event: error\n")
        assert json.loads(last.split(b"data: ")[1])["type"] == "error"
        (row,) = (await stack.get("/api/v1/usage?group_by=state"))["groups"]
        assert row["state"] == "failed"
        assert row["input_tokens"] == stack.provider.usage()["total"]["input_tokens"]
        views = await stack.house.manager.limits()
        assert sum(view.held for view in views) == 0

    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nslots = 3\ninput_tokens_per_minute = 100000')


def test_the_providers_key_is_in_no_answer_and_no_file(with_stack, tmp_path):
    async def test(stack):
        await _send(stack, ODD_BODY % b"false")
        for path in (
            "/",
            "/healthz",
            "/readyz",
            "/api/v1/usage?group_by=account,key",
            "/api/v1/limits",
            "/api/v1/queue",
        ):
            _, headers, body = await stack.send("GET", path)
            assert PLANTED not in body + b"".join(headers.values())
        assert PLANTED.decode() not in repr(stack.house)

    with_stack(test)
    for file in tmp_path.iterdir():
        assert PLANTED not in file.read_bytes(), file
