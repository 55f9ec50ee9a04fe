"""The Anthropic wire format: messages and streams, errors, rate-limit headers (wire.md, section 2).

One rule: field for field what the vendor's own SDKs parse; a stream ends with `message_stop`, never with `[DONE]`.
"""

import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from headgate.testing.provider.answers import Fragment, Part
from headgate.testing.provider.anthropic_request import read_messages
from headgate.testing.provider.asked import Asked
from headgate.testing.provider.buckets import MINUTE_S, Bucket, Pool, Refusal
from headgate.testing.provider.counting import Usage
from headgate.testing.provider.dialect import Headers, Reply, VendorName

__all__ = ["AnthropicMessages", "AnthropicVendor", "model_card", "model_list"]

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOPS = {"end": "end_turn", "tool": "tool_use", "length": "max_tokens"}
_ROUNDED_TOKENS = 1_000
_DIMENSION_NAMES = {"requests": "requests", "input_tokens": "input tokens", "output_tokens": "output tokens"}

_encode = msgspec.json.encode


class AnthropicVendor:
    """Errors and headers of every Anthropic endpoint."""

    name: VendorName = "anthropic"
    request_id_header = b"request-id"

    def error(self, status: int, message: str, request_id: str, *, param: str | None = None) -> bytes:
        """Write an error's body; Anthropic has no `param`."""
        del param
        return _error(_ERROR_TYPES.get(status, "api_error"), message, request_id)

    def rate_limited(self, refusal: Refusal, model: str, request_id: str) -> tuple[bytes, Headers]:
        """Write the 429 for a bucket that does not hold enough."""
        bucket = refusal.bucket
        what = _DIMENSION_NAMES.get(bucket.dimension, bucket.dimension)
        period = "minute" if bucket.period_s == MINUTE_S else "day"
        message = (
            f"This request would exceed the rate limit of {bucket.rate_per_period:,} {what} per {period} for {model}: "
            f"it needs {refusal.requested:,}."
        )
        headers = [(b"retry-after", b"%d" % refusal.retry_after_s()), (b"x-should-retry", b"true")]
        return self.error(429, message, request_id), headers

    def plan_limited(self, window: str, wait_s: float, request_id: str) -> tuple[bytes, Headers]:
        """Write the 429 for a spent plan window."""
        headers = [(b"retry-after", b"%d" % max(1, math.ceil(wait_s))), (b"x-should-retry", b"true")]
        return self.error(429, f"This request would exceed the account's {window} limit.", request_id), headers

    def spend_limited(self, request_id: str) -> tuple[int, bytes]:
        """Write the refusal without `retry-after` that no retry can help."""
        details = {"error_code": "enforced_spend_limit_reached"}
        message = "The organization has reached its spend limit."
        return 429, _error("rate_limit_error", message, request_id, details=details)

    def overloaded_status(self) -> int:
        """Give the vendor's own status for an overloaded service."""
        return 529

    def limit_headers(self, pool: Pool, now_s: float, wall_s: float) -> Headers:
        """Write what is left: `reset` is when the bucket is full again, token amounts are rounded to thousands."""
        headers: Headers = []
        requests = pool.bucket("requests")
        if requests is not None:
            _add(headers, b"requests", requests.rate_per_period, int(requests.level(now_s)), requests, now_s, wall_s)
        token_buckets = [
            bucket for bucket in (pool.bucket("input_tokens"), pool.bucket("output_tokens")) if bucket is not None
        ]
        for bucket in token_buckets:
            label = bucket.dimension.replace("_", "-").encode()
            _add(headers, label, bucket.rate_per_period, _rounded(bucket.level(now_s)), bucket, now_s, wall_s)
        if token_buckets:
            # The vendor's text: "the total of input and output tokens" where no narrower limit applies.
            limit = sum(bucket.rate_per_period for bucket in token_buckets)
            remaining = sum(_rounded(bucket.level(now_s)) for bucket in token_buckets)
            slowest = max(token_buckets, key=lambda bucket: bucket.full_in_s(now_s))
            _add(headers, b"tokens", limit, remaining, slowest, now_s, wall_s)
        return headers


def _add(
    headers: Headers, label: bytes, limit: int, remaining: int, resets: Bucket, now_s: float, wall_s: float
) -> None:
    prefix = b"anthropic-ratelimit-" + label
    headers += [
        (prefix + b"-limit", b"%d" % limit),
        (prefix + b"-remaining", b"%d" % max(0, remaining)),
        (prefix + b"-reset", _rfc3339(math.ceil(wall_s + resets.full_in_s(now_s)))),
    ]


def _rounded(level: float) -> int:
    return round(max(0.0, level) / _ROUNDED_TOKENS) * _ROUNDED_TOKENS


@lru_cache(maxsize=4_096)
def _rfc3339(epoch_s: int) -> bytes:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


def _error(kind: str, message: str, request_id: str, **extra: Any) -> bytes:
    return _encode(
        {"type": "error", "error": {"type": kind, "message": message, **extra}, "request_id": request_id or None}
    )


def model_list(models: list[str], created_s: int) -> bytes:
    """Write `GET /v1/models`."""
    data = [_model(name, created_s) for name in models]
    first, last = (models[0], models[-1]) if models else (None, None)
    return _encode({"data": data, "has_more": False, "first_id": first, "last_id": last})


def model_card(name: str, created_s: int) -> bytes:
    """Write `GET /v1/models/{id}`."""
    return _encode(_model(name, created_s))


def _model(name: str, created_s: int) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _rfc3339(created_s).decode()}


class AnthropicMessages:
    """`POST /v1/messages`."""

    def __init__(self) -> None:
        self.vendor = AnthropicVendor()

    def read(self, body: bytes) -> Asked:
        """Decode and check a request."""
        return read_messages(body)

    def document(self, reply: Reply) -> bytes:
        """Write the whole message."""
        content = [_block(part, part.text) for part in reply.answer.parts]
        return _encode(_message(reply, content, _STOPS[reply.answer.stop], reply.usage.output_tokens))

    def opening(self, reply: Reply) -> bytes:
        """Write `message_start` with the prompt's usage, and a first ping."""
        # The vendor's first event tells a few output tokens already; the last event's figure is cumulative and wins.
        start = _event("message_start", {"message": _message(reply, [], None, 1)})
        return start + _event("ping", {})

    def fragment(self, reply: Reply, fragment: Fragment) -> bytes:
        """Write a delta, with the start and stop of its block."""
        del reply
        part = fragment.part
        told = b""
        if fragment.starts:
            told = _event("content_block_start", {"index": fragment.part_index, "content_block": _block(part, "")})
        if part.kind == "tool_call":
            delta = {"type": "input_json_delta", "partial_json": fragment.text}
        elif part.kind == "thinking":
            delta = {"type": "thinking_delta", "thinking": fragment.text}
        else:
            delta = {"type": "text_delta", "text": fragment.text}
        told += _event("content_block_delta", {"index": fragment.part_index, "delta": delta})
        if not fragment.ends:
            return told
        if part.signature:
            signed = {"type": "signature_delta", "signature": part.signature}
            told += _event("content_block_delta", {"index": fragment.part_index, "delta": signed})
        return told + _event("content_block_stop", {"index": fragment.part_index})

    def closing(self, reply: Reply) -> bytes:
        """Write `message_delta` with the last word on usage, and `message_stop`."""
        delta: dict[str, Any] = {"delta": {"stop_reason": _STOPS[reply.answer.stop], "stop_sequence": None}}
        if not reply.hides_usage:
            delta["usage"] = {"output_tokens": reply.usage.output_tokens}
        return _event("message_delta", delta) + _event("message_stop", {})

    def malformed(self) -> bytes:
        """Write an event whose data ends in the middle."""
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"te\n\n'

    def failure(self, reply: Reply) -> bytes:
        """Write the error event that may come after a 200."""
        return b"event: error\ndata: " + _error("overloaded_error", "Overloaded", reply.request_id) + b"\n\n"


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **fields}) + b"\n\n"


def _message(
    reply: Reply, content: list[dict[str, Any]], stop_reason: str | None, output_tokens: int
) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": "msg_" + reply.request_id.removeprefix("req_"),
        "type": "message",
        "role": "assistant",
        "model": reply.asked.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
    }
    if not reply.hides_usage:
        message["usage"] = _usage(reply.usage, output_tokens)
    return message


def _usage(usage: Usage, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _block(part: Part, text: str) -> dict[str, Any]:
    """Give a content block with its text so far; a stream begins each block empty."""
    if part.kind == "text":
        return {"type": "text", "text": text}
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": text, "signature": part.signature if text else ""}
    arguments: Any = msgspec.Raw(text.encode()) if text else {}
    identity = part.id if part.id.startswith("toolu_") else f"toolu_{part.id}"
    return {"type": "tool_use", "id": identity, "name": part.name, "input": arguments}
