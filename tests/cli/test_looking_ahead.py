"""`headgate forecast`, `capacity`, `budget` and `reserve`: what people read, and what a script can rely on."""

import asyncio
import json
from dataclasses import replace
from decimal import Decimal

import pytest

from headgate.cli.budgets import show_budgets
from headgate.cli.forecasting import capacity_text, runs_out_text, show_capacity, show_forecast
from headgate.cli.main import main
from headgate.cli.questions import show_limits
from headgate.cli.reserving import create_reservation
from headgate.cli.wording import level_text, span_text
from headgate.compose import open_house, read_config
from headgate.core.capacity import Capacity
from headgate.core.errors import CallerError, LimitError
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.gateway.reserving import ReservationWish
from headgate.runtime.calls import Call
from headgate.runtime.forecasting import ForecastView

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
api_key = "env:NOT_NEEDED"
models = ["claude-*"]
[[limit]]
scope = "account:main"
output_tokens_per_day = 10_000
requests_per_minute = 600
[[limit]]
scope = "run:*"
requests_per_lifetime = 2
[[key]]
name = "ci"
output_tokens_per_month = 4_000
"""
NOW_S = 1_800_000_000.0
VIEW = ForecastView(
    name="key:ci * micro_usd day", scope="key:ci", models=None, dimension="micro_usd", per="day", amount=5_000_000,
    used=1_000_000, projected_to_s=NOW_S + 10_200, resets_s=NOW_S + 10_200, expected=6_000_000, low=5_500_000,
    high=7_000_000, runs_out_s=NOW_S + 7_800, runs_out_earliest_s=NOW_S + 6_000, assumed="", experts=(),
)  # fmt: skip


@pytest.fixture
def spent(tmp_path, monkeypatch):
    """Work in a folder whose store has 3 calls with the key `ci` in two runs, 3,000 output tokens in all."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headgate.toml").write_text(CONFIG)

    async def work():
        async with open_house(read_config(credentials=False)) as house:
            for run in ("one", "two", "two"):
                scopes = Scopes(key="ci", run=run, agent="north")
                call = Call("claude-sonnet-4-5", text_bytes=400, max_output_tokens=1_000, scopes=scopes)
                async with house.manager.admit(call) as grant:
                    grant.settle(Usage(100, output_tokens=1_000))

    asyncio.run(work())
    return tmp_path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "in 2 h 10 min, 40 min before it resets"),
        ({"runs_out_s": NOW_S - 1}, "now: spent"),
        ({"runs_out_s": None}, "not before it resets; at worst in 1 h 40 min"),
        ({"runs_out_s": None, "runs_out_earliest_s": None}, "not before it resets"),
        ({"expected": None, "runs_out_s": None}, "not known yet"),
        ({"resets_s": None}, "in 2 h 10 min"),
        ({"resets_s": None, "runs_out_s": None, "runs_out_earliest_s": None}, "not within 2 h 50 min"),
    ],
)
def test_when_a_window_runs_out_is_said_in_words(change, said):
    assert runs_out_text(replace(VIEW, **change), NOW_S) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.6, "1 min"), (3_571, "1 h"), (7_800, "2 h 10 min"), (86_399, "1 d"), (273_600, "3 d 4 h")],
)
def test_a_length_of_time_has_its_two_largest_units(seconds, said):
    assert span_text(seconds) == said


def test_capacity_is_said_with_what_binds_it():
    told = Capacity(1, "account:main claude-* output_tokens rate-60s", NOW_S + 90, "yellow", "as they do")
    words = "1 more agent can start now; account:main claude-* output tokens/min binds, which changes in 2 min"
    assert capacity_text(told, NOW_S) == words
    assert capacity_text(replace(told, agents=None), NOW_S) == "no number can be given: as they do"
    assert level_text("run:a * slots gauge") == "run:a slots at once"


def test_a_closed_account_is_said_before_its_limits():
    told = Capacity(0, None, NOW_S + 90, "red", "as they do", closed="it is left alone after 5 failures")
    words = "no more agents can start now; it is left alone after 5 failures, for another 2 min"
    assert capacity_text(told, NOW_S) == words


@pytest.mark.parametrize("columns", [80, 120])
def test_every_line_fits_the_terminal(spent, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    show_forecast(None, "", as_json=False)
    show_capacity(None, "claude-sonnet-4-5", None, None, as_json=False)
    show_budgets(None, "", None, check=False, as_json=False)
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= columns
    for words in ("runs out", "now: spent", "assumed", "main: ", "share", "30 %"):
        assert words in text, words


def test_limits_of_some_scopes_are_shown_by_themselves(spent, capsys):
    show_limits(None, "key,run:t*", as_json=True)
    shown = {row["scope"] for row in json.loads(capsys.readouterr().out)["limits"]}
    assert shown == {"key:ci", "run:two"}
    show_limits(None, "team", as_json=False)
    assert capsys.readouterr().out == "no limits are configured or in use for team\n"
    with pytest.raises(CallerError, match="'planet'"):
        show_limits(None, "planet", as_json=False)


def test_a_model_that_no_list_knows_is_not_green(spent, capsys):
    show_capacity(None, "claude-sonet-4-5", None, None, as_json=False)
    out = capsys.readouterr().out
    assert out.startswith("yellow  main: no number can be given: no list knows a model 'claude-sonet-4-5' (is the ")
    show_capacity(None, "claude-sonnet-4-5", None, None, as_json=False)
    assert "no list knows" not in capsys.readouterr().out


def test_json_has_one_object_and_the_same_figures(spent, capsys):
    show_budgets(None, "account,key:c*", None, check=False, as_json=True)
    budgets = {row["name"]: row for row in json.loads(capsys.readouterr().out)["budgets"]}
    assert {name: row["used"] for name, row in budgets.items()} == {
        "account:main * output_tokens day": 3_000, "key:ci * output_tokens month": 3_000,
    }  # fmt: skip
    show_forecast(None, "key", as_json=True)
    (forecast,) = json.loads(capsys.readouterr().out)["forecasts"]
    assert (forecast["name"], forecast["used"]) == ("key:ci * output_tokens month", 3_000)
    show_capacity(None, "claude-sonnet-4-5", "main", "ci", as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["capacity"]
    assert row["light"] in {"green", "yellow", "red"}
    assert "key:ci * output_tokens month" in {each["limit"] for each in row["by_limit"]}


def test_a_check_fails_when_a_budget_is_spent_or_used_so_far(spent, capsys):
    show_budgets(None, "", None, check=True, as_json=False)
    with pytest.raises(LimitError, match=r"^key:ci output tokens/month is 75 % used: 3,000 of 4,000, resets in ") as at:
        show_budgets(None, "", 75, check=True, as_json=False)
    assert at.value.retry_after_s > 0
    show_budgets(None, "", 76, check=True, as_json=False)
    with pytest.raises(LimitError, match=r"^run:two requests in all is spent: 2 of 2, never resets$"):
        show_budgets(None, "run", None, check=True, as_json=False)
    with pytest.raises(CallerError, match="--at 80 is for --check"):
        show_budgets(None, "", 80, check=False, as_json=False)
    with pytest.raises(CallerError, match="'planet'"):
        show_budgets(None, "planet", None, check=False, as_json=False)


def test_exit_codes_are_75_for_spent_and_2_for_what_was_asked_wrongly(spent, monkeypatch, capsys):
    def code(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["headgate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert code("budget", "--check") == 0
    assert code("budget", "--check", "--scope", "run:two") == 75
    assert code("budget", "--check", "--at", "101") == 2
    assert code("capacity", "--model", "llama") == 2
    assert code("forecast", "--scope", "planet") == 2
    assert code("reserve", "create", "run:x", "--of", "account:main", "--usd", "1", "--until", "1h") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_reservation_is_made_listed_and_cancelled(spent, monkeypatch, capsys):
    def say(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["headgate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        assert not ended.value.code, out.err
        return out.out

    of = ("--of", "account:main", "--dimension", "output_tokens")
    made = say("reserve", "create", "run:night", *of, "--amount", "2000", "--until", "2h")
    assert ": 2,000 of account:main output tokens/day set aside for run:night from " in made
    plan = made.split(":")[0]
    (row,) = json.loads(say("reserve", "list", "--json"))["reservations"]
    assert (row["id"], row["free"], row["until"] > row["from"]) == (plan, 2_000, True)
    assert plan in say("reserve", "list")
    for question in ("budget", "limits"):
        head, *rows = say(question).splitlines()
        assert "set aside" in head
        (row,) = [row for row in rows if "output tokens" in row and "account" in row]
        assert {"5,000", "2,000"} <= set(row.split())
    assert say("reserve", "cancel", plan).startswith(f"cancelled {plan}")
    assert say("reserve", "list") == "nothing is reserved\n"
    assert "set aside" not in say("budget") + say("limits")


def test_a_check_of_a_key_that_is_not_there_is_a_usage_error(spent, monkeypatch, capsys):
    """`budget --check --at 90 --scope key:nope || exit 0` always went on: a slip of the pen, and the guard is gone."""

    def code(*scopes: str) -> int:
        monkeypatch.setattr("sys.argv", ["headgate", "budget", "--check", "--scope", ",".join(scopes)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    (spent / "headgate.toml").write_text(CONFIG + '[[key]]\nname = "free"\nteam = "lab"\n')
    for scope, there in (
        ("key:nope", "there are: key:ci, key:free"),
        ("key:cii*", "there are: key:ci, key:free"),
        ("account:nope", "there are: account:main"),
        ("team:nope", "there are: team:lab"),
        ("tag:a=b", "no tag has one"),
        ("agent:a1|key:ci", "no agent has one"),
        ("run:x|key:nope", "there are: key:ci, key:free"),
    ):
        assert code("key:ci", scope) == 2, scope
        assert (
            capsys.readouterr().err == f"headgate: --scope {scope}: nothing is configured or in use for it; {there}\n"
        )
    # A key without a budget of its own has spent none; of runs, any may come, and each has its budget.
    for scope in ("key:free", "team:lab", "run:to-come", "run:to-come|key:ci", "run:t*", "agent", "key:c*"):
        assert code(scope) == (75 if scope == "run:t*" else 0), scope


@pytest.mark.parametrize("command", ["limits", "forecast", "budget"])
def test_a_slip_in_a_name_is_no_answer_that_there_is_no_limit(spent, monkeypatch, capsys, command):
    def asked(scope: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["headgate", command, "--scope", scope])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    code, told = asked("key:ci,account:zzz")
    assert code == 2
    assert "--scope account:zzz: nothing is configured or in use for it; there are: account:main" in told
    code, told = asked("account:main,key:nosuch")
    assert code == 0
    assert "--scope key:nosuch: nothing is known of such a key" in told
    for known in ("account:m*", "key:ci", "account,key", "run:to-come"):
        code, told = asked(known)
        assert code == 0
        assert "nothing is" not in told


def test_a_check_of_a_scope_whose_name_is_empty_is_a_usage_error(spent, monkeypatch, capsys):
    """`budget --check --scope "run:$RUN"` in a script that never set RUN always passed, as did `--scope "$SCOPE"`."""

    def told(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["headgate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return capsys.readouterr().err

    named = "expected a name of 1 to 200 letters (A to Z), digits and . _ - : @ / # + = after run:; all of a kind are"
    assert told("budget", "--check", "--scope", "run:") == f"headgate: scope='run:': {named} 'run'\n"
    assert "scope='': expected some of account, " in told("budget", "--check", "--scope", "key:ci,")
    for command in ("budget", "limits", "forecast"):
        assert told(command, "--scope", "").startswith("headgate: --scope has no value: expected kinds of scopes")
    assert told("capacity", "--model", "").startswith("headgate: --model has no value: expected a model such as ")


def test_the_limits_of_a_pattern_of_accounts_are_there_before_the_first_call(tmp_path, monkeypatch, capsys):
    """`limits` said that none was configured, and `reserve create` had none to carve out of."""
    monkeypatch.chdir(tmp_path)
    accounts = CONFIG.partition("[[limit]]")[0]
    exact = '[[limit]]\nscope = "account:main"\nrequests_per_day = 7\n'
    (tmp_path / "headgate.toml").write_text(
        f'{accounts}[[limit]]\nscope = "account:*"\nrequests_per_day = 9\nusd_per_day = 1\n{exact}'
    )
    show_limits(None, as_json=True)
    shown = {row["name"]: row["amount"] for row in json.loads(capsys.readouterr().out)["limits"]}
    assert shown == {"account:main * micro_usd day": 1_000_000, "account:main * requests day": 7}
    wish = ReservationWish("run:a", "1h", of="account:main", dimension="micro_usd", usd=Decimal("0.8"))
    create_reservation(None, wish, as_json=True)
    assert json.loads(capsys.readouterr().out)["amount"] == 800_000
