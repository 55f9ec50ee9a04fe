"""Estimates: what a call will use, learned from what calls before it used.

One rule: an estimate is never silently zero; without history it leans on the safe side and says so by being large.
The estimators keep bounded samples and are deterministic: the same history gives the same estimate.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from math import ceil, floor
from typing import NamedTuple, TypeVar

from headgate.core.quantiles import LongestSeen, RollingQuantile
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage, usage_of

_K = TypeVar("_K")
_V = TypeVar("_V")

NAMED_SAMPLES = 100
"""From so many outputs on, an endpoint or a kind of agent speaks for itself: they were told apart on purpose. What a
conformal quantile really covers is spread by sqrt(0.95 x 0.05 / samples): 2 points with 100."""

CLASS_SAMPLES = 400
"""From so many on, a class of prompt sizes does. It is a guess of ours, and a noisy quantile costs more than it tells:
on Azure's code and Mooncake's trace the mean hold falls until 400 (1.1 points of spread), see decision 0015."""

MOST_RARE_KEYS = 200
"""Keys with such samples: a few entries each, at the worst (each answer shorter than the one before) 1,998."""

PRIOR_TOKENS_PER_BYTE = 0.4
"""Before anything is learned. Code and English run at 0.25 to 0.35 tokens a byte (context-and-caches.md section 2)."""

MOST_TOKENS_PER_BYTE = 0.5
"""What windows of tokens hold. Denser text exists (random digits): what it uses beyond becomes debt. Budgets of money
hold more, a bound (`bounds`)."""

MEDIA_TOKENS = 1_600
"""One image at the size providers scale it to (Anthropic, "Vision": about width x height / 750, at most 1.15 MP)."""

OVERHEAD_TOKENS = 512
"""What providers add around the text: roles, tool preamble."""

PRIOR_OUTPUT_TOKENS = 4_096
"""Before anything is learned, what a call is expected to write at the most. Agents state 32,000 to 64,000 and write a
few hundred (Azure's code trace: mean 28, p99 277; sessions of coding agents: mean 250)."""

UNSTATED_OUTPUT_TOKENS = 32_768
"""What windows of tokens hold for calls that state none: the largest default output of most models (November 2026)."""

PACED_TOKENS = 64
"""Shorter answers may come in one piece, and say nothing of how fast longer ones are written."""

FEW_PACES = 1.5
"""Until there is a quantile of paces, the fastest seen times this: a model's answers come at much the same pace."""

SHORT_LIFE_S = 300.0
LONG_LIFE_S = 3_600.0
"""How long a prompt cache lives after its last use (Anthropic, "Prompt caching"; wire.md section 2)."""

KIND_TAG = "kind"
SUBAGENT = "subagent"

CACHE_KEPT = 0.99
"""How sure a predicted cache read must be. Of 10,661 steps of coding agents that grew within 5 minutes, 99.3 % read
all that was there (data/sessions); a miss costs 148 times the input of the median step, so 95 % would not do."""


class CallSize(NamedTuple):
    """What is known of a call's size before it is sent: text in bytes, media parts, stated output bound.

    `kind` names what sort of agent calls, `session` and `agent` whose conversation it goes on with.
    """

    model: str
    text_bytes: int
    media: int = 0
    max_output_tokens: int | None = None
    session: str | None = None
    agent: str | None = None
    endpoint: str = ""
    kind: str | None = None


size_made = partial(tuple.__new__, CallSize)
"""All eight in a tuple in, a size out, as `amounts.amounts_of`."""


class Estimate(NamedTuple):
    """Tokens a call will probably use, and the most it can.

    `cached_tokens` of the input are read from the provider's prompt cache if the call goes before `warm_until_s`; later
    it would be `cold_cached_tokens` (a part may live longer). Where nothing is predicted, `warm_until_s` is None.
    `output_tokens_per_s` is how fast its output comes at the most, if it is streamed; 0: nobody knows yet.
    `output_likely` is what 99.9 % of such calls stay under, at most the stated bound; None: it is not asked for, or
    nobody knows yet.
    `written_tokens` are those that the conversation's last call left in a cache which lives until `written_until_s`:
    what is likely, where `cached_tokens` is what can be relied on.
    """

    input_tokens: int
    input_at_most: int
    output_tokens: int
    output_at_most: int
    cached_tokens: int = 0
    cold_cached_tokens: int = 0
    warm_until_s: float | None = None
    output_tokens_per_s: int = 0
    output_likely: int | None = None
    written_tokens: int = 0
    written_until_s: float = 0.0

    @property
    def likely_usage(self) -> Usage:
        """The usage that is likely where the conversation's last call was served."""
        return self._usage(self.written_tokens)

    @property
    def uncached_usage(self) -> Usage:
        """The usage to expect where nothing of the prompt is cached."""
        return self._usage(0)

    @property
    def warm_usage(self) -> Usage:
        """The usage to expect while the prompt cache lives."""
        return self._usage(self.cached_tokens)

    @property
    def cold_usage(self) -> Usage:
        """The usage to expect once the prompt cache has died."""
        return self._usage(self.cold_cached_tokens)

    def _usage(self, cached_tokens: int) -> Usage:
        input_tokens = self.input_tokens
        if cached_tokens >= input_tokens:  # at least one is not: what is not held could not be settled either
            return usage_of((1, input_tokens, 0, 0, self.output_tokens, 0, False))
        return usage_of((input_tokens - cached_tokens, cached_tokens, 0, 0, self.output_tokens, 0, False))


_estimate = partial(tuple.__new__, Estimate)


class _Anchor(NamedTuple):
    """A conversation's last prompt, and what of it stands in the provider's cache since it was last used."""

    text_bytes: int
    prompt_tokens: int
    cached_tokens: int
    long_cached_tokens: int
    used_s: float

    def cached(self, now_s: float) -> tuple[int, int, float]:
        """Give what is cached now, what will be left of that after it dies, and when it does."""
        if now_s < self.used_s + SHORT_LIFE_S and self.cached_tokens > self.long_cached_tokens:
            return self.cached_tokens, self.long_cached_tokens, self.used_s + SHORT_LIFE_S
        if now_s < self.used_s + LONG_LIFE_S:
            return self.long_cached_tokens, 0, self.used_s + LONG_LIFE_S
        return 0, 0, now_s


_OutputKey = tuple[str | int | None, ...]
_Conversation = tuple[str, str | None, str]


class Estimator:
    """Learns tokens per byte and output lengths, the size of each conversation's last prompt, and what is cached of it.

    Bounded: at most `max_models` models, `max_keys` keys of outputs and `max_sessions` conversations, the least
    recently used forgotten first.
    """

    def __init__(self, *, max_models: int = 1_000, max_keys: int = 1_000, max_sessions: int = 20_000) -> None:
        """Start with no history."""
        self._ratios: OrderedDict[str, RollingQuantile] = OrderedDict()
        self._outputs: OrderedDict[_OutputKey, RollingQuantile] = OrderedDict()
        self._missed: OrderedDict[str, RollingQuantile] = OrderedDict()
        self._paces: OrderedDict[str, RollingQuantile] = OrderedDict()
        self._longest: OrderedDict[_OutputKey, LongestSeen] | None = None
        self._anchors: OrderedDict[_Conversation, _Anchor] = OrderedDict()
        self._max_models = max_models
        self._max_keys = max_keys
        self._max_sessions = max_sessions

    def estimate(self, size: CallSize, now_s: float) -> Estimate:
        """Estimate a call that goes now. Its prompt leans on the conversation's last answer, else on the model's ratio.

        Output is what 95 % of the calls of its key stay under, never above the stated bound.
        """
        anchor = self._anchor(size)
        expected, at_most = self._input(size, anchor)
        bound = size.max_output_tokens if size.max_output_tokens is not None else UNSTATED_OUTPUT_TOKENS
        cached, cold_cached, warm_until_s = self._cached(size.model, anchor, expected, now_s)
        output = min(bound, self._output(size))
        pace, likely = self._pace(size.model), self._likely(size) if self._longest else None
        written, _left, written_until_s = anchor.cached(now_s) if anchor is not None else (0, 0, now_s)
        of_cache = cached, cold_cached, warm_until_s, pace, likely, min(expected, written), written_until_s
        return _estimate((expected, at_most, output, bound, *of_cache))

    def observe(
        self,
        size: CallSize,
        usage: Usage,
        sent_s: float,
        *,
        streamed_s: float | None = None,
        left_cache: bool = False,
    ) -> None:
        """Learn from what a call really used that was sent at `sent_s`: its cache lives from then on.

        `streamed_s` is how long its output took to come, if it came piece by piece. One that `left_cache`, for an
        account that has not written it, says nothing of how well caches are foreseen.
        """
        if streamed_s is not None and streamed_s > 0 and usage.output_tokens >= PACED_TOKENS:
            _of(self._paces, size.model, self._max_models).observe(usage.output_tokens / streamed_s)
        prompt_tokens = usage.prompt_tokens
        text_tokens = max(0, prompt_tokens - size.media * MEDIA_TOKENS)
        if size.text_bytes > 0 and prompt_tokens > 0:
            _of(self._ratios, size.model, self._max_models).observe(text_tokens / size.text_bytes)
            self._observe_prompt(size, usage, text_tokens, sent_s, left_cache=left_cache)
        if usage.output_tokens > 0:
            for key, _least in _output_keys(size):
                _of(self._outputs, key, self._max_keys).observe(usage.output_tokens)
            if self._longest is not None:
                for key in _rare_keys(size):
                    self._longest_of(key).observe(usage.output_tokens)

    def cached_part(self, size: CallSize, now_s: float, *, unasked: bool) -> float:
        """Give which part of a prompt stands in its model's cache, as the conversation's last answer told.

        With `unasked` a provider caches what it reads without being asked, and does not tell.
        """
        anchor = self._anchor(size)
        if anchor is None or not size.text_bytes:
            return 0.0
        cached, _left, _until_s = anchor.cached(now_s)
        if unasked and now_s < anchor.used_s + SHORT_LIFE_S:
            cached = anchor.prompt_tokens
        return min(1.0, cached / max(1, anchor.prompt_tokens)) * anchor.text_bytes / size.text_bytes

    @property
    def keeps_longest(self) -> bool:
        """Whether it says what is likely (`Estimate.output_likely`)."""
        return self._longest is not None

    def keep_longest(self) -> None:
        """Say what is likely from now on, as soon as there are samples enough."""
        if self._longest is None:
            self._longest = OrderedDict()

    def recall_longest(self, model: str, output_tokens: Iterable[int]) -> None:
        """Learn what is likely from outputs, oldest first, that came before what is seen from now on."""
        for tokens in output_tokens:
            self._longest_of((model,)).observe(tokens)

    def recall(self, model: str, output_tokens: Iterable[int]) -> None:
        """Learn from outputs, oldest first, that came before all that was observed here."""
        earlier = RollingQuantile()
        for tokens in (*output_tokens, *self._outputs.get((model,), ())):
            earlier.observe(tokens)
        if earlier:
            _put(self._outputs, (model,), earlier, self._max_keys)

    def _output(self, size: CallSize) -> int:
        for key, least in _output_keys(size):
            outputs = self._outputs.get(key)
            if outputs is not None and len(outputs) >= least:
                usual = outputs.value(0.95)
                if usual is not None:
                    return ceil(usual)
        return PRIOR_OUTPUT_TOKENS

    def _likely(self, size: CallSize) -> int | None:
        """Give what the finest key says that has seen enough."""
        assert self._longest is not None
        for key in _rare_keys(size):
            longest = self._longest.get(key)
            if longest is not None and (found := longest.value()) is not None:
                return found if size.max_output_tokens is None else min(found, size.max_output_tokens)
        return None

    def _longest_of(self, key: _OutputKey) -> LongestSeen:
        assert self._longest is not None
        return _put(self._longest, key, self._longest.get(key) or LongestSeen(), min(self._max_keys, MOST_RARE_KEYS))

    def _pace(self, model: str) -> int:
        paces = self._paces.get(model)
        if not paces:
            return 0
        return ceil(paces.value(0.95) or FEW_PACES * max(paces))

    def _input(self, size: CallSize, anchor: _Anchor | None) -> tuple[int, int]:
        media_tokens = size.media * MEDIA_TOKENS
        ratios = self._ratios.get(size.model)
        ratio = (ratios.value(0.95) if ratios else None) or PRIOR_TOKENS_PER_BYTE
        most = max(MOST_TOKENS_PER_BYTE, ratio)
        if anchor is not None:
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

    def _cached(
        self, model: str, anchor: _Anchor | None, expected_tokens: int, now_s: float
    ) -> tuple[int, int, float | None]:
        """Predict what is read from the cache: what was there, less the share that predictions have missed."""
        misses = self._missed.get(model)
        missed = misses.value(CACHE_KEPT) if misses is not None else None
        if anchor is None or missed is None:
            return 0, 0, None
        cached, left, until_s = anchor.cached(now_s)
        cached = min(expected_tokens, floor(cached * (1 - missed)))
        left = min(expected_tokens, floor(left * (1 - missed)))
        return (cached, left, until_s) if cached else (0, 0, None)

    def _anchor(self, size: CallSize) -> _Anchor | None:
        """Give the conversation's last prompt if this one can go on from it; a shorter one was cut and is another."""
        if size.session is None:
            return None
        anchor = self._anchors.get((size.session, size.agent, size.model))
        return anchor if anchor is not None and size.text_bytes >= anchor.text_bytes else None

    def _observe_prompt(
        self, size: CallSize, usage: Usage, text_tokens: int, sent_s: float, *, left_cache: bool
    ) -> None:
        if size.session is None:
            return
        anchor, long_tokens = self._anchor(size), 0
        if anchor is not None:
            cached, _left, _until_s = anchor.cached(sent_s)
            if cached and not left_cache:
                missed = max(0.0, 1 - usage.cache_read_tokens / cached)
                _of(self._missed, size.model, self._max_models).observe(missed)
            # The longer life comes first in a prompt, so what was read of it is read first.
            long_tokens = min(anchor.long_cached_tokens, usage.cache_read_tokens)
        long_tokens += usage.cache_write_1h_tokens
        written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
        found = _Anchor(size.text_bytes, text_tokens, usage.cache_read_tokens + written, long_tokens, sent_s)
        _put(self._anchors, (size.session, size.agent, size.model), found, self._max_sessions)


def agent_kind(scopes: Scopes) -> str | None:
    """Give what sort of agent calls: what the tag `kind` says, else whether another agent started it.

    Names of agents do not say it: clients make one up for each (Claude Code's subagents have random ones).
    """
    for name, value in scopes.tags:
        if name == KIND_TAG:
            return value
    return None if scopes.parent is None else SUBAGENT


def _output_keys(size: CallSize) -> Iterator[tuple[_OutputKey, int]]:
    """Give the keys that a call's output is learned under, fine to coarse, each with the samples it needs to speak.

    Whoever sends more writes less, or other things: the class of a prompt's size (its bytes, by powers of two) is worth
    a fifth of the hold on Azure's conversations. The coarsest speaks as soon as there is a quantile.
    """
    yield (size.model, size.endpoint, size.kind, size.text_bytes.bit_length()), CLASS_SAMPLES
    if size.kind is not None:
        yield (size.model, size.endpoint, size.kind), NAMED_SAMPLES
    yield (size.model, size.endpoint), NAMED_SAMPLES
    yield (size.model,), 0


def _rare_keys(size: CallSize) -> Iterator[_OutputKey]:
    """Give the keys that the longest outputs are learned under, fine to coarse: what was told apart on purpose."""
    if size.kind is not None:
        yield size.model, size.endpoint, size.kind
    yield size.model, size.endpoint
    yield (size.model,)


def _of(table: OrderedDict[_K, RollingQuantile], key: _K, most: int) -> RollingQuantile:
    found = table.get(key)
    if found is None:
        return _put(table, key, RollingQuantile(), most)
    table.move_to_end(key)
    return found


def _put(table: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> _V:
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)
    return value
