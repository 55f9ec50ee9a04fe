"""What is charged before a call's end is charged once, whoever settles it, and drains from then on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import Amounts, demand
from headgate.core.limits import Rate, Window
from headgate.core.quota import Admitted
from headgate.core.spans import Lifetime

NOW_S = 1_750_000_000.0
OUTPUT = Rate("output", "account:a", "output_tokens", 600, 60, 1_000)
BUDGET = Window("budget", "run:r", "output_tokens", 100_000, Lifetime())
INPUT = Window("input", "run:r", "input_tokens", 100_000, Lifetime())
LIMITS = (OUTPUT, BUDGET, INPUT)


class Books:
    """Levels, and one reservation of 500 input and 400 output tokens."""

    def __init__(self) -> None:
        self.levels = {}
        outcome = quota.admit(LIMITS, self.levels, demand(Amounts(input_tokens=500, output_tokens=400)), NOW_S)
        assert isinstance(outcome, Admitted)
        self.levels |= outcome.levels
        self.reservation = outcome.reservation

    def draw(self, output_tokens, at_s=NOW_S):
        changed, self.reservation = quota.draw(
            LIMITS, self.levels, self.reservation, Amounts(output_tokens=output_tokens), at_s
        )
        self.levels |= changed

    def settle(self, actual, at_s=NOW_S, dimensions=None):
        changed, self.reservation = quota.settle(LIMITS, self.levels, self.reservation, actual, at_s, dimensions)
        self.levels |= changed

    def of(self, limit, at_s=NOW_S):
        reading = quota.read(limit, self.levels, at_s)
        return reading.used, reading.held


@given(
    parts=st.lists(st.integers(0, 700), max_size=6),
    total=st.integers(0, 700),
    dies_after=st.integers(0, 6),
    input_told=st.booleans(),
)
def test_all_is_charged_once_whoever_settles_it(parts, total, dies_after, input_told):
    books = Books()
    actual = Amounts(input_tokens=600, output_tokens=total)
    so_far = [min(part, total) for part in parts]
    for tokens in so_far[:dies_after]:
        books.draw(tokens)
        assert sum(books.of(OUTPUT)) == max(400, books.of(OUTPUT)[0])
    if input_told:
        books.settle(actual, dimensions=("input_tokens",))
    if dies_after < len(so_far):  # its process is killed; whoever recovers it learns the truth from the provider
        changed, books.reservation = quota.expire(LIMITS, books.levels, books.reservation, NOW_S)
        books.levels |= changed
        assert books.of(OUTPUT) == (max(400, *so_far[:dies_after], 0), 0)
        books.settle(actual)
        assert books.of(OUTPUT) == (max(400, total), 0)
    else:
        books.settle(actual)
        assert books.of(OUTPUT) == (total, 0)
    assert books.of(BUDGET) == (total, 0)
    assert books.of(INPUT) == (600, 0)
    books.settle(actual)
    assert books.of(BUDGET) == (total, 0)


def test_what_was_drawn_drains_while_the_call_goes_on():
    books = Books()
    books.draw(100)
    assert books.of(OUTPUT) == (100, 300)
    assert books.of(OUTPUT, NOW_S + 5) == (50, 300)
    assert books.of(BUDGET) == (0, 400), "a budget does not drain, so it waits for the truth"
    books.settle(Amounts(output_tokens=150), NOW_S + 10)
    assert books.of(OUTPUT, NOW_S + 10) == (50, 0)


def test_what_goes_by_beyond_the_hold_is_debt_before_the_end():
    books = Books()
    books.draw(900)
    assert books.of(OUTPUT) == (900, 0)
    books.draw(300)
    assert books.of(OUTPUT) == (900, 0), "what was told before is not taken back"
    books.settle(Amounts(output_tokens=880))
    assert books.of(OUTPUT) == (900, 0), "a guess that was too high has been admitted on: it stays"


def test_a_draw_after_the_lease_has_ended_changes_nothing_that_was_counted_as_spent():
    books = Books()
    changed, books.reservation = quota.expire(LIMITS, books.levels, books.reservation, NOW_S)
    books.levels |= changed
    other = quota.admit([OUTPUT], books.levels, demand(Amounts(output_tokens=300)), NOW_S)
    books.levels |= other.levels
    books.draw(100)
    assert books.of(OUTPUT) == (400, 300)


@pytest.mark.parametrize("certain", [True, False])
def test_what_was_charged_at_the_start_is_not_drawn_again(certain):
    limit = Rate("tokens", "account:a", "output_tokens", 600, 60, 1_000, charged_at_start=certain)
    outcome = quota.admit([limit], {}, demand(Amounts(output_tokens=400)), NOW_S)
    told = Amounts(output_tokens=100)
    changed, _rest = quota.draw([limit], outcome.levels, outcome.reservation, told, NOW_S)
    assert bool(changed) is not certain
