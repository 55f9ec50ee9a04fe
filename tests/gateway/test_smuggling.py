"""Requests that two servers could read differently: refused whole, or read as one by all, never as two."""

import asyncio
import json
from contextlib import suppress

import pytest

from headgate.adapters.providers.http import parse_url

BODY = b'{"model":"claude-opus-4-6","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
INNER = b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


def asked(*lines: bytes, body: bytes = BODY, start: bytes = b"POST /v1/messages HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: localhost", *lines)) + b"\r\n\r\n" + body


def length(body: bytes = BODY) -> bytes:
    return b"Content-Length: %d" % len(body)


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
REFUSED = {
    "both lengths": asked(length(), b"Transfer-Encoding: chunked", body=CHUNKED),
    "both lengths, the body a second request": asked(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + INNER),
    "the same length twice": asked(length(), length()),
    "two lengths": asked(length(), b"Content-Length: 4"),
    "two lengths in one": asked(b"Content-Length: %d, 4" % len(BODY)),
    "a negative length": asked(b"Content-Length: -1"),
    "a length with a sign": asked(b"Content-Length: +%d" % len(BODY)),
    "a length of 400 digits": asked(b"Content-Length: " + b"9" * 400),
    "a length in hex": asked(b"Content-Length: 0x10"),
    "an encoding that is not the last": asked(b"Transfer-Encoding: chunked, identity", body=CHUNKED),
    "an encoding misspelled": asked(b"Transfer-Encoding: xchunked", body=CHUNKED),
    "a name with a space before its colon": asked(b"Transfer-Encoding : chunked", body=CHUNKED),
    "a folded header": asked(length(), b"X-Odd: one", b" two"),
    "a folded encoding": asked(b"Transfer-Encoding:", b" chunked", body=CHUNKED),
    "a chunk's length that is none": asked(b"Transfer-Encoding: chunked", body=b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's length beyond all": asked(b"Transfer-Encoding: chunked", body=b"f" * 40 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk's length that is negative": asked(b"Transfer-Encoding: chunked", body=b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": asked(b"Transfer-Encoding: chunked", body=b"2\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "a bare line feed": asked(length()).replace(b"\r\n", b"\n"),
    "a bare line feed in a header": asked(b"X-Odd: one\nContent-Length: 4", length()),
    "a NUL in a header": asked(length(), b"X-Odd: a\x00b"),
    "a name with a NUL": asked(length(), b"X\x00Odd: a"),
    "no name": asked(length(), b": a"),
    "no version": asked(length(), start=b"POST /v1/messages"),
    "another protocol": asked(length(), start=b"POST /v1/messages HTTP/9.9"),
    "a method that is none": asked(length(), start=b"P\x01ST /v1/messages HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 50,
}  # fmt: skip
READ_AS_ONE = {
    "a chunk with an extension": asked(b"Transfer-Encoding: chunked", body=b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "a chunked body with a trailer": asked(b"Transfer-Encoding: chunked", body=b"%x\r\n%b\r\n0\r\nX-Smuggled: yes\r\n\r\n" % (len(BODY), BODY)),
    "two spaces in the first line": asked(length(), start=b"POST  /v1/messages HTTP/1.1"),
    "an upgrade in chunks": asked(b"Connection: Upgrade", b"Upgrade: h2c", b"Transfer-Encoding: chunked", body=CHUNKED),
    "an absolute target": asked(length(), start=b"POST http://elsewhere.example/v1/messages HTTP/1.1"),
    "an upgrade": asked(length(), b"Connection: Upgrade", b"Upgrade: websocket"),
    "an upgrade to HTTP/2": asked(length(), b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "a header that the connection names": asked(length(), b"Connection: X-Api-Key, X-Secret", b"X-Secret: a"),
}  # fmt: skip


class Upstream:
    """A provider that keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        self.got.append((scope["path"], scope["headers"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"id":"m","usage":{"input_tokens":1,"output_tokens":1}}'})


async def sent(stack, raw: bytes, answers: int = 1) -> bytes:
    """Send bytes; give what comes back, until so many answers are there or the connection ends."""
    origin, _ = parse_url(stack.url)
    reader, writer = await asyncio.open_connection(origin.host, origin.port)
    try:
        writer.write(raw)
        await writer.drain()
        answer = b""
        while answer.count(b'"output_tokens":1}}') < answers and (piece := await reader.read(65_536)):
            answer += piece
        return answer
    finally:
        writer.close()


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_whole(with_stack, case):
    upstream = Upstream()

    async def test(stack):
        answer = await sent(stack, REFUSED[case])
        assert upstream.got == []
        assert answer == b"" or answer.split(b"\r\n")[0].split(b" ")[1] in {
            b"400",
            b"411",
            b"413",
            b"414",
            b"501",
            b"505",
        }
        assert answer.count(b"\r\n\r\n") <= 1
        assert (await stack.send("POST", "/v1/messages", BODY))[0] == 200

    with_stack(test, app=upstream)


@pytest.mark.parametrize("case", READ_AS_ONE)
def test_what_is_odd_and_clear_is_read_as_one_request(with_stack, case):
    upstream = Upstream()

    async def test(stack):
        answer = await sent(stack, READ_AS_ONE[case])
        assert answer.split(b"\r\n")[0].split(b" ")[1] == b"200"
        ((path, headers, body),) = upstream.got
        assert (path, body) == ("/v1/messages", BODY)
        names = {name for name, _ in headers}
        assert not names & {b"x-smuggled", b"upgrade", b"http2-settings", b"transfer-encoding", b"x-secret"}
        assert dict(headers)[b"host"].startswith(b"127.0.0.1:")
        assert dict(headers)[b"content-length"] == b"%d" % len(BODY)

    with_stack(test, app=upstream)


def test_two_requests_behind_one_another_are_two(with_stack):
    upstream = Upstream()

    async def test(stack):
        answer = await sent(stack, asked(length()) + asked(length()), answers=2)
        assert answer.count(b"HTTP/1.1 200") == 2
        assert [body for _, _, body in upstream.got] == [BODY, BODY]

    with_stack(test, app=upstream)


def test_many_upgrades_behind_one_another_are_answered_in_turn(with_stack):
    """They were read one within the other, as deep as there were such requests in one read."""
    wish = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"

    async def test(stack):
        origin, _ = parse_url(stack.url)
        reader, writer = await asyncio.open_connection(origin.host, origin.port)
        writer.write(wish * 1_500)
        answer = b""
        while answer.count(b"HTTP/1.1 200") < 1_500:
            piece = await reader.read(1 << 20)
            assert piece, answer.count(b"HTTP/1.1 200")
            answer += piece
        writer.close()

    with_stack(test, app=Upstream())


@pytest.mark.parametrize("header", [b"X-Long: " + b"a" * 70_000, b"\r\n".join([b"X: y"] * 20_000)])
def test_a_head_has_a_bound(with_stack, header):
    upstream = Upstream()

    async def test(stack):
        answer = await sent(stack, asked(length(), header))
        assert answer.split(b" ")[1] == b"400"
        assert upstream.got == []

    with_stack(test, app=upstream)


def test_an_answer_that_splits_itself_is_no_two_answers(with_stack):
    """A provider that sends more than it said: the rest belongs to nobody's next call."""

    async def lying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await lie(reader, writer)
        writer.close()

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        first = b'{"id":"m","usage":{"input_tokens":1,"output_tokens":1}}'
        told = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(first)
        writer.write(told + first + told + b'{"id":"smuggled"}')
        await writer.drain()

    async def test(stack):
        server = await asyncio.start_server(lying, "127.0.0.1", 0)
        async with server:
            provider = stack.house.manager.providers["claude"]
            provider._origin = provider._origin._replace(port=server.sockets[0].getsockname()[1])
            for _ in range(3):
                status, _, answer = await stack.send("POST", "/v1/messages", BODY)
                assert status in {200, 502}
                assert b"smuggled" not in answer
                if status == 200:
                    assert json.loads(answer)["id"] == "m"

    with_stack(test, app=Upstream())
