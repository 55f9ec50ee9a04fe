"""Reservations in the store: taken, settled, renewed and expired, each in one transaction.

One rule: a reservation's own record decides, so settling is exactly once: whoever finds the record gone does nothing.
Waiting is `admission`'s affair; the arithmetic is the core's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from headgate.core import quota
from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.limits import Level, Limit
from headgate.core.quota import Admitted, Refused, Reservation, Wait
from headgate.core.scopes import NO_SCOPES, Scopes
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.planning import PLANS, Maintenance, PlannedReservations, serial_of

HOLD_PREFIX = "hold/"

MOST_SEEN = 20_000
"""Levels kept as they were seen last; beyond that, seeing begins anew."""

_UNCHANGED: Mapping[str, Record | None] = MappingProxyType({})

_name_of: Callable[[Limit], str] = attrgetter("name")

Resolve = Callable[[Sequence[str]], Sequence[Limit]]
"""Names of levels in, the limits that keep them out."""

_Change = Callable[[Mapping[str, Level], Reservation], tuple[dict[str, Level], Reservation | None]]


class Held(NamedTuple):
    """A reservation in the store: its record's name, whose it is, for which attempt, and when its lease ends."""

    name: str
    owner: str
    attempt: str
    expires_ns: int


class Reservations:
    """The reservations of one process, named `owner`, in a level store."""

    def __init__(
        self,
        store: LevelStore,
        clock: Clock,
        owner: str,
        *,
        lease_s: float,
        in_force: Callable[[Sequence[Limit]], Sequence[Limit]] | None = None,
        met_now: Callable[[Sequence[Limit]], Sequence[Limit]] | None = None,
        planned: PlannedReservations | None = None,
        maintenance: Maintenance | None = None,
    ) -> None:
        """Let a reservation expire `lease_s` after it was taken or renewed.

        `in_force` gives limits as they are now: they may have changed while a call waited for them; `met_now` without
        those that no call meets any more. With it, `seen` has the levels as the last admissions here left them.
        """
        self._store = store
        self._planned = planned or PlannedReservations(store, clock)
        self._maintenance = maintenance or Maintenance((), clock)
        self._clock = clock
        self._owner = owner
        self._hold_prefix = f"{HOLD_PREFIX}{owner}/"
        self._lease_s = lease_s
        self._in_force = in_force
        self._met_now = met_now or in_force
        self.seen: dict[str, Level] = {}
        self.revive: Callable[[], Awaitable[None]] | None = None
        """Renews what living processes hold; asked before anything is judged by a clock that has jumped."""
        self._reviving = asyncio.Lock()
        self._late_from_s = clock.now_s() + lease_s / 2  # a living process renews each sixth of it

    def has_own(self, limits: Sequence[Limit], scopes: Scopes) -> bool:
        """Whether something of these limits is reserved for a call of these scopes."""
        return bool(self._planned.standing and self._planned.met(limits, scopes.path()).own)

    async def take(
        self,
        attempt: str,
        limits: Sequence[Limit],
        asked: Demand,
        scopes: Scopes = NO_SCOPES,
        model: str = "",
        *,
        own_only: bool = False,
    ) -> Admitted | Wait | Refused:
        """Admit an attempt now or say when; what is admitted is held under the attempt's id.

        With `own_only` it takes nothing but what is reserved for its `scopes`.
        """
        if self._clock.now_s() > self._late_from_s:
            await self.catch_up()
        if not self._planned.standing and not self._maintenance.rules:
            outcome = await self._take(attempt, limits, asked)
            if outcome is not None:
                return outcome
            await self._planned.refresh()  # another process has planned
        path = scopes.path()
        return await self._planned.take(
            self._hold_prefix + attempt,
            limits if self._met_now is None else self._met_now(limits),
            asked,
            lease_s=self._lease_s,
            path=path,
            closures=self._maintenance.met(path, model),
            own_only=own_only,
        )

    def _take(
        self, attempt: str, limits: Sequence[Limit], asked: Demand
    ) -> Awaitable[Admitted | Wait | Refused | None]:
        """Admit under the limits alone; None if there are planned reservations that this process does not know."""
        hold_name = self._hold_prefix + attempt
        now_s, lease_s = self._clock.now_s, self._lease_s
        met_now = self._met_now
        if met_now is not None:
            limits = met_now(limits)

        known = self._planned.serial

        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], Admitted | Wait | Refused | None]:
            if PLANS in records and serial_of(records) != known:
                return _UNCHANGED, None
            outcome = quota.admit(limits, records, asked, now_s(), lease_s=lease_s)
            if type(outcome) is not Admitted:
                return _UNCHANGED, outcome
            levels, reservation = outcome
            if met_now is not None:
                self._see(levels)
            levels[hold_name] = reservation  # type: ignore[assignment]  # a store keeps both
            return levels, outcome

        return self._store.transact(chain((PLANS,), map(_name_of, limits)), step)

    async def take_behind(
        self,
        attempt: str,
        limits: Sequence[Limit],
        asked: Demand,
        head_limits: Sequence[Limit],
        head_asked: Demand,
    ) -> Admitted | Wait | Refused:
        """As `take`, but only if that does not delay another that waits; nobody does where something is planned."""
        await self.catch_up()
        if self._planned.standing or self._maintenance.rules:
            now_s = self._clock.now_s()
            return Wait(now_s, now_s, limits[0])
        hold_name = self._hold_prefix + attempt
        if self._met_now is not None:
            limits, head_limits = self._met_now(limits), self._met_now(head_limits)

        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], Admitted | Wait | Refused]:
            now_s = self._clock.now_s()
            outcome = quota.admit_behind(limits, records, asked, head_limits, head_asked, now_s, lease_s=self._lease_s)
            if not isinstance(outcome, Admitted):
                return _UNCHANGED, outcome
            return {**outcome.levels, hold_name: outcome.reservation}, outcome

        return await self._store.transact(chain(map(_name_of, limits), map(_name_of, head_limits)), step)

    async def settle(
        self, attempt: str, limits: Sequence[Limit], actual: Amounts, dimensions: Collection[Dimension] | None = None
    ) -> bool:
        """Replace an attempt's holds (in `dimensions`, or all) by what was used; False if there are none any more."""
        hold_name = self._hold_prefix + attempt
        now_s = self._clock.now_s()
        if self._in_force is not None:
            limits = self._in_force(limits)
        if self._planned.standing:
            limits = self._planned.with_parts(limits)

        # As `_change` does, in one step less: this is on the way of every call.
        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], bool]:
            record = records.get(hold_name)
            if record is None:
                return _UNCHANGED, False
            changed, rest = quota.settle(limits, records, record, actual, now_s, dimensions)  # type: ignore[arg-type]  # as taken
            changed[hold_name] = rest  # type: ignore[assignment]  # a store keeps both
            return changed, True

        return await self._store.transact(chain((hold_name,), map(_name_of, limits)), step)

    async def draw(self, attempt: str, limits: Sequence[Limit], so_far: Amounts) -> bool:
        """Charge what an attempt has used of its rates so far; False if nothing of it is held any more."""
        limits = self._planned.with_parts(limits)

        def change(levels: Mapping[str, Level], reserved: Reservation) -> tuple[dict[str, Level], Reservation | None]:
            return quota.draw(limits, levels, reserved, so_far, self._clock.now_s())

        return await self._change(self._hold_prefix + attempt, limits, change)

    async def renew(self, attempt: str, limits: Sequence[Limit]) -> bool:
        """Say that an attempt lives."""
        limits = self._planned.with_parts(limits)
        return await self._change(self._hold_prefix + attempt, limits, partial(self._renew, limits))

    def renewed(self) -> None:
        """Say that all that this process holds was renewed."""
        self._late_from_s = self._clock.now_s() + self._lease_s / 2

    async def catch_up(self) -> None:
        """Return at once, unless this process is late to renew: its clock was set forward, or its machine slept.

        Leases that seem to have ended are renewed first then: they are their holders', who slept as well.
        """
        if self._is_late and self.revive is not None:
            async with self._reviving:
                if self._is_late:
                    await self.revive()
                    self.renewed()

    @property
    def _is_late(self) -> bool:
        return self._clock.now_s() > self._late_from_s

    async def renew_all(self, is_dead: Callable[[str], bool], resolve: Resolve) -> None:
        """Renew every reservation that is not lost yet and whose owner is not dead, this process's own too."""
        for name in await self._store.names(HOLD_PREFIX):
            if not is_dead(name.split("/")[1]):
                await self._change_of_another(name, resolve, self._renew, unless_lapsed=True)

    def _renew(
        self, limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation
    ) -> tuple[dict[str, Level], Reservation | None]:
        return quota.renew(limits, levels, reserved, self._clock.now_s(), lease_s=self._lease_s)

    async def expire(self, hold_name: str, resolve: Resolve) -> bool:
        """Count the reservation of a dead process as lost, by the rule for lost holds; False if it was already."""

        def change(
            limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation
        ) -> tuple[dict[str, Level], Reservation | None]:
            return quota.expire(limits, levels, reserved, self._clock.now_s())

        return await self._change_of_another(hold_name, resolve, change, unless_lapsed=True)

    async def reconcile(self, hold_name: str, resolve: Resolve, actual: Amounts) -> bool:
        """Settle the reservation of a dead process by what it is known to have used (nothing: it never left)."""

        def change(
            limits: Sequence[Limit], levels: Mapping[str, Level], reserved: Reservation
        ) -> tuple[dict[str, Level], Reservation | None]:
            return quota.settle(limits, levels, reserved, actual, self._clock.now_s())

        return await self._change_of_another(hold_name, resolve, change)

    async def of_others(self) -> list[Held]:
        """Give every reservation that another process took."""
        names = [name for name in await self._store.names(HOLD_PREFIX) if name.split("/")[1] != self._owner]
        kept = await self._store.transact(names, lambda found: ({}, {name: found.get(name) for name in names}))
        held = []
        for name, record in kept.items():
            _prefix, owner, attempt = name.split("/", 2)
            if record is not None:
                held.append(Held(name, owner, attempt, Reservation(*record).expires_ns))
        return held

    def _see(self, levels: Mapping[str, Level]) -> None:
        if len(self.seen) > MOST_SEEN:
            self.seen.clear()
        self.seen.update(levels)

    async def _change_of_another(
        self,
        hold_name: str,
        resolve: Resolve,
        change: Callable[
            [Sequence[Limit], Mapping[str, Level], Reservation], tuple[dict[str, Level], Reservation | None]
        ],
        *,
        unless_lapsed: bool = False,
    ) -> bool:
        record = await self._store.transact([hold_name], lambda records: ({}, records.get(hold_name)))
        if record is None or (unless_lapsed and Reservation(*record).lapsed):
            return False
        limits = resolve([name for name, _units, _token in Reservation(*record).holds])
        if self._in_force is not None:
            limits = self._in_force(limits)
        return await self._change(hold_name, limits, lambda levels, reserved: change(limits, levels, reserved))

    async def _change(self, hold_name: str, limits: Sequence[Limit], change: _Change) -> bool:
        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], bool]:
            record = records.get(hold_name)
            if record is None:
                return _UNCHANGED, False
            levels, rest = change(records, Reservation(*record))
            return {**levels, hold_name: rest}, True

        return await self._store.transact(chain((hold_name,), map(_name_of, limits)), step)
