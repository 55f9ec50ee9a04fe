"""The tally of a simulation: calls, waits, programs and shares, counted as they happen.

One rule: every call that was offered is in exactly one place: waiting, under way, served, refused or failed. What the
counts mean is said in `figures`.
"""

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from headgate.adapters.memory import MemoryLevelStore
from headgate.core import quota
from headgate.core.limits import Limit, Rate
from headgate.core.retries import Failure
from headgate.core.usage import Usage
from headgate.ports import Clock
from headgate.sim.buckets import MOST_FOLLOWED, Meters

__all__ = ["SHARES_WINDOW_S", "AccountTally", "Refusal", "Sample", "Sampler", "Share", "Tally"]

SHARES_WINDOW_S = 60.0
"""Shares are compared over windows of this length, as the VTC paper does (Sheng et al., OSDI 2024)."""


@dataclass(slots=True)
class Share:
    """One sharer's work, by window: what it asked for when it asked, and what was let through when it was."""

    asked: dict[int, int] = field(default_factory=dict)
    served: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Refusal:
    """Calls that one limit refused: how many, when first and last, and how full it was at the first.

    `spent` are those of them that could never have gone; the others could not have gone in time.
    """

    first_s: float
    used: float | None
    calls: int = 0
    spent: int = 0
    last_s: float = 0.0


@dataclass(slots=True)
class AccountTally:
    """What one account did: `failures` counts attempts that went wrong, by their kind; `pauses` are circuits opened."""

    served: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_micro_usd: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    pauses: int = 0
    paused_s: float = 0.0


class _Coming(NamedTuple):
    """A call that no provider has taken yet."""

    came_s: float
    interactive: bool
    priority: int
    share: Share
    work: int


class Tally:
    """Counts of one simulation. `waits_s` are by class (interactive or not) and priority, `programs_s` by class.

    A call's `work` is the input that its session had not sent before, and its output: the same under every policy.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.offered = self.served = self.refused = self.failed = self.retries = self.answered_429 = 0
        self.provider_failures = 0
        self.warmed = 0
        self.warming_s = 0.0
        self.waits_s: dict[tuple[bool, int], array[float]] = {}
        self.longest_wait_s = 0.0
        self.programs_s = (array("d"), array("d"))
        self.programs_begun = self.programs_given_up = 0
        self.uncached_of_done = 0
        self.unknown_cost = 0
        self.shares: dict[str, Share] = {}
        self.waiting: dict[int, _Coming] = {}
        self.under_way: set[int] = set()
        self.refusals: dict[str, Refusal] = {}
        self.failures: Counter[str] = Counter()
        """Calls that failed for good, by the provider's word for it."""
        self.accounts: dict[str, AccountTally] = {}
        self._written = 0

    @property
    def usage(self) -> Usage:
        """What all served calls used."""
        read = sum(each.cached_tokens for each in self.accounts.values())
        prompt = sum(each.prompt_tokens for each in self.accounts.values())
        output = sum(each.output_tokens for each in self.accounts.values())
        return Usage(prompt - read - self._written, read, self._written, output_tokens=output)

    @property
    def cost_micro_usd(self) -> int:
        """What all served calls cost, as far as it is known."""
        return sum(each.cost_micro_usd for each in self.accounts.values())

    def account(self, name: str) -> AccountTally:
        """Give an account's counts."""
        found = self.accounts.get(name)
        if found is None:
            found = self.accounts[name] = AccountTally()
        return found

    def came(self, call: int, sharer: str, work: int, now_s: float, *, interactive: bool, priority: int) -> None:
        """Count a call that was offered."""
        self.offered += 1
        share = self.shares.get(sharer)
        if share is None:
            share = self.shares[sharer] = Share()
        window = int(now_s / SHARES_WINDOW_S)
        share.asked[window] = share.asked.get(window, 0) + work
        self.waiting[call] = _Coming(now_s, interactive, priority, share, work)

    def taken(self, call: int, now_s: float) -> None:
        """Count a wait that ended well: the call was admitted, and the provider took it."""
        came_s, interactive, priority, share, work = self.waiting.pop(call)
        wait_s = now_s - came_s
        waits_s = self.waits_s.get((interactive, priority))
        if waits_s is None:
            waits_s = self.waits_s[interactive, priority] = array("d")
        waits_s.append(wait_s)
        self.longest_wait_s = max(self.longest_wait_s, wait_s)
        window = int(now_s / SHARES_WINDOW_S)
        share.served[window] = share.served.get(window, 0) + work
        self.under_way.add(call)

    def served_call(self, call: int, account: AccountTally, usage: Usage, cost_micro_usd: int | None) -> None:
        """Count a call that was answered to its end."""
        self.served += 1
        self.under_way.discard(call)
        uncached, read, written_5m, written_1h, output, _reasoning, _reported = usage
        written = written_5m + written_1h
        self._written += written
        account.served += 1
        account.prompt_tokens += uncached + read + written
        account.cached_tokens += read
        account.output_tokens += output
        if cost_micro_usd is None:
            self.unknown_cost += 1
        else:
            account.cost_micro_usd += cost_micro_usd

    def refused_call(
        self, call: int, now_s: float, limit: str, *, spent: bool, used: Callable[[str], float | None]
    ) -> None:
        """Count a call that Headgate refused, and the limit that did; `used` says how full a limit is now."""
        self.refused += 1
        self._gone(call, now_s)
        found = self.refusals.get(limit)
        if found is None:
            found = self.refusals[limit] = Refusal(now_s, used(limit))
        found.calls += 1
        found.spent += spent
        found.last_s = now_s

    def failed_attempt(self, account: AccountTally, failure: Failure) -> None:
        """Count an attempt that its provider turned away or broke off."""
        if failure.kind == "limited":
            self.answered_429 += 1
        else:
            self.provider_failures += 1
        account.failures["429" if failure.kind == "limited" else failure.error_type] += 1

    def failed_call(self, call: int, now_s: float, failure: Failure) -> None:
        """Count a call whose failure went to its agent."""
        self.failed += 1
        self.failures[failure.error_type] += 1
        self._gone(call, now_s)

    def program_done(self, took_s: float, uncached_tokens: int, *, interactive: bool) -> None:
        """Count a program that came to its end."""
        self.programs_s[interactive].append(took_s)
        self.uncached_of_done += uncached_tokens

    def break_off(self, now_s: float) -> None:
        """Count how long those have waited by now who still wait."""
        for coming in self.waiting.values():
            self.longest_wait_s = max(self.longest_wait_s, now_s - coming.came_s)

    def _gone(self, call: int, now_s: float) -> None:
        self.longest_wait_s = max(self.longest_wait_s, now_s - self.waiting.pop(call).came_s)


class Sample(NamedTuple):
    """How things stand at an instant; totals since the start, and each standing level's share in use."""

    at_s: float
    waiting: int
    under_way: int
    served: int
    answered_429: int
    provider_failures: int
    buckets: dict[str, tuple[float, float]]
    levels: dict[str, float]


class Sampler:
    """Looks at a simulation every so often, for the plots and for what has no bucket: windows, budgets and slots."""

    def __init__(self, store: MemoryLevelStore, meters: Meters, tally: Tally) -> None:
        """Follow no limit yet."""
        self.samples: list[Sample] = []
        self.limits: dict[str, Limit] = {}
        self.spent: dict[str, float] = {}
        """How much of each was spent at the most, what is only held left out."""
        self._store, self._meters, self._tally = store, meters, tally

    def follow(self, limits: Iterable[Limit]) -> None:
        """Look at these from now on, as long as they are not too many."""
        for limit in limits:
            if limit.name in self.limits or len(self.limits) < MOST_FOLLOWED:
                self.limits[limit.name] = limit

    async def take(self, clock: Clock) -> None:
        """Look once."""
        at_s = asyncio.get_running_loop().time()
        self._meters.advance(at_s)
        levels: dict[str, float] = {}
        kept = [limit for limit in self.limits.values() if not isinstance(limit, Rate)]
        if kept:
            now_s = clock.now_s()
            readings = await self._store.transact(
                [limit.name for limit in kept],
                lambda records: ({}, [quota.read(limit, records, now_s) for limit in kept]),
            )
            for limit, reading in zip(kept, readings, strict=True):
                levels[limit.name] = (reading.used + reading.held) / limit.amount
                self.spent[limit.name] = max(self.spent.get(limit.name, 0.0), reading.used / limit.amount)
        if self.samples and self.samples[-1].at_s == at_s:  # the end may come at a look
            del self.samples[-1]
        tally = self._tally
        buckets = {name: (bucket.used, bucket.level) for name, bucket in self._meters.followed.items()}
        self.samples.append(
            Sample(
                at_s,
                len(tally.waiting),
                len(tally.under_way),
                tally.served,
                tally.answered_429,
                tally.provider_failures,
                buckets,
                levels,
            )
        )
