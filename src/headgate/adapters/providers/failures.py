"""Failures: what a provider's error says to whoever decides about another attempt.

One rule: the provider's own headers go before any rule here; the rules are those of its official SDKs.
It decides nothing: the core does, from the `Failure`.
"""

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import msgspec

from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.amounts import Dimension
from headgate.core.notices import DAY_S, MINUTE_S
from headgate.core.retries import Failure, FailureKind
from headgate.ports import Headers

__all__ = ["error_word", "failure_in_stream", "read_failure"]

# In this order; the first that can be read counts. `x-ms-` is Azure's.
_RETRY_AFTER = ((b"retry-after-ms", 0.001), (b"x-ms-retry-after-ms", 0.001), (b"retry-after", 1.0))

# A spent budget: no wait that a call can afford will help (wire.md sections 2 and 3).
_SPEND_LIMIT = "enforced_spend_limit_reached"
_NO_QUOTA = "insufficient_quota"

# What the SDKs retry beside 429 and 5xx: a request time-out and a lock time-out (anthropic 2.11, openai 3.52).
_RETRYABLE_4XX = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT})
_OVERLOADED = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, 529})

_KINDS: dict[str, FailureKind] = {
    "rate_limit_error": "limited",
    "rate_limit_exceeded": "limited",
    _NO_QUOTA: "limited",
    "overloaded_error": "overloaded",
    "server_is_overloaded": "overloaded",
    "slow_down": "overloaded",
    "api_error": "server",
    "server_error": "server",
    "timeout_error": "server",
}
_WORD_LIMIT_CHARS = 64

# What vendors write: "... rate limit of 8,000 output tokens per minute", "... on tokens per min (TPM): Limit 40000".
# Of a day OpenAI says "on requests per day (RPD)" in the same place.
_NAMED = re.compile(r"(output[ _]tokens|input[ _]tokens|tokens|requests)[ _]per[ _](min|day)", re.IGNORECASE)
_NAMED_DIMENSIONS: dict[str, Dimension] = {
    "output tokens": "output_tokens",
    "input tokens": "input_tokens",
    "tokens": "tokens",
    "requests": "requests",
}
_MESSAGE_LIMIT_CHARS = 1_000

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read_failure(status: int, headers: Headers, body: bytes) -> Failure:
    """Read an answer whose status is not 2xx; `body` may be cut or no JSON at all.

    A date in `retry-after` is read against the answer's own `date`, so that a clock that is wrong here or there does no
    harm; without one it is ignored.
    """
    by_name = {name.lower(): value for name, value in headers}
    error = _error(body)
    word = error_word(error) or f"http_{status}"
    kind = _kind(status)
    retry_after_s = _retry_after_s(by_name)
    retryable = kind != "rejected"
    if word == _NO_QUOTA or (word == _SPEND_LIMIT and retry_after_s is None):
        retryable = False
    asked = by_name.get(b"x-should-retry", b"").strip().lower()
    if asked in (b"true", b"false"):
        retryable = asked == b"true"
    if retryable and kind == "rejected":
        kind = "server"  # what is rejected is never tried again, and this provider asks for it
    named, period_s = _named_rate(error) if kind == "limited" else (None, MINUTE_S)
    return Failure(kind, word, status, retry_after_s, retryable, dimension=named, period_s=period_s)


def failure_in_stream(error: Mapping[str, Any]) -> Failure:
    """Read an error that came as an event, after a 200."""
    word = error_word(error) or "error_event"
    kind = _KINDS.get(word, "rejected")
    return Failure(kind, word, retryable=kind != "rejected" and word != _NO_QUOTA)


def error_word(error: Mapping[str, Any]) -> str | None:
    """Give the narrowest word an error object has for itself: its details' code, its code, or its type."""
    details = error.get("details")
    narrow = details.get("error_code") if isinstance(details, dict) else None
    for word in (narrow, error.get("code"), error.get("type")):
        if isinstance(word, str) and word:
            # It goes into the ledger and into logs.
            return "".join(letter if letter.isprintable() else "?" for letter in word[:_WORD_LIMIT_CHARS])
    return None


def _named_rate(error: Mapping[str, Any]) -> tuple[Dimension | None, int]:
    """Give the dimension and the period in seconds that a 429 names in its words."""
    message = error.get("message")
    found = _NAMED.search(message[:_MESSAGE_LIMIT_CHARS]) if isinstance(message, str) else None
    if found is None:
        return None, MINUTE_S
    dimension = _NAMED_DIMENSIONS[found[1].lower().replace("_", " ")]
    return dimension, DAY_S if found[2].lower() == "day" else MINUTE_S


def _kind(status: int) -> FailureKind:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "limited"
    if status in _OVERLOADED:
        return "overloaded"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _RETRYABLE_4XX:
        return "server"
    return "rejected"


def _error(body: bytes) -> dict[str, Any]:
    try:
        error = _decode(body).get("error")
    except UNREADABLE:
        return {}
    return error if isinstance(error, dict) else {}


def _retry_after_s(headers: Mapping[bytes, bytes]) -> float | None:
    for name, factor in _RETRY_AFTER:
        value = headers.get(name)
        if value is not None:
            try:
                seconds = float(value) * factor
            except ValueError:
                continue
            if math.isfinite(seconds) and seconds >= 0:
                return seconds
    return _until_date_s(headers)


def _until_date_s(headers: Mapping[bytes, bytes]) -> float | None:
    try:
        until = parsedate_to_datetime(headers[b"retry-after"].decode("ascii"))
        now = parsedate_to_datetime(headers[b"date"].decode("ascii"))
        return max(0.0, (until - now).total_seconds())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None  # absent, not a date, or one of them without a zone
