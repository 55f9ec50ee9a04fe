"""A fleet replays recordings under limits that are too small for it, and is killed on the way: everything adds up."""

import json

from real_headgate import Bench, Process, counted, differences, wait_until
from small_recordings import SESSIONS, TURNS, write_recordings

REQUESTS_PER_MINUTE = 1_800


def limited_provider(bench: Bench, folder: str) -> Process:
    """Start a provider whose bucket holds a second's requests; Headgate keeps to four fifths of that depth."""
    provider = bench.provider(
        *("--sessions", folder, "--requests-per-minute", str(REQUESTS_PER_MINUTE)),
        *("--input-tokens-per-minute", "2000000", "--burst-s", "1", "--first-token-s", "0.02"),
        *("--tokens-per-second", "2000"),
    )
    bench.configure(
        provider.url,
        f"""
[[limit]]
scope = "account:main"
requests_per_minute = {REQUESTS_PER_MINUTE}
input_tokens_per_minute = 2_000_000
burst_s = 0.8
""",
    )
    return provider


def whole_replays(bench: Bench) -> dict[str, list[int]]:
    """Give, by session, the attempts that had all their turns answered."""
    rows = bench.select("SELECT session, count(*) AS calls FROM attempts WHERE state = 'done' GROUP BY session")
    found: dict[str, list[int]] = {}
    for row in rows:
        name, _, attempt = row["session"].partition("#")
        if row["calls"] == TURNS:
            found.setdefault(name, []).append(int(attempt or 1))
    return found


def test_a_run_completes_without_a_429_and_the_ledger_is_the_providers_truth(bench, tmp_path):
    folder = str(write_recordings(tmp_path / "sessions"))
    provider = limited_provider(bench, folder)
    run = bench.start("run", folder, "--agents", "8", "--json")
    assert run.ended() == 0, run.complained
    report = json.loads(run.said)
    assert report["jobs"] == {"done": SESSIONS, "failed": 0, "running": 0, "queued": 0}
    assert differences(bench, provider) == []
    total = counted(provider)
    assert (total["requests_served"], total["requests_refused"]) == (SESSIONS * TURNS, 0)
    usage = bench.ask("usage", "--by", "run,state")
    assert [(row["run"], row["state"], row["requests"]) for row in usage["groups"]] == [
        (report["run"], "done", SESSIONS * TURNS)
    ]
    written = total["cache_write_5m_tokens"] + total["cache_write_1h_tokens"]
    assert usage["total"]["cache_write_tokens"] == written > 0
    assert usage["total"]["wait_ms"] > 0, "the limits were too small for eight agents at once"
    assert whole_replays(bench) == {f"session-{number}": [1] for number in range(SESSIONS)}


def test_a_run_that_is_killed_twice_and_resumed_loses_nothing_and_does_nothing_twice(bench, tmp_path):
    folder = str(write_recordings(tmp_path / "sessions"))
    provider = limited_provider(bench, folder)
    arguments = ("run", folder, "--agents", "3")
    done_before: dict[str, tuple[int, float]] = {}
    for requests in (15, 42):
        runner = bench.start(*arguments, "--json")
        wait_until(
            lambda runner=runner, most=requests: counted(provider)["requests_received"] >= most or not runner.runs
        )
        assert runner.runs, runner.complained
        runner.kill()
        done = bench.select("SELECT name, attempt, ended_s FROM jobs WHERE state = 'done'")
        done_before |= {job["name"]: (job["attempt"], job["ended_s"]) for job in done}
        (run,) = bench.select("SELECT id FROM runs")
        arguments = ("resume", run["id"])
    last = bench.start(*arguments, "--json")
    assert last.ended() == 0, last.complained
    assert json.loads(last.said)["jobs"] == {"done": SESSIONS, "failed": 0, "running": 0, "queued": 0}
    assert differences(bench, provider) == []
    assert counted(provider)["requests_refused"] == 0
    assert done_before, "the second kill comes when some sessions have ended"
    jobs = {job["name"]: job for job in bench.select("SELECT name, attempt, ended_s FROM jobs")}
    assert {name: (jobs[name]["attempt"], jobs[name]["ended_s"]) for name in done_before} == done_before
    whole = whole_replays(bench)
    assert all(job["attempt"] in whole[name] for name, job in jobs.items())
    assert {name: whole[name] for name in done_before} == {name: [jobs[name]["attempt"]] for name in done_before}
    states = {row["state"] for row in bench.select("SELECT DISTINCT state FROM attempts")}
    assert states <= {"done", "reconciled"}
    assert bench.select("SELECT name FROM levels WHERE name LIKE 'hold/%'") == []
