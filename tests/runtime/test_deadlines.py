"""Many deadlines behind one timer: each is told at its instant, and nobody who has left."""

import asyncio
import random

from headgate.runtime.deadlines import Deadlines
from headgate.testing.virtual_time import run


def test_each_is_told_at_its_own_instant_and_in_order() -> None:
    async def told() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        heard: list[tuple[str, float]] = []
        deadlines: Deadlines[str] = Deadlines(lambda name: heard.append((name, loop.time())))
        for name, left_s in (("third", 30.0), ("first", 10.0), ("second", 20.0), ("with it", 20.0), ("at once", 0.0)):
            deadlines.add(name, left_s)
        await asyncio.sleep(60)
        return heard

    assert run(told()) == [("at once", 0.0), ("first", 10.0), ("second", 20.0), ("with it", 20.0), ("third", 30.0)]


def test_who_has_left_is_told_nothing_and_leaves_no_timer() -> None:
    async def told() -> tuple[list[int], int, float]:
        heard: list[int] = []
        deadlines: Deadlines[int] = Deadlines(heard.append)
        chooser = random.Random(3)
        numbers = [deadlines.add(each, chooser.uniform(1.0, 600.0)) for each in range(1_000)]
        stays = deadlines.add(-1, 300.0)
        for number in numbers:
            deadlines.remove(number)
        kept = len(deadlines._due)
        await asyncio.sleep(400)
        deadlines.remove(stays)
        deadlines.remove(stays)  # twice is once
        left = deadlines.add(-2, 100.0)
        deadlines.remove(left)
        return heard, kept, float("inf") if deadlines._timer is None else deadlines._timer.when()

    heard, kept, when = run(told())
    assert heard == [-1]
    assert kept <= 70  # those who left are dropped: what is kept is bounded by who waits
    assert when == float("inf")


def test_one_that_comes_while_others_are_told_is_told_too() -> None:
    async def told() -> list[str]:
        heard: list[str] = []

        def passed(name: str) -> None:
            heard.append(name)
            if name == "first":
                deadlines.add("late comer", 5.0)

        deadlines: Deadlines[str] = Deadlines(passed)
        deadlines.add("first", 1.0)
        deadlines.add("last", 10.0)
        await asyncio.sleep(20)
        return heard

    assert run(told()) == ["first", "late comer", "last"]
