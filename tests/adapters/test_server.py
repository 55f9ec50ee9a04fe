"""The server seam: where it listens, how it stops, and what it does with clients that misbehave."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from headgate.adapters.http_call import WHEN_GONE
from headgate.adapters.server import ListenError, Message, Receive, RunningServer, Send, run, serve
from headgate.testing import virtual_time

Runner = Callable[[Coroutine[Any, Any, None]], None]
GET = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"


@pytest.fixture(params=["asyncio", "uvloop"])
def running(request: pytest.FixtureRequest) -> Runner:
    return virtual_time.run if request.param == "asyncio" else uvloop.run


async def hello(_: Message, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


class Client:
    """A raw connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes = GET) -> bytes:
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> bytes:
        """Read a head and the body it announces."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Read until the server closes."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""
        finally:
            self.writer.close()


async def connect(server: RunningServer) -> Client:
    return Client(*await asyncio.open_connection(*server.address))


class Held:
    """An app whose calls wait until they are let go, or until their client has gone."""

    def __init__(self, *, heeds_disconnect: bool = True) -> None:
        self.heeds_disconnect = heeds_disconnect
        self.came = asyncio.Event()
        self.let_go = asyncio.Event()
        self.ends: list[str] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.came.set()
        waits: list[Coroutine[Any, Any, Any]] = [self.let_go.wait()]
        if self.heeds_disconnect:
            waits.append(self._gone(receive))
        tasks = [asyncio.create_task(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        finally:
            for task in tasks:
                task.cancel()
        self.ends.append("answered" if self.let_go.is_set() else "disconnected")
        if self.let_go.is_set():
            await hello(scope, receive, send)

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


def test_it_serves_on_a_free_port_and_adds_no_header_of_its_own(running: Runner) -> None:
    async def main() -> None:
        async with serve(hello, "127.0.0.1", 0) as server:
            host, port = server.address
            assert host == "127.0.0.1"
            assert port > 0
            client = await connect(server)
            for _ in range(2):
                assert await client.ask() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
        assert await client.rest() == b""

    running(main())


def test_starting_and_stopping_wait_for_nothing() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serve(hello, "127.0.0.1", 0) as server:
            client = await connect(server)
            await client.ask()
        assert await client.rest() == b""
        assert loop.time() == 0

    virtual_time.run(main())


def test_signals_and_logging_stay_the_callers(running: Runner) -> None:
    async def main() -> None:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:]
        async with serve(hello, "127.0.0.1", 0):
            during = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logging.getLogger().handlers
            assert during == before

    running(main())


def test_a_port_in_use_is_one_clear_error_and_is_free_again_afterwards(running: Runner) -> None:
    async def main() -> None:
        async with serve(hello, "127.0.0.1", 0) as server:
            port = server.address[1]
            client = await connect(server)
            await client.ask()
            with pytest.raises(ListenError) as caught:
                async with serve(hello, "127.0.0.1", port):
                    pass
            assert str(caught.value) == (
                f"cannot listen on 127.0.0.1:{port}: something listens there already: "
                "stop it, or choose another port (0 takes a free one)"
            )
        assert await client.rest() == b""
        async with serve(hello, "127.0.0.1", port) as again:
            assert again.address[1] == port

    running(main())


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("192.0.2.1", 0, "192.0.2.1:0: this machine has no such address"), ("127.0.0.1", 70_000, "from 0 to 65535")],
)
def test_an_address_that_cannot_be_is_said(running: Runner, host: str, port: int, said: str) -> None:
    async def main() -> None:
        with pytest.raises(ListenError, match=said):
            async with serve(hello, host, port):
                pass

    running(main())


def test_a_stop_lets_calls_end_and_takes_no_new_ones(running: Runner) -> None:
    async def main() -> None:
        app = Held()
        async with serve(app, "127.0.0.1", 0) as server:
            busy, idle = await connect(server), await connect(server)
            busy.writer.write(GET)
            await app.came.wait()
            stopping = asyncio.create_task(server.stop(60))
            assert await idle.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await connect(server)
            assert not stopping.done()
            app.let_go.set()
            assert (await busy.answer()).endswith(b"hi")
            assert await busy.rest() == b""
            await stopping
        assert app.ends == ["answered"]

    running(main())


def test_what_has_not_ended_in_time_is_cut_off_as_if_its_client_had_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        app = Held()
        async with serve(app, "127.0.0.1", 0, drain_s=60) as server:
            client = await connect(server)
            client.writer.write(GET)
            await app.came.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(60, abs=0.01)
        assert await client.rest() == b""
        assert app.ends == ["disconnected"]

    virtual_time.run(main())
    assert caplog.records == []


def test_an_app_that_does_not_heed_the_cut_is_cancelled_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        app = Held(heeds_disconnect=False)
        async with serve(app, "127.0.0.1", 0, drain_s=60) as server:
            client = await connect(server)
            client.writer.write(GET)
            await app.came.wait()
        assert asyncio.get_running_loop().time() == pytest.approx(62, abs=0.01)
        assert app.ends == ["cancelled"]
        assert await client.rest() == b""

    virtual_time.run(main())
    assert caplog.records == []


def test_a_second_stop_has_less_patience_than_the_first() -> None:
    async def main() -> None:
        app = Held()
        async with serve(app, "127.0.0.1", 0, drain_s=3600) as server:
            client = await connect(server)
            client.writer.write(GET)
            await app.came.wait()
            first = asyncio.create_task(server.stop(3600))
            await asyncio.sleep(1)
            await server.stop(0)
            await first
        assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.01)
        assert await client.rest() == b""

    virtual_time.run(main())


def test_a_stop_that_is_cancelled_still_closes_every_connection() -> None:
    async def main() -> None:
        app = Held()
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(GET)
            await app.came.wait()
            stopping = asyncio.create_task(server.stop(3600))
            await asyncio.sleep(1)
            stopping.cancel()
            await asyncio.wait([stopping])
            assert stopping.cancelled()
            assert await client.rest() == b""

    virtual_time.run(main())


def test_an_error_of_the_app_is_a_500_and_one_logged_error(running: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Message, __: Receive, ___: Send) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with serve(broken, "127.0.0.1", 0) as server:
            client = await connect(server)
            assert (await client.ask()).startswith(b"HTTP/1.1 500 ")
            await client.rest()

    running(main())
    assert [(record.name, record.levelname) for record in caplog.records] == [("headgate.server", "ERROR")]


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00\xa5", b"GET / HTTP/1.1\r\nhost: h\r\nx y: 1\r\n\r\n", b"GET /\n\n"]
)
def test_garbage_is_answered_and_leaves_no_line(
    running: Runner, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serve(hello, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(garbage)
            assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")

    running(main())
    assert caplog.records == []


def test_a_head_without_end_is_refused(running: Runner) -> None:
    async def main() -> None:
        async with serve(hello, "127.0.0.1", 0) as server:
            client = await connect(server)
            for _ in range(3):
                client.writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: %b\r\n" % (b"y" * 1000) * 40)
                await client.writer.drain()
                for _ in range(20):
                    await asyncio.sleep(0)
                assert (await client.ask(b"\r\n")).endswith(b"hi")
            client.writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n" + b"x: %b\r\n" % (b"y" * 1000) * 70)
            assert b"larger than 65536 bytes" in await client.rest()

    running(main())


def test_a_refused_upload_reads_its_refusal(running: Runner) -> None:
    async def refuses(_: Message, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"big"})

    async def main() -> None:
        async with serve(refuses, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3000000\r\n\r\n")
            for _ in range(30):
                client.writer.write(b"x" * 100_000)
                await client.writer.drain()
            assert (await client.answer()).endswith(b"big")
            assert (await client.ask()).endswith(b"big")
        await client.rest()

    running(main())


@pytest.mark.parametrize("said", [b"", b"GET / HT", GET[:-2]])
def test_a_client_that_never_finishes_its_head_is_let_go_and_a_call_is_not(said: bytes) -> None:
    async def main() -> None:
        app = Held()
        async with serve(app, "127.0.0.1", 0) as server:
            busy, slow = await connect(server), await connect(server)
            busy.writer.write(GET)
            slow.writer.write(said)
            assert await slow.rest() == b""
            assert asyncio.get_running_loop().time() == pytest.approx(60, abs=0.01)
            await asyncio.sleep(600)
            app.let_go.set()
            assert (await busy.answer()).endswith(b"hi")
            busy.writer.write(said)
            assert await busy.rest() == b""

    virtual_time.run(main())


def test_a_connection_between_two_calls_is_kept_for_75_seconds_and_no_timer_outlives_the_server() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        async with serve(hello, "127.0.0.1", 0) as server:
            client = await connect(server)
            for pause_s in [29] * 30 + [74, 74]:
                assert (await client.ask()).endswith(b"hi")
                await asyncio.sleep(pause_s)
        ended_s = loop.time()
        assert [timer for timer in loop._scheduled if not timer.cancelled() and timer.when() > ended_s] == []
        await client.rest()

    virtual_time.run(main())


def test_an_app_that_could_be_called_without_arguments_is_not_taken_for_a_factory() -> None:
    async def lenient(*given: Any) -> None:
        await hello(*given)

    async def main() -> None:
        async with serve(lenient, "127.0.0.1", 0) as server:
            client = await connect(server)
            assert (await client.ask()).endswith(b"hi")
        await client.rest()

    virtual_time.run(main())


def test_run_uses_uvloop_and_gives_the_result() -> None:
    async def main() -> str:
        return type(asyncio.get_running_loop()).__module__

    assert run(main()).startswith("uvloop")


def test_requests_sent_before_an_answer_are_answered_in_order(running: Runner) -> None:
    async def slow_first(scope: Message, _: Receive, send: Send) -> None:
        for _turn in range(3 if scope["path"] == "/0" else 0):
            await asyncio.sleep(0)
        said = f"{scope['path']:4}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": said})

    async def main() -> None:
        async with serve(slow_first, "127.0.0.1", 0) as server:
            client = await connect(server)
            for burst in (1, 3, 40):
                client.writer.write(
                    b"".join(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % number for number in range(burst))
                )
                answers = [await client.answer() for _ in range(burst)]
                assert [answer[-4:].strip() for answer in answers] == [b"/%d" % number for number in range(burst)]
        await client.rest()

    running(main())


def test_a_body_comes_whole_however_large_and_however_it_is_cut(running: Runner) -> None:
    sizes: list[int] = []

    async def takes(_: Message, receive: Receive, send: Send) -> None:
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        sizes.append(max(map(len, pieces)))
        said = b"%d" % len(b"".join(pieces))
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    async def main() -> None:
        async with serve(takes, "127.0.0.1", 0) as server:
            client = await connect(server)
            for size in (0, 1, 100_000, 3_000_000):
                request = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
                assert (await client.ask(request)).endswith(b"\r\n\r\n%d" % size)
            chunks = b"".join(b"%x\r\n%b\r\n" % (7, b"1234567") for _ in range(1_000))
            request = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
            assert (await client.ask(request)).endswith(b"\r\n\r\n7000")
        await client.rest()

    running(main())
    assert max(sizes) < 3_000_000, "a large body is not kept whole"


def test_a_client_that_does_not_read_lets_the_app_wait(running: Runner) -> None:
    sent = 0

    async def pours(_: Message, __: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _number in range(1_000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            sent += 1
        await send({"type": "http.response.body"})

    async def main() -> None:
        async with serve(pours, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.transport.pause_reading()
            client.writer.write(GET)
            before = -1
            while sent > before or sent == 0:
                before = sent
                for _ in range(200):
                    await asyncio.sleep(0)
            assert sent < 500
            client.writer.transport.resume_reading()
            await client.reader.readuntil(b"\r\n\r\n")
            for _ in range(1_000):
                size = int((await client.reader.readline()).strip(), 16)
                assert len(await client.reader.readexactly(size + 2)) == size + 2
            assert await client.reader.readexactly(5) == b"0\r\n\r\n"
        await client.rest()

    running(main())


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(running: Runner) -> None:
    async def echo(_: Message, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    async def main() -> None:
        async with serve(echo, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert (await client.ask(b"hi")).endswith(b"hi")
        await client.rest()

    running(main())


@pytest.mark.parametrize(
    ("request_line", "headers", "body"),
    [
        (b"HEAD / HTTP/1.1\r\nconnection: close", b"connection: close", b""),
        (b"GET / HTTP/1.0", b"connection: close", b"hi"),
        (
            b"GET / HTTP/1.1\r\nconnection: close",
            b"transfer-encoding: chunked\r\nconnection: close",
            b"2\r\nhi\r\n0\r\n\r\n",
        ),
    ],
)
def test_an_answer_of_unknown_length_ends_as_its_client_can_tell(
    running: Runner, request_line: bytes, headers: bytes, body: bytes
) -> None:
    async def unmeasured(_: Message, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hi"})

    async def main() -> None:
        async with serve(unmeasured, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(request_line + b"\r\nhost: h\r\n\r\n")
            assert await client.rest() == b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (headers, body)

    running(main())


@pytest.mark.parametrize("body", [b"too long", b"x"])
def test_an_answer_that_is_not_as_long_as_it_said_is_cut(
    running: Runner, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def lies(_: Message, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": body})

    async def main() -> None:
        async with serve(lies, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(GET)
            assert len((await client.rest()).partition(b"\r\n\r\n")[2]) < 2

    running(main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("header", [(b"x", b"a\r\nset-cookie: b"), (b"x: y\r\nz", b"a"), (b"x", b"a\x00")])
def test_a_header_cannot_bring_another_with_it(
    running: Runner, header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def splits(_: Message, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header]})

    async def main() -> None:
        async with serve(splits, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(GET)
            assert (await client.rest()).startswith(b"HTTP/1.1 500 ")

    running(main())
    assert len(caplog.records) == 1


def test_whoever_asks_is_told_once_when_a_client_goes_and_not_after_its_answer(running: Runner) -> None:
    told: list[str] = []

    async def app(scope: Message, _: Receive, send: Send) -> None:
        gone = asyncio.Event()

        def note() -> None:
            told.append(scope["path"])
            gone.set()

        scope["extensions"][WHEN_GONE](note)
        if scope["path"] == "/answered":
            await hello(scope, _, send)
        else:
            await gone.wait()

    async def main() -> None:
        async with serve(app, "127.0.0.1", 0) as server:
            client = await connect(server)
            await client.ask(b"GET /answered HTTP/1.1\r\nhost: h\r\n\r\n")
            client.writer.write(b"GET /left HTTP/1.1\r\nhost: h\r\n\r\n")
            await client.writer.drain()
            for _ in range(50):
                await asyncio.sleep(0)
            client.writer.close()
        assert told == ["/left"]

    running(main())


def test_an_app_can_cut_the_connection_without_a_line(running: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def cuts(_: Message, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        send.__self__.transport.abort()  # type: ignore[attr-defined]  # what ASGI has no word for
        while (await receive())["type"] != "http.disconnect":
            pass

    async def main() -> None:
        async with serve(cuts, "127.0.0.1", 0) as server:
            client = await connect(server)
            client.writer.write(GET)
            assert (await client.rest())[:8] in (b"HTTP/1.1", b"")

    running(main())
    assert caplog.records == []
