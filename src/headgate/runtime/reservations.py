"""Reservations in the store: taken, settled, renewed and expired, each in one transaction.

One rule: a reservation's own record decides, so settling is exactly once: whoever finds the record gone does nothing.
Waiting is `admission`'s affair; the arithmetic is the core's.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, cast

from headgate.core import quota
from headgate.core.amounts import Amounts, Demand, Dimension
from headgate.core.limits import Level, Limit
from headgate.core.quota import Admitted, Refused, Reservation, Wait
from headgate.ports import Clock, LevelStore, Record

HOLD_PREFIX = "hold/"

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

    def __init__(self, store: LevelStore, clock: Clock, owner: str, *, lease_s: float) -> None:
        """Let a reservation expire `lease_s` after it was taken or renewed."""
        self._store = store
        self._clock = clock
        self._owner = owner
        self._lease_s = lease_s

    async def take(self, attempt: str, limits: Sequence[Limit], asked: Demand) -> Admitted | Wait | Refused:
        """Admit an attempt now or say when; what is admitted is held under the attempt's id."""
        hold_name = self._hold_name(attempt)

        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], Admitted | Wait | Refused]:
            outcome = quota.admit(limits, levels_of(records), asked, self._clock.now_s(), lease_s=self._lease_s)
            if not isinstance(outcome, Admitted):
                return {}, outcome
            changed = cast("dict[str, Record | None]", outcome.levels)
            changed[hold_name] = packed(outcome.reservation)
            return changed, outcome

        return await self._store.transact([limit.name for limit in limits], step)

    async def settle(
        self, attempt: str, limits: Sequence[Limit], actual: Amounts, dimensions: Collection[Dimension] | None = None
    ) -> bool:
        """Replace an attempt's holds (in `dimensions`, or all) by what was used; False if there are none any more."""
        hold_name = self._hold_name(attempt)
        now_s = self._clock.now_s()

        # As `_change` does, in one step less: this is on the way of every call.
        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], bool]:
            record = records.get(hold_name)
            if record is None:
                return {}, False
            settled, rest = quota.settle(limits, levels_of(records), unpacked(record), actual, now_s, dimensions)
            changed = cast("dict[str, Record | None]", settled)
            changed[hold_name] = packed(rest) if dimensions is not None else None
            return changed, True

        return await self._store.transact([hold_name, *[limit.name for limit in limits]], step)

    async def renew(self, attempt: str, limits: Sequence[Limit]) -> bool:
        """Say that an attempt lives."""

        def change(levels: Mapping[str, Level], reserved: Reservation) -> tuple[dict[str, Level], Reservation | None]:
            return quota.renew(limits, levels, reserved, self._clock.now_s(), lease_s=self._lease_s)

        return await self._change(self._hold_name(attempt), limits, change)

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
            changed, _rest = quota.settle(limits, levels, reserved, actual, self._clock.now_s())
            return changed, None

        return await self._change_of_another(hold_name, resolve, change)

    async def of_others(self) -> list[Held]:
        """Give every reservation that another process took."""
        names = [name for name in await self._store.names(HOLD_PREFIX) if name.split("/")[1] != self._owner]
        kept = await self._store.transact(names, lambda found: ({}, {name: found.get(name) for name in names}))
        held = []
        for name, record in kept.items():
            _prefix, owner, attempt = name.split("/", 2)
            if record is not None:
                held.append(Held(name, owner, attempt, unpacked(record).expires_ns))
        return held

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
        if record is None or (unless_lapsed and unpacked(record).lapsed):
            return False
        limits = resolve([name for name, _units, _token in unpacked(record).holds])
        return await self._change(hold_name, limits, lambda levels, reserved: change(limits, levels, reserved))

    async def _change(self, hold_name: str, limits: Sequence[Limit], change: _Change) -> bool:
        def step(records: Mapping[str, Record]) -> tuple[dict[str, Record | None], bool]:
            record = records.get(hold_name)
            if record is None:
                return {}, False
            levels, rest = change(levels_of(records), unpacked(record))
            changed: dict[str, Record | None] = {**levels}
            changed[hold_name] = packed(rest) if rest is not None else None
            return changed, True

        return await self._store.transact([hold_name, *(limit.name for limit in limits)], step)

    def _hold_name(self, attempt: str) -> str:
        return f"{HOLD_PREFIX}{self._owner}/{attempt}"


def packed(reservation: Reservation) -> Record:
    """Give a reservation as a store's record: its three numbers, then the names, units and tokens of its holds."""
    at_ns, expires_ns, holds, lapsed = reservation
    return (
        at_ns,
        expires_ns,
        int(lapsed),
        *[hold[0] for hold in holds],
        *[hold[1] for hold in holds],
        *[hold[2] for hold in holds],
    )


def unpacked(record: Record) -> Reservation:
    """Give the reservation of a store's record; what `packed` wrote is trusted."""
    count = len(record) // 3
    holds = zip(record[3 : count + 2], record[count + 2 : 2 * count + 1], record[2 * count + 1 :], strict=True)
    return Reservation(record[0], record[1], tuple(holds), record[2] != 0)  # type: ignore[arg-type]  # as packed


def levels_of(records: Mapping[str, Record]) -> Mapping[str, Level]:
    """Give a store's records as levels; a store keeps holds beside them, under names that no limit has."""
    return cast("Mapping[str, Level]", records)
