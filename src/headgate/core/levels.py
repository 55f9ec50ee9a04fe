"""Levels: what every limit counts, and the words in which it answers.

One rule: a level is a tuple of whole numbers that its limit alone can read; None stands for one that is not there yet.

A level counts three things: what was used, what is held for calls on their way, and what is pending (held by calls that
were lost and may have cost money).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Level = tuple[int, ...]
Kind = Literal["rate", "window", "gauge"]

FOREVER_NS = 2**63 - 1
"""Later than any instant: the end of a window that never ends."""


Booked = tuple[Level, int]
"""A hold was taken: the new level, and the token that finds its place in the level again. (A plain tuple: every call
makes one for each limit that it meets.)"""


@dataclass(frozen=True, slots=True)
class Short:
    """There is no room now.

    `until_ns`: there is room at the latest then, if nothing else is admitted (FOREVER_NS: only a settlement can make
    room). `earliest_ns`: there is none before, even if every hold comes back unused.
    """

    until_ns: int
    earliest_ns: int


@dataclass(frozen=True, slots=True)
class Never:
    """There will not be room: more was asked than the limit allows at all, or than is left for good."""

    free: int


class Reading(NamedTuple):
    """A level as people read it, in units of the limit's dimension; `resets_ns` is None when nothing is to reset."""

    used: int
    held: int
    free: int
    resets_ns: int | None


def lane_named(scope: str, models: str | None) -> str:
    """Name the lane in which calls wait for a scope's limits on a class of models (None: all), of any dimension."""
    return f"{scope} {models or '*'}"


def ceil_div(dividend: int, divisor: int) -> int:
    """Divide whole numbers, rounded up."""
    return -(-dividend // divisor)
