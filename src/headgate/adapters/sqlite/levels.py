"""Levels and holds in SQLite.

One rule: steps run on records that are known to be the newest: what is cached counts only while no other connection
has committed (`PRAGMA data_version`, read inside the transaction), and each record that a batch of steps has changed is
written once, at its end.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from headgate.adapters.sqlite.database import Database, Raised
from headgate.ports import Record, SaysNothing, Step, T

POLL_S = 0.05
"""How often other processes' commits are looked for while somebody waits for them."""

_MOST_CACHED = 20_000
_MOST_NAMES_A_QUERY = 512  # SQLite takes at most 999 parameters before 3.32 (sqlite.org/limits.html)

_WRITE = """
    INSERT INTO levels (name, value, touched_s) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value, touched_s = excluded.touched_s
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Any, ...]).decode


class SqliteLevelStore:
    """A `LevelStore` on a database; also the buffer of its transactions."""

    def __init__(self, database: Database, *, now_s: Callable[[], float] = time.time) -> None:
        """Keep levels in `database`; `now_s` stamps what is written."""
        self._database = database
        self._now_s = now_s
        self._cached: dict[str, Record] = {}
        self._known: set[str] = set()  # names that were read; those without a record are not in `_cached`
        self._cached_version: int | None = None
        self._changed: dict[str, Record | None] = {}
        self._coming: set[str] = set()  # what the steps that are queued ask for
        self._looked_at = ""  # the last name that `forget` has seen
        self._told_version = database.version_at_open
        database.join(self)

    def transact(self, names: Iterable[str], step: Step[T]) -> asyncio.Future[T]:
        """Run `step` on the named records in the transaction of this tick and keep what it changed."""
        asked = tuple(names)
        done = self._database.run(partial(self._run, asked, step))
        self._coming.update(asked)
        return done

    async def names(self, prefix: str) -> list[str]:
        """Give the names of all records that begin with `prefix`, sorted."""
        # U+10FFFF is no character, so no name goes on with it.
        query = "SELECT name FROM levels WHERE name >= ? AND name < ? ORDER BY name"
        bounds = (prefix, f"{prefix}\U0010ffff")
        return await self._database.read(lambda connection: [name for (name,) in connection.execute(query, bounds)])

    async def wait_changed(self) -> None:
        """Return when another connection has committed since the last call returned, at most `POLL_S` later."""
        told = self._told_version
        while (version := await self._database.read(lambda _: self._database.version())) == told:  # noqa: ASYNC110 - other processes set no event
            await asyncio.sleep(POLL_S)
        self._told_version = version

    async def forget(self, says_nothing: SaysNothing, most: int) -> bool:
        """Delete those of the next `most` records that say nothing, by name; True at the end."""
        last = await self._database.run(partial(self._forget, says_nothing, self._looked_at, most))
        self._looked_at = last or ""
        return last is None

    async def close(self) -> None:
        """Close the database, for all its stores."""
        await self._database.close()

    def start(self, connection: sqlite3.Connection) -> None:
        """Drop what is cached if another connection has written since, and read at once what the steps will ask for."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._cached_version or len(self._known) > _MOST_CACHED:
            self._forget_cached()
            self._cached_version = version
        coming, self._coming = self._coming, set()
        if not coming <= self._known:
            self._load(coming, connection)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what the steps of this transaction have changed, each record once."""
        if not self._changed:
            return
        touched_s = int(self._now_s())
        kept = [
            (name, _encode(record).decode(), touched_s) for name, record in self._changed.items() if record is not None
        ]
        gone = [(name,) for name, record in self._changed.items() if record is None]
        if kept:
            connection.executemany(_WRITE, kept)
        if gone:
            connection.executemany("DELETE FROM levels WHERE name = ?", gone)
            # A hold that is gone is not asked for again: remembering its name would only fill the memory.
            self._known.difference_update(name for (name,) in gone)
        self._changed.clear()

    def undo(self) -> None:
        """Forget what the steps of a transaction that was rolled back have changed."""
        self._changed.clear()
        self._forget_cached()

    def _run(self, names: Sequence[str], step: Step[T], connection: sqlite3.Connection) -> T | Raised:
        cached = self._cached
        if not self._known.issuperset(names):
            self._load(names, connection)
        try:
            changes, result = step(cached)
        except Exception as error:  # noqa: BLE001 - the caller of `transact` gets it
            return Raised(error)
        for name, record in changes.items():
            if record is None:
                cached.pop(name, None)
            else:
                cached[name] = record
            self._known.add(name)
            self._changed[name] = record
        return result

    def _forget(self, says_nothing: SaysNothing, after: str, most: int, connection: sqlite3.Connection) -> str | None:
        """Look at the records that come after a name; give the last one's name, or None at the end."""
        self.write(connection)
        query = "SELECT name, value, touched_s FROM levels WHERE name > ? ORDER BY name LIMIT ?"
        rows = connection.execute(query, (after, most)).fetchall()
        now_s = self._now_s()
        for name, value, touched_s in rows:
            if says_nothing(name, _decode(value), max(0.0, now_s - touched_s)):
                self._cached.pop(name, None)
                self._known.add(name)
                self._changed[name] = None
        return rows[-1][0] if len(rows) == most else None

    def _load(self, names: Iterable[str], connection: sqlite3.Connection) -> None:
        missing = [name for name in names if name not in self._known]
        for start in range(0, len(missing), _MOST_NAMES_A_QUERY):
            some = missing[start : start + _MOST_NAMES_A_QUERY]
            # A power of two of them, so that there are few statements, which stay prepared.
            places = 1 << (len(some) - 1).bit_length()
            some += some[-1:] * (places - len(some))
            marks = ",".join("?" * places)
            rows = connection.execute(f"SELECT name, value FROM levels WHERE name IN ({marks})", some)  # noqa: S608 - only marks are put in
            self._cached.update((name, _decode(value)) for name, value in rows)
        self._known.update(missing)

    def _forget_cached(self) -> None:
        self._cached.clear()
        self._known.clear()
