"""A stream that goes beyond its hold holds more while there is any, is counted once, and leaves others theirs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import quota, set_aside
from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.extending import extend
from headgate.core.limits import Rolling, Window
from headgate.core.planning import Plan, part_of
from headgate.core.set_aside import Plans
from headgate.core.spans import Calendar, Lifetime

GUARDED = {"holds_likely": True, "ends_streams": True}
KINDS = (
    Window("w", "run:r", "output_tokens", 1_000, Lifetime(), **GUARDED),
    Window("w", "run:r", "output_tokens", 1_000, Calendar("hour"), **GUARDED),
    Rolling("w", "run:r", "output_tokens", 1_000, 3_600, **GUARDED),
)
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 200)), max_size=40)


def demand(units: int) -> Demand:
    amounts = NOTHING._replace(output_tokens=units)
    return Demand(amounts, amounts)


def out(units: int) -> Amounts:
    return NOTHING._replace(output_tokens=units)


@pytest.mark.parametrize("limit", KINDS)
@given(
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 200)), max_size=40), apart_s=st.sampled_from([0.0, 1.0])
)
def test_streams_together_never_hold_more_than_there_is_and_each_is_charged_what_it_used(limit, steps, apart_s):
    levels, now_s, reserved, used = {}, 1_000_000.0, {}, {}
    for stream in range(3):
        admitted = quota.admit([limit], levels, demand(100), now_s)
        assert isinstance(admitted, quota.Admitted)
        levels.update(admitted.levels)
        reserved[stream], used[stream] = admitted.reservation, 0
    for stream, more in steps:
        now_s += apart_s
        if stream not in reserved:
            continue
        ahead = used[stream] + more
        changed, reserved[stream], spent = extend(
            [limit], levels, reserved[stream], out(used[stream]), out(ahead), now_s
        )
        levels.update(changed)
        if spent is None:
            used[stream] = ahead
        else:
            assert not changed
            levels.update(quota.settle([limit], levels, reserved.pop(stream), out(used[stream]), now_s)[0])
        reading = limit.read(levels["w"], round(now_s * 1e9))
        assert reading.used + reading.held <= limit.amount
    for stream, held in reserved.items():
        levels.update(quota.settle([limit], levels, held, out(used[stream]), now_s)[0])
    reading = limit.read(levels["w"], round(now_s * 1e9))
    assert (reading.used, reading.held) == (sum(used.values()), 0)


def test_a_limit_that_ends_no_streams_is_left_alone():
    limit = Window("w", "run:r", "output_tokens", 1_000, Lifetime(), holds_likely=True)
    admitted = quota.admit([limit], {}, demand(100), 0.0)
    assert extend([limit], admitted.levels, admitted.reservation, out(5_000), out(5_064), 0.0) == (
        {},
        admitted.reservation,
        None,
    )


@pytest.mark.parametrize("limit", KINDS)
@pytest.mark.parametrize("is_lost", [False, True])
def test_what_was_only_thought_is_replaced_by_what_the_settlement_knows(limit, is_lost):
    admitted = quota.admit([limit], {}, demand(100), 7.0)
    levels, held = dict(admitted.levels), admitted.reservation
    for so_far in (200, 700):
        changed, held, spent = extend([limit], levels, held, out(so_far), out(so_far + 64), 8.0)
        assert spent is None
        levels.update(changed)
    reading = limit.read(levels["w"], 8_000_000_000)
    assert (reading.used, reading.held) == (0, 764)
    if is_lost:
        changed, held = quota.expire([limit], levels, held, 9.0)
        levels.update(changed)
        assert limit.read(levels["w"], 9_000_000_000).used == limit.pending(levels["w"], 9_000_000_000) == 764
    levels.update(quota.settle([limit], levels, held, out(300), 9.0)[0])
    reading = limit.read(levels["w"], 9_000_000_000)
    assert (reading.used, reading.held) == (300, 0)


@pytest.mark.parametrize("limit", KINDS[1:])
def test_a_stream_that_outlives_its_window_holds_the_rest_of_the_next_one(limit):
    admitted = quota.admit([limit], {}, demand(100), 0.0)
    changed, held, spent = extend([limit], admitted.levels, admitted.reservation, out(950), out(1_014), 7_300.0)
    assert spent is None
    reading = limit.read(changed["w"], 7_300_000_000_000)
    assert (reading.used, reading.held) == (0, 64)
    settled = quota.settle([limit], changed, held, out(1_000), 7_301.0)[0]
    assert limit.read(settled["w"], 7_301_000_000_000).used == 50


PLAN = Plan("p", "key:ci", "w", 600, 0, 1_000, 0)


@pytest.mark.parametrize(("is_own", "most"), [(False, 400), (True, 600)])
def test_what_is_set_aside_is_left_to_whom_it_was_promised(is_own, most):
    limit = KINDS[0]
    part = part_of(PLAN, limit)
    every = (limit, part.limit)
    plans = Plans((part,), frozenset([part.limit.name] if is_own else []))
    admitted = set_aside.admit([limit], {}, demand(100), 10.0, plans=plans)
    levels, held = dict(admitted.levels), admitted.reservation
    for ahead in (most - 1, most):
        changed, held, spent = extend(every, levels, held, out(100), out(ahead), 11.0, (part,))
        assert spent is None
        levels.update(changed)
    assert part.limit.read(levels.get(part.limit.name), 11).held == (most if is_own else 0)
    if is_own:  # and goes on as everybody does, with what nobody has set aside
        changed, held, spent = extend(every, levels, held, out(100), out(1_000), 11.0, (part,))
        assert spent is None
        levels.update(changed)
    changed, held, spent = extend(every, levels, held, out(100), out(1_001), 11.0, (part,))
    assert (changed, spent) == ({}, limit)
    levels.update(quota.settle(every, levels, held, out(300), 12.0)[0])
    assert limit.read(levels["w"], 12).used == 300
