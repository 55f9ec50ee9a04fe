"""OpenAI's wire: usage and errors in chat, responses and embeddings, refusals in its shape (wire.md section 3).

One rule: bytes are only looked at; whoever calls forwards them as they came, but for the events a reader asks to hide.
Servers that are only compatible differ in small things, so that nothing but usage is relied on.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from headgate.adapters.providers.failures import failure_in_stream
from headgate.adapters.providers.reading import UNREADABLE, Reading, decode_event, fields_of, is_unreadable, token_count
from headgate.adapters.providers.sse import Event
from headgate.core.usage import Usage

__all__ = [
    "REQUEST_ID_HEADER",
    "credential",
    "error_body",
    "error_event",
    "only_speaks",
    "read_chat",
    "read_chat_event",
    "read_embeddings",
    "read_response",
    "read_response_event",
    "response_error_event",
    "response_error_told",
    "response_failed_event",
    "usage_of",
]

REQUEST_ID_HEADER = b"x-request-id"


def credential(api_key: str) -> tuple[bytes, bytes]:
    """Give the header that carries a key."""
    return b"authorization", b"Bearer " + api_key.encode("ascii")


def usage_of(fields: Mapping[str, Any]) -> Usage | None:
    """Give the usage that OpenAI's fields tell, in chat's words or those of responses; None if they tell no input.

    The prompt includes what was read from the cache and what was written to it. OpenAI's writes cost 1.25 times the
    input, as Anthropic's for 5 minutes do (genai-prices 0.2, November 2026), so that is where they are counted. It is
    not `reported` where the output is not told, or of the cache what cannot be read.
    """
    prompt = token_count(fields, "prompt_tokens")
    if prompt is not None:
        output = token_count(fields, "completion_tokens")
        prompt_details, output_details = "prompt_tokens_details", "completion_tokens_details"
    else:
        prompt, output = token_count(fields, "input_tokens"), token_count(fields, "output_tokens")
        prompt_details, output_details = "input_tokens_details", "output_tokens_details"
    if prompt is None:
        return None
    read = min(token_count(fields, prompt_details, "cached_tokens") or 0, prompt)
    written = min(token_count(fields, prompt_details, "cache_write_tokens") or 0, prompt - read)
    return Usage(
        input_tokens=prompt - read - written,
        cache_read_tokens=read,
        cache_write_5m_tokens=written,
        output_tokens=output or 0,
        reasoning_tokens=token_count(fields, output_details, "reasoning_tokens") or 0,
        reported=output is not None
        and not any(is_unreadable(fields, prompt_details, name) for name in ("cached_tokens", "cache_write_tokens")),
    )


# --- chat


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _ChatDelta(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # DeepSeek, vLLM and others
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None  # completions
    delta: _ChatDelta | None = None
    finish_reason: str | None = None


class _Chat(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_chat_decoder = msgspec.json.Decoder(_Chat)


def read_chat_event(reading: Reading, event: Event) -> bool:
    """Read one chunk of a chat stream; True for the chunk that is there only because usage was asked for."""
    chunk = decode_event(_chat_decoder, event)
    if chunk is None:
        return False
    reading.message_id = chunk.id or reading.message_id
    reading.model = chunk.model or reading.model
    for choice in chunk.choices or ():
        reading.finish = choice.finish_reason or reading.finish
        if choice.delta is not None:
            reading.output_characters += _characters(choice.delta)
        elif choice.text is not None:
            reading.output_characters += len(choice.text)
    if chunk.error is not None:
        reading.failure = failure_in_stream(fields_of(chunk.error))
    if not isinstance(chunk.usage, dict):
        return False
    _tell_usage(reading, chunk.usage)
    # Some servers tell usage on every chunk, or on the one that ends the choices (wire.md section 3).
    reading.final = reading.finish is not None or not chunk.choices
    return not chunk.choices


_USAGE, _NULLS = b'"usage"', (b":null", b": nul")
_GOES_ON = (b'"finish_reason":null', b'"finish_reason": null')


def only_speaks(reading: Reading, event: Event) -> bool:
    """Whether a chunk of a chat stream tells nothing but a piece of the answer; True only if that is certain.

    That matters once the stream breaks off, so that it need not be read before. Four searches cost a fifth of reading.
    """
    raw = event.raw
    if reading.model is None or b'"error"' in raw or not any(mark in raw for mark in _GOES_ON):
        return False
    at = raw.find(_USAGE)  # null on each chunk but the last, where usage was asked for
    if at < 0:
        return True
    after = at + len(_USAGE)
    return raw[after : after + 5] in _NULLS and raw.find(_USAGE, after) < 0


def read_chat(reading: Reading, body: bytes) -> bool:
    """Read a whole chat completion; False if it is not one (yet)."""
    try:
        chat = _chat_decoder.decode(body)
    except UNREADABLE:
        return False
    reading.message_id, reading.model = chat.id, chat.model
    reading.finish = next((choice.finish_reason for choice in chat.choices or ()), None)
    _tell_usage(reading, fields_of(chat.usage))
    reading.final = True
    return True


def _characters(delta: _ChatDelta) -> int:
    count = len(delta.content or delta.refusal or delta.reasoning_content or "")
    for call in delta.tool_calls or ():
        if call.function is not None:
            count += len(call.function.arguments or "")
    return count


# --- responses


class _Response(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    status: str | None = None
    usage: Any = None
    error: Any = None
    incomplete_details: Any = None


class _ResponseEvent(msgspec.Struct, gc=False):
    type: str
    delta: str | None = None
    code: str | None = None
    response: _Response | None = None
    error: Any = None


# The states that end it; a background response is queued and in progress before, and tells no usage then.
_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})

_response_decoder = msgspec.json.Decoder(_Response)
_response_event_decoder = msgspec.json.Decoder(_ResponseEvent)


def read_response_event(reading: Reading, event: Event) -> bool:
    """Read one event of a responses stream; False, for none is ever kept from the client."""
    found = decode_event(_response_event_decoder, event)
    if found is None:
        return False
    if found.delta is not None:
        reading.output_characters += len(found.delta)
    elif found.response is not None:
        _tell_response(reading, found.response, found.type.removeprefix("response."))
    elif found.type == "error":
        # The vendor tells the code beside the type; others wrap it as chat does.
        reading.failure = failure_in_stream(fields_of(found.error) or {"code": found.code})
    return False


def read_response(reading: Reading, body: bytes) -> bool:
    """Read a whole response; False if it is not one (yet)."""
    try:
        response = _response_decoder.decode(body)
    except UNREADABLE:
        return False
    _tell_response(reading, response, response.status or "completed")
    return True


def _tell_response(reading: Reading, response: _Response, state: str) -> None:
    reading.message_id, reading.model = response.id, response.model
    if state in _ENDED:
        reason = fields_of(response.incomplete_details).get("reason")
        reading.finish = reason if isinstance(reason, str) else state
        _tell_usage(reading, fields_of(response.usage))
        reading.final = True
    if state == "failed":
        reading.failure = failure_in_stream(fields_of(response.error))


# --- embeddings


class _Embeddings(msgspec.Struct, gc=False):
    model: str | None = None
    usage: Any = None


_embeddings_decoder = msgspec.json.Decoder(_Embeddings)


def read_embeddings(reading: Reading, body: bytes) -> bool:
    """Read embeddings; False if they are not (yet) whole."""
    try:
        embeddings = _embeddings_decoder.decode(body)
    except UNREADABLE:
        return False
    reading.model = embeddings.model
    # They have no output to tell of.
    _tell_usage(reading, {"completion_tokens": 0, "output_tokens": 0, **fields_of(embeddings.usage)})
    reading.final = True
    return True


def _tell_usage(reading: Reading, fields: dict[str, Any]) -> None:
    usage = usage_of(fields)
    if usage is not None:
        reading.told = usage
        reading.output_told_tokens = usage.output_tokens


# --- refusals in its shape

# The type and the code of each; types and codes are those of the vendor's error guide and SDK (November 2026).
_ERRORS: dict[str, tuple[int, str, str | None]] = {
    "invalid_request": (400, "invalid_request_error", None),
    "authentication": (401, "invalid_request_error", "invalid_api_key"),
    "permission": (403, "invalid_request_error", "permission_denied"),
    "not_found": (404, "invalid_request_error", None),
    "unknown_model": (404, "invalid_request_error", "model_not_found"),
    "method": (405, "invalid_request_error", "method_not_supported"),
    "too_large": (413, "invalid_request_error", "request_too_large"),
    "rate_limited": (429, "rate_limit_exceeded", "rate_limit_exceeded"),
    "budget_spent": (429, "insufficient_quota", "insufficient_quota"),
    "internal": (500, "server_error", None),
    "upstream_failed": (502, "server_error", None),
    "overloaded": (503, "server_error", None),
    "upstream_timeout": (504, "server_error", None),
}


def error_body(kind: str, message: str, request_id: str) -> tuple[int, bytes]:
    """Give the status and the body of an error; the request's id stands in a header only, as with the vendor."""
    del request_id
    status, error = _error(kind, message)
    return status, msgspec.json.encode({"error": error})


def error_event(kind: str, message: str) -> bytes:
    """Give the event that ends a chat stream with an error."""
    return b"data: %b\n\n" % msgspec.json.encode({"error": _error(kind, message)[1]})


def response_error_event(kind: str, message: str) -> bytes:
    """Give the event that ends a responses stream with an error.

    The vendor's event tells code and message beside the type. The official SDK raises only for an `error` object, and
    would otherwise let the stream end as if nothing had happened; so both are there.
    """
    return response_error_told(_error(kind, message)[1])


def response_failed_event(kind: str, message: str) -> bytes:
    """Give the event that ends a responses stream with an error for Codex, which passes over an event of an error."""
    return response_error_told(_error(kind, message)[1], as_failed=True)


def response_error_told(error: Mapping[str, Any], *, as_failed: bool = False) -> bytes:
    """Give an error object as the event that ends a responses stream."""
    code, message = error.get("code") or error.get("type"), error.get("message")
    if as_failed:
        response = {"id": "", "object": "response", "status": "failed", "error": {"code": code, "message": message}}
        return b"event: response.failed\ndata: %b\n\n" % msgspec.json.encode(
            {"type": "response.failed", "sequence_number": 0, "response": response}
        )
    beside = {"code": code, "message": message, "param": error.get("param"), "sequence_number": 0}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode({"type": "error", **beside, "error": error})


def _error(kind: str, message: str) -> tuple[int, dict[str, str | None]]:
    status, error_type, code = _ERRORS[kind]
    return status, {"message": message, "type": error_type, "param": None, "code": code}
