"""Capacity: how many more agents fit, and what is said when that cannot be known."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.capacity import MOST_AGENTS, AgentNeed, Room, capacity, closed

NOW_S = 1_000.0
NEED = AgentNeed({"input_tokens": 10.0, "micro_usd": 100.0, "slots": 0.5}, at_work=4)
RATE = Room("rate", "input_tokens", "rate", 60_000, 60_000, refill_per_s=1_000, spent_per_s=40)
BUDGET = Room("budget", "micro_usd", "window", 10_000_000, 5_000_000, spent_per_s=400, resets_s=NOW_S + 10_000)
SLOTS = Room("slots", "slots", "gauge", 10, 6)


def test_the_limit_that_allows_the_fewest_binds() -> None:
    answer = capacity([RATE, BUDGET, SLOTS], NEED, NOW_S)
    assert dict(answer.by_limit) == {"rate": 106, "budget": 1, "slots": 12}
    assert (answer.agents, answer.binding, answer.changes_s) == (1, "budget", NOW_S + 10_000)


def test_the_burst_of_a_rate_is_spread_over_the_horizon() -> None:
    assert capacity([RATE], NEED, NOW_S).agents == (60_000 / 600 + 1_000 - 40) // 10
    assert capacity([RATE], NEED, NOW_S, horizon_s=60).agents == (60_000 / 60 + 1_000 - 40) // 10


def test_those_at_work_already_use_it_up() -> None:
    answer = capacity([replace(BUDGET, spent_per_s=500)], NEED, NOW_S)
    assert (answer.agents, answer.light) == (0, "red")


def test_a_budget_without_an_end_must_last_for_the_horizon() -> None:
    assert capacity([replace(BUDGET, resets_s=None)], NEED, NOW_S).agents == (5_000_000 / 600 - 400) // 100


def test_few_more_is_yellow_and_many_is_green() -> None:
    assert capacity([SLOTS], NEED, NOW_S).light == "green"
    assert capacity([SLOTS], replace(NEED, at_work=61), NOW_S).light == "yellow"
    assert capacity([replace(SLOTS, free=2)], NEED, NOW_S).light == "yellow"


def test_a_limit_that_nobody_measured_is_named_and_bounds_nothing() -> None:
    answer = capacity([RATE, BUDGET], AgentNeed({"input_tokens": 10.0}, 4), NOW_S)
    assert (answer.agents, answer.binding) == (106, "rate")
    assert "not judged, for its use is unknown: budget" in answer.assumed


def test_a_full_limit_bounds_even_agents_that_nobody_measured() -> None:
    answer = capacity([RATE, replace(BUDGET, free=0)], None, NOW_S)
    assert (answer.agents, answer.binding, answer.light) == (0, "budget", "red")


def test_unknown_agents_have_no_number() -> None:
    answer = capacity([RATE], None, NOW_S)
    assert (answer.agents, answer.binding) == (None, None)
    assert "unknown" in answer.assumed


def test_what_a_new_agent_uses_can_be_read() -> None:
    """It said that one uses `what the mean of 0.1 at work used`."""
    assumed = capacity([RATE], replace(NEED, at_work=1 / 12), NOW_S).assumed
    assert assumed.startswith(
        "a new agent uses as much as one of those that were measured (0.083 at work at a time), and these go on"
    )


def test_nothing_more_fits_a_limit_that_calls_wait_for() -> None:
    """It said "147 more agents can start now" while 8 calls waited for the rate."""
    answer = capacity([replace(RATE, waiting=8), SLOTS], NEED, NOW_S)
    assert (answer.agents, answer.binding, answer.light) == (0, "rate", "red")
    assert answer.assumed.startswith("8 calls wait for rate; ")


def test_a_rate_without_enough_for_one_more_call_bears_none_now() -> None:
    need = replace(NEED, per_call={"input_tokens": 500.0})
    assert capacity([replace(RATE, free=499)], need, NOW_S).agents == 0
    assert capacity([replace(RATE, free=501)], need, NOW_S).agents == 96
    assert capacity([replace(RATE, amount=400, free=400)], need, NOW_S).agents == 96, "it is as full as it can be"
    assert capacity([replace(RATE, free=0)], None, NOW_S).light == "red", "whatever such agents use"


def test_an_account_that_does_not_serve_has_no_capacity() -> None:
    """It was green, for no limit bounded such agents."""
    answer = closed(capacity([], NEED, NOW_S), "all 9 calls failed", NOW_S + 9)
    assert (answer.agents, answer.binding, answer.light, answer.changes_s) == (0, None, "red", NOW_S + 9)
    assert answer.assumed.startswith("all 9 calls failed; ")


def test_without_limits_there_is_no_number() -> None:
    answer = capacity([], NEED, NOW_S)
    assert (answer.agents, answer.light, answer.assumed) == (None, "green", "no limit bounds such agents")


def test_agents_that_use_nothing_have_a_bound_all_the_same() -> None:
    assert capacity([RATE], AgentNeed({"input_tokens": 0.0}), NOW_S).agents == MOST_AGENTS


@given(
    free=st.integers(0, 10**9),
    spent=st.floats(0, 10**6),
    needed=st.floats(0.001, 10**6),
    left_s=st.floats(1, 10**6),
)
def test_what_fits_fits_and_one_more_does_not(free: int, spent: float, needed: float, left_s: float) -> None:
    room = Room("w", "micro_usd", "window", 10**9, free, spent_per_s=spent, resets_s=NOW_S + left_s)
    agents = capacity([room], AgentNeed({"micro_usd": needed}), NOW_S).agents
    assert agents is not None
    doubt = 1e-5 * (free + (spent + needed) * left_s)
    assert agents == 0 or (spent + agents * needed) * left_s <= free + doubt
    assert agents == MOST_AGENTS or (spent + (agents + 1) * needed) * left_s >= free - doubt
