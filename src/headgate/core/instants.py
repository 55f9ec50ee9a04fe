"""Instants: seconds at the border, whole nanoseconds inside.

One rule: level arithmetic is done on integers, because floats near today's date step by 238 ns and do not add up the
same in every order; an instant that leaves the core is rounded so that what was promised for it holds.
"""

import math

NS_PER_S = 1_000_000_000


def to_ns(seconds: float) -> int:
    """Give an instant or a duration in whole nanoseconds."""
    return round(seconds * NS_PER_S)


def to_s(instant_ns: int) -> float:
    """Give the earliest float in seconds that `to_ns` does not place before `instant_ns`."""
    seconds = instant_ns / NS_PER_S
    while round(seconds * NS_PER_S) < instant_ns:
        seconds = math.nextafter(seconds, math.inf)
    return seconds
