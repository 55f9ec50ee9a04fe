"""`usage`, `limits` and `keys list`: which store they read, and what their figures are called."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from headgate.adapters.sqlite.stores import open_database
from headgate.cli.budgets import show_budgets
from headgate.cli.keys import KeyWishes, create_key, list_keys, revoke_key
from headgate.cli.questions import show_limits, show_usage
from headgate.compose import open_house, read_config
from headgate.core.adaptive import Key, Learned
from headgate.core.errors import CallerError, ConfigError
from headgate.core.ledger import Attempt
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage

NOW_S = 1_780_000_000.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder whose configuration names a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "headgate.toml").write_text('[store]\nurl = "sqlite:///headgate.sqlite"\n')
    return tmp_path / "headgate.sqlite"


def keep(store: Path, *keys: str) -> None:
    async def write() -> None:
        async with open_database(store) as stores:
            for number, key in enumerate(keys):
                row = Attempt(
                    id=f"c{number}.1", call=f"c{number}", attempt=1, owner="o", scopes=Scopes(key=key), done_s=NOW_S,
                    endpoint="messages", model="m", queued_s=NOW_S, admitted_s=NOW_S, usage=Usage(input_tokens=5),
                )  # fmt: skip
                await stores.ledger.begin(row)
                await stores.ledger.finish(row)

    asyncio.run(write())


def test_every_answer_says_which_store_it_is_from(store, capsys):
    show_usage(None, "", None, None, as_json=True)
    assert json.loads(capsys.readouterr().out)["store"] == str(store)
    show_limits(None, as_json=True)
    assert json.loads(capsys.readouterr().out)["store"] == str(store)
    list_keys(None, as_json=True)
    assert json.loads(capsys.readouterr().out)["store"] == str(store)


def test_who_asks_beside_the_examples_store_is_told_how_to_ask_that(store, capsys):
    """After `make run` a question in the same folder answered a confident nothing."""
    show_usage(None, "run", None, None)
    assert capsys.readouterr().err == ""
    config = store.parent / ".headgate" / "runs" / "abc" / "headgate.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[store]\nurl = "sqlite:///{store.parent}/.headgate/headgate.sqlite"\n')
    (store.parent / ".headgate" / "headgate.sqlite").touch()
    show_usage(None, "run", None, None)
    assert capsys.readouterr().err.endswith("another:\n    --config .headgate/runs/abc/headgate.toml\n")
    show_usage(config, "run", None, None)
    assert capsys.readouterr().err == ""


def test_the_keys_of_fleets_are_one_line_unless_asked_for(store, capsys):
    keep(store, "ci", "0a1b2c/0.1", "0a1b2c/17.2", "0a1b2c/x")
    show_usage(None, "key", None, None)
    rows = {line.split("  ")[0] for line in capsys.readouterr().out.splitlines()}
    assert rows == {"key", "ci", "(keys of fleets)", "0a1b2c/x", "total"}
    show_usage(None, "key", None, None, fleet_keys=True)
    assert "0a1b2c/17.2" in capsys.readouterr().out
    show_usage(None, "key", None, None, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["groups"]) == 4


def test_an_account_that_failed_shows_its_attempts(store, capsys):
    """`usage --by account,state` said `a1 failed 0`, as if nothing had happened."""
    keep(store, "ci")

    async def fail() -> None:
        async with open_database(store) as stores:
            row = Attempt(
                id="f.1", call="f", attempt=1, owner="o", scopes=Scopes(account="a1"), endpoint="messages", model="m",
                queued_s=NOW_S, admitted_s=NOW_S, usage=Usage(),
            )  # fmt: skip
            await stores.ledger.begin(row)
            await stores.ledger.finish(replace(row, state="failed", sent=False, done_s=NOW_S))

    show_usage(None, "account,state", None, None)
    assert "attempts" not in capsys.readouterr().out
    asyncio.run(fail())
    show_usage(None, "account,state", None, None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["account", "state", "requests", "attempts"]
    assert ["a1", "failed", "0", "1"] in [line[:4] for line in lines]


def test_a_span_without_its_unit_is_not_taken_for_an_instant(store):
    with pytest.raises(CallerError, match=r"--since 7: .*write 7d"):
        show_usage(None, "", "7", None)
    with pytest.raises(CallerError, match=r"--until 30: .*write 30d"):
        show_usage(None, "", None, "30")


def test_limits_have_what_is_configured_beside_what_was_learned_and_why(store, capsys):
    config = store.parent / "headgate.toml"
    entry = '[[limit]]\nscope = "account:main"\nrequests_per_minute = 600\n'
    config.write_text(
        config.read_text() + '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:NOWHERE"\n' + entry
    )
    show_limits(None, as_json=False)
    head, _row = capsys.readouterr().out.splitlines()
    assert head.split() == ["limit", "configured", "used", "free", "resets", "held"]

    async def learn() -> None:
        async with open_house(read_config(None, credentials=False), start=False) as house:
            limits, now_s = house.manager._learning.limits, house.manager.clock.now_s()
            for models, what, amount in (
                ("claude-opus-4*", "requests", 400),
                ("claude-haiku-4*", "requests", 600),
                ("claude-opus-4*", "output_tokens", 8_000),
            ):
                limits.keep(Key("main", models, what), Learned(amount, "header", now_s, now_s, now_s), bounds=True)
            limits.close(Key("main", "gpt-5", "requests", 86_400), "429", now_s + 7_200, now_s)
            records = limits.unwritten()
            await house.manager._levels.transact(list(records), lambda _found: (records, None))

    asyncio.run(learn())
    show_limits(None, as_json=False)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["limit", "configured", "learned", "why"]
    by_name = {" ".join(row.split("  ")[0].split()): row for row in rows}
    assert by_name.keys() == {
        "account:main requests",
        "account:main claude-opus-4* requests",
        "account:main claude-opus-4* output tokens",
        "account:main gpt-5 requests",
    }, "what allows as much as is configured is no row of its own"
    assert "600/min" in by_name["account:main requests"]
    assert "400/min for claude-opus-4*" in by_name["account:main requests"]
    assert "headers, since" in by_name["account:main requests"]
    assert "learned only" in by_name["account:main claude-opus-4* output tokens"]
    assert "429s" in by_name["account:main gpt-5 requests"]
    assert "closed until" in by_name["account:main gpt-5 requests"]


def test_keys_are_listed_with_all_that_they_say(store, capsys):
    create_key(None, KeyWishes("ci", ("usd_per_day=5",), "search", ("stage=test",), "30d"), as_json=False)
    create_key(None, KeyWishes("old"), as_json=False)
    revoke_key(None, "old")
    capsys.readouterr()
    list_keys(None, as_json=False)
    head, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["name", "state", "limits", "team", "tags", "expires", "id", "created"]
    assert first[:6] == ["ci", "in", "force", "usd_per_day=5", "search", "stage=test"]
    assert second[:5] == ["old", "revoked", "-", "-", "-"]
    assert "never" in second


def test_a_keys_limits_are_one_entry_and_may_say_how_they_work(store, capsys):
    said = ("usd_per_day=0.5", "hold=likely", "requests_per_minute=60", "burst_s=5")
    create_key(None, KeyWishes("ci", said), as_json=False)
    capsys.readouterr()
    list_keys(None, as_json=True)
    (key,) = json.loads(capsys.readouterr().out)["keys"]
    assert key["limits"] == [{"usd_per_day": 0.5, "hold": "likely", "requests_per_minute": 60, "burst_s": 5}]
    with pytest.raises(CallerError, match=r"usd_per_day=9': usd_per_day is there already, with 0.5; say it once"):
        create_key(None, KeyWishes("cd", ("usd_per_day=0.5", "usd_per_day=9")), as_json=False)
    with pytest.raises(ConfigError, match="hold: changes nothing here"):
        create_key(None, KeyWishes("cd", ("slots=2", "hold=likely")), as_json=False)


def test_limits_that_hold_what_is_likely_are_marked(store, capsys):
    with (store.parent / "headgate.toml").open("a") as file:
        file.write('[[limit]]\nscope = "team:a"\nusd_per_day = 1\nhold = "likely"\n')
        file.write('[[limit]]\nscope = "team:b"\nusd_per_day = 1\nslots = 2\n')
    show_limits(None, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert ["$1.00/day, likely" in line for line in lines] == ["team:a" in line for line in lines]
    show_budgets(None, "", None, check=False, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert ["$1.00, likely" in line for line in lines] == ["team:a" in line for line in lines]
    show_limits(None, as_json=True)
    shown = json.loads(capsys.readouterr().out)["limits"]
    assert {(each["scope"], each["dimension"]): each["hold"] for each in shown} == {
        ("team:a", "micro_usd"): "likely",
        ("team:b", "micro_usd"): "bound",
        ("team:b", "slots"): None,
    }


def test_a_question_makes_no_store_where_there_is_none(tmp_path, monkeypatch, capsys):
    """`keys list` made the folder of a store that a slip of the pen had named."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "headgate.toml"
    config.write_text(
        f'[store]\nurl = "sqlite:///{tmp_path}/nowhere/dir/x.sqlite"\n'
        '[[account]]\nname = "main"\nprovider = "anthropic"\napi_key = "env:K"\n'
        '[[limit]]\nscope = "account:main"\nusd_per_day = 1\n'
    )
    list_keys(config, as_json=False)
    show_limits(config, as_json=False)
    show_usage(config, "", None, None)
    show_budgets(config, "", None, check=True, as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("no keys; make one with")
    assert "account:main dollars" in out
    assert not (tmp_path / "nowhere").exists()
    create_key(config, KeyWishes("ci"), as_json=False)
    assert (tmp_path / "nowhere" / "dir" / "x.sqlite").exists()


def test_a_span_that_ends_before_it_begins_is_told(store):
    """It was an empty table, as if nothing had been used."""
    with pytest.raises(CallerError, match=r"since=1h is .* and until=2h is .*, which is not later: expected a beginn"):
        show_usage(None, "", "1h", "2h")
