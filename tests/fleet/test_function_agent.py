"""Python functions as agents: awaited or in a thread, and refused before anything runs when they cannot be called."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from headgate.adapters.agents.function import FunctionAgent, load_function
from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.ports import Desk, Ended
from headgate.testing import virtual_time

JOB = Job("run-1", 0, "review", '{"prompt": "hi"}', attempt=1)
DESK = Desk("http://127.0.0.1:8484", "hg-own-key", Path("/nowhere"))

MODULE = """
async def review(task, desk):
    return {"prompt": task["prompt"], "at": desk.openai_base_url}

class Reviewers:
    @staticmethod
    def thorough(task, desk):
        return task["prompt"].upper()

def lonely(task):
    pass

answer = 42
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "agents_for_test.py").write_text(MODULE)
    (tmp_path / "broken_for_test.py").write_text("raise KeyError('no database')")
    yield tmp_path
    sys.modules.pop("agents_for_test", None)


def work(function) -> Ended:
    return asyncio.run(FunctionAgent(function).work(JOB, DESK))


def test_an_async_function_is_awaited_and_what_it_returns_is_the_output(folder):
    ended = work(load_function("agents_for_test:review", folder))
    assert ended == Ended('{"prompt": "hi", "at": "http://127.0.0.1:8484/v1"}')


def test_another_function_works_in_a_thread(folder):
    assert work(load_function("agents_for_test:Reviewers.thorough", folder)) == Ended("HI")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("agents_for_test", "expected module:function"),
        ("no_such_module_for_test:review", "cannot be imported: ModuleNotFoundError"),
        ("agents_for_test:missing", "cannot be imported: AttributeError"),
        ("broken_for_test:review", "cannot be imported: KeyError: 'no database'"),
        ("agents_for_test:answer", "is a int; expected a function"),
        ("agents_for_test:lonely", r"cannot be called as function\(task, desk\): too many positional arguments"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_anything_runs(folder, name, why):
    with pytest.raises(CallerError, match=why):
        load_function(name, folder)


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), StopIteration("odd")])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_a_function_raises_is_raised_where_it_is_awaited_and_never_ends_the_loop(error, is_async):
    def broken(task: object, desk: object) -> None:
        raise error

    async def broken_too(task: object, desk: object) -> None:
        raise error

    async def scene():
        with pytest.raises((ValueError, RuntimeError), match=f"{error}|StopIteration"):
            await asyncio.wait_for(FunctionAgent(broken_too if is_async else broken).work(JOB, DESK), 10)

    asyncio.run(scene())


def test_no_more_threads_than_allowed():
    may_end = threading.Event()

    def wait(task: object, desk: object) -> None:
        may_end.wait(10)

    async def scene():
        agent = FunctionAgent(wait, most_threads=2)
        tasks = [asyncio.create_task(agent.work(JOB, DESK)) for _ in range(6)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert sum(thread.name == "agent nowhere" for thread in threading.enumerate()) == 2
        may_end.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    asyncio.run(scene())


def test_a_thread_that_cannot_be_ended_is_left_behind_and_its_place_is_free_when_it_ends():
    begun, may_end = threading.Event(), threading.Event()

    def stubborn(task: object, desk: object) -> str:
        begun.set()
        may_end.wait(10)
        return "too late"

    async def scene():
        agent = FunctionAgent(stubborn, most_threads=1)
        first = asyncio.create_task(agent.work(JOB, DESK))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(agent.work(JOB, DESK))
        may_end.set()
        assert await asyncio.wait_for(second, 10) == Ended("too late")

    asyncio.run(scene())


def test_an_async_function_is_cancelled_like_any_task():
    async def for_ever(task: object, desk: object) -> None:
        await asyncio.Event().wait()

    async def scene():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(FunctionAgent(for_ever).work(JOB, DESK), 3600)

    virtual_time.run(scene())
