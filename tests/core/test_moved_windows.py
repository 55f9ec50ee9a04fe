"""Plan windows: opened by first use, ended by the provider. Wherever it moves an end, nothing is counted twice."""

from hypothesis import given
from hypothesis import strategies as st

from headgate.core.instants import to_ns
from headgate.core.limits import Rate, Rolling, Window
from headgate.core.notices import Notices, PlanNotice, plan_windows_of
from headgate.core.spans import Calendar, OpenedByUse

# A whole hour.
START_NS = to_ns(1_800_000_000)
SECOND_NS = to_ns(1)
HOURS_5 = 18_000
PLAN = Window("plan", "account:a", "tokens", 100, OpenedByUse(HOURS_5))


def test_the_end_moves_and_what_was_used_stays():
    level, token = PLAN.hold(None, 60, START_NS, 0)
    level = PLAN.settle(level, 60, 40, token, START_NS, lapsed=False)
    moved = PLAN.moved(level, START_NS, START_NS + 600 * SECOND_NS)
    assert moved is not None
    assert PLAN.read(moved, START_NS) == (40, 0, 60, START_NS + 600 * SECOND_NS)
    assert PLAN.read(moved, START_NS + 600 * SECOND_NS).free == 100


def test_an_end_that_is_past_or_no_news_changes_nothing():
    level, _token = PLAN.hold(None, 60, START_NS, 0)
    end_ns = START_NS + HOURS_5 * SECOND_NS
    assert PLAN.moved(level, START_NS, START_NS) is None
    assert PLAN.moved(level, START_NS, end_ns + SECOND_NS) is None
    assert PLAN.moved(level, START_NS, end_ns - SECOND_NS) is None
    assert PLAN.moved(level, START_NS, end_ns - SECOND_NS - 1) is not None


def test_a_window_that_was_not_open_here_is_open_until_its_providers_end():
    moved = PLAN.moved(None, START_NS, START_NS + 600 * SECOND_NS)
    assert moved is not None
    level, _token = PLAN.hold(moved, 10, START_NS + SECOND_NS, 0)
    assert PLAN.read(level, START_NS + SECOND_NS).resets_ns == START_NS + 600 * SECOND_NS


def test_a_call_that_outlives_a_moved_window_takes_nothing_from_the_next_one_of_the_same_hour():
    # Headgate begins late in the provider's window: both windows here would by themselves end at the same time.
    level, token = PLAN.hold(None, 60, START_NS + 300 * SECOND_NS, 0)
    moved = PLAN.moved(level, START_NS + 300 * SECOND_NS, START_NS + 600 * SECOND_NS)
    level, next_token = PLAN.hold(moved, 50, START_NS + 700 * SECOND_NS, 0)
    assert level[1] == START_NS + HOURS_5 * SECOND_NS
    assert token != next_token
    settled = PLAN.settle(level, 60, 60, token, START_NS + 800 * SECOND_NS, lapsed=False)
    assert PLAN.read(settled, START_NS + 800 * SECOND_NS)[:2] == (0, 50)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hold", "settle", "lapse", "move", "forget"]), st.integers(0, 120), st.integers(0, 9_000)
    ),
    max_size=40,
)


@given(_STEPS)
def test_wherever_ends_move_a_window_counts_its_own_calls_and_no_others(steps):
    now_ns, level = START_NS, None
    live: list[tuple[int, int]] = []  # units and token of each call on its way
    mine: dict[int, int] = {}  # what each window holds, by its token, in plain sums
    for action, units, wait_s in steps:
        now_ns += wait_s * SECOND_NS
        if action == "hold" and type(outcome := PLAN.hold(level, units, now_ns, 0)) is tuple:
            level, token = outcome
            live.append((units, token))
            mine[token] = mine.get(token, 0) + units
        elif action in {"settle", "lapse"} and live:
            held, token = live.pop(units % len(live))
            if action == "settle":
                level = PLAN.settle(level, held, held, token, now_ns, lapsed=False)
            else:
                level = PLAN.lapse(level, held, token, now_ns)
        elif action == "move":
            level = PLAN.moved(level, now_ns, now_ns + (units + 1) * 60 * SECOND_NS) or level
        elif action == "forget" and level is not None and PLAN.idle_from_ns(level) <= now_ns:
            level = None
        if level is not None and now_ns < level[1]:
            assert min(level[2:]) >= 0
            assert sum(level[2:]) == mine.get(level[0], 0) <= PLAN.amount


def test_only_the_plan_windows_of_an_account_are_its_providers():
    others = [
        Window("key", "key:ci", "tokens", 100, OpenedByUse(HOURS_5)),
        Window("day", "account:a", "tokens", 100, Calendar("day")),
        Rolling("rolling", "account:a", "tokens", 100, HOURS_5),
        Rate("rate", "account:a", "tokens", 100, 60, 100),
    ]
    assert plan_windows_of([*others, PLAN]) == [(PLAN, HOURS_5)]


def test_the_end_of_a_plan_window_is_that_of_the_same_length_for_all_models():
    notices = Notices(plans=(PlanNotice(HOURS_5, resets_s=1.0, models="opus"), PlanNotice(HOURS_5, resets_s=2.0)))
    assert notices.plan_ends_s(HOURS_5) == 2.0
    assert notices.plan_ends_s(604_800) is None
