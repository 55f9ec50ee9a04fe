"""Estimates: what a call will use, learned from what calls before it used.

One rule: an estimate is never silently zero; without history it leans on the safe side and says so by being large.
The estimators keep bounded samples and are deterministic: the same history gives the same estimate.
"""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from math import ceil
from typing import NamedTuple, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

SAMPLES = 500
"""Rolling samples per quantile: the window that decision 3 of the design was measured with."""

PRIOR_TOKENS_PER_BYTE = 0.4
"""Before anything is learned. Code and English run at 0.25 to 0.35 tokens a byte (context-and-caches.md section 2)."""

MOST_TOKENS_PER_BYTE = 0.5
"""The bound that money is held at. Denser text exists (random digits): what it uses beyond the bound becomes debt."""

MEDIA_TOKENS = 1_600
"""One image at the size providers scale it to (Anthropic, "Vision": about width x height / 750, at most 1.15 MP)."""

OVERHEAD_TOKENS = 512
"""What providers add around the text: roles, tool preamble."""

PRIOR_OUTPUT_TOKENS = 4_096
"""Before anything is learned, what a call is expected to write at the most. Agents state 32,000 to 64,000 and write a
few hundred (Azure's code trace: mean 28, p99 277; sessions of coding agents: mean 250)."""

UNSTATED_OUTPUT_TOKENS = 32_768
"""The bound for calls that state none: the largest default output of the models in common use (November 2026)."""


class RollingQuantile:
    """The quantile of the last `size` observations; observing costs O(size) in the worst case, asking O(1)."""

    def __init__(self, size: int = SAMPLES) -> None:
        """Keep at most `size` observations."""
        self._order: deque[float] = deque()
        self._sorted: list[float] = []
        self._size = size

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[float]:
        """Iterate over the observations, oldest first."""
        return iter(self._order)

    def observe(self, value: float) -> None:
        """Add an observation; the oldest leaves when there are too many."""
        self._order.append(value)
        insort(self._sorted, value)
        if len(self._order) > self._size:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def value(self, share: float) -> float | None:
        """Give the value that at least `share` of a new observation's likes stay under, or None without enough data.

        The rank is (n + 1) x share, rounded up, as in split-conformal prediction: with too few observations for the
        share there is no such value.
        """
        rank = ceil((len(self._sorted) + 1) * share)
        if rank > len(self._sorted):
            return None
        return self._sorted[max(rank, 1) - 1]


class CallSize(NamedTuple):
    """What is known of a call's size before it is sent: text in bytes, media parts, stated output bound."""

    model: str
    text_bytes: int
    media: int = 0
    max_output_tokens: int | None = None
    session: str | None = None


class Estimate(NamedTuple):
    """Tokens a call will probably use, and the most it can."""

    input_tokens: int
    input_at_most: int
    output_tokens: int
    output_at_most: int


class _Anchor(NamedTuple):
    text_bytes: int
    prompt_tokens: int


class Estimator:
    """Learns tokens per byte and output lengths per model, and the size of each session's last prompt.

    Bounded: at most `max_models` models and `max_sessions` sessions, the least recently used forgotten first.
    """

    def __init__(self, *, max_models: int = 1_000, max_sessions: int = 20_000) -> None:
        """Start with no history."""
        self._ratios: OrderedDict[str, RollingQuantile] = OrderedDict()
        self._outputs: OrderedDict[str, RollingQuantile] = OrderedDict()
        self._anchors: OrderedDict[tuple[str, str], _Anchor] = OrderedDict()
        self._max_models = max_models
        self._max_sessions = max_sessions

    def estimate(self, size: CallSize) -> Estimate:
        """Estimate a call. Input leans on the session's last answer where there is one, else on the model's ratio."""
        expected, at_most = self._input(size)
        bound = size.max_output_tokens if size.max_output_tokens is not None else UNSTATED_OUTPUT_TOKENS
        outputs = self._outputs.get(size.model)
        usual = outputs.value(0.95) if outputs else None
        return Estimate(expected, at_most, min(bound, PRIOR_OUTPUT_TOKENS if usual is None else ceil(usual)), bound)

    def observe(self, size: CallSize, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from what a call really used."""
        text_tokens = max(0, prompt_tokens - size.media * MEDIA_TOKENS)
        if size.text_bytes > 0 and prompt_tokens > 0:
            _of(self._ratios, size.model, self._max_models).observe(text_tokens / size.text_bytes)
            if size.session is not None:
                _put(
                    self._anchors,
                    (size.session, size.model),
                    _Anchor(size.text_bytes, text_tokens),
                    self._max_sessions,
                )
        if output_tokens > 0:
            _of(self._outputs, size.model, self._max_models).observe(output_tokens)

    def recall(self, model: str, output_tokens: Iterable[int]) -> None:
        """Learn from outputs, oldest first, that came before all that was observed here."""
        earlier = RollingQuantile()
        for tokens in (*output_tokens, *self._outputs.get(model, ())):
            earlier.observe(tokens)
        if earlier:
            _put(self._outputs, model, earlier, self._max_models)

    def _input(self, size: CallSize) -> tuple[int, int]:
        media_tokens = size.media * MEDIA_TOKENS
        ratios = self._ratios.get(size.model)
        ratio = (ratios.value(0.95) if ratios else None) or PRIOR_TOKENS_PER_BYTE
        most = max(MOST_TOKENS_PER_BYTE, ratio)
        anchor = self._anchors.get((size.session, size.model)) if size.session is not None else None
        if anchor is not None and size.text_bytes >= anchor.text_bytes:
            new_bytes = size.text_bytes - anchor.text_bytes
            anchored = anchor.prompt_tokens + ceil(new_bytes * most)
            # The anchor may be another conversation's that shares the session (a subagent's): a bound looks at both.
            at_most = max(anchored, ceil(size.text_bytes * ratio))
            return (
                anchor.prompt_tokens + ceil(new_bytes * ratio) + media_tokens,
                at_most + OVERHEAD_TOKENS + media_tokens,
            )
        return (
            ceil(size.text_bytes * ratio) + media_tokens,
            ceil(size.text_bytes * most) + OVERHEAD_TOKENS + media_tokens,
        )


def _of(table: OrderedDict[str, RollingQuantile], model: str, most: int) -> RollingQuantile:
    found = table.get(model)
    return _put(table, model, RollingQuantile() if found is None else found, most)


def _put(table: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> _V:
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)
    return value
