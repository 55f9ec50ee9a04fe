"""What every `JobStore` has to do.

One rule: a job has one owner at a time, and what the core's table says is what is stored.
"""

import asyncio
from dataclasses import replace

from headgate.core.errors import CallerError
from headgate.core.jobs import Beat, Claimed, Event, Failed, GivenBack, Job, OwnerDied, Reopened, Succeeded, step
from headgate.ports import JobStore, Run
from headgate.testing.exercises import Exercise, OpenStore

NOW_S = 1_750_000_000.0
LEASE_S = 30.0
RUN = Run("run-1", NOW_S, '{"agents":4}')


def jobs_of(run: Run, count: int) -> list[Job]:
    """Give fresh jobs of a run."""
    return [Job(run.id, index, f"job {index}", f'{{"n":{index}}}') for index in range(count)]


async def claim(store: JobStore, owner: str, most: int, now_s: float = NOW_S) -> list[int]:
    """Claim jobs of RUN and give their indices."""
    claimed = await store.claim(RUN.id, owner, now_s, now_s + LEASE_S, most)
    assert all((job.state, job.owner, job.lease_until_s) == ("running", owner, now_s + LEASE_S) for job in claimed)
    return [job.index for job in claimed]


async def a_run_is_kept_with_its_jobs(open_store: OpenStore[JobStore]) -> None:
    """By index, whatever order they came in; also when the store is opened again."""
    jobs = [replace(job, most_attempts=5, task='{"ü":"\\"水\\""}') for job in jobs_of(RUN, 12)]
    async with open_store() as store:
        await store.add_run(RUN, jobs[::-1])
        assert await store.jobs(RUN.id) == jobs
    async with open_store() as store:
        assert await store.jobs(RUN.id) == jobs
        assert await store.jobs("none") == []


async def runs_come_newest_first(open_store: OpenStore[JobStore]) -> None:
    """With what they were started with; a run may have no jobs."""
    older, newer = replace(RUN, id="a", created_s=NOW_S - 1), replace(RUN, id="b", settings="{}")
    async with open_store() as store:
        assert await store.runs() == []
        await store.add_run(newer, [])
        await store.add_run(older, [])
        assert await store.runs() == [newer, older]


async def a_run_is_added_whole_or_not_at_all(open_store: OpenStore[JobStore]) -> None:
    """A taken id, a job twice, a job of another run: nothing of it is kept, and those added meanwhile are."""

    async def is_refused(store: JobStore, run: Run, jobs: list[Job]) -> bool:
        try:
            await store.add_run(run, jobs)
        except CallerError:
            return True
        return False

    other = replace(RUN, id="run-2")
    async with open_store() as store:
        await store.add_run(RUN, jobs_of(RUN, 2))
        refused = await asyncio.gather(
            is_refused(store, RUN, jobs_of(RUN, 9)),
            is_refused(store, replace(RUN, id="run-3"), [*jobs_of(replace(RUN, id="run-3"), 2)] * 2),
            is_refused(store, replace(RUN, id="run-4"), jobs_of(RUN, 1)),
            is_refused(store, other, jobs_of(other, 3)),
        )
        assert [*refused] == [True, True, True, False]
        assert sorted(run.id for run in await store.runs()) == ["run-1", "run-2"]
        assert len(await store.jobs("run-1")) == 2  # noqa: PLR2004 - as added first


async def jobs_are_claimed_lowest_first_and_once(open_store: OpenStore[JobStore]) -> None:
    """However many ask at once."""
    async with open_store() as store, open_store() as other:
        await store.add_run(RUN, jobs_of(RUN, 10))
        assert await claim(store, "a", 3) == [0, 1, 2]
        assert await claim(store, "a", 0) == []
        claimed = await asyncio.gather(*(claim(some, "b", 2) for _ in range(4) for some in (store, other)))
        assert sorted(index for some in claimed for index in some) == [3, 4, 5, 6, 7, 8, 9]
        assert await claim(other, "c", 5) == []
        assert await store.claim("none", "a", NOW_S, NOW_S + LEASE_S, 5) == []


async def a_lease_that_is_over_can_be_claimed(open_store: OpenStore[JobStore]) -> None:
    """Not before; what its former owner says afterwards changes nothing."""
    async with open_store() as store:
        await store.add_run(RUN, jobs_of(RUN, 2))
        assert await claim(store, "a", 1) == [0]
        await store.step(RUN.id, 0, Beat(1, NOW_S + 2 * LEASE_S), NOW_S + 1)
        assert await claim(store, "b", 5, NOW_S + LEASE_S) == [1]
        assert await claim(store, "b", 5, NOW_S + 2 * LEASE_S) == [0, 1]
        stale = await store.step(RUN.id, 0, Succeeded(1, "too late"), NOW_S + 2 * LEASE_S + 1)
        assert (stale.state, stale.owner, stale.attempt, stale.output) == ("running", "b", 2, "")


async def a_job_changes_as_the_table_says(open_store: OpenStore[JobStore]) -> None:
    """Every event, possible or not, in every state, gives what the core gives, and that is what is kept."""
    events: list[Event] = [
        Succeeded(1),
        Claimed("a", NOW_S + LEASE_S),
        Beat(1, NOW_S + 2 * LEASE_S),
        Failed(1, "it broke", "half", 3),
        Claimed("b", NOW_S + LEASE_S),
        GivenBack(2),
        Claimed("c", NOW_S + LEASE_S),
        OwnerDied(3),
        Claimed("d", NOW_S + LEASE_S),
        Failed(4, "no", retryable=False),
        Reopened(3, 2),
        Reopened(4, 2),
        Claimed("e", NOW_S + LEASE_S),
        Succeeded(5, "all of it", 0),
        Reopened(5, 2),
        Claimed("f", NOW_S + LEASE_S),
        Failed(5, "no", retryable=False),
    ]
    (job,) = jobs_of(RUN, 1)
    async with open_store() as store:
        await store.add_run(RUN, [job])
        for second, event in enumerate(events):
            job, _effects = step(job, event, NOW_S + second)
            assert await store.step(RUN.id, 0, event, NOW_S + second) == job
            assert await store.jobs(RUN.id) == [job]
    assert job.state == "done"


async def a_run_is_deleted_whole_and_not_while_it_lives(open_store: OpenStore[JobStore]) -> None:
    """A lease that runs keeps it; other runs stay, what is not there is gone already, and its id is free again."""
    other = replace(RUN, id="run-2")
    async with open_store() as store:
        await store.add_run(RUN, jobs_of(RUN, 3))
        await store.add_run(other, jobs_of(other, 1))
        assert await claim(store, "a", 1) == [0]
        assert not await store.delete_run(RUN.id, NOW_S + LEASE_S - 1)
        assert len(await store.jobs(RUN.id)) == 3  # noqa: PLR2004 - as added
        assert await store.delete_run(RUN.id, NOW_S + LEASE_S)
        assert await store.delete_run(RUN.id, NOW_S)
    async with open_store() as store:
        assert [run.id for run in await store.runs()] == [other.id]
        assert (await store.jobs(RUN.id), await store.jobs(other.id)) == ([], jobs_of(other, 1))
        await store.add_run(RUN, jobs_of(RUN, 1))
        assert await store.jobs(RUN.id) == jobs_of(RUN, 1)


async def a_job_that_is_not_there_is_the_callers_mistake(open_store: OpenStore[JobStore]) -> None:
    """Whether its run is there or not."""
    async with open_store() as store:
        await store.add_run(RUN, jobs_of(RUN, 1))
        for run, index in ((RUN.id, 1), ("none", 0)):
            try:
                await store.step(run, index, GivenBack(1), NOW_S)
            except CallerError as error:
                assert run in str(error)  # noqa: PT017 - pytest is not a dependency of this package
            else:
                raise AssertionError(f"job {index} of run {run} is not there")


JOB_EXERCISES: tuple[Exercise[JobStore], ...] = (
    a_run_is_kept_with_its_jobs,
    runs_come_newest_first,
    a_run_is_added_whole_or_not_at_all,
    jobs_are_claimed_lowest_first_and_once,
    a_lease_that_is_over_can_be_claimed,
    a_job_changes_as_the_table_says,
    a_run_is_deleted_whole_and_not_while_it_lives,
    a_job_that_is_not_there_is_the_callers_mistake,
)
