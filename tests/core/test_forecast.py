"""Forecasts: what a history makes of them, what holds for any history, and what is said without one."""

from math import exp
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.core.forecast import MOST_SLOTS, Forecast, Forecaster
from headgate.core.season import DAY_S, HOUR_S, Season

FIVE_H = 5 * HOUR_S
SLOT_S = 600
DAYS_OF_WORK = 20


def fed(units_of_slots: list[int], *, window_s: int = FIVE_H, slot_s: int = HOUR_S) -> Forecaster:
    forecaster = Forecaster(window_s, slot_s)
    for index, units in enumerate(units_of_slots):
        forecaster.observe(index * slot_s, units)
    return forecaster


def working_days(days: int, *, slot_s: int = HOUR_S) -> list[int]:
    """600 an hour from 8 to 18 h, 60 else."""
    per_hour = HOUR_S // slot_s
    hours = [600 if 8 <= hour % 24 < 18 else 60 for hour in range(days * 24)]
    return [units // per_hour for units in hours for _slot in range(per_hour)]


def at(forecaster: Forecaster, used: int, elapsed_s: float, **more: int | None) -> Forecast:
    """A window of 5 h that began `elapsed_s` before the end of the history."""
    now_s = forecaster.observed_until_s
    assert now_s is not None
    return forecaster.forecast(used, now_s - elapsed_s, now_s - elapsed_s + FIVE_H, now_s, **more)


def test_even_use_goes_on() -> None:
    forecast = at(fed([100] * 24 * 10), 100, HOUR_S)
    assert forecast.expected == 500
    assert (forecast.low, forecast.high) == (500, 500)


def test_a_level_that_rose_for_good_is_followed() -> None:
    assert at(fed([100] * 200 + [300] * 100), 300, HOUR_S).expected == pytest.approx(1500, rel=0.05)


def test_the_habit_of_the_day_is_known() -> None:
    """At 18 h, 2 h into a window, the office has gone home: the plain rate would say 3,000."""
    forecaster = fed([*working_days(DAYS_OF_WORK), *working_days(1)[:18]])
    forecast = at(forecaster, 1200, 2 * HOUR_S)
    assert forecast.expected is not None
    assert forecast.expected < 1800


def test_weekends_are_learned() -> None:
    season = Season()
    for day in range(28):
        for hour in range(24):
            season.observe((day * 24 + hour) * HOUR_S, (day * 24 + hour + 1) * HOUR_S, 10 if day % 7 < 5 else 1)
    workday, weekend = (season.between(day * DAY_S, (day + 1) * DAY_S) for day in (28, 33))
    assert workday / weekend > 2


def test_the_last_projections_decide_how_wide_the_band_is() -> None:
    calm = at(fed([100 + i % 2 for i in range(300)]), 100, HOUR_S)
    wild = at(fed([100 + 90 * (i * 7919 % 13 - 6) // 6 for i in range(300)]), 100, HOUR_S)
    assert calm.high - calm.low < 20 < wild.high - wild.low


def test_bands_hold_their_promise() -> None:
    """80 % of the windows end in the band, though use becomes wilder all the time (the plain quantile keeps 68 %)."""
    chooser, level, slots = Random(3), 0.0, []
    for index in range(2000):
        level = 0.995 * (level + chooser.gauss(0, 0.02 + index / 20_000))
        slots.append(int(1000 * exp(level)))
    forecaster = Forecaster(FIVE_H, SLOT_S)
    held = []
    for index, units in enumerate(slots[:-24]):
        forecaster.observe(index * SLOT_S, units)
        if index >= 300:
            used, rest = sum(slots[index - 5 : index + 1]), sum(slots[index + 1 : index + 25])
            forecast = at(forecaster, used, 6 * SLOT_S)
            held.append(forecast.low <= used + rest <= forecast.high)
    assert sum(held) / len(held) == pytest.approx(0.8, abs=0.03)


def test_without_history_the_window_so_far_goes_on_and_that_is_said() -> None:
    forecast = Forecaster(FIVE_H).forecast(100, 0, FIVE_H, HOUR_S, amount=450)
    assert (forecast.expected, forecast.low, forecast.high) == (500, 100, 1700)
    assert forecast.runs_out_s == pytest.approx(4.5 * HOUR_S)
    assert forecast.assumed.startswith("no history")
    assert forecast.experts == (("average", 1.0),)


def test_nothing_known_is_none_and_not_0() -> None:
    forecast = Forecaster(FIVE_H).forecast(0, 0, FIVE_H, 0, amount=10)
    assert (forecast.expected, forecast.low, forecast.high) == (None, 0, None)
    assert (forecast.runs_out_s, forecast.runs_out_earliest_s) == (None, None)


def test_a_short_history_says_that_its_band_is_a_guess() -> None:
    assert "guess" in at(fed([100] * 8), 100, HOUR_S).assumed
    assert "guess" not in at(fed([100] * 80), 100, HOUR_S).assumed


@pytest.mark.parametrize(
    "slots",
    [
        [int(1.03**i) for i in range(300)],
        [int(1e6 * 0.97**i) for i in range(300)],
        [10_000 if i % 50 < 4 else 0 for i in range(300)],
        [0] * 299 + [5],
    ],
    ids=["ever more", "ever less", "bursts", "first use"],
)
def test_the_band_holds_what_is_expected_and_never_less_than_is_used(slots: list[int]) -> None:
    forecaster = Forecaster(FIVE_H)
    for index, units in enumerate(slots):
        forecaster.observe(index * HOUR_S, units)
        for hours in range(5):
            forecast = at(forecaster, 10, hours * HOUR_S)
            assert 10 <= forecast.low <= forecast.expected <= forecast.high


def test_an_old_history_is_told() -> None:
    forecast = fed([100] * 80).forecast(0, 100 * HOUR_S, 105 * HOUR_S, 101 * HOUR_S)
    assert "ended 21.0 h ago" in forecast.assumed


def test_what_is_not_yet_an_hour_counts() -> None:
    forecaster = fed([100] * 240)
    now_s = 240 * HOUR_S + 1800
    quiet, busy = (
        forecaster.forecast(350, 238 * HOUR_S, 243 * HOUR_S, now_s, unclosed=units).expected for units in (50, 5000)
    )
    assert quiet is not None
    assert busy is not None
    assert quiet < busy


def test_one_call_in_the_first_second_is_no_flood() -> None:
    forecast = fed([100] * 240).forecast(200, 240 * HOUR_S - 1, 245 * HOUR_S - 1, 240 * HOUR_S)
    assert forecast.expected == pytest.approx(700, abs=2)


def test_use_runs_out_in_the_busy_hours() -> None:
    """A day's budget that office hours will overspend runs out in the afternoon, not at an even rate."""
    forecaster = fed(working_days(DAYS_OF_WORK), window_s=DAY_S)
    begin_s = DAYS_OF_WORK * DAY_S
    forecast = forecaster.forecast(0, begin_s, begin_s + DAY_S, begin_s, amount=3500)
    assert forecast.runs_out_s is not None
    assert 12 < (forecast.runs_out_s - begin_s) / HOUR_S < 15


def test_a_budget_that_is_spent_has_run_out_now() -> None:
    forecaster = fed([100] * 80)
    forecast = at(forecaster, 800, HOUR_S, amount=700)
    assert forecast.runs_out_s == forecast.runs_out_earliest_s == forecaster.observed_until_s


def test_a_window_that_is_over_stays_as_it_is() -> None:
    forecast = fed([100] * 80).forecast(77, 0, FIVE_H, 80 * HOUR_S, amount=78)
    assert (forecast.expected, forecast.low, forecast.high, forecast.runs_out_s) == (77, 77, 77, None)


def test_a_slot_told_twice_and_a_clock_stepping_back_change_nothing() -> None:
    forecaster = fed([100] * 80)
    before = at(forecaster, 100, HOUR_S)
    assert not forecaster.observe(79 * HOUR_S, 5000)
    assert not forecaster.observe(3 * HOUR_S + 17, 5000)
    assert at(forecaster, 100, HOUR_S) == before


def test_slots_left_out_count_as_unused() -> None:
    sparse = Forecaster(FIVE_H)
    for index in range(0, 301, 3):
        sparse.observe(index * HOUR_S, 300)
    assert at(sparse, 300, HOUR_S) == at(fed([300 if i % 3 == 0 else 0 for i in range(301)]), 300, HOUR_S)


def test_a_gap_of_years_begins_a_new_history_at_once() -> None:
    forecaster = fed([100] * 80)
    forecaster.observe((MOST_SLOTS + 100) * 1000 * HOUR_S, 7)
    assert "0.0 days" in at(forecaster, 7, HOUR_S).assumed


def test_unused_for_long_stays_unused() -> None:
    forecast = at(fed([0] * 300), 0, HOUR_S, amount=10)
    assert (forecast.expected, forecast.low, forecast.high) == (0, 0, 0)
    assert forecast.runs_out_s is None


def test_numbers_beyond_any_store_do_not_break_it() -> None:
    forecaster = fed([10**400 if i % 2 else 0 for i in range(100)])
    forecast = at(forecaster, 10**400, HOUR_S, amount=10**401, unclosed=10**400)
    assert forecast.expected is not None
    assert forecast.expected >= 10**400


@pytest.mark.parametrize(
    ("window_s", "slot_s", "band"), [(0, 3600, 0.8), (18000, 7, 0.8), (10**9, 3600, 0.8), (18000, 3600, 1.0)]
)
def test_a_forecaster_that_cannot_be_is_refused(window_s: int, slot_s: int, band: float) -> None:
    with pytest.raises(ValueError, match="must"):
        Forecaster(window_s, slot_s, band=band)


def test_its_state_is_bounded() -> None:
    forecaster = fed([(i * 7919) % 1000 for i in range(2000)], slot_s=HOUR_S, window_s=7 * DAY_S)
    assert len(forecaster._totals) == 7 * 24 + 1
    assert all(len(point.pending) <= 60 and len(point.residuals) <= 300 for point in forecaster._points)


histories = st.lists(st.one_of(st.just(0), st.integers(0, 10**6), st.integers(0, 2**63)), max_size=40)


@settings(max_examples=40, deadline=None)
@given(
    history=histories,
    window_h=st.sampled_from([1, 5, 24]),
    used=st.integers(0, 2**63),
    more=st.integers(0, 2**62),
    share=st.floats(0, 1.2),
    amount=st.integers(0, 2**64),
    unclosed=st.none() | st.integers(0, 2**40),
)
def test_laws(
    history: list[int], window_h: int, used: int, more: int, share: float, amount: int, unclosed: int | None
) -> None:
    forecaster = fed(history, window_s=window_h * HOUR_S)
    begin_s, end_s = 50.0 * HOUR_S, (50.0 + window_h) * HOUR_S
    now_s = begin_s + share * window_h * HOUR_S
    forecast, with_more = (
        forecaster.forecast(units, begin_s, end_s, now_s, amount=amount, unclosed=unclosed)
        for units in (used, used + more)
    )
    assert sum(weight for _name, weight in forecast.experts) == pytest.approx(1) or not forecast.experts
    if forecast.expected is None or forecast.high is None:
        assert not history
        return
    assert used <= forecast.low <= forecast.expected <= forecast.high
    assert with_more.expected is not None
    assert with_more.expected >= forecast.expected
    assert (forecast.runs_out_s is not None) == (amount <= forecast.expected)
    assert (forecast.runs_out_earliest_s is not None) == (amount <= forecast.high)
    if forecast.runs_out_s is not None and forecast.runs_out_earliest_s is not None:
        assert min(now_s, end_s) <= forecast.runs_out_earliest_s <= forecast.runs_out_s <= end_s
