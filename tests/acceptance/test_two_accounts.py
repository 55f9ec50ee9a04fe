"""Two accounts at two providers behind one gateway, as real processes: both are used to the full, and one may fail."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from real_headgate import Answer, Bench, Process, counted, send, wait_until

MODEL = "claude-sonnet-4-5"
CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "one"
provider = "anthropic"
base_url = "{one}"
api_key = "env:PROVIDER_KEY"
[[account]]
name = "two"
provider = "anthropic"
base_url = "{two}"
api_key = "env:PROVIDER_KEY"
[[price]]
model = "claude-*"
input = 3
output = 15
{more}
"""
LIMITS = """
[[limit]]
scope = "account:*"
requests_per_minute = 1200
burst_s = 0.25
"""
# Ten at once and one a second: whoever has served a few calls has less room than the other.
FEW = """
[[limit]]
scope = "account:*"
requests_per_minute = 60
burst_s = 10
"""


def opened(bench: Bench, more: str = "", *arguments: str) -> tuple[Process, Process, Process]:
    """Start two providers and a gateway with an account at each."""
    one, two = (bench.provider("--first-token-s", "0", "--tokens-per-second", "5000", *arguments) for _ in range(2))
    bench.config.write_text(CONFIG.format(one=one.url, two=two.url, more=more))
    return one, two, bench.serve()


def call(gateway: Process, *, stream: bool = False, session: str | None = None, content: Any = "Hello") -> Answer:
    message = {"model": MODEL, "max_tokens": 20, "stream": stream, "messages": [{"role": "user", "content": content}]}
    headers = {"content-type": "application/json"} | ({"x-headgate-session": session} if session is not None else {})
    return send(gateway.url, "POST", "/v1/messages", json.dumps(message).encode(), headers)


def accounts(gateway: Process) -> dict[str, Any]:
    shape: dict[str, Any] = send(gateway.url, "GET", "/api/v1/accounts").json()
    return {**shape, "accounts": {row["account"]: row for row in shape["accounts"]}}


def ails(provider: Process, **faults: float) -> None:
    body = json.dumps({"probability": {name.strip("_"): share for name, share in faults.items()}}).encode()
    assert send(provider.url, "POST", "/_provider/faults", body).status == 200


def attempts(bench: Bench) -> list[tuple[str, str]]:
    rows = bench.select("SELECT account, state FROM attempts ORDER BY admitted_s, attempt")
    return [(row["account"], row["state"]) for row in rows]


def test_both_accounts_are_used_up_to_the_limits_of_both_without_a_429(bench):
    """Together they let 10 through at once and 40 a second; each of their providers refuses one call too many."""
    one, two, gateway = opened(bench, LIMITS, "--requests-per-minute", "1200", "--burst-s", "0.5")
    with ThreadPoolExecutor(60) as threads:
        answers = list(threads.map(lambda _number: call(gateway), range(60)))
    assert [answer.status for answer in answers] == [200] * 60
    served = [counted(provider)["requests_served"] for provider in (one, two)]
    assert sum(served) == 60
    assert min(served) >= 24, served
    assert [counted(provider)["requests_refused"] for provider in (one, two)] == [0, 0]


@pytest.mark.parametrize(("fault", "stream"), [("_529", True), ("disconnect-before", False)])
def test_a_client_sees_nothing_of_an_account_that_fails_before_the_first_byte(bench, fault, stream):
    one, _two, gateway = opened(bench)
    ails(one, **{fault: 1.0})
    answer = call(gateway, stream=stream)
    assert (answer.status, answer.headers["x-headgate-account"]) == (200, "two")
    wait_until(lambda: attempts(bench) == [("one", "failed"), ("two", "done")])
    first = accounts(gateway)["choices"][0]
    assert (first["account"], first["others"][0]["account"]) == ("two", "one")


def test_an_account_is_left_alone_for_as_long_as_its_provider_said_and_serves_again_then(bench):
    one, _two, gateway = opened(bench, FEW)
    ails(one, _429=1.0)
    assert call(gateway).headers["x-headgate-account"] == "two"
    ill = accounts(gateway)["accounts"]["one"]
    assert ill["health"] in ("ill", "trying")
    assert "429" in ill["why"]
    (circuit,) = ill["circuits"]
    until = circuit["until"]
    ails(one)
    answers = []

    def serves_again() -> bool:
        answer = call(gateway)
        answers.append((accounts(gateway)["at"], answer.status, answer.headers["x-headgate-account"]))
        return answers[-1][2] == "one"

    wait_until(serves_again)
    assert {status for _at, status, _account in answers} == {200}
    assert answers[-1][0] >= until, "not before its retry-after was over"
    assert counted(one)["requests_received"] == 2, "nobody asked it meanwhile"
    assert accounts(gateway)["accounts"]["one"]["health"] == "ok"


def test_a_provider_that_is_killed_costs_no_call_and_serves_again_when_it_is_back(bench):
    one, two, gateway = opened(bench)
    assert call(gateway).headers["x-headgate-account"] == "one"
    one.kill()
    answers = [call(gateway, stream=number % 2 == 1) for number in range(3)]
    assert [(answer.status, answer.headers["x-headgate-account"]) for answer in answers] == [(200, "two")] * 3
    assert counted(two)["requests_served"] == 3
    wait_until(lambda: attempts(bench)[1:] == [("one", "failed"), ("two", "done")] * 3)
    told = accounts(gateway)
    assert told["accounts"]["one"]["circuits"][0]["failures"] == 3
    assert told["accounts"]["one"]["lately"]["failed"] == 3
    bench.provider("--listen", one.url.removeprefix("http://"), "--first-token-s", "0")
    assert call(gateway).headers["x-headgate-account"] == "one"


def test_many_calls_on_their_way_to_a_provider_that_is_killed_are_all_answered(bench):
    one = bench.provider("--first-token-s", "60")
    two = bench.provider("--first-token-s", "0", "--tokens-per-second", "5000")
    bench.config.write_text(CONFIG.format(one=one.url, two=two.url, more=""))
    gateway = bench.serve()
    with ThreadPoolExecutor(40) as threads:
        answers = [threads.submit(call, gateway) for _ in range(40)]
        wait_until(lambda: counted(one)["requests_received"] == 40)
        one.kill()
        told = [answer.result() for answer in answers]
    assert [(answer.status, answer.headers["x-headgate-account"]) for answer in told] == [(200, "two")] * 40
    rows = bench.select("SELECT account, state, COUNT(*) AS calls FROM attempts GROUP BY account, state")
    assert {(row["account"], row["state"]): row["calls"] for row in rows} == {
        ("one", "failed"): 40, ("two", "done"): 40
    }  # fmt: skip


def test_conversations_keep_their_accounts_and_the_command_line_says_why(bench):
    _one, _two, gateway = opened(bench, LIMITS)
    prompt = {"type": "text", "text": "x" * 40_000, "cache_control": {"type": "ephemeral"}}
    served: dict[str, list[str]] = {}
    for _turn in range(4):
        for session in ("s", "t", "u", "v"):
            answer = call(gateway, session=session, content=[prompt, {"type": "text", "text": session}])
            served.setdefault(session, []).append(answer.headers["x-headgate-account"])
    assert all(len(set(each)) == 1 for each in served.values()), served
    told = bench.ask("accounts", "--gateway", gateway.url)
    assert [row["health"] for row in told["accounts"]] == ["ok", "ok"]
    assert told["choices"][0]["why"] == "of equals it has the session's prompt cache"
    alone = bench.ask("accounts")
    assert [row["health"] for row in alone["accounts"]] == [None, None], "the gateway listens elsewhere"
    assert sum(row["lately"]["requests"] for row in alone["accounts"]) == 16
