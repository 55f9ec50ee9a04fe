"""Keys that Headgate hands out, in SQLite.

One rule: only hashes come here; what a key may do is kept as the JSON text that it was given with.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from headgate.adapters.refusals import key_is_taken
from headgate.adapters.sqlite.database import Database
from headgate.ports import HashedKey

# In the order of HashedKey.
_COLUMNS = "id, name, digest, created_s, limits, scopes, expires_s, revoked_s, fleet, parent"
_ADD = f"INSERT INTO keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own columns
_FIND = f"SELECT {_COLUMNS} FROM keys WHERE id = ?"  # noqa: S608 - our own columns
_ALL = f"SELECT {_COLUMNS} FROM keys WHERE fleet = 0 ORDER BY created_s, id"  # noqa: S608 - our own columns
_REVOKE = "UPDATE keys SET revoked_s = ?1 WHERE id = ?2 AND (revoked_s IS NULL OR revoked_s > ?1)"
# `fleet = 1` word for word as in the partial index: keys that stay are not looked at.
_FORGET = "DELETE FROM keys WHERE fleet = 1 AND (revoked_s <= ?1 OR expires_s <= ?1)"
_IN_FORCE = "SELECT count(*) FROM keys WHERE fleet = 1 AND parent IS ?"


class SqliteKeyStore:
    """A `KeyStore` on a database."""

    def __init__(self, database: Database) -> None:
        """Keep keys in `database`."""
        self._database = database

    async def add(self, keys: Sequence[HashedKey]) -> None:
        """Keep new keys, all or none; raises CallerError if an id is taken."""
        taken = await self._database.run(partial(_add, keys))
        if taken is not None:
            raise key_is_taken(taken)

    async def find(self, key_id: str) -> HashedKey | None:
        """Give a key by its public id."""
        row = await self._database.read(lambda connection: connection.execute(_FIND, (key_id,)).fetchone())
        return _key(row) if row is not None else None

    async def all(self) -> list[HashedKey]:
        """Give every key, oldest first."""
        rows = await self._database.read(lambda connection: connection.execute(_ALL).fetchall())
        return [_key(row) for row in rows]

    async def revoke(self, key_id: str, at_s: float) -> bool:
        """End a key at an instant; False if there is none or it ends no later already."""
        values = (at_s, key_id)
        return await self._database.run(lambda connection: connection.execute(_REVOKE, values).rowcount == 1)

    async def prune_fleet(self, parent: str | None, now_s: float) -> int:
        """Forget every fleet's keys that have ended; give how many are in force under a parent."""

        def prune(connection: sqlite3.Connection) -> int:
            connection.execute(_FORGET, (now_s,))
            (count,) = connection.execute(_IN_FORCE, (parent,)).fetchone()
            return int(count)

        return await self._database.run(prune)


def _key(row: tuple[Any, ...]) -> HashedKey:
    key_id, name, digest, created_s, limits, scopes, expires_s, revoked_s, fleet, parent = row
    return HashedKey(key_id, name, digest, created_s, limits, scopes, expires_s, revoked_s, bool(fleet), parent)


def _add(keys: Sequence[HashedKey], connection: sqlite3.Connection) -> str | None:
    """Add keys, or give an id that is taken."""
    # Looked up first: work that raises makes its whole batch run again.
    seen: set[str] = set()
    for key in keys:
        if key.id in seen or connection.execute(_FIND, (key.id,)).fetchone() is not None:
            return key.id
        seen.add(key.id)
    connection.executemany(_ADD, [astuple(key) for key in keys])
    return None
