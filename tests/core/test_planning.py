"""Planned reservations are accepted or denied: each denial has the value and what would be possible."""

from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.planning import MOST_PLANS, Denied, Plan, Planned, Wanted, amount_in_words, part_of, plan
from headgate.core.scopes import level_name
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse, Span

NOW_S = 1_750_000_020  # 2025-06-15 15:07:00 UTC
HOUR_S = 3_600
DAY_S = 86_400

RATE = Rate("rate", "account:main", "output_tokens", 50_000, 60, 41_666, largest=50_000)
DAY = Window("day", "account:main", "micro_usd", 20_000_000, Calendar("day"))
LIFE = Window("life", "team:x", "micro_usd", 20_000_000, Lifetime())


def wish(
    units: int = 1_000, in_s: int = 0, for_s: int = HOUR_S, scope: str = "run:nightly", id_: str = "new"
) -> Wanted:
    return Wanted(id_, scope, units, NOW_S + in_s, NOW_S + in_s + for_s)


def planned(outcome: Planned | Denied) -> Plan:
    assert isinstance(outcome, Planned), outcome
    return outcome.plan


def reason(*existing: Plan, wanted: Wanted, limit: Limit | None = RATE, levels=None) -> str:
    outcome = plan(existing, wanted, limit, NOW_S, levels or {})
    assert isinstance(outcome, Denied), outcome
    return outcome.reason


@pytest.mark.parametrize(
    ("wanted", "limit", "words"),
    [
        (wish(0), RATE, "0 output tokens: expected at least 1"),
        (wish(-5), DAY, "$-0.000005: expected at least 1"),
        (
            wish(in_s=-60),
            RATE,
            "it would begin at 2025-06-15 15:06:00 UTC, which is past; expected 2025-06-15 15:07:00",
        ),
        (wish(in_s=-60, for_s=30), RATE, "it would end at 2025-06-15 15:06:30 UTC, which is past; expected later than"),
        (
            wish(in_s=60, for_s=-30),
            RATE,
            "it would end at 2025-06-15 15:07:30 UTC, and begin at 2025-06-15 15:08:00 UTC; expected an end after that",
        ),
        (wish(in_s=30 * DAY_S, for_s=2 * DAY_S), RATE, "expected at most 31 days ahead (2025-07-16 15:07:00 UTC)"),
        (wish(), None, "there is no such limit"),
        (
            wish(9),
            Gauge("slots", "account:main", "slots", 8),
            "9 slots is more than there is at once of slots: 8 slots; possible: at most 8 slots",
        ),
        (wish(scope="account:main"), RATE, "'account:main' cannot hold a reservation; expected one key, team, run"),
        (wish(scope="run:*"), RATE, "'run:*' cannot hold a reservation"),
        (wish(scope="house:x"), RATE, "'house:x' cannot hold a reservation"),
        (wish(scope="run"), RATE, "'run' cannot hold a reservation"),
        (wish(scope="team:x"), LIFE, "team:x's own, nobody else draws from it"),
        (wish(2_700_001), RATE, "possible: at most 2,700,000 output tokens"),
        (wish(25_000_000), DAY, "$25.00 is more than there is in one window of day: $20.00; possible: at most $20.00"),
    ],
)
def test_a_denial_says_the_value_and_what_is_possible(wanted: Wanted, limit: Limit | None, words: str):
    assert words in reason(wanted=wanted, limit=limit)


@pytest.mark.parametrize(
    ("span", "said"),
    [(OpenedByUse(5 * HOUR_S), "5 h (plan)"), (Calendar("week", ZoneInfo("Europe/Berlin")), "week (Europe/Berlin)")],
)
def test_a_denial_names_the_limit_as_tables_do(span: Span, said: str):
    """It named `account:main * output_tokens plan-18000s`, which `headgate limits` never says."""
    limit = Window("", "account:main", "output_tokens", 900, span)
    limit = replace(limit, name=level_name("account:main", limit))
    assert f"in one window of account:main output tokens/{said}: 900" in reason(wanted=wish(901), limit=limit)


def test_what_a_denial_calls_possible_is_accepted():
    assert "at most 2,700,000" in reason(wanted=wish(2_700_001))
    assert planned(plan([], wish(2_700_000), RATE, NOW_S, {})).units == 2_700_000


def test_two_rates_at_one_instant_share_what_can_be_reserved():
    first = planned(plan([], wish(2_000_000), RATE, NOW_S, {}))
    assert "others have reserved of it at" in reason(first, wanted=wish(700_001, in_s=1_800, for_s=600, id_="b"))
    later = planned(plan([first], wish(400_000, in_s=2 * HOUR_S, for_s=600, id_="b"), RATE, NOW_S, {}))
    assert later.from_s == NOW_S + 2 * HOUR_S


def test_reservations_of_one_window_add_up_even_when_one_follows_the_other():
    first = planned(plan([], wish(12_000_000), DAY, NOW_S, {}))
    words = reason(first, wanted=wish(9_000_000, in_s=2 * HOUR_S, id_="b"), limit=DAY)
    assert "of which others have reserved $12.00; possible: at most $8.00" in words
    tomorrow = wish(20_000_000, in_s=DAY_S, id_="b")
    assert planned(plan([first], tomorrow, DAY, NOW_S, {})).units == 20_000_000


def test_two_reservations_of_a_window_to_come_cannot_be_more_than_it_has():
    first = planned(plan([], wish(12_000_000, in_s=DAY_S), DAY, NOW_S, {}))
    assert "at most $8.00" in reason(first, wanted=wish(9_000_000, in_s=DAY_S + HOUR_S, id_="b"), limit=DAY)


def test_what_is_used_of_the_open_window_cannot_be_reserved():
    levels = {"day": (NOW_S, (NOW_S + DAY_S) * 10**9, 15_000_000, 1_000_000, 0)}
    words = reason(wanted=wish(5_000_000), limit=DAY, levels=levels)
    assert "of $20.00, $15.00 are used, $1.00 held and $0.00 reserved; possible: at most $4.00, or a later" in words


@pytest.mark.parametrize(
    "limit",
    [
        Window("plan", "account:main", "tokens", 900, OpenedByUse(5 * HOUR_S)),
        Rolling("rolling", "account:main", "tokens", 900, 5 * HOUR_S),
        Window("life", "account:main", "tokens", 900, Lifetime()),
    ],
)
def test_where_a_window_lies_is_not_known_all_within_its_length_add_up(limit: Limit):
    first = planned(plan([], wish(500), limit, NOW_S, {}))
    assert "at most 400 tokens" in reason(first, wanted=wish(500, in_s=5 * HOUR_S, id_="b"), limit=limit)
    assert planned(plan([first], wish(400, in_s=5 * HOUR_S, id_="b"), limit, NOW_S, {}))


def test_fixed_windows_do_not_share():
    fixed = Window("fixed", "account:main", "tokens", 900, Fixed(HOUR_S))
    first = planned(plan([], wish(900, for_s=60), fixed, NOW_S, {}))
    assert planned(plan([first], wish(900, in_s=HOUR_S, for_s=60, id_="b"), fixed, NOW_S, {}))


def test_an_id_is_used_once_and_reservations_are_bounded():
    first = planned(plan([], wish(), RATE, NOW_S, {}))
    assert "the id 'new' is taken" in reason(first, wanted=wish())
    many = [first._replace(id=str(number)) for number in range(MOST_PLANS)]
    assert "100 reservations stand, the most" in reason(*many, wanted=wish())


def test_those_that_are_over_do_not_count():
    over = planned(plan([], wish(2_700_000), RATE, NOW_S, {}))
    assert isinstance(plan([over], wish(2_700_000, in_s=HOUR_S), RATE, NOW_S + HOUR_S, {}), Planned)


def test_a_bucket_too_small_to_divide_is_denied():
    single = Rate("r", "account:main", "requests", 1, 60, 1, charged_at_start=True)
    assert "a bucket of 1 cannot be divided further" in reason(wanted=wish(10), limit=single)


def test_a_part_is_as_deep_as_its_share_and_full_when_it_begins():
    outcome = plan([], wish(1_500_000, in_s=600), RATE, NOW_S, {})  # 25,000 a minute: half
    assert isinstance(outcome, Planned)
    assert outcome.at_once == 41_666 // 2
    part = part_of(outcome.plan, RATE)
    begins_ns = part.begins_ns
    assert part.from_ns - begins_ns == pytest.approx(50e9, rel=0.001)  # as long as the bucket takes to drain
    assert part.limit.read(part.level({}, begins_ns), begins_ns).free == 0
    assert part.limit.read(part.level({}, begins_ns), part.from_ns).free == outcome.at_once


@pytest.mark.parametrize(
    ("dimension", "amount", "words"),
    [
        ("micro_usd", 12_500_000, "$12.50"),
        ("micro_usd", 1, "$0.000001"),
        ("output_tokens", 3_000, "3,000 output tokens"),
    ],
)
def test_amounts_in_words(dimension, amount: int, words: str):
    assert amount_in_words(dimension, amount) == words


def test_slots_reserved_at_the_same_time_add_up_and_those_that_follow_do_not():
    slots = Gauge("slots", "account:main", "slots", 8)
    first = planned(plan([], wish(5, in_s=600, for_s=600), slots, NOW_S, {}))
    words = reason(first, wanted=wish(4, in_s=1_000, for_s=900, id_="b"), limit=slots)
    assert "8 slots, of which others have reserved 5 slots; possible: at most 3 slots" in words
    for in_s in (0, 1_200):
        assert planned(plan([first], wish(8, in_s=in_s, for_s=600, id_="b"), slots, NOW_S, {})).units == 8


@pytest.mark.parametrize(
    ("own", "units", "possible"),
    [
        (Window("own", "run:nightly", "micro_usd", 5_000_000, Calendar("day")), 5_000_001, "at most $5.00"),
        (Window("own", "run:nightly", "micro_usd", 1_000_000, Calendar("hour")), 2_000_001, "at most $2.00"),
        (Window("own", "run:nightly", "micro_usd", 5_000_000, Lifetime()), 5_000_001, "at most $5.00"),
        (Rolling("own", "run:nightly", "micro_usd", 1_000_000, 3_600), 3_000_001, "at most $3.00"),
    ],
)
def test_what_the_holders_own_limits_keep_it_from_using_is_not_reserved(own: Limit, units: int, possible: str):
    outcome = plan([], wish(units, in_s=20), DAY, NOW_S, {}, [own])
    assert isinstance(outcome, Denied)
    assert "run:nightly may use in that time under its own own; possible:" in outcome.reason
    assert possible in outcome.reason
    assert isinstance(plan([], wish(units - 1, in_s=20), DAY, NOW_S, {}, [own]), Planned)
    other = Window("own", "run:nightly", "tokens", 1, Lifetime())
    assert isinstance(plan([], wish(units, in_s=20), DAY, NOW_S, {}, [other]), Planned)


def test_a_rates_reservation_is_full_when_it_begins_where_the_bucket_has_room_and_else_fills():
    """An unused 6,000 an hour had `used 51, free 32` of its 83: that it was not full yet was told as use."""
    requests = Rate("rate", "account:main", "requests", 600, 60, 500, charged_at_start=True)
    at_once = plan([], wish(6_000), requests, NOW_S, {})
    assert isinstance(at_once, Planned)
    assert (at_once.at_once, at_once.certain_s) == (83, NOW_S)
    part = part_of(at_once.plan, requests)
    assert (part.filling(NOW_S * 10**9), part.untaken({}, NOW_S * 10**9)) == (0, 83)
    busy = {"rate": (NOW_S * 10**9, 450 * requests.period_ns, 0, 0, NOW_S * 10**9)}
    later = plan([], wish(6_000), requests, NOW_S, busy)
    assert isinstance(later, Planned)
    assert later.certain_s == pytest.approx(NOW_S + 49.8)
    part = part_of(later.plan, requests)
    assert [part.filling((NOW_S + after_s) * 10**9) for after_s in (0, 30, 50)] == [83, 33, 0]
