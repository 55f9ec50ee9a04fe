"""Prefixes: what of a prompt its caller wants cached, as short keys that are equal where the prompts begin alike.

One rule: a prefix has the model, then tools, system and messages up to a mark (Anthropic, "Prompt caching"), wherever
these stand in the body. Keys are salted by the process: they are compared within it and kept nowhere.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.estimates import LONG_LIFE_S, SHORT_LIFE_S
from headgate.core.warm_up import LEAST_BYTES, Mark

__all__ = ["prompt_marks"]

MOST_MARKS = 4
"""As many as a request may have (Anthropic, "Prompt caching"); of others the last ones count."""

_MARK = b'"cache_control"'
_LONG_LIFE = re.compile(rb'"ttl"\s*:\s*"1h"')
_MARK_BYTES = 100


class _Prompt(msgspec.Struct, gc=False):
    model: str
    cache_control: dict[str, object] | None = None
    tools: list[msgspec.Raw] | None = None
    system: str | list[msgspec.Raw] | None = None
    messages: list[msgspec.Raw] = []


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[msgspec.Raw]


_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_message = msgspec.json.Decoder(_Message).decode


def prompt_marks(body: bytes) -> tuple[Mark, ...]:
    """Give the prefixes of a messages body that it marks to be cached and that are large enough, shortest first.

    None of a body that is not understood. Cost: some 90 us per 100 KB.
    """
    if len(body) < LEAST_BYTES:
        return ()
    try:
        prompt = _decode_prompt(body)
        found = list(_marks(prompt))
    except UNREADABLE:
        return ()
    return tuple(mark for mark in found[-MOST_MARKS:] if mark.size_bytes >= LEAST_BYTES)


def _marks(prompt: _Prompt) -> Iterator[Mark]:
    key, size_bytes = hash(prompt.model), 0
    if isinstance(prompt.system, str):
        system: Sequence[bytes] = [prompt.system.encode()]
    else:
        system = [bytes(block) for block in prompt.system or ()]
    above = [*(bytes(tool) for tool in prompt.tools or ()), *system]
    messages = [bytes(message) for message in prompt.messages]
    marked = _last_marked([*above, *messages])
    for place, part in enumerate([*above, *messages]):
        if place in marked and place >= len(above):
            yield from _marks_within(part, key, size_bytes)
        key, size_bytes = hash((key, part)), size_bytes + len(part)
        if place in marked and place < len(above):
            yield Mark(key, size_bytes, _life_s(part))
    if prompt.cache_control is not None:  # the vendor marks the end by itself
        yield Mark(key, size_bytes, LONG_LIFE_S if prompt.cache_control.get("ttl") == "1h" else SHORT_LIFE_S)


def _last_marked(parts: Sequence[bytes]) -> frozenset[int]:
    """Give the places of the last parts that have marks; from the end, where most stand, and no further than needed."""
    marked: set[int] = set()
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].rfind(_MARK) >= 0:
            marked.add(place)
            if len(marked) == MOST_MARKS:
                break
    return frozenset(marked)


def _marks_within(message: bytes, key: int, size_bytes: int) -> Iterator[Mark]:
    """Give the prefixes that end at a block within a message; questions often stand behind the block that is marked."""
    found = _decode_message(message)
    if isinstance(found.content, str):
        return
    key = hash((key, found.role))
    for block in map(bytes, found.content):
        key, size_bytes = hash((key, block)), size_bytes + len(block)
        if block.rfind(_MARK) >= 0:
            yield Mark(key, size_bytes, _life_s(block))


def _life_s(part: bytes) -> float:
    at = part.rfind(_MARK)
    return LONG_LIFE_S if _LONG_LIFE.search(part, at, at + _MARK_BYTES) else SHORT_LIFE_S
