"""The upstream client against servers that behave: what is sent, what comes back, which connection is used."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from http_peers import (
    HEADERS,
    KEY,
    OK,
    RUNNERS,
    Peer,
    Runner,
    answering,
    answering_once,
    chunked,
    client_for,
    figures,
    playing,
    post,
    ticks,
)
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.providers.http import (
    CONNECTION_HEADERS,
    Broken,
    HttpError,
    HttpSettings,
    NoAnswer,
    NotSent,
    Origin,
    Reply,
    Timeouts,
    parse_url,
)
from headgate.adapters.providers.http_connection import Connection
from headgate.adapters.server import serve
from headgate.testing import virtual_time


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    return RUNNERS[request.param]


# --- what a caller sends, and gets


def test_a_request_goes_out_as_it_was_given_and_its_answer_comes_back_raw(run: Runner) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 201 Created so\r\nX-One: 1\r\nx-one:  2 \r\nContent-Length: 3\r\n\r\nabc"
        async with playing(answering(answer)) as script, client_for() as client:
            async with client.send(
                "POST", script.origin, b"/v1/messages?beta=true", headers=HEADERS, body=b"{}"
            ) as reply:
                assert (reply.status, reply.reason) == (201, b"Created so")
                assert reply.headers == [(b"X-One", b"1"), (b"x-one", b"2 "), (b"Content-Length", b"3")]
                assert await reply.read(3) == b"abc"
            host = script.origin.label.encode()
            assert script.requests == [
                b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: " + host + b"\r\nX-Api-Key: " + KEY
                + b"\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
            ]  # fmt: skip

    run(main())


def test_a_get_says_no_length_and_an_empty_post_does(run: Runner) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script, client_for() as client:
            for method in ("GET", "POST"):
                async with client.send(method, script.origin, b"/", headers=[]) as reply:
                    await reply.read(2)
        assert [b"content-length: 0" in request for request in script.requests] == [False, True]

    run(main())


def test_a_body_comes_as_it_arrives(run: Runner) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def play(peer: Peer) -> None:
            await peer.request()
            await peer.say(chunked(b"one")[:-5])
            await go_on.wait()
            await peer.say(b"3\r\ntwo\r\n0\r\n\r\n")

        async with (
            playing(play) as script,
            client_for() as client,
            client.send("POST", script.origin, b"/", headers=[]) as reply,
        ):
            assert await anext(reply) == b"one"
            go_on.set()
            assert [piece async for piece in reply] == [b"two"]
            assert [piece async for piece in reply] == []

    run(main())


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], b""),
        ([chunked()], b""),
        ([chunked(b"a" * 17, b"b", b"c" * 4096)], b"a" * 17 + b"b" + b"c" * 4096),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n", b"0\r\nx-t: 1\r\n\r\n"], b"abc"),
        ([b"HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\n"], b""),
        ([b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"], b""),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", OK], b"hi"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK], b"hi"),
        ([bytes([byte]) for byte in b"HTTP/1.1 200 Fi ne\r\na: b\r\nContent-Length: 2\r\n\r\nhi"], b"hi"),
        ([b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nhi"], b"hi"),
    ],
)
def test_every_way_to_end_a_body_leaves_the_connection_fit_for_the_next_call(
    run: Runner, answer: list[bytes], body: bytes
) -> None:
    async def main() -> None:
        async with playing(answering(*answer)) as script, client_for() as client:
            for _ in range(2):
                assert (await post(client, script.origin))[1] == body
            assert figures(client, script) == (1, 1, 0, 0)
            assert len(script.peers) == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        OK + OK,
        OK + b"garbage",
    ],
)
def test_a_connection_whose_answer_did_not_end_cleanly_is_not_used_again(run: Runner, answer: bytes) -> None:
    async def main() -> None:
        async with playing(answering(answer)) as script, client_for() as client:
            for _ in range(2):
                assert await post(client, script.origin) == (200, b"hi")
            assert figures(client, script) == (0, 0, 0, 0)
            assert len(script.peers) == 2

    run(main())


def test_a_head_answer_has_no_body_whatever_it_announces(run: Runner) -> None:
    async def main() -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n"
        async with (
            playing(answering(answer)) as script,
            client_for() as client,
            client.send("HEAD", script.origin, b"/", headers=[]) as reply,
        ):
            assert reply.headers == [(b"content-length", b"50")]
            assert await reply.read(0) == b""

    run(main())


def test_a_body_without_length_ends_when_the_server_closes(run: Runner) -> None:
    async def main() -> None:
        async with (
            playing(answering_once(b"HTTP/1.1 200 OK\r\n\r\n", b"one", b"two")) as script,
            client_for() as client,
        ):
            assert await post(client, script.origin) == (200, b"onetwo")
            assert figures(client, script) == (0, 0, 0, 0)

    run(main())


def test_a_big_body_arrives_whole_in_both_directions(run: Runner) -> None:
    async def main() -> None:
        body = bytes(range(256)) * 8192

        async def echo(peer: Peer) -> None:
            while request := await peer.request():
                content = request.partition(b"\r\n\r\n")[2]
                await peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content), content)

        async with playing(echo) as script, client_for() as client:
            for _ in range(2):
                assert (await post(client, script.origin, body))[1] == body
            assert len(script.peers) == 1

    run(main())


def test_a_refusal_that_comes_before_the_body_was_read_is_seen(run: Runner) -> None:
    async def main() -> None:
        async def play(peer: Peer) -> None:
            await peer.reader.readuntil(b"\r\n\r\n")
            await peer.say(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
            await peer.reader.read()

        async with playing(play) as script, client_for() as client:
            assert await post(client, script.origin, b"x" * 20_000_000) == (413, b"big")
            assert figures(client, script) == (0, 0, 0, 0)

    run(main())


class Keeper:
    """The pool's side of a connection that stands alone."""

    def idle(self, connection: Connection) -> None: ...
    def gone(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...


class Wire(asyncio.Transport):
    """A transport without a socket."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


def standing_alone(**bounds: int) -> Connection:
    settings = {"head_limit_bytes": 65536, "unread_limit_bytes": 65536} | bounds
    connection = Connection(Keeper(), "h:1", idle_s=9.0, **settings)
    connection.connection_made(Wire())
    return connection


def start(connection: Connection) -> Reply:
    reply = Reply(connection, 0.0)
    connection.start(reply, b"", b"", has_body=True, timeouts=Timeouts())
    return reply


def test_framing_that_brings_a_body_is_never_too_much() -> None:
    async def main() -> None:
        connection = standing_alone(head_limit_bytes=100)
        reply = start(connection)
        connection.data_received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            connection.data_received(b"1\r\n")
            connection.data_received(b"x\r\n")
        connection.data_received(b"0\r\n\r\n")
        assert await reply.read(1000) == b"x" * 1000
        connection.connection_lost(None)

    virtual_time.run(main())


def test_a_whole_body_wakes_its_reader_once() -> None:
    async def main() -> None:
        connection = standing_alone()
        reply = start(connection)
        connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        reading = asyncio.create_task(reply.read(100))
        await ticks(2)
        waiter = reply._waiter
        assert waiter is not None
        for _ in range(100):
            assert not waiter.done()
            connection.data_received(b"x")
        assert waiter.done()
        assert await reading == b"x" * 100
        connection.connection_lost(None)

    virtual_time.run(main())


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    st.lists(st.integers(min_value=1, max_value=600), max_size=12),
    st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]),
)
def test_however_an_answer_is_cut_its_bytes_are_the_same(
    pieces: list[bytes], places: list[int], interim: bytes
) -> None:
    answer = interim + chunked(*pieces)
    bounds = [0, *sorted({place % len(answer) for place in places}), len(answer)]

    async def main() -> None:
        connection = standing_alone()
        for _ in range(2):
            reply = start(connection)
            for begin, end in pairwise(bounds):
                if begin < end:
                    connection.data_received(answer[begin:end])
            assert (reply.status, reply.reason) == (200, b"OK")
            assert await reply.read(1000) == b"".join(pieces)
            assert connection.usable
        connection.connection_lost(None)

    virtual_time.run(main())


def test_trailers_do_not_pass_for_headers(run: Runner) -> None:
    async def main() -> None:
        parts = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", b"0\r\nx-t: 1\r\n\r\n"]
        async with (
            playing(answering(*parts)) as script,
            client_for() as client,
            client.send("POST", script.origin, b"/", headers=[]) as reply,
        ):
            assert await reply.read(3) == b"abc"
            assert reply.headers == [(b"transfer-encoding", b"chunked")]

    run(main())


def test_a_body_may_be_taken_partly_as_it_comes_and_then_whole(run: Runner) -> None:
    async def main() -> None:
        parts = [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcde", b"fg", b"hij"]
        async with (
            playing(answering(*parts)) as script,
            client_for() as client,
            client.send("POST", script.origin, b"/", headers=[]) as reply,
        ):
            assert await anext(reply) == b"abcde"
            assert await reply.read(5) == b"fghij"

    run(main())


# --- what may not be sent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-a", b"1\r\nx-b: 2"),
        (b"x-a", b"1\n"),
        (b"x-a", b"\r1"),
        (b"x-a", b"1\0"),
        (b"x a", b"1"),
        (b"x-a:", b"1"),
        (b"", b"1"),
        (b"x-a\r\n", b"1"),
        *[(name.title(), b"1") for name in sorted(CONNECTION_HEADERS)],
    ],
)
def test_a_header_that_could_start_another_request_is_not_sent(name: bytes, value: bytes) -> None:
    async def main() -> None:
        async with playing(answering(OK)) as script, client_for() as client:
            with pytest.raises(NotSent) as caught:
                async with client.send("POST", script.origin, b"/", headers=[*HEADERS, (name, value)]):
                    pass
            assert caught.value.why == "request"
            assert not caught.value.failure.retryable
            assert KEY.decode() not in str(caught.value)
            assert script.peers == []

    virtual_time.run(main())


@pytest.mark.parametrize("target", [b"", b"v1", b"/a b", b"/a\r\nx: y", b"/\xc3\xa9", b"http://other/"])
def test_a_target_that_is_none_is_not_sent(target: bytes) -> None:
    async def main() -> None:
        async with client_for() as client:
            with pytest.raises(NotSent, match="request target"):
                async with client.send("GET", Origin("http", "127.0.0.1", 9), target, headers=[]):
                    pass

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("url", "origin", "target", "authority"),
    [
        ("https://api.example.com", Origin("https", "api.example.com", 443), b"/", b"api.example.com"),
        ("http://h:8080/v1?x=1", Origin("http", "h", 8080), b"/v1?x=1", b"h:8080"),
        ("http://[::1]:80/", Origin("http", "::1", 80), b"/", b"[::1]"),
        ("https://[::1]:80/", Origin("https", "::1", 80), b"/", b"[::1]:80"),
        ("https://bücher.example/a", Origin("https", "xn--bcher-kva.example", 443), b"/a", b"xn--bcher-kva.example"),
    ],
)
def test_urls(url: str, origin: Origin, target: bytes, authority: bytes) -> None:
    assert parse_url(url) == (origin, target)
    assert origin.authority == authority


@pytest.mark.parametrize("url", ["", "api.example.com", "ftp://h/", "https://", "https://u:pw@h/", "https://h/#a"])
def test_what_is_no_url_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL") as caught:
        parse_url(url)
    assert "pw" not in str(caught.value)


# --- against a real server


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]})
    for start in range(0, len(body), 1000):
        await send({"type": "http.response.body", "body": body[start : start + 1000], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_many_calls_at_once_to_a_real_server_each_get_their_own_answer(run: Runner) -> None:
    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0) as server, client_for(HttpSettings(connections_per_host=20)) as client:
            origin = Origin("http", *server.address)

            async def call(number: int) -> None:
                body = b"%d " % number * (number * 37 % 9000)
                async with client.send("POST", origin, b"/call/%d" % number, headers=HEADERS, body=body) as reply:
                    assert (b"x-path", b"/call/%d" % number) in reply.headers
                    assert b"".join([piece async for piece in reply]) == body

            await asyncio.gather(*[call(number) for number in range(200)])
            stats = client.stats()[f"http://{origin.label}"]
            assert (stats.open, stats.in_use, stats.opened) == (20, 0, 20)

    run(main())


def test_errors_are_one_family() -> None:
    assert {NotSent, NoAnswer, Broken} == set(HttpError.__subclasses__())
