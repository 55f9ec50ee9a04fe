"""Clients that mean harm to the server itself: by being slow, by never ending, by asking out of turn."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from headgate.adapters import http_server
from headgate.adapters.http_call import MOST_UNREAD_BYTES
from headgate.adapters.server import RunningServer, serve
from headgate.testing import virtual_time

HOST = b"host: h\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class App:
    """Answers each request with its path and the size of its body, `/held` when it is let go; keeps what came."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.began: list[str] = []
        self.gone: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.began.append(path)
        size = 0
        if path == "/unread":
            await answer(send, b"unread", status=413)
            return
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.append(path)
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        if path == "/streamed":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": False})
            return
        if path.startswith("/held"):
            await self.let_go.wait()
        await answer(send, b"%b %d" % (path.encode(), size))


async def answer(send: Any, body: bytes, status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, words: bytes) -> None:
        self.writer.write(words)

    async def rest(self) -> bytes:
        found = b""
        try:
            while piece := await self.reader.read(65_536):
                found += piece
        except ConnectionResetError:
            pass
        finally:
            self.writer.close()
        return found


async def connect(server: RunningServer) -> Client:
    return Client(*await asyncio.open_connection(*server.address))


def statuses(said: bytes) -> list[int]:
    return [int(part.split(b" ")[1]) for part in (said + b"\r\n").split(b"HTTP/")[1:]]


def run(main: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(main)


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(10_000):  # looks, so that what does not come fails
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come to that")


def now_s() -> float:
    return asyncio.get_running_loop().time()


def post(path: bytes, *lines: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\n" % path + HOST + b"".join(b"%b\r\n" % line for line in lines) + b"\r\n"


# --- slow ones


@pytest.mark.parametrize("framing", [b"content-length: 1000000", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("pause_s", [None, 0.5, 29])
def test_a_body_that_trickles_in_is_given_up(framing: bytes, pause_s: float | None) -> None:
    """It held its connection, and the app's task, for as long as the client liked."""

    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(post(b"/slow", framing))
            reading = asyncio.create_task(client.rest())
            drop = b"1\r\nx\r\n" if b"chunked" in framing else b"x"
            while pause_s is not None and not reading.done() and now_s() < 1_000:
                client.say(drop)
                await asyncio.sleep(pause_s)
            assert statuses(await reading) == [408]
            assert now_s() <= 61 + (pause_s or 0)
            await until(lambda: app.gone)
            assert app.gone == ["/slow"]

    run(main())


def test_a_slow_client_that_sends_something_is_read_to_the_end() -> None:
    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(post(b"/upload", b"content-length: %d" % (100 * 1024)))
            for _ in range(100):
                client.say(b"x" * 1024)
                await asyncio.sleep(20)
            assert (await client.reader.readuntil(b"/upload 102400")).startswith(b"HTTP/1.1 200")
            client.writer.close()

    run(main())


def test_a_client_that_we_do_not_read_is_not_slow() -> None:
    """An app that waits for its turn before it takes the body: the rest of it stays in the client's socket."""

    async def main() -> None:
        turn = asyncio.Event()

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await turn.wait()
            size = 0
            while (message := await receive()).get("more_body"):
                size += len(message["body"])
            await answer(send, b"read %d" % (size + len(message["body"])))

        async with serve(waits, "127.0.0.1", 0) as server:
            size = 4 * MOST_UNREAD_BYTES
            client, asking = await connect(server), await connect(server)
            client.say(post(b"/", b"content-length: %d" % size) + b"x" * size)
            asking.say(post(b"/", b"content-length: 2", b"expect: 100-continue"))
            await asyncio.sleep(600)
            turn.set()
            assert (await client.reader.readuntil(b"read %d" % size)).startswith(b"HTTP/1.1 200")
            assert await asking.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            asking.say(b"hi")
            assert (await asking.reader.readuntil(b"read 2")).startswith(b"HTTP/1.1 200")
            client.writer.close()
            asking.writer.close()

    run(main())


def test_a_head_that_trickles_in_is_given_up_however_often_something_comes() -> None:
    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            reading = asyncio.create_task(client.rest())
            client.say(b"GET / HTTP/1.1\r\n")
            while not reading.done() and now_s() < 1_000:
                client.say(b"x: y\r\n")
                await asyncio.sleep(1)
            assert now_s() <= 62
            assert await reading == b""

    run(main())


# --- endless ones


@pytest.mark.parametrize("what", [b"x: %b\r\n" % (b"y" * 1000), b"y" * 1000], ids=["trailers", "one trailer"])
def test_trailers_have_a_bound(what: bytes) -> None:
    """The parser keeps one that does not end, however long it is."""

    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(
                post(b"/", b"transfer-encoding: chunked") + b"2\r\nhi\r\n0\r\n" + (b"x: " if what[:1] == b"y" else b"")
            )
            sent, reading = 0, asyncio.create_task(client.rest())
            while not reading.done() and sent < 64 * 1024 * 1024:
                client.say(what * 10)
                sent += len(what) * 10
                await asyncio.sleep(0)
            assert statuses(await reading) in ([400], []), "a client that is still writing may not read it"
            assert sent < 8 * 1024 * 1024

    run(main())


def test_a_chunks_extensions_have_a_bound() -> None:
    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(post(b"/", b"transfer-encoding: chunked") + b"2;")
            sent, reading = 0, asyncio.create_task(client.rest())
            while not reading.done() and sent < 64 * 1024 * 1024:
                client.say(b"a=b;" * 4_000)
                sent += 16_000
                await asyncio.sleep(0)
            await reading
            assert sent < 8 * 1024 * 1024

    run(main())


def test_more_requests_than_are_taken_wait_in_the_socket() -> None:
    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(b"GET /held HTTP/1.1\r\n" + HOST + b"\r\n")
            client.say(GET * 200)
            await until(lambda: app.began)
            (connection,) = server._connections.open
            await until(lambda: not connection.is_reading)
            # As many as one read of the socket had may be there beyond the bound.
            assert http_server.MOST_PIPELINED <= len(connection._pipeline) <= 200
            assert app.began == ["/held"]
            app.let_go.set()
            answers = b""
            while answers.count(b"HTTP/1.1 200") < 201:
                answers += await client.reader.read(65_536)
            client.writer.close()

    run(main())


# --- out of turn


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9.9\r\nhost: h\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"G" * 70_000],
    ids=["no request", "another version", "no host", "no end"],
)
@pytest.mark.parametrize("before", [1, 3])
def test_what_is_refused_has_its_answer_behind_those_of_the_requests_before_it(garbage: bytes, before: int) -> None:
    """The refusal came at once: a client took it for the answer to the request that it had sent first."""

    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(
                b"".join(b"GET /held/%d HTTP/1.1\r\n" % each + HOST + b"\r\n" for each in range(before)) + garbage
            )
            await until(lambda: app.began)
            for _ in range(20):
                await asyncio.sleep(0)
            app.let_go.set()
            said = await client.rest()
            assert statuses(said) == [200] * before + [400]
            assert app.began == [f"/held/{each}" for each in range(before)]
            assert app.gone == []

    run(main())


def test_a_body_that_breaks_is_refused_and_its_request_ends() -> None:
    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(post(b"/broken", b"transfer-encoding: chunked") + b"2\r\nhi\r\n")
            await until(lambda: app.began)
            client.say(b"zz\r\n")
            assert statuses(await client.rest()) == [400]
            await until(lambda: app.gone)
            assert app.gone == ["/broken"]

    run(main())


def test_a_body_that_breaks_behind_another_request_never_begins() -> None:
    async def main() -> None:
        app = App()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(b"GET /held HTTP/1.1\r\n" + HOST + b"\r\n")
            client.say(post(b"/broken", b"transfer-encoding: chunked") + b"2\r\nhi\r\nzz\r\n")
            await until(lambda: app.began)
            for _ in range(20):
                await asyncio.sleep(0)
            app.let_go.set()
            assert statuses(await client.rest()) == [200, 400]
            assert app.began == ["/held"]

    run(main())


# --- what HTTP says


def test_who_was_not_asked_for_its_body_may_not_send_another_request_behind_the_answer() -> None:
    """What came next could be the body or a request: nobody could tell, and it was taken for the body."""

    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(post(b"/unread", b"content-length: %d" % len(GET), b"expect: 100-continue"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert statuses(head) == [413]
            assert b"connection: close" in head
            client.say(GET)
            assert await client.rest() == b"unread"

    run(main())


def test_a_client_of_http_1_0_is_not_asked_to_continue() -> None:
    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(b"POST /old HTTP/1.0\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\nhi")
            said = await client.rest()
            assert statuses(said) == [200]
            assert said.endswith(b"/old 2")

    run(main())


@pytest.mark.parametrize(
    ("request_line", "lines", "status"),
    [
        (b"GET / HTTP/1.1", b"", 400),
        (b"GET / HTTP/1.1", b"host: a\r\nhost: a\r\n", 400),
        (b"GET / HTTP/1.1", b"host: a\r\nHost: b\r\n", 400),
        (b"GET / HTTP/1.1", b"host:\r\n", 200),
        (b"GET / HTTP/1.0", b"", 200),
        (b"GET / HTTP/1.0", b"host: a\r\nhost: b\r\n", 400),
        (b"GET http://a/path HTTP/1.1", b"host: a\r\n", 200),
        (b"GET http:// HTTP/1.1", b"host: a\r\n", 400),
        (b"GET http://a:99999999/ HTTP/1.1", b"host: a\r\n", 400),
        (b"GET ? HTTP/1.1", b"host: a\r\n", 400),
        (b"GET path HTTP/1.1", b"host: a\r\n", 400),
        (b"GET /a#b HTTP/1.1", b"host: a\r\n", 200),
    ],
)
def test_a_request_names_one_host_and_a_target(request_line: bytes, lines: bytes, status: int) -> None:
    async def main() -> None:
        async with serve(App(), "127.0.0.1", 0) as server:
            client = await connect(server)
            client.say(request_line + b"\r\n" + lines + b"connection: close\r\n\r\n")
            assert statuses(await client.rest()) == [status]

    run(main())
