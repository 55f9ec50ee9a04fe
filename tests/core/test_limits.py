"""Each kind of limit by example: where windows begin and end, how rates refill, what a large call may do."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from headgate.core import quota
from headgate.core.amounts import Amounts, demand, usd
from headgate.core.instants import to_ns
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.quota import Admitted, Refused, Wait
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse

NOON_S = datetime(2026, 3, 28, 12, 0, tzinfo=UTC).timestamp()


def ask(limit: Limit, levels: dict, units: int, now_s: float):
    amounts = Amounts(**{limit.dimension: units})
    outcome = quota.admit([limit], levels, demand(amounts), now_s)
    if isinstance(outcome, Admitted):
        changed, _ = quota.settle([limit], {**levels, **outcome.levels}, outcome.reservation, amounts, now_s)
        levels |= changed
    return outcome


def rate(**facts) -> Rate:
    return Rate(
        **{"name": "r", "scope": "account:a", "dimension": "tokens", "amount": 60, "period_s": 60, "burst": 30} | facts
    )


def test_a_rate_refills_continuously_and_says_exactly_when():
    levels: dict = {}
    assert isinstance(ask(rate(), levels, 30, NOON_S), Admitted)
    outcome = ask(rate(), levels, 12, NOON_S + 2)
    assert isinstance(outcome, Wait)
    assert outcome.until_s == pytest.approx(NOON_S + 12, abs=1e-6)
    assert isinstance(ask(rate(), levels, 12, outcome.until_s), Admitted)


def test_a_call_larger_than_the_burst_goes_alone_into_debt_or_never():
    levels: dict = {}
    assert isinstance(ask(rate(charged_at_start=True), levels, 31, NOON_S), Refused)
    large = rate(largest=60, charged_at_start=True)
    assert isinstance(ask(large, levels, 61, NOON_S), Refused)
    assert isinstance(ask(large, levels, 50, NOON_S), Admitted)
    outcome = ask(large, levels, 50, NOON_S)
    assert isinstance(outcome, Wait)
    assert outcome.until_s == pytest.approx(NOON_S + 50, abs=1e-6), "it waits until its debt has drained"


def test_a_guess_above_what_the_limit_can_give_waits_for_all_of_it_and_is_not_refused():
    """Claude Code states 64,000 output tokens, uses a few hundred, and met a limit of 50,000."""
    levels: dict = {}
    guess = rate(charged_at_start=False, dimension="output_tokens")
    certain = rate(charged_at_start=True, dimension="requests")
    assert isinstance(ask(certain, {}, 31, NOON_S), Refused)
    first = quota.admit([guess], levels, demand(Amounts(output_tokens=64_000)), NOON_S)
    assert isinstance(first, Admitted)
    levels |= first.levels
    assert quota.read(guess, levels, NOON_S)[:3] == (0, 30, 0)
    assert isinstance(quota.admit([guess], levels, demand(Amounts(output_tokens=1)), NOON_S), Wait)
    changed, _ = quota.settle([guess], levels, first.reservation, Amounts(output_tokens=12), NOON_S)
    levels |= changed
    assert quota.read(guess, levels, NOON_S)[:3] == (12, 0, 18)


def test_another_amount_goes_on_from_the_same_level():
    levels: dict = {}
    ask(rate(), levels, 30, NOON_S)
    faster = ask(rate(amount=600), levels, 12, NOON_S)
    assert isinstance(faster, Wait)
    assert faster.until_s == pytest.approx(NOON_S + 1.2, abs=1e-6)


@pytest.mark.parametrize(
    ("span", "now", "end"),
    [
        (Calendar("hour"), "2026-03-28T12:34:56+00:00", "2026-03-28T13:00:00+00:00"),
        (Calendar("day"), "2026-03-28T12:34:56+00:00", "2026-03-29T00:00:00+00:00"),
        (Calendar("week"), "2026-03-28T12:34:56+00:00", "2026-03-30T00:00:00+00:00"),
        (Calendar("month"), "2026-12-31T23:59:59+00:00", "2027-01-01T00:00:00+00:00"),
        # The day on which Berlin's clocks go forward has 23 hours, the one on which they go back 25.
        (Calendar("day", ZoneInfo("Europe/Berlin")), "2026-03-29T00:30:00+01:00", "2026-03-30T00:00:00+02:00"),
        (Calendar("day", ZoneInfo("Europe/Berlin")), "2026-10-25T00:30:00+02:00", "2026-10-26T00:00:00+01:00"),
        (Calendar("hour", ZoneInfo("Europe/Berlin")), "2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00"),
        (Calendar("hour", ZoneInfo("Asia/Kathmandu")), "2026-03-28T12:34:56+05:45", "2026-03-28T13:00:00+05:45"),
        (Fixed(90, anchor_s=30), "1970-01-01T00:01:59+00:00", "1970-01-01T00:02:00+00:00"),
        (OpenedByUse(18_000), "2026-03-28T12:34:56+00:00", "2026-03-28T17:00:00+00:00"),
        (OpenedByUse(604_800), "2026-03-28T12:34:56+00:00", "2026-04-04T12:00:00+00:00"),
    ],
)
def test_windows_end_where_people_and_providers_say(span, now, end):
    now_ns = to_ns(datetime.fromisoformat(now).timestamp())
    assert span.end_ns(now_ns) == to_ns(datetime.fromisoformat(end).timestamp())


def test_a_plan_window_is_opened_by_first_use_and_moved_by_the_providers_header():
    limit = Window("w", "account:a", "tokens", 100, OpenedByUse(18_000))
    levels: dict = {}
    assert quota.read(limit, levels, NOON_S).resets_ns is None
    ask(limit, levels, 90, NOON_S + 600)
    assert quota.read(limit, levels, NOON_S + 900).resets_ns == to_ns(NOON_S + 18_000)
    levels["w"] = limit.moved(levels["w"], to_ns(NOON_S + 900), to_ns(NOON_S + 3_600))
    outcome = ask(limit, levels, 20, NOON_S + 1_000)
    assert isinstance(outcome, Wait)
    assert outcome.until_s == pytest.approx(NOON_S + 3_600)
    assert isinstance(ask(limit, levels, 20, NOON_S + 3_600), Admitted)


def test_what_is_settled_after_its_window_ended_belongs_to_it():
    limit = Window("w", "run:r", "micro_usd", usd(1), Fixed(60))
    levels: dict = {}
    asked = demand(Amounts(micro_usd=usd("0.6")))
    before = quota.admit([limit], levels, asked, NOON_S + 59)
    assert isinstance(before, Admitted)
    levels |= before.levels
    after = quota.admit([limit], levels, asked, NOON_S + 61)
    assert isinstance(after, Admitted)
    levels |= after.levels
    changed, _ = quota.settle([limit], levels, before.reservation, Amounts(micro_usd=usd("0.6")), NOON_S + 62)
    levels |= changed
    assert quota.read(limit, levels, NOON_S + 62)[:3] == (0, usd("0.6"), usd("0.4"))


def test_money_of_a_lost_call_stays_pending_until_it_is_known():
    limit = Window("w", "run:r", "micro_usd", usd(1), Lifetime())
    levels: dict = {}
    lost = quota.admit([limit], levels, demand(Amounts(micro_usd=usd("0.6"))), NOON_S)
    assert isinstance(lost, Admitted)
    levels |= lost.levels
    changed, reservation = quota.expire([limit], levels, lost.reservation, NOON_S + 700)
    levels |= changed
    assert quota.read(limit, levels, NOON_S + 700)[:3] == (usd("0.6"), 0, usd("0.4"))
    assert isinstance(ask(limit, levels, usd("0.5"), NOON_S + 701), Refused)
    changed, _ = quota.settle([limit], levels, reservation, Amounts(micro_usd=usd("0.1")), NOON_S + 800)
    levels |= changed
    assert quota.read(limit, levels, NOON_S + 800)[:3] == (usd("0.1"), 0, usd("0.9"))


def test_a_call_is_refused_only_when_what_is_held_could_not_make_room_either():
    limit = Window("w", "run:r", "micro_usd", 100, Lifetime())
    levels: dict = {}
    first = quota.admit([limit], levels, demand(Amounts(micro_usd=80)), NOON_S)
    assert isinstance(first, Admitted)
    levels |= first.levels
    waits = quota.admit([limit], levels, demand(Amounts(micro_usd=30)), NOON_S)
    assert isinstance(waits, Wait)
    assert waits.until_s == float("inf")
    changed, _ = quota.settle([limit], levels, first.reservation, Amounts(micro_usd=75), NOON_S)
    levels |= changed
    assert isinstance(ask(limit, levels, 30, NOON_S), Refused)
    assert isinstance(ask(limit, levels, 25, NOON_S), Admitted)


def test_a_rolling_window_has_no_edge_to_double_up_at():
    limit = Rolling("w", "key:k", "requests", 10, 3600)
    levels: dict = {}
    for second in range(10):
        assert isinstance(ask(limit, levels, 1, NOON_S + 3_590 + second), Admitted)
    outcome = ask(limit, levels, 1, NOON_S + 3_601)
    assert isinstance(outcome, Wait)
    assert NOON_S + 3_590 + 3600 <= outcome.until_s <= NOON_S + 3_590 + 3600 + 60


def test_a_slot_of_a_lost_call_comes_back_with_its_lease():
    limit = Gauge("g", "account:a", "slots", 1)
    levels: dict = {}
    first = quota.admit([limit], levels, demand(Amounts(slots=1)), NOON_S, lease_s=30)
    assert isinstance(first, Admitted)
    levels |= first.levels
    outcome = quota.admit([limit], levels, demand(Amounts(slots=1)), NOON_S + 1)
    assert isinstance(outcome, Wait)
    assert (outcome.until_s, outcome.earliest_s) == (NOON_S + 30, NOON_S + 1)
    second = quota.admit([limit], levels, demand(Amounts(slots=1)), NOON_S + 30)
    assert isinstance(second, Admitted)
    levels |= second.levels
    changed, _ = quota.settle([limit], levels, first.reservation, Amounts(), NOON_S + 31)
    levels |= changed
    assert quota.read(limit, levels, NOON_S + 31).held == 1, "the late one gives back nothing of the second's"


def test_dollars_are_exact():
    assert usd(0.45) == 450_000
    assert usd("0.0000001") == 1, "rounded up: never less than it costs"
    for wrong in ("-1", "nan", "ten"):
        with pytest.raises(ValueError, match="dollars"):
            usd(wrong)
