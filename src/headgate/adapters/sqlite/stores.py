"""All stores over one file.

One rule: they share one connection and its transactions, so what is asked of several of them in one tick of the event
loop is kept together or not at all.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from headgate.adapters.sqlite.database import PATIENCE_S, Database, StoreStats, Synchronous
from headgate.adapters.sqlite.jobs import SqliteJobStore
from headgate.adapters.sqlite.keys import SqliteKeyStore
from headgate.adapters.sqlite.ledger import SqliteLedgerStore
from headgate.adapters.sqlite.levels import SqliteLevelStore


@dataclass(frozen=True, slots=True)
class SqliteStores:
    """The stores of one file."""

    levels: SqliteLevelStore
    ledger: SqliteLedgerStore
    jobs: SqliteJobStore
    keys: SqliteKeyStore
    stats: StoreStats


@asynccontextmanager
async def open_database(
    path: Path, *, synchronous: Synchronous = "NORMAL", patience_s: float = PATIENCE_S
) -> AsyncIterator[SqliteStores]:
    """Open a file, made if it is absent, for the running event loop; what is under way is kept before it is closed.

    `patience_s` bounds the wait for a file that another process keeps locked, in seconds of the loop's clock.

    Raises:
        StoreError: it cannot be used; the message says why and what to do.
    """
    database = await Database.open(path, synchronous=synchronous, patience_s=patience_s)
    try:
        levels = SqliteLevelStore(database)
        ledger, jobs, keys = SqliteLedgerStore(database), SqliteJobStore(database), SqliteKeyStore(database)
        yield SqliteStores(levels, ledger, jobs, keys, database.stats)
    finally:
        await database.close()
