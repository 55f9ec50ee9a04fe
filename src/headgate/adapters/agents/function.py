"""Python functions as agents: `module:function`, called with the task and the desk.

One rule: what cannot be imported or called is said before anything runs; what a function raises is its job's error.
One that is not async cannot be ended from outside: told to end, its thread is left behind and its result dropped.
"""

import asyncio
import importlib
import inspect
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.ports import Desk, Ended

__all__ = ["FunctionAgent", "load_function"]

AgentFunction = Callable[[dict[str, Any], Desk], object]


def load_function(name: str, folder: Path) -> AgentFunction:
    """Import `module:function`; modules beside `folder` are found as `python -m` would find them.

    Raises:
        CallerError: it cannot be imported, or does not take a task and a desk.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise CallerError(f"{name!r} names no function; expected module:function, such as agents:review")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        found: object = importlib.import_module(module_name)
        for part in function_name.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise CallerError(f"{name}: cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise CallerError(f"{name} is a {type(found).__name__}; expected a function of a task and a desk")
    try:
        inspect.signature(found).bind({}, None)
    except TypeError as error:
        raise CallerError(f"{name} cannot be called as function(task, desk): {error}") from error
    return cast("AgentFunction", found)


class FunctionAgent:
    """Calls a function for each attempt: an async one as it is, another in one of at most `most_threads` threads.

    `task` is the task's JSON object, `desk` a `headgate.ports.Desk`: its `key` and base URLs go into any SDK's client.
    What is returned becomes the job's output: text as it is, None as nothing, anything else as JSON.
    """

    def __init__(self, function: AgentFunction, *, most_threads: int = 32) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - asks whether it is async, not whether it is callable
        )
        self._free_threads = asyncio.Semaphore(most_threads)

    async def work(self, job: Job, desk: Desk) -> Ended:
        """Call the function; what it raises is the error, by its type and message alone."""
        task = json.loads(job.task)
        try:
            if self._is_async:
                said = await cast("Awaitable[object]", self._function(task, desk))
            else:
                said = await self._call_in_thread(task, desk)
        except SystemExit as error:
            # One agent that gives up must not end the loop, and all the others with it.
            raise RuntimeError(f"the function called sys.exit({error.code!r})") from None
        return Ended(said if isinstance(said, str) else "" if said is None else _json(said))

    async def _call_in_thread(self, task: dict[str, Any], desk: Desk) -> object:
        """Call it in a daemon thread: an executor's would keep the process alive until the function ends by itself."""
        await self._free_threads.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[object] = loop.create_future()

        def land(result: object, error: Exception | None) -> None:
            self._free_threads.release()
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)

        def call() -> None:
            result: object = None
            raised: Exception | None = None
            try:
                result = self._function(task, desk)
            except Exception as error:  # noqa: BLE001 - the thread's boundary: it is raised where it is awaited
                # A future cannot carry a StopIteration: awaiting it would end a generator instead.
                raised = RuntimeError(f"StopIteration: {error}") if isinstance(error, StopIteration) else error
            except BaseException as error:  # noqa: BLE001 - as above; a loop would end with such a one
                raised = RuntimeError(f"the function raised {error!r}")
            if not loop.is_closed():
                loop.call_soon_threadsafe(land, result, raised)

        try:
            threading.Thread(target=call, name=f"agent {desk.folder.name}", daemon=True).start()
        except RuntimeError:
            self._free_threads.release()
            raise
        return await outcome


def _json(said: object) -> str:
    return json.dumps(said, ensure_ascii=False, default=str)
