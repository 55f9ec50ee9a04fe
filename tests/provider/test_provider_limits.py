"""The provider's limits are real: what they hold is exact in virtual time, and what the headers say is true."""

import asyncio
import random
from datetime import datetime

import pytest

from headgate.testing.provider import Latency, ModelLimits, PlanWindow
from headgate.testing.provider.buckets import Bucket
from headgate.testing.virtual_time import run

# 400 characters are 100 tokens.
HUNDRED_TOKENS = "word" * 100


def test_a_bucket_never_gives_more_than_its_depth_and_rate_and_never_keeps_anything_back():
    chooser = random.Random(7)
    bucket = Bucket("input_tokens", rate_per_period=6_000, capacity=1_000, now_s=0.0)
    charged: list[tuple[float, int]] = []
    now_s = 0.0
    for _ in range(3_000):
        amount = chooser.randint(1, 400)
        wait_s = bucket.wait_s(amount, now_s)
        if wait_s:
            assert bucket.wait_s(amount, now_s + wait_s * 0.999) > 0
            now_s += wait_s
        assert bucket.wait_s(amount, now_s) == 0
        bucket.charge(amount, now_s)
        charged.append((now_s, amount))
    total = sum(amount for _, amount in charged)
    assert bucket.charged_total == total
    for start in range(0, 3_000, 97):
        begun_s = charged[start][0]
        assert sum(amount for _, amount in charged[start:]) <= 1_000 + (now_s - begun_s) * 100 + 1e-3
    assert total == pytest.approx(1_000 + now_s * 100, rel=0.01)


def test_a_clock_that_steps_back_refills_nothing():
    bucket = Bucket("requests", rate_per_period=60, capacity=60, now_s=100.0)
    bucket.charge(60, 100.0)
    assert bucket.level(50.0) == 0
    assert bucket.level(101.0) == pytest.approx(1)


def test_uncached_input_is_refused_until_the_moment_that_retry_after_names(client):
    async def scenario():
        caller = client(limits=(ModelLimits(input_tokens_per_minute=60, burst_s=120),))
        assert (await caller.message(HUNDRED_TOKENS)).status == 200
        refused = await caller.message(HUNDRED_TOKENS)
        await asyncio.sleep(79)
        early = await caller.message(HUNDRED_TOKENS)
        await asyncio.sleep(1)
        return refused, early, await caller.message(HUNDRED_TOKENS), caller.provider.usage()

    refused, early, served, usage = run(scenario())
    assert (refused.status, refused.headers["retry-after"]) == (429, "80")
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert refused.headers["request-id"] == refused.json["request_id"]
    assert (early.status, early.headers["retry-after"]) == (429, "1")
    assert served.status == 200
    assert usage["total"]["refused_by"] == {"input_tokens": 2}
    (bucket,) = usage["buckets"]
    assert (bucket["charged_total"], bucket["capacity"], bucket["offered_total"]) == (200, 120, 200)
    assert bucket["share_used"] == 1.0


def test_output_is_drained_as_it_is_produced_and_its_debt_delays_the_next_call(client):
    async def scenario():
        # 10 tokens a second, 60 a minute: 100 tokens drain the 60 that are there and go into debt.
        caller = client(
            limits=(ModelLimits(output_tokens_per_minute=60),), latency=Latency(0.0, 10.0, 0.0), mean_output_tokens=100
        )
        first = asyncio.create_task(caller.message())
        await asyncio.sleep(5.05)
        half_way = caller.provider.usage()["buckets"][0]["charged_total"]
        allowed = await caller.message(max_tokens=1)
        await first
        refused = await caller.message()
        return half_way, allowed, refused

    half_way, allowed, refused = run(scenario())
    assert half_way == 50
    assert allowed.status == 200
    # Full until the first drain at 0.5 s: 60 + 9.5 refilled - 101 drained = -31.5, and one token is needed.
    assert (refused.status, refused.headers["retry-after"]) == (429, "33")


def test_the_limit_that_binds_longest_is_named(client):
    async def scenario():
        limits = ModelLimits(requests_per_minute=1, input_tokens_per_minute=120, burst_s=60)
        caller = client(limits=(limits,))
        await caller.message(HUNDRED_TOKENS)
        both = await caller.message(HUNDRED_TOKENS)
        return both, await caller.message("abcd")

    # 80 tokens are missing for 40 s, the next request comes after a minute.
    both, one = run(scenario())
    assert (both.headers["retry-after"], one.headers["retry-after"]) == ("60", "60")
    assert "requests per minute" in both.json["error"]["message"]


def test_max_tokens_plays_no_part_in_an_anthropic_limit(client):
    async def scenario():
        caller = client(limits=(ModelLimits(input_tokens_per_minute=60, output_tokens_per_minute=60),))
        return await caller.message(max_tokens=100_000)

    assert run(scenario()).status == 200


def test_requests_are_refused_and_a_quantum_spreads_them(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=120, quantum_s=1),))
        first = [(await caller.message()).status for _ in range(3)]
        await asyncio.sleep(0.5)
        return first, (await caller.message()).status, caller.provider.usage()["total"]

    first, later, total = run(scenario())
    assert first == [200, 200, 429]
    assert later == 200
    assert total["refused_by"] == {"requests": 1}


def test_openai_reserves_max_tokens_and_gives_nothing_back(client):
    async def scenario(*, refund):
        caller = client(limits=(ModelLimits(tokens_per_minute=1_000, refund=refund),))
        answers = [await caller.chat(HUNDRED_TOKENS, max_tokens=600) for _ in range(2)]
        return [answer.status for answer in answers], answers[-1], caller.provider.usage()

    statuses, refused, usage = run(scenario(refund=False))
    assert statuses == [200, 429]
    assert refused.json["error"]["code"] == "rate_limit_exceeded"
    # 400 are left of 1,000, 200 are missing, 1,000 a minute come back.
    assert (refused.headers["retry-after-ms"], refused.headers["retry-after"]) == ("12000", "12")
    assert usage["total"]["openai_tokens"] == usage["buckets"][0]["charged_total"] == 600

    statuses, _, usage = run(scenario(refund=True))
    assert statuses == [200, 200]
    assert usage["total"]["openai_tokens"] == usage["buckets"][0]["charged_total"] == 2 * (100 + 25)


def test_without_max_tokens_openai_charges_its_estimate_of_the_prompt(client):
    async def scenario():
        caller = client(limits=(ModelLimits(tokens_per_minute=1_000),))
        await caller.chat(HUNDRED_TOKENS)
        return caller.provider.usage()["buckets"][0]["charged_total"]

    assert run(scenario()) == 100


def test_a_failed_call_counts_at_openai_and_only_as_a_request_at_anthropic(client):
    async def scenario():
        limits = ModelLimits(requests_per_minute=100, input_tokens_per_minute=1_000, tokens_per_minute=1_000)
        caller = client(limits=(limits,))
        failing = {"x-provider-fault": "500"}
        await caller.message(HUNDRED_TOKENS, headers=failing)
        await caller.chat(HUNDRED_TOKENS, max_tokens=600, headers=failing)
        usage = caller.provider.usage()
        return {bucket["dimension"]: bucket["charged_total"] for bucket in usage["buckets"]}, usage["total"]

    charged, total = run(scenario())
    assert charged == {"requests": 2, "input_tokens": 0, "tokens": 600}
    assert (total["requests_failed"], total["input_tokens"], total["openai_tokens"]) == (2, 0, 600)


def test_a_class_of_models_shares_one_pool_and_a_credential_has_its_own(client):
    async def scenario():
        row = ModelLimits(models="claude-opus-*", requests_per_minute=1)
        caller = client(limits=(row, ModelLimits(models="claude-sonnet-*", requests_per_minute=1)))
        other = {"x-api-key": "sk-test-0002"}
        return [
            (await caller.message(model="claude-opus-4-6")).status,
            (await caller.message(model="claude-opus-4-5")).status,
            (await caller.message(model="claude-sonnet-4-5")).status,
            (await caller.message(model="claude-opus-4-6", headers=other)).status,
            (await caller.message(model="claude-haiku-4-5")).status,
        ]

    assert run(scenario()) == [200, 429, 200, 200, 200]


def test_credentials_can_have_limits_of_their_own(client):
    async def scenario():
        rows = (ModelLimits(credentials="small", requests_per_minute=1), ModelLimits(requests_per_minute=2))
        caller = client(limits=rows, keys={"small": "sk-a", "large": "sk-b"})
        return [(await caller.message(headers={"x-api-key": key})).status for key in ["sk-a"] * 2 + ["sk-b"] * 3]

    assert run(scenario()) == [200, 429, 200, 200, 429]


def test_a_prompt_larger_than_the_bucket_is_always_refused(client):
    async def scenario():
        caller = client(limits=(ModelLimits(input_tokens_per_minute=60),))
        refused = await caller.message(HUNDRED_TOKENS)
        await asyncio.sleep(3_600)
        return refused, await caller.message(HUNDRED_TOKENS)

    refused, again = run(scenario())
    assert (refused.status, refused.headers["retry-after"], again.status) == (429, "60", 429)


def test_a_limit_per_day_holds_beside_the_one_per_minute(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=100, requests_per_day=2),))
        statuses = [(await caller.message()).status for _ in range(3)]
        await asyncio.sleep(43_200)
        return statuses, (await caller.message()).status

    assert run(scenario()) == ([200, 200, 429], 200)


def test_anthropic_headers_tell_what_is_left_and_when_it_is_full_again(client):
    async def scenario():
        row = ModelLimits(requests_per_minute=60, input_tokens_per_minute=120_000, output_tokens_per_minute=60_000)
        caller = client(limits=(row,))
        return await caller.message("word" * 12_600)

    headers = run(scenario()).headers
    told = {name.removeprefix("anthropic-ratelimit-"): value for name, value in headers.items() if "limit-" in name}
    assert (told["requests-limit"], told["requests-remaining"]) == ("60", "59")
    assert (told["input-tokens-limit"], told["input-tokens-remaining"]) == ("120000", "107000")
    assert (told["output-tokens-limit"], told["output-tokens-remaining"]) == ("60000", "60000")
    assert (told["tokens-limit"], told["tokens-remaining"]) == ("180000", "167000")
    # 12,600 tokens at 2,000 a second are back after 6.3 s; the header has whole seconds.
    assert datetime.fromisoformat(told["input-tokens-reset"]).timestamp() == 1_800_000_600 + 7
    assert told["input-tokens-reset"].endswith("Z")


def test_openai_headers_tell_durations(client):
    async def scenario():
        caller = client(limits=(ModelLimits(requests_per_minute=5_000, tokens_per_minute=1_000),))
        return await caller.chat(HUNDRED_TOKENS, max_tokens=600)

    headers = run(scenario()).headers
    told = {name.removeprefix("x-ratelimit-"): value for name, value in headers.items() if "ratelimit" in name}
    assert told == {
        "limit-requests": "5000",
        "remaining-requests": "4999",
        "reset-requests": "12ms",
        "limit-tokens": "1000",
        "remaining-tokens": "400",
        "reset-tokens": "36s",
    }


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.0, "0ms"), (0.0121, "13ms"), (1.5, "1.5s"), (59.9991, "1m0s"), (360, "6m0s"), (3_661.25, "1h1m1.25s")],
)
def test_durations_are_written_as_openai_writes_them(seconds, written):
    from headgate.testing.provider.openai_wire import duration  # noqa: PLC0415 - beside its only use

    assert duration(seconds) == written


def test_without_limits_there_are_no_limit_headers(client):
    async def scenario():
        return await client().message()

    assert not [name for name in run(scenario()).headers if "ratelimit" in name]


def test_a_plan_window_opens_with_first_use_is_floored_to_the_hour_and_refuses_when_spent(client):
    async def scenario():
        # The fixed wall clock stands ten minutes after 1,800,000,000, which is a whole hour.
        caller = client(plan=(PlanWindow("5h", 250, 18_000), PlanWindow("7d", 100_000, 604_800)))
        first = await caller.message(HUNDRED_TOKENS)
        await caller.message(HUNDRED_TOKENS)
        spent = await caller.message(HUNDRED_TOKENS)
        await asyncio.sleep(17_400)
        return first, spent, await caller.message(HUNDRED_TOKENS), caller.provider.usage()["total"]

    first, spent, later, total = run(scenario())
    told = {name.removeprefix("anthropic-ratelimit-unified-"): value for name, value in first.headers.items()}
    assert (told["status"], told["5h-utilization"], told["representative-claim"]) == ("allowed", "0.5000", "five_hour")
    assert told["5h-reset"] == told["reset"] == str(1_800_000_000 + 18_000)
    assert told["7d-reset"] == str(1_800_000_000 + 604_800)
    assert (spent.status, spent.headers["retry-after"]) == (429, "17400")
    assert spent.headers["anthropic-ratelimit-unified-5h-status"] == "rejected"
    assert spent.headers["anthropic-ratelimit-unified-5h-surpassed-threshold"] == "0.75"
    assert later.status == 200
    assert total["refused_by"] == {"plan_5h": 1}


@pytest.mark.parametrize("ask", ["message", "chat"])
def test_a_provider_that_says_nothing_of_limits_refuses_all_the_same(client, ask):
    async def scenario(*, tells: bool):
        limits = (ModelLimits(requests_per_minute=2),)
        caller = client(limits=limits, tells_limits=tells)
        answers = [await getattr(caller, ask)(HUNDRED_TOKENS) for _ in range(3)]
        return answers[0], answers[-1]

    def told(answer):
        return [name for name in answer.headers if "ratelimit" in name]

    served, refused = run(scenario(tells=False))
    assert (served.status, refused.status) == (200, 429)
    assert "retry-after" in refused.headers
    assert told(served) == told(refused) == []
    assert all(told(each) for each in run(scenario(tells=True)))
