"""Commands as agents: what they do with nothing but their environment is theirs in the ledger, and bounded."""

import json
import sys
from pathlib import Path

from real_headgate import counted, differences

AGENT = str(Path(__file__).with_name("urllib_agent.py"))
LIMITS = """
[[limit]]
scope = "key:*"
requests_per_lifetime = 2
"""


def test_each_command_has_a_key_of_its_own_that_is_attributed_and_limited(bench, tmp_path):
    provider = bench.provider("--first-token-s", "0.01", "--tokens-per-second", "5000")
    bench.configure(provider.url, LIMITS)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"name": "north", "calls": 1}\n{"name": "south", "calls": 3}\n')
    run = bench.start("run", str(tasks), "--json", "--", sys.executable, AGENT, "{calls}")
    assert run.ended() == 0, run.complained
    jobs = {job["name"]: job for job in bench.select("SELECT * FROM jobs")}
    assert {name: (job["state"], job["exit_code"]) for name, job in jobs.items()} == {
        "north": ("done", 0),
        "south": ("done", 0),
    }
    assert jobs["north"]["output"].split() == ["200"]
    assert jobs["south"]["output"].splitlines() == ["200", "200", "429 rate_limit_error false"]
    (run_id,) = {job["run"] for job in jobs.values()}
    usage = bench.ask("usage", "--by", "run,agent,key")
    assert [(row["run"], row["agent"], row["key"], row["requests"]) for row in usage["groups"]] == [
        (run_id, "north", f"{run_id}/0.1", 1),
        (run_id, "south", f"{run_id}/1.1", 2),
    ]
    assert differences(bench, provider) == []
    assert counted(provider)["requests_received"] == 3
    assert bench.select("SELECT id FROM keys WHERE revoked_s IS NULL") == [], "a key ends with its attempt"


def test_jobs_that_failed_are_run_again_once_their_cause_is_mended(bench, tmp_path):
    bench.configure("http://127.0.0.1:9")  # no agent here makes a call
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"name": "north", "needs": "/"}\n{"name": "south", "needs": "mended"}\n')
    run = bench.start("run", str(tasks), "--attempts", "1", "--json", "--", "test", "-e", "{here}/{needs}")
    assert run.ended() == 1, run.complained
    report = json.loads(run.said)
    (tmp_path / "mended").touch()
    again = bench.start("resume", report["run"], "--retry-failed", "--json")
    assert again.ended() == 0, again.complained
    assert json.loads(again.said)["jobs"] == {"done": 2, "failed": 0, "running": 0, "queued": 0}
    jobs = bench.select("SELECT name, attempt, most_attempts FROM jobs ORDER BY job_index")
    assert [tuple(job.values()) for job in jobs] == [("north", 1, 1), ("south", 2, 2)]


def test_each_runs_agents_begin_with_a_budget_of_their_own_and_one_that_spent_it_is_not_tried_again(bench, tmp_path):
    """Three runs of one list of tasks spent one budget, and an agent without any was tried three times for nothing."""
    provider = bench.provider("--first-token-s", "0.01", "--tokens-per-second", "5000")
    bench.configure(provider.url, LIMITS.replace("key:*", "agent:*"))
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"name": "north", "calls": 2}\n{"name": "south", "calls": 3}\n')
    fails_if_refused = "import runpy, sys; sys.stdout = sys.stderr; runpy.run_path(sys.argv[1])"
    fails_if_refused += "; sys.exit(int(sys.argv[2]) > 2)"
    words = (sys.executable, "-c", fails_if_refused.replace("sys.argv[1]", repr(AGENT)).replace("[2]", "[1]"))
    for night in range(2):
        run = bench.start("run", str(tasks), "--json", "--", *words, "{calls}")
        assert run.ended() == 1, run.complained
        report = json.loads(run.said)
        north, south = report["agents"]
        assert (north["state"], north["attempts"], north["requests"]) == ("done", 1, 2), f"night {night}"
        assert (south["state"], south["attempts"], south["requests"]) == ("failed", 1, 2), f"night {night}"
        limit = f"2 requests in all for agent:south in run:{report['run']}"
        assert south["error"].startswith(f"limit reached: {limit}; ")
        assert "(the agent then ended with: exit code 1: 429 rate_limit_error false)" in south["error"]
        assert [(shown["scope"], shown["used"]) for shown in report["limits"]] == [
            (f"agent:south|run:{report['run']}", 2)
        ], "the limit that ended the failed job, and no other agent's"
