"""One of several workers asks the others once it knows who asks, and leaves nothing that nobody reads any more."""

import asyncio
import json

import pytest

from headgate.adapters.switchboard import UnansweredError
from headgate.gateway.together import Together, streams_of

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


class Siblings:
    """Two more workers, which tell what they were asked; the third is silent."""

    me = 1
    others = (2, 3)

    def __init__(self):
        self.asked = []

    async def ask(self, worker, word, _body):
        self.asked.append((worker, word))
        if worker == 3:
            raise UnansweredError("worker 3 did not answer within 2 s")
        return True

    async def change_scheduler(self, change):
        self.asked.append("change")
        await change()


def answered(method, path, status, body=b"{}", sent=(b"{}",)):
    """Give what a client is told where the gateway answers so, with what the others were asked."""

    async def gateway(scope, receive, send):
        if status < 400 and scope["method"] != "GET" and (await receive())["type"] == "http.disconnect":
            return
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": body})

    async def test():
        siblings, told, pieces = Siblings(), [], list(sent)

        async def receive():
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message):
            told.append(message)

        scope = {"path": path, "raw_path": path.encode(), "query_string": b"", "method": method, "headers": []}
        await Together(gateway, siblings)({"type": "http", **scope}, receive, send)
        head, piece = told
        assert head["status"] == status
        return dict(head["headers"]), piece["body"], siblings.asked

    return asyncio.run(test())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/keys"),
        ("DELETE", "/api/v1/keys/k1"),
        ("PUT", "/api/v1/scheduler"),
        ("GET", "/api/v1/queue"),
        ("GET", "/api/v1/events"),
        ("GET", "/metrics"),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
def test_whoever_is_refused_costs_no_other_worker_anything(method, path, status):
    _head, body, asked = answered(method, path, status, sent=())
    assert (body, asked) == (b"{}", [])


def test_a_path_that_only_begins_like_that_of_the_keys_is_no_change_of_keys():
    assert answered("POST", "/api/v1/keysmith", 200)[2] == []


@pytest.mark.parametrize(
    ("method", "path", "status"), [("DELETE", "/api/v1/keys/k1", 200), ("POST", "/api/v1/keys", 201)]
)
def test_a_worker_that_does_not_hear_that_a_key_has_ended_is_named(method, path, status):
    head, body, asked = answered(method, path, status, b'{"id":"k1"}')
    assert asked == [(2, "forget keys"), (3, "forget keys")]
    assert json.loads(body) == {"id": "k1", "unanswered": ["worker 3"]}
    assert head == {b"x-headgate-unanswered": b"worker 3", b"content-length": b"%d" % len(body)}


def test_whoever_may_change_the_scheduler_changes_it_in_all():
    assert answered("PUT", "/api/v1/scheduler", 200)[1:] == (b"{}", ["change"])
