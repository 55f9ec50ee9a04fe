"""What a call asks of the limits: what is cached is not asked of a rate, and never left out of a bound."""

import asyncio

import pytest
from small_house import budget, level_of, rate, slots

from headgate.core.estimates import Estimator
from headgate.core.limits import Window
from headgate.core.scheduling import Standing
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar
from headgate.core.usage import Usage
from headgate.ports import Cost
from headgate.runtime.asking import demand_of, estimate_of
from headgate.runtime.calls import Call
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import run

DAY = LimitRule("run:*", Window("", "run:*", "input_tokens", 10**8, Calendar("day")))
LIMITS = (rate("input_tokens", 600_000, burst=60_000), rate("output_tokens", 60_000), slots(1), budget(10**9), DAY)
PROMPT_TOKENS = 40_000


def step(text_tokens=PROMPT_TOKENS, *, said=None):
    return Call(
        "claude-test",
        text_bytes=4 * text_tokens,
        max_output_tokens=100,
        scopes=Scopes(session="s", run="r"),
        standing=said or Standing(),
    )


async def converse(here, steps=120):
    """Let a conversation be so long that its cache is counted on."""
    for _ in range(steps):
        async with here.manager.admit(step()) as grant:
            grant.settle(Usage(100, PROMPT_TOKENS - 100, output_tokens=10))
        await asyncio.sleep(1)


@pytest.mark.parametrize(("pause_s", "held"), [(0, 100), (298, 100), (301, PROMPT_TOKENS)])
def test_a_rate_holds_what_is_not_cached_while_the_cache_lives(house, pause_s, held):
    async def main():
        async with house(*LIMITS) as here:
            await converse(here)
            await asyncio.sleep(pause_s)
            async with here.manager.admit(step()) as grant:
                views = await here.manager.limits()
                by_kind = {view.kind: view.held for view in views if view.dimension == "input_tokens"}
                assert by_kind["rate"] == pytest.approx(held, abs=1)
                assert by_kind["window"] >= PROMPT_TOKENS
                assert level_of(views, "micro_usd").held >= PROMPT_TOKENS * 3, "a bound trusts no cache"
                assert grant.attempt.usage.input_tokens == PROMPT_TOKENS, "what is never told is charged in full"
                grant.settle(Usage(100))

    run(main())


def test_a_call_whose_cache_died_while_it_waited_holds_its_whole_prompt(house):
    async def main():
        async with house(*LIMITS) as here:
            await converse(here)
            async with here.manager.admit(step()) as first:
                first.settle(Usage(100, PROMPT_TOKENS - 100, output_tokens=10))
                waits = asyncio.create_task(hold_for_a_second(here))
                await asyncio.sleep(1)
                (waiting,) = here.manager._admission.waiting()
                standing = waiting.ticket.standing
                assert (standing.priority, standing.cold.input_tokens) == (3, PROMPT_TOKENS)
                assert 290 < standing.warm_until_s - here.clock.now_s() < 300
                assert waiting.ticket.asked.expected.input_tokens == pytest.approx(100, abs=1)
                await asyncio.sleep(305)
            assert await waits == PROMPT_TOKENS

    async def hold_for_a_second(here):
        async with here.manager.admit(step(said=Standing(priority=3))) as grant:
            views = await here.manager.limits()
            (held,) = [view.held for view in views if (view.dimension, view.kind) == ("input_tokens", "rate")]
            grant.settle(Usage(PROMPT_TOKENS))
            return held

    run(main())


class ByKind(FlatPrices):
    """Prices a prompt by where it goes, in micro-dollars a token."""

    def cost(self, model, usage, at_s):
        micro_usd = 4 * usage.input_tokens + 5 * usage.cache_write_5m_tokens + 8 * usage.cache_write_1h_tokens
        return Cost(micro_usd + 20 * usage.output_tokens, "list")


@pytest.mark.parametrize(
    ("dialect", "cache_write", "token_micro_usd"),
    [("anthropic", None, 4), ("anthropic", "5m", 5), ("anthropic", "1h", 8), ("openai", None, 5)],
)
def test_a_budget_is_asked_for_the_dearest_way_in_which_a_prompt_may_be_charged(dialect, cache_write, token_micro_usd):
    call = Call("claude-test", dialect, input_tokens=1_000, max_output_tokens=10, cache_write=cache_write)
    estimate = estimate_of(call, Estimator(), 0.0)
    most = demand_of(call, estimate, ByKind(), 0.0).at_most.micro_usd
    assert most == 1_000 * token_micro_usd + 20 * estimate.output_at_most
