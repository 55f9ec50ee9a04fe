"""A client that is sent an answer and takes nothing of it is given up, so that its call ends."""

import asyncio

import pytest

from headgate.adapters import http_server, server


@pytest.mark.parametrize("takes", [False, True])
def test_who_takes_nothing_is_given_up_and_who_takes_little_is_not(monkeypatch, *, takes: bool) -> None:
    monkeypatch.setattr(server, "_SWEEP_EVERY_S", 0.01)
    monkeypatch.setattr(http_server, "STUCK_SWEEPS", 5)
    ended = asyncio.Event()

    async def app(_scope, _receive, send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3_000):
                await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            ended.set()

    async def main() -> None:
        async with asyncio.timeout(20), server.serve(app, "127.0.0.1", 0, drain_s=0) as served:
            reader, writer = await asyncio.open_connection(*served.address, limit=1_000)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            size = 0
            while takes and not reader.at_eof():
                size += len(await reader.read(100_000))
            await ended.wait()
            writer.close()
            assert not takes or size >= 30_000_000

    server.run(main())
