"""Recorded answers: recognises a replayed request and gives the turn that was recorded for it.

One rule: a request is a session's turn by the session's id, the number of its messages and, where compactions make that
ambiguous, the text of its first message; what is not recognised is simulated. Sessions are parsed on first use.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from headgate.testing.provider.answers import Answer, Part
from headgate.testing.provider.recorded import RecordedSession, RecordedTurn, load_session

__all__ = ["SessionFolder", "recorded_answer"]

_SUFFIX = ".jsonl.gz"
# The data set keeps a list of compactions beside the sessions; it is no session.
_NOT_A_SESSION = "compactions"
# About 0.5 MB each: enough that a fleet of a hundred agents never parses a session twice.
_SESSIONS_HELD = 128


class SessionFolder:
    """The recordings of a folder, parsed on first use; the least recently used are forgotten."""

    def __init__(self, folder: Path, sessions_held: int = _SESSIONS_HELD) -> None:
        self._paths = {
            path.name.removesuffix(_SUFFIX): path
            for path in sorted(folder.glob(f"*{_SUFFIX}"))
            if path.name != f"{_NOT_A_SESSION}{_SUFFIX}"
        }
        self._sessions_held = sessions_held
        self._held: OrderedDict[str, _Recognised] = OrderedDict()

    def __contains__(self, session_header: str) -> bool:
        return _session_id(session_header) in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def session(self, session_id: str) -> RecordedSession | None:
        """Give a session, or None when the folder has no such recording.

        Raises:
            SessionError: the recording is broken.
        """
        recognised = self._recognised(session_id)
        return None if recognised is None else recognised.session

    def find(self, session_header: str, messages: Sequence[Raw]) -> RecordedTurn | None:
        """Give the turn that a request repeats; its header may carry a suffix after `#`, for replays side by side.

        Raises:
            SessionError: the recording is broken.
        """
        recognised = self._recognised(_session_id(session_header))
        if recognised is None or not messages:
            return None
        candidates = recognised.by_count.get(len(messages), ())
        if len(candidates) < 2:  # noqa: PLR2004 - one or none leaves nothing to choose
            return candidates[0] if candidates else None
        first = _text(messages[0])
        return next((turn for turn in candidates if _text(turn.first_message) == first), None)

    def _recognised(self, session_id: str) -> "_Recognised | None":
        held = self._held.get(session_id)
        if held is None:
            path = self._paths.get(session_id)
            if path is None:
                return None
            held = self._held[session_id] = _Recognised(load_session(path))
            if len(self._held) > self._sessions_held:
                self._held.popitem(last=False)
        self._held.move_to_end(session_id)
        return held


class _Recognised:
    """A session with its turns by the number of messages."""

    __slots__ = ("by_count", "session")

    def __init__(self, session: RecordedSession) -> None:
        self.session = session
        self.by_count: dict[int, list[RecordedTurn]] = {}
        for turn in session.turns:
            self.by_count.setdefault(turn.message_count, []).append(turn)


def _session_id(session_header: str) -> str:
    return session_header.partition("#")[0]


def _text(message: Raw) -> str:
    """Give a message's text, so that a client may add cache marks to it and is still recognised."""
    content: Any = msgspec.json.decode(message).get("content", "")
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if isinstance(block, dict))


def recorded_answer(turn: RecordedTurn) -> Answer:
    """Give what the model answered at a turn; recordings lack signatures, so thinking gets a made-up one."""
    parts: list[Part] = []
    stop = "end"
    for block in turn.answer_blocks:
        if block["type"] == "text":
            parts.append(Part("text", block["text"]))
        elif block["type"] == "thinking":
            parts.append(Part("thinking", block["thinking"], signature="c2ltdWxhdGVk"))
        else:
            parts.append(Part("tool_call", _compact_json(block["input"]), id=block["id"], name=block["name"]))
            stop = "tool"
    return Answer(tuple(parts) or (Part("text", "."),), "tool" if stop == "tool" else "end")


def _compact_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
