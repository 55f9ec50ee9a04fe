"""The write-ahead log stays short without the event loop waiting for the disk."""

import logging
import sqlite3
import threading
from pathlib import Path

import pytest

from headgate.adapters.sqlite import checkpoints
from headgate.adapters.sqlite.checkpoints import Checkpoints
from headgate.adapters.sqlite.stores import open_database
from headgate.testing.exercises.levels import add_one, read
from headgate.testing.virtual_time import run

PAGE_BYTES = 4096


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PIECES_BETWEEN", 20)


async def log_pages_after(path: Path, rounds: int) -> int:
    """Write 20 times a round, each a commit of a page or more, which begins a copying; then let it end."""
    async with open_database(path) as stores:
        for _ in range(rounds):
            stores.levels._database._checkpoints._pieces = 0  # what was written before counts too
            for _ in range(20):
                await add_one(stores.levels, "a")
            await stores.levels._database._checkpoints.finish()
        return path.with_name(f"{path.name}-wal").stat().st_size // PAGE_BYTES


def test_the_log_starts_over_when_it_was_copied_back(tmp_path: Path) -> None:
    assert run(log_pages_after(tmp_path / "headgate.db", 30)) < 100


@pytest.mark.parametrize(("pages_seen", "least", "most"), [(60, 600, 1_000), (61, 20, 100)])
def test_a_long_log_that_outruns_its_copying_is_copied_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages_seen: int, least: int, most: int
) -> None:
    # As if so much had been written meanwhile that nothing of it counts as copied.
    monkeypatch.setattr(Checkpoints, "_copy_in_thread", lambda _self: pages_seen)
    monkeypatch.setattr(checkpoints, "MOST_LOG_PAGES", 60)
    assert least <= run(log_pages_after(tmp_path / "headgate.db", 30)) <= most


def test_copying_happens_in_a_thread_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    copy = Checkpoints._copy_in_thread

    def noted(self: Checkpoints) -> int:
        threads.add(threading.get_ident())
        return copy(self)

    monkeypatch.setattr(Checkpoints, "_copy_in_thread", noted)
    run(log_pages_after(tmp_path / "headgate.db", 5))
    assert threads
    assert threading.get_ident() not in threads


def test_a_log_that_cannot_be_copied_is_told_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Checkpoints) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Checkpoints, "_copy_in_thread", broken)
    with caplog.at_level(logging.WARNING, "headgate.store"):
        run(log_pages_after(tmp_path / "headgate.db", 5))
    assert "disk I/O error" in caplog.text

    async def main() -> None:
        async with open_database(tmp_path / "headgate.db") as stores:
            assert await read(stores.levels, "a") == {"a": (100,)}

    run(main())


def test_closing_waits_for_the_copying_that_is_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with open_database(tmp_path / "headgate.db") as stores:
            copying = stores.levels._database._checkpoints
            while copying._copying is None:
                await add_one(stores.levels, "a")
        assert copying._copying is None

    run(main())
    assert caplog.text == ""
