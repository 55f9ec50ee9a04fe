"""Refusals: Headgate's own errors, written as the provider of the endpoint would write them.

One rule: a client must be able to treat it as the vendor's: shape, status, retry headers.
What is refused, and for how long, is decided elsewhere.
"""

import math
from typing import Literal

from headgate.adapters.providers import anthropic, openai
from headgate.adapters.providers.endpoints import Endpoint
from headgate.core.usage import Dialect

__all__ = ["RefusalKind", "error_answer", "error_event"]

RefusalKind = Literal[
    "invalid_request",
    "authentication",
    "permission",
    "not_found",
    "unknown_model",
    "method",
    "too_large",
    "rate_limited",
    "budget_spent",
    "overloaded",  # and draining
    "upstream_failed",
    "upstream_timeout",
    "internal",
]

# Said where the SDKs' own rule (retry 429 and 5xx) would be wrong, or where we know better than the status does.
_SHOULD_RETRY: dict[RefusalKind, bool] = {"rate_limited": True, "budget_spent": False, "overloaded": True}


LONGEST_RETRY_S = 60.0
"""A wait beyond it is not for a client to sit out: some SDKs ignore such a `retry-after` and come back in vain, others
sleep for hours without a word (anthropic 2.11)."""


def error_answer(
    dialect: Dialect,
    kind: RefusalKind,
    message: str,
    *,
    retry_after_s: float | None = None,
    should_retry: bool | None = None,
    request_id: str,
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Give status, headers and body of an error.

    `retry_after_s` is rounded up, to milliseconds in `retry-after-ms`, which the SDKs prefer, and to whole seconds, at
    least one, in `retry-after`. `should_retry` None leaves it to the kind and the wait: beyond a minute nobody should.
    """
    wire = anthropic if dialect == "anthropic" else openai
    status, body = wire.error_body(kind, message, request_id)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (wire.REQUEST_ID_HEADER, request_id.encode("ascii")),
    ]
    if retry_after_s is not None:
        # The small step down keeps 1.001 s from becoming 1,002 ms by the error of binary fractions.
        milliseconds = max(1, math.ceil(retry_after_s * 1000 - 1e-6))
        headers += [
            (b"retry-after", b"%d" % -(-milliseconds // 1000)),
            (b"retry-after-ms", b"%d" % milliseconds),
        ]
    if should_retry is None:
        should_retry = _SHOULD_RETRY.get(kind)
        if should_retry and retry_after_s is not None and retry_after_s > LONGEST_RETRY_S:
            should_retry = False
    if should_retry is not None:
        headers.append((b"x-should-retry", b"true" if should_retry else b"false"))
    return status, headers, body


def error_event(endpoint: Endpoint, kind: RefusalKind, message: str, *, request_id: str) -> bytes:
    """Give the event that ends a stream which has begun."""
    if endpoint.dialect == "anthropic":
        return anthropic.error_event(kind, message, request_id)
    if endpoint.name == "responses":
        return openai.response_error_event(kind, message)
    return openai.error_event(kind, message)
