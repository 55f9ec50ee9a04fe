"""`headgate runs` and `resume`: a run is found, shown and thrown away, and what cannot be is said with a way out."""

import asyncio
import json
from pathlib import Path

import pytest

from headgate.adapters.owners import owner_name
from headgate.adapters.sqlite.stores import open_database
from headgate.cli.running import RunSettings, find_run
from headgate.cli.runs import delete_run, nothing_to_do, show_run, show_runs
from headgate.core.errors import CallerError
from headgate.core.jobs import Claimed, Event, Failed, Job
from headgate.core.ledger import Attempt
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.ports import Run

NOW_S = 1_780_000_000.0
FAR_S = 4_000_000_000.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder whose configuration names a store of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "headgate.toml").write_text('[store]\nurl = "sqlite:///headgate.sqlite"\n')
    return tmp_path / "headgate.sqlite"


def keep(store: Path, run: str, *events: Event, jobs: int = 2) -> Path:
    """Keep a run whose first job had these events, with one call in the ledger; give its folder."""
    runs = store.parent / "runs"
    settings = json.dumps({"tasks": "tasks.jsonl", "command": [], "folder": str(runs)})
    assert RunSettings.of(settings).folder == str(runs)
    call = Attempt(
        id=f"call-{run}", call=f"call-{run}", attempt=1, owner="o", scopes=Scopes(run=run, agent="job 0"),
        endpoint="/v1/messages", model="m", queued_s=NOW_S, admitted_s=NOW_S, usage=Usage(input_tokens=5),
    )  # fmt: skip

    async def write() -> None:
        async with open_database(store) as stores:
            await stores.jobs.add_run(Run(run, NOW_S, settings), [Job(run, n, f"job {n}", "{}") for n in range(jobs)])
            for event in events:
                await stores.jobs.step(run, 0, event, NOW_S)
            await stores.ledger.begin(call)

    asyncio.run(write())
    agent = runs / run / "agents" / "000000-job-0"
    agent.mkdir(parents=True)
    (agent / "attempt-1.err").write_text("what went wrong")
    return runs / run


def kept(store: Path, run: str) -> tuple[int, int]:
    """Count the jobs and the ledger's rows of a run."""

    async def read() -> tuple[int, int]:
        async with open_database(store) as stores:
            return len(await stores.jobs.jobs(run)), len(await stores.ledger.attempts(run))

    return asyncio.run(read())


def test_a_deleted_run_takes_its_output_along_and_leaves_its_spend(store, capsys):
    folder, other = keep(store, "aaa"), keep(store, "bbb")
    delete_run("aaa", None, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"deleted": "aaa", "jobs": 2, "folder": str(folder)}
    assert (folder.exists(), other.exists()) == (False, True)
    assert (kept(store, "aaa"), kept(store, "bbb")) == ((0, 1), (2, 1))
    show_runs(None, as_json=True)
    assert [row["run"] for row in json.loads(capsys.readouterr().out)["runs"]] == ["bbb"]


def test_a_run_that_is_alive_is_not_deleted(store):
    folder = keep(store, "aaa", Claimed(owner_name(), FAR_S))
    with pytest.raises(CallerError, match=r"run aaa is alive: a runner holds leases .* until .* UTC"):
        delete_run("aaa", None, as_json=False)
    assert folder.exists()
    assert kept(store, "aaa") == (2, 1)


def test_a_run_whose_runner_was_killed_can_be_deleted_at_once(store):
    host, _pid, start, number = owner_name().split(":")
    folder = keep(store, "aaa", Claimed(f"{host}:{2**22 + 1}:{start}:{number}", FAR_S))  # no process has this id
    delete_run("aaa", None, as_json=False)
    assert not folder.exists()


def test_a_run_without_a_folder_is_deleted_too(store):
    keep(store, "aaa")
    (store.parent / "runs").rename(store.parent / "elsewhere")
    delete_run("aaa", None, as_json=False)
    assert kept(store, "aaa") == (0, 1)


def test_a_run_is_shown_with_its_failed_jobs_logs(store, capsys):
    keep(store, "aaa", Claimed("o", FAR_S), Failed(1, "exit code 1", retryable=False))
    show_run("aaa", None, as_json=False)
    text = capsys.readouterr().out
    assert "job 0 failed: exit code 1" in text
    assert "log runs/aaa/agents/000000-job-0/attempt-1.err" in text
    assert "unfinished" in text
    show_run("aaa", None, as_json=True)
    shape = json.loads(capsys.readouterr().out)
    assert [agent.get("log") for agent in shape["agents"]] == [
        str(store.parent / "runs/aaa/agents/000000-job-0/attempt-1.err"), None,
    ]  # fmt: skip
    assert (shape["run"], shape["tasks"], shape["jobs"]["failed"]) == ("aaa", "tasks.jsonl", 1)


def test_the_jobs_of_a_dead_runner_are_to_do_again_wherever_they_are_counted(store, capsys):
    """The table said running, the line below it that they were to do."""
    host, _pid, start, number = owner_name().split(":")
    keep(store, "aaa", Claimed(f"{host}:{2**22 + 1}:{start}:{number}", FAR_S))
    keep(store, "bbb", Claimed(owner_name(), FAR_S))
    show_run("aaa", None, as_json=False)
    text = capsys.readouterr().out
    assert "running" not in text
    assert "0 done, 0 failed, 2 queued\n" in text
    assert any(line.strip().endswith("resume aaa") for line in text.splitlines()), "a line of its own, to be copied"
    show_run("bbb", None, as_json=False)
    text = capsys.readouterr().out
    assert "0 done, 0 failed, 1 running, 1 queued\n" in text
    assert "a runner is at work on it\n" in text
    assert "resume" not in text
    show_runs(None, as_json=True)
    assert {row["run"]: row["jobs"] for row in json.loads(capsys.readouterr().out)["runs"]} == {
        "aaa": {"queued": 2}, "bbb": {"running": 1, "queued": 1},
    }  # fmt: skip


def test_a_run_of_which_only_failed_jobs_are_left_says_how_to_try_them_again(store, capsys):
    keep(store, "aaa", Claimed("o", FAR_S), Failed(1, "exit code 1", retryable=False), jobs=1)
    keep(store, "bbb")
    assert nothing_to_do("bbb", None, retry_failed=False) is None
    assert nothing_to_do("aaa", None, retry_failed=True) is None
    assert capsys.readouterr().err == ""
    assert nothing_to_do("aaa", None, retry_failed=False) == 1
    said = capsys.readouterr().err
    assert "nothing is left to do in run aaa: 0 done, 1 failed; to try what failed again:\n" in said
    assert said.endswith("resume aaa --retry-failed\n")


def complaint(run: str) -> str:
    with pytest.raises(CallerError) as caught:
        asyncio.run(find_run(run, None))
    return str(caught.value)


def test_a_run_that_is_not_found_names_the_store_its_runs_and_the_way_to_another(store):
    for number in range(7):
        keep(store, f"run-{number}", jobs=0)
    said = complaint("zzz")
    assert f"no run 'zzz' in the store {store}, which has the runs run-0," in said
    assert "run-4 and 2 more" in said
    assert "run-5" not in said
    assert "--config" in said


def test_where_there_is_no_store_that_is_said(store):
    assert f"there is no store {store} or {store.parent}/.headgate/headgate.sqlite" in complaint("zzz")
    assert not store.exists()
