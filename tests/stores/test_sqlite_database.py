"""The SQLite adapter's own promises: group commit, patience with a locked file, one clear line when it is broken."""

import asyncio
import os
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from headgate.adapters.figures import figures_of, hour_of
from headgate.adapters.sqlite import database as database_module
from headgate.adapters.sqlite.database import Database
from headgate.adapters.sqlite.levels import SqliteLevelStore
from headgate.adapters.sqlite.rows import COLUMNS, DERIVED, to_row
from headgate.adapters.sqlite.schema import MIGRATIONS, migrate
from headgate.adapters.sqlite.stores import open_database
from headgate.core.errors import StoreError
from headgate.core.ledger import UsageQuery
from headgate.ports import Record
from headgate.testing.exercises.ledger import a_full_attempt, an_attempt
from headgate.testing.exercises.levels import add_one, read, write
from headgate.testing.virtual_time import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "headgate.db"


@asynccontextmanager
async def opened(path: Path, patience_s: float = 30.0) -> AsyncIterator[Database]:
    database = await Database.open(path, patience_s=patience_s)
    try:
        yield database
    finally:
        await database.close()


def statements_of(database: Database) -> list[str]:
    seen: list[str] = []
    database._connection.set_trace_callback(seen.append)
    return seen


def insert(name: str) -> Callable[[sqlite3.Connection], int]:
    def work(connection: sqlite3.Connection) -> int:
        return connection.execute("INSERT INTO levels VALUES (?, '[]', 0)", (name,)).rowcount

    return work


async def names_in(database: Database) -> list[str]:
    return [
        name for (name,) in await database.read(lambda c: c.execute("SELECT name FROM levels ORDER BY name").fetchall())
    ]


def test_all_work_of_one_tick_is_one_transaction(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            statements = statements_of(stores.levels._database)
            asked = [add_one(stores.levels, "a") for _ in range(20)]
            asked += [add_one(stores.levels, f"level {number}") for number in range(3)]
            tasks = [asyncio.create_task(each) for each in asked]
            await asyncio.sleep(0)  # all of them have asked
            await asyncio.gather(stores.ledger.begin(an_attempt()), *tasks)
            assert [text for text in statements if text.startswith(("BEGIN", "COMMIT"))] == [
                "BEGIN IMMEDIATE",
                "COMMIT",
            ]
            # What twenty steps changed is written once.
            assert sum("INTO levels" in text for text in statements) == 4
            assert await read(stores.levels, "a") == {"a": (20,)}

    run(main())


def test_what_nobody_else_has_written_is_not_read_again(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            await add_one(stores.levels, "a")
            statements = statements_of(stores.levels._database)
            await add_one(stores.levels, "a")
            assert not any("SELECT" in text for text in statements)

    run(main())


def test_work_that_fails_leaves_the_rest_of_its_batch_done_in_order(path: Path) -> None:
    order: list[str] = []

    def noted(name: str) -> Callable[[sqlite3.Connection], int]:
        def work(connection: sqlite3.Connection) -> int:
            order.append(name)
            return insert(name)(connection)

        return work

    def broken(connection: sqlite3.Connection) -> None:
        insert("half done")(connection)
        raise LookupError("on purpose")

    async def main() -> None:
        async with opened(path) as database:
            results = await asyncio.gather(
                database.run(noted("a")),
                database.run(broken),
                database.run(insert("a")),  # the name is taken
                database.run(noted("b")),
                return_exceptions=True,
            )
            assert results[0] == results[3] == 1
            assert isinstance(results[1], LookupError)
            assert isinstance(results[2], StoreError)
            assert await names_in(database) == ["a", "b"]
            assert order[-2:] == ["a", "b"]

    run(main())


def test_steps_of_a_batch_that_was_rolled_back_run_again_on_what_is_true(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            database = stores.levels._database
            await write(stores.levels, {"a": (1,)})
            counts = await asyncio.gather(
                add_one(stores.levels, "a"),
                database.run(insert("a")),
                add_one(stores.levels, "a"),
                return_exceptions=True,
            )
            assert [count for count in counts if isinstance(count, int)] == [2, 3]
            assert await read(stores.levels, "a") == {"a": (3,)}

    run(main())


def test_queued_work_is_done_though_its_caller_was_cancelled(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as database:
            task = asyncio.ensure_future(database.run(insert("a")))
            other = asyncio.ensure_future(database.run(insert("b")))
            task.cancel()
            await asyncio.gather(task, other, return_exceptions=True)
            assert task.cancelled()
            assert await names_in(database) == ["a", "b"]

    run(main())


def test_closing_does_what_is_queued_first_and_then_refuses(path: Path) -> None:
    async def main() -> None:
        database = await Database.open(path)
        task = asyncio.ensure_future(database.run(insert("a")))
        await asyncio.sleep(0)
        await database.close()
        assert task.done() or await task == 1
        await database.close()
        for work in (database.run, database.read, database.read_aside):
            with pytest.raises(StoreError, match="closed"):
                await work(insert("b"))
        async with opened(path) as again:
            assert await names_in(again) == ["a"]

    run(main())


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


def test_work_waits_for_a_file_that_another_process_holds(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            async with locked(path):
                counting = [asyncio.create_task(add_one(stores.levels, "a")) for _ in range(3)]
                await asyncio.sleep(20)
                counting.append(asyncio.create_task(add_one(stores.levels, "a")))
                await asyncio.sleep(5)
                assert not any(task.done() for task in counting)
                assert await read_names(stores.levels) == []  # reading goes on
            async with asyncio.timeout(0.1):
                assert await asyncio.gather(*counting) == [1, 2, 3, 4]

    async def read_names(levels: SqliteLevelStore) -> list[str]:
        return await levels.names("")

    run(main())


def test_a_file_that_stays_locked_is_an_error_that_names_it(path: Path) -> None:
    async def main() -> None:
        async with opened(path, patience_s=7) as database:
            start_s = asyncio.get_running_loop().time()
            async with locked(path):
                outcomes = await asyncio.gather(
                    database.run(insert("a")), database.run(insert("b")), return_exceptions=True
                )
                waited_s = asyncio.get_running_loop().time() - start_s
            assert 7 <= waited_s < 7.1
            assert all(isinstance(outcome, StoreError) for outcome in outcomes)
            assert str(path) in str(outcomes[0])
            assert "locked for 7 s" in str(outcomes[0])
            assert await database.run(insert("c")) == 1
            assert await names_in(database) == ["c"]

    run(main())


def test_patience_begins_anew_whenever_the_file_was_free(path: Path) -> None:
    async def main() -> None:
        async with opened(path, patience_s=7) as database:
            for name in "abc":
                async with locked(path):
                    task = asyncio.ensure_future(database.run(insert(name)))
                    await asyncio.sleep(5)
                assert await task == 1

    run(main())


def test_closing_a_locked_file_ends_and_tells_those_who_wait(path: Path) -> None:
    async def main() -> None:
        database = await Database.open(path, patience_s=7)
        async with locked(path):
            task = asyncio.ensure_future(database.run(insert("a")))
            await asyncio.sleep(1)
            with pytest.raises(StoreError, match="locked"):
                await database.close()
            with pytest.raises(StoreError, match="locked"):
                await task

    run(main())


def test_the_queue_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "MOST_QUEUED", 2)

    async def main() -> None:
        async with opened(path) as database:
            queued = [database.run(insert(name)) for name in "ab"]
            with pytest.raises(StoreError, match="2 pieces of work wait"):
                database.run(insert("c"))
            assert await asyncio.gather(*queued) == [1, 1]

    run(main())


def test_only_its_user_can_read_a_new_file(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            await add_one(stores.levels, "a")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            assert modes == {"headgate.db": 0o600, "headgate.db-wal": 0o600, "headgate.db-shm": 0o600}
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    old = os.umask(0)
    try:
        run(main())
    finally:
        os.umask(old)


def test_threads_may_open_one_new_file_at_once(path: Path) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    async def count() -> None:
        async with open_database(path) as stores:
            for _ in range(5):
                await add_one(stores.levels, "a")

    def work() -> None:
        try:
            start.wait()
            asyncio.run(count())
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def main() -> None:
        async with open_database(path) as stores:
            assert await read(stores.levels, "a") == {"a": (40,)}

    assert failures == []
    run(main())


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
def test_a_loss_of_power_can_be_insured_against(
    path: Path, synchronous: database_module.Synchronous, level: int
) -> None:
    async def main() -> None:
        async with open_database(path, synchronous=synchronous) as stores:
            assert stores.levels._database._connection.execute("PRAGMA synchronous").fetchone() == (level,)

    run(main())


def test_what_is_forgotten_is_told_since_when_nobody_has_changed_it(path: Path) -> None:
    untouched: dict[str, float] = {}

    def note(name: str, _record: Record, untouched_s: float) -> bool:
        untouched[name] = untouched_s
        return False

    async def main() -> None:
        for name, now_s in (("early", 1_000.0), ("late", 1_060.0), ("of tomorrow", 5_000.0)):
            async with opened(path) as database:
                await write(SqliteLevelStore(database, now_s=partial(float, now_s)), {name: (1,)})
        async with opened(path) as database:
            await SqliteLevelStore(database, now_s=lambda: 1_100.5).forget(note, 9)
        assert untouched == {"early": 100.5, "late": 40.5, "of tomorrow": 0}

    run(main())


def test_forgetting_goes_on_by_name_and_reads_no_more_than_it_was_asked_to(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            await write(stores.levels, {f"session:{number:03}": (1,) for number in range(300)})
            statements = statements_of(stores.levels._database)
            assert not await stores.levels.forget(lambda _name, _record, _untouched_s: True, 100)
            (query,) = [text for text in statements if text.startswith("SELECT name")]
            assert "LIMIT 100" in query
            plan = stores.levels._database._connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            assert "USING PRIMARY KEY (name>?)" in plan[0][-1]
            assert await stores.levels.names("") == [f"session:{number:03}" for number in range(100, 300)]

    run(main())


def test_a_newer_files_version_is_respected(path: Path) -> None:
    async def main() -> None:
        async with opened(path):
            pass
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        connection.close()
        with pytest.raises(StoreError, match=rf"{path}.*newer Headgate.*update"):
            await Database.open(path)

    run(main())


def test_migrations_run_once_each_and_a_broken_one_leaves_the_version_before_it(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, path)
    more = (*MIGRATIONS, ("CREATE TABLE extra (a)", "INSERT INTO extra VALUES (1)"))
    migrate(connection, path, more)
    migrate(connection, path, more)
    assert connection.execute("SELECT count(*) FROM extra").fetchone() == (1,)

    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, path, (*more, ("CREATE TABLE half (a)", "CREATE TABLE extra (a)")))
    assert connection.execute("PRAGMA user_version").fetchone() == (len(more),)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    connection.close()


def test_a_file_that_another_process_is_just_making_is_ours(path: Path) -> None:
    path.parent.mkdir()
    connection, other = (sqlite3.connect(path, isolation_level=None) for _ in range(2))
    connection.execute("PRAGMA journal_mode = WAL")

    def make_meanwhile(statement: str) -> None:
        if "sqlite_master" in statement:  # the last of what is read before it is judged
            connection.set_trace_callback(None)
            migrate(other, path)

    connection.set_trace_callback(make_meanwhile)
    migrate(connection, path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.close()
    other.close()


def make_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, " * 100)


def make_other_program(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def make_damaged(path: Path) -> None:
    async def fill() -> None:
        async with open_database(path) as stores:
            await write(stores.levels, {f"level {number:05}": (number,) for number in range(2_000)})

    asyncio.run(fill())
    size_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size_bytes - 4096))


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_garbage, "no SQLite database"),
        (make_other_program, "belongs to another program"),
        (make_damaged, "damaged"),
        (make_folder, "cannot be opened"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(path: Path, make: Callable[[Path], None], said: str) -> None:
    path.parent.mkdir()
    make(path)

    async def main() -> None:
        async with open_database(path) as stores:
            await add_one(stores.levels, "level 01000")

    with pytest.raises(StoreError, match=said) as caught:
        run(main())
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        await Database.open(tmp_path / "file" / "headgate.db")

    with pytest.raises(
        StoreError, match=r"headgate\.db: (its folder is a file|a part of its path is a file)"
    ) as caught:
        run(main())
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_one_clear_line(path: Path) -> None:
    path.parent.mkdir(mode=0o500)

    async def main() -> None:
        await Database.open(path)

    with pytest.raises(StoreError, match="may not write there"):
        run(main())


@pytest.mark.parametrize(
    ("limit", "said"), [("PRAGMA max_page_count = 1", "disk is full"), ("PRAGMA query_only = ON", "cannot be written")]
)
def test_a_write_that_fails_is_told_to_its_caller_and_acknowledged_ones_stay(path: Path, limit: str, said: str) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            assert await add_one(stores.levels, "a") == 1
            await stores.ledger.begin(an_attempt())
            stores.levels._database._connection.execute(limit)
            big = "x" * 100_000
            outcomes = await asyncio.gather(
                write(stores.levels, {f"{n}": (big,) for n in range(9)}),
                stores.ledger.finish(a_full_attempt()),
                return_exceptions=True,
            )
            assert isinstance(outcomes[0], StoreError)
            assert said in str(outcomes[0])
            assert isinstance(outcomes[0].__cause__, sqlite3.Error)
        async with open_database(path) as stores:
            assert await stores.levels.names("") == ["a"]
            assert await read(stores.levels, "a") == {"a": (1,)}
            assert await stores.ledger.in_flight() == [an_attempt()]

    run(main())


def test_holds_that_are_gone_leave_nothing_in_memory(path: Path) -> None:
    async def main() -> None:
        async with open_database(path) as stores:
            for number in range(50):
                await add_one(stores.levels, f"hold/host:1:2:3/{number}")
                await write(stores.levels, {f"hold/host:1:2:3/{number}": None})
            assert stores.levels._known == set()
            assert stores.levels._cached == {}

    run(main())


def test_the_memory_of_levels_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.adapters.sqlite.levels._MOST_CACHED", 10)

    async def main() -> None:
        async with open_database(path) as stores:
            for number in range(50):
                await add_one(stores.levels, f"level {number}")
            assert len(stores.levels._known) <= 12
            assert [(await read(stores.levels, f"level {n}"))[f"level {n}"] for n in (0, 49)] == [(1,), (1,)]

    run(main())


def test_a_ledger_of_the_first_version_is_taken_over_with_its_sums(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, path, MIGRATIONS[:1])
    later = {"sent", "claimed", "asked_model", "rule", "saved_micro_usd", "shared_with"}
    columns = [name for name in COLUMNS if name not in later]
    scopes = a_full_attempt().scopes._replace(claimed=())
    every = replace(a_full_attempt(), sent=True, scopes=scopes, asked_model=None, rule=None)
    every = replace(every, saved_micro_usd=None, shared_with=None)
    for attempt in (every, replace(an_attempt(8), state="lost")):
        values = dict(zip((*COLUMNS, *DERIVED), to_row(attempt), strict=True))
        kept = [values[name] for name in (*columns, *DERIVED)]
        names, marks = ", ".join((*columns, *DERIVED)), ", ".join("?" * len(kept))
        connection.execute(f"INSERT INTO attempts ({names}) VALUES ({marks})", kept)
    figures = figures_of(every)._asdict()
    del figures["attempts"], figures["refused"]
    for table, fields in (
        ("usage_by_hour", ("account", "team", "model", "endpoint", "state")),
        ("usage_by_agent_hour", ("account", "key", "team", "run", "agent", "model", "endpoint", "state")),
    ):
        row = {name: getattr(every.scopes, name, None) or getattr(every, name) for name in fields}
        row |= {"hour": hour_of(every.admitted_s), **figures}
        marks = ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
    connection.close()

    async def main() -> None:
        async with open_database(path) as stores:
            assert await stores.ledger.attempts("run-1") == [every]
            for query in (UsageQuery(), UsageQuery(only=(("endpoint", "messages"),)), UsageQuery(("key",))):
                (group,) = await stores.ledger.usage(query)
                assert (group.requests, group.attempts) == (2, 2)
            assert await stores.ledger.finish(replace(an_attempt(8), state="reconciled", sent=False))
            (group,) = await stores.ledger.usage(UsageQuery())
            assert (group.requests, group.attempts) == (1, 2)

    run(main())


def test_work_is_not_done_before_its_commit_has_succeeded(path: Path) -> None:
    def orphan(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO children VALUES (1)")  # checked with the commit, and not before
        return "done"

    async def main() -> None:
        async with opened(path) as database:
            database._connection.execute("PRAGMA foreign_keys = ON")
            database._connection.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
            database._connection.execute(
                "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)"
            )
            for beside in ([], [database.run(insert("good"))]):
                error, *others = await asyncio.gather(database.run(orphan), *beside, return_exceptions=True)
                assert isinstance(error, StoreError)
                assert others == [1] * len(beside)
            assert await names_in(database) == ["good"]
            assert await database.read(lambda c: c.execute("SELECT * FROM children").fetchall()) == []

    run(main())
