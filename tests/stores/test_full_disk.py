"""A full disk: who waits is told in one line, what was acknowledged stays, and it goes on when there is room again."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random

import pytest

from headgate.adapters.sqlite.database import Buffer, Database
from headgate.adapters.sqlite.stores import SqliteStores, open_database
from headgate.core.accounts import Account
from headgate.core.errors import StoreError
from headgate.core.ledger import UsageQuery
from headgate.core.limits import Gauge, Rate
from headgate.core.scopes import LimitRule, Scopes
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.runtime.manager import Manager, Parts
from headgate.testing.exercises.ledger import an_attempt
from headgate.testing.exercises.levels import add_one, read, write
from headgate.testing.scripted import FlatPrices, Reply, ScriptedProvider
from headgate.testing.virtual_time import VirtualClock, run

SLOTS = 20
REQUEST = Request("POST", "/v1/messages", (), b"{}", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "headgate.db"


@contextmanager
def full(database: Database) -> Iterator[None]:
    """Let the file have no page more than it has: SQLite says what it says when the disk has none."""
    (most,) = database._connection.execute("PRAGMA max_page_count").fetchone()
    database._connection.execute("PRAGMA max_page_count = 1")  # it becomes what the file has
    try:
        yield
    finally:
        database._connection.execute(f"PRAGMA max_page_count = {most}")


class PageHungry:
    """Lets every transaction that changes something need another page, as the log does that a commit is written to."""

    def __init__(self, inner: Buffer) -> None:
        self.inner = inner
        self.changes_before = 0

    def start(self, connection: sqlite3.Connection) -> None:
        self.changes_before = connection.total_changes
        self.inner.start(connection)

    def write(self, connection: sqlite3.Connection) -> None:
        self.inner.write(connection)
        if connection.total_changes > self.changes_before:
            connection.execute("INSERT INTO levels VALUES ('filler', hex(zeroblob(100000)), 0)")

    def undo(self) -> None:
        self.inner.undo()


@contextmanager
def entirely_full(database: Database) -> Iterator[None]:
    """Let nothing be written at all."""
    buffers = database._buffers
    database._buffers = [*buffers[1:], PageHungry(buffers[0])]
    try:
        with full(database):
            yield
    finally:
        database._buffers = buffers


def is_told(error: object, path: Path) -> bool:
    assert isinstance(error, StoreError)
    line = str(error)
    return "\n" not in line and str(path) in line and "disk is full; free some space" in line


def test_what_does_not_fit_is_told_to_its_caller_alone_and_what_fits_is_kept(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            await write(stores.levels, {"a": (1,)})
            with full(stores.ledger._database):
                begun = (stores.ledger.begin(an_attempt(number)) for number in range(200))
                counted, *outcomes = await asyncio.gather(add_one(stores.levels, "a"), *begun, return_exceptions=True)
                assert counted == 2
                told = [number for number, outcome in enumerate(outcomes) if outcome is not True]
                assert 0 < len(told) < 200
                assert all(is_told(outcomes[number], path) for number in told)
                assert len(await stores.ledger.in_flight()) == 200 - len(told)
            await asyncio.gather(*(stores.ledger.begin(an_attempt(number)) for number in told))
        async with open_database(path) as stores:
            assert len(await stores.ledger.in_flight()) == 200
            assert await read(stores.levels, "a") == {"a": (2,)}

    run(main())


def test_levels_that_do_not_fit_are_as_they_were(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            await write(stores.levels, {"a": (1,), "large": ("short",)})
            with full(stores.levels._database):
                with pytest.raises(StoreError) as told:
                    await write(stores.levels, {"a": (2,), "large": ("long" * 100_000,)})
                assert is_told(told.value, path)
                assert await read(stores.levels, "a", "large") == {"a": (1,), "large": ("short",)}
            assert await add_one(stores.levels, "a") == 2

    run(main())


@asynccontextmanager
async def a_manager(stores: SqliteStores, provider: ScriptedProvider) -> AsyncIterator[Manager]:
    slots = LimitRule("run:narrow", Gauge("", "run:narrow", "slots", SLOTS))
    pace = LimitRule("run:paced", Rate("", "run:paced", "requests", 1, 60, 1, charged_at_start=True))
    manager = Manager(
        Parts(
            levels=stores.levels,
            ledger=stores.ledger,
            keys=stores.keys,
            prices=FlatPrices(),
            clock=VirtualClock(),
            owner="here",
            owner_is_alive=lambda _owner: True,
            accounts=[Account("main", "anthropic")],
            providers={"main": provider},
            rules=[slots, pace],
            rules_of_key=lambda _key: (),
            chooser=Random(7),
        )
    )
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()


async def carry(manager: Manager, name: str) -> None:
    what = Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run=name))
    async with manager.carry(what, REQUEST) as carried:
        async for _chunk in manager.read(carried):
            pass


def test_a_gateway_goes_on_when_there_is_room_again_and_no_row_is_lost(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        provider = ScriptedProvider([Reply(pieces=2, pause_s=5)])
        async with open_database(path) as stores, a_manager(stores, provider) as manager:
            await carry(manager, "paced")
            running = [asyncio.create_task(carry(manager, "narrow")) for _ in range(SLOTS)]
            queued = [asyncio.create_task(carry(manager, "narrow")) for _ in range(SLOTS)]
            waiting = [asyncio.create_task(carry(manager, "paced")) for _ in range(3)]
            await asyncio.sleep(1)
            with entirely_full(stores.levels._database):
                new = asyncio.create_task(carry(manager, "unlimited"))
                told = await asyncio.gather(new, *waiting, return_exceptions=True)
                assert all(is_told(outcome, path) for outcome in told)
                assert await asyncio.gather(*running) == [None] * SLOTS, "answers reach their callers all the same"
                assert len(provider.sent) == 1 + SLOTS, "what cannot be recorded is not sent"
                assert not any(task.done() for task in queued), "slots are not free before it is on disk that they are"
            await asyncio.gather(*queued, carry(manager, "paced"))
            await asyncio.sleep(30)  # what could not be kept while there was no room is tried again now and then
            (total,) = await manager.usage(UsageQuery(only=(("state", "done"),)))
            assert (total.requests, total.output_tokens) == (2 + 2 * SLOTS, 50 * (2 + 2 * SLOTS))
            assert await stores.ledger.in_flight() == []
            assert [view.held for view in await manager.limits()] == [0, 0]

    run(main())
    assert not [record for record in caplog.records if record.exc_info]
