"""Events through the gateway: who hears what, who is too slow is told, and who leaves costs nothing more."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress

from standing_keys import CALL, a_standing_key, bearing, call

from headgate.adapters.providers.http import parse_url
from headgate.core.errors import CallerGoneError
from headgate.gateway.events import stream_events
from headgate.gateway.exchange import HttpExchange
from headgate.runtime.feed import MOST_KEPT

DAY = '[[limit]]\nscope = "key:*"\nrequests_per_day = 2\n'


class Heard:
    """What comes down one connection, event by event."""

    def __init__(self, reply) -> None:
        self._reply = reply
        self._rest = b""

    async def next(self) -> tuple[str, dict]:
        while True:
            while b"\n\n" not in self._rest:
                self._rest += await anext(self._reply)
            event, self._rest = self._rest.split(b"\n\n", 1)
            if event.startswith(b":"):
                continue
            kind, data = event.split(b"\n")
            return kind.removeprefix(b"event: ").decode(), json.loads(data.removeprefix(b"data: "))

    async def until(self, wanted: str) -> list[tuple[str, dict]]:
        heard = [await self.next()]
        while heard[-1][0] != wanted:
            heard.append(await self.next())
        return heard


@asynccontextmanager
async def listening(stack, secret=None):
    origin, _ = parse_url(stack.url)
    headers = bearing(secret) if secret else []
    async with stack.http.send("GET", origin, b"/api/v1/events", headers=headers) as reply:
        assert (reply.status, dict(reply.headers)[b"content-type"]) == (200, b"text/event-stream")
        yield Heard(reply)


def test_a_calls_life_is_told_as_it_happens(with_stack):
    async def test(stack):
        async with listening(stack) as heard:
            await stack.send("POST", "/v1/messages", CALL, [(b"x-headgate-run", b"r1")])
            events = await heard.until("settled")
        assert [kind for kind, _ in events] == ["admitted", "settled"]
        (_, admitted), (_, settled) = events
        assert (admitted["run"], admitted["account"], admitted["call"]) == ("r1", "claude", settled["call"])
        assert (settled["state"], settled["output_tokens"] > 0, settled["estimated"]) == ("done", True, False)
        assert settled["cost_micro_usd"] == (await stack.total())["cost_micro_usd"]

    with_stack(test)


def test_a_key_hears_of_its_own_calls_and_limits_and_of_nobody_elses(with_stack):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        watch = stack.house.manager._limit_news
        async with listening(stack, ci.secret) as heard:
            for key in (other, other, ci):
                assert await call(stack, key.secret) == 200
            await watch.look()
            events = await heard.until("limit")
            assert [kind for kind, _ in events] == ["admitted", "settled", "limit"]
            assert {event.get("key") for _, event in events[:2]} == {"ci"}
            passed = events[-1][1]
            assert (passed["scope"], passed["what"], passed["percent"]) == ("key:ci", "threshold", 50)
            assert await call(stack, other.secret) == 429
            assert await call(stack, ci.secret) == 200
            assert {event.get("key") for _, event in await heard.until("settled")} == {"ci"}
            assert await call(stack, ci.secret) == 429
            (_, refused) = (await heard.until("refused"))[-1]
            assert refused["limit"] == "key:ci * requests day"

    with_stack(test, limits=DAY)


def test_a_follower_that_is_too_slow_loses_the_oldest_and_is_told_how_many(with_stack):
    async def test(stack):
        may_write, writing, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        written: list[bytes] = []

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message) -> None:
            if message.get("body", b"").startswith(b"event"):
                writing.set()
                await may_write.wait()
                written.append(message["body"])
                if b'"number":1499' in message["body"]:
                    gone.set()

        manager = stack.house.manager
        exchange = HttpExchange("GET", "/api/v1/events", b"", [], receive, send)
        following = asyncio.create_task(stream_events(exchange, manager, lambda _event: True))
        await _until(lambda: manager.feed.is_followed)
        manager.feed.tell("limit", number=-1)
        await writing.wait()
        for number in range(1_500):
            manager.feed.tell("limit", number=number)
        may_write.set()
        with suppress(CallerGoneError):
            await following
        kinds = [body.split(b"\n")[0] for body in written]
        told = [json.loads(body.split(b"data: ")[1]) for body in written]
        (missed,) = (event["events"] for kind, event in zip(kinds, told, strict=True) if kind == b"event: missed")
        heard = [event["number"] for event in told if "number" in event]
        assert heard[-1] == 1_499
        assert missed + len(heard) == 1_501
        assert missed >= 1_500 - MOST_KEPT - 1

    with_stack(test)


def test_a_client_that_leaves_is_forgotten(with_stack):
    async def test(stack):
        feed = stack.house.manager.feed
        for _ in range(3):
            async with listening(stack):
                assert feed.is_followed
            await _until(lambda: not feed.is_followed)
        assert (await stack.send("HEAD", "/api/v1/events"))[0] == 405

    with_stack(test)


async def _until(condition) -> None:
    """Let the loop run until something is so: the feed says nothing of who begins and ends to follow."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the gateway has no event for it, and needs none
            await asyncio.sleep(0)
