"""OpenAI's wire: what is read of its answers, the chunk that is hidden, and refusals that its SDK takes for its own."""

import gzip
import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_streams import JSON, SSE, carry, cut, endpoint, openai_client

from headgate.adapters.providers.failures import read_failure
from headgate.adapters.providers.meters import open_meter
from headgate.adapters.providers.refusals import error_answer, error_event
from headgate.core.retries import Failure
from headgate.core.usage import Usage

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"

DONE = b"data: [DONE]\n\n"
CHAT_USAGE = {
    "prompt_tokens": 1_200,
    "completion_tokens": 34,
    "total_tokens": 1_234,
    "prompt_tokens_details": {"cached_tokens": 1_024, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 20},
}
CHAT_TOLD = Usage(176, 1_024, output_tokens=34, reasoning_tokens=20)


def data(fields: Any, **separators: Any) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False, **separators).encode() + b"\n\n"


def chunk(choices: list[dict[str, Any]], **extra: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-2026-08-07"}
    return data({**head, "choices": choices, **extra})


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"index": 0, "delta": fields, "logprobs": None, "finish_reason": finish_reason}


CONTENT = 'Say "usage": {"prompt_tokens": 5} „so“ 水 \\ and "choices":[]'
ARGUMENTS = '{"usage":{"completion_tokens":1},"choices":[]}'
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
CHUNKS = [
    data({"id": "", "choices": [], "model": "", "prompt_filter_results": [{"prompt_index": 0}]}),  # Azure begins so
    chunk([delta(role="assistant", content="")], usage=None, obfuscation="aB3"),
    chunk([delta(content=CONTENT)], usage=None),
    b": keep-alive\n\n",
    chunk([delta(tool_calls=[CALL])], usage=None),
    chunk([delta("tool_calls")], usage=None),
]
USAGE_CHUNK = chunk([], usage=CHAT_USAGE)
SHOWN = b"".join(CHUNKS) + DONE
STREAM = b"".join(CHUNKS) + USAGE_CHUNK + DONE


# --- chat streams


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_the_usage_chunk_is_read_and_hidden_and_nothing_else_changes(places: list[int]) -> None:
    passed, meter = carry(CHAT, SSE, cut(STREAM, places), hides_usage=True)
    assert passed == SHOWN
    reading = meter.reading
    assert reading.usage == CHAT_TOLD
    assert (reading.model, reading.message_id, reading.finish) == ("gpt-5-2026-08-07", "chatcmpl-1", "tool_calls")


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_a_client_that_asked_for_usage_gets_every_byte(places: list[int]) -> None:
    passed, meter = carry(CHAT, SSE, cut(STREAM, places))
    assert (passed, meter.reading.usage) == (STREAM, CHAT_TOLD)


def test_an_event_that_is_complete_is_not_held_back() -> None:
    meter = open_meter(endpoint(CHAT), SSE, b"", hides_usage=True)
    assert [meter.feed(each) for each in (*CHUNKS, USAGE_CHUNK, DONE)] == [*CHUNKS, b"", DONE]


def test_usage_on_a_chunk_with_choices_passes_as_it_is() -> None:
    last = chunk([delta("stop")], usage=CHAT_USAGE)
    stream = b"".join(CHUNKS[:3]) + last + DONE
    passed, meter = carry(CHAT, SSE, [stream], hides_usage=True)
    assert (passed, meter.reading.usage) == (stream, CHAT_TOLD)


def test_usage_on_every_chunk_is_final_with_the_last_one_only() -> None:
    running = [chunk([delta(content="four")], usage={**CHAT_USAGE, "completion_tokens": count}) for count in (1, 2)]
    _, meter = carry(CHAT, SSE, running)
    assert meter.reading.usage == CHAT_TOLD._replace(output_tokens=2, reported=False)
    _, meter = carry(CHAT, SSE, [*running, chunk([], usage={**CHAT_USAGE, "completion_tokens": 3}), DONE])
    assert meter.reading.usage == CHAT_TOLD._replace(output_tokens=3)


def test_a_stream_that_is_cut_passes_to_the_byte_and_tells_what_was_seen() -> None:
    whole = sum(map(len, CHUNKS))
    for end in range(whole):
        passed, meter = carry(CHAT, SSE, [STREAM[:end]], hides_usage=True)
        assert passed == STREAM[:end]
        assert meter.reading.usage is None
    _, meter = carry(CHAT, SSE, CHUNKS)
    assert meter.reading.output_seen_tokens == -(-len(CONTENT + ARGUMENTS) // 4)


def test_a_usage_chunk_that_is_cut_off_is_not_read_by_halves() -> None:
    _, meter = carry(CHAT, SSE, [STREAM[: STREAM.index(b"total_tokens")]], hides_usage=True)
    assert meter.reading.usage is None


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ({"type": "server_error", "code": None, "message": "m"}, Failure("server", "server_error")),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, Failure("limited", "rate_limit_exceeded")),
        ({"code": "insufficient_quota"}, Failure("limited", "insufficient_quota", retryable=False)),
        ({"code": "invalid_prompt"}, Failure("rejected", "invalid_prompt", retryable=False)),
        ("odd", Failure("rejected", "error_event", retryable=False)),
    ],
)
def test_an_error_in_a_chat_stream_is_a_failure(error: Any, failure: Failure) -> None:
    stream = CHUNKS[1] + data({"error": error})
    passed, meter = carry(CHAT, SSE, [stream], hides_usage=True)
    assert (passed, meter.reading.failure) == (stream, failure)


@pytest.mark.parametrize(
    "noise",
    [
        b"data: {broken\n\n",
        b'data: {"choices":7,"usage":{"prompt_tokens":5,"completion_tokens":5}}\n\n',
        b'data: {"choices":[],"usage":7}\n\n',
        b'data: {"choices":null,"usage":null}\n\n',
        b"data: [1,2]\n\n",
        b"data: \xff\n\n",
    ],
)
def test_what_cannot_be_understood_passes_and_harms_nothing(noise: bytes) -> None:
    passed, meter = carry(CHAT, SSE, [noise + STREAM[: -len(DONE)] + noise + DONE], hides_usage=True)
    assert passed == noise + SHOWN[: -len(DONE)] + noise + DONE
    assert meter.reading.usage == CHAT_TOLD


def test_an_encoded_stream_passes_whole_for_nothing_can_be_hidden_in_it() -> None:
    body = gzip.compress(STREAM)
    passed, meter = carry(CHAT, SSE, [body], encoding=b"gzip", hides_usage=True)
    assert (passed, meter.reading.usage) == (body, CHAT_TOLD)


def test_the_sdk_sees_the_stream_it_asked_for() -> None:
    passed, _ = carry(CHAT, SSE, [STREAM], hides_usage=True)
    with openai_client(
        lambda _: httpx2.Response(200, headers={"content-type": SSE.decode()}, content=passed)
    ) as client:
        chunks = list(client.chat.completions.create(model="m", messages=[], stream=True))
    assert [each.usage for each in chunks] == [None] * 5
    assert chunks[2].choices[0].delta.content == CONTENT


def test_output_that_cannot_be_read_is_what_was_seen_of_it() -> None:
    stream = STREAM.replace(b'"completion_tokens":', b'"completion_tokens":"x","y":')
    usage = carry(CHAT, SSE, [stream])[1].reading.usage
    assert usage == CHAT_TOLD._replace(output_tokens=-(-len(CONTENT + ARGUMENTS) // 4), reported=False)


@pytest.mark.parametrize(
    "usage",
    [
        b'"usage":%b',
        b'"usage": %b',
        b'"usage" :\t%b',
        b'"x":{"usage":null},"usage":%b',
        b'"usage":%b,"x":{"usage":null}',
    ],
)
@pytest.mark.parametrize("end", [b"null", b'"stop"'])
def test_usage_is_told_as_soon_as_it_comes_whatever_else_is_put_off(usage: bytes, end: bytes) -> None:
    piece = b'{"id":"c","model":"m","choices":[{"delta":{"content":"%b"},"finish_reason":%b}],%b}'
    meter = open_meter(endpoint(CHAT), SSE, b"", hides_usage=False)
    for text in (b"one", rb"say \"usage\":{}", b"three"):
        meter.feed(b"data: %b\n\n" % (piece % (text, b"null", b'"usage":null')))
    assert meter.reading.usage is None
    told = usage % b'{"prompt_tokens":7,"completion_tokens":3}'
    meter.feed(b"data: %b\n\n" % (piece % (b"", end, told)))
    assert meter.reading.told == Usage(7, output_tokens=3)
    assert meter.reading.finish == (None if end == b"null" else "stop")
    assert meter.reading.output_seen_tokens == 6  # of 22 characters
    assert meter.reading.output_characters == 22


# --- documents and responses


def test_a_chat_completion_is_read() -> None:
    document = data({"id": "c", "model": "gpt-5", "choices": [{"finish_reason": "stop"}], "usage": CHAT_USAGE})[6:]
    passed, meter = carry(CHAT, JSON, cut(document, range(0, 400, 13)))
    assert passed == document
    assert (meter.reading.usage, meter.reading.finish, meter.reading.model) == (CHAT_TOLD, "stop", "gpt-5")


@pytest.mark.parametrize(
    ("fields", "usage"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 2}, Usage(10, output_tokens=2)),
        ({"prompt_tokens": 10, "prompt_tokens_details": None, "completion_tokens": None}, Usage(10, reported=False)),
        ({"prompt_tokens": 10, "completion_tokens": "2"}, Usage(10, reported=False)),
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": "9"}},
            Usage(10, output_tokens=2, reported=False),
        ),
        ({"prompt_tokens": 10.0, "completion_tokens": 2.0}, Usage(10, output_tokens=2)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 99}}, Usage(0, 10, reported=False)),
        (
            {"prompt_tokens": 100, "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 50}},
            Usage(20, 30, 50, reported=False),
        ),
        ({"completion_tokens": 5}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": "10"}, None),
    ],
)
def test_categories_do_not_overlap_and_what_is_not_told_is_not_nothing(
    fields: dict[str, Any], usage: Usage | None
) -> None:
    _, meter = carry(CHAT, JSON, [json.dumps({"usage": fields}).encode()])
    assert meter.reading.usage == usage
    assert usage is None or usage.prompt_tokens == fields["prompt_tokens"]


RESPONSE_USAGE = {
    "input_tokens": 500,
    "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 60},
    "output_tokens": 77,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 577,
}
RESPONSE_TOLD = Usage(40, 400, 60, 0, 77, 64)


def response(status: str, **fields: Any) -> dict[str, Any]:
    return {"id": "resp_1", "model": "gpt-5", "status": status, "usage": None, "error": None, "tools": [{}], **fields}


def response_event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + data({"type": kind, "sequence_number": 1, **fields})


RESPONSE_BEGINNING = b"".join(
    [
        response_event("response.created", response=response("in_progress")),
        response_event("response.output_item.added", output_index=0, item={"type": "message"}),
        response_event("response.reasoning_summary_text.delta", delta="think", item_id="i"),
        response_event("response.output_text.delta", delta='a "b" 水', logprobs=[], obfuscation="xyz"),
        response_event("response.function_call_arguments.delta", delta="{}"),
        response_event("response.output_text.done", text='a "b" 水'),
    ]
)


@pytest.mark.parametrize(
    ("kind", "fields", "finish"),
    [
        ("completed", {}, "completed"),
        ("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}}, "max_output_tokens"),
        ("failed", {"error": {"code": "server_error", "message": "m"}}, "failed"),
    ],
)
def test_a_responses_stream_is_read_however_it_ends(kind: str, fields: dict[str, Any], finish: str) -> None:
    end = response_event(f"response.{kind}", response=response(kind, usage=RESPONSE_USAGE, **fields))
    stream = RESPONSE_BEGINNING + end
    for size in (1, 50, 10_000):
        passed, meter = carry(RESPONSES, SSE, [stream[at : at + size] for at in range(0, len(stream), size)])
        assert passed == stream
        reading = meter.reading
        assert (reading.usage, reading.finish, reading.message_id) == (RESPONSE_TOLD, finish, "resp_1")
        assert reading.failure == (Failure("server", "server_error") if kind == "failed" else None)


def test_a_responses_stream_that_is_cut_or_fails_without_usage_tells_what_was_seen() -> None:
    failed = response_event("response.failed", response=response("failed", error={"code": "rate_limit_exceeded"}))
    for end in (b"", failed):
        reading = carry(RESPONSES, SSE, [RESPONSE_BEGINNING, end])[1].reading
        assert (reading.usage, reading.output_seen_tokens) == (None, -(-len('thinka "b" 水{}') // 4))
    assert reading.failure == Failure("limited", "rate_limit_exceeded")


def test_an_error_event_of_the_responses_stream_is_a_failure() -> None:
    stream = RESPONSE_BEGINNING + response_event("error", code="server_is_overloaded", message="m", param=None)
    assert carry(RESPONSES, SSE, [stream])[1].reading.failure == Failure("overloaded", "server_is_overloaded")


def test_a_response_document_is_read_and_one_still_in_the_background_has_no_usage_yet() -> None:
    done = json.dumps(response("completed", usage=RESPONSE_USAGE)).encode()
    queued = json.dumps(response("queued")).encode()
    assert carry(RESPONSES, JSON, [done])[1].reading.usage == RESPONSE_TOLD
    reading = carry(RESPONSES, JSON, [queued])[1].reading
    assert (reading.usage, reading.finish) == (None, None)


def test_embeddings_are_read() -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.25] * 500}
    document = {"object": "list", "data": [vector] * 4, "model": "e-3", "usage": {"prompt_tokens": 8}}
    body = json.dumps(document).encode()
    passed, meter = carry(EMBEDDINGS, JSON, cut(body, range(0, 10_000, 500)))
    assert (passed, meter.reading.usage, meter.reading.model) == (body, Usage(8), "e-3")


# --- failures and refusals


@pytest.mark.parametrize(
    ("status", "error", "failure"),
    [
        (
            429,
            {"type": "insufficient_quota", "code": "insufficient_quota"},
            Failure("limited", "insufficient_quota", 429, retryable=False),
        ),
        (429, {"type": "tokens", "code": "rate_limit_exceeded"}, Failure("limited", "rate_limit_exceeded", 429)),
        (401, {"type": "x", "code": "invalid_api_key"}, Failure("rejected", "invalid_api_key", 401, retryable=False)),
        (500, {"type": "server_error", "code": None}, Failure("server", "server_error", 500)),
    ],
)
def test_a_failure_is_read(status: int, error: dict[str, Any], failure: Failure) -> None:
    assert read_failure(status, [], json.dumps({"error": {"message": "m", "param": None, **error}}).encode()) == failure


@pytest.mark.parametrize(
    ("kind", "error", "status", "error_type", "code"),
    [
        ("invalid_request", openai.BadRequestError, 400, "invalid_request_error", None),
        ("authentication", openai.AuthenticationError, 401, "invalid_request_error", "invalid_api_key"),
        ("permission", openai.PermissionDeniedError, 403, "invalid_request_error", "permission_denied"),
        ("not_found", openai.NotFoundError, 404, "invalid_request_error", None),
        ("unknown_model", openai.NotFoundError, 404, "invalid_request_error", "model_not_found"),
        ("method", openai.APIStatusError, 405, "invalid_request_error", "method_not_supported"),
        ("too_large", openai.APIStatusError, 413, "invalid_request_error", "request_too_large"),
        ("rate_limited", openai.RateLimitError, 429, "rate_limit_exceeded", "rate_limit_exceeded"),
        ("budget_spent", openai.RateLimitError, 429, "insufficient_quota", "insufficient_quota"),
        ("overloaded", openai.InternalServerError, 503, "server_error", None),
        ("upstream_failed", openai.InternalServerError, 502, "server_error", None),
        ("upstream_timeout", openai.InternalServerError, 504, "server_error", None),
        ("internal", openai.InternalServerError, 500, "server_error", None),
    ],
)
def test_a_refusal_is_the_sdks_own_error(
    kind: Any, error: type[Exception], status: int, error_type: str, code: str | None
) -> None:
    def respond(request: httpx2.Request) -> httpx2.Response:
        answer = error_answer("openai", kind, "because", retry_after_s=3, should_retry=False, request_id="req_9")
        return httpx2.Response(answer[0], headers=answer[1], content=answer[2])

    with openai_client(respond) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[])
    assert isinstance(caught.value, error)
    assert (caught.value.status_code, caught.value.request_id) == (status, "req_9")
    assert (caught.value.type, caught.value.code, caught.value.param) == (error_type, code, None)
    assert caught.value.body == {"message": "because", "type": error_type, "param": None, "code": code}


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_stream_that_has_begun_ends_with_an_error_the_sdk_raises(path: str) -> None:
    beginning = CHUNKS[1] if path == CHAT else RESPONSE_BEGINNING
    body = beginning + error_event(endpoint(path), "upstream_failed", "cut off", request_id="r")
    reply = httpx2.Response(200, headers={"content-type": SSE.decode()}, content=body)
    with openai_client(lambda _: reply) as client:
        stream = (
            client.chat.completions.create(model="m", messages=[], stream=True)
            if path == CHAT
            else client.responses.create(model="m", input="x", stream=True)
        )
        with pytest.raises(openai.APIError, match="cut off"):
            list(stream)
