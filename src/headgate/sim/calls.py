"""The life of a simulated call: estimate, choose, admit, send, observe, settle, as `runtime.calls` has it.

One rule: whatever decides is the product's own (wishes, routes, admission, learning, warm-up, retries); here is only
their order, for a generator costs a fifth of what tasks, rows and contexts do. `tests/sim/test_same_life.py` plays the
same calls through `runtime.manager` and wants every attempt to go at the same instant.
"""

from asyncio import Future
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple, cast

from headgate.core import quota
from headgate.core.amounts import Amounts, Dimension
from headgate.core.errors import BudgetError, HeadgateError, LimitError, ProviderError
from headgate.core.limits import Limit
from headgate.core.retries import Failure, is_of_provider, is_timeout, retry_delay_s
from headgate.core.usage import CHARGES, Usage
from headgate.core.warm_up import Mark
from headgate.runtime.asking import size_of
from headgate.runtime.calls import MOST_ANEW
from headgate.runtime.grants import Call
from headgate.runtime.lanes import Ticket
from headgate.runtime.routes import PooledRoute
from headgate.runtime.streaming import BEYOND, drawn, drawn_tokens
from headgate.runtime.traffic import Sent
from headgate.runtime.used import used
from headgate.runtime.warming import Turn
from headgate.runtime.wishes import Wish
from headgate.sim.foresight import BYTES_PER_TOKEN, Asks
from headgate.sim.parts import Parts, Place, Standpoint
from headgate.sim.processes import Play, at_once, through
from headgate.sim.provider import Prompt, reserved_tokens
from headgate.sim.workload import Round

__all__ = ["Calls"]

_INPUT: tuple[Dimension, ...] = ("input_tokens",)
_PROVIDER = "the provider's 429s"


class _Coming(NamedTuple):
    """A call that was offered: its number, when and as which it came, until when it would wait."""

    number: int
    asked: Round
    stand: Standpoint
    came_s: float
    order: int
    deadline_s: float


class _Granted(NamedTuple):
    """An attempt that may go: what it asks and holds, where, by which route, and its turn if others wait for it."""

    wish: Wish
    ticket: Ticket
    place: Place
    route: PooledRoute | None
    turn: Turn | None


class Calls:
    """Carries the calls of one simulation."""

    def __init__(self, parts: Parts) -> None:
        """Join the parts."""
        self._parts = parts
        self._calls = 0
        self._version = 0
        """Of what was learned: with another one a call may meet more limits than it did."""
        parts.rules.on_learned = self._learned

    def carry(self, asked: Round, stand: Standpoint) -> Play[int]:
        """Carry one call; give the input that was not in the cache.

        Raises:
            LimitError: Headgate refused it.
            ProviderError: its last attempt failed.
        """
        parts = self._parts
        self._calls += 1
        call, attempt, time, tally = self._calls, 1, parts.loop.time, parts.tally
        came_s, standing = time(), stand.standing
        work = asked.prompt_tokens - asked.known_tokens + asked.output_tokens
        tally.came(call, stand.sharer, work, came_s, interactive=standing.interactive, priority=standing.priority)
        came_s += parts.epoch_s
        coming = _Coming(call, asked, stand, came_s, parts.admission.next_order(), came_s + parts.max_wait_s)
        avoid: frozenset[str] = frozenset()
        while True:
            granted = yield from self._granted(coming, attempt, avoid)
            ticket, place = granted.ticket, granted.place
            account, held, sent_s = place.provider.account, ticket.asked, parts.epoch_s + time()
            sent = parts.learning.began(account, stand.model, ticket.limits, held, first=attempt == 1)
            prompt = self._prompt(asked, stand, place)
            failure = self._failure(asked, place, prompt)
            if failure is None:
                parts.admitted.count(account, stand.model, sent_s)
                break
            delay_s = yield from self._failed(granted, sent, failure, attempt)
            if delay_s is None:
                raise self._given_up(call, account, failure)
            avoid |= {account}
            tally.retries += 1
            if delay_s:
                yield delay_s
            attempt += 1
        tally.taken(call, time())
        usage = prompt.usage(asked.output_tokens, stand.dialect)
        if asked.recorded is not None:
            usage = asked.recorded._replace(output_tokens=asked.output_tokens)
        cost = parts.prices.cost(stand.model, usage, sent_s).micro_usd
        actual = CHARGES[stand.dialect](usage, cost)
        yield from self._served(asked, stand, granted, sent, prompt, actual)
        if granted.turn is not None:
            granted.turn.ended()
        left_cache = granted.route is not None and granted.route.left_cache
        streamed_s = asked.output_tokens / parts.pace.tokens_per_second
        size = size_of(granted.wish.call)
        parts.estimator.observe(size, usage, sent_s, streamed_s=streamed_s, left_cache=left_cache)
        if stand.dialect == "openai":  # what was reserved at the start is not given back
            actual = actual._replace(tokens=max(actual.tokens, held.expected.tokens))
        at_once(parts.admission.settle(ticket.attempt, ticket.limits, actual))
        parts.learning.ended(sent, usage.output_tokens)
        tally.served_call(call, place.tally, usage, cost)
        return prompt.uncached_tokens

    # -- admit -------------------------------------------------------------------------------------------------------

    def _granted(self, coming: _Coming, attempt: int, avoid: frozenset[str]) -> Play[_Granted]:
        """Admit an attempt; what goes at once costs no generator beside this one."""
        parts, stand = self._parts, coming.stand
        wish = self._wish(coming, attempt)
        route: PooledRoute | None = None
        turn: Turn | None = None
        ticket: Ticket | None = None
        version = self._version
        try:
            if stand.only is not None:
                ticket = parts.wishes.ticket(wish, stand.only)
            else:
                route = parts.wishes.route(wish, avoid)
                ticket = yield from through(route.begin())
            if stand.program.prefix is not None and parts.warm_up:
                turn = yield from self._turn(ticket, coming, wish)
            admitting = parts.admission.admit(ticket)
            try:
                future = admitting.send(None)
            except StopIteration as done:
                ticket = done.value[0]
            else:
                ticket = yield from self._waited(ticket, route, admitting, future)
            if version != self._version:
                ticket = yield from self._under_all(ticket)
        except LimitError as refused:
            if turn is not None:
                turn.ended()
            if route is not None:
                route.gave_up()
            now_s, spent = parts.loop.time(), isinstance(refused, BudgetError)
            limits = () if ticket is None else ticket.limits
            parts.tally.refused_call(coming.number, now_s, refused.limit, spent=spent, used=partial(self._used, limits))
            raise
        account = ticket.scopes.account or ""
        if turn is not None:
            turn = turn.went_to(account)
        return _Granted(wish, ticket, stand.places[account], route, turn)

    def _wish(self, coming: _Coming, attempt: int) -> Wish:
        number, asked, stand, came_s, order, _deadline_s = coming
        parts = self._parts
        text_bytes = asked.prompt_tokens * BYTES_PER_TOKEN if asked.text_bytes is None else asked.text_bytes
        call = Asks(
            stand.model,
            stand.dialect,
            stand.scopes,
            text_bytes,
            asked.max_output_tokens,
            stand.standing,
            parts.max_wait_s,
        )
        queued_s = parts.epoch_s + parts.loop.time()
        return parts.wishes.wish(
            cast("Call", call), f"{number}.{attempt}", queued_s, (came_s, order), is_read_here=True
        )

    def _turn(self, ticket: Ticket, coming: _Coming, wish: Wish) -> Play[Turn | None]:
        """Wait, with nothing held, while another call writes the shared prefix that this one could read.

        Whose own session's cache lives waits for nobody: it reads more than that.
        """
        parts, stand, account = self._parts, coming.stand, ticket.scopes.account
        prefix = stand.program.prefix
        if prefix is None or account is None or stand.dialect != "anthropic":
            return None
        if wish.estimate.cached_tokens >= prefix.tokens:
            return None
        size_bytes = min(prefix.tokens, coming.asked.prompt_tokens) * BYTES_PER_TOKEN
        mark = Mark(hash(prefix.name), size_bytes, parts.providers[account].caches.life_s)
        began_s = parts.loop.time()
        # A task of its own: it waits within a time-out, and only tasks can.
        waiting = parts.loop.create_task(parts.warming.turn(account, (mark,), ticket.deadline_s, is_streamed=True))
        yield waiting
        waited_s = parts.loop.time() - began_s
        if waited_s > 0:
            parts.tally.warmed += 1
            parts.tally.warming_s += waited_s
        return waiting.result()

    def _waited(
        self,
        ticket: Ticket,
        route: PooledRoute | None,
        admitting: Coroutine[Any, None, tuple[Ticket, bool]],
        future: "Future[Any] | None",
    ) -> Play[Ticket]:
        """Wait to be admitted, elsewhere where an account can never serve the call; the meters hear of it."""
        meters, time = self._parts.meters, self._parts.loop.time
        meters.enters(time())
        try:
            for _ in range(MOST_ANEW):
                try:
                    return (yield from through(admitting, future))[0]
                except BudgetError:
                    again = ticket if route is None else (yield from through(route.begin()))
                    if again.scopes.account == ticket.scopes.account:
                        raise
                    ticket, future = again, None
                    admitting = self._parts.admission.admit(ticket)
            return (yield from through(admitting))[0]
        finally:
            meters.leaves(time())

    def _under_all(self, ticket: Ticket) -> Play[Ticket]:
        """Admit anew under limits that were learned while it waited, as long as there are such."""
        parts = self._parts
        for _ in range(MOST_ANEW):
            limits = parts.rules.limits_for(ticket.scopes, ticket.model)
            if limits is ticket.limits or {each.name for each in limits} <= {each.name for each in ticket.limits}:
                break
            yield None  # a task of its own gives it back, which this one hears of two passes later
            at_once(parts.admission.giving_back.now(ticket))
            yield None
            yield None
            if ticket.again is not None:
                asked, standing = ticket.again(parts.epoch_s + parts.loop.time(), limits)
                ticket = replace(ticket, asked=asked, standing=standing)
            ticket = replace(ticket, limits=limits)
            parts.meters.enters(parts.loop.time())
            try:
                ticket, _ = yield from through(parts.admission.admit(ticket))
            finally:
                parts.meters.leaves(parts.loop.time())
        return ticket

    def _learned(self, before: object, after: object) -> None:  # noqa: ARG002 - as `Rules` tells it
        self._version += 1

    def _used(self, limits: Sequence[Limit], name: str) -> float | None:
        """Give how full a limit is that refused a call, None where it has no level."""
        limit = next((each for each in limits if each.name == name), None)
        if limit is None:
            return None
        now_s = self._parts.epoch_s + self._parts.loop.time()
        reading = at_once(self._parts.store.transact([name], lambda records: ({}, quota.read(limit, records, now_s))))
        return (reading.used + reading.held) / limit.amount

    # -- send --------------------------------------------------------------------------------------------------------

    def _prompt(self, asked: Round, stand: Standpoint, place: Place) -> Prompt:
        recorded, program = asked.recorded, stand.program
        if recorded is not None:
            return Prompt(recorded.cache_read_tokens, recorded.prompt_tokens - recorded.cache_read_tokens)
        return place.provider.caches.read(program.session, asked, self._parts.loop.time(), program.prefix)

    def _failure(self, asked: Round, place: Place, prompt: Prompt) -> Failure | None:
        now_s, provider, pool = self._parts.loop.time(), place.provider, place.pool
        failure = provider.fault(now_s) if provider.is_faulty else None
        if failure is None:
            failure = provider.refusal(pool, prompt.uncached_tokens, reserved_tokens(pool, asked), now_s)
        return failure

    def _failed(self, granted: _Granted, sent: Sent, failure: Failure, attempt: int) -> Play[float | None]:
        """Take in a failed attempt: learn from it, settle it, and give after how long it is tried again."""
        parts, (wish, ticket, place, _route, turn) = self._parts, granted
        own_wait_s, account, model = 0.0, place.provider.account, ticket.model
        if failure.kind == "connection":
            if is_timeout(failure):
                yield parts.timeouts.first_byte_s
                parts.learning.troubled(sent)
        else:
            head = place.provider.head(place.pool, failure, parts.loop.time())
            parts.learning.heard(sent, head)
            if failure.kind == "limited":
                # Before its hold comes back: whoever waits would be let go, and be refused too.
                own_wait_s = yield from through(parts.learning.refused(sent, head, failure))
            elif failure.kind == "overloaded":
                parts.learning.troubled(sent)
        delay_s = self._delay_s(granted, failure, attempt, own_wait_s)
        if turn is not None:
            turn.ended()
        parts.tally.failed_attempt(place.tally, failure)
        self._note_pause(granted, failure, account, model)
        estimate = wish.estimate
        thought = Usage(estimate.input_tokens, output_tokens=estimate.output_tokens, reported=False)
        usage = used(thought, None, failure, sent=failure.sent, cut=False)
        actual = CHARGES[wish.call.dialect](usage, parts.prices.cost(model, usage, sent.at_s).micro_usd)
        if wish.call.dialect == "openai":
            actual = actual._replace(tokens=max(actual.tokens, ticket.asked.expected.tokens))
        at_once(parts.admission.settle(ticket.attempt, ticket.limits, actual))
        parts.learning.ended(sent, usage.output_tokens)
        return delay_s

    def _delay_s(self, granted: _Granted, failure: Failure, attempt: int, own_wait_s: float) -> float | None:
        """Say after how long an attempt that failed is worth another; None if none is."""
        parts, ticket, account = self._parts, granted.ticket, granted.place.provider.account
        is_led_on = granted.route is not None and attempt < parts.retries.attempts and is_of_provider(failure)
        if is_led_on and granted.route is not None and granted.route.leads_on(account):
            return 0.0
        left_s = ticket.deadline_s - parts.epoch_s - parts.loop.time()
        delay_s = retry_delay_s(parts.retries, failure, attempt, left_s, parts.chooser.random())
        if delay_s is None or (failure.kind != "limited" and not parts.learning.may_retry(account)):
            return None
        return max(delay_s, own_wait_s)

    def _note_pause(self, granted: _Granted, failure: Failure, account: str, model: str) -> None:
        """Tell the pool of a failure, and count it if a circuit opens; where one account serves, nobody asks for it."""
        accounts, tally = self._parts.accounts, granted.place.tally
        paused_s = accounts.closed_s(account, model)
        accounts.failed(account, model, failure)
        if granted.route is not None and not paused_s and (paused_s := accounts.closed_s(account, model)):
            tally.pauses += 1
            tally.paused_s += paused_s

    def _given_up(self, call: int, account: str, failure: Failure) -> HeadgateError:
        """Count a call whose last attempt failed; give what its agent is told."""
        tally, now_s = self._parts.tally, self._parts.loop.time()
        if failure.kind == "limited":
            tally.refused_call(call, now_s, _PROVIDER, spent=False, used=lambda _: None)
            after_s = failure.retry_after_s
            return LimitError("the provider refused it for too long", limit="", retry_after_s=after_s)
        tally.failed_call(call, now_s, failure)
        return ProviderError(f"{account}: {failure.error_type}", failure)

    def _served(
        self, asked: Round, stand: Standpoint, granted: _Granted, sent: Sent, prompt: Prompt, actual: Amounts
    ) -> Play[None]:
        """Let the provider answer: input is charged and told at once, output flows and is drawn in parts."""
        parts, (_wish, ticket, place, _route, turn) = self._parts, granted
        pace, time, pool, admission, meters = parts.pace, parts.loop.time, place.pool, parts.admission, parts.meters
        attempt, limits, held = ticket.attempt, ticket.limits, ticket.asked
        pool.charge(prompt.uncached_tokens, asked)
        if pace.first_token_s:
            yield pace.first_token_s
        place.provider.caches.write(stand.program.session, asked, time(), stand.program.prefix)
        parts.learning.heard(sent, place.provider.head(pool, None, time()))
        parts.accounts.succeeded(stand.model, ticket.scopes)
        if turn is not None:
            turn.answered()
        if stand.dialect == "anthropic" and any(limit.dimension == "input_tokens" for limit in limits):
            if meters.waiting:
                yield None  # a task of its own does that: whom the head has let go is tried first
            at_once(admission.settle(attempt, limits, actual, _INPUT))
        pool.flow(pace.tokens_per_second, time(), waiting=meters.waiting > 0)
        try:
            produced = 0
            held_tokens, part_tokens = drawn_tokens(limits, held) if stand.dialect == "anthropic" else (None, 0)
            due_tokens = part_tokens
            while held_tokens is not None and due_tokens < asked.output_tokens:
                yield (due_tokens - produced) / pace.tokens_per_second
                at_once(admission.change(attempt, limits, partial(drawn, Amounts(output_tokens=due_tokens), held)))
                produced = due_tokens
                due_tokens += part_tokens
                if produced >= held_tokens:
                    due_tokens = max(due_tokens, ceil(BEYOND * produced))
            yield (asked.output_tokens - produced) / pace.tokens_per_second
        finally:
            pool.flow(-pace.tokens_per_second, time(), waiting=meters.waiting > 0)
