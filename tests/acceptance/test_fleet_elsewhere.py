"""A fleet whose gateway runs elsewhere: another process, with another store, that alone has the provider's key."""

import json
import sys
from pathlib import Path

import pytest
import real_headgate
from real_headgate import bench_in, counted, differences, send, wait_until

AGENT = str(Path(__file__).with_name("urllib_agent.py"))
LIMITS = """
[[limit]]
scope = "run:*"
usd_per_lifetime = 5
"""

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
api_key = "env:NOT_IN_THE_RUNNERS_ENVIRONMENT"
"""


@pytest.fixture
def runner(tmp_path):
    """Give the side of the runner, which has no provider's key and needs none."""
    folder = tmp_path / "runner"
    folder.mkdir()
    with bench_in(folder) as made:
        made.config.write_text(CONFIG)
        yield made


@pytest.fixture
def gateway_side(bench, monkeypatch):
    """Give the side of the gateway, with a key `ci` that the runner's environment holds, limited to 20 calls."""
    provider = bench.provider("--first-token-s", "0.05", "--tokens-per-second", "5000")
    bench.configure(provider.url, LIMITS)
    made = bench.ask("keys", "create", "ci", "--limit", "requests_per_lifetime=20")
    monkeypatch.setitem(real_headgate.ENVIRON, "HEADGATE_KEY", made["key"])
    return bench, provider


def _tasks(folder, **calls):
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps({"name": name, "calls": count}) + "\n" for name, count in calls.items()))
    return str(path)


def _by_agent(bench):
    rows = bench.ask("usage", "--by", "key,run,agent")["groups"]
    return {row["agent"]: (row["key"], row["run"], row["requests"]) for row in rows}


def test_each_agent_is_told_apart_and_all_of_them_share_what_the_runners_key_has(gateway_side, runner):
    bench, provider = gateway_side
    gateway = bench.serve()
    tasks = _tasks(runner.folder, north=9, south=14)
    run = runner.start("run", tasks, "--gateway", gateway.url, "--json", "--", sys.executable, AGENT, "{calls}")
    assert run.ended() == 0, run.complained
    report = json.loads(run.said)
    of_agents = {agent["name"]: agent["requests"] for agent in report["agents"]}
    assert _by_agent(bench) == {name: ("ci", report["run"], count) for name, count in of_agents.items()}
    assert sum(of_agents.values()) == report["total"]["requests"] == 20, "the key's limit holds over its children"
    refused = [job["output"].count("429 ") for job in runner.select("SELECT output FROM jobs")]
    assert sum(refused) == 3
    shown = {(limit["scope"], limit["dimension"]): limit["level_used"] for limit in report["limits"]}
    assert shown == {
        ("key:ci", "requests"): 20,
        (f"run:{report['run']}|key:ci", "micro_usd"): report["total"]["cost_micro_usd"],
    }
    assert Path(report["page"]).is_file()
    assert bench.select("SELECT id FROM keys WHERE fleet = 1 AND revoked_s IS NULL") == [], "they end with the run"
    assert differences(bench, provider) == []

    other = bench.ask("keys", "create", "other")["key"]
    books = send(gateway.url, "GET", f"/api/v1/runs/{report['run']}/attempts", headers={"x-api-key": other})
    assert books.json() == {"attempts": [], "next": None}


def test_killed_on_both_sides_it_goes_on_where_it_was(gateway_side, runner):
    bench, provider = gateway_side
    gateway = bench.serve()
    tasks = _tasks(runner.folder, a=3, b=3, c=3, d=3)
    command = ("--agents", "2", "--gateway", gateway.url, "--json", "--", sys.executable, AGENT, "{calls}")
    run = runner.start("run", tasks, *command)
    wait_until(lambda: bench.select("SELECT id FROM attempts WHERE state = 'done'")[3:] or not run.runs)
    assert run.runs, run.complained
    run.kill()
    gateway.kill()
    (run_id,) = {job["run"] for job in runner.select("SELECT run FROM jobs")}

    away = runner.start("resume", run_id, "--json")
    assert away.ended() == 2
    assert f"--gateway {gateway.url}: " in away.complained, "a gateway that is not there is told in one line"
    bench.serve("--listen", gateway.url.removeprefix("http://"))
    again = runner.start("resume", run_id, "--json")
    assert again.ended() == 0, again.complained
    report = json.loads(again.said)
    assert report["jobs"] == {"done": 4, "failed": 0, "running": 0, "queued": 0}
    found = _by_agent(bench)
    assert {name: (key, run) for name, (key, run, _) in found.items()} == dict.fromkeys("abcd", ("ci", run_id))
    rows = bench.select("SELECT state FROM attempts")
    assert report["total"]["requests"] == len(rows) >= 12
    # What was admitted when the gateway was killed may not have left: one call for each of two agents.
    assert 0 <= len(rows) - counted(provider)["requests_received"] <= 2
    assert {row["state"] for row in rows} <= {"done", "cancelled", "reconciled"}
    left = bench.select("SELECT expires_s - created_s AS life_s FROM keys WHERE fleet = 1 AND revoked_s IS NULL")
    assert len(left) <= 2, "only those of the agents that were killed"
    assert all(0 < key["life_s"] < 2 * 86_400 for key in left), "and they end by themselves"


@pytest.mark.parametrize("secret", [None, "hg-0-0"])
def test_a_key_that_is_missing_or_wrong_is_told_before_anything_runs(gateway_side, runner, monkeypatch, secret):
    bench, _ = gateway_side
    gateway = bench.serve()
    monkeypatch.delitem(real_headgate.ENVIRON, "HEADGATE_KEY")
    if secret is not None:
        monkeypatch.setitem(real_headgate.ENVIRON, "HEADGATE_KEY", secret)
    tasks = _tasks(runner.folder, a=1)
    run = runner.start("run", tasks, "--gateway", gateway.url, "--", sys.executable, AGENT, "{calls}")
    assert run.ended() == 2
    assert "answered 401" in run.complained
    assert "HEADGATE_KEY" in run.complained
    assert runner.select("SELECT run FROM jobs") == []
