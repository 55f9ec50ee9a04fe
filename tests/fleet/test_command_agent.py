"""Commands as agents: real processes, each on a leash; a FIFO that they hold open tells when the last one is gone."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headgate.adapters.agents.command import Command, CommandAgent, check_command
from headgate.adapters.agents.environment import agent_environment
from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.ports import Desk, Ended

SECRETS = {
    "ANTHROPIC_API_KEY": "sk-ant-real",
    "ANTHROPIC_AUTH_TOKEN": "real-token",
    "ANTHROPIC_CUSTOM_HEADERS": "authorization: real",
    "OPENAI_API_KEY": "sk-proj-real",
    "OPENAI_ORG_ID": "org-real",
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "MY_ACCOUNT": "the account's key",
    "COPY_OF_IT": "the account's key",
    "HIDDEN": "sk-ant-elsewhere",
    "HEADGATE_ADMIN_TOKEN": "real-admin",
}


def job(task: dict[str, object] | None = None, attempt: int = 1) -> Job:
    return Job("run-1", 0, "review", json.dumps(task or {}), attempt=attempt, state="running")


def desk(folder: Path) -> Desk:
    return Desk("http://127.0.0.1:8484", "hg-own-key", folder, {"EXTRA": "set"})


def command(*arguments: str) -> Command:
    return Command(arguments, Path.cwd())


def agent(*arguments: str, grace_s: float = 5.0) -> CommandAgent:
    return CommandAgent(command(*arguments), environ={"PATH": os.environ["PATH"]}, grace_s=grace_s)


def work(folder: Path, *arguments: str, task: dict[str, object] | None = None) -> Ended:
    return asyncio.run(asyncio.wait_for(agent(*arguments).work(job(task), desk(folder)), 30))


class Witness:
    """A FIFO: processes that inherit its writing end tell by what they write, and by its end, whether they live."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "witness"
        os.mkfifo(self.path)
        self._reader: int | None = None

    def next_now(self) -> bytes:
        """Give what comes next, waiting for the first to open it; empty when nobody holds it any more."""
        if self._reader is None:
            self._reader = os.open(self.path, os.O_RDONLY)
        return os.read(self._reader, 4096)

    async def next(self) -> bytes:
        return await asyncio.wait_for(asyncio.to_thread(self.next_now), 20)

    def close(self) -> None:
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None


@pytest.fixture
def witness(tmp_path):
    made = Witness(tmp_path)
    yield made
    made.close()


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/dev/fd").iterdir())


# --- what a command is given


def test_fields_of_the_task_are_put_into_each_argument(tmp_path):
    ended = work(tmp_path, "printf", "%s|", "{prompt}", "n={n} {{x}} {name}", "{list}", task={
        "prompt": "say 'hi' $HOME; rm", "n": 3, "list": ["ä", 1],
    })  # fmt: skip
    assert ended == Ended("say 'hi' $HOME; rm|n=3 {x} review|[\"ä\", 1]|", exit_code=0)


def test_the_command_works_in_a_folder_of_its_own_that_is_kept(tmp_path):
    ended = work(tmp_path / "job", "sh", "-c", "pwd; echo kept > here; echo problem >&2")
    assert ended.output.startswith(f"{tmp_path}/job/work\n")
    assert ended.output.endswith("--- standard error ---\nproblem\n")
    assert (tmp_path / "job/work/here").read_text() == "kept\n"
    assert (tmp_path / "job/attempt-1.out").read_text() == f"{tmp_path}/job/work\n"
    assert (tmp_path / "job/attempt-1.err").read_text() == "problem\n"


def test_the_environment_leads_to_the_gateway_with_the_agents_own_key(tmp_path):
    show = "import os, json; print(json.dumps(dict(os.environ)))"
    seen = json.loads(work(tmp_path, sys.executable, "-c", show, task={"prompt": "hi"}).output)
    assert seen["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8484"
    assert seen["OPENAI_BASE_URL"] == "http://127.0.0.1:8484/v1"
    assert seen["ANTHROPIC_API_KEY"] == seen["OPENAI_API_KEY"] == "hg-own-key"
    assert (seen["HEADGATE_RUN"], seen["HEADGATE_AGENT"], seen["EXTRA"]) == ("run-1", "review", "set")
    assert json.loads(seen["HEADGATE_TASK"]) == {"prompt": "hi"}
    assert json.loads(Path(seen["HEADGATE_TASK_FILE"]).read_text()) == {"prompt": "hi"}


def test_no_key_of_a_provider_reaches_the_command_under_any_name(tmp_path):
    parent = {"PATH": "/bin", "LANG": "C", "ANTHROPIC_MODEL": "claude-sonnet-4-5", **SECRETS}
    seen = agent_environment(parent, job(), desk(tmp_path), secrets={"MY_ACCOUNT"})
    assert {name: value for name, value in seen.items() if name in parent} == {
        "PATH": "/bin",
        "LANG": "C",
        "ANTHROPIC_MODEL": "claude-sonnet-4-5",
        "ANTHROPIC_API_KEY": "hg-own-key",
        "OPENAI_API_KEY": "hg-own-key",
    }


def test_a_command_has_no_input_and_is_out_of_reach_of_the_terminals_ctrl_c(tmp_path):
    ended = work(tmp_path, "sh", "-c", f"cat; exec {sys.executable} -c 'import os; print(os.getsid(0))'")
    assert ended.exit_code == 0
    assert int(ended.output) != os.getsid(0)


def test_a_task_too_large_for_the_environment_is_in_its_file(tmp_path):
    count = "python3 -c \"import json,os; print(len(json.load(open(os.environ['HEADGATE_TASK_FILE']))['prompt']))\""
    ended = work(tmp_path, "sh", "-c", f'test -z "$HEADGATE_TASK" && {count}'.replace("{", "{{").replace("}", "}}"),
                 task={"prompt": "x" * 500_000})  # fmt: skip
    assert ended.output == "500000\n"


# --- what is said before anything runs


def test_a_field_that_a_task_lacks_is_named_with_the_tasks_line():
    tasks = [("tasks.jsonl:1", {"prompt": "a"}), ("tasks.jsonl:2", {"promt": "b"})]
    with pytest.raises(CallerError) as caught:
        check_command(command("echo", "{prompt}"), tasks)
    assert str(caught.value) == (
        "tasks.jsonl:2: the command asks for {prompt}, which the task does not have (it has: here, name, promt)"
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["echo", "{"], r"argument 1 of the command has a single \{; write \{\{ for a brace"),
        (["echo", "a}"], r"argument 1 of the command has a single \}"),
        (["echo", "{nul}"], "NUL character"),
        (["echo", "{long}"], "200000 bytes long, more than the 131071 that a process takes"),
        (["no-such-program-anywhere"], "no-such-program-anywhere: no such command"),
        (["./no-such-file"], "./no-such-file: no such command"),
        ([], "no command given"),
    ],
)
def test_a_command_that_cannot_run_is_refused_before_anything_runs(arguments, why):
    with pytest.raises(CallerError, match=why):
        check_command(command(*arguments), [("t:1", {"nul": "a\0b", "long": "x" * 200_000})])


def test_problems_are_listed_to_a_bound():
    with pytest.raises(CallerError) as caught:
        check_command(command("echo", "{x}"), [(f"t:{line}", {"y": 1}) for line in range(50)])
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (6, "and 45 more")


def test_a_program_beside_the_user_is_found_from_the_agents_folder(tmp_path):
    script = tmp_path / "agent.sh"
    script.write_text("#!/bin/sh\necho found from $PWD\n")
    script.chmod(0o755)
    beside = Command(("./agent.sh", "agent.sh"), tmp_path)
    check_command(beside, [("t:1", {})])
    assert [hint.endswith("write {here}/agent.sh") for hint in beside.hints()] == [True]
    ended = asyncio.run(CommandAgent(beside, environ=os.environ).work(job(), desk(tmp_path / "job")))
    assert ended.output == f"found from {tmp_path}/job/work\n"


# --- how it ends


def test_an_exit_code_is_a_failure_with_the_last_line_it_wrote(tmp_path):
    ended = work(tmp_path, "sh", "-c", "echo starting; echo 'no such branch' >&2; exit 3")
    assert (ended.exit_code, ended.error, ended.retryable) == (3, "exit code 3: no such branch", True)


def test_a_signal_is_named(tmp_path):
    ended = work(tmp_path, "sh", "-c", "kill -SEGV $$")
    assert (ended.exit_code, ended.error) == (-signal.SIGSEGV, "ended by SIGSEGV")


def test_a_command_that_cannot_be_run_is_not_tried_again(tmp_path):
    (tmp_path / "not-a-program").write_text("x")
    ended = work(tmp_path, str(tmp_path / "not-a-program"))
    assert (ended.exit_code, ended.retryable) == (126, False)
    assert "Permission denied" in ended.error


def test_only_the_end_of_a_long_output_is_kept(tmp_path):
    ended = work(tmp_path, "sh", "-c", "seq 1 100000; seq 1 50000 >&2")
    assert len(ended.output) < 65_536 + 100
    assert "100000\n" in ended.output
    assert ended.output.endswith("50000\n")
    assert (tmp_path / "attempt-1.out").stat().st_size == 588_895


def test_output_without_bound_ends_the_command(tmp_path):
    flood = CommandAgent(command("yes"), environ=os.environ, grace_s=1, most_output_bytes=1_000_000)
    ended = asyncio.run(asyncio.wait_for(flood.work(job(), desk(tmp_path)), 30))
    assert ended.exit_code == -signal.SIGXFSZ
    assert "more output than is kept" in ended.error


def test_each_attempt_keeps_its_own_logs_in_the_same_folder(tmp_path):
    shell = agent("sh", "-c", "echo once more >> notes; cat notes")
    asyncio.run(shell.work(job(attempt=1), desk(tmp_path)))
    assert asyncio.run(shell.work(job(attempt=2), desk(tmp_path))).output == "once more\nonce more\n"
    assert (tmp_path / "attempt-1.out").read_text() == "once more\n"


# --- nothing outlives anything

HOLD = "exec 3>{witness}; {stubborn} {stray} (sleep 1000) & echo ready >&3; sleep 1000"


def hold(witness: Witness, *, stubborn: bool = False, stray: bool = False) -> list[str]:
    """Give a command that holds the FIFO open together with a child, which may ignore SIGTERM or hide in a session."""
    script = HOLD.format(
        witness=shlex.quote(str(witness.path)),
        stubborn="trap '' TERM;" if stubborn else "",
        stray="setsid sleep 1000 &" if stray else "",
    )
    return ["sh", "-c", script]


@pytest.mark.parametrize("kind", ["meek", "stubborn", "stray"])
def test_a_cancelled_attempt_leaves_no_process(tmp_path, witness, kind):
    arguments = hold(witness, stubborn=kind == "stubborn", stray=kind == "stray")

    async def scene():
        at_work = asyncio.create_task(agent(*arguments, grace_s=0.2).work(job(), desk(tmp_path / "job")))
        assert await witness.next() == b"ready\n"
        at_work.cancel()
        await asyncio.sleep(0)
        at_work.cancel()  # an impatient second one must not leave anything behind either
        with pytest.raises(asyncio.CancelledError):
            await at_work
        assert await witness.next() == b""

    before = open_files()
    asyncio.run(scene())
    witness.close()
    assert open_files() == before


def test_what_a_command_leaves_in_the_background_ends_with_it(tmp_path, witness):
    leave = f"exec 3>{shlex.quote(str(witness.path))}; setsid sleep 1000 & (sleep 1000) & echo done; echo left >&3"

    async def scene() -> Ended:
        at_work = asyncio.create_task(agent("sh", "-c", leave).work(job(), desk(tmp_path / "job")))
        assert await witness.next() == b"left\n"
        ended = await at_work
        assert await witness.next() == b""
        return ended

    assert asyncio.run(scene()) == Ended("done\n", exit_code=0)


RUNNER = """
import asyncio, sys, os
from pathlib import Path
from headgate.adapters.agents.command import Command, CommandAgent
from headgate.core.jobs import Job
from headgate.ports import Desk
agent = CommandAgent(Command(tuple(sys.argv[2:]), Path.cwd()), environ=os.environ, grace_s=0.2)
job = Job("run-1", 0, "held", "{}", attempt=1)
asyncio.run(agent.work(job, Desk("http://127.0.0.1:1", "key", Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("kind", ["meek", "stubborn", "stray"])
def test_nothing_goes_on_when_the_runner_is_killed_with_minus_9(tmp_path, witness, kind):
    arguments = hold(witness, stubborn=kind == "stubborn", stray=kind == "stray")
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path / "job"), *arguments]) as runner:
        assert witness.next_now() == b"ready\n"
        runner.kill()
    assert witness.next_now() == b""


def test_an_attempt_waits_until_the_one_before_it_is_gone_from_the_folder(tmp_path, witness):
    stubborn = hold(witness, stubborn=True)
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path / "job"), *stubborn]) as runner:
        assert witness.next_now() == b"ready\n"
        runner.kill()
    # The old one still has its time to end; the new one, a moment later, must find it gone.
    alone = "import os,sys; fd=os.open(sys.argv[1], os.O_RDONLY|os.O_NONBLOCK); print(os.read(fd, 10))"
    ended = work(tmp_path / "job", sys.executable, "-c", alone, str(witness.path))
    assert ended.output == "b''\n"


def test_killing_the_leash_ends_the_command(tmp_path, witness):
    note = f"exec 3>{shlex.quote(str(witness.path))}; echo $PPID >&3; exec sleep 1000"

    async def scene() -> Ended:
        at_work = asyncio.create_task(agent("sh", "-c", note).work(job(), desk(tmp_path / "job")))
        os.kill(int(await witness.next()), signal.SIGKILL)
        ended = await at_work
        assert await witness.next() == b""
        return ended

    assert asyncio.run(scene()).error == "ended by SIGKILL"


def test_a_hundred_commands_at_once_leave_no_descriptor(tmp_path):
    async def scene():
        shell = agent("true")
        jobs = [Job("run-1", index, f"job-{index}", "{}", attempt=1) for index in range(100)]
        ended = await asyncio.gather(*(shell.work(each, desk(tmp_path / each.name)) for each in jobs))
        assert {each.exit_code for each in ended} == {0}

    before = open_files()
    asyncio.run(scene())
    assert open_files() == before
