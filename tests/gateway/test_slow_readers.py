"""A client that reads slowly: what is held for it is bounded, its provider is made to wait, and no byte is lost."""

import asyncio
import socket

CHUNK = b"event: content_block_delta\ndata: " + b"Q" * 4_000 + b"\n\n"
CHUNKS = 8_000
MOST_UNREAD_BYTES = 128 * 1024 + 256 * 1024
"""What Headgate reads of an answer that nobody takes, and one read of a socket more."""


class Faucet:
    """A provider that writes 32 MB as fast as it is taken."""

    def __init__(self) -> None:
        self.written_bytes = 0
        self.is_done = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            self.written_bytes += len(CHUNK)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.is_done.set()


async def _paused(stack):
    """Give the connection to the provider once Headgate does not read it any more."""
    while True:
        for pool in stack.house.client._pools.values():
            for connection in pool._open:
                if connection._paused:
                    return connection
        await asyncio.sleep(0)


def test_a_reader_that_stops_makes_the_provider_wait_and_then_gets_all_of_it(with_stack):
    faucet = Faucet()

    async def test(stack):
        host, port = stack.url.removeprefix("http://").split(":")
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        plug.setblocking(False)  # noqa: FBT003 - as the socket has it
        await asyncio.get_running_loop().sock_connect(plug, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=plug, limit=64 * 1024)
        body = b'{"model":"claude-opus-4-6","max_tokens":9,"stream":true,"messages":[]}'
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n" % len(body))
        writer.write(b"connection: close\r\n\r\n" + body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        upstream = await _paused(stack)
        for _ in range(1_000):  # passes of the loop, in which a reader that has no bound would read on
            await asyncio.sleep(0)
            assert upstream._paused
            assert upstream._reply.unread_bytes <= MOST_UNREAD_BYTES
        assert not faucet.is_done.is_set()
        got = 0
        while piece := await reader.read(256 * 1024):
            got += piece.count(b"Q")
        assert got == 4_000 * CHUNKS
        assert faucet.is_done.is_set()
        writer.close()
        await writer.wait_closed()

    with_stack(test, app=faucet)
