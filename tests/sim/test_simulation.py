"""The simulator plays Headgate's own admission: nothing is lost, limits hold, and what is changed shows."""

import json
from dataclasses import asdict

import pytest
from sim_stage import ACCOUNT, calls, config, play, session, uncached

from headgate.core.errors import CallerError
from headgate.runtime.learning import Learning
from headgate.sim.agents import agents_of, generated_agents
from headgate.sim.figures import figures_of, jain, quantile
from headgate.sim.provider import Fault, Outage, Terms, Truth
from headgate.sim.simulation import Circumstances, Scenario, scaled_config, scenarios_of, simulate
from headgate.sim.workload import Prefix, Program, Round, Workload, alone, scaled
from headgate.testing.scripted import FlatPrices

TWO = ACCOUNT + ACCOUNT.replace('"main"', '"second"')
TIGHT = 'scope = "account:main"\ninput_tokens_per_minute = 60_000\noutput_tokens_per_minute = 8_000'


@pytest.mark.parametrize("policy", ["fifo", "priority", "shortest", "round_robin", "fair", "program", "adaptive"])
def test_every_offered_call_is_in_one_place(tmp_path, policy):
    tally = play(agents_of("agents:14:0.3", 5), config(tmp_path, TIGHT), policy, max_wait_s=60.0).tally
    assert tally.refused
    assert tally.waiting or tally.under_way
    assert tally.offered == tally.served + tally.refused + len(tally.waiting) + len(tally.under_way)
    assert sum(map(len, tally.waits_s.values())) == tally.served + len(tally.under_way)
    done = sum(map(len, tally.programs_s))
    assert tally.programs_begun >= done + tally.programs_given_up >= tally.programs_begun - 12


def test_what_was_used_is_what_the_provider_counted(tmp_path):
    rounds = [Round(500 + 10 * number, 40 + number, at_s=float(number)) for number in range(50)]
    played = play(calls(*rounds), config(tmp_path, TIGHT + "\nrequests_per_minute = 30"))
    usage = played.tally.usage
    assert played.tally.served == 50
    counted = {name.split()[2]: bucket.used for name, bucket in played.meters.buckets.items()}
    assert counted["requests"] == 50
    assert counted["input_tokens"] == uncached(usage) == sum(each.prompt_tokens for each in rounds)
    assert counted["output_tokens"] == pytest.approx(usage.output_tokens)
    assert usage.output_tokens == sum(each.output_tokens for each in rounds)
    assert played.tally.answered_429 == 0


def test_waits_are_as_long_as_the_limit_makes_them(tmp_path):
    configured = config(tmp_path, 'scope = "account:main"\nrequests_per_minute = 60\nburst_s = 1')
    played = play(calls(*[Round(100, 10) for _ in range(4)]), configured)
    assert sorted(played.tally.waits_s[False, 0]) == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-5)


def test_a_cache_is_read_while_it_lives_and_not_after(tmp_path):
    def reads(pause_s: float) -> int:
        workload = session(Round(10_000, 50), Round(12_000, 50, known_tokens=10_000, pause_s=pause_s))
        return play(workload, config(tmp_path, TIGHT)).tally.usage.cache_read_tokens

    assert reads(290.0) == 10_000
    assert reads(310.0) == 0


def test_what_an_account_enforces_is_learned_from_its_headers_or_else_from_429s(tmp_path):
    workload = calls(*[Round(2_000, 50, at_s=float(number)) for number in range(60)])
    less = {"*": Terms(0.4)}
    told = figures_of(play(workload, config(tmp_path, TIGHT), truth=Truth(less)))
    assert told.answered_429 == 0
    assert [(each.what, each.amount, each.source) for each in told.learned][:1] == [("input_tokens", 24_000, "header")]
    untold = figures_of(play(workload, config(tmp_path, TIGHT), truth=Truth(less, tells=False)))
    assert untold.answered_429 > 0
    assert untold.retries == untold.answered_429
    assert {each.source for each in untold.learned} == {"429"}
    assert untold.served == 60


def test_limits_that_nobody_configured_are_the_providers_own(tmp_path):
    workload = calls(*[Round(2_000, 50, at_s=float(number)) for number in range(60)])
    truth = Truth({"main": Terms(per_minute={"input_tokens": 30_000})})
    figures = figures_of(play(workload, config(tmp_path), truth=truth))
    assert figures.served == 60
    assert figures.took_s > 170  # 120,000 tokens, of which a minute's were there
    assert [(use.dimension, use.amount) for use in figures.limits] == [("input_tokens", 30_000)]
    assert [each.amount for each in figures.learned] == [30_000]


def test_an_outage_is_met_with_retries_and_the_other_account(tmp_path):
    workload = calls(*[Round(2_000, 50, at_s=float(number)) for number in range(60)])
    truth = Truth(outages=(Outage(20.0, 20.0, account="main"),))
    alone = figures_of(play(workload, config(tmp_path, TIGHT), truth=truth))
    assert alone.failed > 0
    assert alone.failures == {"overloaded_error": alone.failed}
    assert alone.offered == 60 == alone.served + alone.failed
    limits = 'scope = "account:main"\ninput_tokens_per_minute = 200_000'
    both = config(tmp_path, limits, limits.replace("main", "second"), account=TWO)
    busy = calls(*[Round(600, 50, at_s=0.1 * number) for number in range(400)])
    broken = Truth(outages=(Outage(10.0, 20.0, "500", "main"),))
    two = figures_of(play(busy, both, truth=broken))
    assert (two.failed, two.served) == (0, 400)
    main, second = two.accounts
    assert (main.account, second.account) == ("main", "second")
    assert main.failures == {"api_error": two.retries}
    assert main.pauses > 0  # its circuit opened
    assert second.served > main.served > 0


def test_calls_that_fail_at_random_are_tried_again(tmp_path):
    workload = calls(*[Round(2_000, 50, at_s=float(number)) for number in range(60)])
    truth = Truth(faults=(Fault("500", 0.2),))
    first, again = (figures_of(play(workload, config(tmp_path), truth=truth)) for _ in range(2))
    assert first.provider_failures > 5
    assert first.served + first.failed == 60
    assert first.accounts[0].failures == {"api_error": first.provider_failures}
    assert asdict(first) == asdict(again)


def test_a_fan_out_of_one_prompt_writes_its_cache_once(tmp_path):
    prefix = Prefix("tools", 20_000)
    programs = [Program(f"s{number}", f"a{number}", (Round(21_000, 50),), prefix=prefix) for number in range(20)]
    workload = Workload("fan-out", lambda: alone(programs), 1.0)
    warmed = figures_of(play(workload, config(tmp_path)))
    assert (warmed.warmed, warmed.warming_s) == (19, pytest.approx(19.0))
    assert warmed.input_tokens == 21_000 + 19 * 1_000
    at_once = figures_of(play(workload, config(tmp_path), warm_up=False))
    assert at_once.warmed == 0
    assert at_once.input_tokens == 20 * 21_000


def test_it_says_which_limit_refused_and_since_when(tmp_path):
    rounds = [Round(10_000, 100, at_s=60.0 * number) for number in range(30)]
    configured = config(tmp_path, 'scope = "agent:*"\nusd_per_day = 0.5', 'scope = "key:ci"\nusd_per_day = 1.0')
    program = Program("s", "a", rounds[:10], key="ci")
    other = Program("t", "b", rounds, key="ci")
    figures = figures_of(play(Workload("w", lambda: alone([program, other]), 1.0), configured, max_wait_s=60.0))
    assert sum(each.calls for each in figures.refusals) == figures.refused
    by = {each.limit: each for each in figures.refusals}
    assert set(by) <= {"agent:* * micro_usd day", "key:ci * micro_usd day"}
    assert all(each.first_s <= each.last_s and each.used is not None for each in by.values())
    assert by["agent:* * micro_usd day"].scopes >= 1


@pytest.mark.parametrize("hold", ["bound", "likely"])
def test_what_was_spent_of_a_limit_that_refused_is_without_what_was_held(tmp_path, hold):
    """`spent to 91 %` was how full it was with what running calls held; a third of it had been spent."""
    rounds = [Round(10_000, 100, at_s=200.0 * number) for number in range(30)]
    configured = config(tmp_path, f'scope = "key:ci"\nusd_per_day = 0.6\nhold = "{hold}"')
    programs = [Program(f"s{number}", f"a{number}", (each,), key="ci") for number, each in enumerate(rounds)]
    figures = figures_of(play(Workload("w", lambda: alone(programs), 1.0), configured, max_wait_s=60.0))
    (by,) = figures.refusals
    assert by.most_spent == pytest.approx(figures.cost_micro_usd / 600_000, abs=1e-3)
    assert by.holds_bounds == (hold == "bound")


def test_waits_are_told_by_priority(tmp_path):
    keys = '[[key]]\nname = "high"\npriority = 5\n[[key]]\nname = "low"\n'
    configured = config(tmp_path, TIGHT, account=ACCOUNT + keys)
    rounds = [Round(5_000, 20, at_s=0.1 * number) for number in range(40)]
    figures = figures_of(play(calls(*rounds), configured, "priority", keys=("high", "low")))
    waits = figures.waits_by_priority
    assert list(waits) == ["5", "0"]
    assert waits["5"].count == waits["0"].count == 20
    assert waits["5"].p90_s < waits["0"].p50_s


def test_an_account_or_key_that_is_not_configured_is_told(tmp_path):
    with pytest.raises(CallerError, match="account 'other' is not configured; expected one of main"):
        play(calls(Round(10, 10)), config(tmp_path), truth=Truth({"other": Terms(0.5)}))
    with pytest.raises(CallerError, match="--key ci: it is not configured; configured: none"):
        play(calls(Round(10, 10)), config(tmp_path), keys=("ci",))


def test_fair_serves_the_one_who_asks_little_before_the_flood(tmp_path):
    def took_s(policy: str) -> float:
        flood = [Program(f"f{number}", "flood", (Round(5_000, 20, at_s=0.01),)) for number in range(60)]
        light = Program("l", "light", (Round(1_000, 20, at_s=30.0), Round(1_000, 20)))
        workload = Workload("flood", lambda: alone([*flood, light]), 30.0)
        played = play(workload, config(tmp_path, TIGHT), policy)
        assert played.tally.served == 62
        # Of the light one alone: its second call's work is let through in the window in which its first was done.
        return 60.0 * max(played.tally.shares["agent:light"].served)

    assert took_s("fair") < took_s("fifo") / 3


def test_interactive_calls_go_before_batch(tmp_path):
    batch = [Program(f"b{number}", "batch", (Round(5_000, 20, at_s=0.01),)) for number in range(60)]
    person = Program("p", "person", (Round(1_000, 20, at_s=30.0),), interactive=True)
    workload = Workload("both", lambda: alone([*batch, person]), 30.0)
    waits = figures_of(play(workload, config(tmp_path, TIGHT))).waits
    assert waits["interactive"].p50_s < 10 < waits["batch"].p50_s


def test_twice_the_agents_ask_for_twice_and_half_the_limits_give_half(tmp_path):
    workload = generated_agents(10, 1800.0, seed=5)
    wide = config(tmp_path, 'scope = "account:main"\noutput_tokens_per_minute = 50_000_000')
    one, two = (play(workload, wide, agents=factor).tally for factor in (1, 2))
    assert two.offered == pytest.approx(2 * one.offered, rel=0.05)
    tight = config(
        tmp_path, 'scope = "account:main"\ninput_tokens_per_minute = 120_000\noutput_tokens_per_minute = 12_000'
    )
    full, half = (figures_of(play(workload, tight, limits=factor)) for factor in (1.0, 0.5))
    assert half.limits[0].amount == full.limits[0].amount / 2
    assert half.input_tokens == pytest.approx(full.input_tokens / 2, rel=0.15)


def test_more_limits_are_no_more_money(tmp_path):
    budgets = "usd_per_day = 10\ntokens_per_day = 500"
    twice = scaled_config(config(tmp_path, TIGHT, f'scope = "run:*"\n{budgets}'), 2.0)
    amounts = {rule.template.dimension: rule.template.amount for rule in twice.limits}
    assert amounts["micro_usd"] == 10_000_000
    assert (amounts["tokens"], amounts["input_tokens"], amounts["output_tokens"]) == (1_000, 120_000, 16_000)


def test_a_part_of_the_agents_is_a_draw_of_them(tmp_path):
    workload = calls(*[Round(100, 10, at_s=float(number)) for number in range(40)])
    assert play(workload, config(tmp_path), agents=0.25).tally.served == 10
    assert play(workload, config(tmp_path), agents=1.5).tally.served == 60


def test_at_twice_the_speed_arrivals_and_pauses_pass_in_half_the_time():
    rounds = (Round(100, 10, at_s=40.0), Round(100, 10, pause_s=8.0))
    workload = scaled(Workload("w", lambda: alone([Program("s", "a", rounds)]), 40.0), 2.0, 2.0, seed=1)
    first, copied = (next(actor.programs) for actor in workload.actors())
    assert [(each.at_s, each.pause_s) for each in first.rounds] == [(20.0, 0.0), (0.0, 4.0)]
    assert copied.rounds[0].at_s > 20.0
    assert (copied.session, copied.agent) == ("s+1", "a+1")
    assert workload.last_s == 20.0


def test_windows_and_slots_are_shown_too(tmp_path):
    configured = config(tmp_path, 'scope = "account:main"\nslots = 2\nusd_per_day = 50')
    figures = figures_of(play(calls(*[Round(1_000, 500) for _ in range(6)]), configured))
    kinds = {use.kind: use for use in figures.limits}
    assert kinds["gauge"].highest == 1.0
    assert 0 < kinds["window"].highest < 1
    assert figures.served == 6


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def answer(seed: int) -> str:
        played = simulate(
            agents_of("agents:8:0.2", seed),
            config(tmp_path, TIGHT),
            scenarios_of(["fifo", "fair"], [1.0, 1.5], [1.0]),
            Circumstances(seed=seed),
            prices=FlatPrices(),
        )
        return json.dumps([asdict(each) for each in played])

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_what_cannot_be_compared_is_told():
    with pytest.raises(CallerError, match="policy 'best' is not known; expected one of fifo"):
        scenarios_of(["best"], [1.0], [1.0])
    with pytest.raises(CallerError, match="--agents-scale -1: expected a factor"):
        scenarios_of(["fifo"], [-1.0], [1.0])
    with pytest.raises(CallerError, match="at most 64"):
        scenarios_of(["fifo"], [1.0 + each for each in range(65)], [1.0])
    assert scenarios_of(["fifo", "fifo"], [1.0], [2.0]) == [Scenario("fifo", 1.0, 2.0)]


def test_a_model_that_no_account_serves_is_told(tmp_path):
    configured = config(tmp_path, account=ACCOUNT + 'models = ["claude-*"]\n')
    with pytest.raises(CallerError, match="no account serves model 'gpt-9'"):
        play(calls(Round(10, 10)), configured, model="gpt-9")


@pytest.mark.parametrize("text", ["agents:", "agents:x", "agents:0", "agents:5:0", "agents:5:nan", "agents:5:1:2"])
def test_a_generator_that_cannot_be_is_told(text):
    with pytest.raises(CallerError, match="expected agents:N or agents:N:HOURS"):
        agents_of(text, 0)


def test_quantiles_and_fairness():
    assert quantile([], 0.5) is None
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.9, 1.0)] == [2.0, 4.0, 4.0]
    assert jain([1, 1, 1]) == 1
    assert jain([1, 0]) == 0.5
    assert jain([]) is None


def test_a_month_between_two_calls_costs_nothing(tmp_path, monkeypatch):
    """It took 12 s: what was learned was looked after every 10 s of it."""
    looked = []
    refresh = Learning.refresh

    async def counted(self) -> None:
        looked.append(self)
        await refresh(self)

    monkeypatch.setattr(Learning, "refresh", counted)
    rounds = [Round(100, 2_000, at_s=0.0), Round(100, 2_000, at_s=30 * 86_400.0)]
    played = play(calls(*rounds), config(tmp_path, "scope = 'account:main'\nrequests_per_minute = 60"))
    assert played.tally.served == 2
    assert 8 <= len(looked) <= 20, "while a call goes on (41 s) it is looked after as ever"


@pytest.mark.parametrize(("hold", "served"), [("bound", 1_000), ("likely", 1_500)])
def test_a_budget_that_holds_what_is_likely_lets_calls_go_that_state_more_than_is_left(tmp_path, hold, served):
    limit = f'scope = "account:main"\noutput_tokens_per_lifetime = 60_000\nhold = "{hold}"'
    modest = [Round(100, 20, at_s=float(number), max_output_tokens=100) for number in range(1_000)]
    stating = [Round(100, 20, at_s=1_100.0 + number, max_output_tokens=50_000) for number in range(500)]
    played = play(calls(*modest, *stating), config(tmp_path, limit))
    assert played.tally.served == served
    assert played.tally.usage.output_tokens == served * 20
