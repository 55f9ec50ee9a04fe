"""Recorded traces: Azure, Mooncake, Arena, ServeGen and TraceLab, each told by its columns, and folders of sessions.

One rule: a file is recognised by what stands in it, and a call comes when it came in the recording, however long the
ones before it waited (but for the next call of one conversation, which cannot come before the answer).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from headgate.core.errors import CallerError
from headgate.core.scopes import scope_name
from headgate.core.usage import Usage
from headgate.sim import tracelab
from headgate.sim.agents import Lognormal
from headgate.sim.rows import Row, csv_rows, first_line_of, header_of, json_rows
from headgate.sim.workload import (
    AGENTS,
    MAX_OUTPUT_TOKENS,
    Program,
    Round,
    Workload,
    alone,
    from_zero,
    no_agents,
    shared_among,
    within,
)
from headgate.testing.provider.recorded import RecordedSession, SessionError, load_session
from headgate.testing.provider.recorded_answers import SessionFolder, recorded_answer

__all__ = ["read_trace", "recordings"]

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
ARENA = ("req_time_s", "client", "prompt_len", "output_len")
SERVEGEN = ("client", "time_s", "requests_per_s", "cv")
MOONCAKE_BLOCK_TOKENS = 512
"""A `hash_id` of Mooncake's stands for so many tokens and all before them (kvcache-ai/Mooncake, trace README)."""

SERVEGEN_SLOT_S = 600.0
PROMPT_TOKENS = Lognormal(1_033.0, 0.607, 100_000.0)
OUTPUT_TOKENS = Lognormal(136.0, 0.973, 8_000.0)
MOST_CALLS = 2_000_000
MOST_PER_SECOND = 100_000.0
_FORMATS = (
    "azure (TIMESTAMP,ContextTokens,GeneratedTokens), arena (req_time_s,client,prompt_len,output_len), "
    "servegen (client,time_s,requests_per_s,cv), tracelab (session_id,round_idx,prefix_len,input_len,output_len,"
    "tool_wait_after_ms), and .jsonl: mooncake (timestamp, input_length, output_length, hash_ids) or tracelab's rounds"
)


def read_trace(path: Path, *, hours: float | None = None, agents: int | None = None, seed: int = 0) -> Workload:
    """Read a trace, or its first `hours`; a folder of recorded sessions is worked through by so many agents.

    Of ServeGen's rates, which stand for 200 calls a second over two weeks, the first ten minutes are played by default.

    Raises:
        CallerError: there is no such file, its format is not known, or rows of it are broken.
    """
    if path.is_dir():
        if hours is not None:
            raise CallerError(
                f"--hours {hours:g} is for traces that say when calls came; recorded sessions are worked through by "
                "--agents N from their first turn to their last: leave it out, or take fewer files"
            )
        return recordings(path, agents=AGENTS if agents is None else agents)
    if not path.is_file():
        raise CallerError(
            f"workload {str(path)!r}: there is no such file or folder; expected a trace, or agents:N[:HOURS]"
        )
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        return _json_trace(path, hours, agents)
    columns = header_of(path)
    if tracelab.is_workload(columns):
        return tracelab.read_workload(path, columns, hours=hours, agents=agents)
    no_agents(path.name, agents)
    for wanted, read in ((AZURE, _azure), (ARENA, _arena)):
        if set(wanted) <= set(columns):
            return within(path.name, read(path), hours)
    if set(SERVEGEN) <= set(columns):
        return _servegen(path, SERVEGEN_SLOT_S if hours is None else 3600.0 * hours, seed)
    raise CallerError(f"{path}:1: the columns are {','.join(columns)[:200]!r}; expected one of {_FORMATS}")


def _json_trace(path: Path, hours: float | None, agents: int | None) -> Workload:
    if tracelab.is_rounds(path):
        return tracelab.read_rounds(path, hours=hours, agents=AGENTS if agents is None else agents)
    if _is_recording(path):
        raise CallerError(f"{path}: it is a recorded session; give the folder that it is in: {path.parent}")
    no_agents(path.name, agents)
    return within(path.name, _mooncake(path), hours)


def _azure(path: Path) -> list[Program]:
    """One row a call, of which nothing else is known: Azure's traces of 2023 (Azure/AzurePublicDataset)."""
    programs: list[Program] = []
    name = _stem(path)

    def take(row: Row) -> None:
        asked = _round(row.moment_s("TIMESTAMP"), row.tokens("ContextTokens"), row.tokens("GeneratedTokens"))
        programs.append(Program(f"{name}/{len(programs)}", name, (asked,), line=row.line))

    csv_rows(path).read(take)
    return from_zero(programs)


def _arena(path: Path) -> list[Program]:
    """The VTC paper's trace (Ying1123/VTC-artifact): a client is a key, so that shares are counted by client."""
    programs: list[Program] = []

    def take(row: Row) -> None:
        asked = _round(row.seconds("req_time_s"), row.tokens("prompt_len"), row.tokens("output_len"))
        key = scope_name(f"client-{row.text('client')}")
        programs.append(Program(f"{key}/{len(programs)}", key, (asked,), key=key, line=row.line))

    csv_rows(path).read(take)
    return from_zero(programs)


def _mooncake(path: Path) -> list[Program]:
    """Mooncake's traces: a call goes on with the conversation that had half of its blocks or more before."""
    rounds: dict[str, list[Round]] = {}
    owners: dict[int, str] = {}
    lines: dict[str, int] = {}

    def take(row: Row) -> None:
        asked = _round(
            row.seconds("timestamp", per_second=1000), row.tokens("input_length"), row.tokens("output_length")
        )
        blocks = row.whole_numbers("hash_ids")
        shared = 0
        while shared < len(blocks) and blocks[shared] in owners:
            shared += 1
        known = shared > 0 and 2 * shared >= len(blocks)
        conversation = owners[blocks[shared - 1]] if known else f"conversation-{len(rounds)}"
        if known:
            asked = asked._replace(known_tokens=min(asked.prompt_tokens, shared * MOONCAKE_BLOCK_TOKENS))
        owners.update(dict.fromkeys(blocks, conversation))
        rounds.setdefault(conversation, []).append(asked)
        lines.setdefault(conversation, row.line)

    json_rows(path).read(take)
    return from_zero([Program(name, name, tuple(each), line=lines[name]) for name, each in rounds.items()])


def _servegen(path: Path, ends_s: float, seed: int) -> Workload:
    """Rates of many clients in slots of ten minutes (alibaba/ServeGen): arrivals are drawn from them.

    ServeGen's file has no lengths: they are drawn as lognormals with the medians and means of Azure's conversations
    (azure_conv: prompts 1,033 and 1,242 tokens, answers 136 and 218).
    """
    slots: dict[str, list[tuple[float, float, float]]] = {}

    def take(row: Row) -> None:
        time_s, rate = row.seconds("time_s"), row.number("requests_per_s", MOST_PER_SECOND)
        if time_s < ends_s:
            slots.setdefault(scope_name(f"client-{row.text('client')}"), []).append(
                (time_s, rate, row.number("cv", 1e6))
            )

    csv_rows(path).read(take)
    expected = sum(rate * min(SERVEGEN_SLOT_S, ends_s - from_s) for each in slots.values() for from_s, rate, _ in each)
    if expected > MOST_CALLS:
        raise CallerError(f"{path}: about {expected:,.0f} calls; at most {MOST_CALLS:,} are played: give fewer --hours")
    programs = [program for key, each in sorted(slots.items()) for program in _drawn(key, each, ends_s, seed)]
    programs.sort(key=lambda program: program.rounds[0].at_s)
    return Workload(f"{path.name}, {len(programs):,} calls", lambda: alone(programs), ends_s)


def _drawn(key: str, slots: list[tuple[float, float, float]], ends_s: float, seed: int) -> Iterator[Program]:
    chooser = random.Random(f"{seed}/{key}")  # noqa: S311 - draws that can be repeated, not a secret
    number = 0
    for from_s, rate, cv in slots:
        until_s, at_s = min(ends_s, from_s + SERVEGEN_SLOT_S), from_s
        while rate > 0:
            # Gamma intervals have this mean and this coefficient of variation.
            at_s += chooser.gammavariate(1 / (cv * cv), cv * cv / rate) if cv > 0 else 1 / rate
            if at_s >= until_s:
                break
            prompt, output = PROMPT_TOKENS.draw(chooser), OUTPUT_TOKENS.draw(chooser)
            asked = _round(at_s, int(prompt), int(output))
            yield Program(f"{key}/{number}", key, (asked,), key=key)
            number += 1


def recordings(
    folder: Path, *, agents: int, pauses: bool = True, recorded_cache: bool = False, only: int | None = None
) -> Workload:
    """Read a folder of recorded sessions (`*.jsonl.gz`), worked through by so many agents, in the order of their names.

    Without `pauses` a turn follows at once. With `recorded_cache` prompts are charged as they were when they were
    recorded, else as the cache model has it. `only` so many of the first sessions are taken.

    Raises:
        CallerError: there are none, or one is broken.
    """
    programs: list[Program] = []
    for name in SessionFolder(folder):
        if only is not None and len(programs) >= only:
            break
        try:
            session = load_session(folder / f"{name}.jsonl.gz")
        except SessionError as error:
            raise CallerError(str(error)) from error
        if session.turns:
            programs.append(_session(session, pauses=pauses, recorded_cache=recorded_cache))
    if not programs:
        raise CallerError(f"{folder}: no recorded sessions; expected files named *.jsonl.gz with turns in them")
    turns = sum(len(program.rounds) for program in programs)
    title = f"{len(programs)} recorded sessions, {turns:,} turns, {agents} agents"
    longest_s = max(sum(each.pause_s for each in program.rounds) for program in programs)
    return Workload(title, lambda: shared_among([(program,) for program in programs], agents), longest_s)


def _session(session: RecordedSession, *, pauses: bool, recorded_cache: bool) -> Program:
    rounds: list[Round] = []
    before, system_bytes = 0, len(session.system_text.encode())
    for turn in session.turns:
        told = turn.usage
        usage = Usage(told.input_tokens, told.cache_read_tokens, told.cache_write_5m_tokens, told.cache_write_1h_tokens)
        prompt = usage.prompt_tokens
        # A prompt that is shorter than the one before was compacted: of that only what was really read is known.
        known = before if prompt >= before else min(usage.cache_read_tokens, prompt)
        output = max(1, min(MAX_OUTPUT_TOKENS, recorded_answer(turn).tokens()))
        pause_s = turn.gap_s if pauses else 0.0
        text_bytes = system_bytes + sum(len(bytes(message)) for message in turn.messages_before)
        recorded = usage if recorded_cache else None
        rounds.append(Round(prompt, output, known, pause_s, recorded=recorded, text_bytes=text_bytes))
        before = prompt
    name = scope_name(session.session_id)
    return Program(name, name, tuple(rounds), model=session.turns[0].model)


def _is_recording(path: Path) -> bool:
    """Whether a file of JSON lines is a recorded session."""
    try:
        first = json.loads(first_line_of(path))
    except (ValueError, RecursionError):  # told with its line when it is read
        return False
    return isinstance(first, dict) and {"t", "type"} <= first.keys()


def _round(at_s: float, prompt_tokens: int, output_tokens: int) -> Round:
    return Round(max(1, prompt_tokens), max(1, output_tokens), at_s=at_s)


def _stem(path: Path) -> str:
    return scope_name(path.name.removesuffix(".gz").rpartition(".")[0])
