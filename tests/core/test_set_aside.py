"""Laws of admission beside planned reservations, held by a machine that plans, admits and settles in any order.

What the holder was promised is reckoned beside the code: a leaky bucket in fractions, and plain sums.
"""

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, Phase, settings
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
from headgate.core.limits import Gauge, Level, Limit, Rate, Rolling, Window
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
SLOTS = Gauge("slots", "account:a", "slots", 8)
LIMITS: tuple[Limit, ...] = (OUTPUT, REQUESTS, FIXED, LIFE, ROLLING, SLOTS)
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
    """What a holder may use of a plan now, reckoned apart: its bucket is used up when it begins, its window whole.

    A bucket that had room for it when it was made began to fill so early that it is full by then.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.at = Fraction(part.begins_ns, 10**9)
        self.fill = Fraction(part.limit.burst if isinstance(part.limit, Rate) else 0)
        self.held = 0
        self.disturbed_until = Fraction(0)

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
        choice=st.integers(0, 5),
        scope=st.sampled_from(HOLDERS),
        percent=st.one_of(st.integers(1, 110), st.sampled_from((10, 50, 90, 100))),
        in_s=st.sampled_from((0, 0, 0, 1, 20, 90)),
        duration_s=st.sampled_from((1, 20, 60, 200, 600)),
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
        slots=st.integers(0, 2),
    )
    def admit(self, who: str, output: int, dollars: int, tokens: int, input_tokens: int, slots: int) -> None:
        asked = Amounts(1, input_tokens, output, tokens, dollars, slots)
        before = dict(self.levels)
        outcome = self._ask(who, demand(asked))
        assert self.levels == before, "a question changed a level"
        if isinstance(outcome, Admitted):
            self.levels |= outcome.levels
            self._went(outcome, asked, who)
        elif isinstance(outcome, Wait):
            self._check_wait(outcome, who, demand(asked))
        else:
            assert isinstance(quota.admit(self.limits, self.levels, demand(asked), float(self.now_s)), Refused)

    @rule(who=st.sampled_from((NOBODY, *HOLDERS)), choice=st.integers(0, 5), grain=st.sampled_from((1, 7, 50, 200)))
    def push(self, who: str, choice: int, grain: int) -> None:
        """Take all that can be had, in calls of one size."""
        limit = self.limits[choice % len(self.limits)]
        asked = NOTHING._replace(**{limit.dimension: 1 if limit in (REQUESTS, SLOTS) else grain})
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
        self._check_slots(outcome.reservation)

    def _check_slots(self, reserved: Reservation) -> None:
        """Others take no slot that a reservation is still to fill; those of calls before it count until they end."""
        own = {name for name, _units, _token in reserved.holds if name in self.promises and " slots " in name}
        if SLOTS.name not in [name for name, _units, _token in reserved.holds] or own:
            return
        now_ns = int(self.now_s * 10**9)
        to_fill = sum(
            part.limit.amount - self.promises[part.limit.name].held
            for part in parts_of(self.plans, self.limits)
            if part.parent is SLOTS and part.is_open(now_ns)
        )
        assert self._slots_held() + to_fill <= SLOTS.amount

    def _slots_held(self) -> int:
        return sum(units for call in self.live for name, units, _ in call.reservation.holds if name == SLOTS.name)

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
        for promise in self.promises.values():
            if call.at_s <= Fraction(promise.part.begins_ns, 10**9):
                # What it used is charged now, and drains in as long as a whole bucket takes at the most.
                promise.disturbed_until = self.now_s + Fraction(OUTPUT.burst * OUTPUT.period_s, OUTPUT.amount)
        actual = Amounts(*(int((units or 0) * used) for units in call.asked))._replace(requests=call.asked.requests)
        # A guess that was held at less than it asked may use more: that is debt, which no reservation can foresee.
        held = {name: units for name, units, _token in call.reservation.holds}
        actual = actual._replace(output_tokens=min(actual.output_tokens, held.get("output", 0)))
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
                if name.split()[2] != "slots":  # these come back in full
                    promise.fill += min(units, getattr(actual, name.split()[2]))

    @rule(ms=st.one_of(st.integers(1, 3_000), st.sampled_from((1_000, 5_000, 20_000))))
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
            if part.parent is SLOTS:
                room = min(room, SLOTS.amount - self._slots_held())  # it fills as the calls end that were before it
            if room < 1:
                continue
            outcome = self._ask(part.limit.scope, asked_of(part.parent, room))
            assert isinstance(outcome, Admitted), f"{room} of {part.limit.name} were promised: {outcome}"
            assert {name for name, _units, _token in outcome.reservation.holds} & met(
                self.plans, part.limit.scope, self.limits
            ).own, "it took what is everybody's"

    def _old_calls_hold(self, part: Part) -> bool:
        """Whether calls from before the reservation are, or were just, on their way: it cannot take from them."""
        begins = Fraction(part.begins_ns, 10**9)
        return self.promises[part.limit.name].disturbed_until > self.now_s or any(
            call.at_s <= begins for call in self.live
        )

    def _ask(self, who: str, asked: Demand) -> Admitted | Wait | Refused:
        return admit(
            self.limits,
            self.levels,
            asked,
            float(self.now_s),
            lease_s=LEASE_S,
            plans=met(self.plans, who, self.limits),
        )

    def _check_wait(self, wait: Wait, who: str, asked: Demand) -> None:
        if wait.until_s != float("inf"):
            assert wait.until_s > self.now_s
            later = admit(
                self.limits,
                self.levels,
                asked,
                wait.until_s,
                lease_s=LEASE_S,
                plans=met(self.plans, who, self.limits),
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
            )
            assert not isinstance(early, Admitted), f"admitted before {wait.earliest_s}"


def test_laws_hold_beside_reservations():
    run_state_machine_as_test(
        PlannedMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # finding is quick, shrinking takes minutes: switch it on to look closer
            database=None,
        ),
    )


def booked(limit: Limit, units: int, *, in_s: int = 0, for_s: int = 600, who: str = "run:a", id_: str = "p") -> Plan:
    outcome = plan([], Wanted(id_, who, units, START_S + in_s, START_S + in_s + for_s), limit, START_S, {})
    assert isinstance(outcome, Planned), outcome
    return outcome.plan


def ask(limit: Limit, units: int, plans: list[Plan], levels: dict[str, Level], at_s: float, who: str = NOBODY, **how):
    return admit((limit,), levels, asked_of(limit, units), at_s, plans=met(plans, who, (limit,)), **how)


def test_an_idle_holder_costs_others_none_of_the_refill():
    half = booked(OUTPUT, 3_000)
    levels: dict[str, Level] = {}
    taken = 0
    for tenth in range(6_000):
        at_s = START_S + tenth / 10
        while isinstance(outcome := ask(OUTPUT, 20, [half], levels, at_s), Admitted):
            changed, _ = quota.settle((OUTPUT,), outcome.levels, outcome.reservation, Amounts(0, 0, 20), at_s)
            levels |= changed
            taken += 20
    assert taken >= 600 * 10, "600 s at 10 a second"


def test_a_holder_gets_all_its_units_while_others_take_whatever_they_can():
    half = booked(OUTPUT, 3_000, in_s=100)
    part = part_of(half, OUTPUT)
    levels: dict[str, Level] = {}
    taken = {NOBODY: 0, "run:a": 0}
    for tenth in range(7_000):
        at_s = START_S + tenth / 10
        for who in (NOBODY, "run:a"):
            while isinstance(
                outcome := ask(OUTPUT, 20, [half], levels, at_s, who),
                Admitted,
            ):
                if who == "run:a" and tenth < 1_000:
                    break
                every = (OUTPUT, part.limit)
                changed, _ = quota.settle(every, outcome.levels, outcome.reservation, Amounts(0, 0, 20), at_s)
                levels |= changed
                taken[who] += 20
    assert taken["run:a"] >= 3_000
    assert 600 * 10 <= sum(taken.values()) <= 400 + 700 * 10, "nothing lost, nothing over"


def test_long_calls_of_others_do_not_grow_into_the_reservation_while_its_holder_has_used_it():
    part_plan = booked(OUTPUT, 3_000, for_s=600)
    levels: dict[str, Level] = {}
    at_s = START_S + 100.0
    for _ in range(10):
        outcome = ask(OUTPUT, 20, [part_plan], levels, at_s, "run:a")
        assert isinstance(outcome, Admitted)
        every = (OUTPUT, part_of(part_plan, OUTPUT).limit)
        changed, _ = quota.settle(every, outcome.levels, outcome.reservation, Amounts(0, 0, 20), at_s)
        levels |= changed
    # The holder's 200 drain from the bucket in 20 s, but fill its own again in 40 s only.
    at_s += 20
    while isinstance(outcome := ask(OUTPUT, 20, [part_plan], levels, at_s), Admitted):
        levels |= outcome.levels  # and these go on and on
    assert isinstance(ask(OUTPUT, 200, [part_plan], levels, at_s + 30, "run:a"), Admitted)


def test_a_large_call_goes_into_no_debt_that_the_holder_would_pay():
    half = booked(OUTPUT, 3_000)
    outcome = ask(OUTPUT, 600, [half], {}, START_S + 100)
    assert isinstance(outcome, Admitted)
    assert outcome.reservation.holds[0][1] == 200, "held at the most that others can have at once"
    assert isinstance(ask(OUTPUT, 200, [half], outcome.levels, START_S + 100, "run:a"), Admitted)


def test_others_wait_exactly_until_a_window_is_free_again():
    aside = booked(LIFE, 3_000, for_s=600)
    outcome = ask(LIFE, 1_500, [aside], {}, START_S + 1)
    assert isinstance(outcome, Wait)
    assert (outcome.until_s, outcome.earliest_s, outcome.limit) == (START_S + 600, START_S + 600, LIFE)
    assert isinstance(ask(LIFE, 1_000, [aside], {}, START_S + 1), Admitted)
    assert isinstance(ask(LIFE, 1_500, [], {}, START_S + 1), Admitted), "cancelled: all is back"


def test_money_is_set_aside_from_the_start_of_the_window_in_which_it_is_needed_not_before():
    day = Window("day", "account:a", "micro_usd", 1_000, Calendar("day"))
    tomorrow = booked(day, 600, in_s=86_400)
    assert isinstance(ask(day, 900, [tomorrow], {}, START_S), Admitted)
    midnight_s = START_S - START_S % 86_400 + 86_400
    outcome = ask(day, 900, [tomorrow], {}, midnight_s + 60.0)
    assert isinstance(outcome, Wait)
    assert outcome.until_s == tomorrow.until_s
    assert isinstance(ask(day, 400, [tomorrow], {}, midnight_s + 60.0), Admitted)


def test_a_wait_does_not_promise_what_a_reservation_to_come_takes():
    soon = booked(FIXED, 800, in_s=50, for_s=300)
    levels: dict[str, Level] = {"fixed": (START_S * 10**9, (START_S + 40) * 10**9, 900, 0, 0)}
    outcome = ask(FIXED, 500, [soon], levels, START_S + 1.0)
    assert isinstance(outcome, Wait)
    assert outcome.until_s == soon.until_s


def test_a_holder_waits_for_the_limit_that_its_reservation_is_of():
    half = booked(OUTPUT, 3_000)
    levels = {"output": (START_S * 10**9, 400 * 60 * 10**9, 0, 0, START_S * 10**9)}
    outcome = ask(OUTPUT, 30, [half], levels, START_S + 1.0, "run:a")
    assert isinstance(outcome, Wait)
    assert outcome.limit == OUTPUT
    assert outcome.until_s == pytest.approx(START_S + 6)  # 5 a second, and it began used up


def test_slots_are_left_alone_as_they_come_free_and_nobody_is_interrupted():
    """8 slots, all in use when 5 of them are reserved: the holder has each that comes free, others wait."""
    aside = booked(SLOTS, 5, in_s=60, for_s=600)
    levels: dict[str, Level] = {}
    running: list[Reservation] = []

    def take(who: str, at_s: float) -> Admitted | Wait | Refused:
        outcome = ask(SLOTS, 1, [aside], levels, at_s, who, lease_s=LEASE_S)
        if isinstance(outcome, Admitted):
            levels.update(outcome.levels)
        return outcome

    def end(reserved: Reservation, at_s: float) -> None:
        every = (SLOTS, part_of(aside, SLOTS).limit)
        levels.update(quota.settle(every, levels, reserved, NOTHING, at_s)[0])

    while isinstance(outcome := take(NOBODY, START_S + 59.0), Admitted):
        running.append(outcome.reservation)
    assert len(running) == 8, "before it begins all are there for all"
    begun_s = START_S + 60.0
    for number in range(5):
        assert isinstance(take("run:a", begun_s + number), Wait), "nobody is interrupted"
        end(running[number], begun_s + number)
        other = take(NOBODY, begun_s + number)
        assert isinstance(other, Wait)
        assert other.until_s == begun_s + 600, "when the reservation is over, for these go on"
        mine = take("run:a", begun_s + number)
        assert isinstance(mine, Admitted)
    assert isinstance(take("run:a", begun_s + 9), Wait), "five are reserved, not six"
    end(running[5], begun_s + 10)
    assert isinstance(take(NOBODY, begun_s + 10), Admitted), "the other three are everybody's"
    end(mine.reservation, begun_s + 11)
    assert isinstance(take(NOBODY, begun_s + 11), Wait), "what the holder gives back is its own again"
    assert isinstance(take(NOBODY, begun_s + 600), Admitted), "and everybody's when it is over"


def test_what_can_never_be_is_refused_as_without_reservations():
    aside = booked(LIFE, 3_000)
    outcome = ask(LIFE, 5_000, [aside], {}, START_S + 1)
    assert isinstance(outcome, Refused)
    assert outcome.free == 4_000


def test_calls_wait_until_the_end_of_all_maintenance_that_follows():
    first = closure("nightly", "*", None, (START_S + 10, START_S + 100), refuses=False)
    second = closure("weekly", "account:a", "claude-*", (START_S + 90, START_S + 200), refuses=False)
    closures = closures_met((first, second), ("account:a", "key:k"), "claude-x")
    assert closures == (first, second)
    assert closures_met((first, second), ("account:a",), "gpt-x") == (first,)
    assert closures_met((second,), ("account:b",), "claude-x") == ()

    def at(at_s: float, levels: dict[str, Level]) -> Admitted | Wait | Refused:
        return admit((REQUESTS,), levels, demand(Amounts(1)), at_s, plans=Plans(closures=closures))

    assert isinstance(at(START_S + 9.9, {}), Admitted)
    outcome = at(START_S + 10.0, {})
    assert isinstance(outcome, Wait)
    assert (outcome.until_s, outcome.limit.name) == (START_S + 200, "* * maintenance nightly")
    assert isinstance(at(START_S + 200.0, {}), Admitted)
    # What a limit alone would promise for a moment within the window waits for its end too.
    full = {"requests": (START_S * 10**9, 50 * 60 * 10**9 + 12 * 60 * 10**9, 0, 0, START_S * 10**9)}
    busy = at(START_S + 1.0, full)
    assert isinstance(busy, Wait)
    assert busy.until_s == START_S + 200


def test_of_two_maintenance_windows_the_one_that_refuses_is_told():
    holds = closure("nightly", "*", None, (START_S + 10, START_S + 200), refuses=False)
    refuses = closure("weekly", "*", None, (START_S + 20, START_S + 100), refuses=True)
    for at_s, told in ((15, holds), (30, refuses), (150, holds)):
        plans = Plans(closures=(holds, refuses))
        outcome = admit((REQUESTS,), {}, demand(Amounts(1)), START_S + at_s, plans=plans)
        assert isinstance(outcome, Wait)
        assert (outcome.limit, outcome.until_s) == (told, START_S + 200)
