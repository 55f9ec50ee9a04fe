"""A child's budget above its parent's is a conflict; one that can be had is none."""

import pytest

from headgate.core.budget_tree import conflicts
from headgate.core.limits import Limit, Rate, Rolling, Window
from headgate.core.scopes import LimitRule
from headgate.core.spans import Calendar, Fixed, Lifetime

PARENTS = {"key:ci": ("team:x", "tag:org=a")}


def usd(scope: str, amount: int, span: object = "day", models: str | None = None) -> LimitRule:
    limit: Limit
    if isinstance(span, int):
        limit = Rolling("", scope, "micro_usd", amount, span, models)
    else:
        limit = Window("", scope, "micro_usd", amount, Calendar(span) if isinstance(span, str) else span, models)
    return LimitRule(scope, limit)


def found(*rules: LimitRule, accounts: tuple[str, ...] = ("main",)) -> list[tuple[str, tuple[str, ...], int]]:
    return [
        (each.child.scope, tuple(parent.scope for parent in each.parents), each.allowed)
        for each in conflicts(rules, PARENTS, accounts)
    ]


def test_a_key_above_its_team_is_a_conflict():
    assert found(usd("key:ci", 50), usd("team:x", 20)) == [("key:ci", ("team:x",), 20)]
    assert found(usd("key:ci", 20), usd("team:x", 20)) == []
    assert found(usd("key:other", 50), usd("team:x", 20)) == []
    assert found(usd("key:ci", 50), usd("tag:org=*", 20)) == [("key:ci", ("tag:org=*",), 20)]


def test_a_pattern_for_keys_is_held_to_the_team_of_each():
    assert found(usd("key:*", 50), usd("team:x", 20)) == [("key:*", ("team:x",), 20)]


def test_each_run_is_held_to_the_account():
    assert found(usd("run:*", 50), usd("account:main", 20)) == [("run:*", ("account:main",), 20)]
    assert found(usd("agent:*", 50), usd("account:*", 20)) == [("agent:*", ("account:*",), 20)]


def test_several_accounts_add_up_if_each_has_a_budget():
    rules = (usd("run:*", 50), usd("account:a", 20), usd("account:b", 25))
    assert found(*rules, accounts=("a", "b")) == [("run:*", ("account:a", "account:b"), 45)]
    assert found(*rules, accounts=("a", "b", "c")) == []
    assert found(usd("run:*", 40), usd("account:*", 20), accounts=("a", "b")) == []


def test_the_budget_of_a_name_replaces_that_of_a_pattern():
    assert found(usd("run:*", 50), usd("account:*", 20), usd("account:main", 60)) == []


@pytest.mark.parametrize(
    ("below", "above", "is_conflict"),
    [
        ("hour", "day", True),
        ("day", "month", True),
        ("week", "month", False),  # a week lies in two months
        ("day", "hour", False),
        ("day", Lifetime(), True),
        (Lifetime(), "day", False),
        (3_600, 86_400, True),
        (86_400, 3_600, False),
        ("hour", 3_600, True),
        (3_600, "day", False),  # a stretch of an hour may lie in two days
        ("day", 86_400, False),  # a day can have 25 hours
        (Fixed(3_600), Fixed(3_600), True),
        (Fixed(3_600), "day", False),
    ],
)
def test_only_windows_that_lie_within_one_are_compared(below: object, above: object, is_conflict: bool):  # noqa: FBT001 - a column
    assert bool(found(usd("key:ci", 50, below), usd("team:x", 20, above))) is is_conflict


def test_other_models_other_dimensions_and_rates_are_not_compared():
    assert found(usd("key:ci", 50, models="claude-*"), usd("team:x", 20, models="gpt-*")) == []
    assert found(usd("key:ci", 50), usd("team:x", 20, models="gpt-*")) == []
    assert found(usd("key:ci", 50, models="gpt-*"), usd("team:x", 20)) != []
    tokens = LimitRule("team:x", Window("", "team:x", "tokens", 20, Calendar("day")))
    rate = LimitRule("team:x", Rate("", "team:x", "micro_usd", 20, 60, 20))
    assert found(usd("key:ci", 50), tokens, rate) == []
