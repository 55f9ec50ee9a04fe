"""What can go wrong with an upstream call, in three families by what reached the server.

One rule: a message names host, event and seconds, never a header or a body, for they carry keys and prompts.
Whether to try again is decided in the core, from the `failure` that each carries; nothing is decided here.
"""

from typing import ClassVar, Literal

from headgate.core.errors import ProviderError
from headgate.core.retries import Failure

__all__ = ["Broken", "HttpError", "NoAnswer", "NotSent", "Why"]

Why = Literal[
    "request",  # the caller's headers or target cannot be sent
    "pool",  # no connection became free in time, or too many calls wait for one
    "closed",  # the client was closed, or the reply was left before its end
    "dns",
    "connect",  # refused, unreachable, out of file descriptors
    "certificate",  # the server is not who it should be
    "tls",
    "timeout",  # to connect or to the head: the class tells which
    "stalled",  # the body did not go on for too long
    "reset",  # the server closed the connection
    "malformed",  # not HTTP as llhttp understands it in its strict mode
    "too_large",  # a head or a body beyond its limit
]


# Neither another attempt nor another moment changes these.
_LASTING = frozenset({"request", "closed", "certificate", "too_large"})


class HttpError(ProviderError):
    """An upstream call failed; the three subclasses say how far it got."""

    stage: ClassVar[str]

    def __init__(self, host: str, why: Why, what: str, *, elapsed_s: float) -> None:
        """Compose the message from `host` (with port), what happened, and the seconds since the call began."""
        failure = Failure(
            kind="rejected" if why == "request" else "connection",
            error_type=f"{self.stage}_{why}",
            retryable=why not in _LASTING,
            sent=not isinstance(self, NotSent),
        )
        super().__init__(f"{host}: {what} ({elapsed_s:.1f} s into the call)", failure)
        self.host = host
        self.why = why
        self.elapsed_s = elapsed_s


class NotSent(HttpError):  # noqa: N818 - "not sent" is the state of the call, which is what callers match on
    """Nothing of the request reached the server: sending it again cannot do it twice."""

    stage = "not_sent"


class NoAnswer(HttpError):  # noqa: N818 - as above
    """The request was sent, whole or in part, but no usable head came back; the server may have worked on it."""

    stage = "no_answer"


class Broken(HttpError):  # noqa: N818 - as above
    """The head arrived, but the body did not: cut off, malformed, silent for too long, or larger than asked for."""

    stage = "broken"
