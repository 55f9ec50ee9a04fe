"""The providers of a simulation: one for each account, with limits of its own, a pace, a prompt cache and its faults.

One rule: a provider knows nothing of Headgate: what Headgate knows of it are its answers. It waits for nothing:
whoever drives it does.
"""

import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, get_args

from headgate.core.amounts import Dimension
from headgate.core.limits import Limit, Rate
from headgate.core.notices import NO_NOTICES, Notices
from headgate.core.retries import Failure
from headgate.core.usage import Dialect, Usage
from headgate.ports import Headers
from headgate.sim.buckets import MINUTE_S, Bucket, Meters, Pool
from headgate.sim.workload import Prefix, Round

__all__ = [
    "CACHE_LIFE_S",
    "FAULT_KINDS",
    "Caches",
    "Fault",
    "FaultKind",
    "Head",
    "ModelledProvider",
    "Outage",
    "Pace",
    "Prompt",
    "Terms",
    "Truth",
    "reserved_tokens",
]

CACHE_LIFE_S = 300.0
LEAST_CACHED_TOKENS = 1_024
"""Anthropic, "Prompt caching" (wire.md section 2): five minutes from its last use, nothing below 1,024 tokens."""

MOST_CACHES = 200_000

FaultKind = Literal["529", "500", "disconnect", "stall"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
"""Answers with that status; a connection that ends before a byte; no answer at all until Headgate gives up."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long an answer takes.

    By default what TraceLab's rounds show of a large model (see `agents`): 50 to 54 tokens a second, and 5.7 s for a
    median round of 252 tokens, of which a second is left for the first token.
    """

    first_token_s: float = 1.0
    tokens_per_second: float = 53.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What an account's provider enforces: so much of its configured rates, or amounts a minute of its own.

    `per_minute` goes before what is configured, and is enforced where nothing is.
    """

    limits_scale: float = 1.0
    per_minute: Mapping[Dimension, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outage:
    """A time in which every call to an account (None: to any) goes wrong."""

    from_s: float
    for_s: float
    kind: FaultKind = "529"
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A part of the calls to an account (None: to any) that goes wrong, drawn by the seed."""

    kind: FaultKind
    share: float
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """What the providers are really like: terms by account (`*`: of those not named), outages and faults.

    With `tells` the head of an answer says what the limits are and what is left of them, as the vendors' do.
    """

    terms: Mapping[str, Terms] = field(default_factory=dict)
    outages: tuple[Outage, ...] = ()
    faults: tuple[Fault, ...] = ()
    tells: bool = True

    def terms_of(self, account: str) -> Terms:
        """Give the terms of an account."""
        return self.terms.get(account) or self.terms.get("*") or Terms()


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
    """The prompt caches of one account: a prefix of each session and shared ones, five minutes from their last use."""

    def __init__(self, life_s: float = CACHE_LIFE_S) -> None:
        """Begin cold."""
        self.life_s = life_s
        self._kept: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._shared: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def read(self, session: str, asked: Round, now_s: float, prefix: Prefix | None = None) -> Prompt:
        """Say how a prompt would be charged now, and keep alive what it reads."""
        tokens, until_s = self._kept.get(session, (0, 0.0))
        cached = min(tokens, asked.known_tokens, asked.prompt_tokens) if until_s > now_s else 0
        if prefix is not None:
            shared, until_s = self._shared.get(prefix.name, (0, 0.0))
            if until_s > now_s:
                self._shared[prefix.name] = (shared, now_s + self.life_s)
                shared = min(shared, prefix.tokens, asked.prompt_tokens)
                if shared > cached:
                    return Prompt(shared, asked.prompt_tokens - shared)
        if cached < LEAST_CACHED_TOKENS:
            return Prompt(0, asked.prompt_tokens)
        self._kept[session] = (tokens, now_s + self.life_s)
        return Prompt(cached, asked.prompt_tokens - cached)

    def write(self, session: str, asked: Round, now_s: float, prefix: Prefix | None = None) -> None:
        """Keep a prompt whose first token exists."""
        _keep(self._kept, session, asked.prompt_tokens, now_s + self.life_s)
        if prefix is not None:
            shared = min(prefix.tokens, asked.prompt_tokens)
            if shared >= LEAST_CACHED_TOKENS:
                _keep(self._shared, prefix.name, shared, now_s + self.life_s)


def _keep(kept: OrderedDict[str, tuple[int, float]], name: str, tokens: int, until_s: float) -> None:
    kept[name] = (tokens, until_s)
    kept.move_to_end(name)
    if len(kept) > MOST_CACHES:
        kept.popitem(last=False)


class Head:
    """The head of an answer, as a provider's adapter would give it."""

    __slots__ = ("_made_s", "_pool", "_provider", "failure")

    headers: Headers = ()
    usage: Usage | None = None
    output_seen_tokens = 0
    model_served: str | None = None
    provider_request: str | None = None

    def __init__(self, provider: "ModelledProvider", pool: Pool, failure: Failure | None, made_s: float) -> None:
        """Say whether the call failed; what it tells of limits is made when somebody asks, in the same moment."""
        self._provider = provider
        self._pool = pool
        self.failure = failure
        self._made_s = made_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return 200 if self.failure is None else self.failure.status or 500

    def notices(self, now_s: float) -> Notices:  # noqa: ARG002 - as `ports.Answer` has it
        """Give what it says of limits."""
        return self._provider.notices(self._pool, self.failure, self._made_s)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Give no body: what is in it is counted, not written."""
        raise NotImplementedError


_FAILURES: Mapping[FaultKind, Failure] = {
    "529": Failure("overloaded", "overloaded_error", 529),
    "500": Failure("server", "api_error", 500),
    "disconnect": Failure("connection", "no_answer_broken"),
    "stall": Failure("connection", "no_answer_timeout"),
}


class ModelledProvider:
    """What stands behind one account."""

    def __init__(
        self,
        account: str,
        truth: Truth,
        meters: Meters,
        *,
        epoch_s: float,
        cache_life_s: float,
        chooser: random.Random,
    ) -> None:
        """Begin with full buckets and cold caches; `epoch_s` is the wall clock at 0 s."""
        self.account = account
        self.caches = Caches(cache_life_s)
        self.own_limits: tuple[Rate, ...] = tuple(
            _own_rate(account, dimension, amount) for dimension, amount in truth.terms_of(account).per_minute.items()
        )
        self._truth = truth
        self._terms = truth.terms_of(account)
        self._outages = [each for each in truth.outages if each.account in (None, account)]
        self._faults = [each for each in truth.faults if each.account in (None, account)]
        self.is_faulty = bool(self._outages or self._faults)
        self._meters = meters
        self._epoch_s = epoch_s
        self._chooser = chooser

    def pool(self, limits: Iterable[Limit]) -> Pool:
        """Give the buckets of a call that meets these configured limits; what is no rate is the owner's own affair."""
        scope, own = f"account:{self.account}", self._terms.per_minute
        rates = [limit for limit in limits if isinstance(limit, Rate)]
        meant = [rate for rate in rates if rate.scope != scope or rate.dimension not in own]
        return Pool([self._bucket(rate, enforced=rate.scope == scope) for rate in (*meant, *self.own_limits)])

    def fault(self, now_s: float) -> Failure | None:
        """Say what goes wrong with a call that comes now, beside its limits."""
        for outage in self._outages:
            if outage.from_s <= now_s < outage.from_s + outage.for_s:
                return _FAILURES[outage.kind]
        for fault in self._faults:
            if self._chooser.random() < fault.share:
                return _FAILURES[fault.kind]
        return None

    def refusal(self, pool: Pool, uncached_tokens: int, reserved_tokens: int, now_s: float) -> Failure | None:
        """Give the 429 of a call that a bucket cannot serve, with the whole seconds after which it may come again."""
        found = pool.refused_for(uncached_tokens, reserved_tokens, now_s, waiting=self._meters.waiting > 0)
        if found is None:
            return None
        bucket, wait_s = found
        after_s = float(max(1, ceil(wait_s)))
        return Failure("limited", "rate_limit_error", 429, after_s, dimension=bucket.limit.dimension)

    def head(self, pool: Pool, failure: Failure | None, now_s: float) -> Head:
        """Give the head of an answer that comes now."""
        return Head(self, pool, failure, now_s)

    def notices(self, pool: Pool, failure: Failure | None, now_s: float) -> Notices:
        """Give what the head of an answer says of limits."""
        rates = pool.told(now_s, self._epoch_s, waiting=self._meters.waiting > 0) if self._truth.tells else ()
        retry_after_s = None if failure is None else failure.retry_after_s
        return Notices(rates, retry_after_s=retry_after_s) if rates or retry_after_s else NO_NOTICES

    def _bucket(self, rate: Rate, *, enforced: bool) -> Bucket:
        found = self._meters.buckets.get(rate.name)
        if found is None:
            own = rate in self.own_limits
            found = Bucket(rate, self._terms.limits_scale if enforced and not own else 1.0, enforced=enforced)
            self._meters.add(found)
        return found


def _own_rate(account: str, dimension: Dimension, amount: int) -> Rate:
    """Give a rate of a provider's that nobody configured, a minute deep as the vendors' are."""
    scope = f"account:{account}"
    name = f"{scope} * {dimension} rate-{MINUTE_S}s"
    return Rate(name, scope, dimension, amount, MINUTE_S, amount)


def reserved_tokens(pool: Pool, asked: Round) -> int:
    """Give what a call reserves of a limit on all its tokens, where there is one."""
    return max(asked.max_output_tokens, asked.prompt_tokens) if pool.tokens else 0
