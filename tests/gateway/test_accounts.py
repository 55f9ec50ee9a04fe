"""Accounts through the gateway: two of one provider's, how they are, and whose calls and choices are shown to whom."""

import json
import time
from dataclasses import replace

import pytest
from pool_stack import QUICK, SECRETS, open_pool
from standing_keys import a_standing_key, bearing

from headgate.adapters.server import run
from headgate.runtime.calls import Call
from headgate.testing.provider import Faults, PlanWindow

LIMITS = """
[[limit]]
scope = "account:*"
requests_per_minute = 600
[[limit]]
scope = "account:one"
tokens_per_5h = 10_000
[[limit]]
scope = "key:*"
requests_per_minute = 60
"""
MODEL = "claude-sonnet-4-5"
MESSAGE = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/api/v1/accounts"


@pytest.fixture
def with_pool(tmp_path):
    def run_with(test, **settings):
        async def main():
            async with open_pool(tmp_path, **{"limits": LIMITS, **settings}) as stack:
                await test(stack)

        run(main())

    return run_with


async def call(stack, secret=None, *, headers=(), **more) -> tuple[int, str]:
    body = json.dumps({**MESSAGE, **more}).encode()
    headers = [*headers, *(bearing(secret) if secret else [])]
    status, named, _body = await stack.send("POST", "/v1/messages", body, headers)
    return status, named.get(b"x-headgate-account", b"").decode()


async def told(stack, secret=None, path=PATH, status=200):
    got, _, body = await stack.send("GET", path, headers=bearing(secret) if secret else [])
    assert got == status, body
    for planted in SECRETS.values():
        assert planted.encode() not in body
    return json.loads(body)


def named(shape):
    return {row["account"]: row for row in shape["accounts"]}


@pytest.fixture
def half_past(monkeypatch):
    """Let it be half past the hour: a plan window that opens now begins with the hour, and nobody is behind at once."""
    now_s, later_s = time.time, 1_800.0 - time.time() % 3_600.0
    monkeypatch.setattr(time, "time", lambda: now_s() + later_s)


def test_what_is_told_of_an_account(with_pool, half_past):
    async def test(stack):
        assert [await call(stack) for _ in range(2)] == [(200, "one")] * 2, "its plan goes first, it is behind its line"
        shape = await told(stack)
        one = named(shape)["one"]
        facts = {word: one[word] for word in ("provider", "models", "overage", "soft_ceiling", "health", "why")}
        assert facts == {
            "provider": "anthropic", "models": ["claude-*"], "overage": False, "soft_ceiling": 0.9,
            "health": "ok", "why": None,
        }  # fmt: skip
        assert (one["in_flight"], one["lately"]) == (0, {"requests": 2, "failed": 0, "refused": 0})
        requests = next(each for each in one["headroom"] if each["dimension"] == "requests")
        assert requests["amount"] == 600
        assert 0 < requests["free_share"] < 1
        ours, theirs = one["plans"]
        assert (ours["period_s"], ours["told_at"]) == (18_000, None)
        assert 0 < ours["used"] < 0.01
        assert ours["behind"] == pytest.approx(ours["line"] - ours["used"], abs=0.001)
        assert theirs["told_at"] is not None, "its provider tells a window of its own"
        assert named(shape)["two"]["plans"] == []

        last = shape["choices"][0]
        assert (last["account"], last["model"], last["left"]) == ("one", MODEL, None)
        assert last["others"] == [{"account": "two", "why": "no plan window of its is known that would be left unused"}]
        assert list(named(await told(stack, path=f"{PATH}?account=two"))) == ["two"]
        async with stack.house.manager.admit(Call(MODEL, input_tokens=1, max_output_tokens=1)):
            assert named(await told(stack))["one"]["in_flight"] == 1

    plan = replace(QUICK, plan=(PlanWindow("5h", 2_000_000, 18_000),))
    with_pool(test, one=plan)


def test_a_keys_bearer_hears_of_its_own_calls_alone(with_pool):
    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        for secret, calls in ((ci.secret, 2), (other.secret, 3)):
            for _ in range(calls):
                assert (await call(stack, secret))[0] == 200
        shape = await told(stack, ci.secret)
        assert sum(row["lately"]["requests"] for row in shape["accounts"]) == 2
        assert len(shape["choices"]) == 2
        assert all(not row["headroom"] and not row["plans"] and not row["circuits"] for row in shape["accounts"])
        assert {row["health"] for row in shape["accounts"]} == {"ok"}
        everything = await told(stack, SECRETS["ADMIN"])
        assert sum(row["lately"]["requests"] for row in everything["accounts"]) == 5
        assert len(everything["choices"]) == 5
        got, _, _ = await stack.send("GET", PATH)
        assert got == 401

    with_pool(test, server='admin_token = "env:ADMIN"')


@pytest.mark.parametrize(
    ("path", "word"),
    [(f"{PATH}?account=three", "configured: one, two"), (f"{PATH}?most=9", "unknown parameter 'most'")],
)
def test_what_is_asked_wrongly_is_said(with_pool, path, word):
    async def test(stack):
        assert word in (await told(stack, path=path, status=400))["error"]["message"]

    with_pool(test)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_account_whose_key_is_refused_is_out_and_the_other_serves(with_pool, caplog, streamed):
    async def test(stack):
        assert [await call(stack, stream=streamed) for _ in range(4)] == [(200, "two")] * 4
        assert stack.providers[1].usage()["total"]["requests_served"] == 4
        shape = await told(stack)
        one = named(shape)["one"]
        assert one["health"] == "out"
        assert one["why"].startswith("its provider refuses its key (401 authentication_error); tried again in ")
        (circuit,) = one["circuits"]
        assert (circuit["model"], circuit["state"], circuit["why"]) == (None, "open", "401 authentication_error")
        assert one["lately"] == {"requests": 1, "failed": 1, "refused": 0}
        assert "401 authentication_error" in shape["choices"][0]["others"][0]["why"]
        errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(errors) == 1
        assert "account one: its provider refuses its key" in errors[0]
        status, headers, _body = await stack.send("POST", "/v1/messages/count_tokens", json.dumps(MESSAGE).encode())
        assert (status, headers[b"x-headgate-account"]) == (200, b"two"), "nor is it asked what spends nothing"

    with_pool(test, one=replace(QUICK, keys={"main": "sk-another"}))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", ["403", "429", "500", "529", "disconnect-before", "spend-limit"])
def test_a_call_fails_over_before_its_first_byte(with_pool, fault, streamed):
    async def test(stack):
        assert await call(stack, stream=streamed) == (200, "two")
        shape = await told(stack)
        assert [choice["account"] for choice in shape["choices"]] == ["two", "one"]
        assert shape["choices"][0]["others"][0]["account"] == "one"
        rows = (await stack.get("/api/v1/usage?group_by=account,state"))["groups"]
        assert {(row["account"], row["state"]): row["attempts"] for row in rows} == {
            ("one", "failed"): 1, ("two", "done"): 1
        }  # fmt: skip

    with_pool(test, one=replace(QUICK, faults=Faults(every={fault: 1})))


def test_a_conversation_keeps_its_account(with_pool):
    """Its prompt is cached there; other calls go where most is free."""

    async def test(stack):
        text = {"type": "text", "text": "x" * 40_000, "cache_control": {"type": "ephemeral"}}
        served = {}
        for number in range(4):
            for session in ("s", "t", "u"):
                messages = [{"role": "user", "content": [text, {"type": "text", "text": session + "y" * number}]}]
                status, account = await call(
                    stack, headers=[(b"x-headgate-session", session.encode())], messages=messages
                )
                assert status == 200
                served.setdefault(session, []).append(account)
        assert all(len(set(accounts)) == 1 for accounts in served.values()), served
        assert {accounts[0] for accounts in served.values()} == {"one", "two"}
        assert "prompt cache" in (await told(stack))["choices"][0]["why"]

    with_pool(test, limits='[[limit]]\nscope = "account:*"\ninput_tokens_per_minute = 1_000_000')
