"""Processes: thousands of agents as generators on an event loop, at a third of what tasks and sleeps would cost.

One rule: a process yields the seconds that it sleeps, a future that it waits for, or None to let all go first that is
ready, as a task's `sleep(0)` does. It is resumed by the loop's own timers and callbacks, so that whatever else runs on
the loop keeps its order among them.
"""

import asyncio
from collections.abc import Coroutine, Generator
from heapq import heappop, heappush
from math import inf
from typing import Any, TypeVar

from headgate.testing.virtual_time import VirtualTimeLoop

__all__ = ["Play", "Processes", "at_once", "through"]

T = TypeVar("T")

Play = Generator["float | asyncio.Future[Any] | None", None, T]
"""A process, or a part of one that is delegated to with `yield from`."""


class Processes:
    """All processes of a simulation.

    They have one timer of the loop's between them, and a heap of their own behind it: a loop orders its timers by a
    method in Python. While nothing else is due they move the clock from one to the next themselves.
    """

    def __init__(self, loop: VirtualTimeLoop) -> None:
        """Begin without any."""
        self._loop = loop
        self._live: dict[Play[None], None] = {}  # in the order of their begin, so that the same ends the same way
        self._sleeping: list[tuple[float, int, Play[None]]] = []
        self._sleeps = 0
        self._wakes_s = inf
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = loop.create_future()

    def start(self, process: Play[None], *, after_s: float = 0.0) -> None:
        """Let a process begin later."""
        self._live[process] = None
        self._sleep(process, after_s)

    async def ended(self, *, within_s: float | None) -> None:
        """Wait until all have ended, or until the time is over.

        Raises whatever a process raised.
        """
        timer = None if within_s is None else self._loop.call_later(within_s, self._end, None)
        if not self._live:
            self._end(None)
        try:
            await self._ended
        finally:
            if timer is not None:
                timer.cancel()

    def break_off(self) -> None:
        """End all that are left where they are; their `finally` blocks run."""
        if self._timer is not None:
            self._timer.cancel()
        live, self._live = self._live, {}
        for process in live:
            process.close()

    def _sleep(self, process: Play[None], for_s: float) -> None:
        until_s = self._loop.time() + for_s
        self._sleeps += 1  # who went to sleep first wakes first, at one instant
        heappush(self._sleeping, (until_s, self._sleeps, process))
        if until_s < self._wakes_s:
            self._wake_at(until_s)

    def _wake_at(self, instant_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_s = instant_s
        self._timer = self._loop.call_at(instant_s, self._wake)

    def _wake(self) -> None:
        loop, sleeping = self._loop, self._sleeping
        self._timer, self._wakes_s = None, -inf  # whoever goes to sleep meanwhile is seen to here
        while True:
            now_s = loop.time()
            while sleeping and sleeping[0][0] <= now_s:
                self._step(heappop(sleeping)[2])
            if not sleeping or self._ended.done() or not loop.jump(sleeping[0][0]):
                break
        self._wakes_s = inf
        if sleeping:
            self._wake_at(sleeping[0][0])

    def _step(self, process: Play[None]) -> None:
        if process not in self._live:
            return
        try:
            waits_for = process.send(None)
        except StopIteration:
            del self._live[process]
            if not self._live:
                self._end(None)
        except Exception as error:  # noqa: BLE001 - a process's boundary: `ended` raises it
            del self._live[process]
            self._end(error)
        else:
            if type(waits_for) is float:
                self._sleep(process, waits_for)
            elif waits_for is None:
                self._loop.call_soon(self._step, process)
            else:
                assert isinstance(waits_for, asyncio.Future), f"a process yielded {waits_for!r}"
                waits_for.add_done_callback(lambda _: self._step(process))

    def _end(self, error: Exception | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that does not wait, such as a transaction in memory."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError(f"{coroutine!r} waits")


def through(
    waiting: Coroutine[Any, None, T], future: "asyncio.Future[Any] | None" = None
) -> Generator["float | asyncio.Future[Any] | None", None, T]:
    """Run a coroutine inside a process: what it waits for, the process waits for. `future` is the first, if begun."""
    try:
        if future is None:
            future = waiting.send(None)
        while True:
            yield future
            future = waiting.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        waiting.close()
