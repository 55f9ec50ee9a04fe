"""A worker that ends is started anew, after a pause that doubles, and not for ever."""

import asyncio
import errno
import socket
from pathlib import Path

import psutil
import pytest

from headgate.adapters.config import Config
from headgate.adapters.config.settings import Store
from headgate.cli import workers
from headgate.cli.workers import FIRST_PAUSE_S, MOST_ENDS, MOST_PAUSE_S, NotStartedError, Parent, pause_after_s


def test_the_pause_doubles_up_to_a_bound_and_then_the_worker_stays_down():
    pauses = [pause_after_s(ends) for ends in range(1, MOST_ENDS + 1)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MOST_PAUSE_S
    assert sum(pauses) < 120
    assert pause_after_s(MOST_ENDS + 1) is None


class OneThatLives:
    """What the operating system gives for a process that was started."""

    pid = 4711

    async def wait(self):
        await asyncio.get_running_loop().create_future()

    def kill(self):
        pass


class Unreachable:
    """A switchboard that tells what was connected to it."""

    def __init__(self):
        self.connected = asyncio.Event()

    async def connect(self, _number, plug):
        self.plug = plug
        self.connected.set()


def keeping(monkeypatch, faults):
    """Give one that is to keep a worker whose start fails so often."""

    async def start(*_arguments, **_more):
        for fault in faults:
            faults.remove(fault)
            raise fault
        return OneThatLives()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    monkeypatch.setattr(workers, "FIRST_PAUSE_S", 0.0)
    parent = Parent(Config(Store(Path("unused.db"))), "127.0.0.1", ("127.0.0.1", 0), 1)
    parent._board = Unreachable()
    return parent


def test_a_worker_that_cannot_be_started_is_tried_again_and_leaves_no_socket_open(monkeypatch, caplog):
    full = OSError(errno.EMFILE, "Too many open files")

    async def test():
        parent = keeping(monkeypatch, [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), full])
        parent._have_served = True
        here = psutil.Process()
        before = here.num_fds()
        task = asyncio.create_task(parent._keep(1))
        connecting = asyncio.create_task(parent._board.connected.wait())
        await asyncio.wait((task, connecting), return_when=asyncio.FIRST_COMPLETED)
        assert connecting.done(), task
        assert isinstance(parent._board.plug, socket.socket)
        parent._board.plug.close()
        parent._workers[1].connections.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert here.num_fds() == before

    asyncio.run(test())
    assert [each.getMessage().partition(";")[0] for each in caplog.records if each.name == "headgate.workers"] == [
        f"worker 1 could not be started ([Errno {errno.EAGAIN}] Resource temporarily unavailable)",
        "worker 1 could not be started ([Errno 24] Too many open files)",
    ]


def test_workers_of_which_one_cannot_be_started_at_first_are_not_served_with(monkeypatch):
    async def test():
        parent = keeping(monkeypatch, [OSError(errno.ENOMEM, "Cannot allocate memory")])
        with pytest.raises(NotStartedError, match="Cannot allocate memory"):
            await parent._keep(1)

    asyncio.run(test())
