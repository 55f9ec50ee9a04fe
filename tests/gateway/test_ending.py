"""The end of an answer: not before the ledger has the call, late by no more than a moment, and nothing else held."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.call_head import read_call
from headgate.adapters.providers.endpoints import endpoint_of
from headgate.core.accounts import Account
from headgate.core.errors import ProviderError, StoreError
from headgate.core.ledger import UsageQuery
from headgate.core.retries import Failure
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.gateway.ending import MOST_HELD_S
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.relay import Meant, relay_metered
from headgate.runtime.manager import Manager, Parts
from headgate.testing.scripted import FlatPrices, Reply, ScriptedAnswer
from headgate.testing.virtual_time import VirtualClock, run

BODY = b'{"model":"claude-x","max_tokens":9,"stream":%b,"messages":[]}'
NOT_ALL = Usage(10, output_tokens=1, reported=False)
ALL = Usage(10, output_tokens=5)
STREAM = ((1.0, b"first", NOT_ALL), (1.0, b"second", NOT_ALL), (1.0, b"usage", ALL), (0.0, b"last", ALL))


class Timed(ScriptedAnswer):
    """Gives pieces: after so many seconds these bytes, and the usage told by then; None for a break."""

    pieces: tuple = ()
    hangs_up_after_s = 0.0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for pause_s, piece, usage in self.pieces:
            await asyncio.sleep(pause_s)
            if piece is None:
                self.failure = Failure("connection", "broken")
                raise ProviderError("the connection broke", self.failure)
            self.usage = usage
            yield piece
        await asyncio.sleep(self.hangs_up_after_s)


class OneAnswer:
    def __init__(self, pieces, hangs_up_after_s: float) -> None:
        self.pieces, self.hangs_up_after_s = pieces, hangs_up_after_s

    @asynccontextmanager
    async def send(self, _request):
        answer = Timed(Reply(), 200, None)
        answer.pieces, answer.hangs_up_after_s = self.pieces, self.hangs_up_after_s
        yield answer


class SlowLedger(MemoryLedgerStore):
    """Takes `takes_s` to keep an outcome, and refuses the first `refuses` of them."""

    takes_s = 0.3
    refuses = 0

    async def finish(self, attempt):
        await asyncio.sleep(self.takes_s)
        if self.refuses:
            self.refuses -= 1
            raise StoreError("the database is locked")
        return await super().finish(attempt)


async def relayed(pieces, *, stream=b"true", ledger=None, hangs_up_after_s=0.0):
    """Relay one call; give what went to the client as (seconds, bytes, whether the call was final in the ledger)."""
    ledger = ledger or SlowLedger()
    parts = Parts(
        levels=MemoryLevelStore(), ledger=ledger, keys=MemoryKeyStore(), prices=FlatPrices(), clock=VirtualClock(),
        owner="here", owner_is_alive=lambda _owner: True, accounts=[Account("main", "anthropic", ("*",))],
        providers={"main": OneAnswer(pieces, hangs_up_after_s)}, rules=(), rules_of_key=lambda _key: (),
    )  # fmt: skip
    loop, ended, seen = asyncio.get_running_loop(), asyncio.Event(), []
    manager, started_s = Manager(parts), loop.time()

    async def receive():  # as a server: a client is gone once it has its answer
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            final = not await ledger.in_flight()
            seen.append((round(loop.time() - started_s, 3), message["body"], final))
            if not message["more_body"]:
                ended.set()

    exchange = HttpExchange("POST", "/v1/messages", b"", [], receive, send)
    await manager.start()
    try:
        endpoint, body = endpoint_of("/v1/messages", []), BODY % stream
        assert endpoint is not None
        await relay_metered(exchange, manager, Meant(endpoint, read_call(endpoint, [], body), body), Scopes(), 60.0)
    finally:
        await manager.close()
    assert exchange.ended
    (row,) = await ledger.usage(UsageQuery(("state",)))
    return seen, row.group["state"]


def test_a_documents_last_bytes_come_when_the_ledger_has_the_call():
    async def main():
        seen, state = await relayed(((0.0, b"{", NOT_ALL), (0.5, b"}", ALL)), stream=b"false")
        assert seen == [(0.5, b"{", False), (0.8, b"}", True)]
        assert state == "done"

    run(main())


def test_a_streams_last_event_comes_when_the_ledger_has_the_call_and_the_others_at_once():
    async def main():
        seen, _ = await relayed(STREAM)
        assert seen == [(1.0, b"first", False), (2.0, b"second", False), (3.0, b"usage", False), (3.3, b"last", True)]

    run(main())


def test_a_stream_that_breaks_ends_with_its_error_when_the_ledger_has_the_call():
    async def main():
        seen, state = await relayed((STREAM[0], (1.0, None, None)))
        assert [(at_s, final) for at_s, _, final in seen] == [(1.0, False), (2.3, True)]
        assert seen[-1][1].startswith(b"event: error")
        assert state == "failed"

    run(main())


@pytest.mark.parametrize("stream", [b"true", b"false"])
def test_a_locked_ledger_holds_no_client_and_loses_no_row(stream):
    async def main():
        ledger = SlowLedger()
        ledger.takes_s, ledger.refuses = 30.0, 1
        seen, state = await relayed(STREAM, stream=stream, ledger=ledger)
        assert b"".join(piece for _, piece, _ in seen) == b"firstsecondusagelast"
        assert seen[-1][0] == 3.0 + MOST_HELD_S
        assert state == "done", "a client that left with its whole answer cancels nothing"

    run(main())


def test_a_provider_that_does_not_hang_up_holds_back_its_last_event_for_a_moment_only():
    async def main():
        seen, _ = await relayed(STREAM, hangs_up_after_s=20.0)
        assert seen[-2:] == [(3.0 + MOST_HELD_S, b"last", False), (23.3, b"", True)]

    run(main())


def test_a_stream_that_never_tells_its_usage_is_not_held_up():
    async def main():
        seen, _ = await relayed(((1.0, b"first", None), (1.0, b"last", None)))
        assert seen == [(1.0, b"first", False), (2.0, b"last", False), (2.3, b"", True)]

    run(main())
