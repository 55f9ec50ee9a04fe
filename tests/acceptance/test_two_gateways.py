"""Two processes on one SQLite file, hammered at once: together they are never over a limit.

They are two gateways, or two workers of one behind one port.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from real_headgate import Answer, Process, counted, differences, send

OUTPUT_TOKENS, SLOTS, BUDGET_MICRO_USD = 40, 3, 20_000
RATED, SLOTTED, PAID = "claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-6"
CALLS = {RATED: 40, SLOTTED: 24, PAID: 60}

LIMITS = f"""
[[limit]]
scope = "account:main"
requests_per_minute = 6000
burst_s = 0.5
[[limit]]
scope = "account:main"
models = "{SLOTTED}"
slots = {SLOTS}
[[limit]]
scope = "account:main"
models = "{PAID}"
usd_per_lifetime = {BUDGET_MICRO_USD / 1_000_000}
"""


def body(model: str) -> bytes:
    message = {"role": "user", "content": "hold the gate"}
    return json.dumps({"model": model, "max_tokens": OUTPUT_TOKENS, "messages": [message]}).encode()


def hammer(gateways: list[Process], provider: Process) -> tuple[dict[str, list[Answer]], int]:
    """Post all calls at once, half to each gateway; give the answers, and the most calls seen on their way in slots."""
    headers = {"content-type": "application/json", "x-provider-output-tokens": str(OUTPUT_TOKENS)}

    def post(model: str, number: int) -> Answer:
        return send(gateways[number % 2].url, "POST", "/v1/messages", body(model), headers)

    with ThreadPoolExecutor(sum(CALLS.values())) as threads:
        answers = {
            model: [threads.submit(post, model, number) for number in range(calls)] for model, calls in CALLS.items()
        }
        most = 0
        while not all(answer.done() for posted in answers.values() for answer in posted):
            models = send(provider.url, "GET", "/_provider/usage").json()["models"]
            most = max(most, models.get(SLOTTED, {}).get("requests_running", 0))
        return {model: [answer.result() for answer in posted] for model, posted in answers.items()}, most


@pytest.mark.parametrize("kind", ["gateways", "workers"])
def test_what_two_processes_share_they_never_exceed_together_and_use_to_the_last(bench, kind):
    """The provider's own bucket is as deep as a second's rate, and answers 429 to one call too many."""
    provider = bench.provider(
        *("--requests-per-minute", "6000", "--burst-s", "1"),
        *("--first-token-s", "0.05", "--tokens-per-second", "5000"),
    )
    bench.configure(provider.url, LIMITS)
    gateways = [bench.serve(), bench.serve()] if kind == "gateways" else [bench.serve("--workers", "2")] * 2
    answers, most_running = hammer(gateways, provider)
    statuses = {model: [answer.status for answer in answered] for model, answered in answers.items()}

    assert counted(provider)["requests_refused"] == 0
    assert statuses[RATED] == [200] * CALLS[RATED]
    assert statuses[SLOTTED] == [200] * CALLS[SLOTTED]
    assert 0 < most_running <= SLOTS

    paid = send(provider.url, "GET", "/_provider/usage").json()["models"][PAID]
    spent = 3 * paid["input_tokens"] + 15 * paid["output_tokens"]
    most_of_one_call = 3 * (len(body(PAID)) // 2 + 512) + 15 * OUTPUT_TOKENS
    assert 0 <= BUDGET_MICRO_USD - spent < most_of_one_call, "none was refused that would have fitted"
    assert statuses[PAID].count(200) == paid["requests_received"]
    assert statuses[PAID].count(200) + statuses[PAID].count(429) == CALLS[PAID]
    assert {answer.headers.get("x-should-retry") for answer in answers[PAID] if answer.status == 429} == {"false"}

    limits = {limit["dimension"]: limit for limit in bench.ask("limits")["limits"]}
    assert [limits["micro_usd"][name] for name in ("used", "held", "free")] == [spent, 0, BUDGET_MICRO_USD - spent]
    assert [limits["slots"][name] for name in ("used", "held", "free")] == [0, 0, SLOTS]
    costs = {row["model"]: row["cost_micro_usd"] for row in bench.ask("usage", "--by", "model")["groups"]}
    assert costs[PAID] == spent
    assert len(bench.select("SELECT DISTINCT owner FROM attempts")) == 2
    assert differences(bench, provider) == []
