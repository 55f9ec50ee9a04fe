"""Runs and their jobs in SQLite.

One rule: a job changes only by the core's table, inside the transaction that reads and writes it.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from headgate.adapters.refusals import check_jobs, no_such_job, run_is_taken
from headgate.adapters.sqlite.database import Database
from headgate.core.jobs import Claimed, Event, Job
from headgate.core.jobs import step as step_job
from headgate.ports import Run

# In the order of Job.
_COLUMNS = (
    "run, job_index, name, task, state, attempt, most_attempts, owner, lease_until_s, started_s, ended_s, exit_code, "
    "output, error"
)
_ADD = f"INSERT INTO jobs ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own columns
_JOB = f"SELECT {_COLUMNS} FROM jobs WHERE run = ? AND job_index = ?"  # noqa: S608 - our own columns
_JOBS = f"SELECT {_COLUMNS} FROM jobs WHERE run = ? ORDER BY job_index"  # noqa: S608 - our own columns
# `state IN` is word for word as in the partial index, which has what can be claimed and nothing else.
_CLAIMABLE = f"""
    SELECT {_COLUMNS} FROM jobs INDEXED BY jobs_open
    WHERE run = ? AND state IN ('queued', 'running') AND (state = 'queued' OR lease_until_s <= ?)
    ORDER BY job_index LIMIT ?
"""  # noqa: S608 - our own columns
_LEASED = """
    SELECT 1 FROM jobs INDEXED BY jobs_open
    WHERE run = ? AND state IN ('queued', 'running') AND state = 'running' AND lease_until_s > ? LIMIT 1
"""
_CHANGE = """
    UPDATE jobs SET state = ?, attempt = ?, most_attempts = ?, owner = ?, lease_until_s = ?, started_s = ?, ended_s = ?,
        exit_code = ?, output = ?, error = ?
    WHERE run = ? AND job_index = ?
"""


class SqliteJobStore:
    """A `JobStore` on a database."""

    def __init__(self, database: Database) -> None:
        """Keep jobs in `database`."""
        self._database = database

    async def add_run(self, run: Run, jobs: Sequence[Job]) -> None:
        """Keep a new run with its jobs, all or none; raises CallerError if its id is taken."""
        check_jobs(run, jobs)
        if not await self._database.run(partial(_add_run, run, jobs)):
            raise run_is_taken(run.id)

    async def claim(self, run: str, owner: str, now_s: float, lease_until_s: float, most: int) -> list[Job]:
        """Claim up to `most` jobs of a run that are queued or whose lease is over, lowest index first."""

        def work(connection: sqlite3.Connection) -> list[Job]:
            jobs = [_to_job(row) for row in connection.execute(_CLAIMABLE, (run, now_s, most)).fetchall()]
            return [_step(connection, job, Claimed(owner, lease_until_s), now_s) for job in jobs]

        return await self._database.run(work)

    async def step(self, run: str, index: int, event: Event, now_s: float) -> Job:
        """Apply an event to a job by the core's table; raises CallerError if there is no such job."""

        def work(connection: sqlite3.Connection) -> Job | None:
            row = connection.execute(_JOB, (run, index)).fetchone()
            return _step(connection, _to_job(row), event, now_s) if row is not None else None

        job = await self._database.run(work)
        if job is None:
            raise no_such_job(run, index)
        return job

    async def jobs(self, run: str) -> list[Job]:
        """Give all jobs of a run by index."""
        rows = await self._database.read(lambda connection: connection.execute(_JOBS, (run,)).fetchall())
        return [_to_job(row) for row in rows]

    async def runs(self) -> list[Run]:
        """Give all runs, newest first."""
        query = "SELECT id, created_s, settings FROM runs ORDER BY created_s DESC, id"
        return [Run(*row) for row in await self._database.read(lambda connection: connection.execute(query).fetchall())]

    async def delete_run(self, run: str, now_s: float) -> bool:
        """Delete a run with its jobs, all or none; False if a lease on one of its jobs runs."""

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute(_LEASED, (run, now_s)).fetchone() is not None:
                return False
            connection.execute("DELETE FROM jobs WHERE run = ?", (run,))
            connection.execute("DELETE FROM runs WHERE id = ?", (run,))
            return True

        return await self._database.run(work)


def _add_run(run: Run, jobs: Sequence[Job], connection: sqlite3.Connection) -> bool:
    added = connection.execute("INSERT INTO runs VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING", astuple(run)).rowcount
    if not added:
        return False
    connection.executemany(_ADD, [astuple(job) for job in jobs])
    return True


def _step(connection: sqlite3.Connection, job: Job, event: Event, now_s: float) -> Job:
    after, _effects = step_job(job, event, now_s)
    if after != job:
        _run, _index, _name, _task, *changed = astuple(after)
        connection.execute(_CHANGE, (*changed, job.run, job.index))
    return after


def _to_job(row: tuple[Any, ...]) -> Job:
    return Job(*row)
