"""One worker at a time changes something, and one that gave up its turn keeps no other waiting."""

import asyncio
import socket
from pathlib import Path

import pytest

from headgate.adapters.config import Config
from headgate.adapters.config.settings import Store
from headgate.adapters.switchboard import MIDDLE, Switchboard, UnansweredError
from headgate.cli import worker
from headgate.cli.workers import Parent

WITHIN_S = 10.0
"""Far less than a turn lasts that nobody ends."""


class Change:
    """A change that lasts until it is told to end."""

    def __init__(self):
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self):
        self.begun.set()
        await self.go.wait()
        return False


async def nothing():
    return False


def with_workers(test):
    """Run a test with two workers and who started them, on sockets, in one process."""

    async def run():
        parent = Parent(Config(Store(Path("unused.db"))), "127.0.0.1", ("127.0.0.1", 0), 2)
        answers = {"begin a change": parent._begin_change, "end a change": parent._end_change}
        parent._board = middle = Switchboard(MIDDLE, answers)
        middle.on_lost = parent._lost
        boards = [Switchboard(number, {}) for number in (1, 2)]
        for board in boards:
            here, there = socket.socketpair()
            await middle.connect(board.me, here)
            await board.connect(MIDDLE, there)
        try:
            async with asyncio.timeout(WITHIN_S):
                await test(parent, *(worker.Worker(board.me, 2, board) for board in boards))
        finally:
            for board in (middle, *boards):
                board.close()
            await asyncio.sleep(0)

    asyncio.run(run())


async def given_up(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("waits_too_long", [True, False])
def test_a_worker_that_no_longer_waits_for_its_turn_does_not_get_it(monkeypatch, waits_too_long):
    async def test(parent, one, other):
        change = Change()
        changing = asyncio.create_task(one.change_scheduler(change))
        await change.begun.wait()
        if waits_too_long:
            with monkeypatch.context() as patched:
                patched.setattr(worker, "CHANGE_WITHIN_S", 0.01)
                with pytest.raises(UnansweredError, match="did not answer within"):
                    await other.change_scheduler(nothing)
        else:
            waiting = asyncio.create_task(other.change_scheduler(nothing))
            while not parent._changing._waiters:  # noqa: ASYNC110 - sockets set no event
                await asyncio.sleep(0)
            await given_up(waiting)
        change.go.set()
        await changing
        await one.change_scheduler(nothing)

    with_workers(test)


def test_a_worker_that_gives_up_as_its_turn_comes_gives_it_back():
    async def test(parent, one, other):
        beginning = asyncio.create_task(other.change_scheduler(nothing))
        while parent._changer is None:  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)
        await given_up(beginning)
        await one.change_scheduler(nothing)

    with_workers(test)


def test_a_change_that_gives_up_ends_no_other_of_its_worker():
    async def test(parent, one, other):
        change = Change()
        changing = asyncio.create_task(one.change_scheduler(change))
        await change.begun.wait()
        waiting = asyncio.create_task(one.change_scheduler(nothing))
        while not parent._changing._waiters:  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)
        await given_up(waiting)
        while parent._changing._waiters:  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)
        behind = asyncio.create_task(other.change_scheduler(nothing))
        while not parent._changing._waiters:  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)
        change.go.set()
        await changing  # it raises where it is no longer the one that changes
        await behind

    with_workers(test)
