"""Generation: the part of a call in which an answer is produced, token by token, and sent.

One rule: tokens are charged and counted when they exist, before they are sent, so that a call which is cut anywhere has
used exactly what was produced until then. Whoever is let in was decided before.
"""

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from headgate.testing.provider.answers import fragments, token_count
from headgate.testing.provider.buckets import Pool
from headgate.testing.provider.counting import Entry
from headgate.testing.provider.dialect import Dialect, Headers, Reply
from headgate.testing.provider.exchange import Exchange
from headgate.testing.provider.plan_windows import Plan
from headgate.testing.provider.settings import Latency

__all__ = ["Call", "generate"]

# An answer in one piece drains its output about this often while it is produced.
_DRAIN_EVERY_S = 0.25
_DRAW_BITS = 0xFFFF
_COUNTS = re.compile(rb'"(input_tokens|output_tokens|prompt_tokens|completion_tokens)":\d+')
_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


@dataclass(slots=True)
class Call:
    """An admitted call on its way.

    Attributes:
        headers: Gives the answer's headers, with what is left in the buckets at that moment.
        first_token: What is to happen when the first token exists.
    """

    dialect: Dialect
    reply: Reply
    entry: Entry
    pool: Pool | None
    plan: Plan
    wall_s: Callable[[], float]
    headers: Callable[[], Headers]
    first_token: Callable[[], None]
    fault: str | None
    stall_s: float
    deltas: int

    def produce(self, tokens_so_far: int) -> None:
        """Count, charge and drain the tokens that are new."""
        tokens = tokens_so_far - self.entry.usage.output_tokens
        if tokens <= 0:
            return
        now_s = asyncio.get_running_loop().time()
        self.entry.produced(tokens)
        self.plan.use(tokens, now_s, self.wall_s())
        if self.pool is not None and self.dialect.vendor.name == "anthropic":
            self.pool.charge("output_tokens", tokens, now_s)


async def generate(call: Call, exchange: Exchange, latency: Latency) -> None:
    """Produce and send the answer of an admitted call, or the fault that it was given.

    Raises:
        ClientGoneError: the client left; what was produced until then is counted, and nothing more is produced.
    """
    # Two independent looking draws from one seed: its low and its high half.
    seed = call.reply.asked.seed
    await exchange.wait(latency.first_wait_s((seed & _DRAW_BITS) / _DRAW_BITS))
    call.first_token()
    pace = latency.pace((seed >> 16) / _DRAW_BITS)
    if call.reply.asked.stream:
        await _stream(call, exchange, pace)
    else:
        await _document(call, exchange, pace)


async def _document(call: Call, exchange: Exchange, pace: float) -> None:
    if call.fault == "stall":
        await exchange.wait(call.stall_s)
    tokens = call.reply.answer.tokens()
    if math.isfinite(pace):
        duration_s = tokens / pace
        steps = max(1, min(call.deltas, math.ceil(duration_s / _DRAIN_EVERY_S)))
        begun_s = asyncio.get_running_loop().time()
        for step in range(1, steps + 1):
            await _wait_until(begun_s + duration_s * step / steps, exchange)
            call.produce(tokens * step // steps)
    call.produce(tokens)
    body = call.dialect.document(call.reply)
    if call.fault == "error-200":
        call.entry.close("failed")
        error = call.dialect.vendor.error(500, "Internal server error", call.reply.request_id)
        await exchange.respond(200, [*_JSON, *call.headers()], error)
        return
    if call.fault == "wrong-usage":
        body = _lying(body)
    if call.fault == "malformed-event":
        body = body[: len(body) // 2]
    if call.fault in ("disconnect-mid", "half-event"):
        call.entry.close("failed")
        await exchange.start(200, [*_JSON, *call.headers(), (b"content-length", b"%d" % len(body))])
        await exchange.write(body[: len(body) // 2])
        await exchange.drop()
        return
    call.entry.close("done")
    await exchange.respond(200, [*_JSON, *call.headers()], body)


async def _stream(call: Call, exchange: Exchange, pace: float) -> None:
    exchange.listen()
    pieces = list(fragments(call.reply.answer, call.deltas))
    middle = len(pieces) // 2
    begun_s = asyncio.get_running_loop().time()
    characters = 0
    await exchange.start(200, [*_EVENTS, *call.headers()])
    if call.fault == "error-200":
        call.entry.close("failed")
        await exchange.end(call.dialect.failure(call.reply))
        return
    unsent = call.dialect.opening(call.reply)
    if call.fault == "wrong-usage":
        unsent = _lying(unsent)
    for position, piece in enumerate(pieces):
        if position == middle and call.fault is not None:
            await exchange.write(unsent)
            unsent = b""
            if await _cut_short(call, exchange):
                return
            if call.fault == "stall":
                begun_s += call.stall_s
        characters += len(piece.text)
        tokens = token_count(characters)
        if math.isfinite(pace):
            if unsent:
                await exchange.write(unsent)
                unsent = b""
            await _wait_until(begun_s + tokens / pace, exchange)
        last = position == len(pieces) - 1
        call.produce(call.reply.answer.tokens() if last else tokens)
        unsent += call.dialect.fragment(call.reply, piece)
        if not last:
            await exchange.write(unsent)
            unsent = b""
    closing = call.dialect.closing(call.reply)
    unsent += _lying(closing) if call.fault == "wrong-usage" else closing
    # Closed before the last bytes leave: a client that has them all must find the call done.
    call.entry.close("done")
    await exchange.end(unsent)


def _lying(written: bytes) -> bytes:
    """Give what is told with nonsense for every count of tokens."""
    return _COUNTS.sub(rb'"\1":-5', written)


async def _wait_until(when_s: float, exchange: Exchange) -> None:
    # Against a fixed start, so that a busy machine delays an answer once and not at every step.
    await exchange.wait(when_s - asyncio.get_running_loop().time())


async def _cut_short(call: Call, exchange: Exchange) -> bool:
    """Do what the fault says in the middle of a stream; give whether that was its end."""
    if call.fault in ("disconnect-mid", "half-event"):
        call.entry.close("failed")
        if call.fault == "half-event":
            await exchange.write(call.dialect.malformed()[:-2])
        await exchange.drop()
        return True
    if call.fault == "error-mid":
        call.entry.close("failed")
        await exchange.end(call.dialect.failure(call.reply))
        return True
    if call.fault == "stall":
        await exchange.wait(call.stall_s)
    elif call.fault == "malformed-event":
        await exchange.write(call.dialect.malformed())
    return False
