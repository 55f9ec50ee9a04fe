"""How many calls at once: halved by trouble, shrunk by slowness, grown back by answers; and the retry budget."""

from dataclasses import replace
from random import Random

import pytest

from headgate.core.concurrency import Concurrency, Speed, answered, reopening, slowed, troubled
from headgate.core.retries import RetryBudget

NOW_S = 1_750_000_000.0


def test_trouble_halves_the_slots_once_a_round_trip_and_answers_bring_them_back():
    found = troubled(None, 32, NOW_S - 1, NOW_S)
    assert found.amount == 16
    assert troubled(found, 32, NOW_S - 0.5, NOW_S + 0.1) is found
    assert troubled(found, 32, NOW_S + 0.5, NOW_S + 1).amount == 8
    rounds = 0
    while found.amount < 32:
        for _ in range(found.amount):
            grown = answered(found, 1.0, found.amount, NOW_S + 1 + rounds)
            assert grown is not None
            found = grown
        rounds += 1
    assert rounds <= 5
    idle = answered(replace(found, slots=20.0), 1.0, 2, NOW_S)
    assert idle is not None
    assert idle.slots == 20.0  # what nobody asks for proves nothing


def test_the_bound_is_gone_when_all_was_well_for_a_minute():
    found: Concurrency | None = troubled(None, 32, NOW_S - 1, NOW_S)
    for number in range(2_000):
        if found is None:
            break
        found = answered(found, 1.0, 64, NOW_S + number / 10)
    assert found is None


def test_slower_answers_shrink_the_slots_to_a_few_and_no_further():
    found = troubled(None, 32, NOW_S - 1, NOW_S)
    for _ in range(200):
        found = answered(found, 10.0, found.amount, NOW_S + 1) or found
    assert 3 <= found.amount <= 5, "where sqrt(slots) a round trip is what the gradient takes"


def test_slowness_alone_bounds_where_it_is_great_and_many_calls_are_under_way():
    assert slowed(1.5, 32, NOW_S) is None
    assert slowed(9.0, 3, NOW_S) is None
    begun = slowed(3.2, 32, NOW_S)
    assert begun is not None
    assert begun.amount == 20


def test_after_a_closing_one_call_goes_and_then_twice_as_many_each_round_trip():
    found: Concurrency | None = reopening(16, NOW_S, NOW_S + 100)
    assert found is not None
    early = answered(found, 1.0, 1, NOW_S + 50)  # it was sent before
    assert early is not None
    assert early.amount == 1
    rounds = []
    while found is not None:
        rounds.append(found.amount)
        for _ in range(found.amount):
            if found is not None:
                found = answered(found, 1.0, found.amount, NOW_S + 100 + len(rounds))
    assert rounds == [1, 2, 4, 8]


# -- how fast answers begin ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0])
def test_healthy_answers_are_never_slow_however_their_prompts_differ(sigma):
    """Time to the first byte of a prompt of 100,000 tokens is twenty times that of 1,000; each varies by itself."""
    chooser, speed = Random(3), Speed()
    for _ in range(3_000):
        tokens = chooser.choice([500, 1_000, 20_000, 100_000])
        speed.follow(tokens, (0.4 + tokens / 12_000) * chooser.lognormvariate(0, sigma))
        assert speed.slowness < 3


def test_a_provider_that_gets_slower_is_seen_after_a_dozen_answers_and_becomes_the_usual_one():
    chooser, speed = Random(3), Speed()
    for _ in range(300):
        speed.follow(1_000, 0.5 * chooser.lognormvariate(0, 0.3))
    answers = 0
    while speed.slowness < 3:
        speed.follow(1_000, 4.0 * chooser.lognormvariate(0, 0.3))
        answers += 1
    assert answers <= 12
    for _ in range(600):
        speed.follow(1_000, 4.0 * chooser.lognormvariate(0, 0.3))
    assert speed.slowness < 1.5


def test_a_clock_that_steps_back_makes_no_answer_slow():
    """The usual time became less than nothing, and a thousand healthy answers were slow beside it."""
    speed = Speed()
    for _ in range(200):
        speed.follow(1_000, 0.5)
    for _ in range(20):
        speed.follow(1_000, -29.6)
    for _ in range(300):
        assert speed.follow(1_000, 0.5) < 1.1


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
