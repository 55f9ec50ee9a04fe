"""Thresholds warn once for each window, and a check says what is spent."""

from dataclasses import replace

import pytest

from headgate.core.alerts import Said, Use, alerts_due, check, said_after_a_raise
from headgate.core.amounts import Amounts, demand
from headgate.core.limits import Gauge, Level, Limit, Rate, Rolling, Window
from headgate.core.quota import Admitted, admit, settle
from headgate.core.spans import Fixed, Lifetime

START_S = 1_750_000_000
DAY = Window("day", "key:ci", "micro_usd", 1_000, Fixed(40))
LIFE = Window("life", "run:r", "micro_usd", 1_000, Lifetime())
ROLLING = Rolling("rolling", "run:r", "micro_usd", 1_000, 60)


class Book:
    """Levels and what was said of them."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.levels: dict[str, Level] = {}
        self.said: dict[str, Said] = {}

    def spend(self, units: int, at_s: float) -> None:
        outcome = admit([self.limit], self.levels, demand(Amounts(micro_usd=units)), at_s)
        assert isinstance(outcome, Admitted)
        self.levels |= outcome.levels
        changed, _ = settle([self.limit], self.levels, outcome.reservation, Amounts(micro_usd=units), at_s)
        self.levels |= changed

    def due(self, at_s: float) -> list[int]:
        due, self.said = alerts_due([self.limit], self.levels, self.said, at_s)
        return [alert.threshold_percent for alert in due]


def test_each_threshold_is_said_once_in_a_window_and_again_in_the_next():
    book = Book(DAY)
    book.spend(499, START_S)
    assert book.due(START_S) == []
    book.spend(1, START_S)
    assert book.due(START_S) == [50]
    assert book.due(START_S) == []
    book.spend(300, START_S)
    assert book.due(START_S) == [80]
    book.spend(200, START_S)
    assert book.due(START_S) == [95]
    assert book.due(START_S + 39) == []
    assert book.due(START_S + 41) == []
    assert book.said == {}, "what is over is not remembered"
    book.spend(960, START_S + 41)
    assert book.due(START_S + 41) == [95], "of several at once only the highest"


@pytest.mark.parametrize("limit", [DAY, LIFE, ROLLING])
def test_a_settlement_that_lowers_the_use_does_not_let_it_be_said_again(limit: Limit):
    book = Book(limit)
    book.spend(850, START_S)
    high = dict(book.levels)
    assert book.due(START_S) == [80]
    book.levels.clear()
    book.spend(300, START_S)
    assert book.due(START_S) == []
    book.levels = high
    assert book.due(START_S) == []


def test_a_lifetime_never_begins_again_and_a_rolling_stretch_does():
    life, rolling = Book(LIFE), Book(ROLLING)
    for book in (life, rolling):
        book.spend(600, START_S)
        assert book.due(START_S) == [50]
    assert life.due(START_S + 10**7) == []
    assert rolling.due(START_S + 62) == []
    rolling.spend(600, START_S + 62)
    assert rolling.due(START_S + 62) == [50]


def test_what_is_only_held_is_not_said():
    outcome = admit([DAY], {}, demand(Amounts(micro_usd=990)), START_S)
    assert isinstance(outcome, Admitted)
    assert alerts_due([DAY], outcome.levels, {}, START_S) == ([], {})


def test_rates_and_slots_have_no_thresholds():
    rate = Rate("r", "key:ci", "requests", 60, 60, 50)
    levels = {"r": (START_S * 10**9, 50 * 60 * 10**9, 0, 0, 0), "s": (8, (START_S + 9) * 10**9, 0)}
    assert alerts_due([rate, Gauge("s", "key:ci", "slots", 8)], levels, {}, START_S) == ([], {})


def test_a_check_is_about_what_is_spent_or_past_what_was_asked():
    half, full = Use("half", 500, 400, 1_000), Use("full", 1_001, 0, 1_000)
    assert check([]) == (None, (), ())
    assert not check([]).limited
    assert not check([half]).limited
    assert check([half], at_percent=50).past == (half,)
    assert check([half], at_percent=50).limited
    verdict = check([half, full])
    assert (verdict.worst, verdict.spent, verdict.limited) == (full, (full,), True)


def test_after_a_raise_the_thresholds_of_the_new_amount_are_said():
    book = Book(LIFE)
    book.spend(900, START_S)
    assert book.due(START_S) == [80]
    for amount, still in ((1_100, 80), (1_500, 50), (2_000, 0)):
        more = replace(LIFE, amount=amount)
        said = said_after_a_raise(more, book.levels["life"], book.said["life"], START_S)
        assert said == ((book.said["life"][0], still) if still else None)
