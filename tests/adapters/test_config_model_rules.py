"""`[[model_rule]]` as people write it; what cannot be used is said with its line, its value and what was expected."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from headgate.adapters.config.model_rules import read_model_rule
from headgate.adapters.config.tables import Problems, Table
from headgate.core.accounts import Account
from headgate.core.errors import ConfigError
from headgate.core.model_rules import Between, ModelRule

FILE = str(Path("headgate.toml"))
ACCOUNTS = [Account("main", "anthropic", ("claude-*",)), Account("local", "openai", ("qwen-*",))]
USE = {"use": "claude-haiku-4-5"}


def read(**words: object) -> ModelRule:
    problems = Problems(FILE, {("model_rule", 0): 7, **{("model_rule", 0, word): 8 for word in words}})
    rule = read_model_rule(Table(problems, ("model_rule", 0), "[[model_rule]]", words), 3, ACCOUNTS)
    problems.raise_any()
    return rule


def test_the_words_of_a_rule():
    conditions = {
        "name": "night",
        "models": "claude-opus-*",
        "scope": "tag:kind=simple",
        "max_input_tokens": 4_000,
        "max_output_tokens": 500,
        "budget_below": 0.2,
        "budget_of": "run:*",
        "wait_over_s": 30,
        "sticky_s": 60,
    }
    rule = read(**conditions, between="22:00-06:30", timezone="Europe/Berlin", **USE, effort="low")
    between = Between(22 * 3600, 6 * 3600 + 1800, ZoneInfo("Europe/Berlin"))
    assert rule == ModelRule(**conditions, between=between, **USE, effort="low")


@pytest.mark.parametrize("models", ["*", "claude-*", "cl*", "*-opus-*", "claude-opus-4-6", "?laude-*"])
def test_a_rule_for_models_that_may_go_to_the_same_provider_is_taken(models):
    assert read(models=models, **USE).use == USE["use"]
    assert read(models="claude-haiku-4-5", effort="low", **USE).effort == "low"


def test_a_rule_without_a_name_is_called_by_its_number_and_holds_for_all():
    assert read(then="refuse") == ModelRule("3", then="refuse")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"wait_over_s": 3}, "headgate.toml:7: [[model_rule]]: does nothing; expected use, effort, or then"),
        (USE | {"then": "wait"}, "8: [[model_rule]] then: a rule does one thing, and this one has use; write another"),
        ({"then": "wait", "sticky_s": 60}, "8: [[model_rule]] sticky_s: changes nothing beside then"),
        (USE | {"sticky_s": True}, "sticky_s = true: expected a number of seconds such as 300"),
        (USE | {"sticky_s": -1}, "sticky_s = -1: expected at least 0"),
        ({"use": "claude-*"}, 'use = "claude-*": expected the name of a model'),
        ({"use": "gpt-5"}, 'use = "gpt-5": no account serves it; configured: main (claude-*); local (qwen-*)'),
        (USE | {"models": "claude-haiku-4-5"}, "8: [[model_rule]] use: changes nothing: it is what models has; "),
        (USE | {"models": "gpt-*"}, 'use = "claude-haiku-4-5": calls for gpt-* go to no anthropic account; expected'),
        (USE | {"models": "qwen-3"}, 'use = "claude-haiku-4-5": calls for qwen-3 go to no anthropic account'),
        (USE | {"budget_below": 0.5, "budget_of": "account:nope"}, 'budget_of = "account:nope": no such account; conf'),
        ({"effort": "max"}, 'effort = "max": expected "low" or "medium" or "high"'),
        ({"then": "stop"}, 'then = "stop": expected "wait" or "refuse"'),
        (USE | {"between": "22-6"}, 'between = "22-6": expected two times of day'),
        (USE | {"between": "24:00-06:00"}, "expected two times of day"),
        (USE | {"between": "06:00-06:00"}, "expected two different times"),
        (USE | {"timezone": "UTC"}, "8: [[model_rule]] timezone: changes nothing without between"),
        (USE | {"between": "22:00-06:00", "timezone": "Mars/Base"}, 'timezone = "Mars/Base": expected a time zone'),
        (USE | {"budget_of": "run:*"}, "budget_of: changes nothing without budget_below"),
        (USE | {"budget_below": 20}, "budget_below = 20: expected at most 1"),
        (USE | {"budget_below": 0}, "budget_below = 0: expected at least 0.001"),
        (USE | {"wait_over_s": -1}, "wait_over_s = -1: expected at least 0"),
        (USE | {"max_input_tokens": 1.5}, "max_input_tokens = 1.5: expected a whole number"),
        (USE | {"scope": "account:main"}, 'scope = "account:main": the account is chosen after the model'),
        (USE | {"modles": "x"}, "modles: unknown; did you mean models?"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(words: dict[str, object], message: str):
    with pytest.raises(ConfigError) as raised:
        read(**words)
    assert message in str(raised.value)
