"""Set aside: admit calls beside planned reservations and maintenance windows, in the one step of an admission.

One rule: every call is charged to every configured limit in full, so these are never exceeded; a reservation only adds
what others have to leave alone, and a level that counts what of it was taken (decision 0013). Nothing is split: a call
uses a reservation for all that it asks of a limit, or the common part.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from headgate.core import quota
from headgate.core.amounts import Demand
from headgate.core.instants import to_ns, to_s
from headgate.core.limits import FOREVER_NS, Gauge, Level, Limit, Rate, Short
from headgate.core.planning import Part
from headgate.core.quota import Admitted, Behind, Refused, Wait

MOST_ASKS = 1_000
"""Instants at which admission is tried out to find the true end of a wait."""


@dataclass(frozen=True, slots=True)
class Closure(Gauge):
    """One maintenance window, as the limit that it is to the calls it matches: none between two instants."""

    begins_ns: int = 0
    ends_ns: int = 0
    refuses: bool = False

    def hold(self, level: Level | None, units: int, now_ns: int, expires_ns: int) -> Short:  # noqa: ARG002 - one face for all limits
        """Say when it ends; asked only while it lasts."""
        return Short(self.ends_ns, self.ends_ns)

    def is_in_force(self, now_ns: int) -> bool:
        """Whether it lasts now."""
        return self.begins_ns <= now_ns < self.ends_ns

    @property
    def cron(self) -> str:
        """When it comes, as its owner wrote it."""
        return self.name.rpartition(" ")[2].replace("_", " ")


def closure(name: str, scope: str, models: str | None, span_s: tuple[float, float], *, refuses: bool) -> Closure:
    """Give a maintenance window for the calls of a scope (or pattern) and a class of models."""
    begins_ns, ends_ns = to_ns(span_s[0]), to_ns(span_s[1])
    return Closure(
        f"{scope} {models or '*'} maintenance {name}",
        scope,
        "requests",
        0,
        models,
        begins_ns=begins_ns,
        ends_ns=ends_ns,
        refuses=refuses,
    )


def closures_met(closures: Iterable[Closure], path: Sequence[str], model: str) -> tuple[Closure, ...]:
    """Give those that match a call, whether they last now or not."""
    return tuple(
        each
        for each in closures
        if (each.models is None or fnmatchcase(model, each.models))
        and any(fnmatchcase(scope.partition("|")[0], each.scope) for scope in path)
    )


@dataclass(frozen=True, slots=True)
class Plans:
    """What a call meets beside its limits: all that is reserved of these, and the maintenance windows that match it.

    `own` has the names of the parts (of their levels) that the call may use.
    """

    parts: tuple[Part, ...] = ()
    own: frozenset[str] = frozenset()
    closures: tuple[Closure, ...] = ()


NO_PLANS = Plans()


@dataclass(frozen=True, slots=True)
class Applicant:
    """A call that asks to go: the limits it meets, what it asks of them, and what is planned beside them."""

    limits: Sequence[Limit]
    asked: Demand
    plans: Plans = NO_PLANS

    @property
    def names(self) -> list[str]:
        """The levels that its admission asks for."""
        return [limit.name for limit in (*self.limits, *(part.limit for part in self.plans.parts))]


def admit(
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    asked: Demand,
    now_s: float,
    *,
    lease_s: float = 600.0,
    plans: Plans = NO_PLANS,
) -> Admitted | Wait | Refused:
    """Do as `quota.admit` does, beside what is planned; `levels` has the levels of the parts too.

    A Wait tells the truth about reservations and maintenance that begin or end meanwhile; it does not foresee new ones,
    or one that is cancelled.
    """
    if not plans.parts and not plans.closures:
        return quota.admit(limits, levels, asked, now_s, lease_s=lease_s)
    # A copy of what is needed alone: a store may give all that it has.
    known = {limit.name: levels[limit.name] for limit in limits if limit.name in levels}
    for part in plans.parts:
        level = part.level(levels, to_ns(now_s))
        if level is not None:
            known[part.limit.name] = level
    question = _Question(limits, known, asked, lease_s, plans)
    outcome = question.ask(now_s)
    if isinstance(outcome, Admitted):
        return outcome
    plain = quota.admit(limits, levels, asked, now_s, lease_s=lease_s)
    if isinstance(plain, Refused):
        return plain
    freed = question.freed(to_ns(now_s))
    until_s, earliest_s = question.first_s(outcome, now_s), freed.first_s(freed.ask(now_s), now_s)
    binding = question.binding(outcome, to_ns(now_s))
    aside = untaken((part for part in plans.parts if part.parent.name == binding.name), known, to_ns(now_s))
    return Wait(until_s, min(earliest_s, until_s), binding, aside)


def untaken(parts: Iterable[Part], levels: Mapping[str, Level], now_ns: int) -> int:
    """Give what others have to leave alone of the limit that these parts are of."""
    return sum(part.untaken(levels, now_ns) for part in parts)


def without(limit: Limit, aside: int) -> Limit | None:
    """Give a limit as it is to those who have to leave so much of it alone; None if nothing is left to them."""
    if not aside:
        return limit
    if isinstance(limit, Rate):
        # No debt for a large call here: it would be paid out of what is reserved.
        return replace(limit, burst=limit.burst - aside, largest=None) if limit.burst > aside else None
    return replace(limit, amount=limit.amount - aside) if limit.amount > aside else None


def admit_behind(
    call: Applicant, heads: Sequence[Applicant], levels: Mapping[str, Level], now_s: float, *, lease_s: float = 600.0
) -> Admitted | Wait | Refused | Behind:
    """Admit a call only if that does not delay any of those that wait before it.

    Not delayed: a head may go now as it might before, or is admitted at the same time at the latest, if nothing else
    is, whether this call uses all that it holds or is still on its way; and at the same time at the earliest. What a
    call takes of a reservation of its own is no delay: that was promised to it, unless the head has the same one.
    """
    outcome = admit(call.limits, levels, call.asked, now_s, lease_s=lease_s, plans=call.plans)
    if not isinstance(outcome, Admitted) or not heads:
        return outcome
    every = (*call.limits, *(part.limit for part in call.plans.parts))
    used = quota.spend(every, outcome, now_s)
    for head in heads:
        before = admit(head.limits, levels, head.asked, now_s, lease_s=lease_s, plans=head.plans)
        known = {name: levels[name] for name in head.names if name in levels}
        promised = _promised(outcome, call.plans, head.plans)
        for changed in (outcome.levels, outcome.levels | used):
            after = known | {name: level for name, level in changed.items() if name not in promised}
            then = admit(head.limits, after, head.asked, now_s, lease_s=lease_s, plans=head.plans)
            if _is_delayed(before, then):
                return Behind(before.until_s if isinstance(before, Wait) else now_s)
    return outcome


def _is_delayed(before: Admitted | Wait | Refused, then: Admitted | Wait | Refused) -> bool:
    if isinstance(before, Wait) and isinstance(then, Wait):
        return then.until_s > before.until_s or then.earliest_s > before.earliest_s
    return not isinstance(then, Admitted) and not isinstance(before, Refused)


def _promised(outcome: Admitted, plans: Plans, others: Plans) -> set[str]:
    """Name the levels of what a call takes by a reservation of its own that another has no share in."""
    taken = {name for name, _units, _token in outcome.reservation.holds} & plans.own - others.own
    parts = [part for part in plans.parts if part.limit.name in taken]
    return {name for part in parts for name in (part.limit.name, part.parent.name)}


@dataclass(frozen=True, slots=True)
class _Blocked:
    """Reservations leave nothing of a limit, or less than is asked."""

    limit: Limit


@dataclass(frozen=True, slots=True)
class _Question:
    """May this call go at an instant, if nothing else happens until then?"""

    limits: Sequence[Limit]
    levels: Mapping[str, Level]
    asked: Demand
    lease_s: float
    plans: Plans

    def ask(self, now_s: float) -> Admitted | Wait | _Blocked:
        """Ask at an instant."""
        now_ns = to_ns(now_s)
        chosen: list[Limit] = [each for each in self.plans.closures if each.is_in_force(now_ns)]
        for limit in self.limits:
            parts = [part for part in self.plans.parts if part.parent.name == limit.name]
            units = quota.units_of(limit, self.asked) if parts else None
            if not units:
                chosen.append(limit)
                continue
            own = self._own_with_room(parts, units, now_ns)
            if own is not None:
                chosen += (limit, own.limit)
                continue
            common = without(limit, untaken(parts, self.levels, now_ns))
            if common is None:
                return _Blocked(limit)
            chosen.append(common)
        outcome = quota.admit(chosen, self.levels, self.asked, now_s, lease_s=self.lease_s)
        return _Blocked(outcome.limit) if isinstance(outcome, Refused) else outcome

    def freed(self, now_ns: int) -> "_Question":
        """Give the question as it would be if all that is held came back now."""
        every = (*self.limits, *(part.limit for part in self.plans.parts))
        return replace(
            self,
            levels={
                limit.name: limit.freed(self.levels[limit.name], now_ns) for limit in every if limit.name in self.levels
            },
        )

    def first_s(self, outcome: Admitted | Wait | _Blocked, now_s: float) -> float:
        """Give the first instant known at which the answer is yes, by asking at each that may change it."""
        if isinstance(outcome, Admitted):
            return now_s
        asked_ns = to_ns(now_s)
        candidates = [*self._changes_ns(asked_ns), *self._own_room_ns(asked_ns), _until_ns(outcome)]
        heapq.heapify(candidates)
        for _ in range(MOST_ASKS):
            if not candidates or candidates[0] >= FOREVER_NS:
                break
            at_ns = heapq.heappop(candidates)
            if at_ns <= asked_ns:
                continue
            asked_ns = at_ns
            outcome = self.ask(to_s(at_ns))
            if isinstance(outcome, Admitted):
                return to_s(at_ns)
            heapq.heappush(candidates, _until_ns(outcome))
            for each in self._own_room_ns(at_ns):
                heapq.heappush(candidates, each)
        return math.inf

    def binding(self, outcome: Wait | _Blocked, now_ns: int) -> Limit:
        """Give the limit that binds as it is configured; before all else maintenance that refuses calls now."""
        refusing = next((each for each in self.plans.closures if each.refuses and each.is_in_force(now_ns)), None)
        if refusing is not None:
            return refusing
        name = next((part.parent.name for part in self.plans.parts if part.limit.name == outcome.limit.name), None)
        found = (each for each in self.limits if each.name == (name or outcome.limit.name))
        return next(found, outcome.limit)

    def _own_with_room(self, parts: Sequence[Part], units: int, now_ns: int) -> Part | None:
        """Give the call's own part that has room for all that it asks, the one that ends first."""
        for part in sorted(parts, key=lambda part: part.until_ns):
            if self._is_own(part, now_ns):
                outcome = part.limit.hold(self.levels.get(part.limit.name), units, now_ns, now_ns)
                if isinstance(outcome, tuple):
                    return part
        return None

    def _is_own(self, part: Part, now_ns: int) -> bool:
        return part.limit.name in self.plans.own and part.is_open(now_ns)

    def _changes_ns(self, now_ns: int) -> list[int]:
        """Give the instants to come at which reservations and maintenance begin or end.

        Where less fits from then on, what was promised for later must be asked for again.
        """
        instants = {each for part in self.plans.parts for each in (part.begins_ns, part.until_ns)}
        instants |= {part.from_ns for part in self.plans.parts if part.limit.name in self.plans.own}
        instants |= {each for closed in self.plans.closures for each in (closed.begins_ns, closed.ends_ns)}
        return [each for each in instants if each > now_ns]

    def _own_room_ns(self, now_ns: int) -> list[int]:
        """Give when the call's own parts have room for it."""
        found = []
        for part in self.plans.parts:
            if self._is_own(part, now_ns) and (units := quota.units_of(part.parent, self.asked)):
                outcome = part.limit.hold(self.levels.get(part.limit.name), units, now_ns, now_ns)
                if isinstance(outcome, Short):
                    found.append(outcome.until_ns)
        return found


def _until_ns(outcome: Wait | _Blocked) -> int:
    if isinstance(outcome, Wait) and math.isfinite(outcome.until_s):
        return to_ns(outcome.until_s)
    return FOREVER_NS
