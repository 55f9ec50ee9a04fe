"""Laws of admission beside planned reservations, held by a machine that plans, cancels, admits and settles in any order.

What the holder was promised is reckoned beside the code: a leaky bucket in fractions, and plain sums.
"""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headgate.core import quota
from headgate.core.amounts import NOTHING, Amounts, Demand, demand
from headgate.core.limits import Level, Limit, Rate, Rolling, Window
from headgate.core.planning import Part, Plan, Planned, Wanted, part_of, plan
from headgate.core.quota import Admitted, Refused, Reservation, Wait
from headgate.core.set_aside import Plans, admit, closure, closures_met
from headgate.core.spans import Calendar, Fixed, Lifetime

START_S = 1_750_000_000
LEASE_S = 100_000.0

OUTPUT = Rate("output", "account:a", "output_tokens", 600, 60, 400, largest=600)
REQUESTS = Rate("requests", "account:a", "requests", 60, 60, 50, largest=60, charged_at_start=True)
FIXED = Window("fixed", "account:a", "micro_usd", 900, Fixed(40))
LIFE = Window("life", "account:a", "tokens", 4_000, Lifetime())
ROLLING = Rolling("rolling", "account:a", "input_tokens", 700, 60)
LIMITS: tuple[Limit, ...] = (OUTPUT, REQUESTS, FIXED, LIFE, ROLLING)
HOLDERS = ("run:a", "run:b")
NOBODY = "run:other"


def parts_of(plans: list[Plan], limits: tuple[Limit, ...] = LIMITS) -> tuple[Part, ...]:
    by_name = {limit.name: limit for limit in limits}
    return tuple(part_of(each, by_name[each.limit]) for each in plans)


def met(plans: list[Plan], who: str, limits: tuple[Limit, ...] = LIMITS) -> Plans:
    parts = parts_of(plans, limits)
    return Plans(parts, frozenset(part.limit.name for part in parts if part.limit.scope == who))


def asked_of(limit: Limit, units: int) -> Demand:
    return demand(NOTHING._replace(**{limit.dimension: units}))


@dataclass(eq=False)
class Live:
    reservation: Reservation
    asked: Amounts
    who: str
    at_s: Fraction


class Promise:
    """What a holder may use of a plan now, reckoned apart: its bucket begins used up, its window begins whole."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.at = Fraction(part.begins_ns, 10**9)
        self.fill = Fraction(part.limit.burst if isinstance(part.limit, Rate) else 0)
        self.held = 0

    def room(self, at: Fraction) -> int:
        limit = self.part.limit
        if isinstance(limit, Rate):
            if at > self.at:
                self.fill = max(Fraction(0), self.fill - (at - self.at) * Fraction(limit.amount, limit.period_s))
                self.at = at
            return int((limit.burst - self.fill - self.held) // 1)
        return int(limit.amount - self.fill - self.held)


class PlannedMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[str, Level] = {}
        self.now_s = Fraction(START_S)
        self.plans: list[Plan] = []
        self.promises: dict[str, Promise] = {}
        self.live: list[Live] = []
        self.made = 0
        self.limits: tuple[Limit, ...] = LIMITS

    @initialize(limits=st.sampled_from([*((limit,) for limit in LIMITS), (OUTPUT, FIXED), LIMITS]))
    def choose_limits(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits

    @rule(
        choice=st.integers(0, 4),
        scope=st.sampled_from(HOLDERS),
        percent=st.integers(1, 110),
        in_s=st.integers(0, 90),
        duration_s=st.integers(1, 120),
    )
    def reserve(self, choice: int, scope: str, percent: int, in_s: int, duration_s: int) -> None:
        limit = self.limits[choice % len(self.limits)]
        whole = limit.amount * duration_s // limit.period_s if isinstance(limit, Rate) else limit.amount
        self.made += 1
        from_s = int(self.now_s) + in_s
        wanted = Wanted(f"p{self.made}", scope, max(1, whole * percent // 100), from_s, from_s + duration_s)
        outcome = plan(self.plans, wanted, limit, float(self.now_s), self.levels)
        if isinstance(outcome, Planned):
            self.plans.append(outcome.plan)
            (part,) = parts_of([outcome.plan], self.limits)
            self.promises[part.limit.name] = Promise(part)
        else:
            assert "possible" in outcome.reason or "expected" in outcome.reason or "divided" in outcome.reason

    @precondition(lambda self: self.plans)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.plans.remove(data.draw(st.sampled_from(self.plans)))

    @rule(
        who=st.sampled_from((NOBODY, NOBODY, *HOLDERS)),
        output=st.integers(0, 420),
        dollars=st.integers(0, 500),
        tokens=st.integers(0, 600),
        input_tokens=st.integers(0, 400),
        own_only=st.booleans(),
    )
    def admit(self, who: str, output: int, dollars: int, tokens: int, input_tokens: int, own_only: bool) -> None:
        asked = Amounts(1, input_tokens, output, tokens, dollars)
        before = dict(self.levels)
        outcome = self._ask(who, demand(asked), own_only=own_only)
        assert self.levels == before, "a question changed a level"
        if isinstance(outcome, Admitted):
            self.levels |= outcome.levels
            self._went(outcome, asked, who)
        elif isinstance(outcome, Wait):
            self._check_wait(outcome, who, demand(asked), own_only=own_only)
        else:
            assert isinstance(quota.admit(self.limits, self.levels, demand(asked), float(self.now_s)), Refused)

    @rule(who=st.sampled_from((NOBODY, *HOLDERS)), choice=st.integers(0, 4), grain=st.sampled_from((1, 7, 50, 200)))
    def push(self, who: str, choice: int, grain: int) -> None:
        """Take all that can be had, in calls of one size."""
        limit = self.limits[choice % len(self.limits)]
        asked = NOTHING._replace(**{limit.dimension: 1 if limit is REQUESTS else grain})
        for _ in range(60):
            outcome = self._ask(who, demand(asked))
            if not isinstance(outcome, Admitted):
                break
            self._went(outcome, asked, who)

    def _went(self, outcome: Admitted, asked: Amounts, who: str) -> None:
        self.levels |= outcome.levels
        self.live.append(Live(outcome.reservation, asked, who, self.now_s))
        for name, units, _token in outcome.reservation.holds:
            if name in self.promises:
                promise = self.promises[name]
                assert (promise.part.parent.name, units) in [hold[:2] for hold in outcome.reservation.holds]
                assert promise.room(self.now_s) >= units, "more than was reserved"
                if name.split()[2] == "requests":
                    promise.fill += units
                else:
                    promise.held += units

    @precondition(lambda self: self.live)
    @rule(data=st.data(), used=st.fractions(0, 1))
    def settle(self, data: st.DataObject, used: Fraction) -> None:
        self._settle(data.draw(st.sampled_from(self.live)), used)

    @precondition(lambda self: self.live)
    @rule(used=st.sampled_from((Fraction(0), Fraction(1, 3), Fraction(1))))
    def settle_all(self, used: Fraction) -> None:
        for call in list(self.live):
            self._settle(call, used)

    def _settle(self, call: Live, used: Fraction) -> None:
        self.live.remove(call)
        actual = Amounts(*(int((units or 0) * used) for units in call.asked))._replace(requests=call.asked.requests)
        changed, rest = quota.settle(
            (*self.limits, *(part.limit for part in parts_of(self.plans, self.limits))),
            self.levels,
            call.reservation,
            actual,
            float(self.now_s),
        )
        assert rest is None
        self.levels |= changed
        for name, units, _token in call.reservation.holds:
            if name in self.promises and name.split()[2] != "requests":
                promise = self.promises[name]
                promise.room(self.now_s)
                promise.held -= units
                promise.fill += min(units, getattr(actual, name.split()[2]))

    @rule(ms=st.integers(1, 20_000))
    def time_passes(self, ms: int) -> None:
        self.now_s += Fraction(ms, 1000)
        now_s = self.now_s
        self.plans = [each for each in self.plans if each.until_s > now_s]

    @invariant()
    def nothing_is_over_its_parent(self) -> None:
        for limit in self.limits:
            reading = quota.read(limit, self.levels, float(self.now_s))
            total = limit.burst if isinstance(limit, Rate) else limit.amount
            # A rate's one large call may go into debt alone; that rule is older than reservations.
            assert reading.used + reading.held <= max(total, getattr(limit, "largest", None) or 0), limit.name

    @invariant()
    def everything_is_charged_to_the_parent(self) -> None:
        if LIFE in self.limits:
            held = quota.read(LIFE, self.levels, float(self.now_s)).held
            assert held == sum(call.asked.tokens for call in self.live)

    @invariant()
    def the_holder_has_what_was_promised_however_hard_others_push(self) -> None:
        for part in parts_of(self.plans, self.limits):
            now_ns = int(self.now_s * 10**9)
            if not part.is_open(now_ns):
                continue
            if isinstance(part.parent, Rate) and self._old_calls_hold(part):
                continue
            room = self.promises[part.limit.name].room(self.now_s)
            if room < 1:
                continue
            outcome = self._ask(part.limit.scope, asked_of(part.parent, room), own_only=True)
            assert isinstance(outcome, Admitted), f"{room} of {part.limit.name} were promised: {outcome}"

    def _old_calls_hold(self, part: Part) -> bool:
        """Whether calls from before the reservation are on their way still: it cannot take from them."""
        begins = Fraction(part.begins_ns, 10**9)
        return any(call.at_s <= begins for call in self.live)

    def _ask(self, who: str, asked: Demand, *, own_only: bool = False) -> Admitted | Wait | Refused:
        return admit(
            self.limits,
            self.levels,
            asked,
            float(self.now_s),
            lease_s=LEASE_S,
            plans=met(self.plans, who, self.limits),
            own_only=own_only,
        )

    def _check_wait(self, wait: Wait, who: str, asked: Demand, *, own_only: bool) -> None:
        if wait.until_s != float("inf"):
            assert wait.until_s > self.now_s
            later = admit(
                self.limits,
                self.levels,
                asked,
                wait.until_s,
                lease_s=LEASE_S,
                plans=met(self.plans, who, self.limits),
                own_only=own_only,
            )
            assert isinstance(later, Admitted), f"promised for {wait.until_s}, got {later}"
        freed = dict(self.levels)
        for call in self.live:
            every = (*self.limits, *(part.limit for part in parts_of(self.plans, self.limits)))
            changed, _ = quota.settle(every, freed, call.reservation, Amounts(call.asked.requests), float(self.now_s))
            freed |= changed
        just_before_s = min(wait.earliest_s, float(self.now_s) + 1_000) - 0.001
        if just_before_s > self.now_s:
            early = admit(
                self.limits,
                freed,
                asked,
                just_before_s,
                lease_s=LEASE_S,
                plans=met(self.plans, who, self.limits),
                own_only=own_only,
            )
            assert not isinstance(early, Admitted), f"admitted before {wait.earliest_s}"


def test_laws_hold_beside_reservations():
    run_state_machine_as_test(
        PlannedMachine,
        settings=settings(
            max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
