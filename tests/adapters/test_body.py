"""Bodies of requests: what is read of them, what is refused and how, and the one splice that changes nothing else."""

import base64
import json
import random
from contextlib import suppress
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict
from wire_streams import anthropic_client, endpoint, openai_client

from headgate.adapters.providers.body import ask_for_usage, cache_life, text_size
from headgate.adapters.providers.call_head import CallHead, read_call
from headgate.adapters.providers.endpoints import dialect_of, endpoint_of
from headgate.core.errors import CallerError

MESSAGES = endpoint("/v1/messages")
CHAT = endpoint("/v1/chat/completions")
RESPONSES = endpoint("/v1/responses")
EMBEDDINGS = endpoint("/v1/embeddings")
COUNT = endpoint("/v1/messages/count_tokens")


def read(where: Any, body: Any, **headers: str) -> CallHead:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return read_call(where, raw, body if isinstance(body, bytes) else json.dumps(body).encode())


# --- endpoints


@pytest.mark.parametrize(
    ("target", "headers", "name", "dialect"),
    [
        ("/v1/messages?beta=true", [], "messages", "anthropic"),
        ("/v1/messages", [], "messages", "anthropic"),
        ("/v1/messages/count_tokens", [], "count_tokens", "anthropic"),
        ("/v1/chat/completions", [(b"x-api-key", b"k")], "chat", "openai"),
        ("/v1/responses", [], "responses", "openai"),
        ("/v1/embeddings", [], "embeddings", "openai"),
        ("/v1/models?limit=1000", [(b"Anthropic-Version", b"2023-06-01")], "models", "anthropic"),
        ("/v1/models", [(b"X-Api-Key", b"k")], "models", "anthropic"),
        ("/v1/models", [(b"authorization", b"Bearer k")], "models", "openai"),
    ],
)
def test_a_path_finds_its_endpoint(target: str, headers: list[Any], name: str, dialect: str) -> None:
    found = endpoint_of(target, headers)
    assert found is not None
    assert (found.name, found.dialect, found.metered) == (name, dialect, name not in ("count_tokens", "models"))


def test_an_unknown_path_still_has_a_dialect_for_its_refusal() -> None:
    assert endpoint_of("/v2/messages", []) is None
    assert dialect_of("/v1/messages/nothing", []) == "anthropic"
    assert dialect_of("/v2", [(b"anthropic-version", b"1")]) == "anthropic"
    assert dialect_of("/v2", []) == "openai"
    assert dialect_of("/v1/chat/completions?x=1", [(b"x-api-key", b"k")]) == "openai"


# --- what is read


def test_a_call_is_read_with_its_body_and_its_headers() -> None:
    body = {"model": "claude-x", "max_tokens": 64, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    head = read(
        MESSAGES,
        body,
        X_Headgate_Max_Wait="12.5",
        x_stainless_timeout="NOT_GIVEN",
        x_stainless_read_timeout="600",
    )
    size = len(json.dumps(body))
    assert (head.model, head.stream, head.max_output_tokens) == ("claude-x", True, 64)
    assert (head.text_bytes, head.media, head.cache_write) == (size, 0, None)
    assert (head.max_wait_s, head.client_timeout_s) == (12.5, 600.0)


def test_what_a_client_does_not_say_is_none() -> None:
    head = read(MESSAGES, {"model": "m"})
    told = {"model": "m", "stream": False, "text_bytes": 14, "media": 0}
    assert asdict(head) == {name: told.get(name) for name in CallHead.__struct_fields__}


@pytest.mark.parametrize(
    ("where", "fields", "most"),
    [
        (MESSAGES, {"max_tokens": 0}, 0),  # fills a prompt cache without an answer
        (MESSAGES, {"max_output_tokens": "x"}, None),
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        (CHAT, {"max_completion_tokens": 9, "n": 3}, 27),
        (CHAT, {"max_tokens": None, "n": 3}, None),
        (RESPONSES, {"max_output_tokens": 5}, 5),
        (EMBEDDINGS, {"max_tokens": 5}, 0),
        (COUNT, {"max_tokens": 5}, 0),
    ],
)
def test_the_most_output_is_what_the_vendor_would_take_for_it(where: Any, fields: Any, most: int | None) -> None:
    assert read(where, {"model": "m", **fields}).max_output_tokens == most


# --- what is refused


@pytest.mark.parametrize(
    ("where", "body", "message"),
    [
        (MESSAGES, b"", "the body is not JSON: Input data was truncated"),
        (MESSAGES, b"{model}", "the body is not JSON: "),
        (MESSAGES, b'{"model":"m"', "the body is not JSON: "),
        (MESSAGES, b'{"model":"m"} x', "the body is not JSON: "),
        (MESSAGES, b'{"\xff":1}', "the body is not JSON: "),
        (MESSAGES, b'{"a":' + b"[" * 100_000, "the body is not JSON: "),
        (MESSAGES, b"[1, 2]", "the body is [1, 2]: expected a JSON object"),
        (MESSAGES, b"null", "the body is null: expected a JSON object"),
        (MESSAGES, {}, "model is missing: expected the name of a model"),
        (EMBEDDINGS, {"input": "x"}, "model is missing: expected the name of a model"),
        (MESSAGES, {"model": None}, "model is null: expected a name of 1 to 200 printable characters"),
        (MESSAGES, {"model": 5}, "model is 5: expected a name of 1 to 200 printable characters"),
        (MESSAGES, {"model": ""}, 'model is "": expected a name'),
        (MESSAGES, {"model": "a\nb"}, 'model is "a\\nb": expected a name'),
        (MESSAGES, {"model": "m" * 500}, f'model is "{"m" * 39}…: expected a name'),
        (MESSAGES, {"model": "m", "max_tokens": -5}, "max_tokens is -5: expected a positive whole number"),
        (MESSAGES, {"model": "m", "max_tokens": 1.5}, "max_tokens is 1.5: expected a positive whole number"),
        (MESSAGES, {"model": "m", "max_tokens": "9"}, 'max_tokens is "9": expected a positive whole number'),
        (MESSAGES, {"model": "m", "max_tokens": True}, "max_tokens is true: expected a positive whole number"),
        (MESSAGES, {"model": "m", "max_tokens": 10**30}, f"max_tokens is {10**30}: expected a positive whole number"),
        (MESSAGES, {"model": "m", "max_tokens": [{"a": "b" * 99}]}, "max_tokens is [{"),
        (CHAT, {"model": "m", "max_completion_tokens": 0}, "max_completion_tokens is 0: expected a positive"),
        (CHAT, {"model": "m", "n": 0}, "n is 0: expected a positive whole number"),
        (RESPONSES, {"model": "m", "max_output_tokens": 0}, "max_output_tokens is 0: expected a positive"),
        (MESSAGES, {"model": "m", "stream": "true"}, 'stream is "true": expected true or false'),
        (CHAT, {"model": "m", "stream": 1}, "stream is 1: expected true or false"),
    ],
)
def test_bad_input_is_named_with_its_value_and_what_was_expected(where: Any, body: Any, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        read(where, body)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 140


@pytest.mark.parametrize("value", ["", "-1", "nan", "inf", "1m"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(value: str) -> None:
    with pytest.raises(CallerError, match=r"x-headgate-max-wait is .*: expected seconds"):
        read(MESSAGES, {"model": "m"}, x_headgate_max_wait=value)


def test_an_encoded_body_is_refused() -> None:
    with pytest.raises(CallerError, match="content-encoding zstd: expected a body that is not encoded"):
        read(MESSAGES, b"\x28\xb5\x2f\xfd", content_encoding="zstd")


@given(st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["model", "stream", "max_tokens", "n"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    for where in (MESSAGES, CHAT, RESPONSES, EMBEDDINGS):
        with suppress(CallerError):
            read_call(where, [], body)
    with suppress(CallerError):
        ask_for_usage(body)


# --- text and media


def picture(size_bytes: int, seed: int = 1) -> str:
    return base64.b64encode(random.Random(seed).randbytes(size_bytes)).decode()


PICTURE = picture(30_000)
PROSE = "It is, as ever, a question of who may call now. " * 200


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
        {"type": "document", "source": {"data": PICTURE, "media_type": "application/pdf", "type": "base64"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PICTURE}},
        {"type": "input_image", "image_url": "data:image/jpeg;charset=x;base64," + PICTURE},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64," + PICTURE}},
        {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
    ],
)
def test_media_are_counted_and_their_bytes_are_no_text(part: dict[str, Any], separators: tuple[str, str]) -> None:
    content = [{"type": "text", "text": PROSE}, part, {"type": "text", "text": PROSE}, part]
    body = json.dumps({"model": "m", "messages": [{"content": content}]}, separators=separators).encode()
    size = text_size(body)
    assert size.media == 2
    assert len(PROSE) * 2 < size.text_bytes < len(PROSE) * 2 + 700


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "", "signature": PICTURE},
        {"type": "redacted_thinking", "data": PICTURE},
        {"type": "reasoning", "encrypted_content": PICTURE},
        {"type": "text", "text": json.dumps({"type": "base64", "media_type": "image/png", "data": PICTURE})},
        {"type": "text", "text": f"<img src='data:image/png;base64,{PICTURE}'>"},
        {"type": "text", "text": f'here "data:image/png;base64,{PICTURE} it breaks off'},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PROSE}},
    ],
)
def test_what_is_no_media_stays_text(part: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "messages": [{"content": [part, {"type": "text", "text": PROSE}]}]}).encode()
    assert text_size(body) == (len(body), 0)


def test_redacted_thinking_beside_a_picture_is_no_second_picture() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
    content = [{"type": "redacted_thinking", "data": PICTURE}, image]
    body = json.dumps(content, separators=(",", ":")).encode()
    assert text_size(body) == (len(body) - len(PICTURE), 1)


@given(st.integers(3_200, 9_000), st.integers(0, 5_000))
def test_no_picture_of_some_size_is_missed_wherever_it_stands(size_bytes: int, before: int) -> None:
    url = "data:image/png;base64," + picture(size_bytes, before)
    body = json.dumps({"text": "a b " * (before // 4) + "c" * (before % 4), "url": url}).encode()
    assert text_size(body) == (len(body) - len(url), 1)


@given(st.binary(max_size=200), st.integers(0, 40))
def test_any_bytes_have_a_size(seed: bytes, times: int) -> None:
    body = (seed + b'"' + b"A" * 200 + b'"' + seed) * times
    size = text_size(body)
    assert 0 <= size.text_bytes <= len(body)


@pytest.mark.parametrize(
    ("fields", "life"),
    [
        ({}, None),
        ({"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}, "5m"),
        ({"cache_control": {"type": "ephemeral", "ttl": "5m"}}, "5m"),
        (
            {
                "system": [{"text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
                "messages": [{"content": [{"text": "y", "cache_control": {"type": "ephemeral"}}]}],
            },
            "1h",
        ),
        ({"messages": [{"content": 'said "cache_control": {"ttl": "1h"}'}]}, None),
        ({"tools": [{"cache_control": {"type": "ephemeral"}}] * 200}, "1h"),  # past the bound: the dearest
    ],
)
def test_the_longest_prompt_cache_that_is_asked_for_is_known(fields: dict[str, Any], life: str | None) -> None:
    assert read(MESSAGES, {"model": "m", **fields}).cache_write == life
    assert read(CHAT, {"model": "m", **fields}).cache_write is None
    assert cache_life(json.dumps(fields, separators=(",", ":")).encode()) == life


# --- asking for usage

NESTED = (
    b'{"messages":[{"content":"\\"stream_options\\":null"},{"stream_options":null}],"stream_options":OPTIONS,'
    b'"stream":true,"seed":123456789012345678901234567890}'
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', b'{"stream_options":{"include_usage":true},"stream":true}'),
        (
            b' \n{ "model" : "m" , "stream" : true } ',
            b' \n{"stream_options":{"include_usage":true}, "model" : "m" , "stream" : true } ',
        ),
        (b'{"stream":true,"stream_options":null}', b'{"stream":true,"stream_options":{"include_usage":true}}'),
        (b'{"stream_options": {} ,"stream":true}', b'{"stream_options": {"include_usage":true} ,"stream":true}'),
        (
            b'{"stream":true, "stream_options" :{ "include_obfuscation" : false } }',
            b'{"stream":true, "stream_options" :{"include_usage":true, "include_obfuscation" : false } }',
        ),
        (
            b'{"stream":true,"stream_options":{"a":[{}], "include_usage" : false,"z":"}"},"b":1E+2}',
            b'{"stream":true,"stream_options":{"a":[{}], "include_usage" : true,"z":"}"},"b":1E+2}',
        ),
        (
            b'{"stream":true,"stream_options":{"include_usage":null}}',
            b'{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b'{"stream":true,"\\u0073tream_options":{"include\\u005fusage":false}}',
            b'{"stream":true,"\\u0073tream_options":{"include\\u005fusage":true}}',
        ),
        (NESTED.replace(b"OPTIONS", b"null"), NESTED.replace(b"OPTIONS", b'{"include_usage":true}')),
        (b'{"stream":true,"stream_options":{"include_usage":true}}', None),
        (b'{"stream":true,"stream_options":{"include_usage":"yes"}}', None),  # the provider's to refuse
        (b'{"stream":true,"stream_options":7}', None),
        (b'{"stream":false}', None),
        (b'{"stream":null}', None),
        (b'{"stream":1}', None),
        (b'{"messages":[{"stream":true}]}', None),
        (b"{}", None),
        (b'{"stream":true', None),
        (b"", None),
    ],
)
def test_usage_is_asked_for_by_changing_one_span(body: bytes, expected: bytes | None) -> None:
    assert ask_for_usage(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"stream_options":{},"stream_options":null}',
        b'{"a":1,"stream":true,"a":2,"stream_options":null}',
        b'{"a":1,"a":1,"stream":true,"stream_options":null}',
        b'{"stream":true,"a":null,"a":null,"stream_options":null}',
        b'{"stream":true,"stream_options":{"include_usage":true,"include_usage":false}}',
    ],
)
def test_a_field_that_comes_twice_where_the_splice_must_go_is_refused(body: bytes) -> None:
    with pytest.raises(CallerError, match="comes twice"):
        ask_for_usage(body)


SPACES = st.text(" \t\n\r", max_size=3)
STRINGS = st.sampled_from(['"stream_options":null', '\\"}', "水", "\u2028", "a\\", '{"stream":true}', "", "x" * 30])
LEAVES = st.none() | st.booleans() | st.integers() | st.integers(2**70, 2**80) | STRINGS
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(STRINGS | st.sampled_from(["stream_options", "include_usage", "stream"]), inner, max_size=3)
    ),
    max_leaves=6,
)
OPTIONS = st.none() | st.dictionaries(st.sampled_from(["include_obfuscation", "x"]), LEAVES, max_size=2).flatmap(
    lambda others: st.sampled_from([others, {**others, "include_usage": False}, {"include_usage": None, **others}])
)


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """Write JSON with spaces and escapes as no library would."""
    if isinstance(value, dict):
        members = [
            draw(written(name)) + draw(SPACES) + ":" + draw(SPACES) + draw(written(inner))
            for name, inner in value.items()
        ]
        return "{" + draw(SPACES) + (draw(SPACES) + "," + draw(SPACES)).join(members) + draw(SPACES) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(SPACES) + draw(written(inner)) for inner in value) + draw(SPACES) + "]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


@st.composite
def chats(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    fields = draw(st.dictionaries(st.sampled_from(["messages", "tools", "seed", "user"]), VALUES))
    fields["stream"] = True
    if draw(st.booleans()):
        fields["stream_options"] = draw(OPTIONS)
    fields = dict(draw(st.permutations(list(fields.items()))))
    return (draw(SPACES) + draw(written(fields)) + draw(SPACES)).encode(), fields


@given(chats())
def test_the_body_means_the_same_but_for_the_usage_and_keeps_every_other_byte(chat: tuple[bytes, Any]) -> None:
    body, fields = chat
    asked = ask_for_usage(body)
    assert asked is not None
    options = {**(fields.get("stream_options") or {}), "include_usage": True}
    assert json.loads(asked) == {**fields, "stream_options": options}
    same_start = next(
        (at for at, (a, b) in enumerate(zip(body, asked, strict=False)) if a != b), min(len(body), len(asked))
    )
    shortest = min(len(body), len(asked)) - same_start
    same_end = next((at for at in range(shortest) if body[-1 - at] != asked[-1 - at]), shortest)
    # One span: what was written in it is the option, what it replaces is at most a `null` or a `false`.
    assert len(asked) - same_start - same_end <= len(b'"stream_options":{"include_usage":true},')
    assert len(body) - same_start - same_end <= len(b"false")
    assert ask_for_usage(asked) is None


# --- what the official SDKs really send


def test_the_sdks_bodies_and_time_outs_are_read() -> None:
    heads = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        found = endpoint_of(request.url.path, [])
        assert found is not None
        heads.append(read_call(found, request.headers.raw, request.content))
        return httpx2.Response(400)

    say: Any = [{"role": "user", "content": "hi"}]
    with anthropic_client(respond) as client, pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="claude-x", max_tokens=9, messages=say, stream=True)
    with anthropic_client(respond) as client, pytest.raises(anthropic.BadRequestError):
        client.with_options(timeout=7.5).messages.create(model="claude-x", max_tokens=9, messages=say)
    with openai_client(respond) as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gpt-x", max_completion_tokens=5, messages=say, timeout=4)
    assert [(head.model, head.stream, head.max_output_tokens, head.client_timeout_s) for head in heads] == [
        ("claude-x", True, 9, 600.0),
        ("claude-x", False, 9, 7.5),
        ("gpt-x", False, 5, 4.0),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","stream":true,"stream_options":{"inc\xff\xfelude_usage":false,"x":1}}',
        b'{"m\xf6\x7fodel":"m","model":"m","stream":true,"stream_options":{"include_usage":false}}',
    ],
)
def test_a_field_whose_name_is_no_text_is_the_providers_to_refuse(body: bytes) -> None:
    """It was a 500 (found by fuzzing)."""
    assert read(CHAT, body).stream
    assert ask_for_usage(body) is None


@pytest.mark.parametrize(
    "body", [b'-1{"model":"a\nb"', b'{"model":"a\\u0000b","stream":"\n\x1b[31m"}', b'"\r\nGET / HTTP/1.1"']
)
def test_what_is_told_of_a_body_is_one_line_of_text(body: bytes) -> None:
    """A line of a log could be made to look like two (found by fuzzing)."""
    with pytest.raises(CallerError) as refused:
        read(CHAT, body)
    assert str(refused.value).isprintable()
