"""Warm-up: one call of many that begin alike goes first, so that the others read the prompt cache that it writes.

Requests that start in parallel with the same prefix all pay its full price; one that starts after the first token of
another reads it for a tenth (Anthropic, "Prompt caching"; wire.md section 2).
One rule: a call waits only for what would save it as much as the smallest prompt that is cached, and never for ever.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEAST_BYTES = 4_096
"""What is worth a wait: 1,024 tokens, the least that most models cache, at four bytes each."""

MOST_WARM_UP_S = 30.0
"""Nobody waits longer for another's first token: it comes within seconds, or something is wrong with that call."""

UNSEEN_WARM_UP_S = 5.0
"""As long is waited for a call that is not streamed: its first token is written about then, and its first byte only
with its last."""

MOST_PREFIXES = 20_000
"""Prefixes that are remembered, the least recently used forgotten first: some 300 bytes each."""


class Mark(NamedTuple):
    """A prefix of a prompt that its caller wants cached: its key, its size, and how long the cache keeps it unused."""

    key: int
    size_bytes: int
    life_s: float


Place = tuple[str, int]
"""An account, whose caches nobody else reads, and the key of a prefix."""


_NEVER_S = float("-inf")


@dataclass(slots=True)
class _State:
    """Until when others wait for a call that writes a prefix, and until when it can be read after that."""

    awaited_until_s: float = _NEVER_S
    warm_until_s: float = _NEVER_S

    def is_awaited(self, now_s: float) -> bool:
        return now_s < self.awaited_until_s

    def is_warm(self, now_s: float) -> bool:
        return self.awaited_until_s <= now_s < self.warm_until_s


class WarmUp:
    """Which prefixes are cold, awaited or warm, by a clock that does not step.

    A prefix whose call was sent, and awaited for as long as anybody waits, passes for warm. Each question costs as
    many look-ups as a prompt has marks: four.
    """

    def __init__(self, most_prefixes: int = MOST_PREFIXES) -> None:
        """Know of no prefix."""
        self._states: OrderedDict[Place, _State] = OrderedDict()
        self._most_prefixes = most_prefixes

    def awaited(self, account: str, marks: Sequence[Mark], now_s: float) -> tuple[Place, float] | None:
        """Give the longest prefix worth waiting for, and until when at the most; None if the call should go.

        `marks` are the call's, shortest first. What it can read already is not worth a wait.
        """
        known = [(mark, self._states[account, mark.key]) for mark in marks if (account, mark.key) in self._states]
        readable_bytes = max((mark.size_bytes for mark, state in known if state.is_warm(now_s)), default=0)
        for mark, state in reversed(known):
            if state.is_awaited(now_s) and mark.size_bytes >= readable_bytes + LEAST_BYTES:
                return (account, mark.key), state.awaited_until_s
        return None

    def began(self, account: str, marks: Sequence[Mark], now_s: float, until_s: float) -> tuple[Place, ...]:
        """Let a call go first for those of its prefixes that are cold and nobody goes first for; give these."""
        led = []
        for mark in marks:
            state = self._states.setdefault((account, mark.key), _State())
            if not state.is_awaited(now_s) and not state.is_warm(now_s):
                state.awaited_until_s, state.warm_until_s = until_s, _NEVER_S
                led.append((account, mark.key))
        while len(self._states) > self._most_prefixes:
            self._states.popitem(last=False)
        return tuple(led)

    def went(self, account: str, marks: Sequence[Mark], led: Sequence[Place], until_s: float) -> None:
        """Say that a call that goes first is sent now, after it waited for its admission: it is awaited until then."""
        for mark in marks:
            state = self._states.get((account, mark.key))
            if state is not None and (account, mark.key) in led and state.warm_until_s == _NEVER_S:
                state.awaited_until_s, state.warm_until_s = until_s, until_s + mark.life_s

    def answered(self, account: str, marks: Sequence[Mark], now_s: float) -> None:
        """Say that a call's first token is there: all its prefixes can be read, and live anew from now on."""
        for mark in marks:
            state = self._states.setdefault((account, mark.key), _State())
            state.awaited_until_s, state.warm_until_s = _NEVER_S, now_s + mark.life_s
            self._states.move_to_end((account, mark.key))

    def gave_up(self, led: Sequence[Place]) -> None:
        """Say that a call that went first has failed or left: whoever asks next may go first."""
        for place in led:
            state = self._states.get(place)
            if state is not None and state.awaited_until_s > _NEVER_S:  # else another was answered meanwhile
                state.awaited_until_s = state.warm_until_s = _NEVER_S
