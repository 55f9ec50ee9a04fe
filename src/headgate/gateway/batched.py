"""Batched embeddings: small requests of one key that come within a tenth of a second, made as one and answered apart.

One rule: only requests that differ in nothing but their inputs are joined. Where the answer to all cannot be cut, or is
a refusal, which may be one input's fault, each is made by itself.
"""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from itertools import chain

from headgate.adapters.providers.call_head import read_call
from headgate.adapters.providers.embeddings import Inputs, inputs_of, joined, parts_of
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.relay import CancelledWithClient, Meant, prepare, relay_metered
from headgate.gateway.shared import answered_whole, head_of_another, identity_of
from headgate.gateway.terms import Terms
from headgate.runtime.batching import MOST_INPUTS
from headgate.runtime.coalesce import Answered
from headgate.runtime.held_answers import NoRoomError
from headgate.runtime.manager import Manager

__all__ = ["MOST_BATCHED_BYTES", "relay_batched"]

MOST_BATCHED_BYTES = 32 * 1024
"""A request that is larger goes by itself: it gains nothing."""


async def relay_batched(
    exchange: HttpExchange,
    manager: Manager,
    meant: Meant,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing,
    terms: Terms,
) -> None:
    """Carry a request for embeddings together with others like it.

    Raises:
        HeadgateError: nothing of an answer has gone to the client yet.
    """
    own = inputs_of(meant.body) if len(meant.body) <= MOST_BATCHED_BYTES else None
    if own is None or len(own.each) > MOST_INPUTS or not manager.coalescing.held.has_room:
        await relay_metered(exchange, manager, meant, scopes, max_wait_s, standing, terms)
        return
    came_s = manager.clock.now_s()

    async def work(inputs: Sequence[Sequence[bytes]]) -> Answered:
        body = meant.body if len(inputs) == 1 else joined(own, list(chain.from_iterable(inputs)))
        head = read_call(meant.endpoint, exchange.headers, body)
        whole = Meant(meant.endpoint, head, body)
        call, request = await prepare(exchange, manager, whole, scopes, max_wait_s, standing, terms)
        return await answered_whole(manager, call, request)

    with suppress(NoRoomError):
        async with CancelledWithClient(exchange):
            group = identity_of(exchange, scopes, _kind(own))
            answered, inputs, place = await manager.batching.join(group, own.each, work)
            body = answered.body if len(inputs) == 1 else _part(answered, inputs, place)
            if body is not None:
                headers = answered.headers
                if place:
                    call, _ = await prepare(exchange, manager, meant, scopes, max_wait_s, standing, terms)
                    await manager.coalescing.note(call, answered, came_s, saves=False)
                    headers = head_of_another(call, answered)
                if len(inputs) > 1:
                    headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
                    headers += [
                        (b"content-length", str(len(body)).encode()),
                        (b"x-headgate-batched", answered.grant.call_id.encode()),
                    ]
                await exchange.start(answered.status, headers)
                await exchange.write(body, more=False)
                return
    await relay_metered(exchange, manager, meant, scopes, max_wait_s, standing, terms)


def _part(answered: Answered, inputs: Sequence[Sequence[bytes]], place: int) -> bytes | None:
    """Cut out what one has asked for; the others' parts are not kept while it is told."""
    parts = parts_of(answered.body, inputs) if answered.status == HTTPStatus.OK else None
    return None if parts is None else parts[place]


def _kind(own: Inputs) -> bytes:
    """Give what is the same of all that can be joined: everything but the inputs."""
    return own.before + b"\n" + own.after
