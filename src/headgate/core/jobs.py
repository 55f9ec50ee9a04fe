"""Jobs: the fleet's unit of work, as a table of state and event.

One rule: `step` is the only way a job changes, and an event that comes from an attempt which no longer holds the lease
changes nothing (the attempt's number is the fencing token). Effects are returned, not done.
"""

from dataclasses import dataclass, replace
from typing import Literal

JobState = Literal["queued", "running", "done", "failed"]

FINAL: frozenset[JobState] = frozenset({"done", "failed"})


@dataclass(frozen=True, slots=True)
class Job:
    """One task of a run. `attempt` is the number of the last one started; `lease_until_s` is 0 unless running.

    `task` is the task's JSON text, `output` the bounded tail of what the agent said, `exit_code` its command's.
    """

    run: str
    index: int
    name: str
    task: str
    state: JobState = "queued"
    attempt: int = 0
    most_attempts: int = 3
    owner: str | None = None
    lease_until_s: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    exit_code: int | None = None
    output: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A runner takes the job until `lease_until_s`."""

    owner: str
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class Beat:
    """The attempt lives: its lease is renewed."""

    attempt: int
    lease_until_s: float


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The attempt ended well."""

    attempt: int
    output: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt ended badly; it is tried again while attempts are left."""

    attempt: int
    error: str
    output: str = ""
    exit_code: int | None = None
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The runner stops before the attempt ended: the job is queued as if the attempt had not been."""

    attempt: int


@dataclass(frozen=True, slots=True)
class OwnerDied:
    """The runner that held the lease is gone; its attempt is run again and does not count against the job."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Reopened:
    """A person wants a job that failed in its last attempt, this one, tried up to `more_attempts` times again."""

    attempt: int
    more_attempts: int


Event = Claimed | Beat | Succeeded | Failed | GivenBack | OwnerDied | Reopened
Effect = Literal["start", "retry", "finished"]


def step(job: Job, event: Event, now_s: float) -> tuple[Job, tuple[Effect, ...]]:
    """Give the job after the event, and what its owner has to do. A stale or impossible event changes nothing."""
    match event:
        case Claimed(owner, lease_until_s):
            expired = job.state == "running" and job.lease_until_s <= now_s
            if job.state != "queued" and not expired:
                return job, ()
            claimed = replace(
                job, state="running", attempt=job.attempt + 1, owner=owner, lease_until_s=lease_until_s, started_s=now_s
            )
            return claimed, ("start",)
        case Reopened():
            return _reopened(job, event), ()
        case _ if job.state != "running" or event.attempt != job.attempt:
            return job, ()
        case Beat(_, lease_until_s):
            return replace(job, lease_until_s=max(job.lease_until_s, lease_until_s)), ()
        case Succeeded(_, output, exit_code):
            return _ended(job, "done", now_s, output, exit_code, None), ("finished",)
        case Failed():
            return _failed(job, event, now_s)
        case GivenBack() | OwnerDied():
            return replace(_freed(job), most_attempts=job.most_attempts + 1), ()


def _failed(job: Job, event: Failed, now_s: float) -> tuple[Job, tuple[Effect, ...]]:
    if event.retryable and job.attempt < job.most_attempts:
        again = replace(_freed(job), output=event.output, exit_code=event.exit_code, error=event.error)
        return again, ("retry",)
    return _ended(job, "failed", now_s, event.output, event.exit_code, event.error), ("finished",)


def _reopened(job: Job, event: Reopened) -> Job:
    if job.state != "failed" or event.attempt != job.attempt or event.more_attempts < 1:
        return job
    # The numbers of attempts go on: an attempt's number is its fencing token, and names its logs.
    return replace(_freed(job), most_attempts=job.attempt + event.more_attempts, ended_s=None)


def _freed(job: Job) -> Job:
    return replace(job, state="queued", owner=None, lease_until_s=0.0)


def _ended(job: Job, state: JobState, now_s: float, output: str, exit_code: int | None, error: str | None) -> Job:
    return replace(
        job,
        state=state,
        owner=None,
        lease_until_s=0.0,
        ended_s=now_s,
        output=output,
        exit_code=exit_code,
        error=error,
    )
