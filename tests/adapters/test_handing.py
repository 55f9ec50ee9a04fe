"""One process accepts connections and hands each on to another: evenly, and none is lost where one has gone."""

import asyncio
import socket
from contextlib import ExitStack, closing

from headgate.adapters.handing import Handed, Handing
from headgate.adapters.server import listeners


class End:
    """A worker's end, in this process: what it took, and what closes one."""

    def __init__(self, handing: Handing, number: int) -> None:
        here, there = socket.socketpair()
        self.took: list[socket.socket] = []
        self.handed = Handed(there, self.took.append)
        handing.add(number, here)

    def close(self) -> None:
        self.handed.end()
        for connection in self.took:
            connection.close()

    def close_one(self) -> None:
        self.took.pop().close()
        self.handed.closed()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)


def with_handing(test):
    async def run():
        found = listeners("127.0.0.1", 0)
        handing = Handing(found)
        with ExitStack() as stack:

            def connect(number):
                return [stack.enter_context(closing(socket.create_connection(address))) for _ in range(number)]

            address = found[0].getsockname()

            def worker(number):
                return stack.enter_context(closing(End(handing, number)))

            try:
                await test(handing, connect, worker)
            finally:
                for number in list(handing.counts):
                    handing.remove(number)
                handing.stop()

    asyncio.run(run())


def test_each_connection_goes_where_there_are_fewest():
    async def test(handing, connect, worker):
        one, other = worker(1), worker(2)
        connect(64)
        await until(lambda: len(one.took) + len(other.took) == 64)
        assert (len(one.took), len(other.took)) == (32, 32)
        for _ in range(20):
            one.close_one()
        await until(lambda: handing.counts == {1: 12, 2: 32})
        connect(20)
        await until(lambda: len(one.took) + len(other.took) == 64)
        assert handing.counts == {1: 32, 2: 32}

    with_handing(test)


def test_a_worker_that_does_not_answer_is_spared_until_it_does():
    async def test(handing, connect, worker):
        one, other = worker(1), worker(2)
        handing.spare(1, wanted=True)
        connect(4)
        await until(lambda: len(other.took) == 4)
        handing.spare(1, wanted=False)
        connect(4)
        await until(lambda: len(one.took) == 4)
        for number in (1, 2):  # then there is nobody better
            handing.spare(number, wanted=True)
        connect(2)
        await until(lambda: len(one.took) + len(other.took) == 10)

    with_handing(test)


def test_without_a_worker_connections_wait_and_one_that_has_gone_gets_none():
    async def test(handing, connect, worker):
        connect(3)
        await asyncio.sleep(0)
        first = worker(1)
        await until(lambda: len(first.took) == 3)
        first.handed.end()
        await until(lambda: handing.counts == {})
        connect(2)
        second = worker(1)
        await until(lambda: len(second.took) == 2)

    with_handing(test)


def test_what_is_handed_on_is_the_connection_itself():
    async def test(handing, connect, worker):
        end = worker(1)
        (client,) = connect(1)
        await until(lambda: end.took)
        client.sendall(b"hold the gate")
        end.took[0].settimeout(5)
        assert end.took[0].recv(100) == b"hold the gate"

    with_handing(test)
