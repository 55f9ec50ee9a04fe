"""Calls that are alike, which of them may pass others, and the row in which they are tried."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from headgate.runtime.alike import Alike
from headgate.runtime.turns import Turns


@dataclass(eq=False)
class Waits:
    order: int
    again_s: float = math.inf


@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 9), st.integers(0, 9)), max_size=40))
def test_the_first_are_those_that_nobody_is_before(acts):
    alike: Alike[Waits] = Alike()
    waiting: dict[int, tuple[Waits, tuple[int, int]]] = {}
    for number, (act, one, other) in enumerate(acts):
        if act == "add" or not waiting:
            call, asks = Waits(number), (one, other)
            waiting[number] = call, asks
            alike.add(call, asks)
        else:
            call, _ = waiting.pop(sorted(waiting)[one % len(waiting)])
            alike.remove(call)
            assert not alike.remove(call)
        expected = {
            order
            for order, (_, asks) in waiting.items()
            if not any(
                earlier < order and all(less <= more for less, more in zip(least, asks, strict=True))
                for earlier, (_, least) in waiting.items()
            )
        }
        assert set(alike.first()) == expected
        assert len(alike) == len(waiting)
        before = alike.before((one, other))
        assert (before is not None) == any(a <= one and b <= other for _, (a, b) in waiting.values())


def test_an_earlier_attempt_of_one_call_is_not_the_later_one():
    alike: Alike[Waits] = Alike()
    earlier, later = Waits(1), Waits(1)
    alike.add(earlier, (5,))
    alike.add(later, (5,))
    assert not alike.remove(earlier)
    assert alike.first()[1][0] is later


def test_whoever_is_in_the_row_is_tried_however_often_others_come():
    """With one coming between any two tries the others were never tried again."""
    calls = [Waits(number) for number in range(20)]
    turns: Turns[Waits] = Turns()
    tried: dict[int, float] = {}
    now_s = 0.0
    for number in range(100, 400):
        turns.changed()
        turns.comes(Waits(number))
        for each in turns.next_few(lambda: calls, 16, now_s, 0.1):
            since_s = now_s - tried.get(each.order, 0.0)
            assert each.order >= 100 or since_s <= 0.1 * (40 / 16 + 2)
            tried[each.order] = now_s
            turns.was_tried(each)
        now_s += 0.1
    assert set(range(20)) <= set(tried)


def test_nobody_is_tried_where_nothing_changes_before_its_time_comes():
    turns: Turns[Waits] = Turns()
    call = Waits(1)
    turns.changed()
    assert turns.next_few(lambda: [call], 4, 0.0, 0.1) == [call]
    call.again_s = 50.0
    turns.was_tried(call)
    assert turns.look_again_s == 50.0
    assert turns.next_few(lambda: [call], 4, 40.0, 0.1) == []
    assert turns.next_few(lambda: [call], 4, 50.0, 0.1) == [call]


def test_one_that_is_due_before_the_next_may_be_tried_is_looked_for_no_sooner():
    """A lane asked again and again at one instant: endless in virtual time, a busy tenth of a second in real."""
    turns: Turns[Waits] = Turns()
    call = Waits(1)
    turns.comes(call)
    assert turns.next_few(lambda: [call], 4, 10.0, 0.1) == [call]
    call.again_s = 10.05
    turns.was_tried(call)
    assert turns.next_few(lambda: [call], 4, 10.05, 0.1) == []
    assert turns.look_again_s == 10.1
    assert turns.next_few(lambda: [call], 4, turns.look_again_s, 0.1) == [call]
