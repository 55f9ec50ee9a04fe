"""The connections that the upstream client keeps: which one a call gets, how many there are, who waits."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from http_peers import (
    OK,
    RUNNERS,
    Peer,
    Runner,
    Script,
    answering,
    answering_once,
    client_for,
    figures,
    get,
    playing,
    post,
    silent,
    ticks,
    until,
)

from headgate.adapters.providers.http import HttpClient, HttpSettings, NoAnswer, NotSent, Origin, Timeouts
from headgate.adapters.providers.http_pool import HostPool
from headgate.testing import virtual_time


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


def test_the_connection_used_last_is_used_first(run: Runner) -> None:
    async def main() -> None:
        both = asyncio.Barrier(2)
        first_is_done = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await both.wait()
            if peer.number == 1:
                await first_is_done.wait()
            await peer.say(OK)
            await answering(OK)(peer)

        async with playing(play) as script, client_for() as client:
            calls = [asyncio.create_task(post(client, script.origin)) for _ in range(2)]
            await until(lambda: figures(client, script)[1] == 1)
            first_is_done.set()
            await asyncio.gather(*calls)
            for _ in range(3):
                await post(client, script.origin)
            assert [len(peer.requests) for peer in script.peers] == [1, 4]

    run(main())


def test_a_connection_is_free_as_soon_as_the_body_has_arrived(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script, client_for() as client:
            async with client.send("POST", script.origin, b"/", headers=[]) as unread:
                await post(client, script.origin)
                assert await unread.read(2) == b"hi"
            assert len(script.peers) == 1

    run(main())


def test_nagle_is_off_and_nothing_is_left_open(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script:
            client = HttpClient()
            await post(client, script.origin)
            (connection,) = client._pools[script.origin]._open
            assert connection._transport is not None
            plug = connection._transport.get_extra_info("socket")
            assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            await client.close()
            assert not connection.usable
            assert connection._parser is None
            assert await script.peers[0].reader.read() == b""

    run(main())


async def dies_on_its_second_request(peer: Peer) -> None:
    await peer.request()
    await peer.say(OK)
    await peer.request()


def test_a_call_that_a_used_connection_may_have_brought_is_not_sent_again(run: Runner) -> None:
    async def main() -> None:
        async with playing(dies_on_its_second_request, answering(OK)) as script, client_for() as client:
            await post(client, script.origin)
            with pytest.raises(NoAnswer) as caught:
                await post(client, script.origin)
            # It may have been worked on and charged: another attempt is for those to make who count it.
            assert (caught.value.failure.sent, caught.value.failure.retryable) == (True, True)
            assert len(script.requests) == 2
            assert await post(client, script.origin) == (200, b"hi")

    run(main())


def test_a_connection_that_its_server_has_just_closed_is_not_written_to(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script, client_for() as client:
            await post(client, script.origin)
            with socket.socket(fileno=os.dup(script.peers[0].writer.get_extra_info("socket").fileno())) as plug:
                plug.shutdown(socket.SHUT_WR)  # the client's loop has had no turn to notice
            assert await post(client, script.origin) == (200, b"hi")
            assert [len(peer.requests) for peer in script.peers] == [1, 1]
            assert client.stats()[f"http://{script.origin.label}"].stale_retries == 0

    run(main())


def test_a_question_that_changes_nothing_is_asked_again_when_its_connection_was_stale(run: Runner) -> None:
    async def main() -> None:
        async with playing(dies_on_its_second_request, answering(OK)) as script, client_for() as client:
            for _ in range(3):
                assert await get(client, script.origin) == (200, b"hi")
            stats = client.stats()[f"http://{script.origin.label}"]
            assert (stats.opened, stats.reused, stats.stale_retries) == (2, 2, 1)

    run(main())


def test_a_stale_connection_is_replaced_by_a_new_one_even_when_all_places_are_taken(run: Runner) -> None:
    async def main() -> None:
        both = asyncio.Barrier(2)

        async def dies_after_one(peer: Peer) -> None:
            await peer.request()
            await both.wait()
            await peer.say(OK)
            await peer.request()

        settings = HttpSettings(connections_per_host=2)
        async with playing(dies_after_one, dies_after_one, answering(OK)) as script, client_for(settings) as client:
            await asyncio.gather(get(client, script.origin), get(client, script.origin))
            assert figures(client, script) == (2, 2, 0, 0)
            assert await get(client, script.origin) == (200, b"hi")
            assert [len(peer.requests) for peer in script.peers[:3]] in ([2, 1, 1], [1, 2, 1])

    run(main())


def test_a_second_stale_connection_is_an_error(run: Runner) -> None:
    async def main() -> None:
        async with playing(dies_on_its_second_request, answering_once()) as script, client_for() as client:
            await get(client, script.origin)
            with pytest.raises(NoAnswer):
                await get(client, script.origin)
            assert len(script.requests) == 3

    run(main())


def test_one_byte_of_an_answer_forbids_to_send_again(run: Runner) -> None:
    async def main() -> None:
        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(OK)
            await peer.request()
            await peer.say(b"H")

        async with playing(play) as script, client_for() as client:
            await get(client, script.origin)
            with pytest.raises(NoAnswer):
                await get(client, script.origin)
            assert len(script.requests) == 2

    run(main())


def test_an_idle_connection_that_speaks_or_closes_is_given_up(run: Runner) -> None:
    async def main() -> None:
        said = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(OK)
            await said.wait()
            await peer.say(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
            assert await peer.request() == b""

        async with playing(play, answering_once(OK), answering(OK)) as script, client_for() as client:
            await post(client, script.origin)
            said.set()
            await until(lambda: not figures(client, script)[0])
            await post(client, script.origin)
            await until(lambda: not figures(client, script)[0])
            await post(client, script.origin)
            assert client.stats()[f"http://{script.origin.label}"].stale_retries == 0

    run(main())


def test_a_connection_known_to_be_closing_is_not_tried(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script, client_for() as client:
            await post(client, script.origin)
            (connection,) = client._pools[script.origin]._open
            assert connection._transport is not None
            connection._transport.close()
            await post(client, script.origin)
            assert client.stats()[f"http://{script.origin.label}"].stale_retries == 0

    run(main())


def test_whoever_waits_gets_the_place_of_a_connection_that_closes(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering_once(OK)) as script, client_for(HttpSettings(connections_per_host=1)) as client:
            calls = [get(client, script.origin, timeouts=Timeouts(pool_s=1)) for _ in range(5)]
            assert await asyncio.gather(*calls) == [(200, b"hi")] * 5

    run(main())


@asynccontextmanager
async def pool_of(script: Script, connections: int) -> AsyncIterator[HostPool]:
    pool = HostPool(script.origin, HttpSettings(connections_per_host=connections), None)
    try:
        yield pool
    finally:
        await pool.close()


def test_a_fresh_connection_takes_the_place_of_an_idle_one(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script, pool_of(script, 2) as pool:
            _, lain = [await pool.acquire(Timeouts(), 0.0) for _ in range(2)]
            pool.idle(lain)
            assert await pool.acquire(Timeouts(), 0.0, fresh=True) is not lain
            assert (pool.stats().open, pool.stats().idle) == (2, 0)

    run(main())


def test_a_call_that_tries_again_goes_before_those_that_have_yet_to_begin(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script, pool_of(script, 1) as pool:
            connection = await pool.acquire(Timeouts(), 0.0)
            later = asyncio.create_task(pool.acquire(Timeouts(), 0.0))
            await until(lambda: pool.stats().waiting == 1)
            again = asyncio.create_task(pool.acquire(Timeouts(), 0.0, fresh=True))
            await until(lambda: pool.stats().waiting == 2)
            pool.idle(connection)
            new = await again
            assert new is not connection
            assert not later.done()
            pool.idle(new)
            assert await later is new

    run(main())


def test_a_connection_that_dies_while_it_is_handed_over_costs_only_another_wait(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script, pool_of(script, 1) as pool:
            connection = await pool.acquire(Timeouts(), 0.0)
            first, second, third = [asyncio.create_task(pool.acquire(Timeouts(), 0.0)) for _ in range(3)]
            await until(lambda: pool.stats().waiting == 3)
            pool.idle(connection)
            connection.abort()
            got = await second
            assert got is not connection
            await until(lambda: pool.stats().waiting == 2)
            pool.idle(got)
            got = await first
            assert pool.stats().open == 1
            assert not third.done()
            pool.idle(got)
            assert await third is got

    run(main())


def test_a_connection_lost_before_its_call_began_was_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def connected(*_: object) -> None:
            pass

        async def at_once(factory: Callable[[], asyncio.Protocol], *, sock: socket.socket, **_: object) -> None:
            sock.close()
            protocol = factory()
            protocol.connection_made(asyncio.Transport())
            protocol.connection_lost(None)

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", connected)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", at_once)
        async with client_for() as client:
            with pytest.raises(NotSent, match="at once"):
                await post(client, Origin("http", "127.0.0.1", 9))
            assert client._pools[Origin("http", "127.0.0.1", 9)].is_unused

    virtual_time.run(main())


def test_a_connection_that_is_made_while_the_client_closes_is_closed_too(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script:
            client = HttpClient()
            call = asyncio.create_task(post(client, script.origin))
            await until(lambda: bool(client.stats()))
            await client.close()
            with pytest.raises(NotSent, match="closed"):
                await call
            await until(lambda: all(peer.writer.transport.is_closing() for peer in script.peers))
            assert figures(client, script) == (0, 0, 0, 0)

    run(main())


def test_more_calls_than_connections_wait_their_turn(run: Runner) -> None:
    async def main() -> None:
        now = most = 0

        async def play(peer: Peer) -> None:
            nonlocal now, most
            while await peer.request():
                now += 1
                most = max(most, now)
                await ticks(3)
                now -= 1
                await peer.say(OK)

        async with playing(play) as script, client_for(HttpSettings(connections_per_host=3)) as client:
            replies = await asyncio.gather(*[post(client, script.origin) for _ in range(40)])
            assert replies == [(200, b"hi")] * 40
            assert (most, len(script.peers)) == (3, 3)
            assert figures(client, script) == (3, 3, 0, 0)

    run(main())


def test_too_many_waiting_calls_fail_at_once() -> None:
    async def main() -> None:
        settings = HttpSettings(connections_per_host=1, waiting_per_host=1)
        async with playing(silent) as script, client_for(settings) as client:
            tasks = [asyncio.create_task(post(client, script.origin)) for _ in range(2)]
            await until(lambda: figures(client, script) == (1, 0, 1, 1))
            with pytest.raises(NotSent, match="1 calls wait") as caught:
                await post(client, script.origin)
            assert caught.value.why == "pool"
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    virtual_time.run(main())


def test_closing_the_client_ends_every_call_with_an_error_and_sends_no_more(run: Runner) -> None:
    async def main() -> None:
        async with playing(silent) as script:
            client = HttpClient(HttpSettings(connections_per_host=1))
            calls = [asyncio.create_task(post(client, script.origin)) for _ in range(2)]
            await until(lambda: figures(client, script) == (1, 0, 1, 1) and bool(script.requests))
            await client.close()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [NoAnswer, NotSent]
            for origin in (script.origin, Origin("http", "127.0.0.1", 9)):
                with pytest.raises(NotSent, match="closed"):
                    await post(client, origin)
            assert len(client.stats()) == 1
            assert await script.peers[0].reader.read() == b""

    run(main())
