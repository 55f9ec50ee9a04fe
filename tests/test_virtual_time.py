import asyncio
import socket
import threading
import time

import pytest

from headgate.testing import virtual_time
from headgate.testing.virtual_time import (
    DeadlockError,
    LivelockError,
    TimeBoundError,
    VirtualClock,
    VirtualTimeLoop,
    run,
)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_thousand_agents_take_minutes_of_virtual_and_no_real_time() -> None:
    async def agent(number: int) -> None:
        for turn in range(20):
            await asyncio.sleep(5 + (number * 7 + turn * 13) % 27)

    async def fleet() -> float:
        await asyncio.gather(*(agent(number) for number in range(1_000)))
        return now_s()

    cpu_before_s = time.process_time()
    virtual_s = run(fleet())
    cpu_s = time.process_time() - cpu_before_s

    assert 300 < virtual_s < 600
    assert cpu_s < 1


def test_run_gives_what_the_coroutine_returns_and_raises_what_it_raises() -> None:
    async def answer() -> str:
        await asyncio.sleep(3_600)
        return "done"

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("as planned")

    assert run(answer()) == "done"
    with pytest.raises(LookupError, match="as planned"):
        run(fail())


def test_timers_run_in_the_order_of_their_times_at_exactly_their_times() -> None:
    async def main() -> list[tuple[float, float]]:
        seen: list[tuple[float, float]] = []

        async def wake_after(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            seen.append((delay_s, now_s()))

        await asyncio.gather(*(wake_after(delay_s) for delay_s in (9.0, 0.25, 4.5, 0.0, 86_399.0, 4.5000000001)))
        return seen

    assert run(main()) == [(at_s, at_s) for at_s in (0.0, 0.25, 4.5, 4.5000000001, 9.0, 86_399.0)]


def test_the_clock_starts_where_it_is_told_and_never_runs_a_timer_early() -> None:
    # At the size of a wall clock two neighbouring floats lie 240 ns apart, far more than asyncio's own resolution.
    start_s = 1_750_000_000.1

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for delay_s in (0.3, 1e-6, 1e-9, 7.7, 100_000.1):
            due_s = loop.time() + delay_s
            woken = asyncio.Event()
            loop.call_at(due_s, woken.set)
            await woken.wait()
            assert loop.time() == due_s

    run(main(), start_s=start_s, max_virtual_s=200_000)


def test_timeouts_are_virtual() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(600):
                await asyncio.sleep(601)
        async with asyncio.timeout(600):
            await asyncio.sleep(599)
        return now_s()

    assert run(main()) == 1_199


def test_a_cancelled_sleep_ends_at_once_and_its_timer_moves_nothing() -> None:
    async def main() -> float:
        sleeper = asyncio.create_task(asyncio.sleep(3_600))
        await asyncio.sleep(2)
        sleeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        await asyncio.sleep(1)
        return now_s()

    assert run(main()) == 3


def test_tasks_left_behind_are_cancelled_and_may_clean_up_in_virtual_time() -> None:
    cleaned_at_s: list[float] = []

    async def left_behind() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(30)
            cleaned_at_s.append(now_s())

    async def main() -> None:
        task = asyncio.create_task(left_behind())
        await asyncio.sleep(1)
        assert not task.done()

    run(main())
    assert cleaned_at_s == [31]


def test_a_deadlock_names_the_tasks_and_the_lines_they_wait_on() -> None:
    async def forgotten(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        await asyncio.sleep(12)
        await asyncio.gather(
            asyncio.create_task(forgotten(asyncio.Event()), name="agent-1"),
            asyncio.create_task(forgotten(asyncio.Event()), name="agent-2"),
        )

    with pytest.raises(DeadlockError) as caught:
        run(main())

    message = str(caught.value)
    assert "at 12.0 s" in message
    for name in ("agent-1", "agent-2"):
        assert f"{name}: test_a_deadlock_names_the_tasks_and_the_lines_they_wait_on.<locals>.forgotten at " in message
    assert "test_virtual_time.py:" in message
    assert "in Event.wait" in message


def test_a_deadlock_of_many_tasks_names_only_some() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(500)))

    with pytest.raises(DeadlockError, match="and 491 more"):
        run(main())


def test_a_timer_beyond_the_bound_is_an_error_not_an_endless_run() -> None:
    async def poll_for_ever() -> None:
        while True:
            await asyncio.sleep(10)
            polls.append(now_s())

    polls: list[float] = []
    with pytest.raises(TimeBoundError, match=r"(?s)bound of 65\.0 s.*poll_for_ever at "):
        run(poll_for_ever(), max_virtual_s=65)
    assert polls == [10, 20, 30, 40, 50, 60]


def test_a_task_stopped_by_the_bound_may_still_clean_up_in_virtual_time() -> None:
    cleaned_at_s: list[float] = []

    async def sleeps_too_long() -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(20)
            cleaned_at_s.append(now_s())

    with pytest.raises(TimeBoundError):
        run(sleeps_too_long(), max_virtual_s=15)
    assert cleaned_at_s == [20]


def test_callbacks_that_never_cease_are_an_error_not_an_endless_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_time, "_MAX_PASSES_AT_ONE_INSTANT", 1_000)

    async def sets_a_timer_that_is_always_due() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(5)
        while True:
            woken = asyncio.Event()
            loop.call_at(5, woken.set)
            await woken.wait()

    with pytest.raises(LivelockError, match="sets_a_timer_that_is_always_due"):
        run(sets_a_timer_that_is_always_due())


async def start_echo(delay_s: float) -> asyncio.Server:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                await asyncio.sleep(delay_s)
                writer.write(line)
        finally:
            writer.close()

    return await asyncio.start_server(echo, "127.0.0.1", 0)


async def talk(server: asyncio.Server, lines: int, timeout_s: float) -> None:
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for number in range(lines):
        writer.write(b"%d\n" % number)
        async with asyncio.timeout(timeout_s):
            assert await reader.readline() == b"%d\n" % number
    writer.close()
    await writer.wait_closed()


def test_an_answer_over_a_socket_comes_before_a_timeout_of_a_virtual_microsecond() -> None:
    async def main() -> float:
        async with await start_echo(delay_s=0) as server:
            await asyncio.gather(*(talk(server, lines=20, timeout_s=1e-6) for _ in range(5)))
        return now_s()

    assert run(main()) == 0


def test_a_server_that_sleeps_an_hour_answers_at_once_in_real_time() -> None:
    async def main() -> float:
        async with await start_echo(delay_s=3_600) as server:
            await asyncio.gather(*(talk(server, lines=3, timeout_s=3_601) for _ in range(5)))
        return now_s()

    assert run(main()) == 3 * 3_600


def test_a_socket_that_stays_silent_with_no_timer_set_is_a_deadlock() -> None:
    async def main() -> None:
        async with await start_echo(delay_s=0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()

    with pytest.raises(DeadlockError, match=r"(?s)no socket or thread woke the loop within 0\.02 s.*StreamReader"):
        run(main(), max_real_wait_s=0.02)


def test_data_that_the_kernel_delivers_a_moment_late_still_comes_before_the_next_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)  # noqa: FBT003 - its only parameter is positional
    monkeypatch.setattr(time, "sleep", lambda _: far.send(b"late"))

    async def main() -> float:
        async with asyncio.timeout(1):
            assert await asyncio.get_running_loop().sock_recv(near, 4) == b"late"
        return now_s()

    with near, far:
        assert run(main()) == 0


def work_some_milliseconds() -> int:
    # Holds the interpreter for several of its 5 ms turns, so that the loop's thread finds itself idle meanwhile.
    return sum(number * number for number in range(500_000))


def test_the_clock_stands_still_while_a_thread_works() -> None:
    async def main() -> tuple[float, float]:
        ticker = asyncio.create_task(asyncio.sleep(5))
        await asyncio.to_thread(work_some_milliseconds)
        after_work_s = now_s()
        await ticker
        return after_work_s, now_s()

    assert run(main()) == (0, 5)


def test_a_thread_outside_any_executor_may_wake_a_loop_without_timers() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake_late() -> None:
            work_some_milliseconds()
            loop.call_soon_threadsafe(woken.set)

        waker = threading.Thread(target=wake_late)
        waker.start()
        await woken.wait()
        waker.join()
        return now_s()

    assert run(main()) == 0


def test_the_clock_stands_still_while_the_threads_of_a_finished_run_end() -> None:
    async def main() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()

        def tick_for_ever() -> None:
            loop.call_later(1, tick_for_ever)

        tick_for_ever()
        given_up = asyncio.create_task(asyncio.to_thread(work_some_milliseconds))
        await asyncio.sleep(0)
        given_up.cancel()
        return loop

    assert run(main()).time() == 0


def test_a_thread_that_never_ends_is_a_deadlock_and_does_not_hang_the_end_of_the_run() -> None:
    gate = threading.Event()

    async def main() -> None:
        ticker = asyncio.create_task(asyncio.sleep(5))
        await asyncio.to_thread(gate.wait)
        await ticker

    try:
        with pytest.raises(DeadlockError, match="executor work did not end") as caught:
            run(main(), max_real_wait_s=0.02)
        assert caught.value.__context__ is None  # Shutting down did not wait for the thread a second time.
    finally:
        gate.set()


def test_the_loop_works_with_a_runner_of_ones_own() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(50))
        runner.run(asyncio.sleep(50))
        assert runner.get_loop().time() == 100


def test_the_clock_of_the_wall_moves_with_the_loop_and_can_be_set_back_and_forward() -> None:
    async def main() -> None:
        clock = VirtualClock()
        assert clock.now_s() == 1_750_000_000.0
        await asyncio.sleep(90)
        assert clock.now_s() == 1_750_000_090.0
        clock.step(-3_600)
        assert clock.now_s() == 1_749_996_490.0
        await asyncio.sleep(10)
        assert clock.now_s() == 1_749_996_500.0
        clock.step(3_600)
        assert clock.now_s() == 1_750_000_100.0
        assert await asyncio.to_thread(clock.now_s) == 1_750_000_100.0

    run(main())


def test_the_clock_of_the_wall_can_be_made_before_its_loop_runs() -> None:
    loop = VirtualTimeLoop(start_s=5)
    try:
        assert VirtualClock(loop, epoch_s=100).now_s() == 105
    finally:
        loop.close()
