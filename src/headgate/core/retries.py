"""Retries: whether a failed attempt is worth another, and after how long.

One rule: nothing is retried once a byte of an answer has gone to the caller; the number of attempts is bounded, and a
provider's own word (`retry-after`, `x-should-retry`) goes before any rule here.
"""

from dataclasses import dataclass
from typing import Literal

FailureKind = Literal["limited", "overloaded", "server", "connection", "rejected"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    `limited` is a 429, `overloaded` a 529 or 503, `server` any other 5xx, `connection` no answer at all, `rejected`
    what a retry cannot change. `sent` is False when the provider certainly saw nothing of the call.
    """

    kind: FailureKind
    error_type: str
    status: int | None = None
    retry_after_s: float | None = None
    retryable: bool = True
    sent: bool = True


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often and how fast: delays double from `first_delay_s` to `most_delay_s`, with full jitter below that."""

    attempts: int = 4
    first_delay_s: float = 0.5
    most_delay_s: float = 30.0


def retry_delay_s(rule: RetryRule, failure: Failure, attempt: int, left_s: float, jitter: float) -> float | None:
    """Give the seconds to wait before the next attempt, or None when the failure goes to the caller.

    `attempt` counts from 1 and is the one that failed, `left_s` is the time until the caller's deadline, `jitter` is
    in [0, 1). A `retry-after` is honoured in full and spread by up to a tenth, so that waiters do not come back as one.
    """
    if not failure.retryable or failure.kind == "rejected" or attempt >= rule.attempts:
        return None
    if failure.retry_after_s is not None:
        delay_s = failure.retry_after_s * (1 + 0.1 * jitter)
    else:
        most_s = min(rule.most_delay_s, rule.first_delay_s * 2 ** (attempt - 1))
        delay_s = most_s * (0.5 + 0.5 * jitter)
    return delay_s if delay_s <= left_s else None
