"""Commands as agents: what they do with nothing but their environment is theirs in the ledger, and bounded."""

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
