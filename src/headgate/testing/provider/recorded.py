"""Recorded sessions: the API calls of real coding agents, turn by turn, to replay and to answer from.

One rule: every conversation it gives is valid for the Messages API: roles alternate, each tool_use has its tool_result
in the next message, nothing is empty. Messages are kept as encoded JSON, so that a replay splices them undecoded.
Left out: lines of subagents (`side`; their calls belong to conversations of their own), answers that no model gave
(`<synthetic>`), images, and thinking in the conversation (recordings lack its signatures, and it would be refused).
"""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from headgate.testing.provider.answers import CHARACTERS_PER_TOKEN, filler
from headgate.testing.provider.counting import Usage

__all__ = ["RecordedSession", "RecordedTurn", "SessionError", "load_session"]

_SYSTEM_LIMIT_BYTES = 200 * 1024
_SESSION_LIMIT_BYTES = 256 * 1024 * 1024
_SYNTHETIC = "<synthetic>"
_CONTINUE = "Continue."
_INTERRUPTED = "(interrupted)"
_IMAGE = "[image]"
_CLEARED = "[Old tool result content cleared]"

_encode = msgspec.json.encode


class SessionError(Exception):
    """A recording cannot be read; the message names the file and the line."""


class _Usage(Struct):
    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation: dict[str, int] | None = None


class _Compact(Struct):
    compactedToolIds: list[str] = []  # noqa: N815 - the recording's own name


class _Line(Struct):
    t: str
    type: str
    content: str | list[dict[str, Any]] = ""
    side: bool = False
    sub: str = ""
    compact: _Compact | None = None
    id: str = ""
    model: str = ""
    usage: _Usage | None = None


_LINE = msgspec.json.Decoder(_Line)

Block = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedTurn:
    """One API call of a session; the turns between two compactions share one growing conversation.

    Attributes:
        message_count: How many messages its request has; with the session's id (and, across compactions, the first
            message) this is how a request is recognised.
        gap_s: The time between the end of the answer before and this call: tools that ran, people who thought.
        usage: The prompt's real usage; the output is unknown in recordings and 0 here.
    """

    session_id: str
    index: int
    model: str
    usage: Usage
    gap_s: float
    message_count: int
    _conversation: list[Raw]
    _answer: list[Raw]

    @property
    def messages_before(self) -> Sequence[Raw]:
        """The conversation that the request carries, as encoded messages of the Anthropic API, which turns share."""
        return self._conversation[: self.message_count]

    @property
    def first_message(self) -> Raw:
        """The message that tells one stretch between compactions from another."""
        return self._conversation[0]

    @property
    def answer_blocks(self) -> list[Block]:
        """The recorded answer's content blocks, thinking included; decoded on each use."""
        return [msgspec.json.decode(raw) for raw in self._answer]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedSession:
    """A session's calls in order."""

    session_id: str
    turns: tuple[RecordedTurn, ...]

    @property
    def system_text(self) -> str:
        """Filler in the place of the system prompt and the tools, which recordings lack.

        It makes a quarter of the first call's bytes about its recorded prompt tokens, and is at most 200 KiB.
        """
        if not self.turns:
            return ""
        first = self.turns[0]
        wanted = first.usage.prompt_tokens * CHARACTERS_PER_TOKEN
        present = sum(len(bytes(raw)) for raw in first.messages_before)
        return filler(max(0, min(_SYSTEM_LIMIT_BYTES, wanted - present)), len(self.session_id))


def load_session(path: Path) -> RecordedSession:
    """Read one `*.jsonl.gz` recording; its name is the session's id.

    Raises:
        SessionError: the file is no recording, or a line of it is broken.
    """
    reader = _Reader(path.name.removesuffix(".jsonl.gz"))
    for number, text in enumerate(_lines(path), start=1):
        try:
            reader.read(_LINE.decode(text))
        except (msgspec.DecodeError, ValueError, KeyError, AttributeError) as error:
            raise SessionError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
    return RecordedSession(reader.session_id, tuple(reader.turns))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as packed:
            text = packed.read(_SESSION_LIMIT_BYTES + 1)
    except (OSError, EOFError) as error:
        raise SessionError(f"{path}: {error}") from error
    if len(text) > _SESSION_LIMIT_BYTES:
        raise SessionError(f"{path}: unpacked it is larger than {_SESSION_LIMIT_BYTES} bytes")
    return (line for line in text.split(b"\n") if line.strip())


class _Reader:
    """Turns lines into calls.

    A call's lines share an id and may be interleaved with the results of its first tools, which therefore wait in
    `_inbox` until the next call begins: only then are the answer and what the client said to it complete.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.turns: list[RecordedTurn] = []
        self._conversation: list[Raw] = []
        self._answer_id: str | None = None
        self._answer: list[Block] = []
        self._raw_answer: list[Raw] = []
        self._inbox: list[Block] = []
        self._cleared: set[str] = set()
        self._said_s: float | None = None
        self._answered_s: float | None = None

    def read(self, line: _Line) -> None:
        if line.side:
            return
        at_s = datetime.fromisoformat(line.t).timestamp()
        if line.type == "system":
            self._compact(line)
        elif line.type == "user":
            self._inbox += _blocks(line.content)
            self._said_s = at_s
        elif line.type == "assistant" and line.model != _SYNTHETIC and line.usage is not None:
            if line.id != self._answer_id:
                self._begin_call(line, line.usage, at_s)
            blocks = _blocks(line.content)
            self._answer += blocks
            self._raw_answer += [Raw(_encode(block)) for block in blocks]
            self._answered_s = at_s

    def _compact(self, line: _Line) -> None:
        if line.sub == "compact_boundary":
            # The summary follows as a user line and opens a conversation that knows nothing of the one before.
            self._conversation = []
            self._answer, self._inbox = [], []
            self._answer_id = None
        elif line.compact is not None:
            self._cleared |= set(line.compact.compactedToolIds)

    def _begin_call(self, line: _Line, usage: _Usage, at_s: float) -> None:
        gap_s = 0.0
        if self._answered_s is not None:
            gap_s = max(0.0, (at_s if self._said_s is None else self._said_s) - self._answered_s)
        self._say()
        if self._cleared:
            self._conversation = _with_cleared(self._conversation, self._cleared)
            self._cleared = set()
        self._answer_id = line.id
        self._answer, self._raw_answer = [], []
        self.turns.append(
            RecordedTurn(
                session_id=self.session_id,
                index=len(self.turns),
                model=line.model,
                usage=_usage(usage),
                gap_s=gap_s,
                message_count=len(self._conversation),
                _conversation=self._conversation,
                _answer=self._raw_answer,
            )
        )

    def _say(self) -> None:
        """Add the answer before, and what the client said since, to the conversation."""
        results = {block["tool_use_id"]: block for block in self._inbox if block["type"] == "tool_result"}
        called: dict[str, Block] = {}
        said: list[Block] = []
        for block in self._answer:
            if block["type"] == "tool_use":
                if block["id"] not in results or block["id"] in called:
                    continue
                called[block["id"]] = block
            elif block["type"] != "text":
                continue
            said.append(block)
        if self._conversation:
            self._append("assistant", said or [{"type": "text", "text": _INTERRUPTED}])
        heard = [results[call_id] for call_id in called]
        heard += [block for block in self._inbox if block["type"] != "tool_result"]
        self._append("user", heard or [{"type": "text", "text": _CONTINUE}])
        self._inbox = []
        self._said_s = None

    def _append(self, role: str, blocks: list[Block]) -> None:
        self._conversation.append(Raw(_encode({"role": role, "content": blocks})))


def _blocks(content: str | list[Block]) -> list[Block]:
    """Give the blocks that an API takes, without blank texts, unknown kinds and the recordings' own fields."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    kept: list[Block] = []
    for block in content:
        kind = block.get("type")
        if kind == "text" and block["text"].strip():
            kept.append({"type": "text", "text": block["text"]})
        elif kind == "thinking" and block["thinking"].strip():
            kept.append({"type": "thinking", "thinking": block["thinking"]})
        elif kind == "tool_use":
            kept.append({name: block[name] for name in ("type", "id", "name", "input")})
        elif kind == "tool_result":
            kept.append(_result(block))
    return kept


def _result(block: Block) -> Block:
    content = block.get("content") or ""
    if isinstance(content, list):
        content = [
            {"type": "text", "text": each["text"] if each.get("text", "").strip() else _IMAGE} for each in content
        ]
    result: Block = {"type": "tool_result", "tool_use_id": block["tool_use_id"], "content": content}
    if block.get("is_error"):
        result["is_error"] = True
    return result


def _with_cleared(messages: list[Raw], tool_ids: set[str]) -> list[Raw]:
    """Give the conversation after a micro-compaction, which blanks old tool results and keeps everything else."""
    kept: list[Raw] = []
    for raw in messages:
        message = msgspec.json.decode(raw)
        hit = [block for block in message["content"] if block.get("tool_use_id") in tool_ids]
        for block in hit:
            block["content"] = _CLEARED
        kept.append(Raw(_encode(message)) if hit else raw)
    return kept


def _usage(told: _Usage) -> Usage:
    split = told.cache_creation or {}
    one_hour = split.get("ephemeral_1h_input_tokens", 0)
    return Usage(
        input_tokens=told.input_tokens,
        cache_read_tokens=told.cache_read_input_tokens,
        cache_write_5m_tokens=told.cache_creation_input_tokens - one_hour,
        cache_write_1h_tokens=one_hour,
    )
