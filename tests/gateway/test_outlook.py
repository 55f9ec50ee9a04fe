"""Forecast, capacity and budgets through the gateway: what they say, whose they show, and what is asked wrongly."""

import asyncio
import json

import pytest
from standing_keys import CALL, a_standing_key, bearing, call

BUDGETS = """
[[limit]]
scope = "account:claude"
requests_per_minute = 600
requests_per_day = 10
slots = 4
[[limit]]
scope = "key:*"
requests_per_day = 4
"""
ADMIN, WITH_ADMIN = "sk-planted-provider-secret", 'admin_token = "env:PROVIDER_KEY"'
OWN, OURS = "key:ci * requests day", "account:claude * requests day"


def named(rows):
    return {row["name"]: row for row in rows}


async def told(stack, path, secret=None, status=200):
    got, _, body = await stack.send("GET", path, headers=bearing(secret) if secret else [])
    assert got == status, body
    return json.loads(body)


def test_a_budget_says_where_it_stands_and_where_it_will_end(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert [await call(stack, ci.secret) for _ in range(5)] == [200, 200, 200, 200, 429]
        budget = named((await told(stack, "/api/v1/budgets", ci.secret))["budgets"])[OWN]
        assert {word: budget[word] for word in ("amount", "used", "held", "pending", "free", "share", "spent")} == {
            "amount": 4, "used": 4, "held": 0, "pending": 0, "free": 0, "share": 1.0, "spent": True,
        }  # fmt: skip
        answer = await told(stack, "/api/v1/forecast", ci.secret)
        forecast = named(answer["forecasts"])[OWN]
        assert forecast["used"] == 4
        assert forecast["runs_out_at"] <= answer["at"]
        assert forecast["low"] >= 4
        assert forecast["assumed"]
        assert answer["left_out"] == 0

    with_stack(test, limits=BUDGETS)


def test_what_is_pending_for_lost_calls_is_told_apart_from_what_was_used(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert await call(stack, ci.secret) == 200

        def lose_two(records):
            serial, end_ns, used, held, _pending = records[OWN]
            return {OWN: (serial, end_ns, used, held, 2)}, None

        await stack.house.stores.levels.transact([OWN], lose_two)
        (budget,) = (await told(stack, "/api/v1/budgets", ci.secret))["budgets"]
        assert [budget[word] for word in ("used", "held", "pending", "free", "share")] == [1, 0, 2, 1, 0.75]

    with_stack(test, limits=BUDGETS)


def test_a_keys_bearer_is_told_of_its_own_windows_alone(with_stack):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        assert [await call(stack, key.secret) for key in (ci, other)] == [200, 200]
        for path, word in (("/api/v1/forecast", "forecasts"), ("/api/v1/budgets", "budgets")):
            assert list(named((await told(stack, path, ci.secret))[word])) == [OWN]
            everything = (await told(stack, path, ADMIN))[word]
            assert named(everything).keys() == {OWN, OURS, "key:other * requests day"}
            some = (await told(stack, f"{path}?scope=key:c*", ADMIN))[word]
            assert list(named(some)) == [OWN]

    with_stack(test, limits=BUDGETS, server=WITH_ADMIN)


def test_capacity_counts_agents_and_names_what_binds_them(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        path = "/api/v1/capacity?model=claude-sonnet-4-5"
        (before,) = (await told(stack, path, ci.secret))["capacity"]
        assert (before["account"], before["agents"]) == ("claude", None)
        assert "no such agent was at work" in before["assumed"]
        for _ in range(4):
            await call(stack, ci.secret)
        answer = await told(stack, path, ci.secret)
        (now,) = answer["capacity"]
        assert (answer["key"], now["agents"], now["light"], now["binding"]) == ("ci", 0, "red", OWN)
        assert now["changes_at"] > (await told(stack, "/api/v1/forecast", ci.secret))["at"]
        assert [row["limit"] for row in now["by_limit"]] == [OWN]

    with_stack(test, limits=BUDGETS)


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/api/v1/capacity", 400, "model="),
        ("/api/v1/capacity?model=llama", 404, "no account serves model 'llama'"),
        ("/api/v1/capacity?model=claude-x&account=nobody", 400, "configured: claude, gpt"),
        ("/api/v1/capacity?model=claude-x&account=gpt", 404, "no account serves"),
        ("/api/v1/capacity?model=claude-x&key=other", 400, "its own alone, 'ci'"),
        ("/api/v1/forecast?scope=planet", 400, "'planet'"),
        ("/api/v1/budgets?at=80", 400, "unknown parameter 'at'"),
    ],
)
def test_what_is_asked_wrongly_is_said(with_stack, path, status, word):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        assert word in (await told(stack, path, ci.secret, status))["error"]["message"]

    with_stack(test)


def test_an_administrator_asks_for_a_key_by_its_name(with_stack):
    async def test(stack):
        path = "/api/v1/capacity?model=claude-sonnet-4-5&key=ci"
        assert "there are: none" in (await told(stack, path, ADMIN, 400))["error"]["message"]
        ci = await a_standing_key(stack, "ci", scopes='{"team": "search"}')
        for _ in range(2):
            await call(stack, ci.secret)
        (found,) = (await told(stack, path, ADMIN))["capacity"]
        assert {row["limit"] for row in found["by_limit"]} >= {OWN, OURS, "team:search * requests day"}

    with_stack(test, limits=BUDGETS + '[[limit]]\nscope = "team:*"\nrequests_per_day = 9', server=WITH_ADMIN)


SIX_A_MINUTE = '[[limit]]\nscope = "account:claude"\nrequests_per_minute = 6\nburst_s = 10\n'
DEAD = """
[[account]]
name = "dead"
provider = "anthropic"
base_url = "http://127.0.0.1:1"
api_key = "env:PROVIDER_KEY"
models = ["qwen-*"]
"""


def test_an_account_that_is_down_has_no_capacity_here_and_elsewhere(with_stack):
    """It was green while its circuit was open: no limit bounds such agents."""

    async def test(stack):
        wish = CALL.replace(b"claude-sonnet-4-5", b"qwen-3")
        for _ in range(2):
            await stack.send("POST", "/v1/messages", wish)
        (row,) = (await told(stack, "/api/v1/capacity?model=qwen-3"))["capacity"]
        assert (row["agents"], row["light"], row["binding"]) == (0, "red", None)
        assert row["closed"].startswith("the account is left alone after ")
        assert row["changes_at"] is not None
        stack.house.manager.pool.health._circuits.clear()  # what another process, that serves no calls, knows
        (row,) = (await told(stack, "/api/v1/capacity?model=qwen-3"))["capacity"]
        assert (row["light"], row["closed"]) == ("red", "all 8 calls of the last 1 min failed there")

    with_stack(test, limits=DEAD)


def test_while_calls_wait_for_a_limit_no_more_agents_can_start(with_stack):
    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        sent = (stack.send("POST", "/v1/messages", CALL, bearing(ci.secret)) for _ in range(3))
        calls = [asyncio.create_task(each) for each in sent]
        while len(stack.house.manager.queue()) < 2:
            assert sum(each.done() for each in calls) <= 1, calls
            await asyncio.sleep(0.01)
        (row,) = (await told(stack, "/api/v1/capacity?model=claude-sonnet-4-5", ci.secret))["capacity"]
        assert (row["agents"], row["light"]) == (0, "red")
        assert "2 calls wait for account:claude requests/min" in row["assumed"]
        binding = "account:claude * requests rate-60s"
        assert (row["binding"], row["by_limit"]) == (binding, [{"limit": binding, "agents": 0}])
        for each in calls:
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    with_stack(
        test,
        limits=SIX_A_MINUTE,
        server="max_wait_s = 900",
    )
