"""Tasks: what a fleet is to do, read from a .jsonl or .toml file, or from a folder of recorded sessions.

One rule: everything that is wrong is found before anything runs, and named by file and line.
What a task's fields mean is the agent's affair; recordings are only recognised here, not read.
"""

import gzip
import json
import re
import tomllib
import zlib
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Literal

from headgate.core.errors import CallerError
from headgate.core.jobs import Job

__all__ = ["Task", "TaskList", "folder_name", "jobs_of", "read_tasks"]

MOST_TASKS = 1_000_000
MOST_LINE_BYTES = 1_000_000
MOST_FILE_BYTES = 2_000_000_000
MOST_TOML_BYTES = 64_000_000
MOST_NAME_CHARACTERS = 200
PROBLEMS_SHOWN = 20

_RECORDING = ".jsonl.gz"
_TASK_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*task[ \t]*\]\]", re.MULTILINE)
_LINE_OF_PLACE = re.compile(r"\d+$")
_TOML_LINE = re.compile(r"\(at line (\d+), column \d+\)")


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work; `place` says where it was read: `tasks.jsonl:17`. `fields` can be written as JSON."""

    name: str
    fields: Mapping[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class TaskList:
    """The tasks of a run. `notes` says what was left out, and why. A replay's task has the field `recording`."""

    kind: Literal["tasks", "recordings"]
    tasks: list[Task]
    notes: tuple[str, ...] = ()


def read_tasks(path: Path) -> TaskList:
    """Read a TASKS file or folder.

    Raises:
        CallerError: lists up to 20 problems, one a line, and says how many more there are.
    """
    if path.is_dir():
        return _recordings(path, sorted(path.glob(f"*{_RECORDING}")))
    if not path.exists():
        raise CallerError(f"{path}: there is no such file or folder; expected tasks as .jsonl or .toml, or recordings")
    if path.name.endswith(_RECORDING):
        return _recordings(path.parent, [path])
    read = {".jsonl": _jsonl, ".toml": _toml}.get(path.suffix)
    if read is None:
        raise CallerError(f"{path}: expected a .jsonl or .toml file of tasks, or a folder of *{_RECORDING} recordings")
    try:
        return TaskList("tasks", read(path))
    except OSError as error:
        raise CallerError(f"{path}: cannot be read: {error.strerror}") from error


def jobs_of(tasks: Iterable[Task], run: str, most_attempts: int = 3) -> list[Job]:
    """Give the jobs of a new run, in the order of the tasks."""
    return [
        Job(run, index, task.name, json.dumps(task.fields, ensure_ascii=False), most_attempts=most_attempts)
        for index, task in enumerate(tasks)
    ]


def folder_name(job: Job) -> str:
    """Name the job's folder: readable, safe on every file system, and no two alike."""
    return f"{job.index:06d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', job.name)[:60].strip('.-') or 'task'}"


class _Problems:
    """Collects what is wrong, so that a user mends it all at once; bounded to the first ones by their lines."""

    def __init__(self) -> None:
        self._said: list[tuple[int, int, str]] = []
        self._count = 0

    def add(self, place: str, why: str) -> None:
        self._count += 1
        line = _LINE_OF_PLACE.search(place)
        insort(self._said, (0 if line is None else int(line[0]), self._count, f"{place}: {why}"))
        del self._said[PROBLEMS_SHOWN:]

    def raise_any(self) -> None:
        more = self._count - len(self._said)
        if self._said:
            said = [text for _line, _number, text in self._said]
            raise CallerError("\n".join(said + ([f"and {more} more"] if more else [])))


def _jsonl(path: Path) -> list[Task]:
    problems = _Problems()
    found: list[tuple[str, Mapping[str, Any]]] = []
    if path.stat().st_size > MOST_FILE_BYTES:
        raise CallerError(f"{path}: larger than {MOST_FILE_BYTES} bytes")
    for number, line in _lines(path):
        place = f"{path}:{number}"
        if len(line) > MOST_LINE_BYTES:
            problems.add(place, f"longer than {MOST_LINE_BYTES} bytes")
            continue
        try:
            fields = _decoded(line)
        except ValueError as error:
            problems.add(place, str(error))
            continue
        if fields is not None:
            found.append((place, fields))
        if len(found) > MOST_TASKS:
            raise CallerError(f"{path}: more than {MOST_TASKS} tasks")
    return _named(path, found, problems)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give lines with their numbers; of a line that is too long only as much as shows that it is."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MOST_LINE_BYTES + 2):
            number += 1
            rest = line
            while not rest.endswith(b"\n") and (rest := file.readline(MOST_LINE_BYTES)):
                pass
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _decoded(line: bytes) -> Mapping[str, Any] | None:
    """Give the fields of a line, None for a blank one.

    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}") from None
    if not text.strip():
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return _fields(value)


def _fields(value: object) -> Mapping[str, Any]:
    if isinstance(value, str):
        value = {"task": value}
    if not isinstance(value, dict):
        raise ValueError(f"expected an object of fields or a text, not {_kind(value)}")  # noqa: TRY004 - one family: what a file holds is wrong
    if not value:
        raise ValueError("an empty task; expected at least one field")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"not JSON: {name} is no JSON number")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a truth value", int: "a number", float: "a number", list: "a list"}.get(type(value), "this")


def _toml(path: Path) -> list[Task]:
    if path.stat().st_size > MOST_TOML_BYTES:
        raise CallerError(f"{path}: larger than {MOST_TOML_BYTES} bytes; write many tasks as .jsonl")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CallerError(f"{path}: not UTF-8: byte {error.start + 1} is 0x{error.object[error.start]:02x}") from None
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise CallerError(f"{path}: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what Python says of a number of thousands of digits
        line = _TOML_LINE.search(str(error))
        place = f"{path}:{line.group(1)}" if line else str(path)
        raise CallerError(f"{place}: not TOML: {error}") from None
    entries = tables.get("task")
    if not isinstance(entries, list) or not entries:
        raise CallerError(f"{path}: expected at least one [[task]]")
    problems = _Problems()
    for name in tables:
        if name != "task":
            problems.add(str(path), f"unknown {name!r}; expected only [[task]]")
    place_of = _places(path, text, len(entries))
    found: list[tuple[str, Mapping[str, Any]]] = []
    for number, entry in enumerate(entries):
        try:
            found.append((place_of(number), _fields(_as_json(entry))))
        except ValueError as error:
            problems.add(place_of(number), str(error))
    return _named(path, found, problems)


def _places(path: Path, text: str, count: int) -> Callable[[int], str]:
    """Give the place of the nth entry: the line of its header, or its number where text only looks like headers."""
    lines: list[int] = []
    line, at = 1, 0
    for match in _TASK_HEADER.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        lines.append(line)
    if len(lines) != count:
        return lambda number: f"{path}: task {number + 1}"
    return lambda number: f"{path}:{lines[number]}"


def _as_json(value: Any) -> Any:
    """Give a TOML value as JSON has it: dates become text."""
    match value:
        case dict():
            return {name: _as_json(inner) for name, inner in value.items()}
        case list():
            return [_as_json(inner) for inner in value]
        case datetime() | date() | time():
            return value.isoformat()
        case float() if value - value != 0:
            raise ValueError(f"{value} is no number that JSON has")
    return value


def _named(path: Path, found: list[tuple[str, Mapping[str, Any]]], problems: _Problems) -> list[Task]:
    """Name the tasks by their field `name` or `id`, else by their number; no two alike."""
    places: dict[str, str] = {}
    tasks: list[Task] = []
    for number, (place, fields) in enumerate(found, start=1):
        given = fields.get("name", fields.get("id", number))
        if isinstance(given, bool) or not isinstance(given, str | int):
            problems.add(place, f"its name is {_kind(given)}; expected a text or a whole number")
            continue
        name = str(given)
        if not name or len(name) > MOST_NAME_CHARACTERS or not name.isprintable():
            problems.add(place, f"its name {name[:40]!r} is not 1 to {MOST_NAME_CHARACTERS} visible characters")
        elif name in places:
            problems.add(place, f"its name {name!r} is that of {places[name]} already")
        else:
            places[name] = place
            tasks.append(Task(name, fields, place))
    problems.raise_any()
    if not tasks:
        raise CallerError(f"{path}: no tasks")
    return tasks


def _recordings(folder: Path, paths: list[Path]) -> TaskList:
    problems = _Problems()
    tasks: list[Task] = []
    notes: list[str] = []
    for path in paths:
        try:
            with gzip.open(path) as packed:
                first = packed.readline(MOST_LINE_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            problems.add(str(path), f"cannot be unpacked: {error}")
            continue
        if _begins_a_recording(first):
            fields = {"recording": str(path.absolute())}
            tasks.append(Task(path.name.removesuffix(_RECORDING), fields, str(path)))
        else:
            notes.append(f"{path}: left out, it is no recorded session")
    problems.raise_any()
    if not tasks:
        said = "".join(f"\n{note}" for note in notes[:PROBLEMS_SHOWN])
        raise CallerError(f"{folder}: no recorded sessions (*{_RECORDING}){said}")
    return TaskList("recordings", tasks, tuple(notes))


def _begins_a_recording(line: bytes) -> bool:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and {"t", "type"} <= event.keys()
