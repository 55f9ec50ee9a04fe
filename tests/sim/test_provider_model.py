"""The provider's model: buckets that flow, what they lose, caches, and processes on the loop."""

import asyncio

import pytest

from headgate.core.limits import Rate
from headgate.sim.buckets import Bucket, Meters
from headgate.sim.processes import Processes, at_once
from headgate.sim.provider import Caches
from headgate.sim.workload import Round
from headgate.testing.virtual_time import run


def test_a_bucket_refills_flows_and_says_what_it_lost():
    bucket = Bucket(Rate("b", "account:main", "output_tokens", 600, 60, 100))
    bucket.advance(5.0, waiting=False)
    assert (bucket.level, bucket.lost, bucket.lost_waiting) == (100.0, 50.0, 0.0)
    bucket.take(80)
    bucket.flow = 15.0
    bucket.advance(9.0, waiting=True)
    assert (bucket.level, bucket.used, bucket.lost) == (0.0, 140.0, 50.0)
    bucket.flow = 0.0
    bucket.advance(29.0, waiting=True)
    assert (bucket.level, bucket.lost_waiting) == (100.0, 100.0)
    assert bucket.wait_s(100) == 0.0
    bucket.take(130)
    assert bucket.wait_s(20) == pytest.approx(5.0)
    assert bucket.wait_s(1_000) == pytest.approx(13.0)  # never: told to wait for a full bucket


def test_meters_count_for_how_long_anybody_waited():
    meters = Meters()
    meters.enters(1.0)
    meters.enters(2.0)
    meters.leaves(4.0)
    meters.leaves(6.0)
    meters.enters(8.0)
    assert meters.waited_s == 5.0
    assert meters.total_waited_s(10.0) == 7.0


def test_a_cache_lives_on_when_it_is_read():
    caches = Caches(life_s=300.0)
    caches.write("s", Round(10_000, 1), 0.0)
    later = Round(11_000, 1, known_tokens=10_000)
    assert caches.read("s", later, 299.0).cached_tokens == 10_000
    assert caches.read("s", later, 598.0).cached_tokens == 10_000
    assert caches.read("s", later, 899.0).uncached_tokens == 11_000
    assert caches.read("s", Round(2_000, 1, known_tokens=500), 10.0).cached_tokens == 0


def test_processes_sleep_wait_and_end():
    async def main() -> list[str]:
        loop, said = asyncio.get_running_loop(), []
        gate = loop.create_future()
        processes = Processes(loop)

        def sleeper(name: str, for_s: float):
            yield for_s
            said.append(f"{name} {loop.time():g}")
            if name == "late":
                gate.set_result(None)

        def waiter():
            yield gate
            said.append(f"through {loop.time():g}")

        processes.start(waiter())
        processes.start(sleeper("late", 5.0))
        processes.start(sleeper("early", 1.0), after_s=1.0)
        await processes.ended(within_s=None)
        return said

    assert run(main()) == ["early 2", "late 5", "through 5"]


def test_processes_are_broken_off_in_time_and_tidy_up():
    async def main() -> list[str]:
        loop, said = asyncio.get_running_loop(), []
        processes = Processes(loop)

        def endless():
            try:
                while True:
                    yield 1.0
            finally:
                said.append(f"ended at {loop.time():g}")

        processes.start(endless())
        await processes.ended(within_s=10.5)
        processes.break_off()
        return said

    assert run(main()) == ["ended at 10.5"]


def test_what_a_process_raises_is_raised():
    async def main() -> None:
        processes = Processes(asyncio.get_running_loop())

        def broken():
            yield 1.0
            raise KeyError("planted")

        processes.start(broken())
        await processes.ended(within_s=None)

    with pytest.raises(KeyError, match="planted"):
        run(main())


def test_a_coroutine_that_waits_is_not_run_at_once():
    with pytest.raises(AssertionError, match="waits"):
        at_once(asyncio.sleep(0))
