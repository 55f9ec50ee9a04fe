"""The scheduler through the gateway: what a call says of its place, and a policy that changes while calls wait."""

import asyncio
import json

import pytest

BODY = json.dumps({"model": "claude-sonnet-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]})
ONE_A_MINUTE = '[[limit]]\nscope = "account:claude"\nrequests_per_minute = 1\n'


def change(**words) -> bytes:
    return json.dumps(words).encode()


async def ask(stack, *headers: tuple[bytes, bytes]) -> tuple[int, str]:
    status, _, body = await stack.send("POST", "/v1/messages", BODY.encode(), [*headers])
    return status, body.decode()


def test_the_policy_of_waiting_calls_is_changed_and_shown(with_stack):
    async def main(stack):
        assert (await ask(stack))[0] == 200
        low = asyncio.create_task(ask(stack, (b"x-headgate-priority", b"-1"), (b"x-headgate-session", b"low")))
        top = asyncio.create_task(ask(stack, (b"x-headgate-priority", b"9"), (b"x-headgate-session", b"top")))
        while len((await stack.get("/api/v1/queue"))["waiting"]) < 2:  # noqa: ASYNC110 - a queue has no event
            await asyncio.sleep(0)
        before = (await stack.get("/api/v1/scheduler"))["policy"]
        status, _, body = await stack.send("PUT", "/api/v1/scheduler", change(policy="priority", weights={"key:a": 2}))
        assert (before, status, json.loads(body)["weights"]) == ("fifo", 200, {"key:a": 2.0})
        queue = (await stack.get("/api/v1/queue"))["waiting"]
        assert [call["session"] for call in queue] == ["top", "low"]
        assert queue[0]["policy"] == "priority"
        assert "its priority is 9" in queue[0]["reason"]
        for task in (low, top):
            task.cancel()
        await asyncio.gather(low, top, return_exceptions=True)

    with_stack(main, limits=ONE_A_MINUTE)


def test_calls_that_begin_alike_wait_for_the_first_until_that_is_switched_off(with_stack):
    arrived: asyncio.Queue[dict] = asyncio.Queue()
    answered = asyncio.Event()

    async def provider(_scope, receive, send) -> None:
        arrived.put_nowait(await receive())
        await answered.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"usage":{"input_tokens":1,"output_tokens":1}}'})

    async def main(stack):
        block = {"type": "text", "text": "word" * 2_000, "cache_control": {"type": "ephemeral"}}
        body = change(model="claude-x", max_tokens=5, system=[block], messages=[{"role": "user", "content": "hi"}])

        def three() -> list[asyncio.Task]:
            return [asyncio.create_task(stack.send("POST", "/v1/messages", body)) for _ in range(3)]

        calls = three()
        await arrived.get()
        while stack.house.manager._warming._waiting < 2:
            await stack.get("/api/v1/queue")
        assert arrived.empty()
        status, _, answer = await stack.send("PUT", "/api/v1/scheduler", change(warm_up=False))
        assert (status, json.loads(answer)["warm_up"]) == (200, False)
        calls += three()
        for _ in range(3):
            await arrived.get()
        answered.set()
        assert [status for status, _, _ in await asyncio.gather(*calls)] == [200] * 6

    with_stack(main, app=provider)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"policy": "best"}, "expected"),
        ({"policy": "fair", "weights": {"key:a": -1}}, 'scheduler weights "key:a" = -1: expected at least 0.001'),
        ({"policy": "fair", "weights": {"anybody": 1}}, "expected one sharer such as key:ci"),
        ({"policy": "fair", "lanes": [{"scope": "account:claude"}]}, "has no policy"),
        (
            {"lanes": [{"scope": "account:nope", "policy": "fair"}]},
            'scope = "account:nope": no such account; configured: claude, gpt',
        ),
        ({"policy": None}, 'scheduler policy = null: expected "fifo" or'),
        ({"lanes": [{"scope": "account:claude", "policy": "best"}]}, 'lanes[0] policy = "best": expected "fifo" or'),
        ({"lanes": None}, "lanes: expected a list of objects"),
        (
            {"share_by": ["key"], "weights": {"team:a": 2}},
            'scheduler weights: "team:a" would count for nothing, for share_by is key; add team to it',
        ),
        ({"policy": "fair", "share_by": ["key", "planet"]}, 'scheduler share_by = "planet": expected a list of key,'),
        ({"policy": "fair", "share_by": ["key", "key"]}, 'scheduler share_by = "key": stands there twice'),
        ({"policy": "fair", "polices": 1}, "'polices': unknown"),
        ({"warm_up": "yes"}, "expected true or false"),
    ],
)
def test_a_change_that_cannot_be_used_changes_nothing(with_stack, words, told):
    async def main(stack):
        before = await stack.get("/api/v1/scheduler")
        status, _, body = await stack.send("PUT", "/api/v1/scheduler", change(**words))
        assert status == 400
        assert told in json.loads(body)["error"]["message"]
        assert await stack.get("/api/v1/scheduler") == before

    with_stack(main)


def test_what_a_call_says_of_its_place_is_checked(with_stack):
    async def main(stack):
        for header, value in ((b"x-headgate-priority", b"11"), (b"x-headgate-class", b"vip")):
            status, body = await ask(stack, (header, value))
            assert status == 400
            assert header.decode() in body
        assert (await stack.total())["attempts"] == 0

    with_stack(main)


def test_an_order_is_in_the_log(with_stack, caplog):
    async def main(stack):
        status, _, _ = await stack.send("PUT", "/api/v1/scheduler", change(policy="fair"))
        assert status == 200
        assert "the scheduler was changed over the control API: policy = fair instead of fifo" in caplog.text

    with_stack(main)


def test_an_order_is_not_refused_for_weights_that_were_there_before(with_stack):
    async def main(stack):
        assert (await stack.send("PUT", "/api/v1/scheduler", change(share_by=["team"])))[0] == 200
        assert (await stack.get("/api/v1/scheduler"))["weights"] == {"key:ci": 2.0}

    with_stack(main, limits='[scheduler]\nweights = { "key:ci" = 2 }\n')
