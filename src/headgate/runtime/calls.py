"""The life of a call: estimate, admit, send, observe, settle, record.

One rule: whatever happens between admission and the end of the block, the hold is settled once and the ledger's row
completed once, also when the caller is cancelled. How to wait is `admission`'s affair, how to send the provider's.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from headgate.core.amounts import Demand
from headgate.core.errors import BudgetError, CallerError, CallerGoneError, LimitError, ProviderError
from headgate.core.estimates import Estimator
from headgate.core.ledger import Attempt
from headgate.core.limits import Limit
from headgate.core.model_rules import RuledOut
from headgate.core.retries import Failure, RetryRule, is_of_provider, is_timeout, retry_delay_s
from headgate.core.scopes import Scopes, fit
from headgate.core.usage import NO_USAGE, Usage
from headgate.ports import Answer, Clock, Cost, LedgerStore, Passage, Prices, Provider, Request
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.admission import Admission
from headgate.runtime.asking import held_micro_usd, size_of
from headgate.runtime.budget_guard import BudgetGuard
from headgate.runtime.carrying import Admitting, Carrying, OnItsWay
from headgate.runtime.coalesce import Coalescing
from headgate.runtime.grants import Call, Exchange, Grant
from headgate.runtime.lanes import Ticket
from headgate.runtime.learning import Learning
from headgate.runtime.routes import PooledRoute
from headgate.runtime.settlements import Settlements
from headgate.runtime.streaming import EarlyCharges
from headgate.runtime.warming import Turn, Warming
from headgate.runtime.wishes import Wish, Wishes, row_asking

__all__ = ["Call", "Calls", "Exchange", "Grant"]

MOST_ANEW = 4
"""How often a call begins to wait anew because a limit was learned meanwhile."""


# Named here, or else made anew for each call.
_Question = Callable[[], bool]
_Answer = Awaitable[bool]


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
        self.retries = retries
        self._chooser = chooser
        self._learning = learning
        self._estimator = estimator or Estimator()
        self._wishes = Wishes(pool, self._estimator, prices, clock, limits_for)
        self._warming = warming or Warming(clock)
        self._settlements = Settlements(admission, ledger, prices, clock, finished, self._settled)
        self.coalescing = Coalescing(self._settlements, clock, owner)
        self._in_flight: dict[str, Grant] = {}
        self._taken: set[str] = set()
        self.refused_by_providers = 0

    def admit(self, call: Call) -> AbstractAsyncContextManager[Grant]:
        """Hold what the call asks of every limit it meets, waiting for it; settle at the end of the block.

        Raises:
            UnknownModelError: no account serves the model.
            UnboundedError: it meets a budget of money, and nothing bounds what it may cost.
            LimitError: it cannot be admitted before its deadline, or never.
            StoreError: the hold could not be kept; nothing was sent or counted.
        """
        return Admitting(self, call)

    def carry(self, call: Call, request: Request) -> AbstractAsyncContextManager[Exchange]:
        """Admit a call, send it, retry what is worth it before the first byte, and give the answer to be read.

        Leaving the block before the answer was read cancels it upstream and settles what it used until then.

        Raises:
            ProviderError: the last attempt got no answer.
            LimitError, UnknownModelError, StoreError: as `admit`.
        """
        return Carrying(self, call, request)

    async def enter(
        self,
        call: Call,
        *,
        attempt: int = 1,
        queued_s: float | None = None,
        came: tuple[float, int] | None = None,
        avoid: Collection[str] = (),
        is_read_here: bool = False,
    ) -> Grant:
        """Admit an attempt, and begin its row: `leave` has to be called for it, however it ends.

        An attempt after the first says with `came` when its call came, and as which, and with `queued_s` when it waits
        from. With `is_read_here` its answer will be read by `read`, which charges what goes by: less need be held.
        """
        queued_s = self._clock.now_s() if queued_s is None else queued_s
        attempt_id = f"{call.id}.{attempt}"
        if attempt_id in self._taken:
            raise CallerError(f"call {call.id} is on its way already; make a new Call for each one")
        wish = self._wishes.wish(call, attempt_id, queued_s, came or (queued_s, None), is_read_here=is_read_here)
        account = wish.scopes.account or self._pool.only(call.dialect, call.model)
        route = None if account is not None else self._wishes.route(wish, frozenset(avoid))
        grant, begun = await self._granted(wish, attempt, account, route)
        if not begun:
            try:
                await self._begin(grant)
            except BaseException as error:
                await self.leave(call, grant, error)
                raise
        self._in_flight[attempt_id] = grant
        if is_read_here and call.is_streamed and grant.asked.likely is not None:
            grant.guard = self._guard_of(grant)
        grant.journey = self._learning.began(
            grant.account, call.model, grant.limits, grant.asked, first=attempt == 1, is_streamed=call.is_streamed
        )
        return grant

    async def leave(self, call: Call, grant: Grant, error: BaseException | None) -> None:
        """Settle and record an attempt, whose block was left by an error or (None) well."""
        if error is not None:
            is_cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit | CallerGoneError)
            grant.outcome = "cancelled" if is_cancelled else "failed"
        await self._finish(call, grant)

    async def send(self, request: Request, grant: Grant, attempt: int, deadline_s: float) -> OnItsWay | float:
        """Send an attempt: give its answer on the way, or after how many seconds another one is worth it.

        Raises:
            ProviderError: none is.
        """
        grant.passage = passage = Passage()
        method, target, headers, body = request.method, request.target, request.headers, request.body
        upload = request.upload
        sent = Request(method, target, headers, body, grant.attempt.id, passage, request.is_streamed, upload)
        try:
            sending = self._providers[grant.account].send(sent)
            answer = await sending.__aenter__()
            try:
                delay_s = await self._answered(grant, answer, attempt, deadline_s)
                if upload is not None and upload.is_begun:
                    delay_s = None
            except BaseException as error:
                await sending.__aexit__(type(error), error, error.__traceback__)
                raise
            if delay_s is None:
                return sending, answer
            await sending.__aexit__(None, None, None)
        except CallerError:
            grant.failed(Failure("rejected", "invalid_request", sent=False))
            raise
        except ProviderError as error:
            self.broke(grant, error)
            delay_s = self._delay_s(grant, error.failure, attempt, deadline_s)
            if delay_s is None or (upload is not None and upload.is_begun):
                raise
        return delay_s

    def broke(self, grant: Grant, error: ProviderError) -> None:
        """Note that an attempt got no answer, or only a part of one."""
        grant.failed(error.failure)
        if is_timeout(error.failure):
            self._learning.troubled(grant.sent_as)

    async def read(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Iterate over an answer's body; what it tells on the way is charged then."""
        grant, answer = exchange.grant, exchange.answer
        grant.early = early = EarlyCharges(self._admission, grant.attempt.id, grant.limits, grant.asked, grant.counting)
        turn = grant.turn if answer.failure is None else None
        async for chunk in answer:
            if turn is not None:
                turn.answered()
            early.look(answer)
            yield chunk

    async def keep_unkept(self) -> int:
        """Try again to record, and to give back, what could not be; give how many are left."""
        return await self._settlements.keep_unkept() + await self._admission.giving_back.again()

    async def close(self) -> None:
        """Wait until everything that was admitted is settled and recorded."""
        await self._settlements.close()
        await self._learning.close()

    def come(self) -> tuple[float, int]:
        """Give when a call comes that comes now, and as which."""
        return self._clock.now_s(), self._admission.next_order()

    def cost(self, grant: Grant, usage: Usage, model_served: str | None) -> Cost:
        """Price what an attempt used."""
        return self._settlements.cost(grant, usage, model_served)

    def in_flight(self) -> list[Grant]:
        """Give the attempts that were admitted and are not settled yet."""
        return list(self._in_flight.values())

    def _row(
        self,
        call: Call,
        attempt: int,
        scopes: Scopes,
        queued_s: float,
        usage: Usage,
        asked: Demand | None = None,
        limits: Sequence[Limit] = (),
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
            held_micro_usd=held_micro_usd(limits, asked) if asked is not None else None,
            # What it is thought to cost, until it is known.
            cost_micro_usd=asked.expected.micro_usd if asked is not None else 0,
            asked_model=call.ruled.asked_model if call.ruled is not None else None,
            rule=call.ruled.rule if call.ruled is not None else None,
        )

    async def note_ruled_out(self, call: Call, ruled: RuledOut) -> None:
        """Record a call that a model rule turned down."""
        row = self._row(call, 1, fit(call.scopes), self._clock.now_s(), NO_USAGE)
        await self._settlements.note_refused(replace(row, rule=ruled.rule), f"model_rule:{ruled.rule}")

    def _guard_of(self, grant: Grant) -> BudgetGuard | None:
        limits, estimate = grant.limits, grant.attempt.usage
        price = lambda usage: self.cost(grant, usage, None).micro_usd  # noqa: E731 - one line, used here alone
        guard = BudgetGuard(self._admission, grant.attempt.id, limits, grant.asked, grant.counting, estimate, price)
        return guard if guard.watches else None

    # -- send and observe ----------------------------------------------------------------------------------------

    async def _answered(self, grant: Grant, answer: Answer, attempt: int, deadline_s: float) -> float | None:
        grant.status, grant.first_byte_s = answer.status, self._clock.now_s()
        sent, failure = grant.sent_as, answer.failure
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
        return self._delay_s(grant, failure, attempt, deadline_s, own_wait_s)

    def _fails_over(self, grant: Grant, failure: Failure, attempt: int) -> bool:
        """Whether another account can serve what failed here: it need not wait for this one, nor spend its retries."""
        if grant.route is None or attempt >= self.retries.attempts or not is_of_provider(failure):
            return False
        return grant.route.leads_on(grant.account)

    def _delay_s(
        self, grant: Grant, failure: Failure, attempt: int, deadline_s: float, own_wait_s: float = 0.0
    ) -> float | None:
        if self._fails_over(grant, failure, attempt):
            return 0.0
        left_s = deadline_s - self._clock.now_s()
        delay_s = retry_delay_s(self.retries, failure, attempt, left_s, self._chooser.random())
        if delay_s is None or (failure.kind != "limited" and not self._learning.may_retry(grant.account)):
            return None
        return max(delay_s, own_wait_s)

    def ended(self, grant: Grant, answer: Answer) -> None:
        """Take up what an answer told in all."""
        grant.model_served, grant.provider_request = answer.model_served, answer.provider_request
        seen = answer.usage
        if seen is None and answer.output_seen_tokens:
            # A stream that was cut before it told anything: its prompt was read, and this much was written.
            seen = grant.attempt.usage._replace(output_tokens=answer.output_seen_tokens, reported=False)
        if answer.failure is not None:
            grant.failed(answer.failure)
            grant.usage = seen
        elif seen is not None:
            grant.settle(seen)

    async def _granted(
        self, wish: Wish, attempt: int, account: str | None, route: PooledRoute | None
    ) -> tuple[Grant, bool]:
        """Admit a call when it is its turn; give its grant, and whether its row was begun.

        Without a hold the turn is another's.
        """
        call, row, turn = wish.call, None, None
        self._taken.add(wish.attempt)
        usage = Usage(wish.estimate.input_tokens, output_tokens=wish.estimate.output_tokens, reported=False)
        try:
            ticket = self._wishes.ticket(wish, account or "") if route is None else await route.begin()
            row = self._row(call, attempt, ticket.scopes, wish.queued_s, usage, ticket.asked, ticket.limits)
            turn = await self._turn(call, ticket)
            ticket, row, begun = await self._held_somewhere(ticket, row, route)
        except BaseException as error:
            self._taken.discard(wish.attempt)
            if turn is not None:
                turn.ended()
            if route is not None:
                route.gave_up()
            if isinstance(error, LimitError) and row is not None:
                scopes = row.scopes if route is None else route.bound_for
                unheld = replace(row, scopes=scopes, usage=NO_USAGE, held_micro_usd=None, cost_micro_usd=0)
                await self._settlements.note_refused(unheld, error.limit)
            raise
        if not begun:  # it has waited, and may ask for something else by now, or elsewhere
            row = replace(row_asking(row, ticket), admitted_s=self._clock.now_s())
        if turn is not None:
            turn = turn.went_to(ticket.scopes.account or "")
        account = ticket.scopes.account or ""
        grant = Grant(row, ticket.limits, ticket.asked, self._pool.counting(account, call.dialect))
        grant.route, grant.turn = route, turn
        grant.effort = call.ruled.effort if call.ruled is not None else None
        return grant, begun

    async def _held_somewhere(
        self, ticket: Ticket, row: Attempt, route: PooledRoute | None
    ) -> tuple[Ticket, Attempt, bool]:
        """Admit a call, at another account where the chosen one can never serve it: what was seen of it is past."""
        for _ in range(MOST_ANEW):
            try:
                return await self._held(ticket, row)
            except BudgetError:
                again = ticket if route is None else await route.begin()
                if again.scopes.account == ticket.scopes.account:
                    raise
                ticket, row = again, row_asking(row, again)
        return await self._held(ticket, row)

    async def _held(self, ticket: Ticket, row: Attempt) -> tuple[Ticket, Attempt, bool]:
        """Admit under the limits that are met when it goes: some may be new since it waits, learned or configured.

        Give the ticket with which it was, its row, and whether that was begun with the hold, in one transaction, as it
        is where a call goes at once.
        """
        is_begun = is_over = False

        def begin(is_held: _Question) -> _Answer:
            def is_to_begin() -> bool:
                nonlocal is_begun
                is_begun = is_held() and not is_over and self._meets_no_more(ticket)
                return is_begun

            return self._ledger.begin(row, is_to_begin)

        try:
            ticket, begun = await self._admission.admit(ticket, begin)
            for _ in range(MOST_ANEW):
                if self._meets_no_more(ticket):
                    break
                await asyncio.shield(
                    self._settlements.go_on(self._admission.giving_back.now(ticket), f"back {ticket.attempt}")
                )
                limits = self._limits_for(ticket.scopes, ticket.model)
                if ticket.again is not None:  # a budget of money holds a bound, and there may have been none
                    asked, standing = ticket.again(self._clock.now_s(), limits)
                    ticket = replace(ticket, asked=asked, standing=standing)
                ticket = replace(ticket, limits=limits)
                ticket, _ = await self._admission.admit(ticket)
        except BaseException:
            is_over = True
            if is_begun:
                self._settlements.go_on(self._settlements.unbegin(row), f"unbegin {row.id}")
            raise
        return ticket, row, begun

    def _meets_no_more(self, ticket: Ticket) -> bool:
        """Whether a call meets no limit that it did not meet when its ticket was made."""
        limits = self._limits_for(ticket.scopes, ticket.model)
        return limits is ticket.limits or {each.name for each in limits} <= {each.name for each in ticket.limits}

    async def _turn(self, call: Call, ticket: Ticket) -> Turn | None:
        """Wait, with nothing held, while another call is about to write the prompt cache that this one could read."""
        account = ticket.scopes.account
        if call.prompt_marks is None or account is None or not self._admission.scheduling.warm_up:
            return None
        return await self._warming.turn(account, call.prompt_marks(), ticket.deadline_s, is_streamed=call.is_streamed)

    # -- settle and record ---------------------------------------------------------------------------------------

    async def _begin(self, grant: Grant) -> None:
        try:
            await self._ledger.begin(grant.attempt)
        except BaseException:
            grant.outcome, grant.usage = "failed", NO_USAGE
            grant.failure = Failure("rejected", "not_recorded", sent=False)
            raise

    async def _finish(self, call: Call, grant: Grant) -> None:
        if grant.turn is not None:
            grant.turn.ended()
        row = grant.attempt = self._settlements.outcome(grant)
        if grant.failure is not None:
            self._pool.failed(grant.account, row.model, grant.failure)
        elif grant.outcome != "done":
            self._pool.gave_up(grant.account, row.model)
        if grant.outcome == "done" and row.usage.reported and call.is_metered:
            streamed_s = None
            if call.is_streamed and row.first_byte_s is not None and row.done_s is not None:
                streamed_s = row.done_s - row.first_byte_s
            left_cache = grant.route is not None and grant.route.left_cache
            self._estimator.observe(
                size_of(call), row.usage, row.admitted_s, streamed_s=streamed_s, left_cache=left_cache
            )
        await self._settlements.settle(grant)

    def _settled(self, grant: Grant) -> None:
        attempt_id = grant.attempt.id
        self._in_flight.pop(attempt_id, None)
        self._taken.discard(attempt_id)
        if (journey := grant.journey) is not None:  # until all is charged, a provider may know more of it than we do
            grant.journey = None
            self._learning.ended(journey, grant.attempt.usage.output_tokens)
