"""Limits in words. The rule: the expected limit is written out, so that a changed default is seen here."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.config import limit_rules, limits_in_words
from headgate.adapters.config.limits import LIMIT_WORDS
from headgate.core.errors import ConfigError
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import level_name
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse

SCOPE = "run:*"


def limits(**words: object) -> list[Limit]:
    return [rule.template for rule in limit_rules(SCOPE, [words])]


def problem(**words: object) -> str:
    with pytest.raises(ConfigError) as raised:
        limit_rules(SCOPE, [words])
    return str(raised.value)


@pytest.mark.parametrize(
    ("word", "value", "expected"),
    [
        ("requests_per_second", 12, Rate("", SCOPE, "requests", 12, 1, 10, largest=12, charged_at_start=True)),
        ("requests_per_minute", 60, Rate("", SCOPE, "requests", 60, 60, 50, largest=60, charged_at_start=True)),
        ("requests_per_minute", 1, Rate("", SCOPE, "requests", 1, 60, 1, largest=1, charged_at_start=True)),
        ("tokens_per_minute", 6_000, Rate("", SCOPE, "tokens", 6_000, 60, 5_000, largest=6_000, charged_at_start=True)),
        ("input_tokens_per_minute", 6_000, Rate("", SCOPE, "input_tokens", 6_000, 60, 5_000, largest=6_000)),
        ("output_tokens_per_minute", 6_000, Rate("", SCOPE, "output_tokens", 6_000, 60, 5_000, largest=6_000)),
        ("requests_per_hour", 9, Window("", SCOPE, "requests", 9, Calendar("hour", UTC))),
        ("tokens_per_day", 9, Window("", SCOPE, "tokens", 9, Calendar("day", UTC))),
        ("usd_per_hour", 0.45, Window("", SCOPE, "micro_usd", 450_000, Calendar("hour", UTC))),
        ("usd_per_week", 25, Window("", SCOPE, "micro_usd", 25_000_000, Calendar("week", UTC))),
        ("usd_per_month", 0.000001, Window("", SCOPE, "micro_usd", 1, Calendar("month", UTC))),
        ("usd_per_lifetime", 5, Window("", SCOPE, "micro_usd", 5_000_000, Lifetime())),
        ("output_tokens_per_5h", 9, Window("", SCOPE, "output_tokens", 9, OpenedByUse(18_000))),
        ("usd_per_7d", 9, Window("", SCOPE, "micro_usd", 9_000_000, OpenedByUse(604_800))),
        ("requests_per_rolling_hour", 9, Rolling("", SCOPE, "requests", 9, 3_600)),
        ("usd_per_rolling_day", 9, Rolling("", SCOPE, "micro_usd", 9_000_000, 86_400)),
        ("tokens_per_rolling_week", 9, Rolling("", SCOPE, "tokens", 9, 604_800)),
        ("requests_per_fixed_minute", 9, Window("", SCOPE, "requests", 9, Fixed(60))),
        ("tokens_per_fixed_hour", 9, Window("", SCOPE, "tokens", 9, Fixed(3_600))),
        ("usd_per_fixed_day", 9, Window("", SCOPE, "micro_usd", 9_000_000, Fixed(86_400))),
        ("usd_per_fixed_week", 9, Window("", SCOPE, "micro_usd", 9_000_000, Fixed(604_800, 4 * 86_400))),
        ("slots", 8, Gauge("", SCOPE, "slots", 8)),
    ],
)
def test_a_limit_word_is_one_limit_of_the_kind_that_its_span_says(word: str, value: object, expected: Limit) -> None:
    assert limits(**{word: value}) == [expected]


def test_a_pool_of_models_and_a_time_zone_reach_every_limit_of_the_entry() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert limits(models="claude-*", usd_per_day=1, slots=2, timezone="Europe/Berlin") == [
        Window("", SCOPE, "micro_usd", 1_000_000, Calendar("day", berlin), "claude-*"),
        Gauge("", SCOPE, "slots", 2, "claude-*"),
    ]
    assert limits(models="*", slots=2)[0].models is None


@pytest.mark.parametrize(
    "anchor",
    [
        datetime(2026, 1, 5, 6, tzinfo=UTC),
        datetime(2026, 1, 12, 8, tzinfo=timezone(timedelta(hours=2))),  # the same Mondays, said in Kyiv
        "1969-12-29T06:00:00Z",
    ],
)
def test_fixed_windows_are_counted_from_an_anchor_however_it_is_said(anchor: object) -> None:
    week, day = limits(usd_per_fixed_week=1, usd_per_fixed_day=1, anchor=anchor)
    assert isinstance(week, Window)
    assert isinstance(day, Window)
    assert (day.span, week.span) == (Fixed(604_800, 4 * 86_400 + 21_600), Fixed(86_400, 21_600))


def test_windows_hold_what_is_likely_where_their_owner_says_so() -> None:
    def said(**words: object) -> dict[tuple[str, str], bool]:
        found = limits(usd_per_day=1, usd_per_rolling_hour=1, usd_per_lifetime=5, usd_per_5h=2, **words)
        return {(limit.dimension, limit.name or level_name(SCOPE, limit)): limit.holds_likely for limit in found}

    bound, likely = said(), said(hold="likely")
    assert list(bound) == list(likely), "a level goes on whatever its calls hold"
    assert set(bound.values()) == set(said(hold="bound").values()) == {False}
    assert set(likely.values()) == {True}
    mixed = limits(
        requests_per_day=9, input_tokens_per_day=9, tokens_per_day=9, slots=1, tokens_per_minute=9, hold="likely"
    )
    assert {limit.dimension: limit.holds_likely for limit in mixed if isinstance(limit, Window)} == {
        "requests": False,
        "input_tokens": False,
        "tokens": True,
    }


@pytest.mark.parametrize(("burst_s", "burst"), [(60, 600), (1, 10), (2.55, 25), (0.001, 1)])
def test_the_burst_is_so_many_seconds_of_the_rate_and_at_least_one_unit(burst_s: float, burst: int) -> None:
    (rate,) = limits(requests_per_minute=600, burst_s=burst_s)
    assert isinstance(rate, Rate)
    assert (rate.amount, rate.period_s, rate.burst) == (600, 60, burst)


@pytest.mark.parametrize(
    ("per_minute", "quantum_s", "amount", "period_s", "burst"),
    [(6_000, 1, 100, 1, 83), (6_000, 10, 1_000, 10, 833), (60, 1, 1, 1, 1), (100, 1, 200, 120, 1), (7, 10, 14, 120, 1)],
)
def test_a_provider_that_quantises_gets_a_second_row_of_exactly_the_same_rate(
    per_minute: int, quantum_s: int, amount: int, period_s: int, burst: int
) -> None:
    whole_rate, row = limits(requests_per_minute=per_minute, quantum_s=quantum_s)
    assert isinstance(whole_rate, Rate)
    assert isinstance(row, Rate)
    assert (row.amount, row.period_s, row.burst) == (amount, period_s, burst)
    assert row.amount * whole_rate.period_s == whole_rate.amount * row.period_s


def test_only_requests_are_quantised() -> None:
    assert [limit.dimension for limit in limits(requests_per_minute=60, tokens_per_minute=6, quantum_s=1)] == [
        "requests",
        "requests",
        "tokens",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"requests_per_minute": 0}, "requests_per_minute = 0: expected at least 1"),
        ({"requests_per_minute": -5}, "requests_per_minute = -5: expected at least 1"),
        ({"requests_per_minute": True}, "requests_per_minute = true: expected a whole number such as 50"),
        ({"requests_per_minute": 50.0}, "requests_per_minute = 50.0: expected a whole number such as 50"),
        ({"requests_per_minute": "50"}, 'requests_per_minute = "50": expected a whole number such as 50'),
        ({"usd_per_month": 0.0000001}, "usd_per_month = 1e-07: expected millionths of a dollar at the smallest"),
        ({"usd_per_month": Decimal("1e-2000000")}, "expected millionths of a dollar at the smallest"),
        ({"requests_per_minute": 10**15 + 1}, "requests_per_minute = 1000000000000001: expected at most 1,000,000,"),
        ({"requests_per_minute": 10**5000}, "requests_per_minute = (a huge number): expected at most 1,000,000,000"),
        ({"usd_per_day": 0}, "usd_per_day = 0: expected more than 0"),
        ({"usd_per_day": "ten"}, 'usd_per_day = "ten": expected a number of dollars such as 25 or 0.45'),
        ({"usd_per_day": float("nan")}, "usd_per_day = nan: expected a number of dollars such as 25 or 0.45"),
        ({"usd_per_day": 1e10}, "expected at most 1,000,000,000"),
        ({"usd_per_day": 10**5000}, "expected at most 1,000,000,000"),
        ({"usd_per_day": [1]}, "usd_per_day = [...]: expected a number of dollars such as 25 or 0.45"),
        ({"usd_per_minute": 1}, "usd_per_minute: money has no rate; expected usd_per_hour or a longer span"),
        ({"requests": 1}, "requests: over which span? Expected a word such as requests_per_minute"),
        ({"request_per_minute": 1}, "request_per_minute: unknown; did you mean requests_per_minute?"),
        ({"zzz": 1}, "zzz: unknown; expected a limit such as requests_per_minute, usd_per_day or slots"),
        ({"slots": 1, "burst_s": 5}, "burst_s: changes nothing here; expected a rate such as requests_per_minute"),
        ({"slots": 1, "timezone": "UTC"}, "timezone: changes nothing here; expected a calendar span"),
        ({"usd_per_day": 1, "anchor": "2026-01-05T06:00:00Z"}, "anchor: changes nothing here; expected a fixed span"),
        ({"usd_per_fixed_day": 1, "timezone": "UTC"}, "timezone: changes nothing here; expected a calendar span"),
        ({"usd_per_fixed_day": 1, "anchor": "noon"}, 'anchor = "noon": expected an instant in whole seconds with its'),
        ({"usd_per_fixed_day": 1, "anchor": datetime(2026, 1, 5)}, "anchor = 2026-01-05 00:00:00: expected an instant"),  # noqa: DTZ001 - without an offset it has to be refused
        ({"usd_per_fixed_day": 1, "anchor": "2026-01-05T06:00:00.5Z"}, "expected an instant in whole seconds"),
        ({"usd_per_fixed_day": 1, "anchor": 5}, "anchor = 5: expected an instant"),
        ({"usd_per_fixed_month": 1}, "usd_per_fixed_month: months differ in length; expected usd_per_month"),
        ({"tokens_per_rolling_month": 1}, "months differ in length; expected tokens_per_month"),
        ({"usd_per_calendar_day": 1}, "spans without a word before them are the calendar's; expected usd_per_day"),
        ({"tokens_per_minute": 1, "quantum_s": 1}, "quantum_s: changes nothing here; expected requests_per_minute"),
        ({"requests_per_minute": 1, "quantum_s": 5}, "quantum_s = 5: expected 1 or 10 (seconds)"),
        ({"requests_per_minute": 1, "quantum_s": []}, "quantum_s = [...]: expected 1 or 10 (seconds)"),
        ({"requests_per_minute": 1, "burst_s": 0}, "burst_s = 0: expected at least 0.001"),
        ({"usd_per_day": 1, "timezone": "Mars"}, 'timezone = "Mars": expected a time zone such as "Europe/Berlin"'),
        ({"usd_per_day": 1, "timezone": "../../etc/passwd"}, "expected a time zone"),
        ({"usd_per_day": 1, "timezone": "Europe"}, "expected a time zone"),
        ({"usd_per_day": 1, "timezone": "x" * 300}, "expected a time zone"),
        ({"usd_per_day": 1, "timezone": ""}, "expected a time zone"),
        ({"usd_per_day": 1, "timezone": "\0"}, "expected a time zone"),
        ({"usd_per_day": 1, "hold": "p99"}, 'hold = "p99": expected "bound" or "likely"'),
        ({"usd_per_day": 1, "hold": True}, 'hold = true: expected "bound" or "likely"'),
        ({"requests_per_day": 1, "hold": "likely"}, "hold: changes nothing here; expected a window of dollars, tokens"),
        ({"tokens_per_minute": 1, "hold": "likely"}, "hold: changes nothing here; expected a window of dollars"),
        ({"input_tokens_per_day": 1, "hold": "bound"}, "hold: changes nothing here; expected a window of dollars"),
        ({"slots": 1, "models": "a b"}, 'models = "a b": expected a model or a pattern such as "claude-sonnet-*"'),
        ({"slots": 1, "models": "[ab]"}, "expected a model or a pattern"),
        ({"slots": 1, "models": ["a"]}, "models = [...]: expected a model or a pattern"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_value_and_what_was_expected(
    words: dict[str, object], expected: str
) -> None:
    told = problem(**words)
    assert expected in told
    assert told.startswith("run:* ")
    assert "\n" not in told


def test_all_problems_are_told_up_to_a_bound() -> None:
    told = problem(**{f"word_{number}": 1 for number in range(30)}).split("\n")
    assert len(told) == 21
    assert told[-1] == "and 10 more from here on"


def test_the_same_limit_twice_is_a_problem_even_if_one_of_them_comes_from_a_quantum() -> None:
    with pytest.raises(ConfigError, match=r"usd_per_day: run:\* already has this limit from usd_per_day"):
        limit_rules(SCOPE, [{"usd_per_day": 1}, {"usd_per_day": 2}])
    assert "already has this limit" in problem(requests_per_second=10, requests_per_minute=600, quantum_s=1)
    assert len(limit_rules(SCOPE, [{"usd_per_day": 1}, {"usd_per_day": 2, "models": "gpt-*"}])) == 2


def test_limits_read_as_people_say_them() -> None:
    entries: list[dict[str, object]] = [
        {"requests_per_minute": 4_000, "models": "claude-sonnet-*"},
        {"requests_per_second": 100, "slots": 8, "usd_per_day": 0.45, "timezone": "Europe/Berlin"},
        {"usd_per_week": 1234.5, "usd_per_5h": 1.000001, "usd_per_lifetime": 5, "tokens_per_rolling_day": 1_000},
        {"input_tokens_per_7d": 10, "requests_per_minute": 100, "quantum_s": 1},
        {"tokens_per_fixed_hour": 1, "tokens_per_fixed_week": 7, "anchor": "2026-01-05T06:30:00Z"},
    ]
    rows = limits_in_words(limit_rules("run:*", entries))
    assert rows[0] == ("run:* (each)", "claude-sonnet-*", "4,000 requests per minute, at most 3,333 at once")
    assert [words for _scope, _models, words in rows[1:]] == [
        "100 requests per second, at most 83 at once",
        "$0.45 per day (Europe/Berlin)",
        "8 calls at once",
        "1,000 tokens in any day",
        "$1,234.50 per week",
        "$1.000001 per 5 hours from the first call",
        "$5.00 in all",
        "100 requests per minute, at most 83 at once",
        "200 requests per 2 minutes, at most 1 at once",
        "10 input tokens per 7 days from the first call",
        "1 token per fixed hour from 00:30:00 UTC",
        "7 tokens per fixed week from Monday 06:30:00 UTC",
    ]
    assert limits_in_words(limit_rules("key:ci", [{"slots": 1}])) == [("key:ci", "all models", "1 call at once")]


@given(st.sampled_from(sorted(LIMIT_WORDS)), st.integers(1, 10**9))
def test_every_limit_word_gives_a_limit_that_can_be_said(word: str, amount: int) -> None:
    rules = limit_rules("account:main", [{word: amount}])
    assert all(words for _scope, _models, words in limits_in_words(rules))
    (limit,) = (rule.template for rule in rules)
    assert limit.amount == (amount * 10**6 if limit.dimension == "micro_usd" else amount)
    assert not isinstance(limit, Rate) or 1 <= limit.burst <= limit.amount
