"""Processes that serve together ask and tell one another; whoever does not answer is named within a bound."""

import asyncio
import socket

import pytest

from headgate.adapters.switchboard import MIDDLE, MOST_UNREAD, Switchboard, UnansweredError
from headgate.core.errors import CallerError, StoreError


async def echo(body):
    return body


async def never(_body):
    await asyncio.get_running_loop().create_future()


async def unfit(_body):
    raise CallerError("that is no number")


async def broken(_body):
    raise StoreError("the disk is full")


async def numbers(most):
    for number in range(most):
        yield f"number {number}"


ANSWERS = {"echo": echo, "never": never, "unfit": unfit, "broken": broken}


def with_boards(test):
    """Run a test with one in the middle and two beside it, as processes have them."""

    async def run():
        middle = Switchboard(MIDDLE, ANSWERS)
        sides = [Switchboard(number, ANSWERS, {"numbers": numbers}) for number in (1, 2)]
        for side in sides:
            here, there = socket.socketpair()
            await middle.connect(side.me, here)
            await side.connect(MIDDLE, there)
        try:
            await test(middle, *sides)
        finally:
            for board in (middle, *sides):
                board.close()
            await asyncio.sleep(0)

    asyncio.run(run())


def test_all_ask_all_through_the_one_in_the_middle():
    async def test(middle, one, other):
        body = {"bytes": b"\xff\x00", "list": [1, None, True]}
        assert await one.ask(2, "echo", body) == body
        assert await other.ask(1, "echo", "x" * 3_000_000) == "x" * 3_000_000
        assert await one.ask(MIDDLE, "echo", 1) == await middle.ask(2, "echo", 1) == 1

    with_boards(test)


def test_what_cannot_be_done_is_told_as_the_askers_fault_and_all_else_as_no_answer():
    async def test(_middle, one, _other):
        with pytest.raises(CallerError, match="that is no number"):
            await one.ask(2, "unfit")
        with pytest.raises(UnansweredError, match="the disk is full"):
            await one.ask(2, "broken")
        with pytest.raises(UnansweredError, match="worker 2 does not serve yet"):
            await one.ask(2, "something new")
        with pytest.raises(UnansweredError, match=r"worker 2 did not answer within 0\.01 s"):
            await one.ask(2, "never", within_s=0.01)

    with_boards(test)


def test_nobody_waits_for_one_that_has_gone():
    async def test(middle, one, other):
        lost = []
        middle.on_lost = lost.append
        waiting = [asyncio.create_task(each.ask(2, "never", within_s=60)) for each in (one, middle)]
        while len(other._working) < 2:  # noqa: ASYNC110 - sockets set no event
            await asyncio.sleep(0)
        other.close()
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, UnansweredError)
            assert "worker 2 has gone" in str(each)
        assert lost == [2]
        with pytest.raises(UnansweredError, match="worker 2 is not there"):
            await one.ask(2, "echo")

    with_boards(test)


def test_a_stream_comes_in_order_and_a_slow_reader_is_told_what_it_missed():
    async def test(_middle, one, _other):
        async with one.follow(2, "numbers", 3) as pieces:
            assert [piece async for piece in pieces] == ["number 0", "number 1", "number 2"]
        async with one.follow(2, "numbers", MOST_UNREAD + 5) as pieces:
            ((_, stream),) = one._heard.values()
            while not stream.ended:  # noqa: ASYNC110 - sockets set no event
                await asyncio.sleep(0)
            found = [piece async for piece in pieces]
        assert found[:2] == [5, "number 5"]
        assert len(found) == 1 + MOST_UNREAD

    with_boards(test)


def test_a_stream_that_nobody_reads_any_more_is_stopped():
    async def test(_middle, one, other):
        stopped = asyncio.Event()

        async def endless(_body):
            try:
                yield 0
                await never(None)
            finally:
                stopped.set()

        other.streams["endless"] = endless
        async with one.follow(2, "endless") as pieces:
            assert await anext(pieces) == 0
        async with asyncio.timeout(10):
            await stopped.wait()

    with_boards(test)


async def started_in_place_of(board, middle, streams=None):
    """Kill a process, and start another that has its number and counts from 1 again."""
    for way in list(board._ways.values()):
        way.transport.abort()
    while middle.has(board.me):  # noqa: ASYNC110 - sockets set no event
        await asyncio.sleep(0)
    anew = Switchboard(board.me, ANSWERS, streams)
    here, there = socket.socketpair()
    await middle.connect(board.me, here)
    await anew.connect(MIDDLE, there)
    return anew


def test_an_answer_to_one_that_died_is_not_given_to_the_one_started_in_its_place():
    async def test(middle, one, other):
        asked, answer = asyncio.Queue(), {"admin": asyncio.Event(), "key": asyncio.Event()}

        async def what_may_be_seen(who):
            asked.put_nowait(who)
            try:
                await answer[who].wait()
            except asyncio.CancelledError:
                await answer[who].wait()  # it cannot be ended at once, as what a thread does
            return f"what {who} may see"

        other.answers["see"] = what_may_be_seen
        lost = asyncio.create_task(one.ask(2, "see", "admin", within_s=60))
        assert await asked.get() == "admin"
        anew = await started_in_place_of(one, middle)
        with pytest.raises(UnansweredError):
            await lost
        seen = asyncio.create_task(anew.ask(2, "see", "key", within_s=60))
        assert await asked.get() == "key"
        answer["admin"].set()
        assert await anew.ask(2, "echo", "what came before has arrived") == "what came before has arrived"
        answer["key"].set()
        assert await seen == "what key may see"
        anew.close()

    with_boards(test)


def test_events_for_one_that_died_end_at_once_and_never_reach_the_one_started_in_its_place():
    async def test(middle, one, other):
        begun, ended = asyncio.Queue(), asyncio.Queue()
        more = {"admin": asyncio.Event(), "key": asyncio.Event()}

        async def events(who):
            begun.put_nowait(who)
            try:
                while True:
                    await more[who].wait()
                    more[who].clear()
                    yield f"what {who} may see"
            finally:
                ended.put_nowait(who)

        other.streams["events"] = events

        async def follow(board, who, found):
            async with board.follow(2, "events", who) as pieces:
                async for piece in pieces:
                    found.put_nowait(piece)

        lost = asyncio.create_task(follow(one, "admin", asyncio.Queue()))
        assert await begun.get() == "admin"
        anew = await started_in_place_of(one, middle)
        async with asyncio.timeout(10):
            await lost
            assert await ended.get() == "admin", "nothing is told to one that died"
        seen = asyncio.Queue()
        following = asyncio.create_task(follow(anew, "key", seen))
        assert await begun.get() == "key"
        for each in more.values():
            each.set()
        assert await seen.get() == "what key may see"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        anew.close()

    with_boards(test)


def test_nobody_speaks_for_another():
    async def test(middle, _one, other):
        noted = []

        async def note(body):
            noted.append(body)

        middle.answers["note"] = note
        other.me = 1  # as it says
        other.tell(MIDDLE, "note", "forged")
        other.me = 2
        await other.ask(MIDDLE, "note", "its own")
        assert noted == ["its own"]

    with_boards(test)
