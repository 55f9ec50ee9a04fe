"""Anthropic's wire: what is read of its answers, and refusals that its own SDK takes for the vendor's."""

import gzip
import json
import zlib
from typing import Any

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_streams import JSON, SSE, anthropic_client, carry, cut, endpoint

from headgate.adapters.providers import meters
from headgate.adapters.providers.failures import read_failure
from headgate.adapters.providers.meters import open_meter
from headgate.adapters.providers.refusals import error_answer, error_event
from headgate.core.retries import Failure
from headgate.core.usage import NO_USAGE, Usage

PATH = "/v1/messages?beta=true"


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


START_USAGE = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 300,
    "cache_read_input_tokens": 4_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    "output_tokens": 1,
    "service_tier": "standard",
}
MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": START_USAGE,
}
THINKING = "Hm, „was“ ist das? 水"
TEXT = 'A brace } and "usage":{"input_tokens":9} in text\n\n'
ARGUMENTS = '{"path": "a/b.py", "usage": {"output_tokens": 7}}'
BEGINNING = event("message_start", message=MESSAGE) + event("ping")
MIDDLE = b"".join(
    [
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": THINKING}),
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "Eq8B" * 500}),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=1, delta={"type": "text_delta", "text": TEXT}),
        event("content_block_stop", index=1),
        event("content_block_start", index=2, content_block={"type": "tool_use", "id": "t", "name": "r", "input": {}}),
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": ARGUMENTS}),
        event("content_block_stop", index=2),
    ]
)
END = event(
    "message_delta",
    delta={"stop_reason": "tool_use", "stop_sequence": None},
    usage={"output_tokens": 89, "output_tokens_details": {"thinking_tokens": 12}},
) + event("message_stop")
STREAM = BEGINNING + MIDDLE + END
INPUT = Usage(21, 4_000, 100, 200)
SEEN_TOKENS = -(-len(THINKING + TEXT + ARGUMENTS) // 4)
WHOLE = INPUT._replace(output_tokens=89, reasoning_tokens=12)


# --- streams


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_stream_passes_byte_for_byte_and_its_usage_is_read_however_it_is_cut(places: list[int]) -> None:
    passed, meter = carry(PATH, SSE, cut(STREAM, places))
    assert passed == STREAM
    reading = meter.reading
    assert reading.usage == WHOLE
    assert (reading.model, reading.message_id, reading.finish) == ("claude-sonnet-4-5-20250929", "msg_01", "tool_use")
    assert reading.failure is None


def test_an_event_passes_as_soon_as_it_is_complete_and_not_by_halves() -> None:
    meter = open_meter(endpoint(PATH), SSE, b"", hides_usage=False)
    for each in STREAM.split(b"\n\n")[:-1]:
        assert meter.feed(each + b"\n") == b""
        assert meter.feed(b"\n") == each + b"\n\n"


def test_the_input_is_known_with_the_first_event_and_not_before() -> None:
    first = STREAM.index(b"\n\n") + 2
    meter = open_meter(endpoint(PATH), SSE, b"", hides_usage=False)
    meter.feed(STREAM[: first - 1])
    assert meter.reading.usage is None
    meter.feed(STREAM[first - 1 : first])
    assert meter.reading.usage == INPUT._replace(output_tokens=1, reported=False)


def test_a_stream_that_is_cut_keeps_its_input_and_counts_the_output_that_was_seen() -> None:
    for end in range(len(BEGINNING), len(STREAM) - len(END)):
        passed, meter = carry(PATH, SSE, [STREAM[:end]])
        usage = meter.reading.usage
        assert passed == STREAM[:end]
        assert usage is not None
        assert usage._replace(output_tokens=0) == INPUT._replace(reported=False)
        assert 1 <= usage.output_tokens <= SEEN_TOKENS
    _, meter = carry(PATH, SSE, [BEGINNING + MIDDLE])
    assert meter.reading.usage == INPUT._replace(output_tokens=SEEN_TOKENS, reported=False)


def test_the_last_word_on_usage_counts_also_on_the_input() -> None:
    """With server tools, `message_delta` restates the input; the split of cache writes is told at the start only."""
    restated = {"input_tokens": 50, "cache_creation_input_tokens": 450, "cache_read_input_tokens": None}
    end = [
        event("message_delta", delta={"stop_reason": None}, usage={"output_tokens": 5}),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={**restated, "output_tokens": 9}),
    ]
    _, meter = carry(PATH, SSE, [BEGINNING, end[0]])
    assert meter.reading.usage == INPUT._replace(output_tokens=5, reported=False)
    _, meter = carry(PATH, SSE, [BEGINNING, *end])
    assert meter.reading.usage == Usage(50, 4_000, 250, 200, 9)
    less = event("message_delta", delta={}, usage={"cache_creation_input_tokens": 150, "output_tokens": 9})
    _, meter = carry(PATH, SSE, [BEGINNING, *end, less])
    assert meter.reading.usage == Usage(50, 4_000, 0, 150, 9)


def test_an_error_in_the_stream_is_a_failure_and_what_was_used_is_known() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    stream = BEGINNING + event("error", error=error, request_id="req_1")
    passed, meter = carry(PATH, SSE, [stream])
    assert passed == stream
    assert meter.reading.failure == Failure("overloaded", "overloaded_error")
    assert meter.reading.usage == INPUT._replace(output_tokens=1, reported=False)


@pytest.mark.parametrize(
    "noise",
    [
        b"event: content_block_delta\ndata: {broken\n\n",
        b"event: message_delta\ndata: [1]\n\n",
        b'data: {"type":"message_delta","delta":{"stop_reason":4},"usage":{"output_tokens":5}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":"many"}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":-3}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":1e300}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","usage":null}\n\n',
        b'event: new_thing\ndata: {"type":"new_thing","delta":null,"usage":7}\n\n',
        b"event: nothing\n\n",
        b": comment\n\n",
        b"data: [DONE]\n\n",
        b"event: error\ndata: \xff\xfe\n\n",
        b'event: x\ndata: {"type":' + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_cannot_be_understood_passes_and_harms_nothing(noise: bytes) -> None:
    stream = BEGINNING + noise + MIDDLE + noise + END + noise
    passed, meter = carry(PATH, SSE, [stream])
    assert passed == stream
    assert meter.reading.usage == WHOLE


def test_data_without_a_space_or_over_lines_is_read_all_the_same() -> None:
    stream = STREAM.replace(b"\ndata: ", b"\ndata:").replace(b'"message_delta",', b'"message_delta",\r\ndata:')
    assert carry(PATH, SSE, [stream])[1].reading.usage == WHOLE


def test_a_stream_that_never_tells_its_usage_tells_what_was_seen_only() -> None:
    message = {name: value for name, value in MESSAGE.items() if name != "usage"}
    stream = (
        event("message_start", message=message) + MIDDLE + event("message_delta", delta={"stop_reason": "end_turn"})
    )
    reading = carry(PATH, SSE, [stream])[1].reading
    assert (reading.usage, reading.output_seen_tokens) == (None, SEEN_TOKENS)


# --- documents


DOCUMENT = json.dumps({**MESSAGE, "stop_reason": "end_turn", "usage": {**START_USAGE, "output_tokens": 30}}).encode()


@given(st.lists(st.integers(0, len(DOCUMENT)), max_size=8), st.sampled_from(["", "gzip", "zlib", "raw"]))
def test_a_document_is_read_however_it_is_cut_and_encoded(places: list[int], encoded: str) -> None:
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body, encoding = {
        "": (DOCUMENT, b""),
        "gzip": (gzip.compress(DOCUMENT), b"gzip"),
        "zlib": (zlib.compress(DOCUMENT), b"Deflate"),
        "raw": (bare.compress(DOCUMENT) + bare.flush(), b"deflate"),
    }[encoded]
    passed, meter = carry(PATH, JSON, cut(body, places), encoding=encoding)
    assert passed == body
    assert meter.reading.usage == INPUT._replace(output_tokens=30)
    assert (meter.reading.finish, meter.reading.message_id) == ("end_turn", "msg_01")


def test_a_gzipped_stream_is_read_beside_the_way() -> None:
    body = gzip.compress(STREAM)
    passed, meter = carry(PATH, SSE, [body[:100], body[100:]], encoding=b"gzip")
    assert (passed, meter.reading.usage) == (body, WHOLE)


def test_a_document_is_read_with_its_last_byte_before_its_end_is_known() -> None:
    """A client that has all of its answer may go before the end of the body is told."""
    meter = open_meter(endpoint(PATH), JSON, b"", hides_usage=False)
    for at in range(0, len(DOCUMENT), 9):
        assert meter.reading.usage is None
        meter.feed(DOCUMENT[at : at + 9])
    assert meter.reading.usage == INPUT._replace(output_tokens=30)


@pytest.mark.parametrize("body", [DOCUMENT[:-1], b"", b"null", b"{}", b'{"usage":null}', b"<html>"])
def test_a_document_that_tells_no_usage_has_none(body: bytes) -> None:
    passed, meter = carry(PATH, JSON, [body])
    assert (passed, meter.reading.usage) == (body, None)


@pytest.mark.parametrize(
    ("fields", "usage"),
    [
        ({"output_tokens": "x"}, INPUT._replace(reported=False)),
        ({"output_tokens": -1}, INPUT._replace(reported=False)),
        ({"output_tokens": None}, INPUT._replace(reported=False)),
        ({"output_tokens": 0}, INPUT),
        ({"output_tokens": 30, "cache_read_input_tokens": "many"}, None),
    ],
)
def test_a_figure_that_cannot_be_read_is_not_nothing(fields: dict[str, Any], usage: Usage | None) -> None:
    document = json.dumps({**MESSAGE, "stop_reason": "end_turn", "usage": {**START_USAGE, **fields}}).encode()
    told = carry(PATH, JSON, [document])[1].reading.usage
    assert told == (usage or INPUT._replace(cache_read_tokens=0, output_tokens=30, reported=False))


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"gzip"])
def test_a_body_that_cannot_be_decoded_passes_unmetered(encoding: bytes) -> None:
    for content_type in (JSON, SSE):
        passed, meter = carry(PATH, content_type, [b"\x00\x01", b"\x02{}"], encoding=encoding)
        assert (passed, meter.reading.usage) == (b"\x00\x01\x02{}", None)


def test_what_is_too_large_passes_unmetered_and_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "DOCUMENT_LIMIT_BYTES", 100)
    passed, meter = carry(PATH, JSON, cut(DOCUMENT, range(0, len(DOCUMENT), 60)))
    assert (passed, meter.reading.usage, meter._chunks) == (DOCUMENT, None, [])


def test_a_body_made_to_explode_is_given_up() -> None:
    decoder = meters.BodyDecoder(limit_bytes=1_000)
    body = gzip.compress(b"0" * 10_000_000)
    assert len(decoder.feed(body[:5_000])) == 1_000
    assert decoder.feed(body[5_000:]) == b""


def test_counting_tokens_uses_none() -> None:
    _, meter = carry("/v1/messages/count_tokens", JSON, [b'{"input_tokens":7}'])
    assert meter.reading.usage == NO_USAGE


# --- failures


def body_of(kind: str, **extra: Any) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": "m", **extra}, "request_id": "r"}).encode()


SPENT = body_of("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})


@pytest.mark.parametrize(
    ("status", "headers", "body", "failure"),
    [
        (429, {"retry-after": "7"}, body_of("rate_limit_error"), Failure("limited", "rate_limit_error", 429, 7.0)),
        (429, {"Retry-After-Ms": "1500", "retry-after": "2"}, b"", Failure("limited", "http_429", 429, 1.5)),
        (429, {"x-ms-retry-after-ms": "250", "retry-after": "1"}, b"", Failure("limited", "http_429", 429, 0.25)),
        (429, {"retry-after-ms": "nan", "retry-after": "3"}, b"", Failure("limited", "http_429", 429, 3.0)),
        (429, {"retry-after": "-3"}, b"", Failure("limited", "http_429", 429)),
        (429, {"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT"}, b"", Failure("limited", "http_429", 429)),
        (
            429,
            {"retry-after": "Fri, 20 Nov 2026 12:00:30 GMT", "date": "Fri, 20 Nov 2026 12:00:00 GMT"},
            b"",
            Failure("limited", "http_429", 429, 30.0),
        ),
        (
            429,
            {"retry-after": "Fri, 20 Nov 2026 11:00:00 GMT", "date": "Fri, 20 Nov 2026 12:00:00 GMT"},
            b"",
            Failure("limited", "http_429", 429, 0.0),
        ),
        (429, {}, SPENT, Failure("limited", "enforced_spend_limit_reached", 429, retryable=False)),
        (429, {"retry-after": "5"}, SPENT, Failure("limited", "enforced_spend_limit_reached", 429, 5.0)),
        (529, {}, body_of("overloaded_error"), Failure("overloaded", "overloaded_error", 529)),
        (503, {}, b"<html>", Failure("overloaded", "http_503", 503)),
        (500, {}, body_of("api_error"), Failure("server", "api_error", 500)),
        (500, {"x-should-retry": "false"}, body_of("api_error"), Failure("server", "api_error", 500, retryable=False)),
        (408, {}, b"", Failure("server", "http_408", 408)),
        (409, {}, b"", Failure("server", "http_409", 409)),
        (400, {}, body_of("invalid_request_error"), Failure("rejected", "invalid_request_error", 400, retryable=False)),
        (400, {"x-should-retry": "true"}, b"{}", Failure("server", "http_400", 400)),
        (402, {}, body_of("billing_error"), Failure("rejected", "billing_error", 402, retryable=False)),
        (307, {}, b"", Failure("rejected", "http_307", 307, retryable=False)),
        (401, {}, b'{"error":"no"}', Failure("rejected", "http_401", 401, retryable=False)),
        (401, {}, b'{"error":{"type":4,"details":[]}}', Failure("rejected", "http_401", 401, retryable=False)),
        (400, {}, body_of("x\n" * 90), Failure("rejected", "x?" * 32, 400, retryable=False)),
        (500, {}, body_of("api_error")[:-4], Failure("server", "http_500", 500)),
    ],
)
def test_a_failure_is_read_by_the_rules_of_the_vendors_sdks(
    status: int, headers: dict[str, str], body: bytes, failure: Failure
) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert read_failure(status, raw, body) == failure


# --- our refusals, as the official SDK sees them


def refused(kind: Any, **options: Any) -> tuple[Exception, int]:
    calls = 0

    def respond(request: httpx2.Request) -> httpx2.Response:
        nonlocal calls
        calls += 1
        status, headers, body = error_answer("anthropic", kind, "because of 4 > 3", request_id="req_9", **options)
        return httpx2.Response(status, headers=headers, content=body)

    with anthropic_client(respond, max_retries=1) as client, pytest.raises(anthropic.APIError) as caught:
        client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    return caught.value, calls


@pytest.mark.parametrize(
    ("kind", "error", "status", "error_type"),
    [
        ("invalid_request", anthropic.BadRequestError, 400, "invalid_request_error"),
        ("authentication", anthropic.AuthenticationError, 401, "authentication_error"),
        ("permission", anthropic.PermissionDeniedError, 403, "permission_error"),
        ("not_found", anthropic.NotFoundError, 404, "not_found_error"),
        ("unknown_model", anthropic.NotFoundError, 404, "not_found_error"),
        ("method", anthropic.APIStatusError, 405, "invalid_request_error"),
        ("too_large", anthropic.APIStatusError, 413, "request_too_large"),
        ("rate_limited", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("budget_spent", anthropic.RateLimitError, 429, "rate_limit_error"),
        ("overloaded", anthropic.APIStatusError, 529, "overloaded_error"),
        ("upstream_failed", anthropic.InternalServerError, 502, "api_error"),
        ("upstream_timeout", anthropic.APIStatusError, 504, "timeout_error"),
        ("internal", anthropic.InternalServerError, 500, "api_error"),
    ],
)
def test_a_refusal_is_the_sdks_own_error(kind: Any, error: type[Exception], status: int, error_type: str) -> None:
    caught, calls = refused(kind, should_retry=False)
    assert isinstance(caught, anthropic.APIStatusError)
    assert isinstance(caught, error)
    assert (caught.status_code, caught.request_id, calls) == (status, "req_9", 1)
    assert caught.body == {
        "type": "error",
        "error": {"type": error_type, "message": "because of 4 > 3"},
        "request_id": "req_9",
    }


def test_the_sdk_tries_again_when_told_so_and_not_for_a_spent_budget() -> None:
    assert refused("rate_limited", retry_after_s=0.001)[1] == 2
    assert refused("budget_spent", retry_after_s=0.001)[1] == 1


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"),
    [
        (0.0, b"1", b"1"),
        (0.2, b"1", b"200"),
        (1.001, b"2", b"1001"),
        (2.007, b"3", b"2007"),
        (59.0, b"59", b"59000"),
        (61.5001, b"62", b"61501"),
    ],
)
def test_a_wait_is_rounded_up(wait_s: float, seconds: bytes, milliseconds: bytes) -> None:
    headers = dict(error_answer("anthropic", "rate_limited", "m", retry_after_s=wait_s, request_id="r")[1])
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (seconds, milliseconds)
    assert headers[b"x-should-retry"] == (b"true" if wait_s <= 60 else b"false")


def test_a_stream_that_has_begun_ends_with_an_error_the_sdk_raises() -> None:
    stream = BEGINNING + error_event(endpoint(PATH), "upstream_failed", "cut off", request_id="req_9")

    def respond(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": SSE.decode()}, content=stream)

    with anthropic_client(respond) as client, pytest.raises(anthropic.APIStatusError, match="cut off"):
        list(client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}], stream=True))
