"""The owner's model rules over limits as they are: what a call is held, sent and recorded with."""

import asyncio
from dataclasses import replace

import pytest
from small_house import budget, slots

from headgate.core.accounts import Account
from headgate.core.bounds import Reach
from headgate.core.errors import BudgetError, LimitError, RuledOutError
from headgate.core.ledger import UsageQuery
from headgate.core.limits import Rate, Window
from headgate.core.model_rules import ModelChoice, ModelRule
from headgate.core.retries import Failure
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar
from headgate.core.usage import Usage
from headgate.ports import Request
from headgate.runtime.asking import size_of
from headgate.runtime.calls import Call
from headgate.runtime.planning import MaintenanceRule
from headgate.testing.scripted import FlatPrices, Reply, ScriptedProvider
from headgate.testing.virtual_time import run

BIG, SMALL = "claude-big", "claude-small"
SMALLER = ModelRule("small", models=BIG, use=SMALL)
REQUEST = Request("POST", "/v1/messages", (), b"{}", "")


def call(**facts) -> Call:
    return Call(BIG, text_bytes=400, max_output_tokens=100, may_degrade=True, **facts)


def pool(models: str, requests: int) -> LimitRule:
    """Requests per minute of one pool of models."""
    limit = Rate("", "account:main", "requests", requests, 60, requests, models, charged_at_start=True)
    return LimitRule("account:main", limit)


async def groups(here, *by):
    return [group.group | {"requests": group.requests} for group in await here.manager.usage(UsageQuery(by))]


def test_a_call_is_held_and_recorded_with_the_model_that_its_rule_chose(house):
    async def main():
        async with house(pool(BIG, 1), pool(SMALL, 5), model_rules=(SMALLER,)) as here:
            async with here.manager.admit(call()) as grant:
                assert (grant.model, grant.effort) == (SMALL, None)
            assert await groups(here, "model", "asked_model", "rule") == [
                {"model": SMALL, "asked_model": BIG, "rule": "small", "requests": 1}
            ]
            used = {view.models: view.used for view in await here.manager.limits()}
            assert used == {BIG: 0, SMALL: 1}

    run(main())


def test_whoever_did_not_say_that_it_may_degrade_gets_what_it_asked_for(house):
    async def main():
        async with house(model_rules=(SMALLER, ModelRule("no", then="refuse"))) as here:
            async with here.manager.admit(replace(call(), may_degrade=False)) as grant:
                assert grant.model == BIG
            assert (await here.manager.model_for(replace(call(), may_degrade=False))).rule is None
            assert await groups(here, "asked_model", "rule") == [{"asked_model": None, "rule": None, "requests": 1}]

    run(main())


def test_effort_is_lowered_and_the_grant_says_so(house):
    async def main():
        async with house(model_rules=(ModelRule("calm", effort="low"),)) as here:
            async with here.manager.admit(call(effort=lambda: "high")) as grant:
                assert (grant.model, grant.effort, grant.attempt.rule) == (BIG, "low", "calm")
            assert await here.manager.model_for(call()) == ModelChoice(BIG)

    run(main())


def test_a_call_that_would_wait_too_long_takes_the_smaller_model_meanwhile(house):
    async def main():
        rule = replace(SMALLER, wait_over_s=30.0)
        async with house(pool(BIG, 1), pool(SMALL, 1), model_rules=(rule,)) as here:
            asked = call()
            for expected in (BIG, SMALL):
                async with here.manager.admit(replace(asked, id=expected)) as grant:
                    assert (grant.model, grant.wait_s) == (expected, 0.0)
            assert (await here.manager.model_for(asked)).rule is None  # there it would wait as long
            await asyncio.sleep(31)
            assert (await here.manager.model_for(asked)).model == BIG  # which would be another 29 s
            assert len(here.provider.sent) == 0

    run(main())


def test_calls_that_wait_already_count_as_waiting(house):
    async def main():
        rule = replace(SMALLER, wait_over_s=90.0)
        async with house(pool(BIG, 1), pool(SMALL, 5), model_rules=(rule,)) as here:
            async with here.manager.admit(replace(call(), may_degrade=False)):
                pass
            queue = [asyncio.create_task(_hold(here, replace(call(), may_degrade=False))) for _ in range(2)]
            await asyncio.sleep(1)
            assert (await here.manager.model_for(call())).model == SMALL
            await asyncio.gather(*queue)

    run(main())


async def _hold(here, asked: Call) -> None:
    async with here.manager.admit(asked):
        pass


def test_what_is_left_of_a_budget_decides_as_the_store_has_it(house):
    async def main():
        refusing = ModelRule("last", budget_below=0.2, budget_of="run:*", then="refuse")
        rules = (refusing, replace(SMALLER, budget_below=0.6, budget_of="run:*"))
        limits = (budget(20_000), budget(10_000, "key:*"))
        asked = call(scopes=Scopes(run="r", key="k"))
        spent = Usage(1_000, output_tokens=400)  # $0.009
        async with house(*limits, model_rules=rules) as here:
            async with here.manager.admit(call(scopes=Scopes(key="k"))) as grant:
                grant.settle(Usage(1))
            assert (await here.manager.model_for(asked)).model == BIG
            async with here.manager.admit(call(scopes=Scopes(run="r"))) as grant:
                grant.settle(spent)
            stores = here.levels, here.ledger
            async with house(*limits, model_rules=rules, stores=stores, owner="another") as there:
                assert (await there.manager.model_for(asked)).model == SMALL
                async with there.manager.admit(call(scopes=Scopes(run="r"))) as grant:
                    grant.settle(spent)
            with pytest.raises(RuledOutError, match=r"10\.0% is left of \$0\.02 in all for run:r, less") as raised:
                await here.manager.model_for(asked)
            assert raised.value.retry_after_s is None  # a lifetime does not begin again

    run(main())


def test_of_two_accounts_the_better_one_decides(house):
    async def main():
        accounts = [Account("main", "anthropic"), Account("spare", "anthropic", (BIG,))]
        providers = {"main": ScriptedProvider(), "spare": ScriptedProvider()}
        day = LimitRule("account:main", Window("", "account:main", "requests", 1, Calendar("day"), BIG))
        rules = (replace(SMALLER, wait_over_s=5.0), replace(SMALLER, name="poor", budget_below=0.5))
        small_free = LimitRule("account:main", Rate("", "account:main", "requests", 60, 60, 60, SMALL))
        async with house(day, small_free, accounts=accounts, providers=providers, model_rules=rules) as here:
            async with here.manager.admit(replace(call(), scopes=Scopes(account="main"))):
                pass
            assert await here.manager.model_for(call()) == ModelChoice(BIG)

    run(main())


def test_an_account_that_is_left_alone_after_failures_makes_a_call_wait(house):
    async def main():
        down = Reply(failure=Failure("server", "api_error", 500))
        rule = replace(SMALLER, wait_over_s=5.0)
        async with house(slots(5), model_rules=(rule,), provider=ScriptedProvider([down])) as here:
            for _ in range(5):
                assert (await here.manager.model_for(call())).model == BIG
                async with here.manager.carry(replace(call(), may_degrade=False, max_wait_s=0.01), REQUEST):
                    pass
            assert (await here.manager.model_for(call())).model == SMALL
            await asyncio.sleep(11)
            assert (await here.manager.model_for(call())).model == BIG

    run(main())


def test_maintenance_makes_a_call_wait(house):
    async def main():
        def spans(from_s: float, _until_s: float):
            return [(from_s - 10, from_s + 3_600)]

        rule = replace(SMALLER, wait_over_s=30.0)
        maintenance = [MaintenanceRule("nightly", spans, models=BIG, scope="account:*")]
        async with house(slots(5), model_rules=(rule,), maintenance=maintenance) as here:
            assert (await here.manager.model_for(call())).model == SMALL

    run(main())


LATE = ModelRule("late", wait_over_s=30.0, then="refuse")


def test_a_spent_budget_is_the_reason_and_not_the_wait_for_it(house):
    """It said `it would wait for ever, more than 30 s`: no limit, and no way out."""

    async def main():
        async with house(budget(20_000), model_rules=(LATE,)) as here:
            asked = call(scopes=Scopes(run="r"))
            async with here.manager.admit(asked) as grant:
                grant.settle(Usage(4_000, output_tokens=600))
            with pytest.raises(BudgetError, match=r"^limit reached: \$0\.02 in all for run:r; .* raise the limit$"):
                async with here.manager.admit(call(scopes=Scopes(run="r"))):
                    pass

    run(main())


@pytest.mark.parametrize("refuses", [True, False])
def test_the_maintenance_window_that_binds_is_in_the_refusal(house, refuses):
    async def main():
        def spans(from_s: float, _until_s: float):
            return [(from_s - 10, from_s + 3_450)]

        maintenance = [MaintenanceRule("0_2_*_*_*", spans, scope="account:*", refuses=refuses)]
        async with house(slots(5), model_rules=(LATE,), maintenance=maintenance) as here:
            with pytest.raises(LimitError, match=r'maintenance "0 2 \* \* \*" for account:\*') as raised:
                async with here.manager.admit(call()):
                    pass
            assert isinstance(raised.value, RuledOutError) is not refuses
            if not refuses:
                assert "it would wait about 58 min for" in str(raised.value)
                assert str(raised.value).endswith("come again in 58 min, or have its owner change the rule")

    run(main())


def test_the_limit_that_binds_is_in_the_refusal_of_a_rule_about_waiting(house):
    async def main():
        async with house(pool(BIG, 1), model_rules=(LATE,)) as here:
            asked = replace(call(), may_degrade=False)
            async with here.manager.admit(asked):
                pass
            with pytest.raises(RuledOutError, match=rf"1 min for 1 request per minute for account:main \({BIG}\)"):
                await here.manager.model_for(call())
            await asyncio.sleep(59)
            waiting = asyncio.create_task(_hold(here, replace(call(), may_degrade=False)))
            await asyncio.sleep(0.5)
            with pytest.raises(RuledOutError, match=rf"1 min for 1 request per minute for account:main \({BIG}\)"):
                await here.manager.model_for(call())
            await waiting

    run(main())


def test_a_model_that_does_not_reach_as_far_as_the_call_is_not_used(house):
    async def main():
        prices = FlatPrices(reaches=Reach(context_window=5_000, max_output_tokens=99))
        async with house(model_rules=(SMALLER,), prices=prices) as here:
            assert (await here.manager.model_for(call())).rule is None
            assert (await here.manager.model_for(replace(call(), max_output_tokens=99))).model == SMALL
            assert (await here.manager.model_for(replace(call(), max_output_tokens=9, text_bytes=99_000))).rule is None

    run(main())


def test_a_rule_turns_a_call_down_and_that_is_recorded(house):
    async def main():
        async with house(slots(1), model_rules=(ModelRule("closed", scope="key:ci", then="refuse"),)) as here:
            with pytest.raises(
                RuledOutError, match=f"model rule closed turns calls like this for {BIG} down"
            ) as raised:
                async with here.manager.admit(call(scopes=Scopes(key="ci"))):
                    pass
            assert (raised.value.limit, raised.value.retry_after_s) == ("model_rule:closed", None)
            (row,) = await here.manager.attempts(None)
            assert (row.state, row.error_type, row.rule, row.model) == ("refused", "model_rule:closed", "closed", BIG)
            async with here.manager.admit(call(scopes=Scopes(key="else"))) as grant:
                assert grant.model == BIG

    run(main())


# -- conversations that stay with what a rule chose


SIZE = ModelRule("short", models=BIG, max_input_tokens=20_000, use=SMALL)


def said_in(session: str | None, tokens: int, **scopes) -> Call:
    """One call of a conversation whose prompt has so many tokens."""
    return replace(call(scopes=Scopes(session=session, **scopes)), input_tokens=tokens, text_bytes=4 * tokens)


async def sent_to(here, session: str | None, tokens: int, **scopes) -> str:
    """Send a call and let its provider write the whole prompt to its cache; give the model."""
    async with here.manager.admit(said_in(session, tokens, **scopes)) as grant:
        grant.settle(Usage(10, cache_write_5m_tokens=tokens - 10, output_tokens=5))
    await asyncio.sleep(20)
    return grant.model


def test_a_session_at_the_border_of_a_size_stays_with_its_model_and_another_goes_by_the_rule(house):
    async def main():
        async with house(model_rules=(SIZE,)) as here:
            went = [await sent_to(here, "s", tokens) for tokens in (19_900, 20_050, 20_050, 20_100)]
            assert went == [SMALL] * 4
            assert await sent_to(here, "another", 20_050) == BIG
            assert await sent_to(here, "s", 20_100, agent="sub") == BIG
            assert await sent_to(here, "s", 20_100, key="k") == BIG
            assert [await sent_to(here, None, tokens) for tokens in (19_900, 20_050)] == [SMALL, BIG]
            rules = await groups(here, "model", "rule")
            assert {(row["model"], row["rule"]) for row in rules} == {(SMALL, "short"), (BIG, None)}

    run(main())


def test_a_session_whose_cache_has_died_goes_by_the_rules_again(house):
    async def main():
        async with house(model_rules=(replace(SIZE, sticky_s=3_600.0),)) as here:
            assert await sent_to(here, "s", 19_900) == SMALL
            await asyncio.sleep(270)
            assert await sent_to(here, "s", 20_050) == SMALL
            await asyncio.sleep(281)
            assert await sent_to(here, "s", 20_050) == BIG

    run(main())


def test_a_session_without_a_prompt_cache_has_nothing_to_stay_for(house):
    async def main():
        async with house(model_rules=(SIZE,)) as here:
            for tokens, model in ((19_900, SMALL), (20_050, BIG), (19_990, SMALL)):
                async with here.manager.admit(said_in("s", tokens)) as grant:
                    grant.settle(Usage(tokens, output_tokens=5))
                assert grant.model == model

    run(main())


def test_at_the_border_of_a_budget_a_session_stays_and_is_refused_at_once(house):
    async def main():
        rules = (
            ModelRule("last", budget_below=0.1, then="refuse"),
            replace(SMALLER, budget_below=0.5),
        )
        async with house(budget(100_000), model_rules=rules) as here:
            asked = said_in("s", 1_000, run="r")

            async def spend(micro_usd: int) -> None:
                async with here.manager.admit(call(scopes=Scopes(run="r"), input_tokens=1)) as grant:
                    grant.settle(Usage(micro_usd // 3))

            assert await sent_to(here, "s", 1_000, run="r") == BIG
            await spend(45_000)
            holding = here.manager.admit(replace(asked, id="held", may_degrade=False))
            async with holding as grant:  # what is held counts, and comes back
                assert (await here.manager.model_for(asked)).model == SMALL
                grant.settle(Usage(1, output_tokens=1))
            here.manager._estimator.observe(
                size_of(replace(asked, model=SMALL)), Usage(1, cache_write_5m_tokens=999), here.clock.now_s()
            )
            assert (await here.manager.model_for(said_in("new", 1_000, run="r"))).model == BIG
            assert await here.manager.model_for(asked) == ModelChoice(SMALL, "small", asked_model=BIG)
            await spend(45_000)
            with pytest.raises(RuledOutError, match="model rule last"):
                await here.manager.model_for(asked)

    run(main())


def test_what_is_remembered_of_conversations_is_bounded(house, monkeypatch):
    monkeypatch.setattr("headgate.runtime.model_choice.MOST_KEPT", 3)

    async def main():
        async with house(model_rules=(SIZE,)) as here:
            for number in range(9):
                await here.manager.model_for(said_in(f"s{number}", 100))
                await here.manager.model_for(said_in(f"b{number}", 90_000))
            kept = here.manager._model_choosing.kept
            assert [conversation[2] for conversation in kept] == ["s6", "s7", "s8"]

    run(main())
