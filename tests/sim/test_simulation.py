"""The simulator plays Headgate's own admission: nothing is lost, limits hold, and what is changed shows."""

import json
from dataclasses import asdict

import pytest
from sim_stage import ACCOUNT, calls, config, play, session, uncached

from headgate.core.errors import CallerError
from headgate.sim.agents import agents_of, generated_agents
from headgate.sim.figures import figures_of, jain, quantile
from headgate.sim.simulation import Circumstances, Scenario, scenarios_of, simulate
from headgate.sim.workload import Program, Round, Workload, alone, scaled
from headgate.testing.scripted import FlatPrices

TIGHT = 'scope = "account:main"\ninput_tokens_per_minute = 60_000\noutput_tokens_per_minute = 8_000'


@pytest.mark.parametrize("policy", ["fifo", "priority", "shortest", "round_robin", "fair", "program", "adaptive"])
def test_every_offered_call_is_in_one_place(tmp_path, policy):
    tally = play(agents_of("agents:12:0.3", 3), config(tmp_path, TIGHT), policy, max_wait_s=60.0).tally
    assert tally.refused
    assert tally.waiting or tally.under_way
    assert tally.offered == tally.served + tally.refused + len(tally.waiting) + len(tally.under_way)
    assert len(tally.waits_s[0]) + len(tally.waits_s[1]) == tally.served + len(tally.under_way)
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
    assert sorted(played.tally.waits_s[0]) == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-5)


def test_a_cache_is_read_while_it_lives_and_not_after(tmp_path):
    def reads(pause_s: float) -> int:
        workload = session(Round(10_000, 50), Round(12_000, 50, known_tokens=10_000, pause_s=pause_s))
        return play(workload, config(tmp_path, TIGHT)).tally.usage.cache_read_tokens

    assert reads(290.0) == 10_000
    assert reads(310.0) == 0


def test_an_account_that_enforces_less_than_is_configured_answers_429(tmp_path):
    workload = calls(*[Round(2_000, 50, at_s=float(number)) for number in range(60)])
    assert play(workload, config(tmp_path, TIGHT)).tally.answered_429 == 0
    enforced_less = play(workload, config(tmp_path, TIGHT), provider_scale=0.4).tally
    assert enforced_less.answered_429 > 0
    assert enforced_less.offered == 60 == enforced_less.served + enforced_less.refused


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
    tight = config(tmp_path, TIGHT)
    full, half = (figures_of(play(workload, tight, limits=factor)) for factor in (1.0, 0.5))
    assert half.limits[0].amount == full.limits[0].amount / 2
    assert half.input_tokens == pytest.approx(full.input_tokens / 2, rel=0.15)


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


@pytest.mark.parametrize(("hold", "served"), [("bound", 1_000), ("likely", 1_500)])
def test_a_budget_that_holds_what_is_likely_lets_calls_go_that_state_more_than_is_left(tmp_path, hold, served):
    limit = f'scope = "account:main"\noutput_tokens_per_lifetime = 60_000\nhold = "{hold}"'
    modest = [Round(100, 20, at_s=float(number), max_output_tokens=100) for number in range(1_000)]
    stating = [Round(100, 20, at_s=1_100.0 + number, max_output_tokens=50_000) for number in range(500)]
    played = play(calls(*modest, *stating), config(tmp_path, limit))
    assert played.tally.served == served
    assert played.tally.usage.output_tokens == served * 20
