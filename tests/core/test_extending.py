"""A stream that goes beyond its hold holds more while there is any, is counted once, and leaves others theirs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.core import quota
from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.extending import extend
from headgate.core.limits import Rolling, Window
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
