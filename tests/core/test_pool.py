"""Which account serves a call, and why not the others."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core.pace import PlanShare
from headgate.core.pool import (
    CLOSED,
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    MOST_PAUSE_S,
    Breaker,
    Option,
    better,
    choose,
    expected_wait_s,
)

NOW_S = 1_000.0


@pytest.mark.parametrize(
    ("options", "expected", "why", "why_not"),
    [
        ([Option("a", 5), Option("b", 0)], "b", "soonest", "5 s more"),
        ([Option("a", 0, price_micro_usd=30), Option("b", 0, price_micro_usd=10)], "b", "cheapest", "costs more"),
        ([Option("a", 0, price_micro_usd=None), Option("b", 0, price_micro_usd=10)], "b", "cheapest", "no price"),
        ([Option("a", 0, behind=0.1), Option("b", 0, behind=0.4)], "b", "behind an even pace", "less behind"),
        ([Option("a", 0, behind=-0.1), Option("b", 0)], "b", "no plan window of its is known", "ahead of its line"),
        ([Option("a", 0, behind=0.1), Option("b", 0)], "a", "behind an even pace, by 10%", "no plan window of its is"),
        (
            [Option("a", 0, behind=-0.3), Option("b", 0, behind=-0.1)],
            "b",
            "least ahead of an even pace, by 10%",
            "ahead",
        ),
        ([Option("a", 0, behind=-0.3), Option("b", 0, behind=0.0)], "b", "no plan window of its is ahead", "ahead"),
        ([Option("a", 17_100), Option("b", 0)], "b", "soonest, in 0 s", "take 4 h 45 min more"),
        ([Option("a", 0, headroom=0.2), Option("b", 0, headroom=0.9)], "b", "most headroom", "less headroom, 20%"),
        ([Option("a", 0), Option("b", 0)], "a", "first among equals", "came later"),
        ([Option("a", 0, closed_until_s=NOW_S + 9), Option("b", 60)], "b", "only one", "closed for another 9 s"),
        ([Option("a", 0, failed_before=True), Option("b", 60)], "b", "only one", "failed for this call"),
        ([Option("a", 0, over_soft_ceiling=True), Option("b", 60)], "b", "only one", "soft ceiling"),
        ([Option("a", math.inf, refused="too large"), Option("b", 60)], "b", "only one", "too large"),
        # Its prompt is cached there: waiting 20 s costs less than 60 s of the other's input quota, 80 s do not.
        ([Option("a", 20, 1, is_warm=True), Option("b", 0, 60)], "a", "session's prompt cache", "cache is cold"),
        ([Option("a", 80, 1, is_warm=True), Option("b", 0, 60)], "b", "soonest", "21 s more"),
        ([Option("a", 0, is_warm=True, headroom=0.1), Option("b", 0)], "a", "prompt cache", "cache is not there"),
        (
            [Option("a", 50, is_late=True), Option("b", 0, over_soft_ceiling=True)],
            "b",
            "only one",
            "deadline, but in 50 s",
        ),
        ([Option("a", 50, is_late=True), Option("b", 0, closed_until_s=NOW_S + 9)], "b", "only one", "deadline"),
        ([Option("a", 50, is_late=True), Option("b", 0, is_out=True)], "a", "only one", "came later"),
        ([Option("a", 0, closed_until_s=math.inf), Option("b", 9)], "b", "only one", "one call tries it just now"),
        (
            [Option("a", 0, closed_until_s=NOW_S + 9, closed_because="401 no"), Option("b", 9)],
            "b",
            "only one",
            "another 9 s after 401 no",
        ),
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


@pytest.mark.parametrize(
    ("here", "there", "goes"),
    [
        (Option("a", 50), Option("b", 5), True),
        (Option("a", 50), Option("b", 0, is_free=True), True),
        (Option("a", 0.3, headroom=0), Option("b", 0, is_free=True), True),  # it has room now
        (Option("a", 0.3), Option("b", 0.2), False),  # hardly earlier
        (Option("a", 5), Option("b", 50), False),
        (Option("a", 20, 1, is_warm=True), Option("b", 0, 60, is_free=True), False),  # its prompt cache is worth 59 s
        (Option("a", 60, 1, is_warm=True), Option("b", 0, 60, is_free=True), True),
        (Option("a", 5, closed_until_s=NOW_S + 99), Option("b", 50), True),  # it has become ill meanwhile
        (Option("a", 500), Option("b", 0, is_free=True, closed_until_s=NOW_S + 1), False),
        (Option("a", 500, is_late=True), Option("b", 0, is_free=True, closed_until_s=NOW_S + 1), True),
        (Option("a", 0.3, price_micro_usd=1), Option("b", 0, price_micro_usd=9, is_free=True), False),
    ],
)
def test_a_call_that_waits_goes_elsewhere_only_if_that_pays(here, there, goes):
    choice = better([here, there], "a", NOW_S)
    assert (choice is not None) == goes
    assert choice is None or choice.account == "b"


def test_what_is_certain_of_a_wait_counts_and_no_more_than_that():
    assert expected_wait_s(7.0, 7.0, 100.0) == 7.0
    assert expected_wait_s(7.0, 50.0, 0.0) == 7.0
    assert expected_wait_s(7.0, 50.0, 20.0) == 20.0
    assert expected_wait_s(7.0, 50.0, 100.0) == 50.0


def test_the_line_of_a_plan_goes_from_its_window_s_beginning_to_its_reset():
    share = PlanShare(18_000, 0.3, NOW_S + 9_000)
    assert share.line(NOW_S) == 0.5
    assert share.behind(NOW_S) == pytest.approx(0.2)
    assert share.behind(NOW_S - 5_400) == pytest.approx(-0.1)
    assert share.behind(NOW_S + 99_999) == pytest.approx(0.7)
    assert PlanShare(18_000, 0.0, None).behind(NOW_S) == 0.0, "it is not open"
    assert PlanShare(18_000, 0.3, None, told_s=NOW_S).behind(NOW_S) is None, "nobody knows since when"


def test_an_account_that_needs_its_owner_is_out_at_once_and_for_long():
    out = CLOSED.failed(NOW_S, 3.0, why="401 no", is_out=True)
    assert (out.state(NOW_S + MOST_PAUSE_S - 1), out.is_out, out.why) == ("open", True, "401 no")
    assert out.closed_until_s(NOW_S) == NOW_S + MOST_PAUSE_S
    trying = out.tried(NOW_S + MOST_PAUSE_S)
    assert trying.closed_until_s(NOW_S + MOST_PAUSE_S) == math.inf
    assert trying.failed(NOW_S + MOST_PAUSE_S, is_out=True).state(NOW_S + 2 * MOST_PAUSE_S - 1) == "open"
    assert trying.succeeded() == CLOSED


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
