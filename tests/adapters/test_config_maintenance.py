"""`[[maintenance]]` as people write it; what cannot be used is said with its line, its value and what was expected."""

from pathlib import Path
from typing import cast

import pytest

from headgate.adapters.config.maintenance import ConfiguredMaintenance, read_maintenance
from headgate.adapters.config.tables import Problems, Table
from headgate.core.errors import ConfigError

SUNDAY = {"cron": "30 2 * * sun", "duration": "2h"}
FILE = str(Path("headgate.toml"))


def read(**words: object) -> ConfiguredMaintenance:
    problems = Problems(FILE, {("maintenance", 0): 7, **{("maintenance", 0, word): 8 for word in words}})
    entry = read_maintenance(Table(problems, ("maintenance", 0), "[[maintenance]]", words), ["main"])
    problems.raise_any()
    return cast(ConfiguredMaintenance, entry)


def test_the_words_of_an_entry():
    entry = read(**SUNDAY, timezone="Europe/Berlin", scope="account:main", models="claude-*", action="refuse")
    assert (entry.cron, entry.scope, entry.models, entry.action) == (
        "30 2 * * sun",
        "account:main",
        "claude-*",
        "refuse",
    )
    assert entry.spans(1_795_300_000, 1_795_400_000) == [(1_795_311_000, 1_795_318_200)]  # 2026-11-22 01:30 UTC


def test_without_more_an_entry_holds_every_call():
    entry = read(**SUNDAY)
    assert (entry.scope, entry.models, entry.action) == ("*", None, "hold")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"duration": "2h"}, "headgate.toml:7: [[maintenance]] has no cron"),
        ({"cron": "30 2 * * sun"}, "headgate.toml:7: [[maintenance]] has no duration"),
        (SUNDAY | {"cron": "30 2 * *"}, '8: [[maintenance]] cron: "30 2 * *": expected five fields'),
        (SUNDAY | {"cron": 5}, "8: [[maintenance]] cron = 5: expected a cron expression"),
        (SUNDAY | {"cron": "* * * * *"}, "begins again after 60 s, before 7,200 s are over"),
        (SUNDAY | {"duration": 7200}, 'duration = 7200: expected a duration such as "90m", "2h" or "1d12h"'),
        (SUNDAY | {"duration": "8d"}, 'duration = "8d": expected at least "1m" and at most "7d"'),
        (SUNDAY | {"duration": "0h"}, 'expected at least "1m"'),
        (SUNDAY | {"timezone": "Mars/Base"}, 'timezone = "Mars/Base": expected a time zone'),
        (SUNDAY | {"scope": "house:x"}, 'scope = "house:x"'),
        (SUNDAY | {"scope": "account:nope"}, 'scope = "account:nope": no such account; configured: main'),
        (SUNDAY | {"action": "stop"}, 'action = "stop": expected "hold" or "refuse"'),
        (SUNDAY | {"modles": "x"}, "modles: unknown; did you mean models?"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(words: dict[str, object], message: str):
    with pytest.raises(ConfigError) as raised:
        read(**words)
    assert message in str(raised.value)
