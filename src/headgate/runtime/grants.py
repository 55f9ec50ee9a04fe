"""What a caller says of a call, and the grant with which it is sent.

One rule: these say and remember; what is done with them is `calls`'.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from headgate.core.amounts import Demand
from headgate.core.bounds import PromptBound
from headgate.core.ledger import Attempt, AttemptState
from headgate.core.limits import Limit
from headgate.core.model_rules import Effort, ModelChoice
from headgate.core.pool import Choice
from headgate.core.retries import Failure
from headgate.core.scheduling import ORDINARY, Standing
from headgate.core.scopes import NO_SCOPES, Scopes
from headgate.core.usage import Counting, Dialect, Usage
from headgate.core.warm_up import Mark
from headgate.ports import Answer, Cost, Passage
from headgate.runtime.budget_guard import BudgetGuard
from headgate.runtime.records import made_quickly
from headgate.runtime.routes import PooledRoute
from headgate.runtime.streaming import EarlyCharges
from headgate.runtime.traffic import Sent
from headgate.runtime.warming import Turn

DEFAULT_MAX_WAIT_S = 600.0
"""How long a call waits in its lane when nobody says less: the time-out of the official SDKs (wire.md section 1)."""


@made_quickly
@dataclass(frozen=True, slots=True)
class Call:
    """A call as its caller describes it.

    `text_bytes` is the size of what is sent, without media, of which `media` parts are; `input_tokens` replaces the
    estimate from it where the caller has counted. `measure` says what bounds its prompt and is asked only under a
    budget of money; without it, media may fill the model's window. `cache_write` is the longest prompt cache the call
    asks to be written to. `standing` is what it says of its place among others that wait; `max_wait_s` is how long it
    may wait in all for its admissions, `patience_s` at one time for one of them. With `may_degrade` the owner's model
    rules may choose another model, or less reasoning than `effort` says it asks for; the caller then sends what its
    grant says. `ruled` is what they chose. `prompt_marks` gives the prefixes that it wants cached, shortest first: of
    calls that begin alike one goes first. Of one that is not `is_metered` nothing is learned: its answer tells no
    usage.
    """

    model: str
    dialect: Dialect = "anthropic"
    endpoint: str = "messages"
    text_bytes: int = 0
    media: int = 0
    input_tokens: int | None = None
    measure: Callable[[], PromptBound] | None = field(default=None, repr=False, compare=False)
    max_output_tokens: int | None = None
    cache_write: str | None = None
    scopes: Scopes = NO_SCOPES
    standing: Standing = ORDINARY
    max_wait_s: float = DEFAULT_MAX_WAIT_S
    patience_s: float | None = None
    may_degrade: bool = False
    effort: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)
    ruled: ModelChoice | None = None
    prompt_marks: Callable[[], Sequence[Mark]] | None = field(default=None, repr=False, compare=False)
    is_streamed: bool = True
    is_metered: bool = True
    id: str = field(default_factory=lambda: secrets.token_hex(10))

    def as_ruled(self, choice: ModelChoice) -> "Call":
        """Give the call with the model that rules chose for it."""
        return self if choice.rule is None else replace(self, model=choice.model, ruled=choice)


class Grant:
    """The right to send one attempt now, and the place to say what it used.

    `attempt` is the ledger's row as it was begun, and in the end the outcome; what is learned on the way for it stands
    beside it (`status`, `model_served`, `provider_request`, `first_byte_s`).

    Leaving the block settles: by what `settle` or `failed` said last, else at the estimate, marked as estimated.
    """

    def __init__(self, attempt: Attempt, limits: tuple[Limit, ...], asked: Demand, counting: Counting) -> None:
        """Stand for a reservation that was taken."""
        self.attempt = attempt
        self.limits = limits
        self.asked = asked
        self.counting = counting
        self.outcome: AttemptState | None = None
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self.early: EarlyCharges | None = None
        self.guard: BudgetGuard | None = None
        """Watches it, where it is a stream that one of its budgets would end."""
        self.route: PooledRoute | None = None
        self.journey: Sent | None = None
        self.passage: Passage | None = None
        self.turn: Turn | None = None
        self.priced: tuple[Usage, str | None, Cost] | None = None
        """A usage, by whom, and what it costs, as was asked last: a head may tell it before the row does."""
        self.status: int | None = None
        self.model_served: str | None = None
        self.provider_request: str | None = None
        self.first_byte_s: float | None = None
        self.effort: Effort | None = None
        """The effort of reasoning to ask for, where a model rule lowered it."""

    @property
    def sent_as(self) -> Sent:
        """The call as learning counts it, from its admission on until it is settled."""
        assert self.journey is not None, self.call_id
        return self.journey

    @property
    def choice(self) -> Choice | None:
        """Why its account was chosen, where several could have served it."""
        return self.route.choice if self.route is not None else None

    @property
    def model(self) -> str:
        """The model to send it with."""
        return self.attempt.model

    @property
    def sent(self) -> bool:
        """Whether the provider may have seen something of it."""
        if self.failure is not None:
            return self.failure.sent
        return self.passage is None or self.passage.sent

    @property
    def call_id(self) -> str:
        """The call's id, in answers and in the ledger."""
        return self.attempt.call

    @property
    def wait_s(self) -> float:
        """How long the call waited for this admission."""
        return self.attempt.wait_s

    @property
    def account(self) -> str:
        """The account to send it with."""
        return self.attempt.scopes.account or ""

    def settle(self, usage: Usage) -> None:
        """Say what the call used; the last word before the end of the block counts."""
        self.usage = usage
        self.outcome = "done"

    def failed(self, failure: Failure) -> None:
        """Say that the attempt failed; what the provider counts for a failure is charged."""
        self.failure = failure
        self.outcome = "failed"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A call that was answered: the grant of the attempt that succeeded (or failed for good), and the answer."""

    grant: Grant
    answer: Answer
    attempts: int
    waited_s: float
