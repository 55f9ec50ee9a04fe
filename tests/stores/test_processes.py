"""One file and several processes: limits hold, and what was acknowledged survives kill -9."""

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headgate.adapters.sqlite.stores import open_database
from headgate.core.ledger import UsageQuery
from headgate.testing.exercises.levels import read
from headgate.testing.exercises.shared_limits import Spent, check_all_spent

WORKER = Path(__file__).with_name("worker.py")


@contextmanager
def worker(task: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(WORKER), task, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_together_spend_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "headgate.db"

    async def check(spent: list[Spent]) -> None:
        async with open_database(path) as stores:
            await check_all_spent(stores.levels, spent)

    with worker("spend", path) as one, worker("spend", path) as other:
        answers = [process.communicate(timeout=60)[0] for process in (one, other)]
    spent = [[Spent(**report) for report in json.loads(answer)] for answer in answers]
    asyncio.run(check([report for reports in spent for report in reports]))


@pytest.mark.parametrize("acknowledged", [1, 57, 400])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "headgate.db"
    with worker("stream", path) as process:
        lines = [process.stdout.readline() for _ in range(acknowledged)]
        process.kill()
        lines += process.stdout.readlines()
    # The last line may be cut in two by the kill.
    told = {int(line) for line in lines if line.endswith("\n")}

    async def check() -> None:
        async with open_database(path) as stores:
            (count,) = (await read(stores.levels, "count"))["count"]
            in_flight = {row.id for row in await stores.ledger.in_flight()}
            by_state = {group.group["state"]: group for group in await stores.ledger.usage(UsageQuery(("state",)))}
            assert max(told) <= count <= max(told) + 8
            done = {number for number in told if number % 2}
            assert {f"attempt-{number}" for number in told - done} <= in_flight
            assert not {f"attempt-{number}" for number in done} & in_flight
            if done:
                assert by_state["done"].requests >= len(done)
                assert by_state["done"].cost_micro_usd >= sum(done)

    asyncio.run(check())
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
