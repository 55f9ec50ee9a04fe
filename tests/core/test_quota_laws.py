"""Laws of admission, held by a machine that admits, settles, loses and renews in any order.

The limits are checked against references that share no code with them: a leaky bucket in fractions, and plain sums.
`test_planted_faults_are_found` breaks the code on purpose and expects the laws to notice.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from headgate.core import quota
from headgate.core.amounts import NOTHING, Amounts, demand
from headgate.core.limits import Gauge, Limit, Rate, Rolling, Short, Window
from headgate.core.quota import Admitted, Refused, Reservation, Wait
from headgate.core.spans import Calendar, Fixed, Lifetime, OpenedByUse

START_S = 1_750_000_000.0
LEASE_S = 90.0


def every_limit() -> list[Limit]:
    return [
        Rate("rate output", "account:a", "output_tokens", 600, 60, 400),
        Rate("rate requests", "account:a", "requests", 30, 60, 12, charged_at_start=True),
        Window("day", "run:r", "micro_usd", 9_000, Calendar("day")),
        Window("fixed", "run:r", "input_tokens", 600, Fixed(40)),
        Window("plan", "account:a", "tokens", 2_000, OpenedByUse(18_000)),
        Window("life", "run:r", "output_tokens", 30_000, Lifetime()),
        Rolling("rolling", "key:k", "micro_usd", 2_500, 60),
        Gauge("slots", "account:a", "slots", 3),
    ]


class Bucket:
    """A reference: a leaky bucket in exact fractions, filled at the instant it is told."""

    def __init__(self, amount: int, period_s: int, burst: int) -> None:
        self.rate, self.burst = Fraction(amount, period_s), burst
        self.fill, self.at = Fraction(0), Fraction(0)

    def add(self, units: int, at_s: float) -> None:
        at = Fraction(at_s)
        if at > self.at:
            self.fill = max(Fraction(0), self.fill - (at - self.at) * self.rate)
            self.at = at
        self.fill += units


@dataclass(eq=False)
class Live:
    reservation: Reservation
    asked: Amounts
    actual: Amounts
    stretch: list[float]
    sent: bool
    drawn: int = 0


amounts = st.builds(
    Amounts,
    requests=st.just(1),
    input_tokens=st.integers(0, 300),
    output_tokens=st.integers(0, 350),
    tokens=st.integers(0, 600),
    micro_usd=st.integers(0, 1_500),
    slots=st.just(1),
)


class AdmissionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.limits = every_limit()
        self.levels: dict[str, tuple[int, ...]] = {}
        self.now_s = START_S
        self.clock_stepped = False
        self.live: list[Live] = []
        self.lost: list[Live] = []
        self.used: dict[tuple[str, int], int] = {}
        self.stretches: list[list[float]] = []
        rates = [limit for limit in self.limits if isinstance(limit, Rate)]
        self.at_settle = {limit.name: Bucket(limit.amount, limit.period_s, limit.burst) for limit in rates}

    # -- what happens ---------------------------------------------------------------------------------------------

    @rule(asked=amounts, used_share=st.fractions(0, 1), sent=st.sampled_from((True, True, False)))
    def admit(self, asked: Amounts, used_share: Fraction, sent: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        before = dict(self.levels)
        outcome = quota.admit(self.limits, self.levels, demand(asked), self.now_s, lease_s=LEASE_S)
        assert self.levels == before, "a question changed a level"
        if isinstance(outcome, Admitted):
            assert not any(self._wait_under(limit, asked) for limit in self.limits)
            self.levels |= outcome.levels
            actual = Amounts(*(math.floor((units or 0) * used_share) for units in asked))._replace(requests=1)
            booked_s = max(self.now_s, self.stretches[-1][0] if self.stretches else 0.0)
            self.stretches.append([booked_s, asked.micro_usd])
            self.live.append(Live(outcome.reservation, asked, actual, self.stretches[-1], sent))
            self._charge("rate requests", int(sent))
        elif isinstance(outcome, Wait):
            self._check_wait(outcome, asked)
        else:
            assert isinstance(outcome, Refused)
            assert outcome.asked is not None
            assert outcome.asked > outcome.free

    @precondition(lambda self: self.of(sent=True))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        call = self.take(data, sent=True)
        self._settle(call, call.actual)

    @precondition(lambda self: self.of(sent=True))
    @rule(data=st.data())
    def settle_input_early(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.of(sent=True)))
        changed, rest = quota.settle(
            self.limits, self.levels, call.reservation, call.actual, self.now_s, ("input_tokens",)
        )
        self.levels |= changed
        call.reservation = rest
        call.actual = call.actual._replace(input_tokens=0)  # told, and charged

    @precondition(lambda self: self.of(sent=True))
    @rule(data=st.data(), share=st.fractions(0, 1))
    def draw_output(self, data: st.DataObject, share: Fraction) -> None:
        call = data.draw(st.sampled_from(self.of(sent=True)))
        so_far, lapsed = math.floor(call.actual.output_tokens * share), self._lapsed_by_time(call)
        told = Amounts(output_tokens=so_far)
        changed, call.reservation = quota.draw(self.limits, self.levels, call.reservation, told, self.now_s)
        self.levels |= changed
        again, _ = quota.draw(self.limits, self.levels, call.reservation, told, self.now_s)
        assert again == {}, "drawing twice changed a level"
        if so_far > call.drawn:
            if not lapsed:
                self._charge("rate output", so_far - call.drawn)
            call.drawn = so_far

    @precondition(lambda self: self.of(sent=False))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        call = self.take(data, sent=False)
        call.actual = NOTHING
        self._settle(call, NOTHING)

    @precondition(lambda self: self.of(sent=True))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        call = self.take(data, sent=True)
        lapsed = self._lapsed_by_time(call)
        changed, call.reservation = quota.expire(self.limits, self.levels, call.reservation, self.now_s)
        self.levels |= changed
        again, _ = quota.expire(self.limits, self.levels, call.reservation, self.now_s)
        assert again == {}, "expiring twice changed a level"
        if not lapsed:
            self._charge("rate output", call.asked.output_tokens - call.drawn)
        self.lost.append(call)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def reconcile(self, data: st.DataObject) -> None:
        call = self.lost.pop(data.draw(st.integers(0, len(self.lost) - 1)))
        changed, rest = quota.settle(self.limits, self.levels, call.reservation, call.actual, self.now_s)
        self.levels |= changed
        call.stretch[1] = call.actual.micro_usd or 0
        assert rest is None

    @precondition(lambda self: self.live)
    @rule()
    def renew(self) -> None:
        for call in self.live:
            changed, call.reservation = quota.renew(
                self.limits, self.levels, call.reservation, self.now_s, lease_s=LEASE_S
            )
            self.levels |= changed

    @rule(seconds=st.floats(0, 45))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(seconds=st.one_of(st.just(0.0), st.floats(0, 30)))
    def clock_steps_back(self, seconds: float) -> None:
        before = {limit.name: quota.read(limit, self.levels, self.now_s).free for limit in self.limits}
        self.now_s -= seconds
        # From here on our clock and a provider's tell two stories; that nothing was freed is checked right here.
        self.clock_stepped = self.clock_stepped or seconds > 0
        for limit in self.limits:
            assert quota.read(limit, self.levels, self.now_s).free <= before[limit.name], "stepping back freed some"

    # -- what must hold -------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_over_its_limit(self) -> None:
        for limit in self.limits:
            reading = quota.read(limit, self.levels, self.now_s)
            total = limit.burst if isinstance(limit, Rate) else limit.amount
            assert reading.used >= 0
            assert reading.held >= 0
            assert reading.used + reading.held <= total, f"{limit.name} over its limit: {reading}"
            assert reading.used + reading.held + reading.free == total, "held + used + free is the whole"
        for bucket in self.at_settle.values():
            assert self.clock_stepped or bucket.fill <= bucket.burst, "a provider's own bucket would overflow"

    @invariant()
    def no_slot_is_counted_that_nobody_has(self) -> None:
        gauge = next(limit for limit in self.limits if isinstance(limit, Gauge))
        assert quota.read(gauge, self.levels, self.now_s).held <= len(self.live)

    @invariant()
    def a_rolling_stretch_never_holds_more(self) -> None:
        for end_s, _units in self.stretches:
            assert (
                self.clock_stepped
                or sum(units for at_s, units in self.stretches if end_s - 60 < at_s <= end_s) <= 2_500
            )

    def teardown(self) -> None:
        for call in self.live:
            self._settle(call, call.actual if call.sent else NOTHING)
        self.live.clear()
        for limit in self.limits:
            assert quota.read(limit, self.levels, self.now_s).held == 0, f"{limit.name} leaks a hold"

    def of(self, *, sent: bool) -> list[Live]:
        return [call for call in self.live if call.sent == sent]

    def take(self, data: st.DataObject, *, sent: bool) -> Live:
        call = data.draw(st.sampled_from(self.of(sent=sent)))
        self.live.remove(call)
        return call

    # -- references -----------------------------------------------------------------------------------------------

    def _settle(self, call: Live, actual: Amounts) -> None:
        lapsed = self._lapsed_by_time(call)
        changed, rest = quota.settle(self.limits, self.levels, call.reservation, actual, self.now_s)
        self.levels |= changed
        assert rest is None
        again, _ = quota.settle(self.limits, self.levels, rest, call.asked, self.now_s)
        assert again == {}, "settling twice changed a level"
        if not lapsed:
            self._charge("rate output", actual.output_tokens - call.drawn)
        call.stretch[1] = actual.micro_usd or 0

    def _lapsed_by_time(self, call: Live) -> bool:
        generation = self.levels.get("rate output", (0, 0, 0, 0, 0))
        token = {name: token for name, _units, token in call.reservation.holds}.get("rate output")
        now_ns = round(self.now_s * 1e9)
        return token is not None and (generation[4] != token or now_ns >= generation[3])

    def _charge(self, name: str, units: int) -> None:
        self.at_settle[name].add(units, self.now_s)

    def _wait_under(self, limit: Limit, asked: Amounts) -> Wait | None:
        return quota.wait_under(limit, self.levels.get(limit.name), demand(asked), self.now_s)

    def _check_wait(self, wait: Wait, asked: Amounts) -> None:
        alone = self._wait_under(wait.limit, asked)
        assert alone is not None
        assert alone.until_s == wait.until_s > self.now_s
        assert alone.earliest_s <= wait.earliest_s
        if math.isfinite(wait.until_s):
            later = quota.admit(self.limits, self.levels, demand(asked), wait.until_s)
            assert isinstance(later, Admitted), f"promised for {wait.until_s}, got {later}"
        freed = dict(self.levels)
        for call in self.live:
            # All that is held comes back; a request that was charged at the start is not held.
            nothing = Amounts(requests=1, output_tokens=call.drawn)
            changed, _ = quota.settle(self.limits, freed, call.reservation, nothing, self.now_s)
            freed |= changed
        if wait.earliest_s - 0.001 > self.now_s:
            sooner = quota.admit(self.limits, freed, demand(asked), wait.earliest_s - 0.001)
            assert not isinstance(sooner, Admitted), "admitted before the earliest time"


AdmissionLaws = AdmissionMachine.TestCase
AdmissionLaws.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(amounts, st.fractions(0, 3)), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_order_of_settling_does_not_matter(calls):
    limits = [replace(limit, amount=limit.amount * 10) for limit in every_limit()]
    limits = [replace(limit, burst=limit.burst * 10) if isinstance(limit, Rate) else limit for limit in limits]
    levels: dict[str, tuple[int, ...]] = {}
    settled = []
    for asked, share in calls:
        outcome = quota.admit(limits, levels, demand(asked), START_S)
        assert isinstance(outcome, Admitted)
        levels |= outcome.levels
        settled.append((outcome.reservation, Amounts(*(math.floor((units or 0) * share) for units in asked))))
    ends = set()
    for order in permutations(settled):
        end = dict(levels)
        for reservation, actual in order:
            changed, _ = quota.settle(limits, end, reservation, actual, START_S + 1)
            end |= changed
        ends.add(tuple(sorted(end.items())))
    assert len(ends) == 1


def _holds_drain(original):
    def settle(self, level, held, actual, token, now_ns, *, lapsed):
        at_ns, backlog, all_held, lapse_ns, generation = original(self, level, held, held, token, now_ns, lapsed=lapsed)
        return (at_ns, max(0, backlog + (actual - held) * self.period_s * 2 * 10**9), all_held, lapse_ns, generation)

    return settle


def _forgets_held(original):
    def settle(self, level, held, actual, token, now_ns, *, lapsed):
        result = original(self, level, held, actual, token, now_ns, lapsed=lapsed)
        return (*result[:2], result[2] + (1 if held > actual else 0), *result[3:])

    return settle


def _too_generous(original):
    def hold(self, level, units, now_ns, expires_ns):
        return original(replace(self, amount=self.amount + max(1, self.amount // 4)), level, units, now_ns, expires_ns)

    return hold


def _hasty(original):
    def hold(self, level, units, now_ns, expires_ns):
        outcome = original(self, level, units, now_ns, expires_ns)
        return replace(outcome, until_ns=now_ns + 1) if isinstance(outcome, Short) else outcome

    return hold


def _drains_backwards(original):
    def drained(self, level, now_ns):
        if level is not None and now_ns < level[0]:
            return (now_ns, max(0, level[1] - (level[0] - now_ns) * self.amount), *level[2:])
        return original(self, level, now_ns)

    return drained


def _never_lapses(original):
    def current(self, level, now_ns):
        return level if level is not None else original(self, level, now_ns)

    return current


def _leaks(original):
    def lapse(self, level, held, token, now_ns):
        return original(self, level, max(0, held - 1), token, now_ns)

    return lapse


@pytest.mark.parametrize(
    ("owner", "method", "fault"),
    [
        (Rate, "settle", _holds_drain),
        (Rate, "settle", _forgets_held),
        (Rate, "hold", _hasty),
        (Rate, "_drained", _drains_backwards),
        (Window, "hold", _too_generous),
        (Window, "hold", _hasty),
        (Rolling, "hold", _too_generous),
        (Gauge, "hold", _too_generous),
        (Gauge, "_current", _never_lapses),
        (Gauge, "lapse", _leaks),
    ],
)
def test_planted_faults_are_found(monkeypatch, owner, method, fault):
    monkeypatch.setattr(owner, method, fault(getattr(owner, method)))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            AdmissionMachine,
            settings=settings(
                max_examples=2_000,
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,  # the same search each time: found once, found always
                phases=[Phase.generate],  # that a fault is found is enough; the smallest example is not needed
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
            ),
        )
