"""Budgets in dollars, tokens and requests, of every kind of scope: charged with what was used, and never exceeded."""

import json

import pytest
from standing_keys import CALL, a_standing_key, bearing

SCOPES = ("account:claude", "key:ci", "team:search", "run:nightly", "agent:*", "session:*", "tag:stage=test")
WORDS = (
    ("usd_per_hour", "micro_usd", "hour"),
    ("tokens_per_day", "tokens", "day"),
    ("requests_per_week", "requests", "week"),
    ("usd_per_month", "micro_usd", "month"),
    ("output_tokens_per_5h", "output_tokens", "plan-18000s"),
    ("input_tokens_per_7d", "input_tokens", "plan-604800s"),
    ("usd_per_lifetime", "micro_usd", "lifetime"),
)
WHOSE = [
    (b"x-headgate-team", b"search"),
    (b"x-headgate-run", b"nightly"),
    (b"x-headgate-agent", b"reader"),
    (b"x-headgate-session", b"s1"),
    (b"x-headgate-tags", b"stage=test"),
]


def limits(amount: int) -> str:
    words = "".join(f"{word} = {amount}\n" for word, _dimension, _per in WORDS)
    return "".join(f'[[limit]]\nscope = "{scope}"\n{words}' for scope in SCOPES)


@pytest.mark.parametrize("headers", [WHOSE, []])
def test_a_call_is_charged_to_every_budget_on_its_path_and_what_it_left_of_them_is_back(with_stack, headers):
    async def test(stack):
        key = await a_standing_key(stack, "ci")
        status, _, body = await stack.send("POST", "/v1/messages", CALL, [*bearing(key.secret), *headers])
        assert status == 200, body
        total = (await stack.get("/api/v1/usage", bearing(key.secret)))["total"]
        told = json.loads((await stack.send("GET", "/api/v1/budgets", headers=bearing(key.secret)))[2])["budgets"]
        used = {
            "micro_usd": total["cost_micro_usd"],
            "tokens": total["input_tokens"] + total["output_tokens"],
            "requests": 1,
            "input_tokens": total["input_tokens"],
            "output_tokens": total["output_tokens"],
        }
        met = {row["scope"].partition("|")[0].partition(":")[0] for row in told if row["used"]}
        assert met == ({"key", "team", "run", "agent", "session", "tag"} if headers else {"key"})
        for row in told:
            if row["used"]:
                assert (row["used"], row["held"], row["pending"]) == (used[row["dimension"]], 0, 0), row
        assert len([row for row in told if row["used"]]) == len(met) * len(WORDS)

    with_stack(test, limits=limits(1_000_000))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("word", "dimension"), [("usd_per_month", "$0.00"), ("tokens_per_5h", "2 tokens"), ("requests_per_lifetime", "2")]
)
def test_a_budget_of_any_scope_is_not_exceeded(with_stack, scope, word, dimension):
    small = "0.000001" if word.startswith("usd") else "2"

    async def test(stack):
        key = await a_standing_key(stack, "ci")
        found = []
        for _ in range(3):
            status, _, body = await stack.send("POST", "/v1/messages", CALL, [*bearing(key.secret), *WHOSE])
            found.append(status)
        assert found == ([200, 200, 429] if word.startswith("requests") else [429] * 3)
        message = json.loads(body)["error"]["message"]
        assert dimension in message
        assert scope.partition("*")[0] in message

    with_stack(test, limits=f'[[limit]]\nscope = "{scope}"\n{word} = {small}\n')
