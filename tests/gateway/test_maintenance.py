"""Maintenance windows through the gateway: what matches waits or is refused until their end, and everybody is told."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from standing_keys import CALL


def window(**words) -> str:
    """Give one that began an hour ago and lasts two, in the words of the configuration."""
    began = datetime.now(UTC) - timedelta(hours=1)
    told = {"cron": f"{began.minute} {began.hour} * * *", "duration": "2h", **words}
    return "[[maintenance]]\n" + "".join(f'{word} = "{value}"\n' for word, value in told.items())


async def ask(stack, model="claude-sonnet-4-5", wait=b"0"):
    body = CALL.replace(b"claude-sonnet-4-5", model.encode())
    status, _, answer = await stack.send("POST", "/v1/messages", body, [(b"x-headgate-max-wait", wait)])
    return status, answer.decode()


@pytest.mark.parametrize("action", ["hold", "refuse"])
def test_what_matches_is_closed_until_the_end_and_the_rest_goes_on(with_stack, action):
    async def test(stack):
        (told,) = (await stack.get("/api/v1/limits"))["maintenance"]
        assert (told["action"], told["lasts"], told["models"]) == (action, True, "claude-opus-*")
        assert (await ask(stack))[0] == 200
        status, answer = await ask(stack, "claude-opus-4-1")
        assert status == 429
        assert "maintenance" in answer
        assert (await stack.total())["output_tokens"] <= 9

    with_stack(test, limits=window(models="claude-opus-*", action=action))


def test_a_held_call_waits_in_the_queue_and_says_for_what(with_stack):
    async def test(stack):
        held = asyncio.create_task(ask(stack, wait=b"7200"))
        while not (queue := await stack.get("/api/v1/queue"))["waiting"]:
            assert not held.done(), held.result()
        (told,) = (await stack.get("/api/v1/limits"))["maintenance"]
        (waiting,) = queue["waiting"]
        assert "maintenance" in waiting["limit"]
        assert waiting["reason"].startswith("maintenance")
        assert waiting["until"] == told["until"]
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)

    with_stack(test, limits=window(), server="max_wait_s = 10000")


def test_one_that_is_over_holds_nothing(with_stack):
    async def test(stack):
        assert (await stack.get("/api/v1/limits"))["maintenance"][0]["lasts"] is False
        assert (await ask(stack))[0] == 200

    with_stack(test, limits=window(duration="30m"))
