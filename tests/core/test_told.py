"""What is told of rates: their periods, what must be used of them, how deep a bucket is; and spent plans."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import told
from headgate.core.notices import DAY_S, HOUR_S, MINUTE_S, Notices, OverageNotice, PlanNotice, RateNotice
from headgate.core.retries import Failure

NOW_S = 1_750_000_000.0


def test_of_what_is_told_only_the_ordinary_tiers_rates_are_learned():
    notices = Notices(
        (
            RateNotice("input_tokens", 50_000, 40_000, rounded_to=1000),
            RateNotice("output_tokens", 8_000, 8_000, rounded_to=1000),
            RateNotice("tokens", 58_000, 48_000, rounded_to=1000),
            RateNotice("requests", 50, 49, tier="priority"),
        )
    )
    assert told.told_rates(notices, NOW_S).keys() == {("input_tokens", MINUTE_S), ("output_tokens", MINUTE_S)}
    openai = Notices(
        (RateNotice("tokens", 40_000, 39_000, resets_s=NOW_S + 2), RateNotice("tokens", 9, 3, tier="project"))
    )
    assert told.told_rates(openai, NOW_S)["tokens", MINUTE_S].limit == 9
    anthropic = Notices((RateNotice("requests", 4_000, 3_999, resets_s=NOW_S + 1),))
    assert told.told_rates(anthropic, NOW_S).keys() == {("requests", MINUTE_S)}


# -- periods -------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([MINUTE_S, DAY_S]),
    st.integers(1, 10**7),
    st.floats(0, 1),
    st.sampled_from([1, 1000]),
    st.booleans(),
)
def test_the_period_of_a_bucket_is_found_from_what_is_missing_and_when_it_is_full(
    period_s, limit, share, rounded_to, reset_is_whole
):
    """A bucket that refills all the time, told as providers do: what is left rounded down, the reset rounded up."""
    missing = limit * share
    remaining = max(0, math.floor((limit - missing) / rounded_to + (0.5 if rounded_to > 1 else 0)) * rounded_to)
    resets_in_s = missing * period_s / limit
    if reset_is_whole:
        resets_in_s = math.ceil(resets_in_s)
    notice = RateNotice("tokens", limit, min(remaining, limit), NOW_S + resets_in_s, rounded_to=rounded_to)
    found = told.told_rates(Notices((notice,)), NOW_S)
    if period_s == MINUTE_S:
        assert found.keys() == {("tokens", MINUTE_S)}
        return
    # A day's is taken for a minute's only while nothing speaks against it; once its amount is known it is not.
    assert found.keys() <= {("tokens", MINUTE_S), ("tokens", DAY_S)}
    assert told.told_rates(Notices((notice,)), NOW_S, {"tokens": limit}).keys() == {("tokens", DAY_S)}
    if resets_in_s > 650 * (1 + rounded_to / max(1, limit - remaining)):
        assert found.keys() == {("tokens", DAY_S)}


@pytest.mark.parametrize(
    ("limit", "remaining", "resets_in_s", "period_s"),
    [
        (200, 199, 432, DAY_S),  # OpenAI's own example: 7m12s
        (14_400, 14_370, 179.56, DAY_S),  # Groq's
        (60_000, 59_000, 1, MINUTE_S),
        (50, 0, 60, MINUTE_S),
        (5, 4, 13, MINUTE_S),
        (60, 59, 60, MINUTE_S),  # a window of a minute that one call has used
        (60, 59, 61, MINUTE_S),
        (60, 59, 62, DAY_S),
        (1_000, 999, 8 * HOUR_S, None),  # a window that ends at midnight
        (1_000, 500, 2 * HOUR_S, None),
        (100, 50, 1_800, None),  # by the hour
        (1_000, 0, DAY_S, DAY_S),
        (1_000, 0, 30 * DAY_S, None),
        (1, 10**15, 900, None),
    ],
)
def test_what_is_neither_a_minutes_nor_a_days_is_a_window_that_ends_at_its_reset(
    limit, remaining, resets_in_s, period_s
):
    notices = Notices((RateNotice("requests", limit, remaining, NOW_S + resets_in_s),))
    found = told.told_rates(notices, NOW_S)
    windows = told.told_windows(notices, NOW_S)
    assert list(found) == ([] if period_s is None else [("requests", period_s)])
    ends_s = NOW_S + resets_in_s if remaining == 0 else None
    assert windows == ({"requests": ends_s} if period_s is None else {})


# -- what is used --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2_000), st.integers(1, 2_000), st.sampled_from([1, 1000]))
def test_what_remains_is_read_with_its_rounding(remaining, amount, rounded_to):
    notice = RateNotice("tokens", amount, remaining, rounded_to=rounded_to)
    certain, at_most = told.spent_at_least(notice, amount, MINUTE_S, NOW_S)
    assert 0 <= certain <= at_most <= amount
    assert at_most - certain <= rounded_to


def test_a_bucket_less_deep_than_a_minute_is_not_taken_for_spent():
    """A bucket of 10 s that is full has a sixth of the minute's amount left, and nothing to come back."""
    full = RateNotice("tokens", 60_000, 10_000, resets_s=NOW_S)
    spent = told.spent_at_least(full, 60_000, MINUTE_S, NOW_S)
    assert spent == (1_000, 1_000), "but for the second that resets are told in"
    assert told.spent_at_least(full, 60_000, MINUTE_S, NOW_S, 1 / 6) == (0, 0), "nor that, once its depth is known"
    half = RateNotice("tokens", 60_000, 5_000, resets_s=NOW_S + 5)
    assert told.spent_at_least(half, 60_000, MINUTE_S, NOW_S) == (6_000, 6_000)
    empty = RateNotice("tokens", 60_000, 0, resets_s=NOW_S + 60)
    assert told.spent_at_least(empty, 60_000, MINUTE_S, NOW_S) == (60_000, 60_000)
    assert told.depth_of(half, NOW_S) == told.depth_of(RateNotice("tokens", 60_000, 0, NOW_S + 10), NOW_S) == 10_000
    assert told.depth_of(empty, NOW_S) is None
    assert told.depth_of(RateNotice("tokens", 60_000, 5_000), NOW_S) is None


def test_a_level_that_is_not_as_told_follows_by_half_of_what_was_so_for_five_seconds():
    gap, by = told.lasting(None, 80, NOW_S)
    assert by == 0
    for second, more in ((1, 60), (3, 100)):
        gap, by = told.lasting(gap, more, NOW_S + second)
        assert by == 0
    assert told.lasting(gap, 90, NOW_S + 5) == (None, 30)
    assert told.lasting(gap, 0, NOW_S + 5) == (None, 0), "once it was not so, all begins anew"


# -- 429s and plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"dimension": "output_tokens"}, [("output_tokens", MINUTE_S)]),
        ({"dimension": "requests", "period_s": DAY_S, "retry_after_s": 432}, [("requests", DAY_S)]),
        ({"dimension": "requests", "retry_after_s": 7_200}, [("requests", DAY_S)]),
        ({"retry_after_s": 20}, [("requests", MINUTE_S)]),
        ({"retry_after_s": 7_200}, [("tokens", DAY_S)]),
    ],
)
def test_a_429_names_a_rate_in_its_words_by_its_wait_or_as_the_one_of_which_nothing_is_left(facts, named):
    rates = {("requests", MINUTE_S): RateNotice("requests", 50, 0), ("input_tokens", MINUTE_S): RateNotice("tokens", 9)}
    windows = {"tokens": NOW_S + 7_200 if facts.get("retry_after_s") == 7_200 else None}
    assert told.named_rates(rates, windows, Failure("limited", "rate_limit_error", 429, **facts)) == named


def test_a_429_that_says_nothing_names_nothing_unless_it_lasts_for_hours():
    assert told.named_rates({}, {}, Failure("limited", "rate_limit_error", 429, retry_after_s=30)) == []
    hours = Failure("limited", "rate_limit_error", 429, retry_after_s=7_200)
    assert told.named_rates({}, {}, hours) == [("requests", DAY_S)]


def test_plan_windows_that_cannot_be_true_close_nothing():
    """An account was closed for 900 days, or because a percentage was told where a share is meant."""
    plans = (
        PlanNotice(999 * DAY_S, None, NOW_S + 900 * DAY_S, "rejected"),
        PlanNotice(7 * DAY_S, 1.0, NOW_S + 900 * DAY_S, "rejected"),
        PlanNotice(5 * HOUR_S, 37.0, NOW_S + 3_600, "allowed"),
        PlanNotice(30 * DAY_S, 1.0, NOW_S + 30 * DAY_S, "rejected"),
        PlanNotice(5 * HOUR_S, 1.2, NOW_S + 3_600, "allowed"),
    )
    believed = told.believed_plans(Notices(plans=plans), NOW_S)
    spent = [plan for plan in told.spent_plans(believed, overage_allowed=False) if plan.resets_s is not None]
    assert spent == [plans[3], plans[4]]


def test_overage_is_a_spent_window_unless_its_owner_allows_it():
    plans = (PlanNotice(18_000, 1.0, NOW_S + 60, "rejected"), PlanNotice(604_800, 0.4, NOW_S + 600, "allowed"))
    assert told.spent_plans(Notices(plans=plans), overage_allowed=True) == [plans[0]]
    paid = Notices(plans=plans, overage=OverageNotice("allowed", in_use=True))
    assert told.spent_plans(paid, overage_allowed=False) == [plans[0]]
    assert told.spent_plans(paid, overage_allowed=True) == []
