"""On SQLite: a call is two transactions, and whatever is cancelled or breaks leaves nothing held or in flight."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager

import pytest
from small_house import open_small_house, rate, slots

from headgate.adapters.sqlite import ledger as ledger_queries
from headgate.adapters.sqlite.stores import open_database
from headgate.core.errors import StoreError
from headgate.core.ledger import UsageQuery
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
LIMITS = (rate("input_tokens", 6_000_000), rate("output_tokens", 6_000_000), slots(5))


def call():
    return Call("claude-test", text_bytes=400, max_output_tokens=100)


@asynccontextmanager
async def house(path, provider=None):
    async with open_database(path / "headgate.db") as stores:
        parts = {"stores": (stores.levels, stores.ledger), "provider": provider or ScriptedProvider([Reply(pieces=1)])}
        async with open_small_house(*LIMITS, **parts) as here:
            await asyncio.sleep(1)  # what a start looks at
            yield here, stores


async def carry(here):
    async with here.manager.carry(call(), REQUEST) as carried:
        async for _chunk in here.manager.read(carried):
            pass


async def assert_all_is_given_back(here):
    await asyncio.sleep(0.001)
    assert [view.held for view in await here.manager.limits()] == [0, 0, 0]
    assert await here.ledger.in_flight() == []


def test_a_call_is_one_transaction_before_it_is_sent_and_one_after_it(tmp_path):
    async def main():
        async with house(tmp_path) as (here, stores):
            said: list[str] = []
            stores.levels._database._connection.set_trace_callback(said.append)
            sent_at: list[int] = []

            def answer(_request):
                sent_at.append(sum(text == "COMMIT" for text in said))
                return Reply(pieces=1)

            here.provider.script = answer
            await carry(here)
            stores.levels._database._connection.set_trace_callback(None)
            assert (sent_at, sum(text == "COMMIT" for text in said)) == ([1], 2)
            first = said[: said.index("COMMIT")]
            assert any("INTO levels" in text for text in first)
            assert any("INTO attempts" in text for text in first)

    run(main())


@pytest.mark.parametrize("turns", range(12))
def test_a_call_that_is_cancelled_anywhere_leaves_nothing(tmp_path, turns):
    async def main():
        async with house(tmp_path, ScriptedProvider([Reply(pieces=1, head_s=1.0)])) as (here, _stores):
            task = asyncio.create_task(carry(here))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_all_is_given_back(here)
            rows = await here.manager.usage(UsageQuery(("state",)))
            assert [row.group["state"] for row in rows] in ([], ["cancelled"])
            (total,) = await here.manager.usage(UsageQuery())
            assert total.requests == len(here.provider.sent)

    run(main())


@pytest.mark.parametrize("fails", ["_BEGIN", "levels"])
def test_a_hold_without_a_row_comes_back_and_a_row_without_a_hold_is_none(tmp_path, fails, monkeypatch):
    async def main():
        async with house(tmp_path) as (here, stores):
            if fails == "_BEGIN":
                monkeypatch.setattr(ledger_queries, "_BEGIN", "SELECT nothing FROM nowhere WHERE ? = ?")
            else:
                write = type(stores.levels).write

                def broken(self, connection):
                    if any(name.startswith("hold/") for name in self._changed):
                        raise sqlite3.OperationalError("disk I/O error")
                    write(self, connection)

                monkeypatch.setattr(type(stores.levels), "write", broken)
            with pytest.raises((StoreError, sqlite3.Error)):
                await carry(here)
            monkeypatch.undo()
            assert here.provider.sent == []
            await assert_all_is_given_back(here)
            await carry(here)
            (total,) = await here.manager.usage(UsageQuery())
            assert (total.requests, total.attempts - total.requests <= 1) == (1, True)

    run(main())
