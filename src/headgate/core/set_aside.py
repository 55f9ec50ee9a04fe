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
from headgate.core.quota import Admitted, Refused, Wait

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


def admit(
    limits: Sequence[Limit],
    levels: Mapping[str, Level],
    asked: Demand,
    now_s: float,
    *,
    lease_s: float = 600.0,
    plans: Plans = NO_PLANS,
    own_only: bool = False,
) -> Admitted | Wait | Refused:
    """Do as `quota.admit` does, beside what is planned; `levels` has the levels of the parts too.

    With `own_only` a call takes nothing of the common part of a limit that it has a reservation of: such a call may
    overtake, since nobody else can have what it takes. A Wait tells the truth about reservations and maintenance that
    begin or end meanwhile; it does not foresee new ones, or one that is cancelled.
    """
    if not plans.parts and not plans.closures:
        return quota.admit(limits, levels, asked, now_s, lease_s=lease_s)
    # A copy of what is needed alone: a store may give all that it has.
    known = {limit.name: levels[limit.name] for limit in limits if limit.name in levels}
    for part in plans.parts:
        level = part.level(levels, to_ns(now_s))
        if level is not None:
            known[part.limit.name] = level
    question = _Question(limits, known, asked, lease_s, plans, own_only)
    outcome = question.ask(now_s)
    if isinstance(outcome, Admitted):
        return outcome
    plain = quota.admit(limits, levels, asked, now_s, lease_s=lease_s)
    if isinstance(plain, Refused):
        return plain
    return question.wait(outcome, plain, to_ns(now_s))


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
    own_only: bool

    def ask(self, now_s: float) -> Admitted | Wait | _Blocked:
        """Ask at an instant."""
        now_ns = to_ns(now_s)
        chosen: list[Limit] = [each for each in self.plans.closures if each.is_in_force(now_ns)]
        for limit in self.limits:
            parts = [part for part in self.plans.parts if part.parent.name == limit.name]
            units = _units(limit, self.asked) if parts else None
            if not units:
                chosen.append(limit)
                continue
            own = self._own_with_room(parts, units, now_ns)
            if own is not None:
                chosen += (limit, own.limit)
                continue
            common = None if self._must_take_own(parts, now_ns) else self._common(limit, parts, now_ns)
            if common is None:
                return _Blocked(limit)
            chosen.append(common)
        outcome = quota.admit(chosen, self.levels, self.asked, now_s, lease_s=self.lease_s)
        return _Blocked(outcome.limit) if isinstance(outcome, Refused) else outcome

    def wait(self, first: Wait | _Blocked, plain: Admitted | Wait, now_ns: int) -> Wait:
        """Find the earliest instant known at which the answer is yes, by asking at each that may change it."""
        # What is held of the call's own part may come back at once.
        eased_ns = [max(each, now_ns) for each in self._own_room_ns(now_ns)] + self._eased_ns(now_ns)
        candidates = eased_ns + self._begins_ns(now_ns)
        candidates.append(_until_ns(first))
        heapq.heapify(candidates)
        until_s, asked_ns = math.inf, now_ns
        for _ in range(MOST_ASKS):
            if not candidates:
                break
            at_ns = heapq.heappop(candidates)
            if at_ns >= FOREVER_NS:
                break
            if at_ns <= asked_ns:
                continue
            asked_ns = at_ns
            outcome = self.ask(to_s(at_ns))
            if isinstance(outcome, Admitted):
                until_s = to_s(at_ns)
                break
            heapq.heappush(candidates, _until_ns(outcome))
            for each in self._own_room_ns(at_ns):
                heapq.heappush(candidates, each)
        earliest_ns = min([*eased_ns, to_ns(first.earliest_s) if isinstance(first, Wait) else FOREVER_NS])
        earliest_s = to_s(earliest_ns) if earliest_ns < FOREVER_NS else math.inf
        if isinstance(plain, Wait):
            earliest_s = max(earliest_s, plain.earliest_s)
        return Wait(until_s, min(earliest_s, until_s), self._binding(first, now_ns))

    def _own_with_room(self, parts: Sequence[Part], units: int, now_ns: int) -> Part | None:
        """Give the call's own part that has room for all that it asks, the one that ends first."""
        for part in sorted(parts, key=lambda part: part.until_ns):
            if self._is_own(part, now_ns):
                outcome = part.limit.hold(self.levels.get(part.limit.name), units, now_ns, now_ns)
                if isinstance(outcome, tuple):
                    return part
        return None

    def _must_take_own(self, parts: Sequence[Part], now_ns: int) -> bool:
        return self.own_only and any(self._is_own(part, now_ns) for part in parts)

    def _is_own(self, part: Part, now_ns: int) -> bool:
        return part.limit.name in self.plans.own and part.is_open(now_ns)

    def _common(self, limit: Limit, parts: Sequence[Part], now_ns: int) -> Limit | None:
        """Give a limit without what is set aside of it; None if nothing is left."""
        aside = sum(part.untaken(self.levels, now_ns) for part in parts)
        if not aside:
            return limit
        if isinstance(limit, Rate):
            # No debt for a large call here: it would be paid out of what is reserved.
            return replace(limit, burst=limit.burst - aside, largest=None) if limit.burst > aside else None
        return replace(limit, amount=limit.amount - aside) if limit.amount > aside else None

    def _eased_ns(self, now_ns: int) -> list[int]:
        """Give the instants at which more may fit."""
        ends = [part.until_ns for part in self.plans.parts] + [each.ends_ns for each in self.plans.closures]
        opens = [part.from_ns for part in self.plans.parts if part.limit.name in self.plans.own]
        return [each for each in ends + opens if each > now_ns]

    def _begins_ns(self, now_ns: int) -> list[int]:
        """Give the instants at which less may fit: what was promised for later must be asked for again there."""
        begins = [part.begins_ns for part in self.plans.parts] + [each.begins_ns for each in self.plans.closures]
        return [each for each in begins if each > now_ns]

    def _own_room_ns(self, now_ns: int) -> list[int]:
        """Give when the call's own parts have room for it."""
        found = []
        for part in self.plans.parts:
            if self._is_own(part, now_ns) and (units := _units(part.parent, self.asked)):
                outcome = part.limit.hold(self.levels.get(part.limit.name), units, now_ns, now_ns)
                if isinstance(outcome, Short):
                    found += [outcome.until_ns, outcome.earliest_ns]
        return found

    def _binding(self, first: Wait | _Blocked, now_ns: int) -> Limit:
        """Name the limit that binds as it was configured.

        One that the call has a part of is named by the part: that makes a lane of its own, in which nobody else waits.
        """
        limit = first.limit
        for part in self.plans.parts:
            if part.parent.name == limit.name and self._is_own(part, now_ns):
                return part.limit
        return next((each for each in self.limits if each.name == limit.name), limit)


def _units(limit: Limit, asked: Demand) -> int | None:
    """Give what a call asks of a limit, as `quota.admit` reckons it."""
    if not isinstance(limit, Rate):
        return asked.at_most[limit.place]
    units = asked.expected[limit.place]
    return None if units is None else min(units, limit.most_held)


def _until_ns(outcome: Wait | _Blocked) -> int:
    if isinstance(outcome, Wait) and math.isfinite(outcome.until_s):
        return to_ns(outcome.until_s)
    return FOREVER_NS
