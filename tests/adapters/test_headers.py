"""What headers tell of limits. The rule: what is told is read in full, nonsense is left out without an exception."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.providers import headers_anthropic, headers_openai
from headgate.core.notices import NO_NOTICES, Notices, OverageNotice, PlanNotice, RateNotice
from headgate.ports import Headers

NOW_S = 1_800_000_600.0
HOURS_5, DAYS_7 = 18_000, 604_800


def named(prefix: str, told: dict[str, object]) -> Headers:
    return [(f"{prefix}{name}".encode(), str(value).encode()) for name, value in told.items()]


def anthropic(prefix: str = "", /, **told: object) -> Notices:
    return headers_anthropic.read_notices(
        named(f"anthropic-{prefix}", {name.replace("__", "-"): value for name, value in told.items()}), NOW_S
    )


def unified(**told: object) -> Notices:
    return anthropic("ratelimit-unified-", **told)


def openai(prefix: str = "x-ratelimit-", /, **told: object) -> Notices:
    headers = named(prefix, {name.replace("_", "-"): value for name, value in told.items()})
    return headers_openai.read_notices(headers, NOW_S)


def plan(**told: object) -> PlanNotice:
    return unified(**{f"5h__{name}": value for name, value in told.items()}).plans[0]


def test_the_rates_of_an_anthropic_account():
    headers = [
        (b"Anthropic-RateLimit-Requests-Limit", b"50"),
        (b"anthropic-ratelimit-requests-remaining", b"49"),
        (b"anthropic-ratelimit-requests-reset", b"2027-01-15T08:10:01.5Z"),
        (b"anthropic-ratelimit-input-tokens-limit", b"30000"),
        (b"anthropic-ratelimit-input-tokens-remaining", b"29000"),
        (b"anthropic-ratelimit-input-tokens-reset", b"2027-01-15T09:10:02+01:00"),
        (b"anthropic-ratelimit-output-tokens-remaining", b"0"),
        (b"anthropic-ratelimit-tokens-limit", b"38000"),
        (b"anthropic-priority-input-tokens-limit", b"9000"),
        (b"anthropic-fast-output-tokens-limit", b"0"),
    ]
    assert headers_anthropic.read_notices(headers, NOW_S) == Notices(
        (
            RateNotice("requests", 50, 49, NOW_S + 1.5),
            RateNotice("input_tokens", 30_000, 29_000, NOW_S + 2, rounded_to=1000),
            RateNotice("output_tokens", None, 0, rounded_to=1000),
            RateNotice("tokens", 38_000, rounded_to=1000),
            RateNotice("input_tokens", 9_000, tier="priority", rounded_to=1000),
            RateNotice("output_tokens", 0, tier="fast", rounded_to=1000),
        )
    )


def test_the_windows_of_an_anthropic_plan():
    ends_s, week_ends_s = int(NOW_S) + 600, int(NOW_S) + 86_400
    notices = unified(
        **{
            "status": "allowed_warning",
            "reset": ends_s,
            "representative-claim": "five_hour",
            "fallback": "available",
            "5h-status": "allowed_warning",
            "5h-utilization": "0.914",
            "5h-reset": ends_s,
            "5h-surpassed-threshold": "0.9",
            "7d-status": "allowed",
            "7d-utilization": "0.21",
            "7d-reset": week_ends_s,
            "7d_opus-status": "rejected",
            "7d_opus-utilization": "1.02",
            "7d_opus-reset": week_ends_s,
            "overage-status": "rejected",
            "overage-in-use": "false",
            "overage-disabled-reason": "org_level_disabled",
        }
    )
    assert notices == Notices(
        plans=(
            PlanNotice(HOURS_5, 0.914, ends_s, "warning", 0.9),
            PlanNotice(DAYS_7, 0.21, week_ends_s, "allowed"),
            PlanNotice(DAYS_7, 1.02, week_ends_s, "rejected", models="opus"),
        ),
        plan_status="warning",
        binding="five_hour",
        overage=OverageNotice("rejected", in_use=False, refused_because="org_level_disabled"),
    )
    assert notices.plan_ends_s(HOURS_5) == ends_s
    assert notices.plan_ends_s(DAYS_7) == week_ends_s


def test_a_window_of_some_models_is_not_taken_for_that_of_all():
    assert unified(**{"7d_sonnet-reset": int(NOW_S) + 60}).plan_ends_s(DAYS_7) is None


def test_an_answer_that_tells_only_the_window_that_binds_tells_its_end():
    notices = unified(**{"status": "rejected", "reset": int(NOW_S) + 60, "representative-claim": "seven_day"})
    assert notices.plans == (PlanNotice(DAYS_7, resets_s=NOW_S + 60, status="rejected"),)
    assert unified(**{"reset": int(NOW_S) + 60, "representative-claim": "overage"}).plans == ()


@pytest.mark.parametrize(
    "reset", ["", "soon", "-5", "0", "nan", "inf", "1e10", NOW_S, NOW_S - 1, NOW_S + 18_061, "9" * 15, "9" * 5000]
)
def test_a_reset_that_cannot_be_is_ignored_and_the_rest_is_not(reset):
    told = plan(reset=reset, utilization="0.5")
    assert (told.resets_s, told.used_share) == (None, 0.5)


@pytest.mark.parametrize("used", ["", "much", "-0.1", "nan", "inf", "101", "0x1"])
def test_a_share_that_cannot_be_is_ignored(used):
    told = plan(reset=int(NOW_S) + 9, utilization=used)
    assert (told.resets_s, told.used_share) == (NOW_S + 9, None)


@pytest.mark.parametrize("reset", ["yesterday", "2027-01-15T08:10:05", "2026-01-15T08:10:05Z", "2099-01-01T00:00:00Z"])
def test_the_reset_of_a_rate_needs_its_offset_and_lies_ahead(reset):
    (rate,) = anthropic("ratelimit-requests-", limit=5, reset=reset).rates
    assert rate == RateNotice("requests", 5)


@pytest.mark.parametrize("value", ["", "-1", "1.5", "1_000", " ", "9" * 16, "٣"])
def test_an_amount_that_cannot_be_is_ignored(value):
    assert anthropic("ratelimit-requests-", limit=value, remaining=7).rates == (RateNotice("requests", None, 7),)


def test_a_reset_is_read_against_the_providers_own_clock_where_that_is_wrong():
    def ends_s(ahead_s: float) -> float | None:
        date = format_datetime(datetime.fromtimestamp(int(NOW_S + ahead_s), UTC), usegmt=True)
        headers = [(b"Date", date.encode()), *named("anthropic-ratelimit-unified-5h-", {"reset": int(NOW_S) + 1000})]
        return headers_anthropic.read_notices(headers, NOW_S).plan_ends_s(HOURS_5)

    assert ends_s(-2) == ends_s(2) == NOW_S + 1000  # an answer takes a moment
    assert ends_s(300) == NOW_S + 700
    assert ends_s(305) == ends_s(309) == NOW_S + 700  # in steps, and later rather than earlier
    assert ends_s(-305) == NOW_S + 1310
    assert ends_s(1000) is None


def test_the_rates_of_an_openai_account():
    assert openai(
        limit_requests=500,
        remaining_requests=499,
        reset_requests="120ms",
        limit_tokens=200_000,
        remaining_tokens=0,
        reset_tokens="6m0s",
        limit_project_tokens=900,
        remaining_project_tokens=800,
        reset_project_tokens="1h2m3.5s",
    ) == Notices(
        (
            RateNotice("requests", 500, 499, NOW_S + 0.12),
            RateNotice("tokens", 200_000, 0, NOW_S + 360),
            RateNotice("tokens", 900, 800, NOW_S + 3723.5, tier="project"),
        )
    )


@pytest.mark.parametrize(("limit", "remaining", "known"), [(-1, -1, None), (0, 0, None), (-1, 30, 30), ("", 0, None)])
def test_what_azure_does_not_know_is_unknown(limit, remaining, known):
    rates = openai(limit_tokens=limit, remaining_tokens=remaining).rates
    assert rates == (() if known is None else (RateNotice("tokens", None, known),))


@pytest.mark.parametrize(
    ("reset", "wait_s"), [("7", 7), ("7.66s", 7.66), ("1m", 60), ("2d", 172_800), ("1d1ms", 86_400.001)]
)
def test_durations_are_read_as_compatible_servers_write_them(reset, wait_s):
    (rate,) = openai(limit_tokens=5, reset_tokens=reset).rates
    assert rate.resets_s == pytest.approx(NOW_S + wait_s)


@pytest.mark.parametrize("reset", ["", "0", "0s", "-1s", "s", "1x", "1s1m", "999d", "9" * 14, "1.2.3s", "1e3s"])
def test_a_duration_that_cannot_be_is_ignored(reset):
    assert openai(limit_tokens=5, reset_tokens=reset).rates == (RateNotice("tokens", 5),)


def test_codex_windows_are_known_by_their_length_and_not_by_their_slot():
    notices = openai(
        "x-codex-",
        primary_used_percent="14.5",
        primary_window_minutes=10_080,
        primary_reset_at=int(NOW_S) + 5000,
        secondary_used_percent=100,
        secondary_window_minutes=299,
        secondary_reset_after_seconds=60,
        bengalfox_primary_used_percent=3,
        bengalfox_primary_window_minutes=300,
        other_primary_used_percent=3,
    )
    assert notices.plans == (
        PlanNotice(DAYS_7, 0.145, NOW_S + 5000),
        PlanNotice(HOURS_5, 1.0, NOW_S + 60),
        PlanNotice(HOURS_5, 0.03, models="bengalfox"),
    )


def test_an_answer_that_says_nothing_of_limits_costs_no_object():
    nothing = [(b"content-type", b"application/json"), (b"x-ratelimit-limit-tokens", b"-1")]
    assert headers_anthropic.read_notices(nothing, NOW_S) is NO_NOTICES
    assert headers_openai.read_notices(nothing, NOW_S) is NO_NOTICES


_NAMES = st.sampled_from(
    [
        *(
            f"anthropic-ratelimit-{of}-{part}"
            for of in ("requests", "tokens")
            for part in ("limit", "remaining", "reset")
        ),
        *(
            f"anthropic-ratelimit-unified-{part}"
            for part in ("status", "reset", "representative-claim", "overage-reset")
        ),
        *(
            f"anthropic-ratelimit-unified-{of}-{part}"
            for of in ("5h", "7d_x", "0d")
            for part in ("reset", "utilization")
        ),
        *(f"x-ratelimit-{part}-tokens" for part in ("limit", "remaining", "reset")),
        *(f"x-codex-primary-{part}" for part in ("used-percent", "window-minutes", "reset-at", "reset-after-seconds")),
        "date",
    ]
)
_VALUES = st.one_of(
    st.binary(max_size=40),
    st.from_regex(rb"-?[0-9]{1,20}(\.[0-9]{0,20})?(d|h|m|s|ms)?", fullmatch=True),
    st.datetimes().map(lambda at: at.isoformat().encode() + b"Z"),
    st.datetimes().map(lambda at: format_datetime(at).encode()),
)


@given(st.lists(st.tuples(_NAMES.map(str.encode), _VALUES), max_size=12), st.floats(0, 4e9))
def test_no_header_makes_a_reader_fail_and_whatever_it_tells_can_be_true(headers, now_s):
    for reader in (headers_anthropic, headers_openai):
        notices = reader.read_notices(headers, now_s)
        for rate in notices.rates:
            assert rate.limit is None or rate.limit >= 0
            assert rate.remaining is None or rate.remaining >= 0
            assert rate.resets_s is None or now_s < rate.resets_s <= now_s + 31 * 86_400 + 61
        for told in notices.plans:
            assert told.period_s > 0
            assert told.used_share is None or 0 <= told.used_share <= 100
            assert told.resets_s is None or now_s < told.resets_s <= now_s + told.period_s + 61
