"""A subscription's window, seen from outside: the gateway's limits end when the provider's headers say."""

import json
from datetime import datetime

import pytest

from headgate.testing.provider import Latency, PlanWindow, ProviderSettings

LIMITS = """
[[limit]]
scope = "account:claude"
tokens_per_5h = 1_000_000
tokens_per_7d = 5_000_000
"""
# An hour is the longest window that the simulated provider does not floor: its end is far from Headgate's own guess.
PLAN = ProviderSettings(latency=Latency.none(), plan=(PlanWindow("5h", 1_000_000, 3_000),))
MESSAGE = {"model": "claude-sonnet-4-5", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_plan_window_ends_when_the_provider_says(with_stack, streamed):
    async def test(stack):
        body = json.dumps({**MESSAGE, "stream": streamed}).encode()
        status, headers, _body = await stack.send("POST", "/v1/messages", body)
        assert status == 200
        told_s = int(headers[b"anthropic-ratelimit-unified-5h-reset"])
        limits = (await stack.get("/api/v1/limits"))["limits"]
        ends_s = {limit["per"]: datetime.fromisoformat(limit["resets_at"]).timestamp() for limit in limits}
        assert abs(ends_s["plan-18000s"] - told_s) <= 1
        # The provider said nothing of the other: opened by this call, floored to the hour.
        assert ends_s["plan-604800s"] % 3_600 == 0

    with_stack(test, limits=LIMITS, provider=PLAN)
