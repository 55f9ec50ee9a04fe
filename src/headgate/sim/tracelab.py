"""TraceLab's traces (uw-syfi/TraceLab): rounds of coding agents as they were recorded, and workloads made of them.

One rule: a session's rounds follow one another as they did, each after its pause; what of a prompt was cached when it
was recorded is what a warm cache has of it here. Sessions were recorded months apart: agents work through them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from headgate.core.errors import CallerError
from headgate.core.scopes import scope_name
from headgate.sim.rows import Row, csv_rows, first_line_of, json_rows
from headgate.sim.workload import AGENTS, Prefix, Program, Round, Workload, alone, longest_gap, no_agents, shared_among

__all__ = ["is_rounds", "is_workload", "read_rounds", "read_workload"]

WORKLOAD = ("round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms")
ROUND = ("session_id", "round_index", "input_tokens_total", "prefix_tokens", "output_tokens", "timing_events")
_SESSION, _ARRIVAL = ("session_id", "id"), "arrival_time"


def is_workload(columns: Sequence[str]) -> bool:
    """Whether a table is one that TraceLab's `csv_export` made."""
    return set(WORKLOAD) <= set(columns) and any(name in columns for name in _SESSION)


def is_rounds(path: Path) -> bool:
    """Whether a file of JSON lines has TraceLab's rounds."""
    try:
        first = json.loads(first_line_of(path))
    except (ValueError, RecursionError):  # told with its line when it is read
        return False
    return isinstance(first, dict) and "round_index" in first


def read_workload(path: Path, columns: Sequence[str], *, hours: float | None, agents: int | None) -> Workload:
    """Read a table of rounds; sessions come at their arrival (in ms) if it says one, else agents work through them.

    Raises:
        CallerError: rows are broken.
    """
    session_column = next(name for name in _SESSION if name in columns)
    sessions: dict[str, list[tuple[int, Round, float]]] = {}
    arrivals_s: dict[str, float] = {}
    lines: dict[str, int] = {}

    def take(row: Row) -> None:
        session = scope_name(f"session-{row.text(session_column)}")
        known, new = row.tokens("prefix_len"), row.tokens("input_len")
        found = Round(max(1, known + new), max(1, row.tokens("output_len")), known)
        after_s = row.seconds("tool_wait_after_ms", per_second=1000)
        sessions.setdefault(session, []).append((row.whole("round_idx"), found, after_s))
        lines.setdefault(session, row.line)
        if _ARRIVAL in columns:
            arrivals_s.setdefault(session, row.seconds(_ARRIVAL, per_second=1000))

    csv_rows(path).read(take)
    programs = [
        _program(name, rounds, arrivals_s.get(name, 0.0))._replace(line=lines[name])
        for name, rounds in sessions.items()
    ]
    if not arrivals_s:
        workers = AGENTS if agents is None else agents
        return _worked_through(path, [(program,) for program in programs], hours, workers)
    no_agents(path.name, agents)
    programs.sort(key=lambda program: program.rounds[0].at_s)
    first_s = programs[0].rounds[0].at_s
    programs = [_moved(program, -first_s) for program in programs]
    if hours is not None:
        programs = [program for program in programs if program.rounds[0].at_s < hours * 3600]
    calls = sum(len(program.rounds) for program in programs)
    firsts = [each._replace(rounds=each.rounds[:1]) for each in programs]
    return Workload(
        f"{path.name}, {calls:,} calls",
        lambda: alone(programs),
        programs[-1].rounds[0].at_s,
        longest_gap=lambda: longest_gap(firsts),
    )


def read_rounds(path: Path, *, hours: float | None, agents: int) -> Workload:
    """Read recorded rounds; a person's message begins a program, and its pauses are those that were recorded.

    A first prompt that was read from a cache was written by another session of that client: they share it.

    Raises:
        CallerError: rows are broken.
    """
    sessions: dict[str, list[_Recorded]] = {}

    def take(row: Row) -> None:
        prompt = max(1, row.tokens("input_tokens_total"))
        begins, ends = row.span_s("timing_events", "timestamp")
        found = _Recorded(
            row.whole("round_index"),
            Round(prompt, max(1, row.tokens("output_tokens")), min(prompt, row.tokens("prefix_tokens"))),
            begins,
            ends,
            by_person=row.optional_text("first_input_event_type") == "user_message",
            model=row.optional_text("model"),
            client=row.optional_text("provider") or "client",
        )
        sessions.setdefault(scope_name(row.text("session_id")), []).append(found)

    json_rows(path).read(take)
    return _worked_through(path, [_programs(name, rounds) for name, rounds in sessions.items()], hours, agents)


class _Recorded(NamedTuple):
    """A round as it was recorded; `by_person` if a message of a person's began it."""

    number: int
    round: Round
    begins_s: float
    ends_s: float
    by_person: bool
    model: str | None
    client: str


def _programs(session: str, recorded: list[_Recorded]) -> list[Program]:
    recorded.sort(key=lambda each: each.number)
    first = recorded[0]
    shared = first.round.known_tokens
    prefix = Prefix(f"tracelab {first.client}", shared) if shared else None
    programs: list[list[Round]] = [[]]
    before: _Recorded | None = None
    for each in recorded:
        if before is not None and each.by_person:
            programs.append([])
        pause_s = 0.0 if before is None else max(0.0, each.begins_s - before.ends_s)
        known = 0 if before is None else each.round.known_tokens
        programs[-1].append(each.round._replace(pause_s=pause_s, known_tokens=known))
        before = each
    return [
        Program(session, session, rounds, interactive=True, model=first.model, prefix=prefix) for rounds in programs
    ]


def _program(session: str, recorded: list[tuple[int, Round, float]], arrives_s: float) -> Program:
    recorded.sort(key=lambda each: each[0])
    pauses_s = [0.0, *(after_s for _, _, after_s in recorded)]
    rounds = [found._replace(pause_s=pause_s) for (_, found, _), pause_s in zip(recorded, pauses_s, strict=False)]
    rounds[0] = rounds[0]._replace(at_s=arrives_s)
    return Program(session, session, tuple(rounds))


def _moved(program: Program, by_s: float) -> Program:
    first = program.rounds[0]
    return program._replace(rounds=(first._replace(at_s=first.at_s + by_s), *program.rounds[1:]))


def _worked_through(path: Path, sessions: Sequence[Sequence[Program]], hours: float | None, agents: int) -> Workload:
    if hours is not None:
        raise CallerError(f"--hours {hours:g}: {path.name} says no time at which its sessions begin; leave it out")
    calls = sum(len(program.rounds) for session in sessions for program in session)
    longest_s = max(sum(each.pause_s for program in session for each in program.rounds) for session in sessions)
    title = f"{path.name}, {len(sessions)} sessions, {calls:,} calls, {agents} agents"
    return Workload(title, lambda: shared_among(sessions, agents), longest_s)
