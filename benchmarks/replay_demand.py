"""What recorded sessions would like to use of a provider, and limits that are a share of it.

One rule: demand is what the agents would use if nothing limited them but the provider's own pace: their sessions laid
out over so many agents, in order, each turn as long as its answer takes.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headgate.testing.provider.recorded import load_session
from headgate.testing.provider.recorded_answers import recorded_answer

MAX_TOKENS = 32_000
"""What a replayed turn states as its bound (`adapters.agents.replay`), where its answer is clipped."""

_DEPTH_S = 10


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the simulated provider answers."""

    first_token_s: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """A session in figures. `prompt` sums its turns' prompts by category, in the order of the ledger's columns."""

    path: Path
    turns: int
    prompt: tuple[int, int, int, int]
    output_tokens: int
    largest_uncached_tokens: int

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".jsonl.gz")

    @property
    def uncached_tokens(self) -> int:
        plain, _cache_read, write_5m, write_1h = self.prompt
        return plain + write_5m + write_1h

    def took_s(self, pace: Pace) -> float:
        return self.turns * pace.first_token_s + self.output_tokens / pace.tokens_per_second


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider allows: units a minute, and the depth of its buckets in seconds of their rate."""

    requests: int
    input_tokens: int
    output_tokens: int
    burst_s: int


def read_sessions(folder: Path) -> list[Recorded]:
    """Read every recording of a folder that has turns, in the order in which a fleet takes them."""
    paths = sorted(path for path in folder.glob("*.jsonl.gz") if path.name != "compactions.jsonl.gz")
    return [recorded for recorded in map(_read, paths) if recorded.turns]


def unlimited_s(sessions: Iterable[Recorded], agents: int, pace: Pace) -> float:
    """How long the agents would take without limits: each takes the next session when it has ended its last."""
    free_at_s = [0.0] * agents
    for session in sessions:
        heapq.heapreplace(free_at_s, free_at_s[0] + session.took_s(pace))
    return max(free_at_s)


def limits_for(sessions: Sequence[Recorded], agents: int, pace: Pace, share: float) -> Limits:
    """Give limits that are `share` of the demand; the bucket is deep enough for the largest call there is."""
    per_minute = 60 * share / unlimited_s(sessions, agents, pace)
    requests = sum(session.turns for session in sessions) * per_minute
    input_tokens = sum(session.uncached_tokens for session in sessions) * per_minute
    output_tokens = sum(session.output_tokens for session in sessions) * per_minute
    largest = max(session.largest_uncached_tokens for session in sessions)
    burst_s = max(_DEPTH_S, math.ceil(60 * largest / input_tokens)) + 1
    return Limits(math.ceil(requests), math.ceil(input_tokens), math.ceil(output_tokens), burst_s)


def _read(path: Path) -> Recorded:
    turns = load_session(path).turns
    usages = [turn.usage for turn in turns]
    return Recorded(
        path,
        len(turns),
        (
            sum(usage.input_tokens for usage in usages),
            sum(usage.cache_read_tokens for usage in usages),
            sum(usage.cache_write_5m_tokens for usage in usages),
            sum(usage.cache_write_1h_tokens for usage in usages),
        ),
        sum(min(MAX_TOKENS, recorded_answer(turn).tokens()) for turn in turns),
        max((usage.uncached_tokens for usage in usages), default=0),
    )
