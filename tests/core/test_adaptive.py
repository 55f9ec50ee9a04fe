"""Learned limits, as arithmetic: pessimistic at once, optimistic slowly, never above a ceiling, closed exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import adaptive, learned_limits
from headgate.core.adaptive import Key, Learned, heard, refused
from headgate.core.amounts import Amounts
from headgate.core.instants import to_ns
from headgate.core.levels import Short
from headgate.core.limits import Rate, Window
from headgate.core.meter import Measured, Meter
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


MEASURES = st.builds(
    Measured, st.integers(0, 10**7), st.integers(0, 10**7), st.one_of(st.none(), st.integers(1, 10**7))
)


@given(
    st.lists(MEASURES, min_size=1, max_size=4),
    st.one_of(st.none(), amounts),
    st.floats(0, 4_000),
    st.integers(0, 10**6),
)
def test_a_429_never_leaves_more_than_the_ceiling_nor_less_than_one_call(measures, ceiling, after_s, admitted):
    learned, now_s = None, NOW_S
    for measured in measures:
        learned = refused(learned, measured, "requests", now_s - 0.1, now_s, ceiling)
        assert learned.amount >= 1
        assert learned.amount <= max(1, learned.refused_at)
        assert ceiling is None or learned.refused_at <= ceiling
        grown = adaptive.amount_at(learned, now_s + after_s, admitted=admitted)
        assert learned.amount <= grown <= max(learned.amount, learned.refused_at, 2 * admitted)
        now_s += 1 + after_s


def measured(rate: int, since_refusal: int | None = None) -> Measured:
    return Measured(rate, rate, since_refusal)


def test_a_first_429_measures_nothing_and_the_rate_doubles_until_the_next_one():
    learned = refused(None, measured(100), "requests", NOW_S - 1, NOW_S, None)
    at = [adaptive.amount_at(learned, NOW_S + seconds, 1_000) for seconds in (0, 7.5, 15, 30)]
    assert at == [70, 140, 280, 1_120]


def test_what_was_measured_is_grown_back_to_as_cubic_does_and_beyond_it_when_no_429_comes():
    learned = refused(None, measured(100, 100), "requests", NOW_S - 1, NOW_S, None)
    at = [adaptive.amount_at(learned, NOW_S + seconds, 1_000) for seconds in (0, 15, 30, 45, 60, 75)]
    assert at == [70, 96, 100, 103, 207, 415]
    assert refused(learned, measured(100), "requests", NOW_S - 0.5, NOW_S + 1, None).amount == 70
    assert refused(learned, measured(70), "requests", NOW_S + 1, NOW_S + 2, None).amount == 49


def test_a_limit_that_was_measured_twice_is_cut_but_little():
    learned = refused(None, measured(100, 100), "requests", NOW_S - 1, NOW_S, None)
    again = refused(learned, measured(104, 104), "requests", NOW_S + 39, NOW_S + 40, None)
    assert (again.refused_at, again.amount) == (104, 98)
    fallen = refused(again, measured(60, 60), "requests", NOW_S + 59, NOW_S + 60, None)
    assert (fallen.refused_at, fallen.amount) == (60, 42)


def test_a_429_long_after_the_last_one_was_at_more_than_went_through_since_then():
    learned = refused(None, measured(100, 100), "requests", NOW_S - 1, NOW_S, None)
    found = refused(learned, Measured(300, 400, 120), "requests", NOW_S + 89, NOW_S + 90, None)
    assert found.refused_at == 280


def test_a_told_rate_that_429s_showed_to_be_less_is_followed_down_only_until_they_are_long_past():
    learned = refused(None, measured(100), "requests", NOW_S - 1, NOW_S, None, told=1_000)
    assert (learned.amount, learned.source, learned.told) == (70, "429", 1_000)
    assert adaptive.amount_at(learned, NOW_S + 500, 10_000) == 1_000, "it grows as an untold one, up to what is told"
    assert heard(learned, 2_000, "requests", NOW_S + 599) is learned
    less = heard(learned, 50, "requests", NOW_S + 10)
    assert less is not None
    assert adaptive.amount_at(less, NOW_S + 10, 10_000) == 50
    believed = heard(learned, 1_000, "requests", NOW_S + 600)
    assert believed is not None
    assert (believed.amount, believed.source, believed.told) == (1_000, "header", 0)


def test_a_limit_that_falls_is_found_by_a_few_cuts():
    learned, cuts = refused(None, measured(600, 600), "requests", NOW_S - 1, NOW_S, None), 0
    while learned.amount > 150:
        cuts += 1
        learned = refused(learned, measured(580), "requests", NOW_S + cuts - 0.1, NOW_S + cuts, None)
    assert cuts <= 4


def test_a_curve_grows_only_from_the_end_of_a_closing():
    learned = adaptive.closed(refused(None, measured(100), "requests", NOW_S - 1, NOW_S, None), NOW_S + 20, NOW_S)
    assert learned.closed_until_s == NOW_S + 20
    assert adaptive.amount_at(learned, NOW_S + 20) == learned.amount
    assert adaptive.closed(learned, NOW_S + 5, NOW_S + 1).closed_until_s == NOW_S + 20


@pytest.mark.parametrize(
    ("told_s", "closed_s"), [(20, 20), (7_200, 7_200), (86_400, 86_400), (100_000, 3_600), (1e15, 3_600)]
)
def test_a_closing_lasts_as_told_up_to_a_day_and_what_is_longer_is_tried_again_in_an_hour(told_s, closed_s):
    learned = refused(None, measured(100), "requests", NOW_S - 1, NOW_S, None)
    assert adaptive.closed(learned, NOW_S + told_s, NOW_S).closed_until_s == NOW_S + closed_s


def test_a_meter_knows_what_the_last_minute_admitted_and_what_a_request_was_charged():
    meter = Meter()
    for second in range(120):
        for _ in range(2 if second < 90 else 1):
            meter.add(Amounts(1, 100), NOW_S + second)
    assert meter.admitted("requests", NOW_S + 119) in range(85, 96)
    assert meter.admitted("requests", NOW_S + 119, Meter.RECENT) in range(55, 66)
    assert meter.a_request("requests", NOW_S + 119, 7) == 1
    assert meter.a_request("input_tokens", NOW_S + 119, 7) == 100
    assert meter.a_request("input_tokens", NOW_S + 10_000, 7) == 7
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


# -- limits of what was learned --


@pytest.mark.parametrize(
    ("model", "models"),
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
def test_models_that_share_a_providers_limits_are_one_class(model, models):
    assert adaptive.model_class(model) == models


def test_a_learned_limit_lowers_a_configured_one_and_never_raises_it():
    key = Key("a", "m", "output_tokens")
    configured = Rate("r", "account:a", "output_tokens", 1_000, 60, 900)
    less = learned_limits.learned_rate(key, Learned(600, "header", 0, 0, 0), 600)
    assert (less.burst, less.most_held) == (500, 500)
    lowered = learned_limits.lowered(configured, less)
    assert (lowered.name, lowered.amount, lowered.burst) == ("r", 600, 500)
    shallow = learned_limits.learned_rate(key, Learned(600, "header", 0, 0, 0, depth=1 / 60), 600)
    assert shallow.burst == 8, "of ten, and not one at a time because the reserve is deeper than the bucket"
    more = learned_limits.learned_rate(key, Learned(6_000, "header", 0, 0, 0), 6_000)
    assert learned_limits.lowered(configured, more) is configured
    requests = learned_limits.learned_rate(Key("a", "m", "requests"), Learned(1, "429", 0, 0, 0), 1)
    assert isinstance(requests.hold(None, 50, NOW_NS, NOW_NS + S), tuple)  # it waits, and is never refused for good


def test_a_rate_that_is_closed_for_longer_is_not_opened_by_closing_it_for_less():
    """A refused call went again at once, and again, for the rest of the longer closing."""
    longer = RATE.closed(None, 100, NOW_NS + 60 * S, NOW_NS)
    assert longer is not None
    for wait_s in (5, 30):
        until_ns = NOW_NS + wait_s * S
        shorter = RATE.closed(longer, 200, until_ns, NOW_NS, exactly=True)
        assert shorter is not None
        for early_ns in (NOW_NS, NOW_NS + wait_s * S // 2, until_ns - S // 10):
            assert isinstance(RATE.hold(shorter, 200, early_ns, early_ns + 600 * S), Short)
        assert isinstance(RATE.hold(shorter, 200, until_ns + 1, NOW_NS + 600 * S), tuple)
        assert RATE.closed(longer, 200, until_ns, NOW_NS) is None
