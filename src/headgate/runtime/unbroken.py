"""Waits that a cancellation cannot break off half-way: it takes effect when the piece of work is done.

One rule: only for work that is bounded by itself, such as one step of a store or the ending of a process.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["unbroken", "work_or_end"]

_T = TypeVar("_T")


async def unbroken(work: Coroutine[Any, Any, _T]) -> _T:
    """Await a bounded piece of work to its end; a cancellation meanwhile is raised after it."""
    task = asyncio.ensure_future(work)
    broken: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            broken = error
    if broken is not None and (task.cancelled() or task.exception() is None):
        raise broken
    return task.result()


async def work_or_end(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Wait for the work; cancelled, cancel it, and give its result all the same if it had one, else None."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await unbroken(_done(task))
    return None if task.cancelled() else task.result()


async def _done(task: asyncio.Task[_T]) -> None:
    await asyncio.wait({task})
