"""Which account serves a call, and why not the others."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.pool import CLOSED, FAILURES_TO_OPEN, FIRST_PAUSE_S, MOST_PAUSE_S, Breaker, Option, choose

NOW_S = 1_000.0


@pytest.mark.parametrize(
    ("options", "expected", "why", "why_not"),
    [
        ([Option("a", 5), Option("b", 0)], "b", "soonest", "5 s more"),
        ([Option("a", 0, price_micro_usd=30), Option("b", 0, price_micro_usd=10)], "b", "cheapest", "costs more"),
        ([Option("a", 0, price_micro_usd=None), Option("b", 0, price_micro_usd=10)], "b", "cheapest", "no price"),
        ([Option("a", 0, behind=0.1), Option("b", 0, behind=0.4)], "b", "behind an even pace", "less behind"),
        ([Option("a", 0, headroom=0.2), Option("b", 0, headroom=0.9)], "b", "most headroom", "less headroom, 20%"),
        ([Option("a", 0), Option("b", 0)], "a", "first among equals", "came later"),
        ([Option("a", 0, closed_until_s=NOW_S + 9), Option("b", 60)], "b", "only one", "closed for another 9 s"),
        ([Option("a", 0, failed_before=True), Option("b", 60)], "b", "only one", "failed for this call"),
        ([Option("a", 0, over_soft_ceiling=True), Option("b", 60)], "b", "only one", "soft ceiling"),
        ([Option("a", math.inf, refused="too large"), Option("b", 60)], "b", "only one", "too large"),
        # Its prompt is cached there: waiting 20 s costs less than 60 s of the other's input quota, 80 s do not.
        ([Option("a", 20, 1, is_warm=True), Option("b", 0, 60)], "a", "session's prompt cache", "cache is cold"),
        ([Option("a", 80, 1, is_warm=True), Option("b", 0, 60)], "b", "soonest", "21 s more"),
    ],
)
def test_the_choice_and_its_reasons(options, expected, why, why_not):
    choice = choose(options, NOW_S)
    assert choice.account == expected
    assert why in choice.why
    ((_other, reason),) = choice.others
    assert why_not in reason


def test_nobody_can_serve_what_all_refuse():
    assert choose([Option("a", math.inf, refused="too large")], NOW_S) is None
    assert choose([], NOW_S) is None


@given(
    st.lists(
        st.builds(
            Option,
            st.text("abcdef", min_size=1, max_size=3),
            st.floats(0, 1e4),
            st.floats(0, 1e4),
            st.none() | st.integers(0, 10**9),
            st.floats(-1, 1),
            st.floats(0, 1),
            st.booleans(),
            st.booleans(),
            st.none() | st.floats(0, 2_000),
            st.none() | st.just("no"),
            st.booleans(),
        ),
        max_size=6,
        unique_by=lambda option: option.account,
    )
)
def test_a_choice_is_able_and_says_why_for_all(options):
    choice = choose(options, NOW_S)
    able = {option.account for option in options if option.refused is None}
    if choice is None:
        assert not able
        return
    assert choice.account in able
    assert {name for name, _why in choice.others} | {choice.account} == {option.account for option in options}
    assert all(why for _name, why in choice.others)
    healthy = {
        option.account
        for option in options
        if option.refused is None
        and not option.failed_before
        and not option.over_soft_ceiling
        and not (option.closed_until_s or 0) > NOW_S
    }
    assert not healthy or choice.account in healthy


def fail(breaker: Breaker, times: int) -> Breaker:
    for _ in range(times):
        breaker = breaker.failed(NOW_S)
    return breaker


def test_a_circuit_opens_after_failures_in_a_row_and_lets_one_try():
    assert fail(CLOSED, FAILURES_TO_OPEN - 1).state(NOW_S) == "closed"
    assert fail(CLOSED, FAILURES_TO_OPEN - 1).succeeded() == CLOSED
    opened = fail(CLOSED, FAILURES_TO_OPEN)
    assert opened.state(NOW_S) == "open"
    later_s = NOW_S + FIRST_PAUSE_S
    assert opened.state(later_s) == "half_open"
    trying = opened.tried(later_s)
    assert trying.state(later_s) == "open", "one tries, the others wait"
    assert trying.gave_up().state(later_s) == "half_open"
    assert trying.succeeded().state(later_s) == "closed"
    again = trying.failed(later_s)
    assert again.state(later_s + FIRST_PAUSE_S) == "open", "the pause doubles"
    assert again.state(later_s + 2 * FIRST_PAUSE_S) == "half_open"


def test_a_pause_is_bounded_and_what_the_provider_says_counts():
    assert CLOSED.failed(NOW_S, 3.0).state(NOW_S + 2.9) == "open"
    assert CLOSED.failed(NOW_S, 3.0).state(NOW_S + 3.0) == "half_open"
    assert CLOSED.failed(NOW_S, 1e9).state(NOW_S + MOST_PAUSE_S) == "half_open"


def test_failures_of_calls_that_were_on_their_way_do_not_lengthen_the_pause():
    opened = fail(CLOSED, FAILURES_TO_OPEN)
    assert fail(opened, 20).open_until_s == opened.open_until_s
