"""Reservations in the store: taken, settled, renewed and expired, each in one transaction.

One rule: a reservation's own record decides, so settling is exactly once: whoever finds the record gone does nothing.
Waiting is `admission`'s affair; the arithmetic is the core's.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from headgate.core import claims, quota
from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.limits import Level, Limit
from headgate.core.quota import Admitted, Reservation, Wait
from headgate.core.scopes import NO_SCOPES, Scopes
from headgate.ports import Clock, LevelStore, Record
from headgate.runtime.lanes import Waiting
from headgate.runtime.planning import PLANS, Maintenance, Meeting, Outcome, PlannedReservations, serial_of
from headgate.runtime.taking import Taking, let_be

HOLD_PREFIX = "hold/"

CLAIMS = "claims"
"""The record of what the heads of all processes' lanes wait for (`core.claims`)."""

MOST_SEEN = 20_000
"""Levels kept as they were seen last; beyond that, seeing begins anew."""

_UNCHANGED: Mapping[str, Record | None] = MappingProxyType({})

_name_of: Callable[[Limit], str] = attrgetter("name")

Resolve = Callable[[Sequence[str]], Sequence[Limit]]
"""Names of levels in, the limits that keep them out."""

AsNow = Callable[[Sequence[Limit]], Sequence[Limit]]
"""Limits as they were once in, as they are now out."""

StepUnder = Callable[
    [Sequence[Limit], Mapping[str, Level], Reservation, float], tuple[dict[str, Level], Reservation | None]
]
_Change = Callable[[Mapping[str, Level], Reservation], tuple[dict[str, Level], Reservation | None]]

# What steps are annotated with is made anew for each call where it is not named here, at the cost of a dictionary.
_Records = Mapping[str, Record]
_Changes = Mapping[str, Record | None]
_Tried = tuple[_Changes, Outcome | None]
_Whether = tuple[_Changes, bool]


class Held(NamedTuple):
    """A reservation in the store: its record's name, whose it is, for which attempt, and when its lease ends."""

    name: str
    owner: str
    attempt: str
    expires_ns: int


Begin = Callable[[Callable[[], bool]], Awaitable[bool]]
"""Asks the store for something that is to be kept with a hold, and is given the question whether that is taken."""


class Reservations:
    """The reservations of one process, named `owner`, in a level store."""

    def __init__(
        self,
        store: LevelStore,
        clock: Clock,
        owner: str,
        *,
        lease_s: float,
        in_force: AsNow | None = None,
        met: AsNow | None = None,
        planned: PlannedReservations | None = None,
        maintenance: Maintenance | None = None,
        watches: bool = False,
    ) -> None:
        """Let a reservation expire `lease_s` after it was taken or renewed.

        `in_force` gives limits as they are now, for what is held of them: they may have changed while a call was on its
        way. `met` gives them as a call meets them that waited. With it, `seen` has the levels as the last admissions
        here left them; who `watches` sees what other transactions here find too.
        """
        self._store = store
        self._planned = planned or PlannedReservations(store, clock)
        self._maintenance = maintenance or Maintenance((), clock)
        self._clock = clock
        self._owner = owner
        self._hold_prefix = f"{HOLD_PREFIX}{owner}/"
        self._lease_s = lease_s
        self._in_force: AsNow = in_force or _unchanged
        self._met = met
        self._watches = watches
        self.seen: dict[str, Level] = {}
        self.left: dict[str, Level] = {}
        """The levels as the last settlements and draws here left them."""
        self.revive: Callable[[], Awaitable[None]] | None = None
        """Renews what living processes hold; asked before anything is judged by a clock that has jumped."""
        self._reviving = asyncio.Lock()
        self._late_from_s = clock.now_s() + lease_s / 2  # a living process renews each sixth of it

    @property
    def planned(self) -> PlannedReservations:
        """What is reserved for a time, as this process knows it."""
        return self._planned

    @property
    def is_plain(self) -> bool:
        """Whether limits alone decide: nothing is reserved, and there is no maintenance."""
        return not self._planned.standing and not self._maintenance.rules

    async def take(
        self,
        attempt: str,
        limits: Sequence[Limit],
        asked: Demand,
        scopes: Scopes = NO_SCOPES,
        model: str = "",
        *,
        ahead: Sequence[Waiting] = (),
        came_s: float = math.inf,
        claim_of: str | None = None,
    ) -> Outcome:
        """Admit an attempt now or say when; what is admitted is held under the attempt's id.

        It goes only if that delays nobody who is `ahead` of it, but for what is reserved for its `scopes`. It goes
        behind the heads of other processes' lanes that came before `came_s`, and these behind it while it waits as the
        head of `claim_of`.
        """
        if self._is_late:
            await self.catch_up()
        if not ahead and self.is_plain:
            outcome = await self._take(attempt, limits, asked, came_s, claim_of)
            if outcome is not None:
                return outcome
            await self._planned.refresh()  # another process has planned
        now_s = self._clock.now_s()
        call = self._meeting(limits, asked, scopes, model)
        held = await self._planned.take(
            self._hold_prefix + attempt,
            call,
            [
                self._meeting(each.ticket.limits, each.asked_at(now_s), each.ticket.scopes, each.ticket.model)
                for each in ahead
            ],
            lease_s=self._lease_s,
            reads=(CLAIMS,),
            mind=lambda records, outcome: self._mind_claims(
                records, outcome, call.limits, asked, came_s, claim_of, looks=self._watches
            ),
        )
        if isinstance(held, Admitted) and self._met is not None:
            self._see(held.levels)
        return held

    def _meeting(self, limits: Sequence[Limit], asked: Demand, scopes: Scopes, model: str) -> Meeting:
        path = scopes.path()
        now_met = limits if self._met is None else self._met(limits)
        return Meeting(now_met, asked, path, self._maintenance.met(path, model))

    async def take_with(
        self,
        begin: Begin | None,
        attempt: str,
        limits: Sequence[Limit],
        asked: Demand,
        scopes: Scopes,
        model: str,
        *,
        ahead: Sequence[Waiting],
        came_s: float,
    ) -> tuple[Outcome, bool]:
        """As `take`, with what `begin` asks of the store in one transaction; False if that was not kept with it.

        After an error either of the two may be there.
        """
        is_plain = self.is_plain and not self._is_late
        if begin is not None and is_plain and not ahead:
            taking = Taking()
            taking.kept = self._take(attempt, limits, asked, came_s, taking=taking)
            beginning = begin(taking.is_held)
            try:
                outcome = await taking.kept
                if outcome is not None:
                    return outcome, await beginning
            finally:
                let_be(beginning)
        return await self.take(attempt, limits, asked, scopes, model, ahead=ahead, came_s=came_s), False

    def _take(
        self,
        attempt: str,
        limits: Sequence[Limit],
        asked: Demand,
        came_s: float,
        claim_of: str | None = None,
        taking: "Taking | None" = None,
    ) -> Awaitable[Outcome | None]:
        """Admit under the limits alone; None if there are planned reservations that this process does not know."""
        hold_name = self._hold_prefix + attempt
        now_s, lease_s = self._clock.now_s, self._lease_s
        met = self._met
        if met is not None:
            limits = met(limits)

        known = self._planned.serial

        def step(records: _Records) -> _Tried:
            outcome: Outcome | None
            if PLANS in records and serial_of(records) != known:
                outcome = None
            else:
                outcome = quota.admit(limits, records, asked, now_s(), lease_s=lease_s)
            changes: _Changes = _UNCHANGED
            if outcome is not None and (claim_of is not None or CLAIMS in records):
                outcome, changes = self._mind_claims(records, outcome, limits, asked, came_s, claim_of)
            if taking is not None:
                taking.is_admitted = type(outcome) is Admitted
            if type(outcome) is not Admitted:
                if self._watches:
                    self._look(records, map(_name_of, limits))
                return changes, outcome
            levels, reservation = outcome
            if met is not None:
                self._see(levels)
            levels[hold_name] = reservation  # type: ignore[assignment]  # a store keeps both
            return {**levels, **changes} if changes else levels, outcome

        return self._store.transact(chain((PLANS, CLAIMS), map(_name_of, limits)), step)

    def _mind_claims(
        self,
        records: Mapping[str, Record],
        outcome: Outcome,
        limits: Sequence[Limit],
        asked: Demand,
        came_s: float,
        claim_of: str | None,
        *,
        looks: bool = False,
    ) -> tuple[Outcome, Mapping[str, Record | None]]:
        """Let a call go behind the heads of other processes that came before it; say or take back its own claim.

        What is reserved for it nobody else can claim; and one that waits for a reservation or maintenance to end claims
        nothing, since it needs nothing until then.
        """
        if looks and not isinstance(outcome, Admitted):
            self._look(records, map(_name_of, limits))
        if claim_of is None and CLAIMS not in records:
            return outcome, _UNCHANGED
        now_s = self._clock.now_s()
        record = records.get(CLAIMS)
        known = claims.read(record or ())
        if isinstance(outcome, Admitted):
            common = self._planned.common(limits, outcome)
            outcome = claims.beside(outcome, common, claims.wanted_before(known, self._owner, came_s, now_s), now_s)
        if claim_of is None:
            return outcome, _UNCHANGED if claims.any_holds(known, now_s) else {CLAIMS: None}
        if isinstance(outcome, Wait) and not self._planned.is_planned(outcome):
            said = claims.said(known, claims.claim(self._owner, claim_of, limits, asked, came_s, now_s), now_s)
            return outcome, _UNCHANGED if said is None else {CLAIMS: said}
        left = claims.without(known, self._owner, claim_of)
        return outcome, _UNCHANGED if left == known else {CLAIMS: left or None}

    async def look(self, names: Sequence[str]) -> None:
        """See levels as they are in the store."""

        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], None]:
            self._look(records, names)
            return _UNCHANGED, None

        await self._store.transact(names, step)

    def settle(
        self, attempt: str, limits: Sequence[Limit], actual: Amounts, dimensions: Collection[Dimension] | None = None
    ) -> Awaitable[bool]:
        """Replace an attempt's holds (in `dimensions`, or all) by what was used; False if there are none any more.

        It is queued at once, as the store's own work is.
        """
        hold_name = self._hold_prefix + attempt
        now_s = self._clock.now_s()
        limits = self._in_force(limits)
        if self._planned.standing:
            limits = self._planned.with_parts(limits)

        # As `_change` does, in one step less: this is on the way of every call.
        def step(records: _Records) -> _Whether:
            record = records.get(hold_name)
            if record is None:
                return _UNCHANGED, False
            changed, rest = quota.settle(limits, records, record, actual, now_s, dimensions)  # type: ignore[arg-type]  # as taken
            if self._watches:
                self._see(changed)
            self._left_by(changed)
            changed[hold_name] = rest  # type: ignore[assignment]  # a store keeps both
            return changed, True

        return self._store.transact(chain((hold_name,), map(_name_of, limits)), step)

    async def change(self, attempt: str, limits: Sequence[Limit], step: StepUnder, reads: Sequence[str] = ()) -> bool:
        """Change what an attempt holds by a step of the core's; False if nothing is held any more."""
        met = self._planned.with_parts(self._in_force(limits))
        now_s = self._clock.now_s()
        hold_name = self._hold_prefix + attempt
        return await self._change(hold_name, met, lambda found, held: step(met, found, held, now_s), reads)

    async def renew(self, attempt: str, limits: Sequence[Limit]) -> bool:
        """Say that an attempt lives."""
        limits = self._planned.with_parts(self._in_force(limits))
        return await self._change(self._hold_prefix + attempt, limits, partial(self._renew, limits))

    def renewed(self) -> None:
        """Say that all that this process holds was renewed."""
        self._late_from_s = self._clock.now_s() + self._lease_s / 2

    async def catch_up(self) -> None:
        """Return at once, unless this process is late to renew: its clock was set, or its machine slept.

        Leases that seem to have ended are renewed first then: they are their holders', who slept as well.
        """
        if self._is_late and self.revive is not None:
            async with self._reviving:
                if self._is_late:
                    await self.revive()
                    self.renewed()

    @property
    def _is_late(self) -> bool:
        return not self._late_from_s - self._lease_s <= self._clock.now_s() <= self._late_from_s

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

    def _left_by(self, levels: Mapping[str, Level]) -> None:
        if len(self.left) > MOST_SEEN:
            self.left.clear()
        self.left.update(levels)

    def _look(self, records: Mapping[str, Record], names: Iterable[str]) -> None:
        for name in names:
            level = records.get(name)
            if level is None:
                self.seen.pop(name, None)
            else:
                self.seen[name] = level

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
        limits = self._in_force(limits)
        return await self._change(hold_name, limits, lambda levels, reserved: change(limits, levels, reserved))

    async def _change(
        self, hold_name: str, limits: Sequence[Limit], change: _Change, reads: Sequence[str] = ()
    ) -> bool:
        def step(records: _Records) -> _Whether:
            record = records.get(hold_name)
            if record is None:
                return _UNCHANGED, False
            levels, rest = change(records, Reservation(*record))
            if self._watches:
                self._see(levels)
            self._left_by(levels)
            return {**levels, hold_name: rest}, True

        return await self._store.transact(chain((hold_name, *reads), map(_name_of, limits)), step)


def _unchanged(limits: Sequence[Limit]) -> Sequence[Limit]:
    return limits
