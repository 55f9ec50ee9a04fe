"""The tables, as numbered migrations.

One rule: a migration that was released never changes; what comes next is appended. Each runs in one transaction with
the number that says so (`PRAGMA user_version`), so a file is always at exactly one version.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headgate.core.errors import StoreError

APPLICATION_ID = 0x48644774
"""`HdGt` in ASCII: marks a file as ours (sqlite.org/fileformat2.html, offset 68)."""

_LEVELS = """
    CREATE TABLE levels (
        name TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,       -- JSON: whole numbers of any size, and strings
        touched_s INTEGER NOT NULL
    ) WITHOUT ROWID
"""

_ATTEMPTS = """
    CREATE TABLE attempts (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        call TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        owner TEXT NOT NULL,
        account TEXT,
        key TEXT,
        team TEXT,
        run TEXT,
        agent TEXT,
        session TEXT,
        parent TEXT,
        tags TEXT NOT NULL,        -- JSON: [[name, value], ...]
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        queued_s REAL NOT NULL,
        admitted_s REAL NOT NULL,
        input_tokens INTEGER NOT NULL,
        cache_read_tokens INTEGER NOT NULL,
        cache_write_5m_tokens INTEGER NOT NULL,
        cache_write_1h_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        reported INTEGER NOT NULL,
        held_micro_usd INTEGER,
        cost_micro_usd INTEGER,    -- NULL: the price is unknown
        price_version TEXT,
        state TEXT NOT NULL,
        model_served TEXT,
        status INTEGER,
        error_type TEXT,
        provider_request TEXT,
        first_byte_s REAL,
        done_s REAL,
        hour INTEGER NOT NULL,     -- whole hours from the epoch to admitted_s
        wait_ms INTEGER NOT NULL
    )
"""

_SUMS = """
        requests INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        cache_read_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        cost_micro_usd INTEGER NOT NULL,
        unknown_cost INTEGER NOT NULL,
        estimated INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        wait_ms INTEGER NOT NULL,
"""

# What is absent is x'' in the roll-ups: NULL would not be equal to itself in a key, and '' could be a name.
_BY_HOUR = f"""
    CREATE TABLE usage_by_hour (
        hour INTEGER NOT NULL,
        account TEXT NOT NULL,
        team TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        state TEXT NOT NULL,
        {_SUMS.strip()}
        PRIMARY KEY (hour, account, team, model, endpoint, state)
    ) WITHOUT ROWID
"""

_BY_AGENT_HOUR = f"""
    CREATE TABLE usage_by_agent_hour (
        hour INTEGER NOT NULL,
        account TEXT NOT NULL,
        key TEXT NOT NULL,
        team TEXT NOT NULL,
        run TEXT NOT NULL,
        agent TEXT NOT NULL,
        model TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        state TEXT NOT NULL,
        {_SUMS.strip()}
        PRIMARY KEY (hour, account, key, team, run, agent, model, endpoint, state)
    ) WITHOUT ROWID
"""

_RUNS = """
    CREATE TABLE runs (
        id TEXT NOT NULL PRIMARY KEY,
        created_s REAL NOT NULL,
        settings TEXT NOT NULL     -- JSON
    ) WITHOUT ROWID
"""

_JOBS = """
    CREATE TABLE jobs (
        run TEXT NOT NULL,
        job_index INTEGER NOT NULL,
        name TEXT NOT NULL,
        task TEXT NOT NULL,        -- JSON
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        most_attempts INTEGER NOT NULL,
        owner TEXT,
        lease_until_s REAL NOT NULL,
        started_s REAL,
        ended_s REAL,
        exit_code INTEGER,
        output TEXT NOT NULL,
        error TEXT,
        PRIMARY KEY (run, job_index)
    )
"""

_KEYS = """
    CREATE TABLE keys (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        digest BLOB NOT NULL,      -- SHA-256 of the secret part; the secret is nowhere
        created_s REAL NOT NULL,
        limits TEXT NOT NULL,      -- JSON
        scopes TEXT NOT NULL,      -- JSON
        expires_s REAL,
        revoked_s REAL,
        fleet INTEGER NOT NULL     -- 1: made by a run for its agents
    ) WITHOUT ROWID
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        _LEVELS,
        _ATTEMPTS,
        "CREATE INDEX attempts_by_time ON attempts (admitted_s)",
        "CREATE INDEX attempts_by_session ON attempts (session, admitted_s) WHERE session IS NOT NULL",
        "CREATE INDEX attempts_by_run ON attempts (run, admitted_s) WHERE run IS NOT NULL",
        # Ids are random: an index on all of them would touch another page for every row, and be as large as the rows.
        # Those that are not final are few at any time, and the only ones that are looked for.
        "CREATE UNIQUE INDEX attempts_open ON attempts (id) WHERE state IN ('in_flight', 'lost')",
        _BY_HOUR,
        _BY_AGENT_HOUR,
        _RUNS,
        _JOBS,
        # A claim looks only at what can be claimed, however many jobs have ended.
        "CREATE INDEX jobs_open ON jobs (run, job_index) WHERE state IN ('queued', 'running')",
        _KEYS,
    ),
    (
        "ALTER TABLE attempts ADD COLUMN sent INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE attempts ADD COLUMN claimed TEXT NOT NULL DEFAULT '[]'",  # JSON: [kind or tag:name, ...]
        # Until now every row counted as a request.
        *(
            statement
            for table in ("usage_by_hour", "usage_by_agent_hour")
            for statement in (
                f"ALTER TABLE {table} ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
                f"UPDATE {table} SET attempts = requests",  # noqa: S608 - our own tables
            )
        ),
    ),
    (
        "ALTER TABLE keys ADD COLUMN parent TEXT",  # the key that a fleet's key was made under
        "CREATE INDEX keys_of_fleets ON keys (parent) WHERE fleet = 1",
    ),
    (  # until now a call that was not admitted left no row
        "ALTER TABLE usage_by_hour ADD COLUMN refused INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE usage_by_agent_hour ADD COLUMN refused INTEGER NOT NULL DEFAULT 0",
    ),
    (  # until now every call was sent with the model that it asked for
        "ALTER TABLE attempts ADD COLUMN asked_model TEXT",
        "ALTER TABLE attempts ADD COLUMN rule TEXT",
    ),
    (  # until now every call had an answer of its own
        "ALTER TABLE attempts ADD COLUMN saved_micro_usd INTEGER",
        "ALTER TABLE attempts ADD COLUMN shared_with TEXT",
    ),
)


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Bring a file to the newest version; safe when several processes do so at once.

    Raises:
        StoreError: the file is another program's, or was written by a newer Headgate.
    """
    # In a transaction, because what is read one after another is only then from one moment.
    with _transaction(connection, "BEGIN"):
        if _version(connection, path, len(migrations)) == len(migrations):
            return
    for number, statements in enumerate(migrations, start=1):
        with _transaction(connection, "BEGIN IMMEDIATE"):
            # Another process may have done it while this one waited for its turn.
            if _version(connection, path, len(migrations)) < number:
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreError(f"{path}: this database belongs to another program; name another file")
    if version > newest:
        raise StoreError(
            f"{path}: written by a newer Headgate (schema {version}, this one knows {newest}); "
            "update Headgate, or name another file"
        )
    return int(version)
