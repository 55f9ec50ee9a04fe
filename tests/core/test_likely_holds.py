"""What is likely: learned as p99.9, never above what a call states, held by the limits that say so and no others."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import quota, set_aside
from headgate.core.amounts import Amounts, Demand
from headgate.core.estimates import CallSize, Estimator
from headgate.core.instants import to_ns
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.planning import Plan, part_of
from headgate.core.quantiles import MOST_RARE_SAMPLES, RARE, RARE_SAMPLES, LongestSeen, RollingQuantile
from headgate.core.quota import Admitted, Refused, Wait
from headgate.core.set_aside import Plans
from headgate.core.spans import Calendar, Lifetime
from headgate.core.usage import Usage

NOW_S = 1_750_000_000.0


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_seen_is_the_quantile_of_the_last_samples(seed):
    chooser = Random(seed)
    longest, reference = LongestSeen(), RollingQuantile(MOST_RARE_SAMPLES)
    falls = [*range(2_500, 0, -1)] if seed == 0 else []
    for tokens in falls + [int(chooser.lognormvariate(4, 2)) + 1 for _ in range(5_000)]:
        assert longest.value() == reference.value(RARE)
        longest.observe(tokens)
        reference.observe(tokens)
        assert len(longest._falling) <= MOST_RARE_SAMPLES
    assert len(longest._falling) < 30, "what a later one reaches is not kept"


@pytest.mark.parametrize("seed", range(4))
def test_it_is_never_above_what_a_call_states_nor_below_the_quantile_of_its_likes(seed):
    chooser = Random(seed)
    estimator, plain = Estimator(), Estimator()
    estimator.keep_longest()
    seen: dict[tuple[str | None, ...], RollingQuantile] = {}
    for number in range(6_000):
        kind = chooser.choice((None, None, None, "rare", "common"))
        endpoint = "chat" if chooser.random() < 0.1 else "messages"
        stated = chooser.choice((None, 1, 300, 100_000))
        size = CallSize("m", 4_000, max_output_tokens=stated, endpoint=endpoint, kind=kind)
        keys = ([("m", endpoint, kind)] if kind else []) + [("m", endpoint), ("m",)]
        told = [seen[key].value(RARE) for key in keys if key in seen and len(seen[key]) >= RARE_SAMPLES]
        estimate = estimator.estimate(size, NOW_S)
        if told:
            assert estimate.output_likely == (told[0] if stated is None else min(stated, told[0]))
        else:
            assert estimate.output_likely is None
            assert number < 2 * RARE_SAMPLES
        assert estimate._replace(output_likely=None) == plain.estimate(size, NOW_S), "nothing else changes"
        used = Usage(1_000, output_tokens=int(chooser.lognormvariate(4, 1.5)) + 1)
        for each in (estimator, plain):
            each.observe(size, used, NOW_S)
        for key in keys:
            seen.setdefault(key, RollingQuantile(MOST_RARE_SAMPLES)).observe(used.output_tokens)


def test_what_was_recalled_counts_and_without_being_asked_nothing_is_kept():
    estimator, size = Estimator(), CallSize("m", 400)
    for _ in range(RARE_SAMPLES):
        estimator.observe(size, Usage(100, output_tokens=50), NOW_S)
    assert estimator.estimate(size, NOW_S).output_likely is None
    estimator.keep_longest()
    estimator.recall_longest("m", [70] * (RARE_SAMPLES - 1))
    assert estimator.estimate(size, NOW_S).output_likely is None
    estimator.observe(size, Usage(100, output_tokens=50), NOW_S)
    assert estimator.estimate(size, NOW_S).output_likely == 70
    assert estimator.estimate(CallSize("other", 400), NOW_S).output_likely is None


# -- limits that hold it


def every_limit() -> list[Limit]:
    return [
        Rate("rate", "account:a", "output_tokens", 10**9, 60, 10**9),
        Window("bound day", "run:r", "micro_usd", 10**5, Calendar("day")),
        Window("likely day", "key:k", "micro_usd", 10**5, Calendar("day"), holds_likely=True),
        Window("likely life", "key:k", "output_tokens", 10**5, Lifetime(), holds_likely=True),
        Rolling("bound hour", "run:r", "tokens", 10**5, 3_600),
        Rolling("likely hour", "key:k", "tokens", 10**5, 3_600, holds_likely=True),
        Gauge("slots", "account:a", "slots", 100),
    ]


tokens = st.integers(1, 3_000)


@given(expected=tokens, more=tokens, most=tokens, used=st.integers(0, 12_000), known=st.booleans())
def test_only_limits_that_say_so_hold_what_is_likely_and_what_is_used_counts_exactly(expected, more, most, used, known):
    def amounts(output: int) -> Amounts:
        return Amounts(1, 10, output, 10 + output, 2 * output, 1)

    limits = every_limit()
    likely, at_most = amounts(expected + more), amounts(expected + more + most)
    asked = Demand(amounts(expected), at_most, likely=likely if known else None)
    outcome = quota.admit(limits, {}, asked, NOW_S)
    assert isinstance(outcome, Admitted)
    levels = outcome.levels
    for limit in limits:
        held = quota.read(limit, levels, NOW_S).held
        assert held == quota.units_of(limit, asked), limit.name
        if isinstance(limit, Rate):
            assert held == expected
        else:
            holds = likely if known and limit.name.startswith("likely") else at_most
            assert held == holds[limit.place], limit.name
    changed, rest = quota.settle(limits, levels, outcome.reservation, amounts(used), NOW_S)
    assert rest is None
    for limit in limits[1:6]:
        reading = quota.read(limit, levels | changed, NOW_S)
        assert (reading.used, reading.held) == (amounts(used)[limit.place], 0), limit.name
        assert reading.free == max(0, limit.amount - reading.used)


@pytest.mark.parametrize("kind", ["likely day", "likely life", "likely hour"])
def test_what_goes_beyond_a_hold_is_debt_that_the_next_call_meets(kind):
    (limit,) = (each for each in every_limit() if each.name == kind)
    small, huge = (Amounts(1, 10, units, units, units, 1) for units in (1_000, 100_001))
    asked = Demand(small, huge, likely=small)
    first = quota.admit([limit], {}, asked, NOW_S)
    assert isinstance(first, Admitted), "its bound alone would be refused"
    changed, _ = quota.settle([limit], first.levels, first.reservation, huge, NOW_S)
    reading = quota.read(limit, first.levels | changed, NOW_S)
    assert (reading.used, reading.free) == (100_001, 0)
    after = quota.admit([limit], first.levels | changed, asked, NOW_S + 1)
    assert isinstance(after, Refused if kind == "likely life" else Wait)


def test_a_planned_reservation_of_such_a_limit_holds_what_is_likely_too():
    limit = Window("life", "account:a", "micro_usd", 10**5, Lifetime(), holds_likely=True)
    plan = Plan("p", limit.name, "key:k", 5_000, int(NOW_S), int(NOW_S) + 3_600, int(NOW_S))
    part = part_of(plan, limit)
    asked = Demand(Amounts(1, micro_usd=1_000), Amounts(1, micro_usd=6_000), likely=Amounts(1, micro_usd=4_000))
    plans = Plans((part,), frozenset({part.limit.name}))
    outcome = set_aside.admit([limit], {}, asked, NOW_S, plans=plans)
    assert isinstance(outcome, Admitted)
    held = {name: units for name, units, _token in outcome.reservation.holds}
    assert held == {limit.name: 4_000, part.limit.name: 4_000}
    assert part.untaken(outcome.levels, to_ns(NOW_S)) == 1_000
