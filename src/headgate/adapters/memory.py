"""Stores that live as long as the process: for the library without a file, and for tests.

One rule: they keep the promises of the ports within one process, in any number of its threads. Nothing survives it,
and no other process sees it.
"""

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from headgate.adapters.figures import (
    HOURS_PER_DAY,
    NO_FIGURES,
    OPEN_STATES,
    Figures,
    add,
    day_text,
    figures_of,
    group_of,
    hour_of,
    hour_text,
    hours_named,
    in_order,
)
from headgate.adapters.refusals import attempt_was_begun, check_jobs, key_is_taken, no_such_job, run_is_taken
from headgate.core.jobs import Claimed, Event, Job
from headgate.core.jobs import step as step_job
from headgate.core.ledger import Attempt, GroupBy, UsageGroup, UsageQuery
from headgate.ports import HashedKey, Record, Run, SaysNothing, Step, T

MOST_IN_FLIGHT = 10_000
"""What `in_flight` gives at most."""

MOST_ATTEMPTS = 100_000
"""Final attempts that a ledger in memory keeps, about 100 MB; the oldest leave first."""


class MemoryLevelStore:
    """A `LevelStore` in memory."""

    def __init__(self) -> None:
        """Begin without records."""
        self._records: dict[str, Record] = {}
        self._not_looked_at: list[str] = []
        self._lock = threading.Lock()

    async def transact(self, names: Iterable[str], step: Step[T]) -> T:  # noqa: ARG002 - all are at hand
        """Run `step` on the records and keep what it changed; other threads wait meanwhile."""
        records = self._records
        with self._lock:
            # The step gets all records, not the named alone: copying them out would cost as much as the arithmetic.
            changes, result = step(records)
            for name, record in changes.items():
                if record is None:
                    records.pop(name, None)
                else:
                    records[name] = record
        return result

    async def names(self, prefix: str) -> list[str]:
        """Give the names of all records that begin with `prefix`, sorted."""
        with self._lock:
            return sorted(name for name in self._records if name.startswith(prefix))

    async def forget(self, says_nothing: SaysNothing, most: int) -> bool:
        """Delete those of the next `most` records that say nothing; True at the end.

        Since when one is untouched is not kept: nothing here outlives the limits of its process.
        """
        with self._lock:
            if not self._not_looked_at:
                self._not_looked_at = list(self._records)
            for name in self._not_looked_at[-most:]:
                record = self._records.get(name)
                if record is not None and says_nothing(name, record, 0.0):
                    del self._records[name]
            del self._not_looked_at[-most:]
            return not self._not_looked_at

    async def wait_changed(self) -> None:
        """Wait for ever: no other process can change a record."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


def _place(attempt: Attempt) -> tuple[float, str]:
    return attempt.admitted_s, attempt.id


class MemoryLedgerStore:
    """A `LedgerStore` in memory that forgets the oldest final attempts beyond `most_attempts`."""

    def __init__(self, *, most_attempts: int = MOST_ATTEMPTS) -> None:
        """Begin without rows."""
        self._open: dict[str, Attempt] = {}
        self._final: dict[str, Attempt] = {}
        self._most_attempts = most_attempts
        self._lock = threading.Lock()

    async def begin(self, attempt: Attempt, when: Callable[[], bool] | None = None) -> bool:
        """Keep an attempt in flight, or give False if it is not to be."""
        if when is not None and not when():
            return False
        with self._lock:
            if attempt.id in self._open or attempt.id in self._final:
                raise attempt_was_begun(attempt.id)
            self._open[attempt.id] = attempt
            return True

    async def finish(self, attempt: Attempt) -> bool:
        """Complete the row of an attempt in flight (or lost) by its outcome; False if it was final already."""
        with self._lock:
            if attempt.id not in self._open:
                return False
            if attempt.state in OPEN_STATES:
                self._open[attempt.id] = attempt
                return True
            del self._open[attempt.id]
            self._final[attempt.id] = attempt
            if len(self._final) > self._most_attempts:
                del self._final[next(iter(self._final))]
            return True

    async def in_flight(self, after: Attempt | None = None) -> list[Attempt]:
        """Give attempts that are in flight or lost, oldest first, at most 10,000; those `after` one if it is given."""
        with self._lock:
            found = sorted(self._open.values(), key=_place)
        begin = 0 if after is None else bisect_right(found, _place(after), key=_place)
        return found[begin : begin + MOST_IN_FLIGHT]

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        """Sum rows; without `group_by` there is always one group."""
        for field, value in query.only:
            if field in ("hour", "day"):
                hours_named(field, value)
        with self._lock:
            rows = [*self._open.values(), *self._ended_since(query.since_s)]
        sums: dict[tuple[str | None, ...], Figures] = {} if query.group_by else {(): NO_FIGURES}
        for row in rows:
            if _is_asked(row, query):
                values = tuple(_field(row, field) for field in query.group_by)
                sums[values] = add(sums.get(values, NO_FIGURES), figures_of(row))
        return in_order([group_of(values, query.group_by, figures) for values, figures in sums.items()])

    def _ended_since(self, since_s: float | None) -> Iterable[Attempt]:
        """Give the final rows that may have been admitted since an instant: they stand in the order of their ends."""
        if since_s is None:
            return self._final.values()
        return list(takewhile(lambda row: row.done_s is None or row.done_s >= since_s, reversed(self._final.values())))

    async def attempts(self, run: str | None, most: int = MOST_ATTEMPTS) -> list[Attempt]:
        """Give the rows of a run (None: of all calls) in the order of their admission, the newest if there are more."""
        with self._lock:
            rows = [*self._open.values(), *self._final.values()]
        asked = (row for row in rows if run is None or row.scopes.run == run)
        return sorted(asked, key=lambda row: row.admitted_s)[-most:]


class MemoryJobStore:
    """A `JobStore` in memory."""

    def __init__(self) -> None:
        """Begin without runs."""
        self._runs: dict[str, Run] = {}
        self._jobs: dict[str, dict[int, Job]] = {}
        self._lock = threading.Lock()

    async def add_run(self, run: Run, jobs: Sequence[Job]) -> None:
        """Keep a new run with its jobs, all or none."""
        check_jobs(run, jobs)
        by_index = {job.index: job for job in sorted(jobs, key=lambda job: job.index)}
        with self._lock:
            if run.id in self._runs:
                raise run_is_taken(run.id)
            self._runs[run.id] = run
            self._jobs[run.id] = by_index

    async def claim(self, run: str, owner: str, now_s: float, lease_until_s: float, most: int) -> list[Job]:
        """Claim up to `most` jobs of a run that are queued or whose lease is over, lowest index first."""
        claimed: list[Job] = []
        with self._lock:
            jobs = self._jobs.get(run, {})
            for index, job in jobs.items():
                if len(claimed) >= most:
                    break
                after, effects = step_job(job, Claimed(owner, lease_until_s), now_s)
                if effects:
                    jobs[index] = after
                    claimed.append(after)
        return claimed

    async def step(self, run: str, index: int, event: Event, now_s: float) -> Job:
        """Apply an event to a job by the core's table; give the job after it."""
        with self._lock:
            job = self._jobs.get(run, {}).get(index)
            if job is None:
                raise no_such_job(run, index)
            after, _effects = step_job(job, event, now_s)
            self._jobs[run][index] = after
            return after

    async def jobs(self, run: str) -> list[Job]:
        """Give all jobs of a run by index."""
        with self._lock:
            return list(self._jobs.get(run, {}).values())

    async def runs(self) -> list[Run]:
        """Give all runs, newest first."""
        with self._lock:
            return sorted(self._runs.values(), key=lambda run: (-run.created_s, run.id))

    async def delete_run(self, run: str, now_s: float) -> bool:
        """Delete a run with its jobs, all or none; False if a lease on one of its jobs runs."""
        with self._lock:
            jobs = self._jobs.get(run, {}).values()
            if any(job.state == "running" and job.lease_until_s > now_s for job in jobs):
                return False
            self._jobs.pop(run, None)
            self._runs.pop(run, None)
            return True


class MemoryKeyStore:
    """A `KeyStore` in memory."""

    def __init__(self) -> None:
        """Begin without keys."""
        self._keys: dict[str, HashedKey] = {}
        self._lock = threading.Lock()

    async def add(self, keys: Sequence[HashedKey]) -> None:
        """Keep new keys, all or none; raises CallerError if an id is taken."""
        with self._lock:
            seen = set(self._keys)
            for key in keys:
                if key.id in seen:
                    raise key_is_taken(key.id)
                seen.add(key.id)
            self._keys.update((key.id, key) for key in keys)

    async def find(self, key_id: str) -> HashedKey | None:
        """Give a key by its public id."""
        return self._keys.get(key_id)

    async def all(self) -> list[HashedKey]:
        """Give every key, oldest first."""
        with self._lock:
            standing = [key for key in self._keys.values() if not key.fleet]
        return sorted(standing, key=lambda key: (key.created_s, key.id))

    async def revoke(self, key_id: str, at_s: float) -> bool:
        """End a key at an instant; False if there is none or it ends no later already."""
        with self._lock:
            key = self._keys.get(key_id)
            if key is None or (key.revoked_s is not None and key.revoked_s <= at_s):
                return False
            self._keys[key_id] = replace(key, revoked_s=at_s)
            return True

    async def prune_fleet(self, parent: str | None, now_s: float) -> int:
        """Forget every fleet's keys that have ended; give how many are in force under a parent."""
        with self._lock:
            self._keys = {key.id: key for key in self._keys.values() if not key.fleet or not _has_ended(key, now_s)}
            return sum(key.fleet and key.parent == parent for key in self._keys.values())


def _has_ended(key: HashedKey, now_s: float) -> bool:
    return (key.revoked_s is not None and key.revoked_s <= now_s) or (
        key.expires_s is not None and key.expires_s <= now_s
    )


def _is_asked(row: Attempt, query: UsageQuery) -> bool:
    if query.since_s is not None and row.admitted_s < query.since_s:
        return False
    if query.until_s is not None and row.admitted_s >= query.until_s:
        return False
    return all(_field(row, field) == value for field, value in query.only)


def _field(row: Attempt, field: GroupBy) -> str | None:
    match field:
        case "hour":
            return hour_text(hour_of(row.admitted_s))
        case "day":
            return day_text(hour_of(row.admitted_s) // HOURS_PER_DAY)
        case "model":
            return row.model
        case "asked_model":
            return row.asked_model
        case "rule":
            return row.rule
        case "endpoint":
            return row.endpoint
        case "state":
            return row.state
        case "account" | "key" | "team" | "run" | "agent" | "session":
            value: str | None = getattr(row.scopes, field)
            return value
