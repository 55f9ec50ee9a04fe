"""The relay: one call of a client, carried to its provider and back.

One rule: once a byte of the answer has gone to the client, it is the provider's own from end to end; a failure after
that is an error event of the provider's dialect or a broken connection, never a second answer.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import NamedTuple

import msgspec

from headgate.adapters.providers.body import ask_for_usage
from headgate.adapters.providers.call_head import CallHead
from headgate.adapters.providers.early_end import EarlyEnd
from headgate.adapters.providers.endpoints import Endpoint
from headgate.adapters.providers.life_signs import LifeSigns, is_event_stream
from headgate.adapters.providers.model_change import CHANGEABLE, effort_of, with_model
from headgate.adapters.providers.prefix import prompt_marks
from headgate.adapters.providers.prompts import prompt_bound
from headgate.adapters.providers.refusals import RefusalKind, error_event
from headgate.core.errors import CallerGoneError, ProviderError
from headgate.core.retries import Failure, is_late
from headgate.core.scheduling import ORDINARY, Standing
from headgate.core.scopes import Scopes
from headgate.gateway.ending import Ending
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.kept_open import KeptOpen
from headgate.gateway.terms import USUAL_TERMS, Terms
from headgate.ports import Answer, Passage, Request
from headgate.runtime.budget_guard import BudgetEndedError, BudgetGuard
from headgate.runtime.calls import Call, Exchange
from headgate.runtime.manager import Manager

MOST_BUFFERED_BYTES = 4 * 1024 * 1024
"""An answer that is no stream is held up to this size, so that its head can say what it cost."""

ANSWERED_IN_TIME = 0.95
"""The share of its client's own time-out that a call may wait: a refusal has to arrive before the client gives up."""


class Meant(NamedTuple):
    """What a client sent: to which endpoint, what must be known of it, and all of it."""

    endpoint: Endpoint
    head: CallHead
    body: bytes


async def relay_metered(
    exchange: HttpExchange,
    manager: Manager,
    meant: Meant,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing = ORDINARY,
    terms: Terms = USUAL_TERMS,
) -> None:
    """Carry a call that spends tokens: admitted, sent, metered, settled.

    Raises:
        HeadgateError: nothing of an answer has gone to the client yet; the caller turns it into one.
    """
    endpoint, head, _ = meant
    pings = terms.while_waiting == "pings" and head.stream
    every_s = terms.ping_every_s
    if pings and head.client_timeout_s is not None:
        # What it hears begins the client's own time anew.
        every_s = min(every_s, head.client_timeout_s / 2)
        meant = meant._replace(head=msgspec.structs.replace(head, client_timeout_s=None))
    call, request = await prepare(exchange, manager, meant, scopes, max_wait_s, standing, terms)
    if pings:
        signs = LifeSigns(endpoint, exchange.header(b"user-agent"))
        kept = KeptOpen(exchange, signs, call.id, every_s)
        async with (
            Ending(exchange) as ending,
            CancelledWithClient(exchange),
            kept,
            manager.carry(call, request) as carried,
        ):
            await kept.end()
            if kept.is_begun:
                await _go_on(ending, kept, manager, meant, carried)
            else:
                await _pass_on(exchange, ending, manager, meant, carried, stream=True)
            await ending.whole()
        return
    async with Ending(exchange) as ending, CancelledWithClient(exchange), manager.carry(call, request) as carried:
        await _pass_on(exchange, ending, manager, meant, carried, stream=head.stream)
        await ending.whole()


async def prepare(
    exchange: HttpExchange,
    manager: Manager,
    meant: Meant,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing,
    terms: Terms,
) -> tuple[Call, Request]:
    """Give the call that a client means, as model rules have it, and what is to be sent for it.

    Raises:
        RuledOutError: a rule turns it down.
    """
    endpoint, head, body = meant
    call = describe_call(head, endpoint, body, scopes, max_wait_s, standing)
    choice = await manager.model_for(call)
    if choice.rule is not None:
        head = msgspec.structs.replace(head, model=choice.model)
        body = with_model(endpoint.name, body, choice.model, choice.effort)
        call = replace(describe_call(head, endpoint, body, scopes, max_wait_s, standing), id=call.id, ruled=choice)
    if terms.while_waiting == "refuse":
        call = replace(call, patience_s=terms.refuse_after_s)
    headers = exchange.headers
    return call, Request(exchange.method, exchange.target, headers, body, call.id, Passage(), is_streamed=head.stream)


async def relay_unmetered(
    exchange: HttpExchange, manager: Manager, endpoint: Endpoint, body: bytes, model: str | None
) -> None:
    """Carry a call that spends no tokens: counting tokens of a model, listing models (None).

    Raises:
        HeadgateError: nothing of an answer has gone to the client yet.
    """
    account = manager.pool.first_that_serves(endpoint.dialect, model)
    request = Request(exchange.method, exchange.target, exchange.headers, body, "")
    async with CancelledWithClient(exchange), manager.providers[account.name].send(request) as answer:
        await exchange.start(answer.status, [*answer.headers, (b"x-headgate-account", account.name.encode())])
        async for chunk in answer:
            await exchange.write(chunk)
    await exchange.write(b"", more=False)


def describe_call(
    head: CallHead,
    endpoint: Endpoint,
    body: bytes,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing = ORDINARY,
) -> Call:
    """Say of a client's request what the runtime has to know."""
    waits_s = [max_wait_s]
    if head.max_wait_s is not None:
        waits_s.append(head.max_wait_s)
    if head.client_timeout_s is not None:
        waits_s.append(head.client_timeout_s * ANSWERED_IN_TIME)
    return Call(
        model=head.model,
        dialect=endpoint.dialect,
        endpoint=endpoint.name,
        text_bytes=head.text_bytes,
        media=head.media,
        measure=partial(prompt_bound, endpoint.name, head.model, body),
        max_output_tokens=head.max_output_tokens,
        cache_write=head.cache_write,
        scopes=scopes,
        standing=standing,
        max_wait_s=min(waits_s),
        may_degrade=endpoint.name in CHANGEABLE,
        effort=partial(effort_of, endpoint.name, body),
        prompt_marks=partial(prompt_marks, body) if head.cache_write is not None else None,
        is_streamed=head.stream,
    )


async def _pass_on(
    exchange: HttpExchange, ending: Ending, manager: Manager, meant: Meant, carried: Exchange, *, stream: bool
) -> None:
    answer, chunks = carried.answer, manager.read(carried)
    if not stream or answer.failure is not None:
        first = [chunk async for chunk in _bounded(chunks)]
        ending.begin(answer.status, own_head(manager, carried, answer))
        for chunk in first[:-1]:
            await ending.write(chunk)
        if first:
            await ending.hold(first[-1])
    else:
        await exchange.start(answer.status, own_head(manager, carried, None))
    await _pass_body(ending, meant, carried, chunks, stream=stream)


async def _go_on(ending: Ending, kept: KeptOpen, manager: Manager, meant: Meant, carried: Exchange) -> None:
    """Pass an answer on behind a head and signs of life: what is no stream is told as an event of an error."""
    answer, chunks = carried.answer, manager.read(carried)
    if answer.failure is None and is_event_stream(answer):
        kept.begin_answer()
        await _pass_body(ending, meant, carried, chunks, stream=True)
        return
    body = b"".join([chunk async for chunk in _bounded(chunks)])
    kept.begin_answer()
    await ending.hold(kept.told_as_event(answer, body))


async def _pass_body(
    ending: Ending, meant: Meant, carried: Exchange, chunks: AsyncIterator[bytes], *, stream: bool
) -> None:
    answer, guard = carried.answer, carried.grant.guard
    if guard is not None and stream and is_event_stream(answer):
        chunks = guarded(chunks, guard, answer, meant)
    try:
        async for chunk in chunks:
            # All is told with the last event or the last but one, so that no more than these are ever held.
            told = answer.usage
            is_last = (told is not None and told.reported) or answer.failure is not None
            await (ending.hold(chunk) if is_last else ending.write(chunk))
    except BudgetEndedError as ended:
        carried.grant.failed(Failure("rejected", f"budget_spent:{ended.limit.name}"))
        await ending.hold(ended.last_words)
    except ProviderError as error:
        if not stream:
            raise
        carried.grant.failed(error.failure)
        kind: RefusalKind = "upstream_timeout" if is_late(error.failure) else "upstream_failed"
        await ending.hold(error_event(meant.endpoint, kind, str(error), request_id=carried.grant.call_id))


async def guarded(
    chunks: AsyncIterator[bytes], guard: BudgetGuard, answer: Answer, meant: Meant
) -> AsyncIterator[bytes]:
    """Give the pieces of a stream until its budget is spent.

    Raises:
        BudgetEndedError: it is; with the events that end the stream well.
    """
    is_chat = meant.endpoint.name in ("chat", "completions")
    end = EarlyEnd(meant.endpoint, tells_usage=is_chat and ask_for_usage(meant.body) is None)
    async for chunk in chunks:
        end.follow(chunk)
        yield chunk
        try:
            await guard.look(answer)
        except BudgetEndedError as ended:
            ended.last_words = end.end(answer.usage or guard.estimated(answer))
            raise


async def _bounded(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        yield chunk
        size += len(chunk)
        if size > MOST_BUFFERED_BYTES:
            return


def own_head(manager: Manager, carried: Exchange, whole: Answer | None) -> list[tuple[bytes, bytes]]:
    """Give the provider's headers and Headgate's own; the cost where the whole answer is known."""
    grant = carried.grant
    headers = [
        *carried.answer.headers,
        (b"x-headgate-call-id", grant.call_id.encode()),
        (b"x-headgate-wait-ms", str(round(carried.waited_s * 1000)).encode()),
        (b"x-headgate-account", grant.account.encode()),
    ]
    if grant.attempt.rule is not None:
        headers.append((b"x-headgate-model-rule", grant.attempt.rule.encode()))
    if whole is not None and whole.usage is not None:
        cost = manager.cost(grant, whole.usage, whole.model_served)
        headers.append((b"x-headgate-cost-micro-usd", b"unknown" if cost is None else str(cost).encode()))
    return headers


class CancelledWithClient:
    """Cancels the block as soon as the client goes away, which is a CallerGoneError then."""

    __slots__ = ("_carrying", "_exchange", "_is_gone", "_reads", "_watcher")

    def __init__(self, exchange: HttpExchange, *, reads: bool = False) -> None:
        """Watch the client; where the block `reads` its request still, that tells it who is gone."""
        self._exchange = exchange
        self._reads = reads
        self._is_gone = False
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        carrying = asyncio.current_task()
        assert carrying is not None, "an ASGI application runs in a task"
        self._carrying = carrying
        if self._exchange.when_gone is not None:
            self._exchange.when_gone(self._gone)
        elif not self._reads:  # a server that does not call has to be asked
            self._watcher = asyncio.create_task(self._watch(), name="client")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        elif self._exchange.when_gone is not None:
            self._exchange.when_gone(None)
        if kind is asyncio.CancelledError and self._is_gone and self._carrying.uncancel() == 0:
            raise CallerGoneError("the client went away before its answer was complete") from None

    async def _watch(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _gone(self) -> None:
        if not self._exchange.ended:  # else it has all it came for
            self._is_gone = True
            self._carrying.cancel()
