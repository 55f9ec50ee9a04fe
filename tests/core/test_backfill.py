"""Backfill: a call behind the head goes first only where the head is not delayed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import NOTHING, Amounts, demand
from headgate.core.limits import Gauge, Level, Limit, Rate, Window
from headgate.core.quota import Admitted, Wait
from headgate.core.spans import Calendar

NOW_S = 1_750_000_000.0
LIMITS: tuple[Limit, ...] = (
    Rate("output", "account:a", "output_tokens", 600, 60, 400),
    Rate("input", "account:a", "input_tokens", 6_000, 60, 3_000),
    Rate("requests", "account:a", "requests", 60, 60, 10, charged_at_start=True),
    Window("day", "account:a", "micro_usd", 1_000, Calendar("day")),
    Gauge("slots", "account:a", "slots", 3),
)

amounts = st.builds(
    Amounts,
    requests=st.just(1),
    input_tokens=st.integers(0, 3_000),
    output_tokens=st.integers(0, 400),
    micro_usd=st.integers(0, 600),
    slots=st.integers(0, 1),
)


def admit(levels: dict[str, Level], asked: Amounts, now_s: float = NOW_S):
    return quota.admit(LIMITS, levels, demand(asked), now_s)


@given(
    before=st.lists(st.tuples(amounts, st.booleans()), max_size=6),
    head=amounts,
    later=amounts,
    used=st.sampled_from(["all", "half", "none"]),
)
@settings(max_examples=1_000)
def test_a_head_is_never_delayed_by_what_goes_before_it(before, head, later, used):
    levels: dict[str, Level] = {}
    for each, is_settled in before:
        if isinstance(outcome := admit(levels, each), Admitted):
            levels |= outcome.levels
            if is_settled:
                levels |= quota.settle(LIMITS, levels, outcome.reservation, each, NOW_S)[0]
    waits = admit(levels, head)
    outcome = quota.admit_behind(LIMITS, levels, demand(later), LIMITS, demand(head), NOW_S)
    if not isinstance(waits, Wait):
        assert not isinstance(outcome, Admitted), "a head that may go goes first"
        return
    if not isinstance(outcome, Admitted):
        return
    after = levels | outcome.levels
    actual = {"all": later, "half": Amounts(*(units // 2 for units in later)), "none": NOTHING}[used]
    changed, _ = quota.settle(LIMITS, after, outcome.reservation, actual, NOW_S)
    for then in (after, after | changed):
        again = admit(then, head)
        assert isinstance(again, Wait | Admitted)
        if isinstance(again, Wait):
            assert again.until_s <= waits.until_s
            assert again.earliest_s <= waits.earliest_s


def test_what_asks_nothing_of_the_scarce_thing_goes_first():
    full = admit({}, Amounts(1, output_tokens=400, slots=1))
    embedding = demand(Amounts(1, input_tokens=500, slots=1))
    large = demand(Amounts(1, output_tokens=300, slots=1))
    assert isinstance(quota.admit_behind(LIMITS, full.levels, embedding, LIMITS, large, NOW_S), Admitted)
    small = demand(Amounts(1, output_tokens=1, slots=1))
    assert isinstance(quota.admit_behind(LIMITS, full.levels, small, LIMITS, large, NOW_S), Wait)


def test_what_may_come_back_to_a_head_is_not_spent_on_others():
    """$300 are spent and $500 held of $1,000: a head of $600 fits if the hold comes back, but not beside 150 more."""
    day = LIMITS[3:4]
    levels: dict[str, Level] = {}
    for micro_usd, is_settled in ((300, True), (500, False)):
        outcome = quota.admit(day, levels, demand(Amounts(micro_usd=micro_usd)), NOW_S)
        levels |= outcome.levels
        if is_settled:
            levels |= quota.settle(day, levels, outcome.reservation, Amounts(micro_usd=micro_usd), NOW_S)[0]
    head = demand(Amounts(micro_usd=600))
    for micro_usd, expected in ((150, Wait), (100, Admitted)):
        outcome = quota.admit_behind(day, levels, demand(Amounts(micro_usd=micro_usd)), day, head, NOW_S)
        assert isinstance(outcome, expected)
