"""`headgate runs`: what runs a store has, what became of one, and how one is thrown away.

One rule: to look changes nothing; to delete takes jobs and output, and never a row of the ledger.
"""

import asyncio
import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headgate.adapters.owners import owner_is_alive
from headgate.cli.report import RunReport, as_json, figures_of, print_report
from headgate.cli.running import (
    EXIT_DONE,
    EXIT_FAILED,
    Found,
    RunSettings,
    find_run,
    resume_command,
    stores_of_runs,
)
from headgate.cli.tables import open_console
from headgate.compose import WallClock, open_stores
from headgate.core.errors import CallerError, StoreError
from headgate.core.jobs import FINAL, Job, OwnerDied, step
from headgate.gateway.parameters import rfc3339
from headgate.ports import Run
from headgate.runtime.fleet import free_of_the_dead


def show_runs(config_path: Path | None, *, as_json: bool) -> None:
    """Print the runs of the store, newest first."""
    shape = asyncio.run(_list_runs(config_path))
    if as_json:
        _say(json.dumps({"runs": shape}))
        return
    if not shape:
        _say("no runs; start one with `headgate run`")
    for row in shape:
        counts = ", ".join(f"{count} {state}" for state, count in row["jobs"].items())
        _say(f"{row['run']}  {row['created']}  {counts}  {row['tasks']}")


def show_run(run_id: str, config_path: Path | None, *, as_json: bool) -> None:
    """Print what became of a run so far: its report, and where each failed job's log is.

    Raises:
        CallerError: there is no such run.
    """
    asyncio.run(_show_run(run_id, config_path, json_wanted=as_json))


def delete_run(run_id: str, config_path: Path | None, *, as_json: bool) -> None:
    """Delete a run with its jobs and its folder.

    Raises:
        CallerError: there is no such run, or it is alive.
        StoreError: it is deleted, but its folder cannot be.
    """
    shape = asyncio.run(_delete_run(run_id, config_path))
    if as_json:
        _say(json.dumps(shape))
    else:
        _say(f"deleted run {run_id}: {shape['jobs']} jobs and {shape['folder']}; what it used stays in the ledger")


async def _list_runs(config_path: Path | None) -> list[dict[str, Any]]:
    rows = []
    for config in stores_of_runs(config_path):
        async with open_stores(config) as stores:
            for run in await stores.jobs.runs():
                counts: dict[str, int] = {}
                for job in map(as_it_stands, await stores.jobs.jobs(run.id)):
                    counts[job.state] = counts.get(job.state, 0) + 1
                rows.append({**_head(run, RunSettings.of(run.settings)), "jobs": counts})
    return rows


async def _show_run(run_id: str, config_path: Path | None, *, json_wanted: bool) -> None:
    found = await find_run(run_id, config_path)
    async with open_stores(found.config) as stores:
        jobs = [as_it_stands(job) for job in await stores.jobs.jobs(run_id)]
        calls = await stores.ledger.attempts(run_id)
    is_open = any(job.state in ("queued", "running") for job in jobs)
    is_alive = any(job.state == "running" for job in jobs)
    figures = figures_of(RunReport(run_id, jobs, calls, why="unfinished" if is_open else "finished"))
    page = found.folder / "report.html"
    if json_wanted:
        _say(json.dumps({**as_json(figures, found.folder), **_head(found.run, found.settings)}))
    else:
        print_report(
            figures,
            open_console(),
            folder=found.folder,
            page=str(page) if page.exists() else None,
            resume=resume_command(run_id, _config_of(found, config_path)),
            alive=is_alive,
        )


def _config_of(found: Found, config_path: Path | None) -> str | None:
    return str(config_path) if config_path is not None else found.settings.config


def as_it_stands(job: Job) -> Job:
    """Give a job as the next runner will find it: what a runner that died was at work on is to do again."""
    if job.state != "running" or job.owner is None or owner_is_alive(job.owner):
        return job
    return step(job, OwnerDied(job.attempt), job.lease_until_s)[0]


def nothing_to_do(run_id: str, config_path: Path | None, *, retry_failed: bool) -> int | None:
    """Say so where a run has no job left to work on, and give the exit code; None where there is something to do.

    Raises:
        CallerError: there is no such run.
    """
    return asyncio.run(_nothing_to_do(run_id, config_path, retry_failed=retry_failed))


async def _nothing_to_do(run_id: str, config_path: Path | None, *, retry_failed: bool) -> int | None:
    found = await find_run(run_id, config_path)
    async with open_stores(found.config) as stores:
        states = [job.state for job in await stores.jobs.jobs(run_id)]
    failed = states.count("failed")
    if not set(states) <= FINAL or (failed and retry_failed):
        return None
    said = f"headgate: nothing is left to do in run {run_id}: {states.count('done')} done, {failed} failed"
    if failed:
        said += (
            f"; to try what failed again:\n    {resume_command(run_id, _config_of(found, config_path))} --retry-failed"
        )
    print(said, file=sys.stderr)  # noqa: T201 - for people, beside the answer
    return EXIT_FAILED if failed else EXIT_DONE


async def _delete_run(run_id: str, config_path: Path | None) -> dict[str, Any]:
    found = await find_run(run_id, config_path)
    clock = WallClock()
    async with open_stores(found.config) as stores:
        await free_of_the_dead(stores.jobs, run_id, owner_is_alive, clock)
        jobs = await stores.jobs.jobs(run_id)
        if not await stores.jobs.delete_run(run_id, clock.now_s()):
            raise _is_alive(run_id, max(job.lease_until_s for job in jobs))
    _remove(found)
    return {"deleted": run_id, "jobs": len(jobs), "folder": str(found.folder)}


def _is_alive(run_id: str, until_s: float) -> CallerError:
    until = datetime.fromtimestamp(until_s, UTC).strftime("%H:%M:%S UTC")
    return CallerError(
        f"run {run_id} is alive: a runner holds leases on its jobs until {until}; end it first (Ctrl-C, twice to stop "
        "its agents), and delete the run then"
    )


def _remove(found: Found) -> None:
    try:
        shutil.rmtree(found.folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(
            f"run {found.run.id} is deleted, but not its folder {found.folder}: {error.strerror}; remove it by hand"
        ) from error


def _head(run: Run, settings: RunSettings) -> dict[str, Any]:
    folder = str(Path(settings.folder) / run.id)
    return {"run": run.id, "created": rfc3339(run.created_s), "tasks": settings.tasks, "folder": folder}


def _say(text: str) -> None:
    print(text, file=sys.stdout)  # noqa: T201 - the answer
