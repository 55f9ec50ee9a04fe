"""How many calls at once a provider in trouble bears: shrunk by trouble and slowness, grown back by answers (gradient).

One rule: without trouble there is no bound. Only the time to the first byte of a stream counts, and only beside prompts
of its size: a long answer, or one that comes whole, is not slow.
"""

import math
from dataclasses import dataclass, replace

_TOLERATED = 2.0
"""How much slower than usual answers may begin: a queue at the provider is more."""
_SLOW = 3.0
"""So much slower they are a trouble of their own, where nothing else told of one."""
_LEAST_SLOWED = 4
"""Fewer calls at once are no provider's queue."""
_LEAST_GRADIENT = 0.5
_STARTED = 16.0
"""Slow start ends where as many go as before, but not with fewer."""
_CALM_S = 60.0
_CALM_FACTOR = 2.0


class Speed:
    """How fast answers begin beside what is usual for prompts of their size, over the last few of them."""

    _SMOOTHING = 0.1
    _USUAL_OVER = 200
    """What is usual follows so many answers: a provider that stays slow becomes the usual one."""
    _LEAST_SEEN = 10
    _MOST_RATIO = 8.0
    """One answer says no more than that, however long it took."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self.slowness = 1.0
        self._usual: dict[int, tuple[int, float]] = {}

    def follow(self, prompt_tokens: int, first_byte_s: float) -> float:
        """Take up how long an answer took to begin; give by how much the last ones were slower than usual."""
        if first_byte_s < 0:  # the clock stepped back meanwhile: that says nothing, and would make all others slow
            return self.slowness
        size = prompt_tokens.bit_length()  # sizes up to twice as large are alike, so there are few
        seen, usual_s = self._usual.get(size, (0, 0.0))
        if seen >= self._LEAST_SEEN:
            ratio = min(self._MOST_RATIO, first_byte_s / max(usual_s, 1e-6))
            self.slowness += self._SMOOTHING * (ratio - self.slowness)
        seen = min(self._USUAL_OVER, seen + 1)
        self._usual[size] = seen, usual_s + (first_byte_s - usual_s) / seen
        return self.slowness


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The calls that may be under way at once, as Netflix' concurrency-limits has it ("Gradient2").

    In a round trip: limit x gradient + sqrt(limit), the gradient being what is tolerated of how slow answers are, from
    a half to 1; here in steps of one answer. With `starts` it begins at one call and doubles (slow start).
    """

    slots: float
    since_s: float
    halved_s: float
    began_at: float = 1.0
    starts: bool = False

    @property
    def amount(self) -> int:
        """The slots as a limit has them."""
        return max(1, math.floor(self.slots))


def troubled(found: Concurrency | None, in_flight: int, sent_s: float, now_s: float) -> Concurrency:
    """Halve the slots at most once a round trip: a call that was sent before the last time proves nothing new."""
    if found is None:
        return Concurrency(max(1.0, in_flight / 2), now_s, now_s, max(1.0, float(in_flight)))
    if sent_s <= found.halved_s:
        return found
    return replace(found, slots=max(1.0, min(found.slots, float(in_flight)) / 2), halved_s=now_s, starts=False)


def reopening(in_flight: int, now_s: float, opens_s: float) -> Concurrency:
    """Give the slots of what is closed until `opens_s`: one call goes then, and each answer lets two more."""
    return Concurrency(1.0, now_s, opens_s, max(_STARTED, float(in_flight)), starts=True)


def slowed(slowness: float, in_flight: int, now_s: float) -> Concurrency | None:
    """Begin to bound calls whose answers begin much more slowly than usual; None if that is not so."""
    if slowness < _SLOW or in_flight < _LEAST_SLOWED:
        return None
    return Concurrency(max(1.0, in_flight * _gradient(slowness)), now_s, now_s, float(in_flight))


def answered(found: Concurrency, slowness: float, in_flight: int, now_s: float) -> Concurrency | None:
    """Follow an answer; None when there was no trouble for so long that no bound is needed."""
    if found.starts:
        slots = found.slots + 1.0 if now_s >= found.halved_s else found.slots
        return replace(found, slots=slots) if slots < found.began_at else None
    slots = found.slots - 1.0 + _gradient(slowness)
    if in_flight >= found.slots / 2:  # what nobody asks for proves nothing
        slots += 1.0 / math.sqrt(found.slots)
    slots = max(1.0, slots)
    if now_s - found.halved_s > _CALM_S and slots >= _CALM_FACTOR * found.began_at:
        return None
    return replace(found, slots=slots)


def _gradient(slowness: float) -> float:
    return min(1.0, max(_LEAST_GRADIENT, _TOLERATED / max(slowness, 1e-6)))
