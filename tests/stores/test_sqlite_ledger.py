"""The ledger in SQLite: sums from roll-ups are the sums of the rows, and questions do not read years of rows."""

import random
import sqlite3
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.adapters.sqlite import jobs as job_queries
from headgate.adapters.sqlite import ledger as ledger_queries
from headgate.adapters.sqlite.rows import OUTCOME
from headgate.adapters.sqlite.stores import SqliteStores, open_database
from headgate.core.ledger import Attempt, UsageQuery
from headgate.testing.exercises.ledger import (
    HOUR_S,
    START_S,
    an_attempt,
    expected_usage,
    keep,
    random_attempts,
    random_query,
)
from headgate.testing.virtual_time import run


@settings(max_examples=25, deadline=None)
@given(chooser=st.randoms(use_true_random=False))
def test_sums_are_exact_however_they_are_asked_for(chooser: random.Random) -> None:
    attempts = random_attempts(chooser, 40)

    async def main(path: Path) -> None:
        async with open_database(path) as stores:
            await keep(stores.ledger, attempts)
            for _ in range(12):
                query = random_query(chooser)
                assert await stores.ledger.usage(query) == expected_usage(attempts, query), query

    with tempfile.TemporaryDirectory() as folder:
        run(main(Path(folder) / "headgate.db"))


def test_roll_ups_have_every_final_row_once_and_nothing_else(tmp_path: Path) -> None:
    attempts = random_attempts(random.Random(7), 300)

    async def main() -> None:
        async with open_database(tmp_path / "headgate.db") as stores:
            await keep(stores.ledger, attempts)
            await keep_lost_ones_reconciled(stores, attempts)
            for table in ("usage_by_hour", "usage_by_agent_hour"):
                rows = sums(stores, "attempts", "count(*)", "WHERE state NOT IN ('in_flight', 'lost')")
                assert sums(stores, table, "sum(attempts)") == rows, table
            # Few groups, whatever the number of calls.
            (size,) = stores.ledger._database._connection.execute("SELECT count(*) FROM usage_by_hour").fetchone()
            assert size < len(attempts)

    def sums(stores: SqliteStores, table: str, count: str, where: str = "") -> list[tuple[object, ...]]:
        query = f"SELECT hour, {count}, sum(input_tokens), sum(coalesce(cost_micro_usd, 0)), sum(wait_ms) FROM {table}"
        return stores.ledger._database._connection.execute(f"{query} {where} GROUP BY hour ORDER BY hour").fetchall()

    async def keep_lost_ones_reconciled(stores: SqliteStores, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if attempt.state == "lost":
                assert await stores.ledger.finish(replace(attempt, state="reconciled", cost_micro_usd=11))

    run(main())


def test_whole_hours_are_answered_without_reading_their_rows(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "headgate.db") as stores:
            await keep(stores.ledger, [replace(an_attempt(n), state="done") for n in range(3)])
            # A ledger of years whose oldest rows have been moved elsewhere still knows its sums.
            stores.ledger._database._connection.execute("DELETE FROM attempts")
            whole = UsageQuery(("model", "run"), START_S, START_S + 2 * HOUR_S)
            assert [group.requests for group in await stores.ledger.usage(whole)] == [3]
            cut = replace(whole, until_s=START_S + HOUR_S - 1)
            assert await stores.ledger.usage(cut) == []

    run(main())


@pytest.mark.parametrize(
    ("query", "values", "index"),
    [
        (ledger_queries._IN_FLIGHT, (0.0, ""), "attempts_open"),
        (ledger_queries._OF_RUN, ("run-1", 5), "attempts_by_run"),
        (ledger_queries._NEWEST, (5,), "attempts_by_time"),
        (job_queries._CLAIMABLE, ("run-1", 0.0, 5), "jobs_open"),
        (ledger_queries._FINISH, (None,) * (len(OUTCOME) + 1), "attempts_open"),
    ],
)
def test_frequent_questions_use_their_index(tmp_path: Path, query: str, values: tuple[object, ...], index: str) -> None:
    assert index in plan_of(tmp_path, query, values)


@pytest.mark.parametrize(
    ("query", "indexes"),
    [
        (UsageQuery(("session",), only=(("session", "s1"),)), ["attempts_open", "attempts_by_session"]),
        (UsageQuery(("session",), since_s=START_S), ["attempts_open", "attempts_by_time"]),
        (UsageQuery(since_s=START_S, until_s=START_S + 9), ["attempts_open", "attempts_by_time"]),
        (UsageQuery(("key",), since_s=START_S + 1), ["attempts_open", "usage_by_agent_hour", "attempts_by_time"]),
        (UsageQuery(("model", "day")), ["attempts_open", "usage_by_hour"]),
    ],
)
def test_questions_about_usage_read_what_they_need(tmp_path: Path, query: UsageQuery, indexes: list[str]) -> None:
    parts = list(ledger_queries._parts(query))
    plans = [
        plan_of(tmp_path, f"SELECT 1 FROM {part.source} WHERE {' AND '.join(part.conditions) or 1}", part.values)
        for part in parts
    ]
    assert len(plans) == len(indexes)
    for plan, index in zip(plans, indexes, strict=True):
        assert index in plan, plan


def plan_of(folder: Path, query: str, values: tuple[object, ...]) -> str:
    async def make() -> None:
        async with open_database(folder / "headgate.db"):
            pass

    run(make())
    connection = sqlite3.connect(folder / "headgate.db")
    steps = connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
    connection.close()
    return "; ".join(step[-1] for step in steps)
