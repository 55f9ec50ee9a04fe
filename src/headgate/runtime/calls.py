"""The life of a call: estimate, admit, send, observe, settle, record.

One rule: whatever happens between admission and the end of the block, the hold is settled once and the ledger's row
completed once, also when the caller is cancelled. How to wait is `admission`'s affair, how to send the provider's.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.errors import CallerError, CallerGoneError, LimitError, ProviderError, StoreError
from headgate.core.estimates import Estimator
from headgate.core.ledger import Attempt
from headgate.core.limits import Limit
from headgate.core.model_rules import RuledOut
from headgate.core.retries import Failure, RetryRule, is_timeout, retry_delay_s
from headgate.core.scopes import Scopes, fit
from headgate.core.usage import CHARGES, NO_USAGE, Usage
from headgate.ports import Answer, Clock, LedgerStore, Passage, Prices, Provider, Request
from headgate.runtime.account_pool import AccountPool, Asked
from headgate.runtime.admission import Admission
from headgate.runtime.asking import demand_of, estimate_of, most_of, size_of, standing_of
from headgate.runtime.grants import Call, Exchange, Grant
from headgate.runtime.lanes import Ticket
from headgate.runtime.learning import Learning
from headgate.runtime.streaming import EarlyCharges
from headgate.runtime.traffic import Sent
from headgate.runtime.used import cost_of, used
from headgate.runtime.warming import Turn, Warming

__all__ = ["Call", "Calls", "Exchange", "Grant"]

MOST_ANEW = 4
"""How often a call begins to wait anew because a limit was learned meanwhile."""


class Calls:
    """Carries calls from estimate to record, for one process."""

    def __init__(
        self,
        *,
        admission: Admission,
        ledger: LedgerStore,
        prices: Prices,
        clock: Clock,
        owner: str,
        pool: AccountPool,
        providers: Mapping[str, Provider],
        limits_for: Callable[[Scopes, str], tuple[Limit, ...]],
        learning: Learning,
        retries: RetryRule,
        chooser: random.Random,
        estimator: Estimator | None = None,
        warming: Warming | None = None,
        finished: Callable[[Grant], None] = lambda _grant: None,
    ) -> None:
        """Join what a call meets on its way; nothing is started."""
        self._admission = admission
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._owner = owner
        self._pool = pool
        self._providers = providers
        self._limits_for = limits_for
        self._retries = retries
        self._chooser = chooser
        self._finished = finished
        self._learning = learning
        self._estimator = estimator or Estimator()
        self._warming = warming or Warming(clock)
        self._finishing: set[asyncio.Task[None]] = set()
        self._unkept: dict[str, Grant] = {}
        self._in_flight: dict[str, Grant] = {}
        self._taken: set[str] = set()
        self.refused_by_providers = 0

    @asynccontextmanager
    async def admit(
        self,
        call: Call,
        *,
        attempt: int = 1,
        queued_s: float | None = None,
        deadline_s: float | None = None,
        avoid: Collection[str] = (),
    ) -> AsyncIterator[Grant]:
        """Hold what the call asks of every limit it meets, waiting for it; settle at the end of the block.

        Raises:
            UnknownModelError: no account serves the model.
            UnboundedError: it meets a budget of money, and nothing bounds what it may cost.
            LimitError: it cannot be admitted before its deadline, or never.
            StoreError: the hold could not be kept; nothing was sent or counted.
        """
        queued_s = self._clock.now_s() if queued_s is None else queued_s
        scopes = fit(call.scopes)
        now_s = self._clock.now_s()
        estimate = estimate_of(call, self._estimator, now_s)
        standing = standing_of(call, call.standing, estimate, self._prices, now_s)
        choice, is_warm = None, True
        if scopes.account is None:
            scopes = scopes._replace(account=self._pool.only(call.dialect, call.model))
        if scopes.account is None:
            expected = demand_of(call, estimate, self._prices, now_s, None)
            choice, is_warm = self._pool.choose(Asked(call.dialect, call.model, scopes, expected, standing), avoid)
            scopes = scopes._replace(account=choice.account)
        limits = self._limits_for(scopes, call.model)
        asked = demand_of(call, estimate, self._prices, now_s, most_of(call, limits, self._prices, now_s))
        if not is_warm and standing.cold is not None:  # its prompt cache is at another account
            asked, standing = Demand(standing.cold, asked.at_most), call.standing
        attempt_id = f"{call.id}.{attempt}"
        if attempt_id in self._taken:
            raise CallerError(f"call {call.id} is on its way already; make a new Call for each one")
        deadline_s = queued_s + call.max_wait_s if deadline_s is None else deadline_s
        self._taken.add(attempt_id)
        try:
            limits, turn = await self._admitted(
                call, Ticket(attempt_id, limits, asked, scopes, call.model, queued_s, deadline_s, standing)
            )
        except LimitError as refused:
            self._taken.discard(attempt_id)
            await self._note_refused(self._row(call, attempt, scopes, queued_s, NO_USAGE), refused.limit)
            raise
        except BaseException:
            self._taken.discard(attempt_id)
            raise
        usage = Usage(estimate.input_tokens, output_tokens=estimate.output_tokens, reported=False)
        row = self._row(call, attempt, scopes, queued_s, usage, asked)
        grant = Grant(row, limits, asked, call.dialect)
        grant.choice, grant.turn = choice, turn
        grant.effort = call.ruled.effort if call.ruled is not None else None
        try:
            await self._begin(grant, is_streamed=call.is_streamed)
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
        avoid: set[str] = set()
        while True:
            async with self.admit(
                call, attempt=attempt, queued_s=attempt_queued_s, deadline_s=deadline_s, avoid=avoid
            ) as grant:
                waited_s += grant.wait_s
                begun = False
                try:
                    grant.passage = Passage()
                    sent = replace(request, call_id=grant.attempt.id, passage=grant.passage)
                    async with self._providers[grant.account].send(sent) as answer:
                        delay_s = await self._answered(grant, answer, attempt, deadline_s)
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
                    if is_timeout(error.failure):
                        self._learning.troubled(_sent(grant))
                    delay_s = None if begun else self._delay_s(grant, error.failure, attempt, deadline_s)
                    if delay_s is None:
                        raise
            avoid.add(grant.account)
            # Another account that can serve it need not wait for this one to recover.
            if not self._pool.has_another(avoid, call.dialect, call.model):
                await asyncio.sleep(delay_s)
            attempt, attempt_queued_s = attempt + 1, self._clock.now_s()

    async def read(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Iterate over an answer's body; what it tells on the way is charged then."""
        grant, answer = exchange.grant, exchange.answer
        grant.early = early = EarlyCharges(self._admission, grant.attempt.id, grant.limits, grant.asked, grant.dialect)
        turn = grant.turn if answer.failure is None else None
        async for chunk in answer:
            if turn is not None:
                turn.answered()
            early.look(answer)
            yield chunk

    async def keep_unkept(self) -> int:
        """Try again to record what could not be recorded; give how many are left."""
        for grant in list(self._unkept.values()):
            await self._keep(grant)
        return len(self._unkept)

    async def close(self) -> None:
        """Wait until everything that was admitted is settled and recorded."""
        while self._finishing:
            await asyncio.wait(self._finishing)
        await self._learning.close()

    def in_flight(self) -> list[Grant]:
        """Give the attempts that were admitted and are not settled yet."""
        return list(self._in_flight.values())

    def _row(
        self, call: Call, attempt: int, scopes: Scopes, queued_s: float, usage: Usage, asked: Demand | None = None
    ) -> Attempt:
        return Attempt(
            id=f"{call.id}.{attempt}",
            call=call.id,
            attempt=attempt,
            owner=self._owner,
            scopes=scopes,
            endpoint=call.endpoint,
            model=call.model,
            queued_s=queued_s,
            admitted_s=self._clock.now_s(),
            usage=usage,
            held_micro_usd=asked.at_most.micro_usd if asked is not None else None,
            # What it is thought to cost, until it is known.
            cost_micro_usd=asked.expected.micro_usd if asked is not None else 0,
            asked_model=call.ruled.asked_model if call.ruled is not None else None,
            rule=call.ruled.rule if call.ruled is not None else None,
        )

    async def note_ruled_out(self, call: Call, ruled: RuledOut) -> None:
        """Record a call that a model rule turned down."""
        row = self._row(call, 1, fit(call.scopes), self._clock.now_s(), NO_USAGE)
        await self._note_refused(replace(row, rule=ruled.rule), f"model_rule:{ruled.rule}")

    async def _note_refused(self, row: Attempt, limit: str) -> None:
        """Record that a call was not admitted: whoever wonders why its agents do nothing has to find it."""
        with suppress(StoreError):  # its caller is told in any case, and nothing was spent
            await self._ledger.begin(row)
            await self._ledger.finish(
                replace(row, state="refused", error_type=limit, sent=False, done_s=self._clock.now_s())
            )

    # -- send and observe ----------------------------------------------------------------------------------------

    async def _answered(self, grant: Grant, answer: Answer, attempt: int, deadline_s: float) -> float | None:
        grant.describe(status=answer.status, first_byte_s=self._clock.now_s(), provider_request=answer.provider_request)
        sent, failure = _sent(grant), answer.failure
        self._learning.heard(sent, answer)
        if failure is None:
            self._pool.succeeded(grant.attempt.model, grant.attempt.scopes)
            return None
        grant.failed(failure)
        own_wait_s = 0.0
        if failure.kind == "limited":
            self.refused_by_providers += 1
            # Before its hold comes back: whoever waits would be let go, and be refused too.
            own_wait_s = await self._learning.refused(sent, answer, failure)
        elif failure.kind == "overloaded":
            self._learning.troubled(sent)
        delay_s = self._delay_s(grant, failure, attempt, deadline_s)
        return None if delay_s is None else max(delay_s, own_wait_s)

    def _delay_s(self, grant: Grant, failure: Failure, attempt: int, deadline_s: float) -> float | None:
        left_s = deadline_s - self._clock.now_s()
        delay_s = retry_delay_s(self._retries, failure, attempt, left_s, self._chooser.random())
        if delay_s is None or failure.kind == "limited" or self._learning.may_retry(grant.account):
            return delay_s
        return None

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

    async def _admitted(self, call: Call, ticket: Ticket) -> tuple[tuple[Limit, ...], Turn | None]:
        """Admit a call when it is its turn; without a hold the turn is another's."""
        turn = await self._turn(call, ticket)
        try:
            return await self._held(ticket), turn
        except BaseException:
            if turn is not None:
                turn.ended()
            raise

    async def _held(self, ticket: Ticket) -> tuple[Limit, ...]:
        """Admit under the limits that are met when it goes: some may have been learned while it waited."""
        for _ in range(MOST_ANEW):
            await self._admission.admit(ticket)
            limits = self._limits_for(ticket.scopes, ticket.model)
            if limits is ticket.limits or {each.name for each in limits} <= {each.name for each in ticket.limits}:
                return ticket.limits
            back = asyncio.create_task(self._give_back(ticket), name=f"back {ticket.attempt}")
            self._finishing.add(back)
            back.add_done_callback(self._finishing.discard)
            await asyncio.shield(back)
            ticket = replace(ticket, limits=limits)
        await self._admission.admit(ticket)
        return ticket.limits

    async def _turn(self, call: Call, ticket: Ticket) -> Turn | None:
        """Wait, with nothing held, while another call is about to write the prompt cache that this one could read."""
        account = ticket.scopes.account
        if call.prompt_marks is None or account is None or not self._admission.scheduling.warm_up:
            return None
        return await self._warming.turn(account, call.prompt_marks(), ticket.deadline_s, is_streamed=call.is_streamed)

    async def _give_back(self, ticket: Ticket) -> None:
        await self._admission.settle(ticket.attempt, ticket.limits, NOTHING)

    # -- settle and record ---------------------------------------------------------------------------------------

    async def _begin(self, grant: Grant, *, is_streamed: bool) -> None:
        try:
            await self._ledger.begin(grant.attempt)
        except BaseException:
            grant.outcome, grant.usage = "failed", NO_USAGE
            grant.failure = Failure("rejected", "not_recorded", sent=False)
            raise
        self._in_flight[grant.attempt.id] = grant
        row = grant.attempt
        grant.journey = self._learning.began(
            grant.account,
            row.model,
            grant.limits,
            grant.asked,
            first=row.attempt == 1,
            is_streamed=is_streamed,
        )

    async def _finish(self, call: Call, grant: Grant) -> None:
        if grant.turn is not None:
            grant.turn.ended()
        grant.attempt = self._outcome(grant)
        if grant.failure is not None:
            self._pool.failed(grant.account, grant.attempt.model, grant.failure)
        elif grant.outcome != "done":
            self._pool.gave_up(grant.account, grant.attempt.model)
        if grant.outcome == "done" and grant.attempt.usage.reported:
            self._estimator.observe(size_of(call), grant.attempt.usage, grant.attempt.admitted_s)
        task = asyncio.create_task(self._keep(grant), name=f"settle {grant.attempt.id}")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        if (journey := grant.journey) is not None:  # until all is charged, a provider may know more of it than we do
            output_tokens = grant.attempt.usage.output_tokens
            task.add_done_callback(lambda _task: self._learning.ended(journey, output_tokens))
        # Cancelled here, the task goes on: `close` waits for it.
        await asyncio.shield(task)

    async def _keep(self, grant: Grant) -> None:
        try:
            if grant.early is not None:
                await grant.early.ended()
            actual = self._actual(grant)
            # In one tick, so that a store that commits by the tick keeps both together.
            await asyncio.gather(
                self._admission.settle(grant.attempt.id, grant.limits, actual), self._ledger.finish(grant.attempt)
            )
        except StoreError:
            self._unkept[grant.attempt.id] = grant
        else:
            self._unkept.pop(grant.attempt.id, None)
            self._finished(grant)
        self._in_flight.pop(grant.attempt.id, None)
        self._taken.discard(grant.attempt.id)

    def _outcome(self, grant: Grant) -> Attempt:
        row = grant.attempt
        cut = grant.outcome == "cancelled" and grant.passage is not None
        usage = used(row.usage, grant.usage, grant.failure, sent=grant.sent, cut=cut)
        cost = cost_of(self._prices, row.model, row.model_served, usage, row.admitted_s)
        return replace(
            row,
            state=grant.outcome or "done",
            usage=usage,
            cost_micro_usd=cost.micro_usd,
            price_version=cost.version,
            error_type=grant.failure.error_type if grant.failure is not None else row.error_type,
            done_s=self._clock.now_s(),
            sent=grant.sent,
        )

    def _actual(self, grant: Grant) -> Amounts:
        row = grant.attempt
        actual = CHARGES[grant.dialect](row.usage, row.cost_micro_usd)
        if not grant.sent:
            return NOTHING
        if grant.dialect == "openai":  # what was reserved at the start is not given back, failed calls count too
            return actual._replace(tokens=max(actual.tokens, grant.asked.expected.tokens))
        return actual


def _sent(grant: Grant) -> Sent:
    assert grant.journey is not None, grant.call_id
    return grant.journey
