"""Every endpoint, byte for byte: what the provider gets, and what the client gets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import product

import pytest
from cases import CASES, CLIENTS, ODD, REFERENCE, Case, Headers, matrix

from headgate.adapters.config import load_config
from headgate.adapters.providers.http import CONNECTION_HEADERS
from headgate.adapters.server import run
from headgate.cli.reloading import Reloading
from headgate.cli.serving import gateway_of
from headgate.compose import open_house

SECRET = "sk-planted-provider-secret"
CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "claude"
provider = "anthropic"
base_url = "http://127.0.0.1:{port}"
api_key = "env:KEY"
models = ["claude-*"]
[[account]]
name = "gpt"
provider = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_key = "env:KEY"
models = ["gpt-*", "text-*"]
[retries]
attempts = 1
"""
CREDENTIALS: Headers = [
    (b"Authorization", b"Bearer of-the-client"),
    (b"X-Api-Key", b"of-the-client"),
    (b"Cookie", b"a=b"),
    (b"X-Headgate-Run", b"r1"),
    (b"TE", b"trailers"),
]
OF_THE_PROVIDER: Headers = [(b"X-Odd", b"caf\xe9"), (b"x-odd", b"again"), (b"X-Request-ID", b"up_1"), (b"X-Empty", b"")]
LEFT_OUT: Headers = [(b"Set-Cookie", b"edge=1"), (b"Keep-Alive", b"timeout=5"), (b"X-Headgate-Account", b"theirs")]
OURS = b"x-headgate-"
SENT_AS, ANSWERED_AS, CUTS = ("length", "chunks"), ("length", "chunks", "close"), ("odd", "whole", "bytes")
CLIENTS_OWN = frozenset({b"authorization", b"x-api-key", b"cookie"})

Head = tuple[bytes, Headers]


class Provider:
    """Reads requests from a socket and answers each with the same bytes, framed and cut as asked."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, Headers, bytes]] = []
        self.answer: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            start, headers, body = await read_message(reader, is_request=True)
            self.got.append((start, headers, body))
            for piece in self.answer:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def read_message(
    reader: asyncio.StreamReader, *, is_request: bool, has_body: bool = True
) -> tuple[bytes, Headers, bytes]:
    """Read a message of HTTP/1.1, with a reader of our own that shares nothing with what it tests."""
    head = await reader.readuntil(b"\r\n\r\n")
    start, *lines = head[:-4].split(b"\r\n")
    headers = [(name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines)]
    named = {name.lower(): value for name, value in headers}
    if not has_body or start.split(b" ")[1] == b"204":
        return start, headers, b""
    if named.get(b"transfer-encoding") == b"chunked":
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        return start, headers, body
    if b"content-length" in named:
        return start, headers, await reader.readexactly(int(named[b"content-length"]))
    return start, headers, b"" if is_request else await reader.read()


def lines_of(start: bytes, headers: Headers) -> bytes:
    return b"\r\n".join([start, *(name + b": " + value for name, value in headers)]) + b"\r\n\r\n"


def in_chunks(body: bytes, size: int) -> bytes:
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"


def request_bytes(case: Case, framing: str) -> tuple[bytes, Headers]:
    told: Headers = [(b"Content-Type", b"application/json"), *case.headers, *ODD]
    if any(name == b"content-type" for name, _ in case.headers):
        told = told[1:]
    own: Headers = [(b"Host", b"localhost"), *CREDENTIALS, (b"Connection", b"close")]
    body = case.body
    if body and framing == "chunks":
        own.append((b"Transfer-Encoding", b"chunked"))
        body = in_chunks(body, 7)
    elif body:
        own.append((b"Content-Length", b"%d" % len(body)))
    start = f"{case.method} {case.target} HTTP/1.1".encode()
    return lines_of(start, [*own, *told]) + body, told


def answer_bytes(case: Case, framing: str, cut: str) -> list[bytes]:
    headers: Headers = [*OF_THE_PROVIDER, *LEFT_OUT, *case.answer_headers]
    if not case.status.startswith(b"204"):
        headers.append((b"Content-Type", case.content_type))
    body = case.answer
    if case.method == "HEAD" or case.status.startswith(b"204"):
        headers.append((b"Connection", b"close"))
    elif framing == "chunks":
        headers.append((b"Transfer-Encoding", b"chunked"))
        body = in_chunks(body, 11)
    elif framing == "length":
        headers.append((b"Content-Length", b"%d" % len(body)))
    whole = lines_of(b"HTTP/1.1 " + case.status, headers) + body
    return list(pieces(whole, cut))


def pieces(whole: bytes, cut: str) -> Iterator[bytes]:
    step = {"bytes": 1, "odd": 13, "whole": len(whole)}[cut]
    if cut == "bytes" and len(whole) > 4_000:
        step = 997
    for at in range(0, len(whole), step):
        yield whole[at : at + step]


@asynccontextmanager
async def between(folder) -> AsyncIterator[tuple[Provider, int]]:
    provider = Provider()
    upstream = await asyncio.start_server(provider, "127.0.0.1", 0)
    path = folder / "headgate.toml"
    path.write_text(CONFIG.format(port=upstream.sockets[0].getsockname()[1]))
    environ = {"KEY": SECRET}
    try:
        async with (
            open_house(load_config(path, environ)) as house,
            gateway_of(house, "127.0.0.1", 0, reloading=Reloading(house, environ)) as gateway,
        ):
            yield provider, gateway.address[1]
    finally:
        upstream.close()


async def exchange(port: int, request: bytes, cut: str, *, is_head: bool) -> tuple[bytes, Headers, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces(request, cut):
        writer.write(piece)
        await asyncio.sleep(0)
    try:
        return await read_message(reader, is_request=False, has_body=not is_head)
    finally:
        writer.close()


def check_request(case: Case, told: Headers, got: tuple[bytes, Headers, bytes]) -> None:
    start, headers, body = got
    assert start == f"{case.method} {case.target} HTTP/1.1".encode()
    assert body == (case.body if case.sent is None else case.sent)
    arrived = [(name, value) for name, value in headers if name not in CONNECTION_HEADERS]
    names = {name for name, _ in headers}
    assert arrived[-1] in {(b"x-api-key", SECRET.encode()), (b"authorization", b"Bearer " + SECRET.encode())}
    assert arrived[:-1] == [(name.lower(), value) for name, value in told]
    assert not any(name.startswith(OURS) for name in names)
    assert len(names & CLIENTS_OWN) == 1


def check_answer(case: Case, got: tuple[bytes, Headers, bytes]) -> None:
    start, headers, body = got
    assert start.split(b" ")[1] == case.status.split(b" ")[0]
    assert body == (case.answer if case.got is None else case.got)
    arrived = [(name, value) for name, value in headers if name.lower() not in CONNECTION_HEADERS]
    theirs = [(name, value) for name, value in arrived if not name.startswith(OURS)]
    expected = [*OF_THE_PROVIDER, *case.answer_headers]
    if not case.status.startswith(b"204"):
        expected.append((b"Content-Type", case.content_type))
    expected = [(name.lower(), value) for name, value in expected]
    assert [each for each in theirs if each[0] not in {b"date", b"server"}] == expected
    assert (b"x-headgate-account", b"theirs") not in [(name.lower(), value) for name, value in arrived]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_pass_as_they_are(tmp_path, case):
    async def main():
        async with asyncio.timeout(120), between(tmp_path) as (provider, port):
            for sent_as, answered_as, cut in product(
                ("length", "chunks"), ("length", "chunks", "close"), ("odd", "whole", "bytes")
            ):
                provider.got.clear()
                request, told = request_bytes(case, sent_as)
                provider.answer = answer_bytes(case, answered_as, cut)
                got = await exchange(port, request, cut, is_head=case.method == "HEAD")
                assert len(provider.got) == 1, (sent_as, answered_as, cut, got)
                check_request(case, told, provider.got[0])
                check_answer(case, got)

    run(main())


def test_the_reference_has_the_matrix():
    assert REFERENCE.read_text(encoding="utf-8") == matrix(CLIENTS), "run python tests/conformance/cases.py"
