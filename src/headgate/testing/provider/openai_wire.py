"""What the OpenAI endpoints share: errors, rate-limit headers, models (wire.md, section 3).

One rule: durations are written as the vendor writes them (`6m0s`, `12ms`), for those are what clients parse.
"""

import math
from typing import Any

import msgspec

from headgate.testing.provider.asked import PromptBlock, RejectedError
from headgate.testing.provider.buckets import MINUTE_S, Pool, Refusal
from headgate.testing.provider.dialect import Headers, VendorName

__all__ = ["OpenAIVendor", "decode", "duration", "function_tool", "malformed_event", "model_card", "model_list"]

_encode = msgspec.json.encode
_MS_PER_S = 1_000
_MS_PER_MINUTE = 60_000
_MS_PER_HOUR = 3_600_000

_ERROR_TYPES = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_error", 504: "server_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_SHORT_NAMES = {"requests": "requests per {} (RP{})", "tokens": "tokens per {} (TP{})"}


def duration(seconds: float) -> str:
    """Give a duration as OpenAI's headers write it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(seconds * _MS_PER_S)
    if milliseconds < _MS_PER_S:
        return f"{milliseconds}ms"
    hours, rest = divmod(milliseconds, _MS_PER_HOUR)
    minutes, rest = divmod(rest, _MS_PER_MINUTE)
    told = f"{rest / _MS_PER_S:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{told}"
    return f"{minutes}m{told}" if minutes else told


class OpenAIVendor:
    """Errors and headers of every OpenAI endpoint."""

    name: VendorName = "openai"
    request_id_header = b"x-request-id"

    def error(self, status: int, message: str, request_id: str, *, param: str | None = None) -> bytes:
        """Write an error's body; `request_id` beside the error serves those who only see the body."""
        kind = _ERROR_TYPES.get(status, "invalid_request_error")
        return _error(message, kind, _CODES.get(status), param, request_id)

    def rate_limited(self, refusal: Refusal, model: str, request_id: str) -> tuple[bytes, Headers]:
        """Write the 429 for a bucket that does not hold enough."""
        bucket = refusal.bucket
        wait_s = refusal.retry_after_s() if math.isinf(refusal.wait_s) else refusal.wait_s
        period = "min" if bucket.period_s == MINUTE_S else "day"
        what = _SHORT_NAMES.get(bucket.dimension, bucket.dimension + " per {}").format(period, period[0].upper())
        message = (
            f"Rate limit reached for {model} on {what}: Limit {bucket.rate_per_period}, Requested {refusal.requested}. "
            f"Please try again in {duration(wait_s)}."
        )
        headers = [
            (b"retry-after", b"%d" % refusal.retry_after_s()),
            (b"retry-after-ms", b"%d" % max(1, math.ceil(wait_s * _MS_PER_S))),
        ]
        return _error(message, bucket.dimension, "rate_limit_exceeded", None, request_id), headers

    def spend_limited(self, request_id: str) -> tuple[int, bytes]:
        """Write the refusal that no retry can help."""
        message = "You exceeded your current quota, please check your plan and billing details."
        return 429, _error(message, "insufficient_quota", "insufficient_quota", None, request_id)

    def overloaded_status(self) -> int:
        """Give the vendor's own status for an overloaded service."""
        return 503

    def limit_headers(self, pool: Pool, now_s: float, wall_s: float) -> Headers:
        """Write what is left; `reset` is the time until the bucket is full again."""
        del wall_s
        headers: Headers = []
        for dimension, label in (("requests", b"requests"), ("tokens", b"tokens")):
            bucket = pool.bucket("requests" if dimension == "requests" else "tokens")
            if bucket is not None:
                headers += [
                    (b"x-ratelimit-limit-" + label, b"%d" % bucket.rate_per_period),
                    (b"x-ratelimit-remaining-" + label, b"%d" % max(0, int(bucket.level(now_s)))),
                    (b"x-ratelimit-reset-" + label, duration(bucket.full_in_s(now_s)).encode()),
                ]
        return headers


def _error(message: str, kind: str, code: str | None, param: str | None, request_id: str) -> bytes:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return _encode({"error": error, "request_id": request_id or None})


def model_list(models: list[str], created_s: int) -> bytes:
    """Write `GET /v1/models`."""
    return _encode({"object": "list", "data": [_model(name, created_s) for name in models]})


def model_card(name: str, created_s: int) -> bytes:
    """Write `GET /v1/models/{id}`."""
    return _encode(_model(name, created_s))


def _model(name: str, created_s: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created_s, "owned_by": "headgate"}


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> object:
    """Decode a request's body.

    Raises:
        RejectedError: 400, as the API answers a body that it cannot read.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RejectedError(400, str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RejectedError(400, f"We could not parse the JSON body of your request. ({error})") from error


def function_tool(name: str, description: str | None, parameters: bytes) -> PromptBlock:
    """Give an offered tool as the first part of the prompt."""
    told = description or ""
    return PromptBlock(len(name) + len(told) + len(parameters), ("tool", name, told, parameters))


def malformed_event() -> bytes:
    """Write an event whose JSON ends in the middle."""
    return b'data: {"id":"chatcmpl-broken","object":"chat.comp\n\n'
