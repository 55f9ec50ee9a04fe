"""The status of a gateway: what the owner sees, what a key's bearer does not, and the command over it."""

import asyncio
import contextlib
import io
import json

import pytest

from headgate.cli.status import show_status
from headgate.core.errors import CallerError, HeadgateError
from headgate.testing.provider import Latency, ProviderSettings

BODY = json.dumps(
    {"model": "claude-opus-4-6", "max_tokens": 16, "messages": [{"role": "user", "content": "x"}]}
).encode()
LIMITS = '[[limit]]\nscope = "account:claude"\nrequests_per_minute = 12\n[[limit]]\nscope = "key:*"\nslots = 5\n'
ADMIN = {"ADMIN": "sk-planted-admin-token"}
AS_ADMIN = [(b"x-api-key", ADMIN["ADMIN"].encode())]


def test_the_owner_sees_process_calls_limits_and_connections(with_stack):
    async def test(stack):
        for _ in range(3):
            status, _, body = await stack.send("POST", "/v1/messages", BODY)
            assert status == 200, body
        told = await stack.get("/api/v1/status")
        assert told["process"]["memory_bytes"] > 2**20
        assert told["process"]["cpu_s"] > 0
        assert told["calls"] == {"in_flight": 0, "waiting": 0, "longest_wait_s": 0.0}
        assert told["last_hour"]["requests"] == 3
        assert told["last_hour"]["output_tokens"] == stack.provider.usage()["total"]["output_tokens"]
        assert {each["account"]: each["health"] for each in told["accounts"]} == {"claude": "ok", "gpt": "ok"}
        tightest = told["tightest"][0]
        assert tightest["scope"] == "account:claude"
        assert tightest["share"] == pytest.approx(0.3, abs=0.02)  # 3 of the 10 that may come at once
        [host] = told["connections"]
        assert (host["open"], host["idle"], host["in_use"], host["opened"], host["reused"]) == (1, 1, 0, 1, 2)

    with_stack(test, limits=LIMITS)


def test_a_call_that_is_on_its_way_and_one_that_waits_are_counted(with_stack):
    async def test(stack):
        calls = [asyncio.create_task(stack.send("POST", "/v1/messages", BODY)) for _ in range(2)]
        for _ in range(1_000):
            told = (await stack.get("/api/v1/status"))["calls"]
            if (told["in_flight"], told["waiting"]) == (1, 1):
                break
        assert (told["in_flight"], told["waiting"]) == (1, 1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    slow = ProviderSettings(latency=Latency(30.0, 10.0, 0.0))
    with_stack(test, limits='[[limit]]\nscope = "account:claude"\nslots = 1\n', provider=slow)


def test_a_key_s_bearer_sees_its_own_and_nothing_of_the_process(with_stack):
    async def test(stack):
        run = b'{"run": "r1", "agents": ["north"], "expires_in_s": 60}'
        _, _, made = await stack.send("POST", "/api/v1/keys", run, AS_ADMIN)
        secret = json.loads(made)["keys"][0]["key"].encode()
        await stack.send("POST", "/v1/messages", BODY, AS_ADMIN)
        _, _, body = await stack.send("GET", "/api/v1/status", b"", [(b"x-api-key", secret)])
        told = json.loads(body)
        assert told["process"] is None
        assert told["connections"] is None
        assert told["last_hour"]["requests"] == 0
        assert [each["circuits"] for each in told["accounts"]] == [[], []]

    with_stack(test, limits=LIMITS, server='admin_token = "env:ADMIN"', environ=ADMIN)


def test_the_command_prints_it_and_says_where_no_gateway_answers(with_stack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADGATE_KEY", raising=False)

    def printed(url: str, *, as_json: bool) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            show_status(tmp_path / "headgate.toml", url, as_json=as_json)
        return out.getvalue()

    async def test(stack):
        await stack.send("POST", "/v1/messages", BODY)
        text = await asyncio.to_thread(printed, stack.url, as_json=False)
        assert text.startswith(f"{stack.url}  headgate ")
        assert "calls: 0 on their way, 0 waiting\n" in text
        assert "last hour: requests 1, attempts that failed 0, calls refused 0, $0." in text
        assert "account:claude requests/min" in text
        shape = json.loads(await asyncio.to_thread(printed, stack.url, as_json=True))
        assert shape["last_hour"]["requests"] == 1
        with pytest.raises(HeadgateError, match="no gateway answers"):
            await asyncio.to_thread(printed, "http://127.0.0.1:1", as_json=False)
        with pytest.raises(CallerError, match="--gateway"):
            await asyncio.to_thread(printed, "what", as_json=False)

    with_stack(test, limits=LIMITS)
