"""The provider of a simulation: exact buckets, a latency and a prompt cache, in virtual time.

One rule: this is the truth that admission is measured against, so it shares no arithmetic with `headgate.core`; output
flows out of its bucket while it is produced, as real providers meter it. It waits for nothing: whoever drives it does.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from headgate.core.amounts import Dimension
from headgate.core.limits import Limit, Rate
from headgate.core.usage import Dialect, Usage
from headgate.sim.workload import Round

__all__ = ["CACHE_LIFE_S", "MOST_FOLLOWED", "Bucket", "Caches", "Meters", "Pace", "Pool", "Prompt", "refusal"]

CACHE_LIFE_S = 300.0
LEAST_CACHED_TOKENS = 1_024
"""Anthropic, "Prompt caching" (wire.md section 2): five minutes from its last use, nothing below 1,024 tokens."""

MOST_CACHES = 200_000
MOST_FOLLOWED = 50
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an answer takes.

    By default what TraceLab's rounds show of a large model (see `agents`): 50 to 54 tokens a second, and 5.7 s for a
    median round of 252 tokens, of which a second is left for the first token.
    """

    first_token_s: float = 1.0
    tokens_per_second: float = 53.0


class Bucket:
    """One bucket that is refilled continuously, and what became of what it was refilled with.

    `lost` is refill that found it full; `lost_waiting` of that while somebody waited. A flow drains it evenly.
    """

    __slots__ = ("at_s", "capacity", "enforced", "flow", "level", "lost", "lost_waiting", "name", "rate", "used")

    def __init__(self, name: str, rate_per_s: float, capacity: float, *, enforced: bool) -> None:
        """Start full, at 0 s."""
        self.name = name
        self.rate = rate_per_s
        self.capacity = self.level = max(1.0, capacity)
        self.enforced = enforced
        self.at_s = self.flow = self.used = self.lost = self.lost_waiting = 0.0

    def advance(self, now_s: float, *, waiting: bool) -> None:
        """Refill and drain until now; exact, as long as it is told of every change of flow and of waiting."""
        past_s = now_s - self.at_s
        if past_s <= 0:
            return
        self.at_s = now_s
        drained = self.flow * past_s
        self.used += drained
        level = self.level + self.rate * past_s - drained
        if level > self.capacity:
            self.lost += level - self.capacity
            if waiting:
                self.lost_waiting += level - self.capacity
            level = self.capacity
        self.level = level

    def take(self, units: float) -> None:
        """Take units out, into debt if need be."""
        self.level -= units
        self.used += units

    def wait_s(self, units: float) -> float:
        """Give the time until so much is there; what never fits waits for a full bucket."""
        missing = min(units, self.capacity) - self.level
        return 0.0 if missing <= _TOLERANCE and units <= self.capacity + _TOLERANCE else max(missing, 1.0) / self.rate


class Meters:
    """All buckets of a simulation, and for how long somebody waited.

    The first MOST_FOLLOWED of them are exact in what they lost while somebody waited; the others only in their levels.
    """

    def __init__(self) -> None:
        """Begin without buckets."""
        self.buckets: dict[str, Bucket] = {}
        self.followed: dict[str, Bucket] = {}
        self.waiting = 0
        self.waited_s = 0.0
        self._since_s = 0.0

    def add(self, bucket: Bucket) -> None:
        """Take in a bucket."""
        self.buckets[bucket.name] = bucket
        if len(self.followed) < MOST_FOLLOWED:
            self.followed[bucket.name] = bucket

    def enters(self, now_s: float) -> None:
        """Count a call that may have to wait."""
        if not self.waiting:
            self.advance(now_s)
            self._since_s = now_s
        self.waiting += 1

    def leaves(self, now_s: float) -> None:
        """Stop counting it."""
        if self.waiting == 1:
            self.advance(now_s)
            self.waited_s += now_s - self._since_s
        self.waiting -= 1

    def advance(self, now_s: float) -> None:
        """Bring every bucket up to now."""
        waiting = self.waiting > 0
        for bucket in self.followed.values():
            if bucket.at_s < now_s:
                bucket.advance(now_s, waiting=waiting)

    def total_waited_s(self, now_s: float) -> float:
        """Give for how long somebody waited until now."""
        return self.waited_s + (now_s - self._since_s if self.waiting else 0.0)


class Pool:
    """The buckets that calls of the same limits draw from, by what they count."""

    __slots__ = ("input_tokens", "output_tokens", "requests", "tokens")

    def __init__(self, limits: Iterable[Limit], meters: Meters, provider_scale: float) -> None:
        """Find or make the bucket of each rate; what is no rate is the owner's own affair."""
        by_dimension: dict[Dimension, list[Bucket]] = {}
        for limit in limits:
            if isinstance(limit, Rate):
                by_dimension.setdefault(limit.dimension, []).append(_bucket(limit, meters, provider_scale))
        self.requests = by_dimension.get("requests", [])
        self.input_tokens = by_dimension.get("input_tokens", [])
        self.output_tokens = by_dimension.get("output_tokens", [])
        self.tokens = by_dimension.get("tokens", [])

    def charge(self, uncached_tokens: int, asked: Round) -> None:
        """Take what a call counts at its start."""
        for bucket in self.requests:
            bucket.take(1)
        for bucket in self.input_tokens:
            bucket.take(uncached_tokens)
        for bucket in self.tokens:
            bucket.take(max(asked.max_output_tokens, asked.prompt_tokens + asked.output_tokens))

    def flow(self, tokens_per_s: float, now_s: float, *, waiting: bool) -> None:
        """Let so many more tokens of output flow from now on."""
        for bucket in self.output_tokens:
            bucket.advance(now_s, waiting=waiting)
            bucket.flow += tokens_per_s


def _bucket(limit: Rate, meters: Meters, provider_scale: float) -> Bucket:
    found = meters.buckets.get(limit.name)
    if found is None:
        enforced = limit.scope.startswith("account:")
        scale = provider_scale if enforced else 1.0
        capacity = (limit.largest or limit.burst) * scale
        found = Bucket(limit.name, limit.amount * scale / limit.period_s, capacity, enforced=enforced)
        meters.add(found)
    return found


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a prompt is charged: what was read from the cache, and what was not."""

    cached_tokens: int
    uncached_tokens: int

    def usage(self, output_tokens: int, dialect: Dialect) -> Usage:
        """Give the usage as the provider reports it: agents let all that is new be written to the cache."""
        if dialect == "openai":
            return Usage(self.uncached_tokens, self.cached_tokens, output_tokens=output_tokens)
        return Usage(0, self.cached_tokens, self.uncached_tokens, output_tokens=output_tokens)


class Caches:
    """The prompt caches of all sessions: one prefix each, alive for five minutes from its last use."""

    def __init__(self, life_s: float = CACHE_LIFE_S) -> None:
        """Begin cold."""
        self.life_s = life_s
        self._kept: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def read(self, session: str, asked: Round, now_s: float) -> Prompt:
        """Say how a prompt would be charged now, and keep alive what it reads."""
        tokens, until_s = self._kept.get(session, (0, 0.0))
        cached = min(tokens, asked.known_tokens, asked.prompt_tokens) if until_s > now_s else 0
        if cached < LEAST_CACHED_TOKENS:
            return Prompt(0, asked.prompt_tokens)
        self._kept[session] = (tokens, now_s + self.life_s)
        return Prompt(cached, asked.prompt_tokens - cached)

    def write(self, session: str, asked: Round, now_s: float) -> None:
        """Keep a prompt whose first token exists."""
        self._kept[session] = (asked.prompt_tokens, now_s + self.life_s)
        self._kept.move_to_end(session)
        if len(self._kept) > MOST_CACHES:
            self._kept.popitem(last=False)


def refusal(pool: Pool, uncached_tokens: int, reserved_tokens: int, now_s: float, *, waiting: bool) -> float | None:
    """Give the whole seconds after which a refused call may come again, or None for a call that is served.

    Anthropic wants some output to be left, not all that will come; OpenAI what the call reserves of its `tokens`.
    """
    wait_s = 0.0
    needs: tuple[tuple[Sequence[Bucket], int], ...] = (
        (pool.requests, 1),
        (pool.input_tokens, uncached_tokens),
        (pool.output_tokens, 1),
        (pool.tokens, reserved_tokens),
    )
    for buckets, units in needs:
        for bucket in buckets:
            bucket.advance(now_s, waiting=waiting)
            if bucket.enforced and bucket.level + _TOLERANCE < units:
                wait_s = max(wait_s, bucket.wait_s(units))
    return float(max(1, ceil(wait_s))) if wait_s else None
