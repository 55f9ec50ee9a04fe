"""A level that is idle may be forgotten: from then on nobody can tell it from one that never was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import NOTHING, Demand
from headgate.core.instants import to_ns, to_s
from headgate.core.limits import FOREVER_NS, Gauge, Rate, Rolling, Window
from headgate.core.quota import Admitted
from headgate.core.spans import Calendar, Lifetime, OpenedByUse

START_S = 1_750_000_000.0
LEASE_S = 120.0
LIMITS = {
    "rate": Rate("level", "s", "output_tokens", 100, 60, 90),
    "rate charged at once": Rate("level", "s", "output_tokens", 100, 60, 90, charged_at_start=True),
    "day": Window("level", "s", "output_tokens", 100, Calendar("day")),
    "plan window": Window("level", "s", "output_tokens", 100, OpenedByUse(5 * 3_600)),
    "rolling": Rolling("level", "s", "output_tokens", 100, 600),
    "gauge": Gauge("level", "s", "output_tokens", 100),
}

steps = st.lists(
    st.tuples(st.sampled_from(("admit", "settle", "expire", "renew", "pass")), st.integers(0, 120), st.integers(0, 9)),
    max_size=12,
)


def demand(units: int) -> Demand:
    amounts = NOTHING._replace(output_tokens=units)
    return Demand(amounts, amounts)


def live(limit, what):
    """Give the level after these steps, what is held then, and the time."""
    levels, held, now_s = {}, [], START_S
    for step, units, which in what:
        reserved = held[which % len(held)] if held else None
        if step == "admit":
            outcome = quota.admit([limit], levels, demand(units), now_s, lease_s=LEASE_S)
            if isinstance(outcome, Admitted):
                levels.update(outcome.levels)
                held.append(outcome.reservation)
        elif step == "pass":
            now_s += units * (which + 1)
        elif reserved is not None:
            held.remove(reserved)
            if step == "settle":
                changed, _rest = quota.settle([limit], levels, reserved, demand(units).expected, now_s)
            elif step == "expire":
                changed, reserved = quota.expire([limit], levels, reserved, now_s)
            else:
                changed, reserved = quota.renew([limit], levels, reserved, now_s, lease_s=LEASE_S)
            if step != "settle":
                held.append(reserved)
            levels.update(changed)
    return levels, held, now_s


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@given(what=steps, later_s=st.sampled_from((0, 1, 100_000)), units=st.integers(0, 120))
def test_an_idle_level_says_what_none_would_say(limit, what, later_s, units):
    levels, held, now_s = live(limit, what)
    if not levels:
        return
    idle_ns = limit.idle_from_ns(levels["level"])
    assert idle_ns < FOREVER_NS
    at_s = to_s(max(to_ns(now_s), idle_ns) + to_ns(later_s) + 1_000)  # seconds since the epoch are exact to 240 ns
    assert quota.read(limit, levels, at_s) == quota.read(limit, {}, at_s)
    asked = [quota.admit([limit], some, demand(units), at_s) for some in (levels, {})]
    assert [type(outcome) for outcome in asked] == [type(asked[0])] * 2
    # What is still held of it, and told only now, adds the same to both.
    settled = [
        quota.read(limit, quota.settle([limit], some, reserved, demand(units).expected, at_s)[0], at_s)
        for reserved in held
        for some in (levels, {})
    ]
    assert settled[::2] == settled[1::2]


@given(what=steps)
def test_a_lifetime_is_never_idle(what):
    limit = Window("level", "s", "output_tokens", 100, Lifetime())
    levels, _held, _now_s = live(limit, what)
    assert all(limit.idle_from_ns(level) == FOREVER_NS for level in levels.values())


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_a_level_that_is_used_is_not_idle(limit):
    levels, _held, now_s = live(limit, [("admit", 60, 0)])
    assert limit.idle_from_ns(levels["level"]) > to_ns(now_s)
