"""Checkpoints: the write-ahead log is copied back into the file beside the event loop.

One rule: the disk is waited for in a thread. SQLite's own way, inside the commit that fills a thousand pages, stopped
the loop for 8 to 26 ms about once in a hundred calls (measured, fsync 4 ms). Losing a checkpoint loses nothing.
"""

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

log = logging.getLogger("headgate.store")

PIECES_BETWEEN = 1_000
"""Pieces of work after which the log is copied back: some thousand pages of 4 KB."""

MOST_LOG_PAGES = 16_384
"""64 MB. A log that is written without a pause never ends, and is longer than this: then the rest is copied at once."""

_COPY = "PRAGMA wal_checkpoint(PASSIVE)"  # takes no lock that a reader or a writer waits for


class Checkpoints:
    """Counts the work of one connection and has the log copied back now and then."""

    def __init__(self, path: Path, connection: sqlite3.Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Take over from SQLite, which would do it inside a commit."""
        self._path = path
        self._connection = connection
        self._loop = loop
        self._pieces = 0
        self._copying: asyncio.Future[int] | None = None

    def count(self, pieces: int) -> None:
        """Note that so much was committed; begin to copy when it is time."""
        self._pieces += pieces
        if self._pieces >= PIECES_BETWEEN and self._copying is None:
            self._pieces = 0
            self._copying = self._loop.run_in_executor(None, self._copy_in_thread)
            self._copying.add_done_callback(self._copied)

    async def finish(self) -> None:
        """Wait for the copying that is under way."""
        if self._copying is not None:
            await asyncio.wait([self._copying])

    def _copy_in_thread(self) -> int:
        """Copy what is there now; give how many pages the log has."""
        with closing(sqlite3.connect(self._path, timeout=0.0, isolation_level=None)) as connection:
            return _pages(connection)

    def _copied(self, copying: "asyncio.Future[int]") -> None:
        self._copying = None
        try:
            # Pages that came meanwhile keep the log from starting over; when it is long they are copied here, few as
            # they are, while nobody can add more.
            if copying.result() > MOST_LOG_PAGES:
                _pages(self._connection)
        except (sqlite3.Error, asyncio.CancelledError) as error:
            log.warning("%s: the log could not be copied back, it is tried again later: %s", self._path, error)


def _pages(connection: sqlite3.Connection) -> int:
    _busy, pages, _copied = connection.execute(_COPY).fetchone()
    return int(pages)
