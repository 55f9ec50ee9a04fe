"""Retries: whether a failed attempt is worth another, and after how long.

One rule: nothing is retried once a byte of an answer has gone to the caller; retries are bounded, for a call and for
an account, and a provider's own word (`retry-after`, `x-should-retry`) goes before any rule here.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from headgate.core.amounts import Dimension

_MOST_DOUBLINGS = 30

_UNAUTHORIZED = 401
_NEEDS_OWNER = (_UNAUTHORIZED, 402, 403)
"""A client's own credentials never reach a provider, so what it refuses is the account's."""

FailureKind = Literal["limited", "overloaded", "server", "connection", "rejected"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    `limited` is a 429, `overloaded` a 529 or 503, `server` any other 5xx, `connection` no answer at all, `rejected`
    what a retry cannot change. `sent` is False when the provider certainly saw nothing of the call. `dimension` is what
    a 429 names in its words, if it does, by `period_s`.
    """

    kind: FailureKind
    error_type: str
    status: int | None = None
    retry_after_s: float | None = None
    retryable: bool = True
    sent: bool = True
    dimension: Dimension | None = None
    period_s: int = 60


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
    What was limited is bounded by the deadline alone, and not delayed here: its lane is closed for as long as it must
    be (`core/adaptive.py`), and lets calls go one by one.
    """
    if not failure.retryable or failure.kind == "rejected":
        return None
    if failure.kind == "limited":
        return 0.0 if (failure.retry_after_s or 0.0) <= left_s else None
    if attempt >= rule.attempts:
        return None
    if failure.retry_after_s is not None:
        delay_s = failure.retry_after_s * (1 + 0.1 * jitter)
    else:
        delay_s = _backoff_s(rule, attempt, jitter)
    return delay_s if delay_s <= left_s else None


LEAST_TOLD_S = 0.05
MOST_FLOOR_S = 10.0


def least_wait_s(refusals: int) -> float:
    """Give for how long a 429 closes at the least, whatever it tells, after so many in a row, itself included.

    Who tells 0 s and refuses again would be asked again and again in one instant: each refusal doubles it.
    """
    return min(MOST_FLOOR_S, LEAST_TOLD_S * 2.0 ** min(refusals - 1, _MOST_DOUBLINGS))


def is_of_provider(failure: Failure) -> bool:
    """Whether a failure is of the provider's side or of its account's: another account may serve the call."""
    return failure.kind != "rejected" or needs_owner(failure)


def needs_owner(failure: Failure) -> bool:
    """Whether an account cannot serve before its owner acts: its key is refused, or its credit is spent."""
    spent = failure.kind == "limited" and not failure.retryable and failure.retry_after_s is None
    return spent or failure.status in _NEEDS_OWNER


def is_key_refused(failure: Failure) -> bool:
    """Whether a provider does not know an account's key: that is so for all models."""
    return failure.status == _UNAUTHORIZED


def is_timeout(failure: Failure) -> bool:
    """Whether a provider was given a call and did not answer in time, or not all of it."""
    return failure.sent and is_late(failure)


def is_late(failure: Failure) -> bool:
    """Whether it was time that ran out: to connect, to the answer, or between two parts of it."""
    return failure.kind == "connection" and failure.error_type.endswith(("timeout", "stalled"))


def is_stalled(failure: Failure) -> bool:
    """Whether a provider fell silent in the middle of its answer."""
    return failure.kind == "connection" and failure.error_type.endswith("stalled")


def _backoff_s(rule: RetryRule, attempt: int, jitter: float) -> float:
    most_s = min(rule.most_delay_s, rule.first_delay_s * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS))
    return most_s * (0.5 + 0.5 * jitter)


RETRY_SHARE = 0.1  # Finagle's RetryBudget has 20 % and 10 a second, for calls of milliseconds
MOST_RETRIES_SAVED = 100.0
RETRY_FLOOR = 10.0
RETRY_FLOOR_PER_S = 10 / 60


class RetryBudget(NamedTuple):
    """What an account's retries may still be: a token bucket that first attempts fill, so that retries are no load.

    A tenth of the first attempts, of which 100 are saved at the most, and ten a minute however few calls there are.
    """

    left: float = RETRY_FLOOR
    at_s: float = 0.0

    def earned(self) -> "RetryBudget":
        """Count a first attempt."""
        left = self.left + RETRY_SHARE
        return self if self.left == MOST_RETRIES_SAVED else RetryBudget(min(MOST_RETRIES_SAVED, left), self.at_s)

    def spent(self, now_s: float) -> "RetryBudget | None":
        """Count a retry; None when there is nothing left for it."""
        left = self.left
        if left < RETRY_FLOOR:
            left = min(RETRY_FLOOR, left + max(0.0, now_s - self.at_s) * RETRY_FLOOR_PER_S)
        return RetryBudget(left - 1, now_s) if left >= 1 else None
