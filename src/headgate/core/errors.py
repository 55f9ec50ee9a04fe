"""Errors: one root, families by who must act.

One rule: a message carries the value, the limit and what to do; none carries a key or a body.
Foreign errors are translated into these where they are met, in the adapters.
"""

from headgate.core.retries import Failure


class HeadgateError(Exception):
    """The root of all that Headgate raises on purpose."""


class CallerError(HeadgateError):
    """The caller's mistake: what was asked for cannot be understood or is not allowed."""


class ConfigError(CallerError):
    """The configuration cannot be used; the message names file, line, value and what was expected."""


class UnknownModelError(CallerError):
    """No configured account serves the model."""


class UnservedError(CallerError):
    """The provider behind an account has no such endpoint."""


class UnpricedError(CallerError):
    """A limit on money meets a model whose price nobody knows."""


class UnboundedError(CallerError):
    """A limit on money meets a call of which nobody knows how much it may use."""


class CallerGoneError(HeadgateError):
    """The caller went away before its answer was complete."""


class LimitError(HeadgateError):
    """A limit was reached: which one, and when it would let the call through."""

    def __init__(self, message: str, *, limit: str, retry_after_s: float | None) -> None:
        """Name the limit; `retry_after_s` is None when waiting cannot help."""
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s


class DeadlineError(LimitError):
    """The call could not be admitted before its deadline; it would be `retry_after_s` from now."""


class BudgetError(LimitError):
    """The call can never be admitted: it asks for more than the limit has or ever will have."""


class RuledOutError(LimitError):
    """A model rule of the owner's turned the call down; `retry_after_s` from now it may no longer."""


class ProviderError(HeadgateError):
    """The provider could not be reached or broke off its answer; `failure` says what a retry decision needs."""

    def __init__(self, message: str, failure: Failure) -> None:
        """Carry the failure beside the message."""
        super().__init__(message)
        self.failure = failure


class StoreError(HeadgateError):
    """The database cannot be used: locked, full, corrupt, or written by a newer version."""


class ShuttingDownError(HeadgateError):
    """Headgate is draining: no new call is admitted."""
