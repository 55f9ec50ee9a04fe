"""`headgate keys`: what a key can never have is refused, with what it can; keys are replaced and ended."""

import json

import pytest

from headgate.cli.keys import KeyWishes, create_key, list_keys, revoke_key, rotate_key
from headgate.core.errors import CallerError

CONFIG = """
[store]
url = "sqlite:///keys.sqlite"
[[account]]
name = "main"
provider = "anthropic"
api_key = "env:K"
[[limit]]
scope = "team:search"
usd_per_day = 5
[[limit]]
scope = "account:main"
tokens_per_month = 1_000
[[key]]
name = "configured"
team = "search"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "headgate.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (
            KeyWishes("ci", ("usd_per_day=100",), "search"),
            "key:ci has $100.00 per day, which it can never use: team:search has $5.00 per day; expected at most 5",
        ),
        (KeyWishes("configured", ("usd_per_hour=5.01",)), "expected at most 5"),
        (KeyWishes("ci", ("tokens_per_day=1001",)), "account:main has 1,000 tokens per month; expected at most 1,000"),
    ],
)
def test_a_budget_above_its_parents_is_refused_and_no_key_is_made(config, capsys, wishes, told):
    with pytest.raises(CallerError) as refused:
        create_key(config, wishes, as_json=True)
    assert told in str(refused.value)
    list_keys(config, as_json=True)
    assert json.loads(capsys.readouterr().out)["keys"] == []


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        (
            KeyWishes("a b"),
            "key name 'a b': expected a name of 1 to 200 letters (A to Z), digits and . _ - : @ / # + =",
        ),
        (KeyWishes("ci", team="x y"), "--team 'x y': expected a name of 1 to 200 letters"),
        (KeyWishes("ci", tags=("stage=ü",)), "--tag 'ü': expected a name of 1 to 200 letters"),
        (KeyWishes("ci", expires_in="0s"), "--expires-in 0s: such a key never lets anybody in; expected 1s or more"),
    ],
)
def test_a_key_whose_names_no_scope_can_have_is_not_made(config, capsys, wishes, told):
    """A team `x y` was accepted, and no budget of any team could be meant by it."""
    with pytest.raises(CallerError) as refused:
        create_key(config, wishes, as_json=True)
    assert str(refused.value).startswith(told)
    list_keys(config, as_json=True)
    assert json.loads(capsys.readouterr().out)["keys"] == []


def test_a_budget_within_its_parents_or_of_another_kind_is_given(config, capsys):
    create_key(
        config, KeyWishes("ci", ("usd_per_day=5", "usd_per_week=50", "tokens_per_day=1000"), "search"), as_json=True
    )
    create_key(config, KeyWishes("other", ("usd_per_day=100",)), as_json=True)
    capsys.readouterr()
    list_keys(config, as_json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["keys"]] == ["ci", "other"]


def test_a_key_is_listed_with_what_the_configuration_says_of_it(config, capsys, monkeypatch):
    """It had "-" for limits and team that stand in `[[key]]`."""
    monkeypatch.setenv("COLUMNS", "160")
    config.write_text(CONFIG + "requests_per_day = 7\n")
    create_key(config, KeyWishes("configured", ("usd_per_day=1",)), as_json=True)
    capsys.readouterr()
    list_keys(config, as_json=False)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("configured")]
    assert "usd_per_day=1, 7 requests per day" in line
    assert " search " in line


def the_rows(config, capsys):
    capsys.readouterr()
    list_keys(config, as_json=True)
    return json.loads(capsys.readouterr().out)["keys"]


@pytest.mark.parametrize("grace", [None, "1h"])
def test_a_key_is_replaced_by_one_like_it(config, capsys, monkeypatch, grace):
    create_key(config, KeyWishes("ci", ("usd_per_day=5",), "search", ("stage=dev",), "30d"), as_json=False)
    first = capsys.readouterr().out.strip()
    rotate_key(config, "ci", grace, as_json=False)
    told = capsys.readouterr()
    assert told.out.strip() != first
    assert first not in told.err
    assert ("ends in 1h" if grace else "has ended") in told.err
    old, new = the_rows(config, capsys)
    assert [old["in_force"], new["in_force"]] == [grace is not None, True]
    assert all(old[word] == new[word] for word in ("name", "limits", "scopes", "expires"))
    monkeypatch.setenv("COLUMNS", "160")
    list_keys(config, as_json=False)
    states = [line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("ci")]
    assert states == [["ending" if grace else "revoked", "usd_per_day=5"], ["in", "force"]]
    revoke_key(config, "ci")
    assert [row["in_force"] for row in the_rows(config, capsys)] == [False, False]


@pytest.mark.parametrize(
    ("name", "grace", "told"),
    [
        ("nobody", None, "no key named 'nobody' is in force"),
        ("ci", "31d", "expected at most 30 days"),
        ("ci", "soon", "'soon' is no length of time"),
    ],
)
def test_what_cannot_be_replaced_stays_as_it_is(config, capsys, name, grace, told):
    create_key(config, KeyWishes("ci"), as_json=True)
    with pytest.raises(CallerError, match=told):
        rotate_key(config, name, grace, as_json=True)
    assert [(row["in_force"], row["revoked"]) for row in the_rows(config, capsys)] == [(True, None)]
