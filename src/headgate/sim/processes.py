"""Processes: thousands of agents as generators on an event loop, at a third of what tasks and sleeps would cost.

One rule: a process yields the seconds that it sleeps, or a future that it waits for, and nothing else; it is resumed by
the loop's own timers and callbacks, so that whatever else runs on the loop keeps its order among them.
"""

import asyncio
from collections.abc import Coroutine, Generator
from heapq import heappop, heappush
from math import inf
from typing import Any, TypeVar

__all__ = ["Play", "Processes", "at_once"]

T = TypeVar("T")

Play = Generator["float | asyncio.Future[None]", None, T]
"""A process, or a part of one that is delegated to with `yield from`."""


class Processes:
    """All processes of a simulation.

    They have one timer of the loop's between them, and a heap of their own behind it: a loop orders its timers by a
    method in Python.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin without any."""
        self._loop = loop
        self._live: dict[int, Play[None]] = {}
        self._sleeping: list[tuple[float, int, int]] = []
        self._numbers = 0
        self._sleeps = 0
        self._wakes_s = inf
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = loop.create_future()

    def start(self, process: Play[None], *, after_s: float = 0.0) -> None:
        """Let a process begin later."""
        self._numbers += 1
        self._live[self._numbers] = process
        self._sleep(self._numbers, after_s)

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
        for process in live.values():
            process.close()

    def _sleep(self, number: int, for_s: float) -> None:
        until_s = self._loop.time() + for_s
        self._sleeps += 1  # who went to sleep first wakes first, at one instant
        heappush(self._sleeping, (until_s, self._sleeps, number))
        if until_s < self._wakes_s:
            self._wake_at(until_s)

    def _wake_at(self, instant_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_s = instant_s
        self._timer = self._loop.call_at(instant_s, self._wake)

    def _wake(self) -> None:
        now_s, sleeping = self._loop.time(), self._sleeping
        while sleeping and sleeping[0][0] <= now_s:
            self._step(heappop(sleeping)[2])
        self._wakes_s, self._timer = inf, None
        if sleeping:
            self._wake_at(sleeping[0][0])

    def _step(self, number: int) -> None:
        process = self._live.get(number)
        if process is None:
            return
        try:
            waits_for = process.send(None)
        except StopIteration:
            del self._live[number]
            if not self._live:
                self._end(None)
        except Exception as error:  # noqa: BLE001 - a process's boundary: `ended` raises it
            del self._live[number]
            self._end(error)
        else:
            if type(waits_for) is float:
                self._sleep(number, waits_for)
            else:
                assert isinstance(waits_for, asyncio.Future), f"a process yielded {waits_for!r}"
                waits_for.add_done_callback(lambda _: self._step(number))

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
