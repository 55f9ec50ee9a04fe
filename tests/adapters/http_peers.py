"""Servers on loopback that play what a test tells them, and the client that the tests send with.

One rule: nothing here waits for real time, and whatever is opened is closed by the block that opened it.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from headgate.adapters.providers.http import (
    HttpClient,
    HttpError,
    HttpSettings,
    Origin,
    Reply,
)
from headgate.testing import virtual_time

KEY = b"sk-secret-0123456789"
HEADERS = [(b"X-Api-Key", KEY), (b"content-type", b"application/json")]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
Runner = Callable[[Coroutine[Any, Any, None]], None]
RUNNERS: dict[str, Runner] = {"asyncio": virtual_time.run, "uvloop": uvloop.run}
Play = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection as its server sees it."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.requests: list[bytes] = []

    async def request(self) -> bytes:
        """Read one request; empty when the client has gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return b""
        length = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        body = await self.reader.readexactly(int(length[0].split()[1])) if length else b""
        self.requests.append(head + body)
        return head + body

    async def say(self, *parts: bytes) -> None:
        """Send parts so that the client reads each by itself."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await ticks(5)

    def reset(self) -> None:
        """Close as a crash does, with RST instead of FIN."""
        plug = self.writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class Script:
    """A server whose connections play what they are told: each the next one, the last one for ever."""

    def __init__(self, *plays: Play) -> None:
        self.plays = plays
        self.peers: list[Peer] = []
        self.origin = Origin("http", "127.0.0.1", 0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.peers)
        peer = Peer(number, reader, writer)
        self.peers.append(peer)
        try:
            await self.plays[min(number, len(self.plays) - 1)](peer)
        except (ConnectionResetError, BrokenPipeError):
            pass
        finally:
            writer.close()

    @property
    def requests(self) -> list[bytes]:
        return [request for peer in self.peers for request in peer.requests]


@asynccontextmanager
async def playing(*plays: Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[Script]:
    script = Script(*plays)
    server = await asyncio.start_server(script, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    script.origin = Origin("http" if tls is None else "https", "127.0.0.1" if tls is None else "localhost", port)
    try:
        yield script
    finally:
        server.close()
        for peer in script.peers:
            peer.writer.transport.abort()
        await ticks(5)


@asynccontextmanager
async def client_for(settings: HttpSettings | None = None) -> AsyncIterator[HttpClient]:
    client = HttpClient(settings)
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until something is so; the bound on the rounds only ends a broken test."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came about")


async def everything(reply: Reply) -> tuple[bytes, HttpError | None]:
    """Read a body to its end, good or bad."""
    got = b""
    try:
        async for piece in reply:
            got += piece
    except HttpError as error:
        return got, error
    return got, None


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def answering(*parts: bytes) -> Play:
    """Answer every request with the same bytes."""

    async def play(peer: Peer) -> None:
        while await peer.request():
            await peer.say(*parts)

    return play


def answering_once(*parts: bytes) -> Play:
    """Answer one request and close."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(*parts)

    return play


async def silent(peer: Peer) -> None:
    """Read requests and answer none, until the client goes."""
    while await peer.request():
        pass


def chunked(*pieces: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


async def post(client: HttpClient, origin: Origin, body: bytes = b"{}", **kwargs: Any) -> tuple[int, bytes]:
    async with client.send("POST", origin, b"/v1/messages", headers=HEADERS, body=body, **kwargs) as reply:
        return reply.status, await reply.read(1 << 30)


async def get(client: HttpClient, origin: Origin, **kwargs: Any) -> tuple[int, bytes]:
    async with client.send("GET", origin, b"/v1/models", headers=HEADERS, **kwargs) as reply:
        return reply.status, await reply.read(1 << 30)


def figures(client: HttpClient, script: Script) -> tuple[int, int, int, int]:
    stats = client.stats().get(f"{script.origin.scheme}://{script.origin.label}")
    return (stats.open, stats.idle, stats.in_use, stats.waiting) if stats else (0, 0, 0, 0)
