"""What must be known of a call before it is sent: the few fields of its body and headers that admission needs.

One rule: what a vendor would accept is accepted; what is wrong is named, with its value and what was expected.
Everything else in the body is the provider's to judge. Whom the call belongs to is for the gateway to say, which knows
the key.
"""

import math
from typing import Annotated, Any

import msgspec

from headgate.adapters.providers.body import cache_life, text_size
from headgate.adapters.providers.endpoints import Endpoint, EndpointName
from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.errors import CallerError
from headgate.ports import Headers

__all__ = ["CallHead", "read_call", "read_model", "stated_wait_s"]


class CallHead(msgspec.Struct, frozen=True, gc=False):
    """A call as its client describes it.

    `cache_write` is the longest prompt cache it asks for. `max_wait_s` is how long the client says it will wait to be
    admitted, `client_timeout_s` when its SDK gives up if not one byte has come.
    """

    # A msgspec struct because making one costs a fifth of a frozen dataclass, and every call makes one.
    model: str
    stream: bool
    max_output_tokens: int | None
    text_bytes: int
    media: int
    cache_write: str | None
    max_wait_s: float | None
    client_timeout_s: float | None


def read_call(endpoint: Endpoint, headers: Headers, body: bytes) -> CallHead:
    """Read the head of a call to one of the endpoints that take a body.

    Raises:
        CallerError: the body or a header of ours cannot be used.
    """
    named = {name.lower(): value for name, value in headers}
    encoding = named.get(b"content-encoding", b"identity")
    if encoding not in (b"", b"identity"):
        raise CallerError(f"content-encoding {_clip(encoding)}: expected a body that is not encoded")
    model, stream, max_output_tokens = _read_body(endpoint, body)
    size = text_size(body)
    return CallHead(
        model,
        stream,
        max_output_tokens,
        size.text_bytes,
        size.media,
        cache_life(body) if endpoint.name == "messages" else None,
        stated_wait_s(named.get(b"x-headgate-max-wait")),
        _client_timeout_s(named),
    )


def read_model(body: bytes) -> str:
    """Give the model that a body names; empty where it cannot be read, which is the provider's to refuse."""
    try:
        return _DECODERS["embeddings"].decode(body).model
    except UNREADABLE:
        return ""


# --- the body

# The longest in the price list has 66 characters; what passes goes into the ledger, into logs and names of limits.
_MOST_NAME_CHARS = 200
# No model writes so much; beyond it a sum would not fit a database's integer.
_MOST_COUNT = 10**9

# What a completion writes at the most where it does not say (OpenAI's reference of completions).
_COMPLETION_TOKENS = 16

_Model = Annotated[str, msgspec.Meta(min_length=1, max_length=_MOST_NAME_CHARS)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST_COUNT)]
_NotNegative = Annotated[int, msgspec.Meta(ge=0, le=_MOST_COUNT)]


class _Messages(msgspec.Struct, gc=False):
    model: _Model
    stream: bool | None = None
    max_tokens: _NotNegative | None = None  # 0 fills a prompt cache without an answer (anthropic SDK 2.11)


class _Chat(msgspec.Struct, gc=False):
    model: _Model
    stream: bool | None = None
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    n: _Positive | None = None


class _Responses(msgspec.Struct, gc=False):
    model: _Model
    stream: bool | None = None
    max_output_tokens: _Positive | None = None


class _Completions(msgspec.Struct, gc=False):
    model: _Model
    stream: bool | None = None
    max_tokens: _NotNegative | None = None
    n: _Positive | None = None
    best_of: _Positive | None = None
    prompt: msgspec.Raw = msgspec.Raw()


class _ModelOnly(msgspec.Struct, gc=False):
    model: _Model


_Fields = _Messages | _Chat | _Completions | _Responses | _ModelOnly

_SHAPES: dict[EndpointName, type[_Fields]] = {
    "messages": _Messages,
    "count_tokens": _ModelOnly,
    "chat": _Chat,
    "completions": _Completions,
    "responses": _Responses,
    "embeddings": _ModelOnly,
}
_DECODERS = {name: msgspec.json.Decoder(shape) for name, shape in _SHAPES.items()}
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

# What an explanation says was expected of a field, in the order in which fields are looked at.
_EXPECTED: dict[str, tuple[Any, str]] = {
    "model": (_Model, f"a name of 1 to {_MOST_NAME_CHARS} printable characters"),
    "stream": (bool | None, "true or false"),
    "max_tokens": (_Positive | None, "a positive whole number"),
    "max_completion_tokens": (_Positive | None, "a positive whole number"),
    "max_output_tokens": (_Positive | None, "a positive whole number"),
    "n": (_Positive | None, "a positive whole number"),
    "best_of": (_Positive | None, "a positive whole number"),
}
_WRONG = object()
_CLIP_CHARS = 40


def _read_body(endpoint: Endpoint, body: bytes) -> tuple[str, bool, int | None]:
    try:
        fields = _DECODERS[endpoint.name].decode(body)
    except UNREADABLE as error:
        raise CallerError(_explain(endpoint, body) or f"the body cannot be read: {error}") from error
    if not fields.model.isprintable():
        raise CallerError(_explain(endpoint, body))
    match fields:
        case _Messages():
            return fields.model, fields.stream is True, fields.max_tokens
        case _Responses():
            return fields.model, fields.stream is True, fields.max_output_tokens
        case _Chat():
            most = fields.max_completion_tokens if fields.max_completion_tokens is not None else fields.max_tokens
            return fields.model, fields.stream is True, None if most is None else most * (fields.n or 1)
        case _Completions():
            most = _COMPLETION_TOKENS if fields.max_tokens is None else fields.max_tokens
            return fields.model, fields.stream is True, most * _completions(fields)
        case _ModelOnly():
            return fields.model, False, 0


def _completions(asked: _Completions) -> int:
    """Give how many answers a completion writes: each prompt of a list has its own."""
    each = max(asked.n or 1, asked.best_of or 1)
    if not bytes(asked.prompt).startswith(b"["):
        return each
    try:
        prompts = msgspec.json.decode(asked.prompt)
    except UNREADABLE:  # the provider's to refuse
        return each
    return each * (len(prompts) if prompts and not isinstance(prompts[0], int) else 1)


def _explain(endpoint: Endpoint, body: bytes) -> str:
    """Say what is wrong with a body; empty if nothing is found. Only for bodies that were refused, for it is slow."""
    try:
        members = _decode_members(body)
    except msgspec.ValidationError:
        return f"the body is {_clip(body)}: expected a JSON object"
    except UNREADABLE as error:
        return f"the body is not JSON: {error}"
    if "model" not in members:
        return "model is missing: expected the name of a model"
    read = _SHAPES[endpoint.name].__struct_fields__
    for name, (expected, words) in _EXPECTED.items():
        if name not in members or name not in read:
            continue
        try:
            value = msgspec.json.decode(members[name], type=expected)
        except UNREADABLE:
            value = _WRONG
        if value is _WRONG or (name == "model" and not value.isprintable()):
            return f"{name} is {_clip(members[name])}: expected {words}"
    return ""


def _clip(raw: bytes | msgspec.Raw) -> str:
    sent = bytes(raw)[: _CLIP_CHARS * 4].decode(errors="replace")
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in sent)
    return text if len(text) <= _CLIP_CHARS else text[:_CLIP_CHARS] + "…"


# --- headers


def stated_wait_s(value: bytes | None) -> float | None:
    """Read how long a client says that it will wait.

    Raises:
        CallerError: that is no number of seconds.
    """
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is None:
        raise CallerError(f"x-headgate-max-wait is {_clip(value) or 'empty'}: expected seconds, 0 or more")
    return seconds


def _client_timeout_s(headers: dict[bytes, bytes]) -> float | None:
    # anthropic SDK 2.11 sends both, and NOT_GIVEN in the first for its default; openai 3.52 sends the second only.
    for name in (b"x-stainless-read-timeout", b"x-stainless-timeout"):
        seconds = _seconds(headers.get(name, b""))
        if seconds is not None:
            return seconds
    return None


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
