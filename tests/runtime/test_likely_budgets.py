"""Limits that hold what is likely: small budgets and calls that state much go together, once enough was seen."""

import asyncio
from dataclasses import replace

import pytest
from small_house import budget, level_of, open_small_house

from headgate.core.accounts import Account
from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.errors import BudgetError
from headgate.core.estimates import Estimator
from headgate.core.limits import Window
from headgate.core.model_rules import ModelChoice, ModelRule
from headgate.core.quantiles import RARE_SAMPLES
from headgate.core.scheduling import Standing
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import Usage
from headgate.runtime.account_pool import Asked, PromptCache
from headgate.runtime.asking import demand_of, estimate_of
from headgate.runtime.calls import Call
from headgate.testing.scripted import FlatPrices, ScriptedProvider
from headgate.testing.virtual_time import run

CENT = 10_000
STATED = 32_000  # at $15 a million 48 cents
WRITTEN = 200


def likely(micro_usd: int, scope: str = "run:*") -> LimitRule:
    return LimitRule(scope, Window("", scope, "micro_usd", micro_usd, Lifetime(), holds_likely=True))


def call(**facts) -> Call:
    return Call("claude-test", text_bytes=4_000, max_output_tokens=STATED, scopes=Scopes(run="r"), **facts)


def teach(here, times: int = RARE_SAMPLES) -> None:
    here.manager._estimator.recall_longest("claude-test", [WRITTEN] * times)


async def held(here, **facts) -> tuple[int, int | None]:
    """Give what the budget holds of a call on its way, and what its row says."""
    async with here.manager.admit(call(**facts)) as grant:
        view = level_of(await here.manager.limits(), "micro_usd")
        grant.settle(Usage(100, output_tokens=50))
        return view.held, grant.attempt.held_micro_usd


def test_a_small_budget_and_a_call_that_states_much_go_together_once_enough_was_seen(house):
    async def main():
        async with house(likely(10 * CENT)) as here:
            teach(here, RARE_SAMPLES - 1)
            with pytest.raises(BudgetError, match="what is likely is held once 999 answers of 'claude-test' have been"):
                await held(here)
            teach(here, 1)
            prompt, written = 3 * (2_000 + 512 + 512), 15 * WRITTEN
            assert await held(here) == (prompt + written, prompt + written)
            view = level_of(await here.manager.limits(), "micro_usd")
            assert (view.used, view.held, view.hold) == (3 * 100 + 15 * 50, 0, "likely")
        async with house(budget(10 * CENT, "account:main")) as here:
            with pytest.raises(BudgetError, match=r"or raise the limit$"):
                await held(here)
            assert level_of(await here.manager.limits(), "micro_usd").hold == "bound"

    run(main())


def test_what_a_call_uses_beyond_its_hold_is_used_and_the_next_one_is_refused(house):
    async def main():
        async with house(likely(10 * CENT)) as here:
            teach(here)
            async with here.manager.admit(call()) as grant:
                grant.settle(Usage(100, output_tokens=STATED))
            view = level_of(await here.manager.limits(), "micro_usd")
            assert (view.used, view.free) == (3 * 100 + 15 * STATED, 0)
            assert view.used > 4 * view.amount
            with pytest.raises(BudgetError, match=r"at most \$0\.00 can be had"):
                await held(here)

    run(main())


def test_a_bound_beside_it_is_held_as_ever(house):
    async def main():
        async with house(likely(10 * CENT), budget(40 * CENT, "account:*")) as here:
            teach(here)
            with pytest.raises(BudgetError) as refused:
                await held(here)
            assert refused.value.limit == "account:main * micro_usd lifetime"
        async with house(likely(10 * CENT), budget(100 * CENT, "account:*")) as here:
            teach(here)
            async with here.manager.admit(call()) as grant:
                views = {view.scope: view.held for view in await here.manager.limits()}
                assert views["run:r"] < 2 * CENT
                assert views["account:main"] >= 15 * STATED
                assert grant.attempt.held_micro_usd == views["account:main"], "the most that was held"

    run(main())


def test_windows_of_output_hold_what_is_likely_of_it(house):
    async def main():
        day = Window("", "run:*", "output_tokens", 1_000, Calendar("day"), holds_likely=True)
        async with house(LimitRule("run:*", day)) as here:
            teach(here)
            for asked, holds in ((call(), WRITTEN), (replace(call(), id="short", max_output_tokens=7), 7)):
                async with here.manager.admit(asked) as grant:
                    assert level_of(await here.manager.limits(), "output_tokens").held == holds
                    grant.settle(Usage(100, output_tokens=5))

    run(main())


def test_after_a_restart_the_ledger_says_what_is_likely_before_the_first_call(house):
    async def main():
        async with house(budget(100_000 * CENT)) as here:
            for number in range(RARE_SAMPLES):
                async with here.manager.admit(call()) as grant:
                    grant.settle(Usage(100, output_tokens=WRITTEN - number % 7))
            assert here.manager._estimator.keeps_longest is False, "no limit asks for it"
            stores = here.levels, here.ledger
        async with house(likely(100_000 * CENT), stores=stores, owner="another") as there:
            assert (await held(there))[0] < 2 * CENT

    run(main())


def test_each_of_several_accounts_with_such_a_budget_can_serve(house):
    async def main():
        accounts = [Account("a", "anthropic"), Account("b", "anthropic")]
        providers = {"a": ScriptedProvider(), "b": ScriptedProvider()}
        rules = [likely(10 * CENT, "account:a"), likely(10 * CENT, "account:b")]
        async with house(*rules, accounts=accounts, providers=providers) as here:
            teach(here)
            async with here.manager.admit(call()) as first, here.manager.admit(call()) as second:
                assert {first.account, second.account} == {"a", "b"}
                assert "none can ever serve it" not in first.choice.why

    run(main())


def test_where_its_prompt_cache_is_not_a_call_asks_for_the_same_that_is_likely():
    expected, most, likely_amounts, cold = (Amounts(1, micro_usd=each) for each in (1, 4, 3, 2))
    demand, cache = Demand(expected, most, 25, likely_amounts), PromptCache(expected, cold, until_s=9.0)
    asked = Asked("x.1", "anthropic", "m", Scopes(), demand, Standing(), 0.0, 9.0, cache=cache)
    assert asked.demand_at(1.0, is_warm=False) == (Demand(cold, most, 25, likely_amounts), 2, Amounts(micro_usd=1))
    assert asked.demand_at(1.0, is_warm=True) == (demand, 1, NOTHING)


def test_a_model_rule_about_waiting_reckons_with_what_is_likely(house):
    async def main():
        rule = ModelRule("late", wait_over_s=5.0, use="claude-small")
        async with house(likely(10 * CENT), model_rules=(rule,)) as here:
            teach(here)
            asked = call(may_degrade=True)
            assert await here.manager.model_for(asked) == ModelChoice("claude-test"), "it can go at once"

    run(main())


@pytest.mark.parametrize("stated", [None, 100, STATED])
@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
def test_what_is_likely_is_never_more_than_the_most(stated, dialect):
    estimator = Estimator()
    estimator.keep_longest()
    estimator.recall_longest("m", [WRITTEN] * RARE_SAMPLES)
    asked = Call("m", dialect, text_bytes=4_000, max_output_tokens=stated)
    demand = demand_of(asked, estimate_of(asked, estimator, 0.0), FlatPrices(), 0.0)
    assert demand.likely is not None
    assert all(one <= most for one, most in zip(demand.likely, demand.at_most, strict=True))
    assert all(
        one >= least for one, least in zip(demand.likely[1:3], (1, min(stated or WRITTEN, WRITTEN)), strict=True)
    )
    if dialect == "openai":
        assert demand.likely.tokens >= (stated or 0), "counted at the start, whatever is written"


def test_a_manager_whose_limits_hold_bounds_keeps_no_long_samples():
    async def main():
        async with open_small_house(budget(CENT)) as here:
            await asyncio.sleep(1)
            assert not here.manager._estimator.keeps_longest

    run(main())
