"""Sight: what each account could do for a call now, as far as this process knows it without asking the store.

One rule: levels are those that the last transactions here left; what other processes did since is read once a second
at the most, all accounts of a choice in one trip, and at once after the store has told of a change. The admission
itself is exact whatever was seen.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from headgate.core import quota, set_aside
from headgate.core.accounts import Account
from headgate.core.amounts import Amounts, Demand
from headgate.core.instants import NS_PER_S
from headgate.core.limits import Limit, Rate, Window
from headgate.core.pace import PlanShare
from headgate.core.pool import expected_wait_s
from headgate.core.quota import Admitted, Refused, Wait
from headgate.core.scopes import Scopes
from headgate.core.set_aside import Closure
from headgate.core.spans import OpenedByUse
from headgate.ports import Clock
from headgate.runtime.lane_table import LaneTable
from headgate.runtime.plan_shares import PlanShares
from headgate.runtime.planning import Maintenance, PlannedReservations
from headgate.runtime.reservations import Reservations
from headgate.runtime.rules import Rules
from headgate.runtime.telling import describe

LOOK_EVERY_S = 1.0
"""How old what other processes did may be when an account is chosen."""

MOST_LOOKED_AT = 5_000


@dataclass(frozen=True, slots=True)
class Prospect:
    """What one account could do for a call: `wait_s` as it is expected, `opens_s` when it has room if nobody comes."""

    wait_s: float
    opens_s: float
    is_free: bool
    refused: str | None
    cost_s: float
    headroom: float
    plans: tuple[PlanShare, ...]


class Sight:
    """Looks at the limits of one process's accounts."""

    def __init__(
        self,
        *,
        reservations: Reservations,
        rules: Rules,
        planned: PlannedReservations,
        maintenance: Maintenance,
        lanes: LaneTable,
        shares: PlanShares,
        clock: Clock,
    ) -> None:
        """Look through these; nothing is read yet."""
        self._reservations = reservations
        self._rules = rules
        self._planned = planned
        self._maintenance = maintenance
        self._lanes = lanes
        self._shares = shares
        self._clock = clock
        self._looked_s = -math.inf
        self._looked_at: set[str] = set()
        self._looking = asyncio.Lock()

    async def look(self, accounts: Sequence[Account], scopes: Scopes, model: str) -> None:
        """See what other processes did, unless that was seen within LOOK_EVERY_S.

        Raises:
            StoreError: the store cannot be read.
        """
        names = [limit.name for account in accounts for limit in self._own(account, scopes, model)]
        if not names or self._are_fresh(names):
            return
        async with self._looking:  # one looks, the others need not
            if not self._are_fresh(names):
                began_s = self._clock.now_s()
                await self._reservations.look(names)
                if not 0 <= began_s - self._looked_s < LOOK_EVERY_S or len(self._looked_at) > MOST_LOOKED_AT:
                    self._looked_at.clear()
                    self._looked_s = began_s
                self._looked_at.update(names)

    def forget(self) -> None:
        """Hear that another process has changed something."""
        self._looked_s = -math.inf

    def prospect(
        self,
        account: Account,
        scopes: Scopes,
        model: str,
        demand: Demand,
        lost: Amounts,
        now_s: float,
        so_far_s: float,
    ) -> Prospect:
        """Say what an account could do for a call that has waited `so_far_s`, and loses so much of its cache there."""
        scopes = scopes._replace(account=account.name)
        limits = self._rules.in_force(self._rules.limits_for(scopes, model))
        seen, path = self._reservations.seen, scopes.path()
        plans = self._planned.met(limits, path, self._maintenance.met(path, model))
        outcome = set_aside.admit(limits, seen, demand, now_s, plans=plans)
        own = [limit for limit in limits if limit.scope == f"account:{account.name}"]
        readings = [(limit, quota.read(limit, seen, now_s)) for limit in own]
        if isinstance(outcome, Wait):
            outcome = self._lanes.guessed(outcome, now_s)
        own_s, opens_s, refused = _in_time(outcome, now_s, so_far_s)
        first_s, queued_s = self._lanes.queued(limits)
        return Prospect(
            wait_s=max(own_s, first_s) + queued_s,
            opens_s=opens_s,
            is_free=isinstance(outcome, Admitted) and queued_s == 0.0 and first_s == 0.0,
            refused=refused,
            cost_s=_cost_s(own, lost),
            headroom=min((reading.free / _depth(limit) for limit, reading in readings), default=1.0),
            plans=(
                *(
                    _share(limit, reading.used + reading.held, reading.resets_ns)
                    for limit, reading in readings
                    if isinstance(limit, Window) and isinstance(limit.span, OpenedByUse)
                ),
                *self._shares.of(account.name, model),
            ),
        )

    def _own(self, account: Account, scopes: Scopes, model: str) -> list[Limit]:
        limits = self._rules.limits_for(scopes._replace(account=account.name), model)
        return [limit for limit in self._planned.with_parts(limits) if limit.scope == f"account:{account.name}"]

    def _are_fresh(self, names: Sequence[str]) -> bool:
        return 0 <= self._clock.now_s() - self._looked_s < LOOK_EVERY_S and self._looked_at.issuperset(names)


def _in_time(outcome: Admitted | Wait | Refused, now_s: float, so_far_s: float) -> tuple[float, float, str | None]:
    """Give the wait that is expected, when there is room if nobody comes, and why never."""
    match outcome:
        case Admitted():
            return 0.0, now_s, None
        case Refused(limit):
            return math.inf, math.inf, f"it can never serve the call: {limit.name}"
        case Wait(until_s, earliest_s, limit):
            if isinstance(limit, Closure) and limit.refuses:
                return math.inf, math.inf, f"{describe(limit)} refuses calls"
            wait_s = expected_wait_s(max(0.0, earliest_s - now_s), max(0.0, until_s - now_s), so_far_s)
            return wait_s, until_s if earliest_s <= now_s else earliest_s, None


def _share(limit: Window, used: int, resets_ns: int | None) -> PlanShare:
    assert isinstance(limit.span, OpenedByUse)
    resets_s = None if resets_ns is None else resets_ns / NS_PER_S
    return PlanShare(limit.span.period_s, used / limit.amount, resets_s, limit.models)


def _cost_s(limits: Sequence[Limit], amounts: Amounts) -> float:
    costs = ((amounts[limit.place] or 0) * limit.period_s / limit.amount for limit in limits if isinstance(limit, Rate))
    return max(costs, default=0.0)


def _depth(limit: Limit) -> int:
    return limit.burst if isinstance(limit, Rate) else max(1, limit.amount)
