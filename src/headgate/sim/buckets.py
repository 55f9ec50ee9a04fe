"""Buckets: what a modelled provider really lets through, exact and in virtual time.

One rule: this is the truth that admission is measured against, so it shares no arithmetic with `headgate.core`; output
flows out of its bucket while it is produced, as real providers meter it.
"""

from collections.abc import Iterable
from math import ceil

from headgate.core.amounts import Dimension
from headgate.core.limits import Rate
from headgate.core.notices import RateNotice
from headgate.sim.workload import Round

__all__ = ["MINUTE_S", "MOST_FOLLOWED", "Bucket", "Meters", "Pool"]

MOST_FOLLOWED = 50
MINUTE_S = 60
_TOLERANCE = 1e-6

TOKENS_ROUNDED_TO = 1_000
"""What is left of tokens is told to the nearest thousand (Anthropic, "Rate limits"; wire.md section 2)."""


class Bucket:
    """One bucket that is refilled continuously, and what became of what it was refilled with.

    `lost` is refill that found it full; `lost_waiting` of that while somebody waited. A flow drains it evenly. One that
    is not `enforced` is followed for its figures alone.
    """

    __slots__ = ("at_s", "capacity", "enforced", "flow", "level", "limit", "lost", "lost_waiting", "rate", "used")

    def __init__(self, limit: Rate, scale: float = 1.0, *, enforced: bool = True) -> None:
        """Start full, at 0 s, with so many times the limit."""
        self.limit = limit
        self.rate = limit.amount * scale / limit.period_s
        self.capacity = self.level = max(1.0, (limit.largest or limit.burst) * scale)
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

    def told(self, epoch_s: float) -> RateNotice:
        """Give what the head of an answer says of it: in whole requests, thousands of tokens and whole seconds."""
        dimension, left = self.limit.dimension, max(0.0, self.level)
        rounded_to = 1 if dimension in ("requests", "tokens") else TOKENS_ROUNDED_TO
        remaining = int(left) if rounded_to == 1 else round(left / rounded_to) * rounded_to
        full_s = epoch_s + self.at_s + (self.capacity - self.level) / self.rate
        return RateNotice(dimension, round(self.rate * MINUTE_S), remaining, float(ceil(full_s)), "", rounded_to)


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
        name = bucket.limit.name
        self.buckets[name] = bucket
        if len(self.followed) < MOST_FOLLOWED:
            self.followed[name] = bucket

    def enters(self, now_s: float) -> None:
        """Count a call that has to wait."""
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

    __slots__ = ("_every", "enforced", "input_tokens", "output_tokens", "requests", "tokens")

    def __init__(self, buckets: Iterable[Bucket]) -> None:
        """Draw from these."""
        by_dimension: dict[Dimension, list[Bucket]] = {}
        for bucket in buckets:
            by_dimension.setdefault(bucket.limit.dimension, []).append(bucket)
        self.requests = by_dimension.get("requests", [])
        self.input_tokens = by_dimension.get("input_tokens", [])
        self.output_tokens = by_dimension.get("output_tokens", [])
        self.tokens = by_dimension.get("tokens", [])
        self._every = [bucket for each in by_dimension.values() for bucket in each]
        self.enforced = [bucket for bucket in self._every if bucket.enforced]

    def refused_for(
        self, uncached_tokens: int, reserved_tokens: int, now_s: float, *, waiting: bool
    ) -> tuple[Bucket, float] | None:
        """Give the bucket that a call must wait for longest, and for how long; None for one that is served.

        Anthropic wants some output to be left, not all that will come; OpenAI what the call reserves of its `tokens`.
        """
        longest: tuple[Bucket, float] | None = None
        for bucket in self._every:
            bucket.advance(now_s, waiting=waiting)
        for buckets, units in (
            (self.requests, 1),
            (self.input_tokens, uncached_tokens),
            (self.output_tokens, 1),
            (self.tokens, reserved_tokens),
        ):
            for bucket in buckets:
                if bucket.enforced and bucket.level + _TOLERANCE < units:
                    wait_s = bucket.wait_s(units)
                    if longest is None or wait_s > longest[1]:
                        longest = bucket, wait_s
        return longest

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

    def told(self, now_s: float, epoch_s: float, *, waiting: bool) -> tuple[RateNotice, ...]:
        """Give what the head of an answer says of the rates by the minute."""
        for bucket in self.enforced:
            bucket.advance(now_s, waiting=waiting)
        return tuple(bucket.told(epoch_s) for bucket in self.enforced if bucket.limit.period_s == MINUTE_S)
