"""What users of other gateways suffer: each has a test, and a page that names it."""

import json
import re
from pathlib import Path

import pytest
from test_passing_through import Upstream

from headgate.core.usage import Usage

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "faults-of-others.md"

CLAUDE_STREAM = [
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","model":"claude-sonnet-4-5","usage":{'
        b'"input_tokens":1000,"cache_creation_input_tokens":3000,"cache_read_input_tokens":50000,"output_tokens":1,'
        b'"cache_creation":{"ephemeral_5m_input_tokens":1000,"ephemeral_1h_input_tokens":2000}}}}\n\n'
    ),
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":700}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
GPT_STREAM = [
    b'data: {"id":"c","model":"gpt-5","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\n',
    (
        b'data: {"id":"c","model":"gpt-5","choices":[],"usage":{"prompt_tokens":54000,"completion_tokens":700,'
        b'"prompt_tokens_details":{"cached_tokens":50000}}}\n\n'
    ),
    b"data: [DONE]\n\n",
]


@pytest.mark.parametrize(
    ("path", "model", "stream", "used"),
    [
        ("/v1/messages", "claude-sonnet-4-5", CLAUDE_STREAM, Usage(1_000, 50_000, 1_000, 2_000, 700)),
        ("/v1/chat/completions", "gpt-5", GPT_STREAM, Usage(4_000, 50_000, 0, 0, 700)),
    ],
)
def test_cached_tokens_of_streams_are_priced_as_such(with_stack, path, model, stream, used):
    """Priced as plain input the first of them would cost three times as much."""

    async def test(stack):
        body = {"model": model, "stream": True, "max_tokens": 1_000, "messages": [{"role": "user", "content": "hi"}]}
        status, _, answer = await stack.send("POST", path, json.dumps(body).encode())
        assert (status, b"".join(stream)[:40]) == (200, answer[:40])
        total = await stack.total()
        price = stack.house.prices.cost(model, used, stack.house.clock.now_s()).micro_usd
        dear = stack.house.prices.cost(model, Usage(used.prompt_tokens, output_tokens=700), 0.0).micro_usd
        assert total["cost_micro_usd"] == price
        assert dear is not None
        assert price is not None
        assert dear > 2 * price
        assert (total["cache_read_tokens"], total["output_tokens"]) == (50_000, 700)

    with_stack(test, app=Upstream(stream, b"text/event-stream"))


def test_each_fault_that_is_named_has_its_test():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "`" in line]
    named = [found for row in rows for found in re.findall(r"`(tests/[\w/]+\.py)` (\w+)", row)]
    assert len(rows) >= 18
    assert all(re.search(r"`tests/", row) or "not yet" in row for row in rows)
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
