"""Settings of the simulated provider: its limits, its speed, its faults and the length of what it writes.

One rule: a wrong value is refused here, with the value and what was expected, so that nothing past here checks again.
Nothing is read from files or the environment.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FAULT_KINDS", "Faults", "Latency", "ModelLimits", "PlanWindow", "ProviderSettings"]

# What a call can be made to suffer. Those named by a number are answers with that status; `spend-limit` is the refusal
# that no retry can help (Anthropic's enforced_spend_limit_reached, OpenAI's insufficient_quota).
FAULT_KINDS = (
    "402",
    "403",
    "429",
    "500",
    "504",
    "529",
    "spend-limit",
    "disconnect-before",
    "disconnect-mid",
    "error-mid",
    "stall",
    "malformed-event",
    "half-event",
    "error-200",
    "missing-usage",
    "wrong-usage",
    "skew",
)

_MIB = 1024 * 1024


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; expected a number above 0")


def _require_not_negative(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; expected a finite number, 0 or more")


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """One pool of limits: every model that `models` matches draws from it, for each credential apart.

    `models` and `credentials` are globs; the first row that matches a call is its pool, and a call that no row matches
    is unlimited. The Anthropic endpoints are bound by requests, input and output tokens, the OpenAI endpoints by
    requests and `tokens` (input and output together). None leaves a dimension unlimited.

    Attributes:
        burst_s: Depth of each per-minute bucket, in seconds of its rate.
        quantum_s: Also enforce the request rate over this short period (60,000 a minute as 1,000 a second).
        refund: Give back what an OpenAI call reserved and did not use; OpenAI itself does not.
    """

    models: str = "*"
    credentials: str = "*"
    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    burst_s: float = 60.0
    quantum_s: float | None = None
    refund: bool = False

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "requests_per_minute",
            "input_tokens_per_minute",
            "output_tokens_per_minute",
            "tokens_per_minute",
            "requests_per_day",
            "tokens_per_day",
            "burst_s",
            "quantum_s",
        )


@dataclass(frozen=True, slots=True)
class PlanWindow:
    """One window of a subscription plan: opened by first use, floored to the hour, closed after `length_s`.

    `tokens` bounds uncached input and output together. A window of an hour or less, for demonstrations in compressed
    time, is not floored.
    """

    name: str
    tokens: int
    length_s: float

    def __post_init__(self) -> None:
        _require_positive(self, "tokens", "length_s")
        if not self.name.isalnum():
            raise ValueError(f"PlanWindow.name is {self.name!r}; expected letters and digits such as '5h' or '7d'")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long an answer takes: a wait for its first token, then a steady pace.

    `jitter` spreads both evenly by that share of them, by the request's own seed. The defaults are about those of a
    large model in 2026; `Latency.none()` never sleeps.
    """

    first_token_s: float = 0.8
    tokens_per_second: float = 70.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        _require_not_negative(self, "first_token_s", "jitter")
        _require_positive(self, "tokens_per_second")
        if self.jitter >= 1:
            raise ValueError(f"Latency.jitter is {self.jitter!r}; expected a share from 0 to below 1")

    @classmethod
    def none(cls) -> "Latency":
        """Give the latency of a provider that answers at once."""
        return cls(first_token_s=0.0, tokens_per_second=math.inf, jitter=0.0)

    def first_wait_s(self, draw: float) -> float:
        """Give the wait for the first token; `draw` is the request's own number from 0 to 1."""
        return self.first_token_s * (1 + self.jitter * (2 * draw - 1))

    def pace(self, draw: float) -> float:
        """Give the tokens produced in a second after the first; infinite when nothing is to be waited for."""
        return self.tokens_per_second * (1 + self.jitter * (2 * draw - 1))


@dataclass(frozen=True, slots=True)
class Faults:
    """Which calls go wrong, by kind (see FAULT_KINDS): a probability for each call, or every nth of them.

    `seed` makes the drawn ones repeatable. A header `x-provider-fault` on a request goes before both.
    """

    probability: Mapping[str, float] = field(default_factory=dict)
    every: Mapping[str, int] = field(default_factory=dict)
    stall_s: float = 60.0
    clock_skew_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require_not_negative(self, "stall_s")
        if not math.isfinite(self.clock_skew_s):
            raise ValueError(f"Faults.clock_skew_s is {self.clock_skew_s!r}; expected a finite number of seconds")
        for kind in (*self.probability, *self.every):
            if kind not in FAULT_KINDS:
                raise ValueError(f"unknown fault {kind!r}; expected one of {', '.join(FAULT_KINDS)}")
        for kind, share in self.probability.items():
            if not 0 <= share <= 1:
                raise ValueError(f"Faults.probability[{kind!r}] is {share!r}; expected 0 to 1")
        for kind, nth in self.every.items():
            if nth < 1:
                raise ValueError(f"Faults.every[{kind!r}] is {nth!r}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Everything about a simulated provider that does not change while it runs, its faults apart.

    Attributes:
        limits: The pools; none means unlimited, and then no rate-limit headers are sent.
        tells_limits: Whether answers have rate-limit headers; without them only 429s and their retry-after tell.
        keys: Name to secret of the credentials that are let in; empty lets in everybody, named by 4 last characters.
        models: Globs of the models that exist; empty lets every name pass. Names without a wildcard are listed.
        mean_output_tokens: Mean of the log-normal length of answers, `output_sigma` its shape (0: always the mean).
        deltas_per_stream: Into how many writes an answer is cut, at the most.
        tool_calls: Whether a plain question that offers tools is answered with a tool call.
        plan: Subscription windows, with their headers.
        sessions: Folder of recorded sessions to answer from.
    """

    limits: tuple[ModelLimits, ...] = ()
    tells_limits: bool = True
    keys: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    latency: Latency = field(default_factory=Latency)
    faults: Faults = field(default_factory=Faults)
    mean_output_tokens: int = 300
    output_sigma: float = 0.8
    deltas_per_stream: int = 20
    tool_calls: bool = False
    plan: tuple[PlanWindow, ...] = ()
    sessions: Path | None = None
    body_limit_bytes: int = 32 * _MIB
    calls_remembered: int = 100_000

    def __post_init__(self) -> None:
        _require_positive(self, "mean_output_tokens", "deltas_per_stream", "body_limit_bytes", "calls_remembered")
        _require_not_negative(self, "output_sigma")
        if self.sessions is not None and not self.sessions.is_dir():
            raise ValueError(f"ProviderSettings.sessions is {str(self.sessions)!r}; expected an existing folder")
