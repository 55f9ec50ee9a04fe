"""Prompt caching by prefix, as the vendors bill it: Anthropic's marked prefixes and OpenAI's automatic ones.

One rule: what a call writes can be read only after `commit`, which is called when its first token exists, so that
requests which start together all pay the full price. Everything is bounded: the oldest prefixes are forgotten.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from headgate.testing.provider.answers import CHARACTERS_PER_TOKEN, token_count
from headgate.testing.provider.asked import PromptBlock
from headgate.testing.provider.counting import Usage

__all__ = ["FIVE_MINUTES_S", "ONE_HOUR_S", "PromptCache", "Written"]

FIVE_MINUTES_S = 300
ONE_HOUR_S = 3_600

# Anthropic, "Prompt caching": most models cache 1,024 tokens or more, and a mark looks back at most 20 blocks.
_MINIMUM_TOKENS = 1_024
_LOOK_BACK_BLOCKS = 20
# OpenAI, "Prompt caching": from 1,024 tokens in steps of 128, kept for 5 to 10 minutes of inactivity.
_STEP_TOKENS = 128
_AUTOMATIC_LIFE_S = 600

_ENTRIES_LIMIT = 200_000


class Written(NamedTuple):
    """A prefix that becomes readable on commit, and its time to live."""

    prefix: int
    life_s: int


class PromptCache:
    """The prefixes that are warm. Prefixes are 64-bit chained hashes, salted per process, and cost one hash a block."""

    def __init__(self) -> None:
        self._expires_s: OrderedDict[int, tuple[float, int]] = OrderedDict()

    def _warm(self, prefix: int, now_s: float) -> bool:
        found = self._expires_s.get(prefix)
        if found is None:
            return False
        expires_s, life_s = found
        if expires_s <= now_s:
            del self._expires_s[prefix]
            return False
        self._expires_s[prefix] = (now_s + life_s, life_s)
        self._expires_s.move_to_end(prefix)
        return True

    def commit(self, written: Sequence[Written], now_s: float) -> None:
        """Make prefixes readable from now on; one that is warm already keeps the longer life."""
        for prefix, life_s in written:
            known = self._expires_s.get(prefix)
            if known is None or known[0] < now_s + life_s:
                self._expires_s[prefix] = (now_s + life_s, life_s)
            self._expires_s.move_to_end(prefix)
        while len(self._expires_s) > _ENTRIES_LIMIT:
            self._expires_s.popitem(last=False)

    def marked(
        self,
        space: tuple[str, ...],
        blocks: Sequence[PromptBlock],
        breakpoints: Sequence[tuple[int, int]],
        now_s: float,
    ) -> tuple[Usage, list[Written]]:
        """Give the prompt's usage under Anthropic's marks, and what to commit at the first token.

        The longest warm prefix at or up to 20 blocks before a mark is read; what lies between it and each later mark is
        written with that mark's life.
        """
        prefixes, tokens = _chain(space, blocks)
        total = tokens[-1] if tokens else 0
        usable = [(index, life_s) for index, life_s in breakpoints if tokens[index] >= _MINIMUM_TOKENS]
        read = 0
        for index, _ in reversed(usable):
            for position in range(index, max(-1, index - _LOOK_BACK_BLOCKS), -1):
                if self._warm(prefixes[position], now_s):
                    read = tokens[position]
                    break
            if read:
                break
        usage = Usage(cache_read_tokens=read)
        covered = read
        for index, life_s in usable:
            if tokens[index] > covered:
                grown = tokens[index] - covered
                if life_s == ONE_HOUR_S:
                    usage.cache_write_1h_tokens += grown
                else:
                    usage.cache_write_5m_tokens += grown
                covered = tokens[index]
        usage.input_tokens = total - covered
        return usage, [Written(prefixes[index], life_s) for index, life_s in usable]

    def automatic(
        self, space: tuple[str, ...], blocks: Sequence[PromptBlock], now_s: float
    ) -> tuple[Usage, list[Written]]:
        """Give the prompt's usage under OpenAI's automatic caching, and what to commit at the first token.

        Whole messages are looked up first; only the first one that differs is compared in steps of 128 tokens, so that
        a long conversation costs one hash for each message.
        """
        prefixes, tokens = _chain(space, blocks)
        total = max(1, tokens[-1]) if tokens else 1
        if total < _MINIMUM_TOKENS:
            return Usage(input_tokens=total), []
        known = 0
        while known < len(blocks) and self._warm(prefixes[known], now_s):
            known += 1
        matched_characters = sum(block.characters for block in blocks[:known])
        if known < len(blocks):
            before = prefixes[known - 1] if known else hash(space)
            for step in _steps(before, blocks[known]):
                if not self._warm(step, now_s):
                    break
                matched_characters += _STEP_TOKENS * CHARACTERS_PER_TOKEN
        cached = matched_characters // CHARACTERS_PER_TOKEN // _STEP_TOKENS * _STEP_TOKENS
        if cached < _MINIMUM_TOKENS:
            cached = 0
        written = [Written(prefix, _AUTOMATIC_LIFE_S) for prefix in prefixes[known:]]
        for index in range(known, len(blocks)):
            before = prefixes[index - 1] if index else hash(space)
            written += [Written(step, _AUTOMATIC_LIFE_S) for step in _steps(before, blocks[index])]
        return Usage(input_tokens=total - cached, cache_read_tokens=cached), written


def _chain(space: tuple[str, ...], blocks: Sequence[PromptBlock]) -> tuple[list[int], list[int]]:
    """Give, for each block, the hash and the tokens of the prompt up to its end."""
    prefix = hash(space)
    characters = 0
    prefixes: list[int] = []
    tokens: list[int] = []
    for block in blocks:
        prefix = hash((prefix, block.identity))
        characters += block.characters
        prefixes.append(prefix)
        tokens.append(token_count(characters))
    return prefixes, tokens


def _steps(before: int, block: PromptBlock) -> list[int]:
    """Give the chained hashes of a block's text in steps of 128 tokens."""
    size = _STEP_TOKENS * CHARACTERS_PER_TOKEN
    steps: list[int] = []
    role, *texts = block.identity
    step = hash((before, "step", role))
    text = next((each for each in texts if isinstance(each, str)), "")
    for start in range(0, len(text) - size + 1, size):
        step = hash((step, text[start : start + size]))
        steps.append(step)
    return steps
