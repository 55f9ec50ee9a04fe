"""One connection to one file, and the transactions on it.

One rule: **group commit**: all work that is queued in one tick of the event loop runs in one transaction, in order,
and whoever waits for it wakes after the commit. What the work means is its store's affair.

Work must be repeatable: when one piece of a batch fails, the batch is rolled back and each piece runs again alone, so
that it fails alone. Work that was queued is done even if nobody waits for it any more; whoever was cancelled must
assume that it was.
"""

import asyncio
import random
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol, Self, TypeVar

from headgate.adapters.sqlite.checkpoints import Checkpoints
from headgate.adapters.sqlite.schema import migrate
from headgate.adapters.sqlite.troubles import explain, explain_locked, explain_os, is_busy
from headgate.core.errors import StoreError

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]
Synchronous = Literal["NORMAL", "FULL"]

PATIENCE_S = 30.0
"""How long a locked database is tried again before it is an error."""

MOST_QUEUED = 100_000
"""Pieces of work that wait for a locked database: more than all calls that may wait for admission (20,000)."""

_FIRST_PAUSE_S = 0.000_5
_LONGEST_PAUSE_S = 0.02

# Bounds what a burst leaves behind in the write-ahead log; it is cut back to this at the next checkpoint.
_LONGEST_LOG_BYTES = 64 * 1024 * 1024

_FOLDER_MODE = 0o700
_FILE_MODE = 0o600

# POSIX drops all of a process's locks on a file as soon as the process closes any descriptor of it (sqlite.org/
# howtocorrupt.html, 2.2). Making the file closes one, so nobody else may hold it open by then.
_making_files = threading.Lock()


class Buffer(Protocol):
    """Keeps in memory, for the length of a transaction, what is to be written at its end."""

    def start(self, connection: sqlite3.Connection) -> None:
        """Start: the transaction has begun, nobody else writes until it ends."""
        ...

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what was changed: the commit comes next."""
        ...

    def undo(self) -> None:
        """Forget what was changed: the transaction was rolled back."""
        ...


class Raised:
    """What a piece of work gives that did nothing but raise: who waits for it gets the error, and its batch goes on."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        """Keep the error."""
        self.error = error


@dataclass(slots=True)
class StoreStats:
    """How a database was used by this process: transactions, the pieces of work in them, and waits for their turn."""

    transactions: int = 0
    pieces: int = 0
    busy_s: float = 0.0
    lock_waits: int = 0
    lock_wait_s: float = 0.0


_Queued = tuple[Work[Any], asyncio.Future[Any]]


class Database:
    """A SQLite file in WAL mode; used only in the thread and loop that opened it. `open` makes one."""

    def __init__(self, path: Path, connection: sqlite3.Connection, patience_s: float) -> None:
        """Take a connection that is ready for use."""
        self.path = path
        self.version_at_open = 0
        self._connection = connection
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._checkpoints = Checkpoints(path, connection, self._loop)
        self._buffers: list[Buffer] = []
        self._queue: list[_Queued] = []
        self._apart: deque[_Queued] = deque()  # of a batch that failed: each runs alone, before what came later
        self._scheduled: asyncio.Handle | None = None
        self._give_up_s: float | None = None  # while another process holds the lock
        self._tries = 0
        self._closed = False
        self._locked_s: float | None = None
        self.stats = StoreStats()

    @classmethod
    async def open(cls, path: Path, *, synchronous: Synchronous = "NORMAL", patience_s: float = PATIENCE_S) -> Self:
        """Open a file, made if it is absent (mode 0600, its folder 0700), and bring its schema up to date.

        With `synchronous` NORMAL what was acknowledged survives kill -9, with FULL also a loss of power, at about
        twenty times the cost of a transaction.

        Raises:
            StoreError: it cannot be used; the message says why and what to do.
        """
        try:
            connection = _connect(path)
        except OSError as error:
            raise explain_os(path, error) from error
        except sqlite3.Error as error:
            raise explain(path, error) from error
        database = cls(path, connection, patience_s)
        try:
            await database.read(lambda connection: _prepare(connection, path, synchronous))
            await database.read(lambda connection: migrate(connection, path))
            database.version_at_open = await database.read(lambda _: database.version())
        except BaseException:
            connection.close()
            raise
        return database

    def join(self, buffer: Buffer) -> None:
        """Let a buffer take part in every transaction from now on."""
        self._buffers.append(buffer)

    def run(self, work: Work[T | Raised]) -> asyncio.Future[T]:
        """Queue a piece of work, now, for the transaction of this tick; what is given is done when it is durable.

        So what one caller queues before it waits is in one transaction, in order.

        Raises:
            StoreError: here or from what is given: the database cannot be used, and nothing of the work was done.
        """
        return self._enqueue(work)

    async def read(self, work: Work[T]) -> T:
        """Do a piece of work on the loop's connection between its transactions; for short reads."""
        give_up_s = self._loop.time() + self._patience_s
        tries = 0
        while True:
            self._check_open()
            try:
                return work(self._connection)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise explain(self.path, error) from error
                if self._loop.time() >= give_up_s:
                    raise explain_locked(self.path, self._patience_s) from error
            await asyncio.sleep(_pause_s(tries))
            tries += 1

    async def read_aside(self, work: Work[T]) -> T:
        """Do a long read in a thread, on a connection of its own, so that neither the loop nor a writer waits."""
        self._check_open()
        return await asyncio.to_thread(self._read_in_thread, work)

    def version(self) -> int:
        """Give a number that changes when another connection has committed; SQLITE_BUSY leaves as it is."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    async def close(self) -> None:
        """Do what is queued, then close."""
        if self._closed:
            return
        last = self._enqueue(lambda _: None) if self._queue or self._apart else None
        self._closed = True
        try:
            if last is not None:
                await last
            await self._checkpoints.finish()
        finally:
            self._fail_all(StoreError(f"{self.path}: closed before the work was done"))
            self._connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.path}: the database is closed")

    def _read_in_thread(self, work: Work[T]) -> T:
        try:
            connection = sqlite3.connect(self.path, timeout=self._patience_s, isolation_level=None)
            try:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("BEGIN")  # one snapshot for all that the work reads
                return work(connection)
            finally:
                connection.close()
        except sqlite3.Error as error:
            if is_busy(error):
                raise explain_locked(self.path, self._patience_s) from error
            raise explain(self.path, error) from error

    def _enqueue(self, work: Work[T | Raised]) -> asyncio.Future[T]:
        self._check_open()
        if len(self._queue) >= MOST_QUEUED:
            raise StoreError(f"{self.path}: {MOST_QUEUED:,} pieces of work wait for the database already; slow down")
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.append((work, done))
        if self._scheduled is None:
            self._scheduled = self._loop.call_soon(self._flush)
        return done

    def _flush(self) -> None:
        """Run everything that is queued, unless another process holds the lock: then later."""
        self._scheduled = None
        while (self._apart or self._queue) and self._begin():
            if self._apart:
                batch = [self._apart.popleft()]
            else:
                batch, self._queue = self._queue, []
            began_s = perf_counter()
            try:
                self._commit(batch)
            finally:
                stats = self.stats
                stats.transactions += 1
                stats.pieces += len(batch)
                stats.busy_s += perf_counter() - began_s
                if self._connection.in_transaction:  # whatever ended it, Ctrl-C included
                    self._roll_back()

    def _begin(self) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            now_s = self._loop.time()
            if self._give_up_s is None:
                self._give_up_s = now_s + self._patience_s
            if is_busy(error) and now_s < self._give_up_s:
                if self._locked_s is None:
                    self._locked_s = now_s
                    self.stats.lock_waits += 1
                self._scheduled = self._loop.call_later(_pause_s(self._tries), self._flush)
                self._tries += 1
                return False
            broken = explain_locked(self.path, self._patience_s) if is_busy(error) else explain(self.path, error)
            broken.__cause__ = error
            self._fail_all(broken)
            return False
        self._give_up_s, self._tries = None, 0
        if self._locked_s is not None:
            self.stats.lock_wait_s += self._loop.time() - self._locked_s
            self._locked_s = None
        return True

    def _commit(self, batch: list[_Queued]) -> None:
        connection, buffers = self._connection, self._buffers
        try:
            for buffer in buffers:
                buffer.start(connection)
            results = [work(connection) for work, _done in batch]
            for buffer in buffers:
                buffer.write(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the work, who gets it
            self._roll_back()
            if len(batch) > 1:
                self._apart.extend(batch)
            else:
                _fail(batch[0], self._translated(error))
            return
        self._checkpoints.count(len(batch))
        for (_work, done), result in zip(batch, results, strict=True):
            if done.done():
                continue
            if type(result) is Raised:
                done.set_exception(result.error)
            else:
                done.set_result(result)

    def _roll_back(self) -> None:
        # After some failures, such as a full disk, SQLite has done it (sqlite.org/lang_transaction.html, section 3).
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        for buffer in self._buffers:
            buffer.undo()

    def _translated(self, error: Exception) -> Exception:
        if not isinstance(error, sqlite3.Error):
            return error
        translated = explain(self.path, error)
        translated.__cause__ = error
        return translated

    def _fail_all(self, error: StoreError) -> None:
        self._give_up_s, self._tries = None, 0
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        waiting = [*self._apart, *self._queue]
        self._apart.clear()
        self._queue = []
        for queued in waiting:
            _fail(queued, error)


def _fail(queued: _Queued, error: Exception) -> None:
    _work, done = queued
    if not done.done():
        done.set_exception(error)


def _pause_s(tries: int) -> float:
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10))
    return random.uniform(longest_s / 2, longest_s)  # noqa: S311 - it only keeps processes from trying in step


def _connect(path: Path) -> sqlite3.Connection:
    with _making_files:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=_FILE_MODE)
        # Locked or not is found out by trying: SQLite's own waiting would stop the event loop.
        return sqlite3.connect(path, timeout=0.0, isolation_level=None)


def _prepare(connection: sqlite3.Connection, path: Path, synchronous: Synchronous) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{path}: its file system cannot share a database between processes; name a file elsewhere")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # `Checkpoints` does it
    connection.execute(f"PRAGMA journal_size_limit = {_LONGEST_LOG_BYTES}")
