"""Providers that count calls otherwise than their dialect's vendor: their quota is used, and none of it is refused."""

import pytest
from learning_stage import open_learning_stage

from headgate.core.limits import Rate
from headgate.core.scopes import LimitRule
from headgate.testing import virtual_time

TOKENS = 30_000
AT = {
    "bedrock": ("anthropic", "/bedrock/anthropic"),
    "gemini": ("openai", "/v1beta/openai"),
    "azure": ("openai", "/openai/v1"),
}


@pytest.mark.parametrize(("vendor", "least"), [("bedrock", 0.9), ("gemini", 0.9), ("azure", 0.9)])
def test_a_provider_s_own_count_fills_its_quota_without_a_429(vendor: str, least: float) -> None:
    dialect, path = AT[vendor]
    burst = TOKENS * 5 // 6
    limit = Rate("", "account:main", "tokens", TOKENS, 60, burst, largest=TOKENS, charged_at_start=True)

    async def main() -> None:
        stage_of = open_learning_stage(
            LimitRule("account:main", limit),
            dialect=dialect,  # type: ignore[arg-type]  # one of the two
            vendor=vendor,
            path=path,
            tokens_per_minute=TOKENS,
            settings={"tells_limits": False},
        )
        async with stage_of as stage:
            await stage.loops(20, 600.0, endpoint="messages")
            assert stage.refused() == 0
            assert stage.done > 0
            assert stage.served("tokens") >= least * TOKENS * 10

    virtual_time.run(main())
