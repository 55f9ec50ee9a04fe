"""Shared calls: one answer for all clients of a key that ask for the same thing at the same time.

One rule: only what is the same byte for byte, from bearers of the same scopes, is shared, so that nobody waits or is
refused under another's limits; a stream never is. An answer that was shared says so.
"""

from contextlib import suppress
from hashlib import blake2b

from headgate.core.errors import ProviderError
from headgate.core.retries import Failure
from headgate.core.scheduling import Standing
from headgate.core.scopes import Scopes
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.relay import CancelledWithClient, Meant, own_head, prepare, relay_metered
from headgate.gateway.terms import Terms
from headgate.ports import Request
from headgate.runtime.coalesce import Answered
from headgate.runtime.grants import Call
from headgate.runtime.held_answers import NoRoomError
from headgate.runtime.manager import Manager

MOST_SHARED_BYTES = 64 * 1024 * 1024
"""The largest answers, embeddings of 2,048 inputs, have a third of it."""

# What may change an answer, or how long it is waited for; who asks, and from where, does not.
_TELLING = (b"anthropic-", b"openai-", b"x-stainless-timeout", b"x-stainless-read-timeout", b"x-headgate-max-wait")


def identity_of(exchange: HttpExchange, scopes: Scopes, body: bytes) -> bytes:
    """Give what calls have in common that can share an answer: what they ask, and every limit that they may meet."""
    named = sorted((name.lower(), value) for name, value in exchange.headers if name.lower().startswith(_TELLING))
    digest = blake2b(digest_size=32)
    for part in (repr(scopes.path()), exchange.method, exchange.target, repr(named)):
        digest.update(part.encode() + b"\n")
    digest.update(body)
    return digest.digest()


async def answered_whole(manager: Manager, call: Call, request: Request) -> Answered:
    """Carry a call, and give its whole answer.

    Raises:
        HeadgateError: there is none, or it is too large.
        NoRoomError: with it too much would be held; it is cut, and was charged.
    """
    async with manager.carry(call, request) as carried:
        held = manager.coalescing.held.begin()
        async for piece in manager.read(carried):
            if held.add(piece) > MOST_SHARED_BYTES:
                held.drop()
                failure = Failure("connection", "broken_too_large", retryable=False)
                raise ProviderError(f"the answer has more than {MOST_SHARED_BYTES:,} bytes to share", failure)
        head = own_head(manager, carried, carried.answer)
    return Answered(carried.answer.status, head, held, carried.grant)


def head_of_another(call: Call, answered: Answered) -> list[tuple[bytes, bytes]]:
    """Give the head of an answer that another call got, as it is for one that shares it and pays nothing."""
    return [
        *((name, value) for name, value in answered.headers if not name.startswith(b"x-headgate-")),
        (b"x-headgate-call-id", call.id.encode()),
        (b"x-headgate-account", answered.grant.account.encode()),
        (b"x-headgate-cost-micro-usd", b"0"),
    ]


async def relay_shared(
    exchange: HttpExchange,
    manager: Manager,
    meant: Meant,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing,
    terms: Terms,
) -> None:
    """Carry a call that is no stream, or share the answer of one like it that is under way.

    Raises:
        HeadgateError: nothing of an answer has gone to the client yet.
    """
    if not manager.coalescing.held.has_room:
        await relay_metered(exchange, manager, meant, scopes, max_wait_s, standing, terms)
        return
    with suppress(NoRoomError):
        await _relay_shared(exchange, manager, meant, scopes, max_wait_s, standing, terms)
        return
    await relay_metered(exchange, manager, meant, scopes, max_wait_s, standing, terms)


async def _relay_shared(
    exchange: HttpExchange,
    manager: Manager,
    meant: Meant,
    scopes: Scopes,
    max_wait_s: float,
    standing: Standing,
    terms: Terms,
) -> None:
    call, request = await prepare(exchange, manager, meant, scopes, max_wait_s, standing, terms)
    came_s = manager.clock.now_s()

    async def work() -> Answered:
        return await answered_whole(manager, call, request)

    async with CancelledWithClient(exchange):
        answered, is_own = await manager.coalescing.join(identity_of(exchange, scopes, request.body), work)
        headers = answered.headers
        if not is_own:
            await manager.coalescing.note(call, answered, came_s)
            headers = [*head_of_another(call, answered), (b"x-headgate-coalesced", answered.grant.call_id.encode())]
        await exchange.start(answered.status, headers)
        await exchange.write(answered.body, more=False)
