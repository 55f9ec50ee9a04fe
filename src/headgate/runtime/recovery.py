"""Recovery: what processes that died left behind.

One rule: a lost hold is spent for rates, released for slots, pending at its estimate for money, until the provider is
asked what really happened; every step may be done twice, by two processes at once, and counts once.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from headgate.core.amounts import NOTHING
from headgate.core.errors import ProviderError
from headgate.core.ledger import Attempt
from headgate.core.usage import CHARGES, Dialect
from headgate.ports import Clock, LedgerStore, Prices, Provider
from headgate.runtime.reservations import HOLD_PREFIX, Reservations, Resolve

log = logging.getLogger("headgate.recovery")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a sweep found: holds that were counted as lost, rows marked so, and rows whose truth was learned."""

    expired: int = 0
    lost: int = 0
    reconciled: int = 0


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
        dialects: Mapping[str, Dialect],
        resolve: Resolve,
    ) -> None:
        """Look after everything that is not `owner`'s own."""
        self._reservations = reservations
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._owner = owner
        self._owner_is_alive = owner_is_alive
        self._providers = providers
        self._dialects = dialects
        self._resolve = resolve

    async def sweep(self) -> Recovered:
        """Expire the holds and mark the rows of dead processes, then ask their providers what became of them."""
        alive: dict[str, bool] = {}

        def dead(owner: str) -> bool:
            if owner not in alive:
                alive[owner] = owner == self._owner or self._owner_is_alive(owner)
            return not alive[owner]

        rows = {row.id: row for row in await self._ledger.in_flight() if dead(row.owner)}
        expired = await self._expire(rows, dead)
        lost = reconciled = 0
        for row in rows.values():
            if row.state == "in_flight":
                cost = self._prices.cost(row.model, row.usage, row.admitted_s)
                lost += await self._ledger.finish(
                    replace(row, state="lost", cost_micro_usd=row.held_micro_usd, price_version=cost.version)
                )
            reconciled += await self._reconcile(row)
        return Recovered(expired, lost, reconciled)

    async def _expire(self, rows: Mapping[str, Attempt], dead: Callable[[str], bool]) -> int:
        expired = 0
        for hold_name, owner, attempt in await self._reservations.of_others():
            if not dead(owner):
                continue
            if attempt in rows:
                expired += await self._reservations.expire(hold_name, self._resolve)
            else:
                # Killed between the hold and the row: the call never left, so all of it comes back.
                expired += await self._reservations.reconcile(hold_name, self._resolve, NOTHING)
        return expired

    async def _reconcile(self, row: Attempt) -> bool:
        account = row.scopes.account or ""
        provider, dialect = self._providers.get(account), self._dialects.get(account)
        if provider is None or dialect is None:
            return False
        try:
            fate = await provider.look_up(row.id)
        except ProviderError as error:
            log.warning("cannot learn what became of call %s: %s", row.id, error)
            return False
        if fate is None:
            return False
        cost = self._prices.cost(row.model, fate.usage, row.admitted_s)
        # The hold first: a row that is final while its hold is open would look like a call that never left.
        actual = CHARGES[dialect](fate.usage, cost.micro_usd) if fate.arrived else NOTHING
        await self._reservations.reconcile(f"{HOLD_PREFIX}{row.owner}/{row.id}", self._resolve, actual)
        return await self._ledger.finish(
            replace(
                row,
                state="reconciled",
                usage=fate.usage,
                cost_micro_usd=cost.micro_usd,
                price_version=cost.version,
                provider_request=fate.provider_request,
                done_s=row.done_s or self._clock.now_s(),
            )
        )
