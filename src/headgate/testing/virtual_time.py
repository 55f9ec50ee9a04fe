"""An asyncio event loop whose clock jumps to the next timer as soon as nothing is ready: waiting costs no real time.

Its one rule: the clock moves only while no callback, no socket and no executor thread has anything to do.
It does not touch `time.time()`, and it cannot see processes or threads that were started past the loop.
"""

import asyncio
import inspect
import math
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NoReturn, TypeVar, TypeVarTuple

__all__ = [
    "DeadlockError",
    "LivelockError",
    "TimeBoundError",
    "VirtualClock",
    "VirtualTimeError",
    "VirtualTimeLoop",
    "run",
]

_Result = TypeVar("_Result")
_Arguments = TypeVarTuple("_Arguments")

# Whoever simulates more than a day says so: where something ticks for ever, as a server does that looks around ten
# times a second, no deadlock can be told from waiting, and this bound ends the test while somebody still looks on.
_MAX_VIRTUAL_S = 86_400.0
# Bounds the wait for what moves in real time: an executor thread, or a socket whose other end is not in this loop.
_MAX_REAL_WAIT_S = 10.0
# Loopback delivers within the sender's system call on Linux and a little later on macOS. epoll's own timeout cannot go
# below 1 ms, which would cost a simulation over sockets ten times as much for each jump.
_IO_GRACE_S = 0.000_1
# A timer that is set again for a time already reached never lets the clock move; a few seconds of spinning prove it.
_MAX_PASSES_AT_ONE_INSTANT = 1_000_000
# asyncio registers one descriptor for itself, through which threads wake the loop.
_OWN_DESCRIPTORS = 1
_MAX_TASKS_NAMED = 10
_ASYNCIO_FOLDER = Path(asyncio.__file__).parent


class VirtualTimeError(RuntimeError):
    """The loop cannot go on, or must not; the message names the tasks that wait and the line each waits on."""


class DeadlockError(VirtualTimeError):
    """Tasks wait for something that nothing can bring about any more."""


class LivelockError(VirtualTimeError):
    """Callbacks keep each other busy at one instant, so that the clock can never move."""


class TimeBoundError(VirtualTimeError):
    """The next timer lies beyond the virtual time that the run was given."""


def run(
    coroutine: Coroutine[Any, Any, _Result],
    *,
    start_s: float = 0.0,
    max_virtual_s: float = _MAX_VIRTUAL_S,
    max_real_wait_s: float = _MAX_REAL_WAIT_S,
) -> _Result:
    """Run a coroutine as `asyncio.run` does, on a fresh virtual-time loop that is closed afterwards.

    Args:
        coroutine: What to run to its end; the tasks it leaves behind are cancelled.
        start_s: What `loop.time()` reads at the start.
        max_virtual_s: How far the clock may move from there.
        max_real_wait_s: How long to wait, in real time, for threads and for sockets that lead out of this loop.

    Raises:
        DeadlockError: Nothing could ever wake the loop again.
        LivelockError: The clock cannot move because callbacks never cease.
        TimeBoundError: The next timer lies beyond `max_virtual_s`.
    """

    def fresh_loop() -> VirtualTimeLoop:
        return VirtualTimeLoop(start_s=start_s, max_virtual_s=max_virtual_s, max_real_wait_s=max_real_wait_s)

    with asyncio.Runner(loop_factory=fresh_loop) as runner:
        return runner.run(coroutine)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop with a clock of its own; takes the bounds that `run` describes.

    Sockets and executor threads work as on any loop, and the clock stands still while they have something to do.
    A thread that waits for an answer which this loop gives only after a timer is therefore a deadlock.
    """

    def __init__(
        self,
        *,
        start_s: float = 0.0,
        max_virtual_s: float = _MAX_VIRTUAL_S,
        max_real_wait_s: float = _MAX_REAL_WAIT_S,
    ) -> None:
        self._idle = _JumpingSelector(start_s, max_virtual_s, max_real_wait_s)
        super().__init__(self._idle)

    def time(self) -> float:
        """Give the virtual time in seconds; it moves only between two passes of the loop."""
        return self._idle.now_s

    def jump(self, to_s: float) -> bool:
        """Move the clock on to an instant now, if nothing at all is due before or then; else change nothing.

        It is what the loop would do by itself, without a pass of it for each step: for whoever keeps many timers of its
        own behind one of the loop's, and stands in the last callback that is ready.
        """
        idle = self._idle
        # asyncio keeps what is due next in these two, and gives no other way to ask.
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        if self._ready or (timers and timers[0].when() <= to_s) or not idle.may_jump(to_s):  # type: ignore[attr-defined]
            return False
        idle.now_s = to_s
        return True

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*_Arguments], _Result],
        *args: *_Arguments,
    ) -> asyncio.Future[_Result]:
        """Run a function in a thread or process of the executor; the clock stands still until its future is done."""
        future = super().run_in_executor(executor, func, *args)
        self._idle.work_in_flight += 1
        future.add_done_callback(self._work_landed)
        return future

    async def shutdown_default_executor(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - asyncio's Runner passes it
    ) -> None:
        """Join the executor's threads in real time, whatever the virtual timeout; do not join those found stuck."""
        del timeout  # It would be virtual: the clock would jump over it before a thread had a chance to end.
        if self._idle.work_is_stuck:
            return
        self._idle.work_in_flight += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._idle.work_in_flight -= 1

    def _work_landed(self, _: asyncio.Future[Any]) -> None:
        self._idle.work_in_flight -= 1

    @property
    def _clock_resolution(self) -> float:
        # asyncio runs every timer that is due before time() plus this. One unit in the last place runs none early and
        # forgets none; asyncio's own 1 ns runs some early, and after half a year vanishes in rounding and runs none.
        return math.ulp(self._idle.now_s)

    @_clock_resolution.setter
    def _clock_resolution(self, resolution_s: float) -> None:
        del resolution_s  # asyncio's constructor assigns that of the real clock.


class VirtualClock:
    """A wall clock for tests, driven by a loop's time, that can also be set wrong as real ones are.

    Without a loop it takes the running one. It may be read from any thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, epoch_s: float = 1_750_000_000.0) -> None:
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._offset_s = epoch_s

    def now_s(self) -> float:
        """Give the seconds since the epoch: the loop's time, the start, and every step so far."""
        return self._offset_s + self._loop.time()

    def step(self, by_s: float) -> None:
        """Set the clock forward, or back when negative, as a clock correction does; no timer moves."""
        self._offset_s += by_s


class _JumpingSelector(selectors.DefaultSelector):
    """The one place where a loop is known to be idle: asyncio asks it to wait, and it moves the clock instead."""

    def __init__(self, start_s: float, max_virtual_s: float, max_real_wait_s: float) -> None:
        super().__init__()
        self.now_s = start_s
        self.work_in_flight = 0
        self.work_is_stuck = False
        self._end_s = start_s + max_virtual_s
        self._max_virtual_s = max_virtual_s
        self._max_real_wait_s = max_real_wait_s
        self._passes_at_this_instant = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Give what is ready; otherwise wait in real time for what is real, or move the clock by the timeout."""
        if timeout is not None and timeout <= 0 and not self._has_sockets():
            # Callbacks are ready, and only threads could wake the loop, which add to those: a pass without asking.
            self._count_pass()
            return []
        events = super().select(0)
        if events:
            self._passes_at_this_instant = 0
        elif timeout is not None and timeout <= 0:
            self._count_pass()
        elif self.work_in_flight > 0:
            events = self._select_in_real_time()
            if not events:
                self.work_is_stuck = True
                self._fail(DeadlockError, f"executor work did not end within {self._max_real_wait_s} s of real time")
        elif timeout is None:
            events = self._select_without_timer()
        else:
            events = self._jump_unless_ready(timeout)
        return events

    def may_jump(self, to_s: float) -> bool:
        """Whether nothing real can come before an instant within the bound."""
        return self.now_s <= to_s <= self._end_s and not self.work_in_flight and not self._has_sockets()

    def _jump_unless_ready(self, by_s: float) -> list[tuple[selectors.SelectorKey, int]]:
        if self._has_sockets():
            time.sleep(_IO_GRACE_S)
            events = super().select(0)
            if events:
                return events
        if self.now_s + by_s > self._end_s:
            end_s = self._end_s
            # Tasks that are cancelled because of this error get as long again to clean up, but not for ever.
            self._end_s += self._max_virtual_s
            self._fail(TimeBoundError, f"the next timer lies beyond the bound of {end_s} s")
        # Exact when it matters: the last step towards a timer is a difference of close floats, which has no rounding.
        self.now_s += by_s
        self._passes_at_this_instant = 0
        return []

    def _select_without_timer(self) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._has_sockets() and threading.active_count() == 1:
            self._fail(DeadlockError, "nothing can wake the loop: no timer, no socket and no other thread")
        events = self._select_in_real_time()
        if not events:
            self._fail(
                DeadlockError,
                f"no timer is set, and no socket or thread woke the loop within {self._max_real_wait_s} s of real time",
            )
        return events

    def _select_in_real_time(self) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(self._max_real_wait_s)

    def _has_sockets(self) -> bool:
        return len(self.get_map()) > _OWN_DESCRIPTORS

    def _count_pass(self) -> None:
        self._passes_at_this_instant += 1
        if self._passes_at_this_instant > _MAX_PASSES_AT_ONE_INSTANT:
            self._passes_at_this_instant = 0
            self._fail(LivelockError, f"{_MAX_PASSES_AT_ONE_INSTANT} passes of the loop did not move the clock")

    def _fail(self, error: type[VirtualTimeError], why: str) -> NoReturn:
        raise error(f"at {self.now_s} s of virtual time: {why}. {_waiting_tasks()}")


def _waiting_tasks() -> str:
    tasks = sorted(asyncio.all_tasks(), key=lambda task: (len(task.get_name()), task.get_name()))
    if not tasks:
        return "No task is waiting."
    lines = [f"\n  {task.get_name()}: {_where(task)}" for task in tasks[:_MAX_TASKS_NAMED]]
    if len(tasks) > _MAX_TASKS_NAMED:
        lines.append(f"\n  and {len(tasks) - _MAX_TASKS_NAMED} more")
    return "Waiting:" + "".join(lines)


def _where(task: asyncio.Task[Any]) -> str:
    """Follow the chain of awaits down to the last line outside asyncio: that is the one its author knows."""
    place, waits_in = "unknown", ""
    awaited: object = task.get_coro()
    while inspect.iscoroutine(awaited):
        code, frame = awaited.cr_code, awaited.cr_frame
        if Path(code.co_filename).parent == _ASYNCIO_FOLDER:
            waits_in = f", in {code.co_qualname}"
        elif frame is not None:
            place, waits_in = f"{code.co_qualname} at {Path(code.co_filename).name}:{frame.f_lineno}", ""
        awaited = awaited.cr_await
    return place + waits_in
