"""The life of a call: estimate, admit, send, observe, settle, record.

One rule: whatever happens between admission and the end of the block, the hold is settled once and the ledger's row
completed once, also when the caller is cancelled. How to wait is `admission`'s affair, how to send the provider's.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from headgate.core.accounts import Account, choose_account
from headgate.core.amounts import NOTHING, Amounts, Demand, Dimension
from headgate.core.errors import CallerError, CallerGoneError, ProviderError, StoreError
from headgate.core.estimates import CallSize, Estimate, Estimator
from headgate.core.ledger import Attempt, AttemptState
from headgate.core.limits import Limit
from headgate.core.retries import Failure, RetryRule, retry_delay_s
from headgate.core.scheduling import ORDINARY, Standing
from headgate.core.scopes import NO_SCOPES, Scopes, fit
from headgate.core.usage import CHARGES, NO_USAGE, Dialect, Usage
from headgate.ports import Answer, Clock, LedgerStore, LevelStore, Prices, Provider, Request
from headgate.runtime.admission import Admission
from headgate.runtime.lanes import Ticket
from headgate.runtime.plan_windows import PlanWindows

DEFAULT_MAX_WAIT_S = 600.0
"""How long a call waits in its lane when nobody says less: the time-out of the official SDKs (wire.md section 1)."""

_INPUT: tuple[Dimension, ...] = ("input_tokens",)


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its caller describes it.

    `text_bytes` is the size of what is sent, without media, of which `media` parts are; `input_tokens` replaces the
    estimate from it where the caller has counted. `cache_write` is the longest prompt cache the call asks to be written
    to. `standing` is what it says of its place among others that wait; `max_wait_s` is how long it may wait in all for
    its admissions.
    """

    model: str
    dialect: Dialect = "anthropic"
    endpoint: str = "messages"
    text_bytes: int = 0
    media: int = 0
    input_tokens: int | None = None
    max_output_tokens: int | None = None
    cache_write: str | None = None
    scopes: Scopes = NO_SCOPES
    standing: Standing = ORDINARY
    max_wait_s: float = DEFAULT_MAX_WAIT_S
    id: str = field(default_factory=lambda: secrets.token_hex(10))

    @property
    def size(self) -> CallSize:
        """What the estimator has to know of it."""
        return CallSize(self.model, self.text_bytes, self.media, self.max_output_tokens, self.scopes.session)


class Grant:
    """The right to send one attempt now, and the place to say what it used.

    Leaving the block settles: by what `settle` or `failed` said last, else at the estimate, marked as estimated.
    """

    def __init__(self, attempt: Attempt, limits: tuple[Limit, ...], asked: Demand, dialect: Dialect) -> None:
        """Stand for a reservation that was taken."""
        self.attempt = attempt
        self.limits = limits
        self.asked = asked
        self.dialect = dialect
        self.outcome: AttemptState | None = None
        self.usage: Usage | None = None
        self.failure: Failure | None = None
        self.input_settled: asyncio.Task[None] | None = None
        self.input_told = 0

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

    def describe(self, **facts: object) -> None:
        """Add what was learned to the ledger's row: status, model_served, provider_request, first_byte_s."""
        self.attempt = replace(self.attempt, **facts)  # type: ignore[arg-type]  # names and types are Attempt's own


@dataclass(frozen=True, slots=True)
class Exchange:
    """A call that was answered: the grant of the attempt that succeeded (or failed for good), and the answer."""

    grant: Grant
    answer: Answer
    attempts: int
    waited_s: float


class Calls:
    """Carries calls from estimate to record, for one process."""

    def __init__(
        self,
        *,
        admission: Admission,
        levels: LevelStore,
        ledger: LedgerStore,
        prices: Prices,
        clock: Clock,
        owner: str,
        accounts: Sequence[Account],
        providers: Mapping[str, Provider],
        limits_for: Callable[[Scopes, str], tuple[Limit, ...]],
        retries: RetryRule,
        chooser: random.Random,
    ) -> None:
        """Join what a call meets on its way; nothing is started."""
        self._admission = admission
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._owner = owner
        self._accounts = tuple(accounts)
        self._providers = providers
        self._limits_for = limits_for
        self._retries = retries
        self._chooser = chooser
        self._plan_windows = PlanWindows(levels, clock, admission.nudge)
        self._estimator = Estimator()
        self._finishing: set[asyncio.Task[None]] = set()
        self._unkept: dict[str, Grant] = {}
        self._in_flight: dict[str, Grant] = {}
        self._taken: set[str] = set()
        self.refused_by_providers = 0

    @asynccontextmanager
    async def admit(
        self, call: Call, *, attempt: int = 1, queued_s: float | None = None, deadline_s: float | None = None
    ) -> AsyncIterator[Grant]:
        """Hold what the call asks of every limit it meets, waiting for it; settle at the end of the block.

        Raises:
            UnknownModelError: no account serves the model.
            LimitError: it cannot be admitted before its deadline, or never.
            StoreError: the hold could not be kept; nothing was sent or counted.
        """
        queued_s = self._clock.now_s() if queued_s is None else queued_s
        scopes = fit(call.scopes)
        if scopes.account is None:
            scopes = scopes._replace(account=choose_account(self._accounts, call.dialect, call.model).name)
        limits = self._limits_for(scopes, call.model)
        estimate = self._estimate(call)
        asked = self._asked(call, estimate)
        attempt_id = f"{call.id}.{attempt}"
        if attempt_id in self._taken:
            raise CallerError(f"call {call.id} is on its way already; make a new Call for each one")
        deadline_s = queued_s + call.max_wait_s if deadline_s is None else deadline_s
        self._taken.add(attempt_id)
        try:
            await self._admission.admit(
                Ticket(attempt_id, limits, asked, scopes, call.model, queued_s, deadline_s, call.standing)
            )
        except BaseException:
            self._taken.discard(attempt_id)
            raise
        row = Attempt(
            id=attempt_id,
            call=call.id,
            attempt=attempt,
            owner=self._owner,
            scopes=scopes,
            endpoint=call.endpoint,
            model=call.model,
            queued_s=queued_s,
            admitted_s=self._clock.now_s(),
            usage=Usage(estimate.input_tokens, output_tokens=estimate.output_tokens, reported=False),
            held_micro_usd=asked.at_most.micro_usd,
            cost_micro_usd=asked.expected.micro_usd,  # what it is thought to cost, until it is known
        )
        grant = Grant(row, limits, asked, call.dialect)
        try:
            await self._begin(grant)
            yield grant
        except (asyncio.CancelledError, GeneratorExit, CallerGoneError):
            grant.outcome = "cancelled"
            raise
        except BaseException:
            grant.outcome = "failed"
            raise
        finally:
            await self._finish(call, grant)

    @asynccontextmanager
    async def carry(self, call: Call, request: Request) -> AsyncIterator[Exchange]:
        """Admit a call, send it, retry what is worth it before the first byte, and give the answer to be read.

        Leaving the block before the answer was read cancels it upstream and settles what it used until then.

        Raises:
            ProviderError: the last attempt got no answer.
            LimitError, UnknownModelError, StoreError: as `admit`.
        """
        queued_s = self._clock.now_s()
        deadline_s = queued_s + call.max_wait_s
        attempt, waited_s, attempt_queued_s = 1, 0.0, queued_s
        while True:
            async with self.admit(call, attempt=attempt, queued_s=attempt_queued_s, deadline_s=deadline_s) as grant:
                waited_s += grant.wait_s
                begun = False
                try:
                    sent = replace(request, call_id=grant.attempt.id)
                    async with self._providers[grant.account].send(sent) as answer:
                        delay_s = self._answered(grant, answer, attempt, deadline_s)
                        if delay_s is None:
                            begun = True
                            try:
                                yield Exchange(grant, answer, attempt, waited_s)
                            finally:
                                self._ended(grant, answer)
                            return
                except CallerError:
                    if not begun:  # else it is the caller's own
                        grant.failed(Failure("rejected", "invalid_request", sent=False))
                    raise
                except ProviderError as error:
                    grant.failed(error.failure)
                    delay_s = None if begun else self._delay_s(error.failure, attempt, deadline_s)
                    if delay_s is None:
                        raise
            await asyncio.sleep(delay_s)
            attempt, attempt_queued_s = attempt + 1, self._clock.now_s()

    async def read(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Iterate over an answer's body; settles its input as soon as the answer tells it."""
        grant, answer = exchange.grant, exchange.answer
        told = not any(limit.dimension == "input_tokens" for limit in grant.limits)
        async for chunk in answer:
            if not told and answer.usage is not None:  # its input is told first, and right from then on
                told = True
                actual = CHARGES[grant.dialect](answer.usage, None)
                grant.input_settled = asyncio.create_task(self._settle_input(grant, actual))
            yield chunk

    async def _settle_input(self, grant: Grant, actual: Amounts) -> None:
        with suppress(StoreError):  # then the settlement at the end has all of it
            await self._admission.settle(grant.attempt.id, grant.limits, actual, _INPUT)
            grant.input_told = actual.input_tokens

    async def keep_unkept(self) -> int:
        """Try again to record what could not be recorded; give how many are left."""
        for grant in list(self._unkept.values()):
            await self._keep(grant)
        return len(self._unkept)

    async def close(self) -> None:
        """Wait until everything that was admitted is settled and recorded."""
        while self._finishing:
            await asyncio.wait(self._finishing)
        await self._plan_windows.close()

    def in_flight(self) -> list[Grant]:
        """Give the attempts that were admitted and are not settled yet."""
        return list(self._in_flight.values())

    # -- estimate ------------------------------------------------------------------------------------------------

    def _estimate(self, call: Call) -> Estimate:
        estimate = self._estimator.estimate(call.size)
        if call.input_tokens is None:
            # At least one: what is not held could not be settled either.
            return estimate._replace(input_tokens=max(1, estimate.input_tokens))
        return estimate._replace(input_tokens=call.input_tokens, input_at_most=call.input_tokens)

    def _asked(self, call: Call, estimate: Estimate) -> Demand:
        charge = CHARGES[call.dialect]
        usage = Usage(estimate.input_tokens, output_tokens=estimate.output_tokens)
        most_usage = Usage(estimate.input_at_most, output_tokens=estimate.output_at_most)
        expected = charge(usage, self._prices.cost(call.model, usage, self._clock.now_s()).micro_usd)
        at_most = charge(most_usage, self._most_micro_usd(call, estimate))
        if call.dialect == "openai":
            # Charged at the start: max(max_tokens, estimate of the prompt) (wire.md section 3).
            expected = expected._replace(tokens=max(call.max_output_tokens or 0, estimate.input_tokens))
        return Demand(expected._replace(slots=1), at_most._replace(slots=1))

    def _most_micro_usd(self, call: Call, estimate: Estimate) -> int | None:
        # Newer OpenAI models write their prompt cache unasked, at the price of Anthropic's for 5 minutes.
        cache_write = "5m" if call.dialect == "openai" else call.cache_write
        now_s, output_tokens = self._clock.now_s(), estimate.output_at_most
        costs = [
            self._prices.cost(call.model, usage._replace(output_tokens=output_tokens), now_s).micro_usd
            for usage in _dearest(cache_write, estimate.input_at_most)
        ]
        known = [cost for cost in costs if cost is not None]
        return max(known) if known else None

    # -- send and observe ----------------------------------------------------------------------------------------

    def _answered(self, grant: Grant, answer: Answer, attempt: int, deadline_s: float) -> float | None:
        grant.describe(status=answer.status, first_byte_s=self._clock.now_s(), provider_request=answer.provider_request)
        self._plan_windows.follow(grant.limits, answer)
        if answer.failure is None:
            return None
        if answer.failure.kind == "limited":
            self.refused_by_providers += 1
        grant.failed(answer.failure)
        return self._delay_s(answer.failure, attempt, deadline_s)

    def _delay_s(self, failure: Failure, attempt: int, deadline_s: float) -> float | None:
        left_s = deadline_s - self._clock.now_s()
        return retry_delay_s(self._retries, failure, attempt, left_s, self._chooser.random())

    def _ended(self, grant: Grant, answer: Answer) -> None:
        grant.describe(model_served=answer.model_served, provider_request=answer.provider_request)
        seen = answer.usage
        if seen is None and answer.output_seen_tokens:
            # A stream that was cut before it told anything: its prompt was read, and this much was written.
            seen = grant.attempt.usage._replace(output_tokens=answer.output_seen_tokens, reported=False)
        if answer.failure is not None:
            grant.failed(answer.failure)
            grant.usage = seen
        elif seen is not None:
            grant.settle(seen)

    # -- settle and record ---------------------------------------------------------------------------------------

    async def _begin(self, grant: Grant) -> None:
        try:
            await self._ledger.begin(grant.attempt)
        except BaseException:
            grant.outcome, grant.usage = "failed", NO_USAGE
            grant.failure = Failure("rejected", "not_recorded", sent=False)
            raise
        self._in_flight[grant.attempt.id] = grant

    async def _finish(self, call: Call, grant: Grant) -> None:
        grant.attempt = self._outcome(grant)
        if grant.outcome == "done" and grant.attempt.usage.reported:
            self._estimator.observe(call.size, grant.attempt.usage.prompt_tokens, grant.attempt.usage.output_tokens)
        task = asyncio.create_task(self._keep(grant), name=f"settle {grant.attempt.id}")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        # Cancelled here, the task goes on: `close` waits for it.
        await asyncio.shield(task)

    async def _keep(self, grant: Grant) -> None:
        try:
            if grant.input_settled is not None:
                await grant.input_settled
            actual = self._actual(grant)
            # In one tick, so that a store that commits by the tick keeps both together.
            await asyncio.gather(
                self._admission.settle(grant.attempt.id, grant.limits, actual), self._ledger.finish(grant.attempt)
            )
        except StoreError:
            self._unkept[grant.attempt.id] = grant
        else:
            self._unkept.pop(grant.attempt.id, None)
        self._in_flight.pop(grant.attempt.id, None)
        self._taken.discard(grant.attempt.id)

    def _outcome(self, grant: Grant) -> Attempt:
        row = grant.attempt
        usage = grant.usage
        if usage is None:
            usage = _untold(row.usage, grant.failure)
        cost = self._prices.cost(row.model_served or row.model, usage, row.admitted_s)
        return replace(
            row,
            state=grant.outcome or "done",
            usage=usage,
            cost_micro_usd=cost.micro_usd,
            price_version=cost.version,
            error_type=grant.failure.error_type if grant.failure is not None else row.error_type,
            done_s=self._clock.now_s(),
            sent=grant.failure is None or grant.failure.sent,
        )

    def _actual(self, grant: Grant) -> Amounts:
        row = grant.attempt
        actual = CHARGES[grant.dialect](row.usage, row.cost_micro_usd)
        if grant.failure is not None and not grant.failure.sent:
            return NOTHING
        actual = actual._replace(input_tokens=max(0, actual.input_tokens - grant.input_told))
        if grant.dialect == "openai":  # what was reserved at the start is not given back, failed calls count too
            return actual._replace(tokens=max(actual.tokens, grant.asked.expected.tokens))
        return actual


def _untold(estimate: Usage, failure: Failure | None) -> Usage:
    """Give what is taken for used when the provider told nothing."""
    if failure is None:
        return estimate
    if failure.kind == "connection" and failure.sent:
        return estimate._replace(output_tokens=0)  # it may have read the prompt before the connection broke
    return NO_USAGE


def _dearest(cache_write: str | None, tokens: int) -> tuple[Usage, ...]:
    """Give the ways in which a prompt may be charged: as plain input, or as the cache write that was asked for."""
    plain = Usage(tokens)
    match cache_write:
        case "1h":
            return plain, Usage(cache_write_1h_tokens=tokens)
        case "5m":
            return plain, Usage(cache_write_5m_tokens=tokens)
        case _:
            return (plain,)
