"""Jobs: a failed one is tried again when a person says so, and by nothing that came too late."""

from dataclasses import replace

import pytest

from headgate.core.jobs import Claimed, Event, Failed, Job, JobState, Reopened, Succeeded, step

FAILED = Job("r", 0, "a", "{}", state="failed", attempt=3, started_s=1.0, ended_s=2.0, exit_code=1, error="no")


def after(job: Job, *events: Event) -> Job:
    for event in events:
        job, _effects = step(job, event, 10.0)
    return job


def test_a_failed_job_is_queued_again_with_fresh_attempts_and_remembers_why_it_failed():
    job = after(FAILED, Reopened(3, 2))
    assert job == replace(FAILED, state="queued", most_attempts=5, ended_s=None)
    tried = [Claimed("b", 20.0), Failed(4, "no"), Claimed("b", 20.0)]
    assert (after(job, *tried).attempt, after(job, *tried).state) == (5, "running")
    assert after(job, *tried, Failed(5, "still no")).state == "failed"
    assert after(job, *tried, Succeeded(5)).error is None


def test_two_who_ask_at_once_give_it_no_more_attempts_than_one():
    assert after(FAILED, Reopened(3, 2), Reopened(3, 9)) == after(FAILED, Reopened(3, 2))
    failed_again = after(FAILED, Reopened(3, 1), Claimed("b", 20.0), Failed(4, "no"))
    assert after(failed_again, Reopened(3, 9)) == failed_again


@pytest.mark.parametrize("state", ["queued", "running", "done"])
def test_only_what_failed_is_queued_again(state: JobState):
    job = replace(FAILED, state=state)
    assert step(job, Reopened(3, 2), 10.0) == (job, ())


def test_to_ask_for_no_attempts_changes_nothing():
    assert after(FAILED, Reopened(3, 0)) == FAILED
