"""Backfill: a call behind others goes first only where none of them is delayed, beside what is planned too."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import NOTHING, Amounts, demand
from headgate.core.limits import Gauge, Level, Limit, Rate, Rolling, Window
from headgate.core.planning import Part, Plan, Planned, Wanted, part_of, plan
from headgate.core.quota import Admitted, Behind, Refused, Reservation, Wait
from headgate.core.set_aside import Applicant, Plans, admit, admit_behind, closure, closures_met
from headgate.core.spans import Calendar, Lifetime, OpenedByUse

NOW_S = 1_750_000_000.0
MADE_S = NOW_S - 200
LEASE_S = 600.0
LIMITS: tuple[Limit, ...] = (
    Rate("output", "account:a", "output_tokens", 600, 60, 400),
    Rate("input", "account:a", "input_tokens", 6_000, 60, 3_000),
    Rate("requests", "account:a", "requests", 60, 60, 10, charged_at_start=True),
    Window("day", "account:a", "micro_usd", 1_000, Calendar("day")),
    Gauge("slots", "account:a", "slots", 3),
)
MORE_LIMITS = (
    *LIMITS,
    Window("5h", "account:a", "tokens", 5_000, OpenedByUse(5 * 3600)),
    Window("life", "run:h", "micro_usd", 1_500, Lifetime()),
    Rolling("hour", "account:a", "output_tokens", 1_200, 3600),
)


def amounts(*choices: tuple[int, int, int, int]) -> st.SearchStrategy[Amounts]:
    """Give input, output, both together and millionths of a dollar, each drawn from a column by itself."""
    columns = [st.sampled_from(sorted(set(column))) for column in zip(*choices, strict=True)]
    return st.builds(Amounts, st.just(1), *columns, st.sampled_from((0, 1)))


large = amounts((3_000, 400, 2_500, 600), (2_000, 300, 1_500, 400), (0, 0, 0, 0))
small = amounts((900, 120, 800, 200), (200, 30, 100, 50), (0, 0, 0, 0), (0, 0, 0, 0))


@dataclass
class World:
    """Limits and levels, what is planned, and who holds what; nothing happens by itself but time."""

    limits: tuple[Limit, ...]
    plans: list[Plan]
    closed: tuple[tuple[str, float, float], ...]
    levels: dict[str, Level]

    def parts(self) -> tuple[Part, ...]:
        by_name = {limit.name: limit for limit in self.limits}
        return tuple(part_of(each, by_name[each.limit]) for each in self.plans)

    def applicant(self, who: str, asked: Amounts) -> Applicant:
        parts = self.parts()
        own = frozenset(part.limit.name for part in parts if part.limit.scope == who)
        windows = [closure(scope, scope, None, (begin, end), refuses=False) for scope, begin, end in self.closed]
        return Applicant(self.limits, demand(asked), Plans(parts, own, closures_met(windows, ("account:a", who), "m")))

    def ask(self, who: str, asked: Amounts, now_s: float) -> Admitted | Wait | Refused:
        call = self.applicant(who, asked)
        return admit(call.limits, self.levels, call.asked, now_s, lease_s=LEASE_S, plans=call.plans)

    def settle(self, reserved: Reservation, actual: Amounts, now_s: float) -> None:
        every = (*self.limits, *(part.limit for part in self.parts()))
        self.levels |= quota.settle(every, self.levels, reserved, actual, now_s)[0]

    def but(self, levels: dict[str, Level]) -> "World":
        return World(self.limits, self.plans, self.closed, dict(levels))


def world(limits, wishes, closed, before) -> World:
    here = World(limits, [], closed, {})
    for number, (limit, who, percent, in_s, for_s) in enumerate(wishes):
        of = limits[limit % len(limits)]
        whole = of.amount * for_s // of.period_s if isinstance(of, Rate) else of.amount
        from_s = int(MADE_S) + in_s
        wanted = Wanted(f"p{number}", who, max(1, whole * percent // 100), from_s, from_s + for_s)
        outcome = plan(here.plans, wanted, of, MADE_S, {})
        if isinstance(outcome, Planned):
            here.plans.append(outcome.plan)
    here.plans = [each for each in here.plans if each.until_s > NOW_S]
    for who, asked, ago_s, is_settled in before:
        if isinstance(outcome := here.ask(who, asked, NOW_S - ago_s), Admitted):
            here.levels |= outcome.levels
            if is_settled:
                here.settle(outcome.reservation, asked, NOW_S - ago_s)
    return here


def promised(here: World, taken: Reservation, head: Applicant) -> set[str]:
    """Name what a call took by a reservation that the head has no share in."""
    held = {name for name, _units, _token in taken.holds} - head.plans.own
    return {name for part in here.parts() if part.limit.name in held for name in (part.limit.name, part.parent.name)}


holders = st.sampled_from(("run:l", "run:l", "run:h", "run:x"))
wishes = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 1, 2, 3, 3, 4, 5, 6, 7)),
        holders,
        st.sampled_from((10, 40, 60, 90, 100)),
        st.sampled_from((0, 0, 100, 190, 230, 400, 4_000)),
        st.sampled_from((60, 250, 1_000, 5_000, 30_000)),
    ),
    min_size=1,
    max_size=4,
)
closures = st.lists(
    st.tuples(st.sampled_from(("run:h", "run:l", "account:*")), st.sampled_from((-50.0, 5.0, 40.0, 300.0))),
    max_size=2,
).map(lambda found: tuple((scope, NOW_S + in_s, NOW_S + in_s + 120) for scope, in_s in found))
before = st.lists(
    st.tuples(st.sampled_from(("run:l", "run:x")), large, st.sampled_from((150.0, 20.0, 0.0)), st.booleans()),
    min_size=1,
    max_size=5,
)


@given(
    here=st.builds(
        world,
        st.sampled_from((LIMITS, MORE_LIMITS)),
        st.one_of(st.just([]), wishes),
        st.one_of(st.just(()), closures),
        before,
    ),
    later=small,
    heads_ask=st.lists(large, min_size=1, max_size=2),
    who=st.sampled_from(("run:l", "run:l", "run:x")),
    used=st.sampled_from((0.0, 0.5, 1.0)),
    settled_after=st.sampled_from((0.0, 0.3, 0.9, None)),
)
@settings(max_examples=400, deadline=None)
def test_a_head_is_never_delayed_by_what_goes_before_it(here, later, heads_ask, who, used, settled_after):
    heads = [here.applicant("run:h", each) for each in heads_ask]
    waits = [here.ask("run:h", each, NOW_S) for each in heads_ask]
    levels = dict(here.levels)
    outcome = admit_behind(here.applicant(who, later), heads, levels, NOW_S, lease_s=LEASE_S)
    assert levels == here.levels, "a question changed a level"
    if not isinstance(outcome, Admitted):
        return
    for ask, head, wait in zip(heads_ask, heads, waits, strict=True):
        after = here.but(here.levels | outcome.levels)
        if isinstance(wait, Refused):
            continue
        until_s = wait.until_s if isinstance(wait, Wait) else NOW_S
        if settled_after is not None and until_s != float("inf"):
            at_s = NOW_S + (until_s - NOW_S) * settled_after
            after.settle(outcome.reservation, Amounts(*(int(units * used) for units in later)), at_s)
        for name in promised(here, outcome.reservation, head):
            after.levels.pop(name, None)
            after.levels.update({name: here.levels[name]} if name in here.levels else {})
        again = after.ask("run:h", ask, NOW_S)
        assert not isinstance(again, Refused)
        if isinstance(again, Wait) and settled_after in (0.0, None):
            assert isinstance(wait, Wait), "it might go before"
            assert again.until_s <= until_s
            assert again.earliest_s <= wait.earliest_s
        if until_s != float("inf"):
            assert isinstance(after.ask("run:h", ask, until_s), Admitted), f"it was promised for {until_s}"


NOT_YET = Wait | Behind


def test_what_asks_nothing_of_the_scarce_thing_goes_first():
    here = world(LIMITS, [], (), [("run:x", Amounts(1, output_tokens=400, slots=1), 0.0, False)])
    head = here.applicant("run:h", Amounts(1, output_tokens=300, slots=1))
    embedding = here.applicant("run:l", Amounts(1, input_tokens=500, slots=1))
    assert isinstance(admit_behind(embedding, [head], here.levels, NOW_S), Admitted)
    small = here.applicant("run:l", Amounts(1, output_tokens=1, slots=1))
    assert isinstance(admit_behind(small, [head], here.levels, NOW_S), NOT_YET)


def test_what_may_come_back_to_a_head_is_not_spent_on_others():
    """$300 are spent and $500 held of $1,000: a head of $600 fits if the hold comes back, but not beside 150 more."""
    spent = [
        ("run:x", NOTHING._replace(micro_usd=300), 0.0, True),
        ("run:x", NOTHING._replace(micro_usd=500), 0.0, False),
    ]
    here = world(LIMITS[3:4], [], (), spent)
    head = here.applicant("run:h", NOTHING._replace(micro_usd=600))
    for micro_usd, expected in ((150, NOT_YET), (100, Admitted)):
        call = here.applicant("run:l", NOTHING._replace(micro_usd=micro_usd))
        assert isinstance(admit_behind(call, [head], here.levels, NOW_S), expected)


DAY = 3


def test_small_calls_go_while_a_head_waits_for_the_end_of_a_reservation():
    """$600 of $1,000 are set aside for an hour: a head of $500 waits for its end, and $400 are there until then."""
    here = world(LIMITS, [(DAY, "run:x", 60, 200, 3_600)], (), [])
    head = here.applicant("run:h", Amounts(1, micro_usd=500))
    assert here.ask("run:h", Amounts(1, micro_usd=500), NOW_S) == Wait(NOW_S + 3_600, NOW_S + 3_600, LIMITS[DAY], 600)
    outcome = admit_behind(here.applicant("run:l", Amounts(1, micro_usd=400)), [head], here.levels, NOW_S)
    assert isinstance(outcome, Admitted)
    here.levels |= outcome.levels
    outcome = admit_behind(here.applicant("run:l", Amounts(1, micro_usd=101)), [head], here.levels, NOW_S)
    assert not isinstance(outcome, Admitted)


def test_nothing_is_left_over_that_a_head_needs_when_the_first_of_two_reservations_ends():
    """$300 are set aside until one instant and $300 until a later one: a head of $500 goes at the first."""
    here = world(LIMITS, [(DAY, "run:x", 30, 200, 1_000), (DAY, "run:x", 30, 200, 3_600)], (), [])
    head = here.applicant("run:h", Amounts(1, micro_usd=500))
    for micro_usd, expected in ((200, Admitted), (201, NOT_YET)):
        call = here.applicant("run:l", Amounts(1, micro_usd=micro_usd))
        assert isinstance(admit_behind(call, [head], here.levels, NOW_S), expected)


def test_the_last_of_a_budget_that_never_resets_is_left_to_a_head_that_waits_for_something_else():
    life = Window("life", "account:a", "micro_usd", 500, Lifetime())
    here = world((*LIMITS, life), [], (), [("run:x", Amounts(1, output_tokens=400), 0.0, True)])
    head = here.applicant("run:h", Amounts(1, output_tokens=400, micro_usd=300))
    for micro_usd, expected in ((200, Admitted), (201, NOT_YET)):
        call = here.applicant("run:l", Amounts(1, micro_usd=micro_usd))
        assert isinstance(admit_behind(call, [head], here.levels, NOW_S), expected)


def test_a_head_that_maintenance_holds_is_not_delayed_by_who_goes_meanwhile():
    here = world(LIMITS, [], (("run:h", NOW_S - 5, NOW_S + 20),), [])
    head = here.applicant("run:h", Amounts(1, output_tokens=350))
    assert isinstance(admit_behind(here.applicant("run:l", Amounts(1, output_tokens=250)), [head], {}, NOW_S), NOT_YET)
    outcome = admit_behind(here.applicant("run:l", Amounts(1, output_tokens=50)), [head], {}, NOW_S)
    assert isinstance(outcome, Admitted), "50 are back before the window is over, also if they are used only now"


def test_a_holder_goes_before_a_head_by_what_is_reserved_for_it_and_by_nothing_else():
    """Half of the output is the holder's; what it takes of the input beside that must not delay the head."""
    here = world(LIMITS, [(0, "run:l", 50, 0, 3_000)], (), [("run:x", Amounts(1, output_tokens=200), 0.0, True)])
    head = here.applicant("run:h", Amounts(1, output_tokens=150))
    for who, expected in (("run:l", Admitted), ("run:x", NOT_YET)):
        call = here.applicant(who, Amounts(1, output_tokens=100))
        assert isinstance(admit_behind(call, [head], here.levels, NOW_S), expected)
    here.levels |= here.ask("run:x", Amounts(1, input_tokens=2_000), NOW_S).levels
    head = here.applicant("run:h", Amounts(1, input_tokens=3_000))
    for who, input_tokens, expected in (("run:l", 100, NOT_YET), ("run:l", 0, Admitted)):
        call = here.applicant(who, Amounts(1, input_tokens=input_tokens, output_tokens=100))
        assert isinstance(admit_behind(call, [head], here.levels, NOW_S), expected)


def test_who_has_the_same_reservation_is_not_delayed_either():
    here = world(LIMITS, [(DAY, "run:h", 60, 200, 3_600)], (), [])
    here.levels |= here.ask("run:h", Amounts(1, micro_usd=300), NOW_S).levels
    head = here.applicant("run:h", Amounts(1, micro_usd=500))
    small = here.applicant("run:h", Amounts(1, micro_usd=200))
    assert isinstance(here.ask("run:h", Amounts(1, micro_usd=500), NOW_S), Wait)
    assert isinstance(admit_behind(small, [head], here.levels, NOW_S), NOT_YET)
