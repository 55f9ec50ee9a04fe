"""Calls that are alike, and the cheapest of them."""

from dataclasses import dataclass

from headgate.runtime.alike import Alike


@dataclass(eq=False)
class Waits:
    order: int
    is_here: bool = True


def test_a_later_attempt_of_a_call_that_asks_for_as_much_stands_beside_the_one_that_left():
    alike: Alike[Waits] = Alike(1, lambda each: each.is_here)
    first, again, dearer = Waits(7), Waits(7), Waits(3)
    assert alike.add(first, 10.0)
    first.is_here = False
    for call, size in ((again, 10.0), (dearer, 11.0), (Waits(7, is_here=False), 10.0)):
        alike.add(call, size)
    assert alike.cheapest is again
    again.is_here = False
    assert alike.cheapest is dearer
    assert alike.least == 11.0
