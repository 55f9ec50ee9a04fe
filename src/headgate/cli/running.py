"""`headgate run` and `resume`: a fleet of agents behind a gateway of its own.

One rule: all that a run needs to go on is in the store and in its folder, so that it can be resumed after any end.
"""

import asyncio
import json
import os
import secrets
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import which
from typing import Any, Literal

from headgate.adapters.agents.command import Command, CommandAgent, check_command
from headgate.adapters.agents.function import FunctionAgent, load_function
from headgate.adapters.agents.replay import ReplayAgent
from headgate.adapters.config import Config
from headgate.adapters.owners import owner_is_alive
from headgate.adapters.server import run as run_loop
from headgate.adapters.tasks import TaskList, folder_name, jobs_of, read_tasks
from headgate.cli.demo.stage import Stage, open_stage
from headgate.cli.last_words import LastWords
from headgate.cli.other_gateway import OtherGateway
from headgate.cli.progress import ProgressConsole, show_progress
from headgate.cli.reporting import FleetWatch, report_run
from headgate.cli.run_gateway import OwnGateway, RunGateway
from headgate.cli.serving import gateway_of, require_accounts
from headgate.cli.tables import width_of
from headgate.compose import House, open_house, open_stores, read_config
from headgate.core.errors import CallerError, StoreError
from headgate.core.jobs import Job
from headgate.ports import Agent, Desk, Run
from headgate.runtime.fleet import Fleet, FleetEnd, FleetEvent, FleetRules, reopen_failed
from headgate.testing.provider.recorded import load_session

EXIT_DONE, EXIT_FAILED, EXIT_UNFINISHED = 0, 1, 75

_RUNS_NAMED = 5


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run was started with; kept with it as JSON, so that it can be resumed. Paths are absolute."""

    tasks: str
    agents: int = 10
    attempts: int = 3
    command: tuple[str, ...] = ()
    function: str | None = None
    config: str | None = None
    gateway: str | None = None
    speed: float | None = None
    folder: str = ""
    here: str = ""
    demo: bool = False
    real: bool = False
    kind: str = "command"

    @classmethod
    def of(cls, text: str) -> "RunSettings":
        """Read them back."""
        fields = json.loads(text)
        fields["command"] = tuple(fields["command"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Found:
    """A run, and the configuration whose store it is in."""

    run: Run
    settings: RunSettings
    config: Config

    @property
    def folder(self) -> Path:
        """Where its agents work and its report lies."""
        return Path(self.settings.folder) / self.run.id


def start_run(settings: RunSettings, *, as_json: bool) -> int:
    """Start a run and work through it; gives the exit code.

    Raises:
        HeadgateError: it cannot be started; nothing was.
    """
    tasks = read_tasks(Path(settings.tasks))
    agent_kind(settings, tasks)
    if settings.command:
        command = Command(settings.command, Path(settings.here))
        check_command(command, ((task.place, task.fields) for task in tasks.tasks))
        for hint in command.hints():
            _note(hint)
    for note in tasks.notes:
        _note(note)
    run_id = secrets.token_hex(3)
    return run_loop(_run(run_id, settings, tasks, as_json=as_json))


def resume_run(run_id: str, config_path: Path | None, agents: int | None, *, retry_failed: bool, as_json: bool) -> int:
    """Go on with a run where it was, its failed jobs too if they are to be tried again; gives the exit code.

    Raises:
        CallerError: there is no such run.
    """
    settings = asyncio.run(find_run(run_id, config_path)).settings
    if agents is not None:
        settings = replace(settings, agents=agents)
    if config_path is not None:
        settings = replace(settings, config=str(config_path.resolve()))
    return run_loop(_run(run_id, settings, None, retry_failed=retry_failed, as_json=as_json))


def agent_kind(settings: RunSettings, tasks: TaskList) -> Literal["command", "function", "replay"]:
    """Say what works on the tasks.

    Raises:
        CallerError: nothing does, or more than one thing.
    """
    if settings.command and settings.function:
        raise CallerError("both a command and --python were given; a task is worked on by one of them")
    if tasks.kind == "recordings":
        if settings.command or settings.function:
            raise CallerError(f"{settings.tasks} holds recordings, which are replayed; leave out the command")
        return "replay"
    if settings.function:
        return "function"
    if not settings.command:
        raise CallerError(
            "no agent given: write a command after --, such as `headgate run tasks.jsonl -- claude -p {prompt}`, or "
            "--python module:function"
        )
    return "command"


async def _run(
    run_id: str, settings: RunSettings, tasks: TaskList | None, *, retry_failed: bool = False, as_json: bool
) -> int:
    folder = Path(settings.folder) / run_id
    _make(folder)
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(
            open_stage(folder, wanted=settings.demo, real=settings.real, note=_note)
        )
        # A gateway elsewhere has the providers' keys; this side needs none of them.
        own = settings.gateway is None
        config = stage.config if stage is not None else read_config(_path(settings.config), credentials=own)
        if own:
            require_accounts(config)
        house = await stack.enter_async_context(open_house(config, warm=own))
        gateway: OwnGateway | OtherGateway
        if settings.gateway is None:
            words = LastWords()
            server = await stack.enter_async_context(
                gateway_of(house, "127.0.0.1", 0, open_to_all=False, around=words.around)
            )
            gateway = OwnGateway(house, run_id, f"http://127.0.0.1:{server.address[1]}", words)
        else:
            gateway = OtherGateway(house.client, settings.gateway, run_id, os.environ.get("HEADGATE_KEY"))
            await gateway.check()
        if tasks is not None:
            settings = replace(settings, kind=agent_kind(settings, tasks))
        agent = _agent(settings.kind, settings, house)
        if tasks is not None:
            run = Run(run_id, house.clock.now_s(), json.dumps(asdict(settings)))
            await house.stores.jobs.add_run(run, jobs_of(tasks.tasks, run_id, settings.attempts))
        if retry_failed:
            again = await reopen_failed(house.stores.jobs, run_id, settings.attempts, house.clock)
            _note(f"failed jobs queued again: {again}, for up to {settings.attempts} attempts each")
        return await _work(run_id, settings, house, agent, gateway, folder, stage, as_json=as_json)


async def _work(
    run_id: str,
    settings: RunSettings,
    house: House,
    agent: Agent,
    gateway: RunGateway,
    folder: Path,
    stage: Stage | None,
    *,
    as_json: bool,
) -> int:
    console = ProgressConsole(stderr=as_json, width=width_of(sys.stderr if as_json else sys.stdout))
    watch = FleetWatch(gateway, house.stores.jobs, run_id, stage)
    again = resume_command(run_id, settings.config)
    if not as_json:
        head = f"run {run_id}: {settings.agents} agents; after any end, go on with:\n    {again}"
        console.print(head, highlight=False, markup=False, soft_wrap=True)

    def listen(event: FleetEvent) -> None:
        if event.kind in {"draining", "stopping"}:
            watch.note = (
                "draining: running agents end; Ctrl-C again stops them" if event.kind == "draining" else "stopping"
            )

    fleet = Fleet(
        run_id,
        store=house.stores.jobs,
        agent=agent,
        desks=lambda job: _desk(job, gateway, folder),
        clock=house.clock,
        owner=house.owner,
        owner_is_alive=owner_is_alive,
        rules=FleetRules(agents=settings.agents),
        hopeless=gateway.refused_for_good,
        listen=listen,
    )
    watch.fleet = fleet
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, fleet.interrupt)
    loop.add_signal_handler(signal.SIGTERM, fleet.drain)
    async with show_progress(run_id, watch.snapshot, console, "none" if as_json else None):
        end = await fleet.run()
        gateway.look_anew()
    if stage is not None:
        stage.keep = end.why != "finished"
    # What a killed runner left in flight may have become known meanwhile.
    await house.manager.recover()
    await report_run(watch, end, folder, console, what=_what(settings), resume=again, json_too=as_json)
    return _exit_code(end)


def _exit_code(end: FleetEnd) -> int:
    if end.queued or end.running:
        return EXIT_UNFINISHED
    return EXIT_FAILED if end.failed else EXIT_DONE


def _agent(kind: str, settings: RunSettings, house: House) -> Agent:
    match kind:
        case "command":
            command = Command(settings.command, Path(settings.here))
            keys = {entry.api_key.reveal() for entry in house.config.accounts if entry.api_key is not None}
            keys.add(os.environ.get("HEADGATE_KEY", ""))
            secret_names = {name for name, value in os.environ.items() if value and value in keys}
            return CommandAgent(command, environ=os.environ, secrets=secret_names)
        case "function":
            assert settings.function is not None, "a function was named"
            return FunctionAgent(load_function(settings.function, Path(settings.here)), most_threads=settings.agents)
        case _:
            folder = Path(settings.tasks)
            folder = folder if folder.is_dir() else folder.parent

            def open_recording(job: Job) -> Any:
                return load_session(folder / json.loads(job.task)["recording"])

            return ReplayAgent(open_recording, house.post, speed=settings.speed)


@asynccontextmanager
async def _desk(job: Job, gateway: RunGateway, folder: Path) -> AsyncIterator[Desk]:
    """Set an attempt's desk up, with a key of its own that ends with it."""
    key = await gateway.lend_key(job)
    try:
        yield Desk(gateway.url, key.secret, folder / "agents" / folder_name(job))
    finally:
        await gateway.end_key(key)


async def find_run(run_id: str, config_path: Path | None) -> Found:
    """Find a run in the stores that it may be in.

    Raises:
        CallerError: it is in none of them; says which they are, what runs they have, and how to name another.
    """
    looked_in, known = [], []
    for config in stores_of_runs(config_path):
        looked_in.append(str(config.store.path))
        async with open_stores(config) as stores:
            for run in await stores.jobs.runs():
                if run.id == run_id:
                    return Found(run, RunSettings.of(run.settings), config)
                known.append(run.id)
    another = (
        "if it is in another, name its configuration with --config (its [store] url says which), or type this in the "
        "folder where you started it"
    )
    if not looked_in:
        missing = " or ".join(str(config.store.path) for config in _configs(config_path))
        raise CallerError(f"no run {run_id!r}: there is no store {missing}; {another}")
    more = f" and {len(known) - _RUNS_NAMED} more" if len(known) > _RUNS_NAMED else ""
    there = f"has the runs {', '.join(known[:_RUNS_NAMED])}{more}" if known else "has no runs"
    raise CallerError(f"no run {run_id!r} in the store {' or '.join(looked_in)}, which {there}; {another}")


def stores_of_runs(config_path: Path | None) -> list[Config]:
    """Give the configurations of the stores that there are and that may have runs."""
    return [config for config in _configs(config_path) if config.store.path.exists()]


def _configs(config_path: Path | None) -> list[Config]:
    """Give the configurations whose stores a run may be in: the one named or found, and the example's."""
    found = [read_config(config_path, credentials=False)]
    if config_path is None:
        example = replace(found[0].store, path=example_folder() / "headgate.sqlite")
        found.append(replace(found[0], store=example))
    return found


def example_folder() -> Path:
    """Give where the example keeps its store and its runs: beside what the user works on."""
    return Path.cwd() / ".headgate"


def runs_folder(config_path: Path | None) -> Path:
    """Give the folder of the runs of a configuration: beside its store."""
    return read_config(config_path, credentials=False).store.path.parent / "runs"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(
            f"{folder}: this folder cannot be made: {error.strerror}; set HEADGATE_HOME to one that can"
        ) from error


def resume_command(run_id: str, config: str | None) -> str:
    """Give the command that goes on with a run, as it can be typed here: a new user's is not on the path yet."""
    program = "headgate" if which("headgate") else os.path.relpath(sys.argv[0])
    return shlex.join([program, "resume", run_id, *(["--config", config] if config else [])])


def _what(settings: RunSettings) -> str:
    if settings.demo:
        return "the example: small coding agents in Python"
    if settings.command:
        return " ".join(settings.command)
    return settings.function or f"replay of {settings.tasks}"


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _note(text: str) -> None:
    print(f"headgate: {text}", file=sys.stderr)  # noqa: T201 - for people, beside the answer
