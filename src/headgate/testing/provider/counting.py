"""Counting: what the simulated provider served, refused and charged, call by call and in all, in exact whole numbers.

One rule: a token is counted at the moment it is produced, and a call is closed exactly once, by whatever ends it first.
It decides nothing, and never sees a key: credentials come in under their names.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Books", "Entry", "State", "Tally", "Usage"]

State = Literal["running", "done", "failed", "refused", "cancelled"]

# Model names come from callers when none are configured; past this many the rest share one row.
_ROWS_LIMIT = 10_000
_OTHER = "other"
_EARLIER_LIMIT = 16


@dataclass(slots=True)
class Usage:
    """Tokens by category; `input_tokens` is the uncached input, as Anthropic counts it."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0

    @property
    def uncached_tokens(self) -> int:
        """What counts against Anthropic's input limit: everything but cache reads."""
        return self.input_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt, cached or not."""
        return self.uncached_tokens + self.cache_read_tokens

    def add(self, other: "Usage") -> None:
        """Add the tokens of another call to these."""
        self.input_tokens += other.input_tokens
        self.cache_read_tokens += other.cache_read_tokens
        self.cache_write_5m_tokens += other.cache_write_5m_tokens
        self.cache_write_1h_tokens += other.cache_write_1h_tokens
        self.output_tokens += other.output_tokens


@dataclass(slots=True)
class Tally:
    """What one credential did with one model; received is the sum of served, refused, failed, cancelled, running.

    `openai_tokens` is what the OpenAI token limit was charged: max(max_tokens, estimate), less what was refunded.
    """

    requests_received: int = 0
    requests_served: int = 0
    requests_refused: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    refused_by: dict[str, int] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    openai_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give the tally as flat JSON."""
        closed = self.requests_served + self.requests_refused + self.requests_failed + self.requests_cancelled
        return {
            "requests_received": self.requests_received,
            "requests_served": self.requests_served,
            "requests_refused": self.requests_refused,
            "requests_failed": self.requests_failed,
            "requests_cancelled": self.requests_cancelled,
            "requests_running": self.requests_received - closed,
            "refused_by": dict(self.refused_by),
            **asdict(self.usage),
            "openai_tokens": self.openai_tokens,
        }


def _sum(tallies: Iterable[Tally]) -> dict[str, Any]:
    total = Tally()
    for tally in tallies:
        total.requests_received += tally.requests_received
        total.requests_served += tally.requests_served
        total.requests_refused += tally.requests_refused
        total.requests_failed += tally.requests_failed
        total.requests_cancelled += tally.requests_cancelled
        total.usage.add(tally.usage)
        total.openai_tokens += tally.openai_tokens
        for dimension, count in tally.refused_by.items():
            total.refused_by[dimension] = total.refused_by.get(dimension, 0) + count
    return total.as_dict()


class Entry:
    """One call in the books: what it used so far and how it ended."""

    __slots__ = ("_tally", "earlier", "model", "request_id", "state", "usage")

    def __init__(self, tally: Tally, model: str, request_id: str) -> None:
        self._tally = tally
        self.model = model
        self.request_id = request_id
        self.state: State = "running"
        self.usage = Usage()
        self.earlier: deque[Entry] | None = None
        tally.requests_received += 1

    def admitted(self, prompt: Usage, openai_tokens: int = 0) -> None:
        """Count the prompt (its output is still to come) and what the OpenAI token limit was charged."""
        assert prompt.output_tokens == 0
        self.usage.add(prompt)
        self._tally.usage.add(prompt)
        self._tally.openai_tokens += openai_tokens

    def produced(self, tokens: int) -> None:
        """Count output tokens at the moment they exist."""
        self.usage.output_tokens += tokens
        self._tally.usage.output_tokens += tokens

    def refunded(self, openai_tokens: int) -> None:
        """Take back what an OpenAI call had reserved too much."""
        self._tally.openai_tokens -= openai_tokens

    def close(self, state: State, refused_by: str = "") -> None:
        """Say how the call ended; only the first word counts."""
        assert state != "running"
        if self.state != "running":
            return
        self.state = state
        tally = self._tally
        if state == "done":
            tally.requests_served += 1
        elif state == "cancelled":
            tally.requests_cancelled += 1
        elif state == "failed":
            tally.requests_failed += 1
        else:
            tally.requests_refused += 1
            tally.refused_by[refused_by] = tally.refused_by.get(refused_by, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """Give what became of the call; `earlier` holds previous requests that carried the same call id."""
        told: dict[str, Any] = {
            "state": self.state,
            "model": self.model,
            "usage": asdict(self.usage),
            "request_id": self.request_id,
        }
        if self.earlier:
            told["earlier"] = [entry.as_dict() for entry in self.earlier]
        return told


class Books:
    """All tallies, and a bounded memory of single calls by the id that Headgate gave them (oldest forgotten first)."""

    def __init__(self, calls_remembered: int) -> None:
        self._calls_remembered = calls_remembered
        self._rows: dict[tuple[str, str], Tally] = {}
        self._calls: OrderedDict[str, Entry] = OrderedDict()

    def open(self, credential: str, model: str, request_id: str, call_id: str | None) -> Entry:
        """Begin to count one call."""
        row = (credential, model)
        tally = self._rows.get(row)
        if tally is None:
            if len(self._rows) >= _ROWS_LIMIT:
                row = (_OTHER, _OTHER)
            tally = self._rows.setdefault(row, Tally())
        entry = Entry(tally, model, request_id)
        if call_id:
            self._remember(call_id, entry)
        return entry

    def _remember(self, call_id: str, entry: Entry) -> None:
        previous = self._calls.pop(call_id, None)
        if previous is not None:
            entry.earlier = deque(previous.earlier or (), maxlen=_EARLIER_LIMIT)
            entry.earlier.append(previous)
            previous.earlier = None
        self._calls[call_id] = entry
        if len(self._calls) > self._calls_remembered:
            self._calls.popitem(last=False)

    def call(self, call_id: str) -> Entry | None:
        """Give what is known about a call, or None when it never came or was forgotten."""
        return self._calls.get(call_id)

    def as_dict(self) -> dict[str, Any]:
        """Give the total, and the tallies by credential, by model and by both."""
        by_credential: dict[str, list[Tally]] = {}
        by_model: dict[str, list[Tally]] = {}
        rows: list[dict[str, Any]] = []
        for (credential, model), tally in self._rows.items():
            by_credential.setdefault(credential, []).append(tally)
            by_model.setdefault(model, []).append(tally)
            rows.append({"credential": credential, "model": model, **tally.as_dict()})
        return {
            "total": _sum(self._rows.values()),
            "credentials": {name: _sum(tallies) for name, tallies in by_credential.items()},
            "models": {name: _sum(tallies) for name, tallies in by_model.items()},
            "rows": rows,
        }
