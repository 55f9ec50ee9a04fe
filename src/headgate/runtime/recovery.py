"""Recovery: what processes that died left behind.

One rule: a lost hold is spent for rates, released for slots, pending at its estimate for money, until the provider is
asked what really happened; every step may be done twice, by two processes at once, and counts once.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from headgate.core.amounts import NOTHING
from headgate.core.errors import ProviderError
from headgate.core.instants import to_ns
from headgate.core.ledger import Attempt
from headgate.core.usage import CHARGES, Counting
from headgate.ports import Clock, Cost, Fate, LedgerStore, Prices, Provider
from headgate.runtime.reservations import HOLD_PREFIX, Held, Reservations, Resolve

log = logging.getLogger("headgate.recovery")

LATE_S = 300.0
"""A hold that nobody renewed for so long after its lease is a dead process's, on whatever host that was: a living one
renews every 20 s."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a sweep found: holds that were counted as lost, rows marked so, and rows whose truth was learned."""

    expired: int = 0
    lost: int = 0
    reconciled: int = 0


class Settled(NamedTuple):
    """What a settlement of a lost call found to settle: its hold, its row; False where another was first."""

    hold: bool
    row: bool


class Recovery:
    """Settles what dead processes held and had in flight."""

    def __init__(
        self,
        *,
        reservations: Reservations,
        ledger: LedgerStore,
        prices: Prices,
        clock: Clock,
        owner: str,
        owner_is_alive: Callable[[str], bool],
        providers: Mapping[str, Provider],
        countings: Mapping[str, Counting],
        resolve: Resolve,
        look_at_clock: Callable[[], Awaitable[None]],
    ) -> None:
        """Look after everything that is not `owner`'s own."""
        self._look_at_clock = look_at_clock
        self._reservations = reservations
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._owner = owner
        self._owner_is_alive = owner_is_alive
        self._providers = providers
        self._countings = countings
        self._resolve = resolve

    async def revive(self) -> None:
        """Renew what is held by processes that may live, before a clock that has jumped takes it from them.

        Where it was set back, what is ahead of it is set right.
        """
        await self._look_at_clock()
        await self._reservations.renew_all(self._dead(), self._resolve)

    async def sweep(self) -> Recovered:
        """Expire the holds and mark the rows of dead processes, then ask their providers what became of them."""
        await self._reservations.catch_up()
        dead = self._dead()
        # The holds first: a call whose hold is seen has its row by the time the rows are read, or was never sent.
        late_ns = to_ns(self._clock.now_s() - LATE_S)
        holds = await self._reservations.of_others()
        lost_holds = [held for held in holds if dead(held.owner)]
        silent = [held for held in holds if held.expires_ns < late_ns]
        silent_attempts = {held.attempt for held in silent}
        with_row: set[str] = set()
        lost = reconciled = 0
        unreachable: set[str] = set()
        async for row in self._open_rows():
            if not dead(row.owner) and row.id not in silent_attempts:
                continue
            with_row.add(row.id)
            if row.state == "in_flight":
                cost = self._prices.cost(row.model, row.usage, row.admitted_s)
                lost += await self._ledger.finish(
                    replace(row, state="lost", cost_micro_usd=row.held_micro_usd, price_version=cost.version)
                )
            reconciled += await self._reconcile(row, unreachable)
        # What the provider told is settled exactly by now; only what it did not tell counts as lost.
        expired = await self._expire({held.name: held for held in (*lost_holds, *silent)}, with_row)
        return Recovered(expired, lost, reconciled)

    async def _open_rows(self) -> AsyncIterator[Attempt]:
        """Give all rows in flight or lost: those that nobody can be asked about stay, and may be many."""
        page = await self._ledger.in_flight()
        while page:
            for row in page:
                yield row
            page = await self._ledger.in_flight(page[-1])

    async def lost(self) -> list[Attempt]:
        """Give the calls of dead processes whose use nobody knows, oldest first, at most 10,000."""
        dead = self._dead()
        return [row for row in await self._ledger.in_flight() if row.state == "lost" or dead(row.owner)]

    async def settle(self, row: Attempt, fate: Fate, cost: Cost) -> Settled:
        """Settle a lost call by what became of it; a cost of None spends what was held. The first to say so counts."""
        # Without its account the one that counts more.
        charge = CHARGES[self._countings.get(row.scopes.account or "", "openai")]
        actual = charge(fate.usage, cost.micro_usd) if fate.arrived else NOTHING
        # The hold first: a row that is final while its hold is open would look like a call that never left.
        hold = await self._reservations.reconcile(f"{HOLD_PREFIX}{row.owner}/{row.id}", self._resolve, actual)
        final = replace(
            row,
            state="reconciled",
            usage=fate.usage,
            cost_micro_usd=cost.micro_usd,
            price_version=cost.version,
            provider_request=fate.provider_request,
            done_s=row.done_s or self._clock.now_s(),
            sent=fate.arrived,
        )
        return Settled(hold, await self._ledger.finish(final))

    async def _expire(self, holds: Mapping[str, Held], with_row: Collection[str]) -> int:
        expired = 0
        for held in holds.values():
            if held.attempt in with_row:
                expired += await self._reservations.expire(held.name, self._resolve)
            else:
                # Killed between the hold and the row: the call never left, so all of it comes back.
                expired += await self._reservations.reconcile(held.name, self._resolve, NOTHING)
        return expired

    async def _reconcile(self, row: Attempt, unreachable: set[str]) -> bool:
        """Settle a row by what its provider tells; an account that nobody answers for is not asked again."""
        account = row.scopes.account or ""
        provider = self._providers.get(account)
        if provider is None or account in unreachable:
            return False
        try:
            fate = await provider.look_up(row.id)
        except ProviderError as error:
            if error.failure.kind == "connection":  # each further call would wait out the same time-out
                unreachable.add(account)
                log.warning("account %s cannot tell now what became of lost calls: %s", account, error)
            else:
                log.warning("cannot learn what became of call %s: %s", row.id, error)
            return False
        if fate is None:
            return False
        return (await self.settle(row, fate, self._prices.cost(row.model, fate.usage, row.admitted_s))).row

    def _dead(self) -> Callable[[str], bool]:
        """Give the question whether an owner is dead, which looks at each process once."""

        @cache
        def dead(owner: str) -> bool:
            return owner != self._owner and not self._owner_is_alive(owner)

        return dead
