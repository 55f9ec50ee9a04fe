"""A budget of money holds what a call may cost at the most: pictures, documents, what is only named, unstated output.

Each call goes through the gateway; what is held is read while the provider has not answered yet.
"""

import asyncio
import json
import zlib
from base64 import b64encode
from typing import Any

import pytest
from standing_keys import a_standing_key, bearing

PDF = b64encode(b"%PDF-1.7\n" + zlib.compress(b"BT (word) Tj ET " * 9_999)).decode()
_PNG = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    + (1120).to_bytes(4, "big")
    + (560).to_bytes(4, "big")
    + b"\x08\2\0\0\0"
    + bytes(200)
)
PICTURE = {"type": "base64", "media_type": "image/png", "data": b64encode(_PNG).decode()}  # 40 x 20 tokens
DOLLAR = 1_000_000
SONNET, GPT = "claude-sonnet-4-5", "gpt-4.1"
# claude-sonnet-4-5: $3 and $15 a million, above 200,000 of input $6 and $22.50; gpt-4.1: $2 and $8.
SONNET_WINDOW, GPT_WINDOW = 200_000 * 3, 1_050_000 * 2
UNCOUNTED = "gpt-of-the-owner"


def budget(dollars: float, more: str = "") -> str:
    return f'[[limit]]\nscope = "account:*"\nusd_per_lifetime = {dollars}\n{more}'


def message(*parts: Any, model: str = SONNET, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {
        "model": model,
        "max_tokens": 100,
        "messages": [{"role": "user", "content": list(parts) or "hi"}],
        **more,
    }


def chat(*parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {
        "model": GPT,
        "max_completion_tokens": 100,
        "messages": [{"role": "user", "content": list(parts) or "hi"}],
        **more,
    }


def response(**more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"model": GPT, "max_output_tokens": 100, "input": "go on", **more}


def without(call: tuple[str, dict[str, Any]], word: str) -> tuple[str, dict[str, Any]]:
    return call[0], {name: value for name, value in call[1].items() if name != word}


def document(source: dict[str, str]) -> dict[str, Any]:
    return {"type": "document", "source": source}


BY_URL = {"type": "url", "url": "https://example.com/a.pdf"}


async def send(stack: Any, call: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    status, _, answer = await stack.send(
        "POST", call[0], json.dumps(call[1]).encode(), [(b"x-headgate-max-wait", b"5")]
    )
    return status, "" if status == 200 else json.loads(answer)["error"]["message"]


async def held_while_sent(stack: Any, call: tuple[str, dict[str, Any]]) -> int:
    """Give the money that is held for a call at the moment its provider begins to work on it."""
    sending = asyncio.create_task(send(stack, call))
    while not (in_flight := stack.house.manager.in_flight()):
        assert not sending.done(), await sending
        await asyncio.sleep(0)
    held = in_flight[0].asked.at_most.micro_usd
    assert (await sending)[0] in {200, 400, 404}
    return held


@pytest.mark.parametrize(
    ("call", "at_least_micro_usd", "at_most_micro_usd"),
    [
        (message(), 100 * 15, 5_000),
        (message({"type": "text", "text": "7391" * 10_000}), 40_000 * 3, 43_000 * 3),
        (message(document({"type": "base64", "media_type": "application/pdf", "data": PDF})), SONNET_WINDOW, 10**6),
        (message(document(BY_URL)), SONNET_WINDOW, 10**6),
        (message({"type": "image", "source": {"type": "file", "file_id": "f"}}), SONNET_WINDOW, 10**6),
        (chat(*[{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}] * 20), GPT_WINDOW, 3 * 10**6),
        (response(previous_response_id="resp_1"), GPT_WINDOW, 3 * 10**6),
        (response(conversation="conv_1"), GPT_WINDOW, 3 * 10**6),
        (without(chat(), "max_completion_tokens"), 32_768 * 8, 32_768 * 8 + 2_000),
        (without(chat(n=3), "max_completion_tokens"), 3 * 32_768 * 8, 3 * 32_768 * 8 + 2_000),
        (without(response(), "max_output_tokens"), 32_768 * 8, 32_768 * 8 + 2_000),
        (message(tools=[{"type": "web_search_20260209", "name": "web_search"}]), 10 * SONNET_WINDOW, 20 * 10**6),
    ],
)
def test_a_budget_holds_all_that_a_call_may_cost(with_stack, call, at_least_micro_usd, at_most_micro_usd):
    async def test(stack):
        assert at_least_micro_usd <= await held_while_sent(stack, call) <= at_most_micro_usd

    with_stack(test, limits=budget(1_000))


@pytest.mark.parametrize(
    "call", [message(document(BY_URL)), chat({"type": "file", "file": {"file_id": "f"}}), response(conversation="c")]
)
def test_what_may_cost_more_than_there_is_never_reaches_the_provider(with_stack, call):
    async def test(stack):
        status, words = await send(stack, call)
        assert status == 429
        assert "$0.50 in all" in words
        assert stack.provider.usage()["total"]["requests_received"] == 0
        assert (await send(stack, message()))[0] == 200

    with_stack(test, limits=budget(0.5))


def test_a_second_document_waits_until_the_first_has_told_what_it_cost(with_stack):
    async def test(stack):
        call, manager = message(document(BY_URL)), stack.house.manager
        both = asyncio.gather(send(stack, call), send(stack, call))
        on_their_way, waited = 0, 0
        while not both.done():
            on_their_way = max(on_their_way, len(manager.in_flight()))
            waited = max(waited, len(manager._admission.waiting()))
            await asyncio.sleep(0)
        assert await both == [(200, ""), (200, "")]
        assert (on_their_way, waited) == (1, 1)

    with_stack(test, limits=budget(0.7))


@pytest.mark.parametrize(
    "call", [response(conversation="c", model=UNCOUNTED), without(chat(model=UNCOUNTED), "max_completion_tokens")]
)
def test_a_model_of_unknown_reach_is_refused_only_where_a_budget_needs_a_bound(with_stack, call):
    priced = f'[[price]]\nmodel = "{UNCOUNTED}"\ninput = 1\noutput = 1\n'

    async def refused(stack):
        status, words = await send(stack, call)
        assert status == 400
        assert "context_window and max_output_tokens under [[price]]" in words
        assert UNCOUNTED in words
        assert stack.provider.usage()["total"]["requests_received"] == 0
        assert (await send(stack, chat(model=UNCOUNTED)))[0] == 200, (
            "its bytes and its own bound of output tokens bound it"
        )

    async def admitted(stack):
        assert (await send(stack, call))[0] in {200, 400}
        assert stack.provider.usage()["total"]["requests_received"] == 1

    with_stack(refused, limits=budget(1, priced))
    with_stack(admitted, limits=budget(1, priced + "context_window = 50_000\nmax_output_tokens = 1_000\n"))
    with_stack(admitted, limits='[[limit]]\nscope = "account:*"\nrequests_per_minute = 60\n' + priced)


def test_a_budget_that_holds_what_is_likely_holds_the_bound_of_what_a_request_does_not_tell(with_stack):
    async def test(stack):
        estimator = stack.house.manager._estimator
        for model in (SONNET, GPT):
            estimator.recall_longest(model, [50] * 999)
        words = {"type": "text", "text": "word " * 10_000}
        for call, least, most in (
            (message(words, max_tokens=64_000), 20_000 * 3, 30_000 * 3),
            (message(words, document(BY_URL)), SONNET_WINDOW, SONNET_WINDOW + 2_000),
            (response(previous_response_id="resp_1"), GPT_WINDOW, GPT_WINDOW + 2_000),
            (message(tools=[{"type": "web_search_20260209", "name": "web_search"}]), 10 * SONNET_WINDOW, 20 * 10**6),
            (message({"type": "image", "source": PICTURE}), 800 * 3, 2_000 * 3 + 50 * 15),
        ):
            sending = asyncio.create_task(send(stack, call))
            while not (in_flight := stack.house.manager.in_flight()):
                assert not sending.done(), await sending
                await asyncio.sleep(0)
            assert least <= in_flight[0].asked.likely.micro_usd <= most, call
            assert in_flight[0].attempt.held_micro_usd == in_flight[0].asked.likely.micro_usd
            await sending

    with_stack(test, limits=budget(1_000, 'hold = "likely"\n'))


def test_a_key_that_came_later_can_have_a_budget_that_holds_what_is_likely(with_stack):
    async def test(stack):
        limits = json.dumps([{"usd_per_lifetime": 0.5, "hold": "likely"}])
        key = await a_standing_key(stack, "ci", limits=limits)
        path, body = message(max_tokens=64_000)

        async def ask() -> tuple[int, bytes]:
            status, _, answer = await stack.send("POST", path, json.dumps(body).encode(), bearing(key.secret))
            return status, answer

        status, answer = await ask()
        assert status == 429
        assert b"what is likely is held once 999 answers" in answer
        stack.house.manager._estimator.recall_longest(SONNET, [50] * 999)
        assert (await ask())[0] == 200

    with_stack(test)


def test_a_call_that_meets_no_budget_is_not_looked_at(with_stack, monkeypatch):
    def looked(*_: object) -> None:
        raise AssertionError("its body was read")

    monkeypatch.setattr("headgate.gateway.relay.prompt_bound", looked)

    async def test(stack):
        assert (await send(stack, message()))[0] == 200

    with_stack(test, limits='[[limit]]\nscope = "account:*"\nrequests_per_minute = 60\ninput_tokens_per_day = 100_000')
