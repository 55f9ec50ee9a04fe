"""A child's budget above its parent's is an error of the configuration that names both."""

import pytest

from headgate.adapters.config.budgets import note_conflicts, parents_of_keys
from headgate.adapters.config.limits import read_limits
from headgate.adapters.config.settings import ConfiguredKey
from headgate.adapters.config.tables import Problems, Table
from headgate.core.errors import ConfigError

KEYS = [ConfiguredKey("ci", team="x", tags=(("org", "a"),)), ConfiguredKey("solo")]


def check(*entries: dict[str, object]) -> None:
    lines = {("limit", index, word): 10 + index for index, entry in enumerate(entries) for word in entry}
    problems = Problems("headgate.toml", lines)
    found = []
    for index, entry in enumerate(entries):
        words = {word: value for word, value in entry.items() if word != "scope"}
        found += read_limits(Table(problems, ("limit", index), "[[limit]]", words), str(entry["scope"]))
    note_conflicts(problems, found, parents_of_keys(KEYS), ["main"])
    problems.raise_any()


def test_both_values_and_both_lines_are_named():
    with pytest.raises(ConfigError) as raised:
        check({"scope": "team:x", "usd_per_day": 20}, {"scope": "key:ci", "usd_per_day": 50})
    assert str(raised.value) == (
        "headgate.toml:11: usd_per_day: key:ci has $50.00 per day, which it can never use: "
        "team:x has $20.00 per day in line 10; expected at most 20"
    )


def test_a_pattern_is_each_of_its_scopes():
    with pytest.raises(ConfigError, match=r"run:\* \(each\) has 9,000 tokens per day.*account:main has 5,000 tokens"):
        check({"scope": "account:main", "tokens_per_day": 5_000}, {"scope": "run:*", "tokens_per_day": 9_000})


def test_budgets_that_can_be_had_are_fine():
    check(
        {"scope": "team:x", "usd_per_day": 20, "requests_per_minute": 5},
        {"scope": "key:ci", "usd_per_day": 20, "requests_per_minute": 50},
        {"scope": "key:solo", "usd_per_day": 99},
    )


def test_a_key_belongs_to_its_team_and_tags():
    assert parents_of_keys(KEYS) == {"key:ci": ["team:x", "tag:org=a"], "key:solo": []}
