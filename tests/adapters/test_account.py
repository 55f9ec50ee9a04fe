"""An account on a real socket: what goes to the provider, what comes back, and that its key is seen nowhere else."""

import asyncio
import gzip
import json
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from http_peers import Peer, Play, Script, answering, answering_once, client_for, playing, silent, ticks
from test_anthropic import BEGINNING, DOCUMENT, INPUT, SEEN_TOKENS, STREAM, WHOLE
from test_anthropic import MIDDLE as ANTHROPIC_MIDDLE
from test_openai import CHAT_TOLD, SHOWN
from test_openai import STREAM as CHAT_STREAM

from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.answer import AccountAnswer
from headgate.adapters.providers.http import Broken, NoAnswer, NotSent, Timeouts
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.errors import CallerError, ConfigError, ProviderError
from headgate.core.notices import Notices, RateNotice
from headgate.core.retries import Failure
from headgate.core.usage import NO_USAGE, Dialect, Usage
from headgate.ports import Fate, Headers, Request
from headgate.testing import virtual_time

SECRET = "sk-planted-4f1e2d3c"
BODY = b'{"model": "claude-x","max_tokens" :1, "messages":[]}'
CLIENT_HEADERS = [
    (b"Host", b"gateway:8484"),
    (b"Accept-Encoding", b"gzip, br"),
    (b"Connection", b"keep-alive, X-Hop"),
    (b"X-Hop", b"1"),
    (b"User-Agent", b"claude-cli/2"),
    (b"Authorization", b"Bearer client-key"),
    (b"X-Api-Key", b"client-key"),
    (b"api-key", b"client-key"),
    (b"Cookie", b"admin=client-key"),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"a-1,b-2"),
    (b"Anthropic-Unknown", b"kept"),
    (b"X-Claude-Code-Session-Id", b"s"),
    (b"X-Headgate-Session", b"dropped"),
    (b"Content-Length", b"99999"),
    (b"Transfer-Encoding", b"chunked"),
    (b"TE", b"trailers"),
    (b"content-type", b"application/json"),
]


def answer(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def events(*chunks: bytes) -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nrequest-id: req_7\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk)


def request(target: str = "/v1/messages?beta=true", headers: Headers = CLIENT_HEADERS, body: bytes = BODY) -> Request:
    return Request("POST", target, headers, body, "call-1.1")


@asynccontextmanager
async def account(
    *plays: Play, dialect: str = "anthropic", path: str = "", key: str | None = SECRET, **options: Any
) -> AsyncIterator[tuple[AccountProvider, Script]]:
    async with playing(*plays) as script, client_for() as client:
        url = f"http://{script.origin.label}{path}"
        yield AccountProvider("main", VENDORS[dialect], url, key, client, **options), script


async def read(answered: AccountAnswer) -> bytes:
    return b"".join([chunk async for chunk in answered])


def sent_headers(script: Script) -> list[bytes]:
    return script.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


# --- what goes to the provider


def test_only_credentials_and_what_belongs_to_the_connection_are_replaced() -> None:
    async def main() -> None:
        async with account(answering(answer(DOCUMENT))) as (provider, script):
            async with provider.send(request()) as answered:
                await read(answered)
            host = script.origin.label.encode()
            assert script.requests[0] == b"\r\n".join(
                [
                    b"POST /v1/messages?beta=true HTTP/1.1",
                    b"host: " + host,
                    b"Accept-Encoding: identity",
                    b"User-Agent: claude-cli/2",
                    b"anthropic-version: 2023-06-01",
                    b"anthropic-beta: a-1,b-2",
                    b"Anthropic-Unknown: kept",
                    b"X-Claude-Code-Session-Id: s",
                    b"content-type: application/json",
                    b"x-api-key: " + SECRET.encode(),
                    b"content-length: %d" % len(BODY),
                    b"",
                    BODY,
                ]
            )

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("dialect", "key", "credential"),
    [
        ("anthropic", "sk-ant-api03-x", b"x-api-key: sk-ant-api03-x"),
        ("anthropic", "sk-ant-oat01-x", b"authorization: Bearer sk-ant-oat01-x"),
        ("openai", "sk-x", b"authorization: Bearer sk-x"),
    ],
)
def test_a_key_goes_where_the_vendor_expects_it(dialect: Dialect, key: str, credential: bytes) -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), dialect=dialect, key=key) as (provider, script):
            async with provider.send(request()):
                pass
            assert credential in sent_headers(script)
            assert b"client-key" not in script.requests[0]

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("headers", "beta"),
    [
        ([], b"anthropic-beta: oauth-2025-04-20"),
        ([(b"Anthropic-Beta", b"x")], b"Anthropic-Beta: x,oauth-2025-04-20"),
        ([(b"anthropic-beta", b"oauth-2025-04-20, y")], b"anthropic-beta: oauth-2025-04-20, y"),
    ],
)
def test_a_plans_token_comes_with_the_beta_it_needs(headers: Headers, beta: bytes) -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), key="sk-ant-oat01-x") as (provider, script):
            async with provider.send(request(headers=headers)):
                pass
            assert [line for line in sent_headers(script) if b"beta" in line.lower()] == [beta]

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("dialect", "path", "target", "expected"),
    [
        ("anthropic", "", "/v1/messages?beta=true", b"/v1/messages?beta=true"),
        ("anthropic", "/", "/v1/messages", b"/v1/messages"),
        ("anthropic", "/v1", "/v1/messages", b"/v1/messages"),
        ("anthropic", "/proxy/", "/v1/messages", b"/proxy/v1/messages"),
        ("openai", "", "/v1/responses", b"/v1/responses"),
        ("openai", "/v1", "/v1/responses?x=1", b"/v1/responses?x=1"),
        ("openai", "/v1/", "/v1/responses", b"/v1/responses"),
        ("openai", "/api/v1", "/v1/embeddings", b"/api/v1/embeddings"),
        ("openai", "/v1beta/openai", "/v1/embeddings", b"/v1beta/openai/embeddings"),
    ],
)
def test_a_base_url_is_joined_as_the_vendors_sdk_would(
    dialect: Dialect, path: str, target: str, expected: bytes
) -> None:
    async def main() -> None:
        async with account(answering(answer(b"{}")), dialect=dialect, path=path) as (provider, script):
            async with provider.send(request(target)):
                pass
            assert script.requests[0].split(b" ")[1] == expected

    virtual_time.run(main())


@pytest.mark.parametrize("reconcile", [True, False])
def test_the_calls_id_goes_only_to_a_provider_that_keeps_it(reconcile: bool) -> None:  # noqa: FBT001 - a parameter of the test
    async def main() -> None:
        async with account(answering(answer(b"{}")), reconcile=reconcile) as (provider, script):
            async with provider.send(request()):
                pass
            assert (b"x-headgate-call-id: call-1.1" in sent_headers(script)) == reconcile
            async with provider.send(replace(request("/v1/models"), call_id="")):
                pass
            assert b"x-headgate-call-id" not in script.requests[1]

    virtual_time.run(main())


def test_a_get_goes_through_with_its_encoding_and_uses_nothing() -> None:
    async def main() -> None:
        async with account(answering(answer(b'{"data":[]}'))) as (provider, script):
            models = Request("GET", "/v1/models?limit=1000", CLIENT_HEADERS, b"", "c")
            async with provider.send(models) as answered:
                assert await read(answered) == b'{"data":[]}'
                assert answered.usage == NO_USAGE
            assert script.requests[0].startswith(b"GET /v1/models?limit=1000 HTTP/1.1\r\n")
            assert b"Accept-Encoding: gzip, br" in sent_headers(script)

    virtual_time.run(main())


# --- what comes back


def test_an_answer_passes_with_its_headers_but_for_those_of_the_connection() -> None:
    async def main() -> None:
        headers = [
            b"Content-Type: application/json",
            b"request-id: req_7",
            b"anthropic-ratelimit-requests-remaining: 9",
            b"connection: keep-alive, x-hop",
            b"keep-alive: timeout=5",
            b"x-hop: 1",
            b"set-cookie: __cf_bm=1",
            b"X-Headgate-Call-Id: theirs",
        ]
        play = answering(answer(DOCUMENT, *headers))
        async with account(play) as (provider, _), provider.send(request()) as answered:
            assert answered.status == 200
            assert answered.headers == [
                (b"Content-Type", b"application/json"),
                (b"request-id", b"req_7"),
                (b"anthropic-ratelimit-requests-remaining", b"9"),
                (b"content-length", b"%d" % len(DOCUMENT)),
            ]
            assert await read(answered) == DOCUMENT
            assert (answered.usage, answered.failure) == (INPUT._replace(output_tokens=30), None)
            assert (answered.provider_request, answered.finish) == ("req_7", "end_turn")
            assert answered.model_served == "claude-sonnet-4-5-20250929"

    virtual_time.run(main())


def test_a_stream_passes_as_it_arrives_and_its_input_is_known_early() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(events(BEGINNING))
            await go_on.wait()
            await peer.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(STREAM) - len(BEGINNING), STREAM[len(BEGINNING) :]))

        async with account(play) as (provider, _), provider.send(request()) as answered:
            assert answered.usage is None
            assert await anext(answered) == BEGINNING
            assert answered.usage == INPUT._replace(output_tokens=1, reported=False)
            go_on.set()
            assert await read(answered) == STREAM[len(BEGINNING) :]
            assert answered.usage == WHOLE

    virtual_time.run(main())


def test_a_stream_that_breaks_is_a_failure_with_what_was_used_until_then() -> None:
    async def main() -> None:
        play = answering_once(events(BEGINNING + ANTHROPIC_MIDDLE))
        async with account(play) as (provider, _), provider.send(request()) as answered:
            assert await anext(answered) == BEGINNING + ANTHROPIC_MIDDLE
            with pytest.raises(Broken):
                await anext(answered)
            assert answered.usage == INPUT._replace(output_tokens=SEEN_TOKENS, reported=False)
            assert answered.failure == Failure("connection", "broken_reset")

    virtual_time.run(main())


def test_an_error_event_is_a_failure_of_the_answer() -> None:
    async def main() -> None:
        error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n'
        play = answering(events(BEGINNING, error) + b"0\r\n\r\n")
        async with account(play) as (provider, _), provider.send(request()) as answered:
            assert await read(answered) == BEGINNING + error
            assert answered.failure == Failure("overloaded", "overloaded_error")

    virtual_time.run(main())


@pytest.mark.parametrize("size_bytes", [2, 1_000_000])
def test_an_errors_body_is_read_for_the_failure_and_still_passes(size_bytes: int) -> None:
    async def main() -> None:
        error = {"type": "error", "error": {"type": "rate_limit_error", "message": "m" * size_bytes}}
        body = json.dumps(error).encode()
        play = answering(answer(body, b"retry-after: 7", b"request-id: r", status=b"429 Too Many Requests"))
        async with account(play) as (provider, _), provider.send(request()) as answered:
            word = "rate_limit_error" if size_bytes == 2 else "http_429"  # what is read of a huge one is no JSON
            assert answered.failure == Failure("limited", word, 429, 7.0)
            assert await read(answered) == body
            assert (answered.status, answered.usage, answered.provider_request) == (429, None, "r")
            assert answered.failure == Failure("limited", word, 429, 7.0)

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("dialect", "header", "told"),
    [
        (
            "anthropic",
            b"anthropic-ratelimit-requests-remaining: 3",
            RateNotice("requests", remaining=3),
        ),
        ("openai", b"x-ratelimit-remaining-tokens: 3", RateNotice("tokens", remaining=3)),
    ],
)
def test_what_an_answer_says_of_limits_is_read_in_its_accounts_dialect(
    dialect: Dialect, header: bytes, told: RateNotice
) -> None:
    async def main() -> None:
        refused = answer(b"{}", b"retry-after: 7", header, status=b"429 Too Many Requests")
        async with (
            account(answering(refused), dialect=dialect) as (provider, _),
            provider.send(request()) as answered,
        ):
            assert answered.notices(1_800_000_000.0) == Notices((told,), retry_after_s=7.0)

    asyncio.run(main())


def test_an_error_whose_body_breaks_off_keeps_its_status() -> None:
    async def main() -> None:
        cut_off = b"HTTP/1.1 529 Overloaded\r\ncontent-length: 100\r\n\r\n{"
        async with account(answering_once(cut_off)) as (provider, _), provider.send(request()) as answered:
            assert answered.failure == Failure("overloaded", "http_529", 529)
            assert await anext(answered) == b"{"
            with pytest.raises(Broken):
                await anext(answered)
            assert answered.failure == Failure("overloaded", "http_529", 529)

    virtual_time.run(main())


def test_leaving_early_cancels_upstream() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(events(BEGINNING))
            assert await peer.reader.read() == b""
            gone.set()

        async with account(play) as (provider, _):
            async with provider.send(request()) as answered:
                await anext(answered)
            await gone.wait()
            assert asyncio.get_running_loop().time() < 1.0  # at once, not by a time-out
            assert answered.usage == INPUT._replace(output_tokens=1, reported=False)

    virtual_time.run(main())


def test_a_call_that_is_cancelled_while_its_error_is_read_leaves_no_connection() -> None:
    async def main() -> None:
        said, gone = asyncio.Event(), asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 500 X\r\ncontent-length: 100\r\n\r\n{")
            said.set()
            await peer.reader.read()
            gone.set()

        async with account(play) as (provider, _):
            task = asyncio.create_task(provider.send(request()).__aenter__())
            await said.wait()
            await ticks(50)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()
            assert asyncio.get_running_loop().time() < 1.0  # at once, not by a time-out

    virtual_time.run(main())


def test_an_encoded_error_is_read_and_passes_encoded() -> None:
    async def main() -> None:
        body = gzip.compress(b'{"error":{"type":"authentication_error"}}')
        play = answering(answer(body, b"content-encoding: gzip", status=b"401 Unauthorized"))
        async with account(play) as (provider, _), provider.send(request("/v1/models")) as answered:
            assert answered.failure == Failure("rejected", "authentication_error", 401, retryable=False)
            assert await read(answered) == body

    virtual_time.run(main())


# --- chat streams and their usage

CHAT_BODY = b'{"model":"gpt-x", "stream" : true,"messages":[{"role":"user","content":"\\u6c34 "}]}'


def test_a_chat_stream_is_metered_and_its_client_sees_nothing_of_it() -> None:
    async def main() -> None:
        play = answering(events(*[CHAT_STREAM[at : at + 99] for at in range(0, len(CHAT_STREAM), 99)]) + b"0\r\n\r\n")
        async with account(play, dialect="openai") as (provider, script):
            async with provider.send(request("/v1/chat/completions", body=CHAT_BODY)) as answered:
                assert await read(answered) == SHOWN
                assert (answered.usage, answered.provider_request) == (CHAT_TOLD, "chatcmpl-1")
            sent = script.requests[0].partition(b"\r\n\r\n")[2]
            assert sent == b'{"stream_options":{"include_usage":true},' + CHAT_BODY[1:]

    virtual_time.run(main())


def test_a_chat_stream_whose_client_asked_passes_whole() -> None:
    async def main() -> None:
        body = CHAT_BODY.replace(b'"messages"', b'"stream_options":{"include_usage":true},"messages"')
        async with account(answering(events(CHAT_STREAM) + b"0\r\n\r\n"), dialect="openai") as (provider, script):
            async with provider.send(request("/v1/chat/completions", body=body)) as answered:
                assert await read(answered) == CHAT_STREAM
                assert answered.usage == CHAT_TOLD
            assert script.requests[0].endswith(b"\r\n\r\n" + body)

    virtual_time.run(main())


def test_half_an_event_is_not_passed_on_so_that_an_error_can_follow() -> None:
    async def main() -> None:
        part = BEGINNING + ANTHROPIC_MIDDLE[:20]
        async with account(answering_once(events(part))) as (provider, _), provider.send(request()) as answered:
            assert await anext(answered) == BEGINNING
            with pytest.raises(Broken):
                await anext(answered)

    virtual_time.run(main())


def test_a_length_that_counts_a_hidden_chunk_is_not_passed_on() -> None:
    async def main() -> None:
        play = answering(answer(CHAT_STREAM, b"content-type: text/event-stream"))
        async with (
            account(play, dialect="openai") as (provider, _),
            provider.send(request("/v1/chat/completions", body=CHAT_BODY)) as answered,
        ):
            assert answered.headers == [(b"content-type", b"text/event-stream")]
            assert await read(answered) == SHOWN

    virtual_time.run(main())


def test_a_chat_that_cannot_be_metered_is_the_callers_mistake() -> None:
    async def main() -> None:
        async with account(silent, dialect="openai") as (provider, script):
            body = b'{"stream":true,"stream_options":{},"stream_options":null}'
            with pytest.raises(CallerError, match="comes twice"):
                provider.send(request("/v1/chat/completions", body=body))
            assert script.peers == []

    virtual_time.run(main())


# --- no answer


def test_no_answer_says_whether_anything_was_sent() -> None:
    async def main() -> None:
        async with account(silent, timeouts=Timeouts(first_byte_s=5.0)) as (provider, _):
            with pytest.raises(NoAnswer) as caught:
                await provider.send(request()).__aenter__()
            assert caught.value.failure == Failure("connection", "no_answer_timeout")
            nobody = AccountProvider("main", VENDORS["anthropic"], "http://127.0.0.1:1", SECRET, provider._client)
            with pytest.raises(NotSent) as refused:
                await nobody.send(request()).__aenter__()
            assert refused.value.failure == Failure("connection", "not_sent_connect", sent=False)
            assert isinstance(refused.value, ProviderError)

    virtual_time.run(main())


def test_whoever_gives_up_while_it_connects_knows_that_nothing_left() -> None:
    async def main() -> None:
        async with account(silent) as (provider, script):
            called = request()
            for passes in range(1_000):
                called = request()
                call = asyncio.ensure_future(provider.send(called).__aenter__())
                await ticks(passes)
                call.cancel()
                await asyncio.wait([call])
                await ticks(20)
                if called.passage.sent:
                    break
                assert script.requests == []
            # What may have left is said before it can arrive.
            assert called.passage.sent
            assert passes > 1

    virtual_time.run(main())


# --- what became of a call


def kept(state: str, **more: Any) -> bytes:
    usage = {
        "input_tokens": 1,
        "cache_read_tokens": 2,
        "cache_write_5m_tokens": 3,
        "cache_write_1h_tokens": 4,
        "output_tokens": 5,
        "reasoning_tokens": 0,
    }
    return json.dumps({"state": state, "model": "m", "usage": usage, "request_id": "req_1", **more}).encode()


@pytest.mark.parametrize(
    ("status", "body", "fate"),
    [
        (b"200 OK", kept("done"), Fate(Usage(1, 2, 3, 4, 5), provider_request="req_1")),
        (b"200 OK", kept("cancelled"), Fate(Usage(1, 2, 3, 4, 5), provider_request="req_1")),
        (b"200 OK", kept("running"), None),
        (
            b"200 OK",
            kept("done", earlier=[json.loads(kept("failed"))]),
            Fate(Usage(2, 4, 6, 8, 10), provider_request="req_1"),
        ),
        (b"404 Not Found", b'{"error":"no call"}', Fate(NO_USAGE, arrived=False)),
    ],
)
def test_what_became_of_a_call_is_looked_up(status: bytes, body: bytes, fate: Fate | None) -> None:
    async def main() -> None:
        play = answering(answer(body, status=status))
        async with account(play, dialect="openai", path="/v1", reconcile=True) as (provider, script):
            assert await provider.look_up("a/b c.1") == fate
            assert script.requests[0].startswith(b"GET /_provider/calls/a%2Fb%20c.1 HTTP/1.1\r\n")
            assert b"authorization: Bearer " + SECRET.encode() in sent_headers(script)

    virtual_time.run(main())


@pytest.mark.parametrize(("status", "body"), [(b"500 X", b"{}"), (b"200 OK", b"<html>"), (b"200 OK", b'{"state":"x"}')])
def test_a_look_up_that_cannot_be_understood_is_no_answer(status: bytes, body: bytes) -> None:
    async def main() -> None:
        async with account(answering(answer(body, status=status)), reconcile=True) as (provider, _):
            with pytest.raises(ProviderError, match=r"account main: what became of call c\.1 is not told"):
                await provider.look_up("c.1")

    virtual_time.run(main())


def test_a_provider_that_keeps_no_ids_is_not_asked() -> None:
    async def main() -> None:
        async with account(silent) as (provider, script):
            assert await provider.look_up("c.1") is None
            assert script.peers == []

    virtual_time.run(main())


# --- the key


def test_the_key_is_in_no_repr_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        said = []
        async with account(answering_once(b"garbage"), reconcile=True) as (provider, _):
            said += [repr(provider), str(provider), repr(provider.send(request()))]
            for attempt in (provider.send(request()).__aenter__(), provider.look_up("c.1")):
                with pytest.raises(ProviderError) as caught:
                    await attempt
                said += [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
        assert not any(SECRET in each for each in said)

    caplog.set_level(logging.DEBUG)
    virtual_time.run(main())
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("url", "key", "message"),
    [
        ("ftp://x", SECRET, "account main: base_url: expected a URL"),
        ("https://user:sk-planted-4f1e2d3c@x", SECRET, "account main: base_url: expected a URL"),
        ("https://x/v1?a=1", SECRET, "account main: base_url has a query"),
        ("https://x", "", "account main: its API key is empty"),
        ("https://x", SECRET + "\n", "account main: its API key is empty or has characters that no key has"),
        ("https://x", SECRET + "ä", "account main: its API key"),
        ("https://x", SECRET + " x", "account main: its API key"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused_without_showing_the_key(url: str, key: str, message: str) -> None:
    async def main() -> None:
        async with client_for() as client:
            with pytest.raises(ConfigError) as caught:
                AccountProvider("main", VENDORS["anthropic"], url, key, client)
            assert str(caught.value).startswith(message)
            assert SECRET not in "".join(traceback.format_exception(caught.value))

    virtual_time.run(main())
