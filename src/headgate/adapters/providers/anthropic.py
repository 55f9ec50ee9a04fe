"""Anthropic's wire: usage and errors in its answers, refusals in its shape, its credentials (wire.md section 2).

One rule: bytes are only looked at; whoever calls forwards them as they came.
Nothing here waits, sends or counts.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from headgate.adapters.providers.failures import failure_in_stream
from headgate.adapters.providers.reading import UNREADABLE, Reading, decode_event, fields_of, is_unreadable, token_count
from headgate.adapters.providers.sse import Event
from headgate.core.usage import Usage

__all__ = [
    "OAUTH_BETA",
    "REQUEST_ID_HEADER",
    "credential",
    "error_body",
    "error_event",
    "is_oauth",
    "read_message",
    "read_message_event",
    "usage_of",
]

REQUEST_ID_HEADER = b"request-id"

OAUTH_BETA = b"oauth-2025-04-20"
"""The beta that a plan's token needs beside it (anthropic SDK 2.11, `lib/credentials`)."""

_OAUTH_PREFIX = "sk-ant-oat"


def is_oauth(api_key: str) -> bool:
    """Tell a plan's OAuth token from a key of the console."""
    return api_key.startswith(_OAUTH_PREFIX)


def credential(api_key: str) -> tuple[bytes, bytes]:
    """Give the header that carries a key."""
    if is_oauth(api_key):
        return b"authorization", b"Bearer " + api_key.encode("ascii")
    return b"x-api-key", api_key.encode("ascii")


# --- usage


class _Delta(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: Any = None


class _Event(msgspec.Struct, gc=False):
    type: str
    delta: _Delta | None = None
    message: _Message | None = None
    usage: Any = None
    error: Any = None


_event_decoder = msgspec.json.Decoder(_Event)
_message_decoder = msgspec.json.Decoder(_Message)


def read_message_event(reading: Reading, event: Event) -> bool:
    """Read one event of a messages stream; False, for none is ever kept from the client."""
    found = decode_event(_event_decoder, event)
    if found is None:
        return False
    match found.type:
        case "content_block_delta":
            delta = found.delta
            if delta is not None:  # a signature is no output: it only encloses thinking that was counted
                reading.output_characters += len(delta.text or delta.partial_json or delta.thinking or "")
        case "message_start" if found.message is not None:
            _tell_message(reading, found.message)
        case "message_delta":
            if found.delta is not None and found.delta.stop_reason is not None:
                reading.finish = found.delta.stop_reason
            fields = fields_of(found.usage)
            if token_count(fields, "output_tokens") is not None:
                _tell_usage(reading, fields)
                reading.final = reading.finish is not None
        case "error":
            reading.failure = failure_in_stream(fields_of(found.error))
    return False


def read_message(reading: Reading, body: bytes) -> bool:
    """Read a whole message; False if it is not one (yet)."""
    try:
        message = _message_decoder.decode(body)
    except UNREADABLE:
        return False
    _tell_message(reading, message)
    reading.finish = message.stop_reason
    reading.final = True
    return True


_OF_THE_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens")


def usage_of(fields: Mapping[str, Any]) -> Usage | None:
    """Give the usage that Anthropic's fields tell; None if they do not tell the input.

    It is not `reported` while they do not tell the output, or tell of the cache what cannot be read.
    """
    uncached = token_count(fields, "input_tokens")
    if uncached is None:
        return None
    write_1h = token_count(fields, "cache_creation", "ephemeral_1h_input_tokens") or 0
    write_5m = token_count(fields, "cache_creation", "ephemeral_5m_input_tokens") or 0
    # The total is restated at a stream's end, the split by life is not: what the split does not explain lives shortly.
    total = token_count(fields, "cache_creation_input_tokens")
    total = write_1h + write_5m if total is None else total
    write_1h = min(write_1h, total)
    output = token_count(fields, "output_tokens")
    return Usage(
        input_tokens=uncached,
        cache_read_tokens=token_count(fields, "cache_read_input_tokens") or 0,
        cache_write_5m_tokens=total - write_1h,
        cache_write_1h_tokens=write_1h,
        output_tokens=output or 0,
        reasoning_tokens=token_count(fields, "output_tokens_details", "thinking_tokens") or 0,
        reported=output is not None and not any(is_unreadable(fields, name) for name in _OF_THE_CACHE),
    )


def _tell_message(reading: Reading, message: _Message) -> None:
    reading.message_id, reading.model = message.id, message.model
    _tell_usage(reading, fields_of(message.usage))


def _tell_usage(reading: Reading, fields: dict[str, Any]) -> None:
    # Cumulative: a field that is told again replaces what was told before, one that is null or absent does not.
    reading.fields.update((name, value) for name, value in fields.items() if value is not None)
    reading.output_told_tokens = token_count(reading.fields, "output_tokens") or 0
    reading.told = usage_of(reading.fields)


# --- refusals in its shape

_ERRORS = {
    "invalid_request": (400, "invalid_request_error"),
    "authentication": (401, "authentication_error"),
    "permission": (403, "permission_error"),
    "not_found": (404, "not_found_error"),
    "unknown_model": (404, "not_found_error"),
    "method": (405, "invalid_request_error"),
    "too_large": (413, "request_too_large"),
    "rate_limited": (429, "rate_limit_error"),
    "budget_spent": (429, "rate_limit_error"),
    "internal": (500, "api_error"),
    "upstream_failed": (502, "api_error"),
    "upstream_timeout": (504, "timeout_error"),
    "overloaded": (529, "overloaded_error"),
}


def error_body(kind: str, message: str, request_id: str) -> tuple[int, bytes]:
    """Give the status and the body of an error."""
    status, error_type = _ERRORS[kind]
    error = {"type": error_type, "message": message}
    return status, msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def error_event(kind: str, message: str, request_id: str) -> bytes:
    """Give the event that ends a stream with an error."""
    return b"event: error\ndata: %b\n\n" % error_body(kind, message, request_id)[1]
