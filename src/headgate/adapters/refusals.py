"""What stores answer when a caller asks for what cannot be: the same words from every store.

One rule: these are the caller's mistakes; what is wrong with a store itself is its own adapter's to say.
"""

from collections.abc import Sequence

from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.ports import Run


def attempt_was_begun(attempt: str) -> CallerError:
    """Say that an attempt's id is taken."""
    return CallerError(f"attempt {attempt} was begun before; give each attempt an id of its own")


def run_is_taken(run: str) -> CallerError:
    """Say that a run's id is taken."""
    return CallerError(f"run {run} is there already; give the new one another id, or resume it")


def no_such_job(run: str, index: int) -> CallerError:
    """Say that a run has no such job."""
    return CallerError(f"run {run} has no job {index}; look at its jobs first")


def key_is_taken(key_id: str) -> CallerError:
    """Say that a key's id is taken."""
    return CallerError(f"key {key_id} is there already; make another one")


def check_jobs(run: Run, jobs: Sequence[Job]) -> None:
    """Check that the jobs of a new run are its own and that no two have one index.

    Raises:
        CallerError: they are not.
    """
    indices: set[int] = set()
    for job in jobs:
        if job.run != run.id:
            raise CallerError(f"job {job.index} belongs to run {job.run}, not to {run.id}")
        if job.index in indices:
            raise CallerError(f"run {run.id} has two jobs {job.index}; number them apart")
        indices.add(job.index)
