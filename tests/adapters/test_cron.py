"""Cron expressions as spans of time, over changes of clocks too."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from headgate.adapters.cron import CronError, CronSpans

BERLIN = ZoneInfo("Europe/Berlin")


def at_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def begins(spans: CronSpans, from_: str, until: str) -> list[str]:
    found = spans(at_s(from_), at_s(until))
    return [datetime.fromtimestamp(begin_s, UTC).isoformat()[:16] for begin_s, _end_s in found]


def test_a_span_lasts_its_real_seconds_and_one_that_has_begun_counts():
    spans = CronSpans("30 2 * * sun", UTC, 7_200)
    assert spans(at_s("2026-11-22T04:00Z"), at_s("2026-11-30T00:00Z")) == [
        (at_s("2026-11-22T02:30Z"), at_s("2026-11-22T04:30Z")),
        (at_s("2026-11-29T02:30Z"), at_s("2026-11-29T04:30Z")),
    ]
    assert spans(at_s("2026-11-22T04:30Z"), at_s("2026-11-29T02:30Z")) == []
    assert len(spans(at_s("2026-11-22T02:30Z"), at_s("2026-11-22T02:31Z"))) == 1


def test_the_wall_clock_of_the_zone_counts():
    spans = CronSpans("0 3 * * *", BERLIN, 3_600)
    assert begins(spans, "2026-03-28T00:00Z", "2026-03-31T00:00Z") == [
        "2026-03-28T02:00",
        "2026-03-29T01:00",
        "2026-03-30T01:00",
    ]


def test_an_hour_that_is_skipped_begins_right_after_and_one_that_comes_twice_begins_once():
    spans = CronSpans("30 2 * * *", BERLIN, 3_600)
    # 29 March 2026: 02:00 becomes 03:00, which is 01:00 UTC. 25 October: 03:00 becomes 02:00.
    assert begins(spans, "2026-03-28T12:00Z", "2026-03-29T12:00Z") == ["2026-03-29T01:00"]
    assert begins(spans, "2026-10-24T12:00Z", "2026-10-25T12:00Z") == ["2026-10-25T00:30"]


def test_a_span_over_a_change_of_clocks_is_as_long_as_any_other():
    ((begin_s, end_s),) = CronSpans("0 1 * * *", BERLIN, 4 * 3_600)(
        at_s("2026-10-24T12:00Z"), at_s("2026-10-25T12:00Z")
    )
    assert end_s - begin_s == 4 * 3_600


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "expected five fields (minute, hour, day of month, month, day of week)"),
        ("0 0 3 * * *", "expected five fields"),
        ("99 2 * * *", "the minute cannot be used"),
        ("0 25 * * *", "the hour cannot be used"),
        ("0 2 * * someday", "the day of week cannot be used"),
        ("0 2 30 2 *", "the day of month cannot be used"),
        ("*/5 * * * *", "begins again after 300 s, before 3,600 s are over; it would never end"),
        ("0 2 " + "1," * 200 + "1 * *", "expected five fields"),
    ],
)
def test_what_cannot_be_used_is_said(expression: str, words: str):
    with pytest.raises(CronError) as raised:
        CronSpans(expression, UTC, 3_600)
    assert words in str(raised.value)
