"""Recorded calls: when production calls came to two services, and how long their prompts and answers were.

One rule: a trace is read as it is, in its own order; a file that is absent is said, never guessed.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple


class RecordedCall(NamedTuple):
    """One call; `came_s` counts from the first one of its trace."""

    came_s: float
    input_tokens: int
    output_tokens: int


def read_azure(path: Path) -> Iterator[RecordedCall]:
    with path.open() as lines:
        first = None
        for row in csv.DictReader(lines):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])  # it has a digit more than a datetime
            first = at if first is None else first
            yield RecordedCall((at - first).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def read_mooncake(path: Path) -> Iterator[RecordedCall]:
    with gzip.open(path, "rt") as lines:
        for row in map(json.loads, lines):
            yield RecordedCall(row["timestamp"] / 1_000, row["input_length"], row["output_length"])


TRACES: dict[str, tuple[str, Callable[[Path], Iterator[RecordedCall]]]] = {
    "azure_code": ("traces/azure_code.csv", read_azure),
    "azure_conv": ("traces/azure_conv.csv", read_azure),
    "mooncake": ("traces/mooncake_conversation.jsonl.gz", read_mooncake),
}


def missing_traces(data: Path | None) -> str:
    """Name the traces that are not there; empty if all are."""
    files = [file for file, _read in TRACES.values()]
    absent = files if data is None else [file for file in files if not (data / file).is_file()]
    return f"not measured: needs --data FOLDER with {', '.join(absent)}" if absent else ""


def read_trace(data: Path, name: str) -> list[RecordedCall]:
    file, read = TRACES[name]
    return list(read(data / file))
