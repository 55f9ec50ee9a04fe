"""The ledger's row: one attempt of one call, from the hold to the outcome.

One rule: a row exists before the call leaves, and is completed once; what is unknown is None, never 0. No bodies, no
keys. How rows are kept is an adapter's affair.
"""

from dataclasses import dataclass
from typing import Literal

from headgate.core.scopes import Scopes
from headgate.core.usage import Usage

AttemptState = Literal["in_flight", "done", "failed", "cancelled", "lost", "reconciled", "refused"]
"""`refused`: Headgate did not admit it, nothing was held or sent, and `error_type` names the limit. `lost`: its process
died; the hold counts as the rule for lost holds says. `reconciled`: lost, then learned."""

GroupBy = Literal[
    "account",
    "key",
    "team",
    "run",
    "agent",
    "session",
    "model",
    "asked_model",
    "rule",
    "endpoint",
    "state",
    "hour",
    "day",
]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the ledger. Times are seconds since the epoch, None where the attempt did not get so far.

    `usage` of an attempt in flight is the estimate it was admitted with. `cost_micro_usd` is None where the price is
    unknown. `held_micro_usd` is what was held of the money limits. `sent` is False when the provider certainly saw
    nothing of it. `model` is the one that was sent; the model rule `rule` made it that, of an `asked_model` where the
    caller asked for another.
    `shared_with` is the call whose answer it was given, which cost it nothing and `saved_micro_usd`.
    """

    id: str
    call: str
    attempt: int
    owner: str
    scopes: Scopes
    endpoint: str
    model: str
    queued_s: float
    admitted_s: float
    usage: Usage
    held_micro_usd: int | None = None
    cost_micro_usd: int | None = None
    price_version: str | None = None
    state: AttemptState = "in_flight"
    model_served: str | None = None
    status: int | None = None
    error_type: str | None = None
    provider_request: str | None = None
    first_byte_s: float | None = None
    done_s: float | None = None
    sent: bool = True
    asked_model: str | None = None
    rule: str | None = None
    saved_micro_usd: int | None = None
    shared_with: str | None = None

    @property
    def wait_s(self) -> float:
        """How long the call waited for this attempt's admission."""
        return max(0.0, self.admitted_s - self.queued_s)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What to sum: rows admitted in [since_s, until_s), grouped by the named fields; `only` bounds fields to values."""

    group_by: tuple[GroupBy, ...] = ()
    since_s: float | None = None
    until_s: float | None = None
    only: tuple[tuple[GroupBy, str], ...] = ()


@dataclass(frozen=True, slots=True)
class UsageGroup:
    """Sums of one group.

    `requests` counts attempts that were sent, so that it is the provider's own count; `attempts` and all other sums are
    of every row. `unknown_cost` counts those whose price is not known: where it is not 0, `cost_micro_usd` is a lower
    bound. `estimated` counts rows whose usage the provider did not report, `refused` calls that Headgate did not admit.
    """

    group: dict[str, str | None]
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_micro_usd: int = 0
    unknown_cost: int = 0
    estimated: int = 0
    failed: int = 0
    wait_ms: int = 0
    attempts: int = 0
    refused: int = 0
