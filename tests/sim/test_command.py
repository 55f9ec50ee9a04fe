"""`headgate simulate` as a user calls it."""

import gzip
import io
import json
import os
import re
import subprocess
import sys

import pytest

from headgate.cli.simulation.progress import Progress
from headgate.sim.simulation import Scenario

ARENA = "req_time_s,client,prompt_len,output_len\n" + "".join(
    f"{number / 4},{number % 3},{400 + number},{30 + number % 7}\n" for number in range(60)
)
CONFIG = """
[[account]]
name = "main"
provider = "anthropic"
api_key = "env:NOT_SET_ANYWHERE"
[[limit]]
scope = "account:main"
input_tokens_per_minute = 20_000
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "arena.csv").write_text(ARENA)
    (tmp_path / "headgate.toml").write_text(CONFIG)
    return tmp_path


def simulate(place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headgate", "simulate", *arguments],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "120"},
    )


def test_policies_side_by_side_the_same_each_time(place):
    asked = [
        "arena.csv",
        "--json",
        "--limits-scale",
        "1",
        "--limits-scale",
        "2",
        "--policy",
        "fifo",
        "--policy",
        "fair",
    ]
    first, again = (simulate(place, *asked, "--html", "page.html") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    told = json.loads(first.stdout)
    assert [each["name"] for each in told["scenarios"]] == ["fifo", "fifo, limits x2", "fair", "fair, limits x2"]
    assert all(each["figures"]["served"] == 60 for each in told["scenarios"])
    waits = [each["figures"]["waits"]["batch"]["p90_s"] for each in told["scenarios"]]
    assert waits[0] > 5 > waits[1]
    page = (place / "page.html").read_text()
    assert "fifo, limits x2" in page
    assert "uPlot" in page
    assert "%%" not in page.partition("<script>")[0]


def test_the_table_fits_the_terminal(place):
    done = simulate(place, "arena.csv", "--policy", "all")
    assert done.returncode == 0, done.stderr
    assert "429s from the provider" in done.stdout
    assert "adaptive" in done.stdout
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_what_goes_wrong_is_told_in_the_table_and_on_the_page(place):
    arguments = ["--outage", "5s:5s", "--provider-limits", "0.7", "--no-limit-headers", "--html", "page.html"]
    done = simulate(place, "arena.csv", "--policy", "fifo", *arguments)
    assert done.returncode == 0, done.stderr
    head = done.stdout.splitlines()[0]
    assert "seed 0; 0.7 times its limits enforced, outage (529) from 5 s for 5 s, no word of limits" in head
    assert len(done.stderr.splitlines()) == 1, "no warning that looks like a real one"
    rows = {line[:40].strip(): line[40:].split() for line in done.stdout.splitlines()}
    assert int(rows["other failures of the provider"][-1]) > 0
    assert "x overloaded_error" in done.stdout
    assert "learned: account:main" in done.stdout
    page = (place / "page.html").read_text()
    assert "outage (529) from 5 s for 5 s" in page
    assert '"provider_failures"' in page


def test_every_limit_is_plotted_and_what_is_the_same_is_said(place):
    (place / "headgate.toml").write_text(CONFIG + "output_tokens_per_minute = 30_000\nrequests_per_minute = 900\n")
    done = simulate(place, "arena.csv", "--policy", "fifo", "--policy", "priority", "--html", "page.html")
    assert done.stdout.splitlines()[-1] == "priority: the same in every figure as fifo"
    page = (place / "page.html").read_text()
    assert '<p class="alike">priority: the same in every figure as fifo</p>' in page
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    plotted = [f"account:main {what}/min" for what in ("input tokens", "requests", "output tokens")]
    assert sorted(data["plotted"][1:]) == sorted(plotted[1:])
    assert data["plotted"][0] == plotted[0], "the scarcest first"
    assert all(len(use) == len(each["at_s"]) for each in data["scenarios"] for use in each["uses"])
    alone = simulate(place, "arena.csv", "--policy", "fifo", "--html", "page.html")
    assert "the same" not in alone.stdout + (place / "page.html").read_text().partition("<main>")[0]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_a_page_as_any_file_of_its_owners(place, umask, mode):
    before = os.umask(umask)
    try:
        assert simulate(place, "arena.csv", "--html", "page.html").returncode == 0
    finally:
        os.umask(before)
    assert (place / "page.html").stat().st_mode & 0o777 == mode
    assert sorted(each.name for each in place.iterdir()) == ["arena.csv", "headgate.toml", "page.html"]


def test_recorded_sessions_have_no_hours(place):
    (place / "sessions").mkdir()
    done = simulate(place, "sessions", "--hours", "2")
    assert done.returncode == 2
    assert "--hours 2 is for traces that say when calls came" in done.stderr


def test_what_is_told_on_the_way_goes_to_stderr_and_is_one_line_where_nobody_watches(place):
    done = simulate(place, "arena.csv", "--policy", "fifo", "--policy", "fair", "--json")
    assert json.loads(done.stdout)
    assert re.fullmatch(r"headgate: 2 scenarios played in \d.*\n", done.stderr)


def test_who_watches_is_told_now_and_then_how_far_it_is(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now_s = 100.0
    monkeypatch.setattr("headgate.cli.simulation.progress.time.monotonic", lambda: now_s)
    out = Terminal()
    progress = Progress(2, out)
    progress.began(Scenario("fifo"))
    for played_s in (30.0, 60.0, 90.0, 4_000.0):
        now_s += 3.0
        progress.looked(played_s, 3_600.0, 1)
    progress.ended()
    assert out.getvalue().splitlines() == [
        "headgate: 1 of 2: fifo",
        "headgate: 1 of 2: fifo: 1 min of about 1 h, 1 call waiting",
        "headgate: 1 of 2: fifo: 1 h 7 min, 1 call waiting",
        "headgate: 2 scenarios played in 12 s",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("arena.csv", "--policy", "best"), "policy 'best' is not known"),
        (("broken.csv",), "broken.csv:2: prompt_len is missing"),
        (("nothing.csv",), "there is no such file or folder"),
        (("agents:0",), "expected agents:N or agents:N:HOURS"),
        (("arena.csv", "--speed", "0"), "--speed 0: expected a number"),
        (("arena.csv", "--outage", "soon"), "--outage soon: expected [ACCOUNT:]FROM:FOR[:KIND]"),
        (("arena.csv", "--outage", "second:1m:1m"), "account 'second' is not configured; expected one of main"),
        (("arena.csv", "--png", "x.svgx"), "--png x.svgx: it is written as PNG; expected a name that ends in .png"),
        (("arena.csv", "--key", "ci"), "--key ci: it is not configured"),
        (("arena.csv", "--html", "no/such/folder.html"), "--html no/such/folder.html: it cannot be written"),
        (
            ("arena.csv", "--png", "no/such/folder.png"),
            "--png no/such/folder.png: it cannot be written: there is no fol",
        ),
        (("arena.csv", "--html", "folder"), "--html folder: it cannot be written: it is a folder; name a file"),
        (("arena.csv", "--png", "folder.png"), "--png folder.png: it cannot be written: it is a folder; name a file"),
        (("",), "workload '': nothing is named; expected a trace, a folder"),
        (("session.jsonl.gz",), "session.jsonl.gz: it is a recorded session; give the folder that it is in"),
        (("agents:10:0.1", "--hours", "0.05"), "--hours 0.05 is for traces; say agents:10:0.05 instead"),
        (("agents:10:0.1", "--agents", "5"), "--agents 5 is for recorded sessions; say agents:5:0.1 instead"),
        (("arena.csv", "--agents", "5"), "--agents 5 is for recorded sessions; arena.csv says when its calls come"),
        (("agents:10", "--agents-scale", "0.01"), "--agents-scale 0.01: of 10 agents or calls that is none"),
        (
            ("agents:2:0.1", "--outage", "10m:2m"),
            "--outage: one begins after 10 min, and the workload ends after 6 min: nothing would be down",
        ),
        (
            ("arena.csv", "--provider-limits", "0.5", "--provider-limits", "0.8"),
            "--provider-limits 0.8: --provider-limits 0.5 says a factor of all accounts already",
        ),
        (("azure.csv",), "the call at line 3 comes 7,305.0 days after the one before it; give --hours N"),
        (("azure.csv", "--speed", "100"), "it goes over 73.0 days, and at most 31 are played"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(place, arguments, told):
    (place / "folder").mkdir()
    (place / "folder.png").mkdir()
    line = b'{"t": "2026-01-01T00:00:00Z", "type": "user", "content": "Hello"}\n'
    (place / "session.jsonl.gz").write_bytes(gzip.compress(line * 30))
    (place / "azure.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,40,10\n2043-11-16 18:17:03,40,10\n"
    )
    (place / "broken.csv").write_text("req_time_s,client,prompt_len,output_len\n1\n")
    done = simulate(place, *arguments)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert ".folder.html" not in done.stderr, "the name of the file that was to become it"


def test_a_trace_of_20_years_is_played_as_far_as_hours_say(place):
    (place / "azure.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,40,10\n2043-11-16 18:17:03,40,10\n"
    )
    done = simulate(place, "azure.csv", "--hours", "24", "--json")
    assert json.loads(done.stdout)["scenarios"][0]["figures"]["served"] == 1


def test_all_stands_for_every_policy_beside_others_too(place):
    """'all' was not known, and expected was one of ... all."""
    done = simulate(place, "arena.csv", "--policy", "fifo", "--policy", "all", "--json")
    names = [each["name"] for each in json.loads(done.stdout)["scenarios"]]
    assert names[0] == "fifo"
    assert len(names) == len(set(names)) > 5


def test_an_outage_after_the_end_of_a_trace_is_said(place):
    done = simulate(place, "arena.csv", "--outage", "3h:2m", "--json")
    assert json.loads(done.stdout)
    assert done.stderr.count("nothing was down") == 1
    during = simulate(place, "arena.csv", "--outage", "5s:2s", "--json")
    assert "nothing was down" not in during.stderr


def test_a_budget_of_a_run_that_refuses_most_calls_is_said_to_be_all_agents(place):
    """Each agent was thought to be a run of its own, and a cap on runs stopped everything."""
    run = '[[limit]]\nscope = "run:*"\nusd_per_day = 0.5\n'
    (place / "headgate.toml").write_text(CONFIG.replace("20_000", "900_000") + run)
    done = simulate(place, "agents:5:0.1")
    assert "all simulated agents are one run (run:simulated) and share it" in done.stderr
    (place / "headgate.toml").write_text(CONFIG.replace("20_000", "900_000") + run.replace("0.5", "500"))
    assert "run:simulated" not in simulate(place, "agents:5:0.1").stderr


def test_a_budget_too_small_for_a_calls_bound_says_what_was_really_spent(place):
    budget = '[[limit]]\nscope = "account:main"\nusd_per_day = 1.5\n'
    (place / "headgate.toml").write_text(CONFIG.replace("20_000", "900_000") + budget)
    done = simulate(place, "agents:5:0.2")
    (told,) = [line for line in done.stdout.splitlines() if "by account:main dollars/day" in line]
    spent = int(re.search(r"with (\d+) % spent", told)[1])
    assert f"refused calls though no more than {spent} % of it was spent" in done.stderr
    assert 'hold = "likely" beside the limit' in done.stderr
    cost = next(float(line.split("$")[1]) for line in done.stdout.splitlines() if line.startswith("cost  "))
    assert spent == pytest.approx(100 * cost / 1.5, abs=1)


def test_pages_say_how_many_calls_were_served_and_how_many_times_the_agents(place):
    done = simulate(place, "arena.csv", "--agents-scale", "1", "--agents-scale", "2", "--html", "page.html")
    assert done.stdout.splitlines()[0] == "arena.csv, 60 calls, 1 and 2 times the agents, seed 0"
    page = (place / "page.html").read_text()
    assert "simulated, 1 and 2 times the agents, seed 0" in page
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert [(each["served_calls"], each["programs_done"]) for each in data["scenarios"]] == [(60, 60), (120, 120)]
    assert 'id="done-bars"' in page


def test_a_page_that_cannot_be_written_does_not_take_the_table_along(place):
    done = simulate(place, "arena.csv", "--html", "a" * 300)
    assert done.returncode == 2
    assert "it cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "calls offered" in done.stdout


def test_a_picture_needs_the_extra(place):
    pytest.importorskip("matplotlib")
    done = simulate(place, "arena.csv", "--png", "picture.png")
    assert done.returncode == 0, done.stderr
    assert (place / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_extra_it_says_so(place):
    (place / "matplotlib").mkdir()
    (place / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    env = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-m", "headgate", "simulate", "arena.csv", "--png", "picture.png"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert done.returncode == 2
    assert "pip install 'headgate[plot]'" in done.stderr


def test_limits_that_only_429s_tell_make_few_429s(place):
    """A call of a long answer went again at the instant at which it was refused: of a stream little is held."""
    (place / "headgate.toml").write_text(CONFIG.partition("[[limit]]")[0])
    limits = "requests_per_minute=1000,input_tokens_per_minute=225000,output_tokens_per_minute=6000"
    played = simulate(place, "agents:5:0.25", "--provider-limits", limits, "--no-limit-headers", "--json")
    assert played.returncode == 0, played.stderr
    (column,) = json.loads(played.stdout)["scenarios"]
    assert column["figures"]["served"] > 100
    assert column["figures"]["answered_429"] < 60


@pytest.mark.parametrize("faults", [("--fault", "529=0.05", "--outage", "5m:2m")])
def test_the_same_seed_gives_the_same_answer_whatever_python_hashes(place, faults):
    def answer(seed: str) -> str:
        asked = [sys.executable, "-m", "headgate", "simulate", "agents:20:0.3", "--policy", "fair", "--json", *faults]
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(asked, cwd=place, env=environ, capture_output=True, text=True, check=True).stdout

    assert len({answer(seed) for seed in "0123"}) == 1
