"""One of several workers asks the others once it knows who asks, and leaves nothing behind that nobody reads any more."""

import asyncio

from headgate.gateway.together import streams_of

ASKED = ["GET", "/api/v1/events", b"/api/v1/events", b"", []]


def test_events_that_another_worker_stops_reading_end_though_one_waits_to_be_read():
    async def test():
        ended, go = asyncio.Event(), asyncio.Event()

        async def gateway(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200})
            try:
                await send({"type": "http.response.body", "body": b": begun"})
                await go.wait()
                await send({"type": "http.response.body", "body": b"event: x"})
                await asyncio.get_running_loop().create_future()
            finally:
                await send({"type": "http.response.body", "body": b"event: last"})
                ended.set()

        async def follow():
            async for _piece in streams_of(gateway)["events"](ASKED):
                begun.set()

        begun = asyncio.Event()
        following = asyncio.create_task(follow())
        await begun.wait()
        go.set()
        await asyncio.sleep(0)  # what came waits to be read
        following.cancel()
        await asyncio.wait((following,), timeout=10)
        assert following.done()
        assert ended.is_set()

    asyncio.run(test())


def test_events_that_break_off_end_for_whoever_reads_them(caplog):
    async def test():
        async def gateway(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"event: x"})
            raise ValueError("the feed broke")

        return [piece async for piece in streams_of(gateway)["events"](ASKED)]

    assert asyncio.run(asyncio.wait_for(test(), 10)) == [b"event: x"]
    assert "the feed broke" in caplog.text
