"""How limits are named for people: two limits of one configuration never read alike."""

from itertools import combinations
from zoneinfo import ZoneInfo

import pytest

from headgate.core.limits import Gauge, Limit, Rate, Rolling, Window
from headgate.core.scopes import level_name
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse
from headgate.core.wording import level_text

HOUR_S, DAY_S = 3_600, 86_400
MAIN = ("", "account:main", "requests", 9)
LIMITS: list[Limit] = [
    Gauge(*MAIN),
    Window(*MAIN, Lifetime()),
    *(Window(*MAIN, Calendar(unit)) for unit in ("hour", "day", "week", "month")),
    Window(*MAIN, Calendar("day", ZoneInfo("Europe/Berlin"))),
    *(Window(*MAIN, OpenedByUse(period_s)) for period_s in (5 * HOUR_S, 7 * DAY_S)),
    *(Rate(*MAIN, period_s, 9) for period_s in (1, 60, HOUR_S, DAY_S)),
    *(Rolling(*MAIN, period_s) for period_s in (60, HOUR_S, DAY_S, 7 * DAY_S)),
    *(Window(*MAIN, Fixed(period_s)) for period_s in (60, HOUR_S, DAY_S, 7 * DAY_S)),
    Window(*MAIN, Fixed(HOUR_S, 600)),
    Window(*MAIN, Fixed(DAY_S, 6 * HOUR_S)),
    *(Window(*MAIN, Fixed(7 * DAY_S, begin_s)) for begin_s in (4 * DAY_S, 4 * DAY_S + 6 * HOUR_S)),
]


def text(limit: Limit) -> str:
    return level_text(level_name("account:main", limit))


def test_no_two_limits_of_a_scope_have_one_name() -> None:
    """`tokens_per_7d`, `_rolling_week` and `_fixed_week` were all "tokens/7 d", and a reservation could mean none."""
    assert [pair for pair in combinations(map(text, LIMITS), 2) if pair[0] == pair[1]] == []


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Rolling(*MAIN, HOUR_S), "/h (rolling)"),
        (Window(*MAIN, OpenedByUse(5 * HOUR_S)), "/5 h (plan)"),
        (Window(*MAIN, Fixed(7 * DAY_S, 4 * DAY_S + 6 * HOUR_S)), "/7 d (fixed, from Mon 06:00)"),
        (Window(*MAIN, Fixed(DAY_S, 6 * HOUR_S + 90)), "/24 h (fixed, from 06:01:30)"),
        (Window(*MAIN, Fixed(HOUR_S, 600)), "/h (fixed, from +10 min)"),
        (Window(*MAIN, Calendar("hour")), "/hour"),
    ],
)
def test_a_name_says_how_its_time_passes(limit: Limit, said: str) -> None:
    assert text(limit) == f"account:main requests{said}"
