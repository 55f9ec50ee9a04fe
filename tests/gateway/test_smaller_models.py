"""Model rules through the gateway: what the provider gets, what the client gets, and what the ledger says."""

import json

from test_passing_through import ANSWER, ODD_BODY, Upstream

RULES = """
[[model_rule]]
name = "cheap"
models = "claude-opus-*"
scope = "tag:kind=simple"
use = "claude-haiku-4-5"
effort = "low"

[[model_rule]]
models = "gpt-*"
effort = "low"

[[model_rule]]
name = "closed"
models = "claude-sonnet-*"
then = "refuse"
"""
SIMPLE = (b"x-headgate-tags", b"kind=simple")
VERSION = (b"anthropic-version", b"2023-06-01")
CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "high"}


async def rows(stack) -> list[dict]:
    return (await stack.get("/api/v1/usage?group_by=model,asked_model,rule,state"))["groups"]


def test_only_the_models_bytes_change_and_the_answer_says_which_rule(with_stack):
    upstream = Upstream([ANSWER])

    async def test(stack):
        body = ODD_BODY % b"false"
        status, headers, answer = await stack.send("POST", "/v1/messages?beta=true", body, [VERSION, SIMPLE])
        assert (status, answer) == (200, ANSWER)
        assert upstream.bodies == [body.replace(b'"claude-opus-4-6"', b'"claude-haiku-4-5"')]
        assert headers[b"x-headgate-model-rule"] == b"cheap"
        (row,) = await rows(stack)
        assert (row["model"], row["asked_model"], row["rule"]) == ("claude-haiku-4-5", "claude-opus-4-6", "cheap")
        assert (await stack.get("/api/v1/usage?rule=cheap"))["total"]["requests"] == 1
        assert (await stack.get("/api/v1/usage?rule=2"))["total"]["requests"] == 0

    with_stack(test, app=upstream, limits=RULES)


def test_calls_that_no_rule_fits_pass_byte_for_byte(with_stack):
    upstream = Upstream([ANSWER])

    async def test(stack):
        body = ODD_BODY % b"false"
        status, headers, _ = await stack.send("POST", "/v1/messages", body, [VERSION])
        assert (status, upstream.bodies) == (200, [body])
        assert b"x-headgate-model-rule" not in headers
        counted = b'{"model":"claude-opus-4-6","messages":[]}'
        await stack.send("POST", "/v1/messages/count_tokens", counted, [VERSION, SIMPLE])
        assert upstream.bodies[1] == counted
        (row,) = await rows(stack)
        assert (row["model"], row["asked_model"], row["rule"]) == ("claude-opus-4-6", None, None)

    with_stack(test, app=upstream, limits=RULES)


def test_effort_is_lowered_where_the_client_asked_for_some(with_stack):
    upstream = Upstream([b'{"model":"gpt-5","usage":{"prompt_tokens":1,"completion_tokens":1}}'])

    async def test(stack):
        _, headers, _ = await stack.send("POST", "/v1/chat/completions", json.dumps(CHAT).encode())
        assert json.loads(upstream.bodies[0]) == {**CHAT, "reasoning_effort": "low"}
        assert headers[b"x-headgate-model-rule"] == b"2"
        plain = {name: value for name, value in CHAT.items() if name != "reasoning_effort"}
        _, headers, _ = await stack.send("POST", "/v1/chat/completions", json.dumps(plain).encode())
        assert json.loads(upstream.bodies[1]) == plain
        assert b"x-headgate-model-rule" not in headers
        _, _, body = await stack.send("POST", "/v1/embeddings", b'{"model":"gpt-5","input":"hi"}')
        assert upstream.bodies[2] == b'{"model":"gpt-5","input":"hi"}', body

    with_stack(test, app=upstream, limits=RULES)


SONNET = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'


def test_a_rule_that_refuses_is_told_as_the_vendor_would_and_recorded(with_stack):
    async def test(stack):
        status, headers, answer = await stack.send("POST", "/v1/messages", SONNET, [VERSION])
        assert (status, headers[b"x-should-retry"]) == (429, b"false")
        message = json.loads(answer)["error"]["message"]
        assert message == (
            "model rule closed turns calls like this for claude-sonnet-4-5 down; have its owner change the rule"
        )
        (row,) = await rows(stack)
        assert (row["state"], row["rule"], row["requests"], row["refused"]) == ("refused", "closed", 0, 1)
        assert stack.provider.usage()["total"]["requests_received"] == 0

    with_stack(test, limits=RULES)


def test_a_rule_that_refuses_while_a_budget_is_low_says_when_it_begins_again(with_stack):
    day = '[[limit]]\nscope = "account:claude"\nrequests_per_fixed_week = 100\n'
    rule = '[[model_rule]]\nbudget_below = 1\nthen = "refuse"\n'

    async def test(stack):
        for status in (200, 429):
            found, headers, answer = await stack.send("POST", "/v1/messages", SONNET, [VERSION])
            assert found == status, answer
        assert 0 < int(headers[b"retry-after"]) <= 7 * 86_400
        assert (
            "99.0% is left of 100 requests per 7 d (fixed) for account:claude, less than 100.0%"
            in json.loads(answer)["error"]["message"]
        )

    with_stack(test, limits=day + rule)
