"""Commands as agents: one process group and working folder for each attempt, on a leash that ends with the runner.

One rule: no shell is involved, and nothing that an attempt started is left when the attempt has ended.
What the command may know is the environment's affair; when a job runs is the fleet's.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from headgate.adapters.agents.environment import agent_environment
from headgate.core.errors import CallerError
from headgate.core.jobs import Job
from headgate.ports import Desk, Ended

__all__ = ["Command", "CommandAgent", "check_command"]

_LEASH = Path(__file__).with_name("leash.py")
# A doubled brace is a brace; a single one begins a field's name or is a mistake.
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# Linux, MAX_ARG_STRLEN: 32 pages in one argument, its end included.
_MOST_ARGUMENT_BYTES = 128 * 1024 - 1
# A field that one task lacks is mostly lacked by all: more lines than these would say the same.
_PROBLEMS_SHOWN = 5
_TAIL_BYTES = 48 * 1024
_ERROR_TAIL_BYTES = 16 * 1024
_LAST_LINE_CHARACTERS = 300
_CANNOT_RUN = (126, 127)
_LEASH_MARGIN_S = 7.0


@dataclass(frozen=True, slots=True)
class Command:
    """A command whose arguments may name fields of the task: `{prompt}`; `{{` and `}}` are braces.

    `{name}` (the job's) and `{here}` are always there. `here` is the folder that the command was written in: since it
    runs in a folder of its own, paths to the user's files begin with `{here}/`; the program itself is found without.
    """

    arguments: tuple[str, ...]
    here: Path

    def fill(self, fields: Mapping[str, object], name: str = "") -> list[str]:
        """Put a task's fields into the arguments; what is not text goes in as JSON.

        Raises:
            ValueError: a field is unknown, a brace stands alone, or an argument cannot be passed to a process.
        """
        known = {"here": str(self.here), "name": name, **fields}
        program, *arguments = (_filled(number, argument, known) for number, argument in enumerate(self.arguments))
        return [str(self.here / program) if os.sep in program else program, *arguments]

    def problem(self, fields: Mapping[str, object]) -> str | None:
        """Say why the command cannot be run with these fields, or None."""
        try:
            self.fill(fields)
        except ValueError as error:
            return str(error)
        return None

    def hints(self) -> list[str]:
        """Say what will probably not work as meant, without being an error."""
        return [
            f"{argument} is a file in {self.here}, but agents work in folders of their own: write {{here}}/{argument}"
            for argument in self.arguments[1:]
            if not Path(argument).is_absolute() and "{" not in argument and (self.here / argument).is_file()
        ]


def check_command(command: Command, tasks: Iterable[tuple[str, Mapping[str, object]]]) -> None:
    """Check a command against all tasks, each given with the place it was read from, before anything runs.

    Raises:
        CallerError: lists what is wrong, by place.
    """
    if not command.arguments:
        raise CallerError(
            "no command given: write it after --, such as: headgate run tasks.jsonl -- claude -p {prompt}"
        )
    program = command.arguments[0]
    found = which(str(command.here / program) if os.sep in program else program)
    if "{" not in program and found is None:
        raise CallerError(f"{program}: no such command; expected a program on the PATH or the path of one")
    problems: list[str] = []
    more = 0
    for place, fields in tasks:
        problem = command.problem(fields)
        if problem is None:
            continue
        if len(problems) < _PROBLEMS_SHOWN:
            problems.append(f"{place}: {problem}")
        else:
            more += 1
    if problems:
        raise CallerError("\n".join(problems + ([f"and {more} more"] if more else [])))


class CommandAgent:
    """Runs the command for each attempt, in `<desk.folder>/work`, and keeps what it wrote beside that.

    `environ` is the runner's environment, `secrets` the names in it that hold the accounts' keys. Told to end, the
    command's processes get SIGTERM, and SIGKILL after `grace_s`.
    """

    def __init__(
        self,
        command: Command,
        *,
        environ: Mapping[str, str],
        secrets: Collection[str] = frozenset(),
        grace_s: float = 10.0,
        most_output_bytes: int = 1 << 30,
    ) -> None:
        self._command = command
        self._environ = environ
        self._secrets = frozenset(secrets)
        self._grace_s = grace_s
        self._most_output_bytes = most_output_bytes

    async def work(self, job: Job, desk: Desk) -> Ended:
        """Run the command to its end; an exit code other than 0 is a failure, 126 and 127 one that will not go away."""
        try:
            arguments = self._command.fill(json.loads(job.task), job.name)
            logs = _prepared(job, desk)
            with _pipe() as (leash_end, runner_end):
                process = await self._start(arguments, job, desk, logs, leash_end)
                try:
                    await process.wait()
                except asyncio.CancelledError:
                    if process.returncode is None:
                        await _end(process, runner_end, self._grace_s + _LEASH_MARGIN_S)
                        raise
            return _how_it_ended(process.returncode, logs)
        except (OSError, ValueError) as error:
            return Ended(error=f"the command could not be started: {error}", retryable=isinstance(error, OSError))

    async def _start(
        self, arguments: Sequence[str], job: Job, desk: Desk, logs: "_Logs", leash_end: "_PipeEnd"
    ) -> asyncio.subprocess.Process:
        environment = agent_environment(self._environ, job, desk, self._secrets)
        environment["HEADGATE_TASK_FILE"] = str(logs.task)
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(self._grace_s), str(self._most_output_bytes)]
        with logs.output.open("wb") as output, logs.errors.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *leash,
                str(logs.lock),
                *arguments,
                stdin=leash_end.descriptor,
                stdout=output,
                stderr=errors,
                cwd=logs.work,
                env=environment,
                start_new_session=True,
            )
        leash_end.close()
        return process


class _PipeEnd:
    """One end of a pipe, closed once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self.descriptor)


@contextmanager
def _pipe() -> Iterator[tuple[_PipeEnd, _PipeEnd]]:
    """Give both ends of a pipe: the leash's, and the runner's, which no other child inherits."""
    readable, writable = (_PipeEnd(descriptor) for descriptor in os.pipe())
    try:
        yield readable, writable
    finally:
        readable.close()
        writable.close()


async def _end(process: asyncio.subprocess.Process, runner_end: _PipeEnd, within_s: float) -> None:
    """Have the leash end everything, and end it if it is overdue; a further cancellation does not break this off."""
    runner_end.close()
    overdue = asyncio.get_running_loop().call_later(within_s, _kill, process)
    ended = asyncio.ensure_future(process.wait())
    while not ended.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({ended})
    overdue.cancel()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


@dataclass(frozen=True, slots=True)
class _Logs:
    """The files of one attempt."""

    work: Path
    task: Path
    lock: Path
    output: Path
    errors: Path


def _prepared(job: Job, desk: Desk) -> _Logs:
    folder = desk.folder.absolute()
    logs = _Logs(
        work=folder / "work",
        task=folder / "task.json",
        lock=folder / "lock",
        output=folder / f"attempt-{job.attempt}.out",
        errors=folder / f"attempt-{job.attempt}.err",
    )
    logs.work.mkdir(parents=True, exist_ok=True)
    logs.task.write_text(job.task, encoding="utf-8")
    return logs


def _how_it_ended(code: int | None, logs: _Logs) -> Ended:
    output, errors = _tail(logs.output, _TAIL_BYTES), _tail(logs.errors, _ERROR_TAIL_BYTES)
    said = output if not errors else f"{output}\n--- standard error ---\n{errors}".lstrip("\n")
    if code == 0:
        return Ended(said, exit_code=0)
    if code is None or code < 0:
        why = "ended by an unknown signal" if code is None else f"ended by {_signal_name(-code)}"
        return Ended(said, exit_code=code, error=why)
    lines = (errors or output).strip().splitlines()
    last = f": {lines[-1].strip()[:_LAST_LINE_CHARACTERS]}" if lines else ""
    return Ended(said, exit_code=code, error=f"exit code {code}{last}", retryable=code not in _CANNOT_RUN)


def _tail(path: Path, most_bytes: int) -> str:
    with path.open("rb") as log:
        size_bytes = log.seek(0, os.SEEK_END)
        log.seek(max(0, size_bytes - most_bytes))
        return log.read(most_bytes).decode(errors="replace")


def _signal_name(number: int) -> str:
    if number == signal.SIGXFSZ:
        return "SIGXFSZ: it wrote more output than is kept"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _filled(number: int, argument: str, fields: Mapping[str, object]) -> str:
    def value(match: re.Match[str]) -> str:
        found = match.group()
        if found in ("{{", "}}"):
            return found[0]
        name = match.group(1)
        if name is None:
            raise ValueError(f"argument {number} of the command has a single {found}; write {found * 2} for a brace")
        if name not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise ValueError(f"the command asks for {{{name}}}, which the task does not have (it has: {known})")
        field = fields[name]
        return field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)

    filled = _FIELD.sub(value, argument)
    size_bytes = len(filled.encode("utf-8", "surrogateescape"))
    if "\0" in filled:
        raise ValueError(f"argument {number} of the command would hold a NUL character, which no process takes")
    if size_bytes > _MOST_ARGUMENT_BYTES:
        raise ValueError(
            f"argument {number} of the command would be {size_bytes} bytes long, more than the {_MOST_ARGUMENT_BYTES} "
            f"that a process takes; let the command read the file that HEADGATE_TASK_FILE names"
        )
    return filled
