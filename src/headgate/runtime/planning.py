"""Planned reservations in the store: made, cancelled, and met by calls, each in one transaction.

One rule: a call is admitted under exactly the reservations that stand at that moment: its step compares the record of
all of them with what this process knows, and asks again if it has changed. The arithmetic is the core's.
"""

import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from headgate.core import set_aside
from headgate.core.amounts import Demand
from headgate.core.errors import StoreError
from headgate.core.instants import to_ns
from headgate.core.limits import Kind, Limit
from headgate.core.planning import Denied, Part, Plan, Planned, Wanted, part_of, plan, unkept
from headgate.core.quota import Admitted, Behind, Refused, Wait
from headgate.core.set_aside import Applicant, Closure, Plans, closure, closures_met
from headgate.core.wording import level_text
from headgate.ports import Clock, LevelStore, Record

PLANS = "plans"
"""The record that every admission compares with what its process knows: a serial that each change of planned
reservations and of learned limits raises, and the reservations."""

MOST_TRIES = 20
"""How often a step is tried again because somebody planned meanwhile."""

CLOSURES_AHEAD_S = 7 * 86_400.0
MOST_CLOSURES = 100
LOOK_EVERY_S = 60.0

Spans = Callable[[float, float], Sequence[tuple[float, float]]]
"""Maintenance as spans: an instant and a later one in, every (begin, end) in seconds that touches the time between."""

Resolve = Callable[[Sequence[str]], Sequence[Limit]]
"""Names of levels in, the limits that keep them out."""

_UNCHANGED: Mapping[str, Record | None] = {}


@dataclass(frozen=True, slots=True)
class PlanView:
    """A planned reservation as people read it: what was used and is held of it, and what is left to use now.

    It is not kept while its limit is not configured, and `short` says why it cannot be kept in full. `at_once` is the
    most that it gives at once: of a rate that is its depth, of which `filling` is not there yet, and `used` drains.
    """

    plan: Plan
    dimension: str
    used: int
    held: int
    free: int
    is_kept: bool = True
    kind: Kind | None = None
    at_once: int = 0
    filling: int = 0
    short: str | None = None


Outcome = Admitted | Wait | Refused | Behind

Mind = Callable[[Mapping[str, Record], Outcome], tuple[Outcome, Mapping[str, Record | None]]]
"""What else decides in the step of an admission: another outcome, and records to keep."""


class Meeting(NamedTuple):
    """A call with the limits that it meets, its scopes and the maintenance windows that match it."""

    limits: Sequence[Limit]
    asked: Demand
    path: Sequence[str] = ()
    closures: tuple[Closure, ...] = ()


class PlannedReservations:
    """What one process knows of the planned reservations in a store that others share."""

    def __init__(self, store: LevelStore, clock: Clock) -> None:
        """Begin with none known; the first call that meets some makes them known."""
        self._store = store
        self._clock = clock
        self._serial = 0
        self.standing: tuple[Plan, ...] = ()
        """What stands, as far as this process knows."""
        self.on_changed: Callable[[], None] = lambda: None
        """Told when something was reserved or cancelled, here or elsewhere."""
        self.on_news: Callable[[], Awaitable[None]] | None = None
        """Takes up what else is news when the serial was raised elsewhere: limits that another process learned."""

    @property
    def serial(self) -> int:
        """The number of the change that this process knows of."""
        return self._serial

    async def refresh(self) -> None:
        """Take up what stands in the store."""
        record = await self._store.transact([PLANS], lambda records: ({}, records.get(PLANS)))
        serial, standing = _read(record)
        if serial != self._serial and self.on_news is not None:
            await self.on_news()
        before, self._serial, self.standing = self.standing, serial, standing
        if standing != before:
            self.on_changed()

    def follow(self, known: int, serial: int) -> None:
        """Know of a change of this process's own, if nobody else made one since what was known."""
        if self._serial == known:
            self._serial = serial

    def met(self, limits: Sequence[Limit], path: Sequence[str] = (), closures: tuple[Closure, ...] = ()) -> Plans:
        """Give what a call of the scopes on `path` meets beside its limits."""
        parts = self.parts_of(limits)
        return Plans(parts, frozenset(part.limit.name for part in parts if part.limit.scope in path), closures)

    def with_parts(self, limits: Sequence[Limit]) -> Sequence[Limit]:
        """Give limits with all that is reserved of them: what settles, renews and expires holds must know."""
        return (*limits, *(part.limit for part in self.parts_of(limits))) if self.standing else limits

    def resolve(self, names: Collection[str], limits_named: Resolve) -> tuple[Limit, ...]:
        """Give the limits that keep these levels, those of reservations too."""
        asked = set(names)
        parts = [part.limit for part in self._resolved(limits_named) if part.limit.name in asked]
        return (*limits_named(tuple(names)), *parts)

    def held_by(self, limits: Sequence[Limit], path: Sequence[str]) -> frozenset[str]:
        """Give the reservations of these limits, open or to come, that a call of the scopes on `path` has."""
        if not self.standing:
            return frozenset()
        now_s, names = self._clock.now_s(), {limit.name for limit in limits}
        return frozenset(
            each.id for each in self.standing if each.scope in path and each.limit in names and each.until_s > now_s
        )

    def is_open(self, plan_id: str) -> bool:
        """Whether the holder of a reservation may use it now."""
        now_s = self._clock.now_s()
        return any(each.id == plan_id and each.from_s <= now_s < each.until_s for each in self.standing)

    def next_change_s(self) -> float:
        """Give the next instant at which a reservation opens or is over; infinite if there is none."""
        if not self.standing:  # asked at each try of a lane's head
            return math.inf
        now_s = self._clock.now_s()
        instants = (at_s for each in self.standing for at_s in (each.from_s, each.until_s) if at_s > now_s)
        return min(instants, default=math.inf)

    def changes_at(self, instant_s: float) -> bool:
        """Whether a reservation opens or is over at an instant."""
        standing = self.standing
        return bool(standing) and any(instant_s in (each.from_s, each.until_s) for each in standing)

    def is_planned(self, wait: Wait) -> bool:
        """Whether a wait ends when a reservation or a maintenance window does."""
        return isinstance(wait.limit, Closure) or self.changes_at(wait.until_s)

    def common(self, limits: Sequence[Limit], admitted: Admitted) -> Sequence[Limit]:
        """Give the limits of which an admission takes what is everybody's, not what is reserved for it."""
        if not self.standing:
            return limits
        names = [name for name, _units, _token in admitted.reservation.holds]
        own = {each.limit for each in self.standing if any(name.endswith(f" plan-{each.id}") for name in names)}
        return [limit for limit in limits if limit.name not in own]

    async def take(
        self,
        hold_name: str,
        call: Meeting,
        ahead: Sequence[Meeting] = (),
        *,
        lease_s: float,
        reads: Sequence[str] = (),
        mind: Mind = lambda _records, outcome: (outcome, _UNCHANGED),
    ) -> Outcome:
        """Admit an attempt now if that delays nobody who is `ahead` of it; what is admitted is held under its name."""
        for _ in range(MOST_TRIES):
            serial, asking, heads = self._serial, self._applicant(call), [self._applicant(each) for each in ahead]

            def step(
                records: Mapping[str, Record],
                serial: int = serial,
                asking: Applicant = asking,
                heads: Sequence[Applicant] = heads,
            ) -> tuple[Mapping[str, Record | None], Outcome | None]:
                if serial_of(records) != serial:
                    return _UNCHANGED, None
                outcome = set_aside.admit_behind(asking, heads, records, self._clock.now_s(), lease_s=lease_s)
                outcome, changes = mind(records, outcome)
                if not isinstance(outcome, Admitted):
                    return changes, outcome
                return {**changes, **outcome.levels, hold_name: outcome.reservation}, outcome

            met = (name for each in (asking, *heads) for name in each.names)
            outcome = await self._store.transact(chain((PLANS, *reads), met), step)
            if outcome is not None:
                return outcome
            await self.refresh()
        raise _never_still()

    def _applicant(self, call: Meeting) -> Applicant:
        return Applicant(call.limits, call.asked, self.met(call.limits, call.path, call.closures))

    async def reserve(self, wanted: Wanted, limit: Limit | None, own: Sequence[Limit] = ()) -> Planned | Denied:
        """Set capacity aside for a scope that has these limits of its own, or say why that cannot be honoured."""
        for _ in range(MOST_TRIES):
            serial = self._serial
            met = () if limit is None else (limit,)

            def step(
                records: Mapping[str, Record], serial: int = serial
            ) -> tuple[Mapping[str, Record | None], Planned | Denied | None]:
                if serial_of(records) != serial:
                    return _UNCHANGED, None
                now_s = self._clock.now_s()
                _, existing = _read(records.get(PLANS))
                outcome = plan(existing, wanted, limit, now_s, records, own)
                if isinstance(outcome, Denied):
                    return _UNCHANGED, outcome
                standing = [each for each in existing if each.until_s > now_s]
                return {PLANS: _record(serial, [*standing, outcome.plan], now_s)}, outcome

            parts = (part.limit.name for part in self.parts_of(met))
            outcome = await self._store.transact(chain((PLANS,), _names(met), parts), step)
            if outcome is not None:
                await self.refresh()
                return outcome
            await self.refresh()
        raise _never_still()

    async def cancel(self, plan_id: str) -> Plan | None:
        """Give back what a reservation has left; None if there is none, or it is over."""

        def step(records: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], Plan | None]:
            now_s = self._clock.now_s()
            serial, existing = _read(records.get(PLANS))
            cancelled = next((each for each in existing if each.id == plan_id and each.until_s > now_s), None)
            if cancelled is None:
                return _UNCHANGED, None
            return {PLANS: _record(serial, [each for each in existing if each.id != plan_id], now_s)}, cancelled

        cancelled = await self._store.transact([PLANS], step)
        await self.refresh()
        return cancelled

    async def views(self, limits_named: Resolve) -> list[PlanView]:
        """Give every reservation that is not over, in the order in which they begin."""
        await self.refresh()
        now_s = self._clock.now_s()
        by_name = {part.limit.name: part for part in self._resolved(limits_named)}
        parents = {part.parent.name: part.parent for part in by_name.values()}
        names = (*by_name, *parents)
        kept = await self._store.transact(names, lambda records: ({}, {name: records.get(name) for name in names}))
        levels = {name: record for name, record in kept.items() if record is not None}
        coming = [each for each in self.standing if each.until_s > now_s]
        short: dict[str, str] = {}
        for name, parent in parents.items():
            short |= unkept([each for each in coming if each.limit == name], parent, now_s, levels)
        views = []
        for each in sorted(self.standing, key=lambda each: (each.from_s, each.id)):
            if each.until_s > now_s:
                part = next((part for name, part in by_name.items() if name.endswith(f" plan-{each.id}")), None)
                views.append(replace(_view(each, part, levels, to_ns(now_s)), short=short.get(each.id)))
        return views

    def parts_of(self, limits: Sequence[Limit]) -> tuple[Part, ...]:
        """Give all that stands of these limits and is not over."""
        if not self.standing:
            return ()
        now_s = self._clock.now_s()
        by_name = {limit.name: limit for limit in limits}
        return tuple(
            part_of(each, by_name[each.limit])
            for each in self.standing
            if each.limit in by_name and each.until_s > now_s
        )

    def _resolved(self, limits_named: Resolve) -> list[Part]:
        by_name = {limit.name: limit for limit in limits_named(sorted({each.limit for each in self.standing}))}
        return [part_of(each, by_name[each.limit]) for each in self.standing if each.limit in by_name]


@dataclass(frozen=True, slots=True)
class MaintenanceRule:
    """A maintenance window that comes again: when, and for which calls."""

    name: str
    spans: Spans
    scope: str = "*"
    models: str | None = None
    refuses: bool = False


class Maintenance:
    """The maintenance windows of one process, reckoned a week ahead and looked at again every minute."""

    def __init__(self, rules: Iterable[MaintenanceRule], clock: Clock) -> None:
        """Reckon nothing yet."""
        self._clock = clock
        self.configure(rules)

    def configure(self, rules: Iterable[MaintenanceRule]) -> None:
        """Let these windows be in force from now on, instead of others."""
        self.rules = tuple(rules)
        self._looked_s = float("-inf")
        self._of_rules: list[tuple[Closure, ...]] = []

    def met(self, path: Sequence[str], model: str) -> tuple[Closure, ...]:
        """Give the maintenance windows that match a call: those that last, and those to come."""
        if not self.rules:
            return ()
        # All of one rule match, or none does.
        return tuple(each for of_rule in self._known() if closures_met(of_rule[:1], path, model) for each in of_rule)

    def known(self) -> tuple[Closure, ...]:
        """Give every maintenance window that lasts or begins within a week."""
        return tuple(chain.from_iterable(self._known()))

    def _known(self) -> list[tuple[Closure, ...]]:
        now_s = self._clock.now_s()
        if not 0 <= now_s - self._looked_s < LOOK_EVERY_S:
            self._of_rules = [_closures_of(rule, now_s) for rule in self.rules]
            self._looked_s = now_s
        return self._of_rules


def _closures_of(rule: MaintenanceRule, now_s: float) -> tuple[Closure, ...]:
    spans = rule.spans(now_s, now_s + CLOSURES_AHEAD_S)[:MOST_CLOSURES]
    return tuple(closure(rule.name, rule.scope, rule.models, span_s, refuses=rule.refuses) for span_s in spans)


def choose_limit(
    limits: Iterable[Limit], *, name: str | None = None, scope: str | None = None, dimension: str | None = None
) -> Limit | Denied:
    """Give the limit that somebody means, by its name (of the level, or as tables have it) or by scope and dimension.

    Denied says what there is.
    """
    known = sorted(limits, key=lambda limit: limit.name)
    found = [
        limit
        for limit in known
        if (name is None or name in (limit.name, level_text(limit.name)))
        and (scope is None or limit.scope == scope)
        and (dimension is None or limit.dimension == dimension)
    ]
    if len(found) == 1:
        return found[0]
    asked = name or " ".join(filter(None, (scope, dimension))) or "(nothing)"
    names = "; ".join(level_text(limit.name) for limit in (found or known)[:10]) or "none is configured"
    if found:
        return Denied(f"{asked!r} fits {len(found)} limits; expected the name of one: {names}")
    return Denied(f"there is no limit {asked!r}; expected one of: {names}")


def _view(each: Plan, part: Part | None, levels: Mapping[str, Record], now_ns: int) -> PlanView:
    if part is None:
        return PlanView(each, each.limit.split(" ")[2], 0, 0, 0, is_kept=False)
    reading = part.limit.read(part.level(levels, now_ns), now_ns)
    filling = min(reading.used, part.filling(now_ns))
    return PlanView(
        each,
        part.limit.dimension,
        reading.used - filling,
        reading.held,
        reading.free,
        kind=part.limit.kind,
        at_once=part.at_once,
        filling=filling,
    )


def _read(record: Record | None) -> tuple[int, tuple[Plan, ...]]:
    return (0, ()) if record is None else (record[0], tuple(Plan(*fields) for fields in record[1:]))


def serial_of(records: Mapping[str, Record]) -> int:
    """Give the number of the last change in the store."""
    record = records.get(PLANS)
    return 0 if record is None else int(record[0])


def raised(record: Record | None, now_ns: int) -> Record:
    """Give the record with another serial and the same reservations: there is news for whoever admits."""
    # Never a serial that was there before, even if the record was forgotten meanwhile.
    return (now_ns,) if record is None else (max(record[0] + 1, now_ns), *record[1:])


def _record(serial: int, plans: Iterable[Plan], now_s: float) -> Record:
    # Never a serial that was there before, even if the record was forgotten meanwhile.
    return (max(serial + 1, to_ns(now_s)), *(tuple(each) for each in plans))


def _names(limits: Iterable[Limit]) -> Iterable[str]:
    return (limit.name for limit in limits)


def _never_still() -> StoreError:
    return StoreError(f"the planned reservations changed {MOST_TRIES} times while one call was admitted; try again")
