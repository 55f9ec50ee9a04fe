"""Learned limits, as arithmetic: pessimistic at once, optimistic slowly, never above a ceiling, closed exactly."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import adaptive
from headgate.core.adaptive import Key, Learned, Meter, answered, heard, refused, troubled
from headgate.core.amounts import Amounts
from headgate.core.instants import to_ns
from headgate.core.levels import Short
from headgate.core.limits import Rate, Window
from headgate.core.notices import Notices, OverageNotice, PlanNotice, RateNotice
from headgate.core.retries import RetryBudget
from headgate.core.spans import OpenedByUse

NOW_S = 1_750_000_000.0
NOW_NS = to_ns(NOW_S)
S = to_ns(1)
RATE = Rate("r", "account:a", "output_tokens", 600, 60, 500)
amounts = st.integers(1, 10**6)


@given(amounts, amounts)
def test_less_is_taken_at_once_and_more_by_half_of_the_rise_at_most_every_five_seconds(first, then):
    learned = heard(None, first, "requests", NOW_S)
    assert learned is not None
    assert learned.amount == first
    at_once = heard(learned, then, "requests", NOW_S + 0.1)
    assert at_once is not None
    assert at_once.amount == min(first, then)
    later = heard(learned, then, "requests", NOW_S + 6)
    assert later is not None
    assert later.amount <= max(then, first)
    if then > first:
        assert 0 < later.amount - first <= (then - first) // 2 + 1
        again = heard(later, then, "requests", NOW_S + 7)
        assert again is not None
        assert again.amount == later.amount


@given(amounts)
def test_what_is_told_again_and_again_is_reached_exactly(limit):
    learned = heard(None, 1, "requests", NOW_S)
    for number in range(60):
        learned = heard(learned, limit, "requests", NOW_S + 6 * number)
    assert learned is not None
    assert learned.amount == limit


@pytest.mark.parametrize("absurd", [None, 0, -5, 10**9, 10**15])
def test_an_absurd_limit_is_not_heard(absurd):
    assert heard(None, absurd, "requests", NOW_S) is None
    learned = Learned(50, "header", NOW_S, NOW_S, NOW_S)
    assert heard(learned, absurd, "requests", NOW_S + 60) is learned


@given(st.integers(0, 10**7), st.one_of(st.none(), amounts), st.floats(0, 4_000))
def test_a_429_never_leaves_more_than_the_ceiling_nor_less_than_one_call(admitted, ceiling, after_s):
    learned = refused(None, admitted, "requests", NOW_S - 1, NOW_S, ceiling)
    assert learned.amount >= 1
    assert adaptive.amount_at(learned, NOW_S) <= max(1, ceiling or 10**9)
    grown = adaptive.amount_at(learned, NOW_S + after_s, admitted=admitted)
    assert learned.amount <= grown <= max(learned.refused_at, 2 * admitted, 1)


def test_a_rate_grows_back_as_cubic_does_and_a_late_429_of_the_same_moment_cuts_no_more():
    learned = refused(None, 100, "requests", NOW_S - 1, NOW_S, None)
    at = [adaptive.amount_at(learned, NOW_S + seconds, 1_000) for seconds in (0, 15, 30, 45, 60)]
    assert at == [70, 96, 100, 103, 130]
    assert refused(learned, 100, "requests", NOW_S - 0.5, NOW_S + 1, None).amount == 70
    assert refused(learned, 70, "requests", NOW_S + 1, NOW_S + 2, None).amount == 49


def test_a_curve_grows_only_from_the_end_of_a_closing():
    learned = adaptive.closed(refused(None, 100, "requests", NOW_S - 1, NOW_S, None), NOW_S + 20, NOW_S)
    assert learned.closed_until_s == NOW_S + 20
    assert adaptive.closed(learned, NOW_S + 5, NOW_S + 1).closed_until_s == NOW_S + 20
    assert adaptive.closed(learned, NOW_S + 1e12, NOW_S).closed_until_s == NOW_S + 3_600


def test_a_meter_measures_from_one_refusal_to_the_next():
    meter = Meter(NOW_S)
    for second in range(120):
        for _ in range(2 if second < 60 else 1):
            meter.add(Amounts(1, 100), NOW_S + second)
        if second == 40:
            assert meter.refused("requests", NOW_S + second) in range(80, 90)
    assert meter.admitted("requests", NOW_S + 119) in range(55, 66)
    assert meter.refused("requests", NOW_S + 120) in range(60, 77)
    assert meter.admitted("input_tokens", NOW_S + 10_000) == 0


# -- levels --------------------------------------------------------------------------------------------------------


@st.composite
def levels(draw):
    level = None
    for _ in range(draw(st.integers(0, 4))):
        at_ns = NOW_NS - draw(st.integers(0, 60)) * S
        held, actual = draw(st.integers(1, 300)), draw(st.integers(0, 600))
        outcome = RATE.hold(level, held, at_ns, at_ns + 600 * S)
        if isinstance(outcome, tuple):
            level, token = outcome
            if draw(st.booleans()):
                level = RATE.settle(level, held, actual, token, at_ns, lapsed=False)
    return level


@given(levels(), st.integers(1, 500), st.floats(0, 3_600))
def test_a_closed_rate_lets_its_call_go_at_the_told_instant_and_nothing_before(level, units, wait_s):
    until_ns = NOW_NS + round(wait_s * S)
    closed = RATE.closed(level, units, until_ns, NOW_NS)
    if closed is None:
        closed = level
    assert RATE.closed(closed, units, until_ns, NOW_NS) is None  # closing twice is closing once
    for early_ns in (NOW_NS, (NOW_NS + until_ns) // 2, until_ns - S // 5):
        if NOW_NS <= early_ns < until_ns - S // 10:
            assert isinstance(RATE.hold(closed, units, early_ns, early_ns + 600 * S), Short)
    if RATE.read(closed, NOW_NS).held == 0 and RATE.read(level, NOW_NS).used <= 0:
        outcome = RATE.hold(closed, units, until_ns + 1, until_ns + 600 * S)
        assert isinstance(outcome, tuple)
        assert isinstance(RATE.hold(outcome[0], units, until_ns + 1, until_ns + 600 * S), Short) or units <= 1


@given(levels(), st.integers(0, 500), st.one_of(st.none(), st.integers(0, 500)))
def test_a_corrected_level_is_what_it_was_told_and_correcting_twice_is_correcting_once(level, least, most):
    if most is not None:
        least = min(least, most)
    before = RATE.read(level, NOW_NS)
    corrected = RATE.corrected(level, least, most, NOW_NS)
    reading = RATE.read(level if corrected is None else corrected, NOW_NS)
    assert reading.used + reading.held >= least
    assert reading.held == before.held
    if most is None:
        assert reading.used >= before.used
    elif reading.held <= most:
        assert reading.used + reading.held <= max(most, least)
    if corrected is not None:
        assert RATE.corrected(corrected, least, most, NOW_NS) is None


def test_a_closed_window_counts_nothing_as_spent_and_opens_at_its_reset():
    window = Window("w", "account:a", "tokens", 100, OpenedByUse(18_000), closed_until_ns=NOW_NS + 60 * S)
    assert window.hold(None, 10, NOW_NS, 0) == Short(NOW_NS + 60 * S, NOW_NS + 60 * S)
    assert window.read(None, NOW_NS).used == 0
    assert isinstance(window.hold(None, 10, NOW_NS + 60 * S, 0), tuple)


# -- notices -------------------------------------------------------------------------------------------------------


def test_of_what_is_told_only_the_ordinary_rates_by_the_minute_are_learned():
    notices = Notices(
        (
            RateNotice("input_tokens", 50_000, 40_000, rounded_to=1000),
            RateNotice("output_tokens", 8_000, 8_000, rounded_to=1000),
            RateNotice("tokens", 58_000, 48_000, rounded_to=1000),
            RateNotice("requests", 50, 49, pool="priority"),
            RateNotice("requests", 200, 199, resets_s=NOW_S + 432),
        )
    )
    assert adaptive.told_rates(notices, NOW_S).keys() == {"input_tokens", "output_tokens"}
    openai = Notices(
        (RateNotice("tokens", 40_000, 39_000, resets_s=NOW_S + 2), RateNotice("tokens", 9, 3, pool="project"))
    )
    assert adaptive.told_rates(openai, NOW_S)["tokens"].limit == 9
    anthropic = Notices((RateNotice("requests", 4_000, 3_999, resets_s=NOW_S + 1),))
    assert adaptive.told_rates(anthropic, NOW_S).keys() == {"requests"}


@given(st.integers(0, 2_000), st.integers(1, 2_000), st.sampled_from([1, 1000]))
def test_what_remains_is_read_with_its_rounding(remaining, amount, rounded_to):
    certain, at_most = adaptive.spent_at_least(
        RateNotice("tokens", amount, remaining, rounded_to=rounded_to), amount, NOW_S
    )
    assert 0 <= certain <= at_most <= amount
    assert at_most - certain <= rounded_to


def test_a_bucket_less_deep_than_a_minute_is_not_taken_for_spent():
    """A bucket of 10 s that is full has a sixth of the minute's amount left, and nothing to come back."""
    full = RateNotice("tokens", 60_000, 10_000, resets_s=NOW_S)
    assert adaptive.spent_at_least(full, 60_000, NOW_S) == (1_000, 1_000), "but for the second that resets are told in"
    half = RateNotice("tokens", 60_000, 5_000, resets_s=NOW_S + 5)
    assert adaptive.spent_at_least(half, 60_000, NOW_S) == (6_000, 6_000)
    spent = RateNotice("tokens", 60_000, 0, resets_s=NOW_S + 60)
    assert adaptive.spent_at_least(spent, 60_000, NOW_S) == (60_000, 60_000)


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        ("claude-opus-4-1-20250805", "claude-opus-4*"),
        ("claude-opus-4-5", "claude-opus-4*"),
        ("claude-sonnet-4-5[1m]", "claude-sonnet-4*"),
        ("claude-3-5-haiku-20241022", "claude-3-5-haiku*"),
        ("gpt-5-mini", "gpt-5-mini"),
        ("a model* [x]", "a_model___x_"),
        ("x" * 300, "x" * 100),
    ],
)
def test_models_that_share_a_providers_limits_are_one_pool(model, pool):
    assert adaptive.model_class(model) == pool


def test_a_learned_limit_lowers_a_configured_one_and_never_raises_it():
    key = Key("a", "m", "output_tokens")
    configured = Rate("r", "account:a", "output_tokens", 1_000, 60, 900)
    less = adaptive.learned_rate(key, "output_tokens", Learned(600, "header", 0, 0, 0), 600)
    assert (less.burst, less.most_held) == (500, 500)
    lowered = adaptive.lowered(configured, less)
    assert (lowered.name, lowered.amount, lowered.burst) == ("r", 600, 500)
    more = adaptive.learned_rate(key, "output_tokens", Learned(6_000, "header", 0, 0, 0), 6_000)
    assert adaptive.lowered(configured, more) is configured
    requests = adaptive.learned_rate(key, "requests", Learned(1, "429", 0, 0, 0), 1)
    assert isinstance(requests.hold(None, 50, NOW_NS, NOW_NS + S), tuple)  # it waits, and is never refused for good


def test_overage_is_a_spent_window_unless_its_owner_allows_it():
    plans = (PlanNotice(18_000, 1.0, NOW_S + 60, "rejected"), PlanNotice(604_800, 0.4, NOW_S + 600, "allowed"))
    assert adaptive.spent_plans(Notices(plans=plans), overage_allowed=True) == [plans[0]]
    paid = Notices(plans=plans, overage=OverageNotice("allowed", in_use=True))
    assert adaptive.spent_plans(paid, overage_allowed=False) == [plans[0]]
    assert adaptive.spent_plans(paid, overage_allowed=True) == []


# -- concurrency and retries ---------------------------------------------------------------------------------------


def test_trouble_halves_the_slots_once_a_round_trip_and_answers_bring_them_back():
    found = troubled(None, 32, NOW_S - 1, NOW_S)
    assert found.amount == 16
    assert troubled(found, 32, NOW_S - 0.5, NOW_S + 0.1) is found
    assert troubled(found, 32, NOW_S + 0.5, NOW_S + 1).amount == 8
    rounds = 0
    while found is not None and found.amount < 32:
        for _ in range(found.amount):
            grown = answered(found, 1.0, found.amount, NOW_S + 1 + rounds)
            assert grown is not None
            found = grown
        rounds += 1
    assert rounds <= 5
    idle = answered(replace(found, slots=20.0), 1.0, 2, NOW_S)
    assert idle is not None
    assert idle.slots == 20.0  # what nobody asks for proves nothing


def test_slower_answers_shrink_the_slots():
    found = troubled(None, 32, NOW_S - 1, NOW_S)
    for _ in range(20):
        found = answered(found, 0.5, 16, NOW_S + 1) or found
    before = found.slots
    for _ in range(20):
        found = answered(found, 5.0, 16, NOW_S + 2) or found
    assert found.slots < before


def test_a_retry_budget_is_a_tenth_of_the_first_attempts_and_a_small_floor():
    budget = RetryBudget()
    for number in range(10):
        spent = budget.spent(NOW_S)
        assert spent is not None, number
        budget = spent
    assert budget.spent(NOW_S) is None
    assert budget.spent(NOW_S + 7) is not None
    for _ in range(100):
        budget = budget.earned()
    assert 9 <= budget.left <= 11
    for _ in range(10_000):
        budget = budget.earned()
    assert budget.left == 100
