"""The upstream client against servers that do not answer, break off or dawdle, and callers that go away."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from http_peers import (
    HEADERS,
    KEY,
    OK,
    RUNNERS,
    Peer,
    Play,
    Runner,
    Script,
    answering,
    answering_once,
    chunked,
    client_for,
    everything,
    figures,
    get,
    playing,
    post,
    silent,
    ticks,
    until,
)

from headgate.adapters.providers.http import (
    Broken,
    HttpClient,
    HttpSettings,
    NoAnswer,
    NotSent,
    Timeouts,
)
from headgate.testing import virtual_time


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


# --- answers that are none, or break off


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "reset"),
        ([b"HTTP/1.1 200 OK\r\ncontent-le"], "reset"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n"], "reset"),
        ([b"SSH-2.0-OpenSSH\r\n"], "malformed"),
        ([b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi"], "malformed"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi"], "malformed"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"], "malformed"),
        ([b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], "malformed"),
        ([b"HTTP/1.1 101 Switching\r\n\r\n" + OK], "malformed"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000], "too_large"),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n"], "too_large"),
        ([b"HTTP/1.1 200 OK\r\n"] + [b"x-%d: y\r\n" % n for n in range(9)] + [b"x: y\r\n" * 12_000], "too_large"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 3000], "too_large"),
    ],
)
def test_no_usable_head_is_no_answer_and_is_not_sent_again(run: Runner, parts: list[bytes], why: str) -> None:
    async def main() -> None:
        async with playing(answering_once(*parts)) as script, client_for() as client:
            with pytest.raises(NoAnswer) as caught:
                await post(client, script.origin)
            assert caught.value.why == why
            assert caught.value.failure.sent
            assert str(caught.value).startswith(script.origin.label)
            assert KEY.decode() not in str(caught.value)
            assert figures(client, script) == (0, 0, 0, 0)
            assert len(script.requests) == 1

    run(main())


def test_what_is_wrong_with_an_answer_is_said() -> None:
    async def main() -> None:
        switch = b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
        async with playing(answering_once(switch), answering_once(b"SSH-2.0\r\n")) as script, client_for() as client:
            with pytest.raises(NoAnswer, match="the server switched protocols, which nobody asked for"):
                await post(client, script.origin)
            with pytest.raises(NoAnswer, match=r"not HTTP/1\.1: Expected HTTP/"):
                await post(client, script.origin)

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("parts", "body", "why"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"hi"], b"hi", "reset"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"], b"", "reset"),
        ([chunked(b"one", b"two")[:-5]], b"onetwo", "reset"),
        ([chunked(b"one")[:-1]], b"one", "reset"),
        ([chunked(b"one")[:-9]], b"o", "reset"),
        ([chunked(b"one")[:-5], b"zz\r\n"], b"one", "malformed"),
        ([chunked(b"one")[:-5], b"3\r\nabcd\r\n"], b"oneabc", "malformed"),
        ([chunked(b"one")[:-2], *[b"x: " + b"y" * 30_000 + b"\r\n"] * 3], b"one", "malformed"),
        ([chunked(b"one")[:-2], b"x: " + b"y" * 70_000], b"one", "malformed"),
    ],
)
def test_a_body_that_breaks_off_gives_what_came_and_then_an_error(
    run: Runner, parts: list[bytes], body: bytes, why: str
) -> None:
    async def main() -> None:
        async with playing(answering_once(*parts)) as script, client_for() as client:
            async with client.send("POST", script.origin, b"/", headers=HEADERS) as reply:
                got, error = await everything(reply)
                assert (got, error.why if error else None) == (body, why)
                with pytest.raises(Broken):
                    await reply.read(100)
            assert figures(client, script) == (0, 0, 0, 0)

    run(main())


def test_a_reset_does_not_pass_for_the_end_of_a_body_without_length(run: Runner) -> None:
    async def main() -> None:
        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\n\r\nhalf")
            peer.reset()

        async with playing(play) as script, client_for() as client:
            with pytest.raises(Broken) as caught:
                await post(client, script.origin)
            assert caught.value.why == "reset"

    run(main())


def test_a_body_larger_than_wanted_is_an_error_and_is_not_read_on(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(chunked(b"x" * 101))) as script, client_for() as client:
            async with client.send("POST", script.origin, b"/", headers=[]) as reply:
                with pytest.raises(Broken, match="limit of 100 bytes") as caught:
                    await reply.read(100)
            assert caught.value.why == "too_large"

    run(main())


# --- leaving early


def test_leaving_before_the_end_closes_the_connection_at_once(run: Runner) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
            assert await peer.reader.read() == b""
            gone.set()

        async with playing(play) as script, client_for() as client:
            async with client.send("POST", script.origin, b"/", headers=[]) as reply:
                assert await anext(reply) == b"hi"
            assert figures(client, script) == (0, 0, 0, 0)
            await gone.wait()
            with pytest.raises(Broken, match="not wanted"):
                await anext(reply)

    run(main())


def still_open(script: Script) -> int:
    return sum(not peer.writer.transport.is_closing() for peer in script.peers)


def cancel_at_every_step(
    run: Runner, call: Callable[[HttpClient, Script], Awaitable[object]], *plays: Play
) -> list[int]:
    """Cancel a call after each number of loop passes; give how many connections were open at those moments."""
    opened = []
    ended = False

    async def main(passes: int) -> None:
        nonlocal ended
        settings = HttpSettings(connections_per_host=1)
        async with playing(*plays) as script, client_for(settings) as client:
            task = asyncio.ensure_future(call(client, script))
            await ticks(passes)
            ended = task.done()
            opened.append(len(script.peers))
            task.cancel()
            await asyncio.wait([task])
            assert figures(client, script)[2:] == (0, 0), f"still in use after {passes} passes"
            await until(lambda: still_open(script) == figures(client, script)[0])
            pool = client._pools.get(script.origin)
            assert pool is None or pool._places == len(pool._open), passes
            # The one place is free again: a call that needs it gets it.
            script.plays = (answering(OK),)
            assert (await get(client, script.origin, timeouts=Timeouts(pool_s=0.001)))[0] == 200

    passes = 0
    while not ended:
        run(main(passes))
        passes += 1
        assert passes < 500
    return opened


def test_a_call_cancelled_between_any_two_steps_leaks_nothing(run: Runner) -> None:
    parts = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", b"cd"]

    async def call(client: HttpClient, script: Script) -> None:
        await post(client, script.origin)

    opened = cancel_at_every_step(run, call, answering(*parts))
    assert min(opened) == 0
    assert max(opened) == 1


def test_calls_that_hand_connections_on_leak_nothing_when_cancelled_at_any_step(run: Runner) -> None:
    async def call(client: HttpClient, script: Script) -> None:
        await asyncio.gather(*[get(client, script.origin) for _ in range(3)])

    cancel_at_every_step(run, call, answering(OK), answering(OK))
    cancel_at_every_step(run, call, answering_once(OK), answering_once(OK), answering_once(OK))


def test_a_waiting_call_that_is_cancelled_does_not_keep_the_next_from_its_turn(run: Runner) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def play(peer: Peer) -> None:
            while await peer.request():
                await go_on.wait()
                await peer.say(OK)

        async with playing(play) as script, client_for(HttpSettings(connections_per_host=1)) as client:
            calls = [asyncio.create_task(post(client, script.origin)) for _ in range(4)]
            await until(lambda: figures(client, script)[3] == 3)
            calls[1].cancel()
            go_on.set()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [tuple, asyncio.CancelledError, tuple, tuple]

    run(main())


# --- time


def test_the_time_for_the_head_is_bounded_however_it_drips() -> None:
    async def main() -> None:
        async def drips(peer: Peer) -> None:
            await peer.request()
            while True:
                await peer.say(b"HTTP/1.1 103 Early Hints\r\n\r\n")
                await asyncio.sleep(10)

        async with playing(drips) as script, client_for() as client:
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(NoAnswer, match="within 600 s") as caught:
                await post(client, script.origin)
            assert caught.value.why == "timeout"
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(600, abs=0.01)
            assert figures(client, script) == (0, 0, 0, 0)

    virtual_time.run(main())


def test_the_time_between_two_parts_of_the_body_is_bounded_and_begins_anew_with_each() -> None:
    async def main() -> None:
        async def pauses(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
            for _ in range(3):
                await asyncio.sleep(299)
                await peer.say(b"x")
            await peer.request()

        async with playing(pauses) as script, client_for() as client:
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(Broken, match="300 s") as caught:
                await post(client, script.origin)
            assert caught.value.why == "stalled"
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(3 * 299 + 300, abs=0.01)

    virtual_time.run(main())


def test_a_call_shorter_than_the_last_one_has_its_own_times() -> None:
    async def main() -> None:
        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(OK)
            await peer.request()

        async with playing(play, silent) as script, client_for() as client:
            await post(client, script.origin, timeouts=Timeouts(first_byte_s=100))
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(NoAnswer, match="within 5 s"):
                await get(client, script.origin, timeouts=Timeouts(first_byte_s=5))
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(5, abs=0.01)

    virtual_time.run(main())


def test_the_wait_for_a_connection_is_bounded() -> None:
    async def main() -> None:
        async with playing(silent) as script, client_for(HttpSettings(connections_per_host=1)) as client:
            first = asyncio.create_task(post(client, script.origin))
            await until(lambda: figures(client, script)[0] == 1)
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(NotSent, match="within 30 s") as caught:
                await post(client, script.origin)
            assert caught.value.why == "pool"
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(30, abs=0.01)
            assert figures(client, script) == (1, 0, 1, 0)
            first.cancel()
            await asyncio.wait([first])

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("header", "kept_s"),
    [(b"", 300), (b"Keep-Alive: timeout=5, max=100\r\n", 4), (b"keep-alive: timeout=9999\r\n", 300)],
)
def test_an_idle_connection_is_closed_before_the_server_would(header: bytes, kept_s: int) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\n" + header + b"content-length: 2\r\n\r\nhi"
        async with playing(answering(answer)) as script, client_for() as client:
            for _ in range(3):
                await post(client, script.origin)
                await asyncio.sleep(kept_s - 0.5)
            assert len(script.peers) == 1
            await asyncio.sleep(1)
            assert figures(client, script) == (0, 0, 0, 0)

    virtual_time.run(main())


def test_a_slow_reader_stops_the_server_and_is_no_fault_of_it() -> None:
    async def main() -> None:
        body = b"x" * 20_000_000
        sent = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
            await peer.say(body)
            sent.set()
            await peer.request()

        async with playing(play) as script, client_for() as client:
            async with client.send("POST", script.origin, b"/", headers=[]) as reply:
                await asyncio.sleep(3000)
                assert reply.unread_bytes <= (128 + 256) * 1024
                assert not sent.is_set()
                got = 0
                async for piece in reply:
                    got += len(piece)
                    assert len(piece) <= (128 + 256) * 1024
            assert got == len(body)
            assert figures(client, script) == (1, 1, 0, 0)

    virtual_time.run(main())
