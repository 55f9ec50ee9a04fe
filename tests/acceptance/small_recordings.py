"""Recordings of eight small sessions, as a coding agent's client keeps them; written by us, for these tests."""

import gzip
import json
from pathlib import Path

SESSIONS, TURNS = 8, 6


def write_recordings(folder: Path) -> Path:
    folder.mkdir()
    for number in range(SESSIONS):
        lines = [line for turn in range(TURNS) for line in _turn(number, turn)]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"session-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def _turn(session: int, turn: int) -> list[dict[str, object]]:
    at = f"2026-02-08T09:{turn:02d}:{session:02d}.000Z"
    usage = {
        "input_tokens": 3 + turn,
        "cache_creation_input_tokens": 200 + 10 * session,
        "cache_creation": {"ephemeral_5m_input_tokens": 150 + 10 * session, "ephemeral_1h_input_tokens": 50},
        "cache_read_input_tokens": 300 * turn,
    }
    call = {"id": f"msg_{session}_{turn}", "model": "claude-sonnet-4-5", "usage": usage}
    answer = {"type": "text", "text": f"gate {session} stands at {turn} " * 8}
    return [
        {"t": at, "type": "user", "uuid": "u", "parent": None, "content": f"open gate {session} to {turn}"},
        {"t": at, "type": "assistant", "uuid": "a", "parent": "u", "content": [answer]} | call,
    ]
