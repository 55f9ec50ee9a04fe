"""Every store passes the exercises of its port, in memory and in a file."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headgate.adapters.memory import MemoryJobStore, MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.sqlite.stores import open_database
from headgate.ports import JobStore, KeyStore, LedgerStore, LevelStore
from headgate.testing import virtual_time
from headgate.testing.exercises import Exercise, OpenStore, name_of
from headgate.testing.exercises.jobs import JOB_EXERCISES
from headgate.testing.exercises.keys import KEY_EXERCISES
from headgate.testing.exercises.ledger import LEDGER_EXERCISES
from headgate.testing.exercises.levels import LEVEL_EXERCISES, SHARED_LEVEL_EXERCISES
from headgate.testing.exercises.shared_limits import SHARED_LIMIT_EXERCISES

IN_MEMORY = {"levels": MemoryLevelStore, "ledger": MemoryLedgerStore, "jobs": MemoryJobStore, "keys": MemoryKeyStore}
MemoryOrFile = Callable[[str], OpenStore]


@pytest.fixture(params=["memory", "sqlite"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryOrFile:
    return in_memory if request.param == "memory" else lambda port: in_file(tmp_path / "headgate.db", port)


def in_memory(port: str) -> OpenStore:
    shared = IN_MEMORY[port]()

    @asynccontextmanager
    async def open_store() -> AsyncIterator[object]:
        yield shared

    return open_store


def in_file(path: Path, port: str) -> OpenStore:
    @asynccontextmanager
    async def open_store() -> AsyncIterator[object]:
        async with open_database(path) as stores:
            yield getattr(stores, port)

    return open_store


@pytest.mark.parametrize("exercise", LEVEL_EXERCISES, ids=name_of)
def test_levels(opener: MemoryOrFile, exercise: Exercise[LevelStore]) -> None:
    virtual_time.run(exercise(opener("levels")))


@pytest.mark.parametrize("exercise", SHARED_LIMIT_EXERCISES, ids=name_of)
def test_shared_limits(opener: MemoryOrFile, exercise: Exercise[LevelStore]) -> None:
    asyncio.run(exercise(opener("levels")))  # real time: its threads have loops of their own


@pytest.mark.parametrize("exercise", SHARED_LEVEL_EXERCISES, ids=name_of)
def test_levels_of_several_processes(exercise: Exercise[LevelStore], tmp_path: Path) -> None:
    virtual_time.run(exercise(in_file(tmp_path / "headgate.db", "levels")))


@pytest.mark.parametrize("exercise", LEDGER_EXERCISES, ids=name_of)
def test_ledger(opener: MemoryOrFile, exercise: Exercise[LedgerStore]) -> None:
    virtual_time.run(exercise(opener("ledger")))


@pytest.mark.parametrize("exercise", JOB_EXERCISES, ids=name_of)
def test_jobs(opener: MemoryOrFile, exercise: Exercise[JobStore]) -> None:
    virtual_time.run(exercise(opener("jobs")))


@pytest.mark.parametrize("exercise", KEY_EXERCISES, ids=name_of)
def test_keys(opener: MemoryOrFile, exercise: Exercise[KeyStore]) -> None:
    virtual_time.run(exercise(opener("keys")))
