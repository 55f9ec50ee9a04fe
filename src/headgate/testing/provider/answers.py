"""Answers: what the simulated provider writes, decided by the request alone.

One rule: the same request always gets the same answer, in every process; a token is four characters, counted upwards.
Recorded answers come from elsewhere; wire formats too.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import msgspec

from headgate.testing.provider.asked import Asked, OfferedTool

__all__ = ["CHARACTERS_PER_TOKEN", "Answer", "Fragment", "Part", "clip", "filler", "fragments", "token_count", "write"]

CHARACTERS_PER_TOKEN = 4

_DRAWS = 2**32
_SCHEMA_DEPTH_LIMIT = 4
_SENTENCES = 400
_TOOL_CALL_REMARK = "I will use a tool for this."
_WORDS = (
    "water gate channel field level stone river bank flow season measure keeper valley bridge meadow wheel sluice "
    "share quiet morning record careful before after between without every another small large open closed steady "
    "late first second this that which when while from into over under the a and of to is was were holds opens runs "
    "keeps brings shows carries takes waits reaches follows changes begins ends turn early"
)


def token_count(characters: int) -> int:
    """Give the tokens of a text of so many characters."""
    return -(-characters // CHARACTERS_PER_TOKEN)


class Part(NamedTuple):
    """One block of an answer; `text` is the arguments' JSON when it is a tool call."""

    kind: Literal["text", "thinking", "tool_call"]
    text: str
    id: str = ""
    name: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider says, and why it stopped."""

    parts: tuple[Part, ...]
    stop: Literal["end", "tool", "length"]

    def tokens(self) -> int:
        """Give the tokens of the whole answer: at least 1."""
        return max(1, token_count(sum(len(part.text) for part in self.parts)))


class Fragment(NamedTuple):
    """A piece of a part on its way out."""

    part_index: int
    part: Part
    text: str
    starts: bool
    ends: bool


def write(asked: Asked, *, mean_tokens: int, sigma: float, call_tools: bool, dictated_tokens: int | None) -> Answer:
    """Write the answer to a request: a tool call where one fits, else text of a drawn (or dictated) length."""
    tool = _tool_to_call(asked, willing=call_tools)
    if tool is not None:
        arguments = msgspec.json.encode(_arguments(tool)).decode()
        call = Part("tool_call", arguments, id=f"{asked.seed:08x}{asked.prompt_tokens:012x}", name=tool.name)
        answer = Answer((Part("text", _TOOL_CALL_REMARK), call), "tool")
    else:
        tokens = _drawn_tokens(asked.seed, mean_tokens, sigma) if dictated_tokens is None else dictated_tokens
        if asked.max_tokens is not None and tokens > asked.max_tokens:
            return Answer((Part("text", filler(asked.max_tokens * CHARACTERS_PER_TOKEN, asked.seed)),), "length")
        answer = Answer((Part("text", filler(tokens * CHARACTERS_PER_TOKEN, asked.seed)),), "end")
    return clip(answer, asked.max_tokens)


def clip(answer: Answer, max_tokens: int | None) -> Answer:
    """Cut an answer to `max_tokens`; a tool call that does not fit is left out, as half of its JSON is no call."""
    if max_tokens is None or answer.tokens() <= max_tokens:
        return answer
    room = max_tokens * CHARACTERS_PER_TOKEN
    kept: list[Part] = []
    for part in answer.parts:
        if len(part.text) <= room:
            kept.append(part)
            room -= len(part.text)
            continue
        if part.kind != "tool_call" and room:
            kept.append(part._replace(text=part.text[:room]))
        break
    return Answer(tuple(kept) or (Part("text", "."),), "length")


def fragments(answer: Answer, count: int) -> Iterator[Fragment]:
    """Cut an answer into about `count` fragments that end on whole tokens, at least one for each part."""
    whole = sum(len(part.text) for part in answer.parts)
    size = max(1, token_count(-(-whole // count))) * CHARACTERS_PER_TOKEN
    for index, part in enumerate(answer.parts):
        last = max(0, (len(part.text) - 1) // size)
        for step in range(last + 1):
            piece = part.text[step * size : (step + 1) * size]
            yield Fragment(index, part, piece, starts=step == 0, ends=step == last)


def filler(characters: int, seed: int) -> str:
    """Give prose of exactly so many characters, without blanks at its ends; cheap at any length."""
    if characters < 1:
        return ""
    corpus, beginnings = _corpus()
    start = beginnings[seed % len(beginnings)]
    text = (corpus[start:] + corpus * (characters // len(corpus) + 1))[:characters]
    # Vendors refuse or trim blanks at the ends of a message, so that a client could not send this one back unchanged.
    return text[:-1] + "." if text[-1] == " " else text


@lru_cache(maxsize=1)
def _corpus() -> tuple[str, tuple[int, ...]]:
    """Give a stretch of prose, and where its sentences begin."""
    words = _WORDS.split()
    chooser = random.Random(1)  # noqa: S311 - repeatable prose, not a secret
    text = ""
    beginnings: list[int] = []
    for _ in range(_SENTENCES):
        beginnings.append(len(text))
        text += " ".join(chooser.choices(words, k=chooser.randint(6, 16))).capitalize() + ". "
    return text, tuple(beginnings)


def _drawn_tokens(seed: int, mean_tokens: int, sigma: float) -> int:
    if sigma == 0:
        return mean_tokens
    # The mean of a log-normal is exp(mu + sigma^2 / 2), so this mu makes `mean_tokens` the mean.
    mu = math.log(mean_tokens) - sigma * sigma / 2
    deviate = NormalDist().inv_cdf((seed + 0.5) / _DRAWS)
    return max(1, round(math.exp(mu + sigma * deviate)))


def _tool_to_call(asked: Asked, *, willing: bool) -> OfferedTool | None:
    if not asked.tools or asked.tool_choice == "none":
        return None
    if asked.tool_choice not in ("auto", "any"):
        return next((tool for tool in asked.tools if tool.name == asked.tool_choice), None)
    if asked.tool_choice == "any" or (willing and asked.ends_with_question):
        return asked.tools[asked.seed % len(asked.tools)]
    return None


def _arguments(tool: OfferedTool) -> dict[str, Any]:
    try:
        schema = msgspec.json.decode(tool.schema) if tool.schema else {}
    except msgspec.DecodeError:
        return {}
    value = _example(schema, tool.name, _SCHEMA_DEPTH_LIMIT)
    return value if isinstance(value, dict) else {}


def _example(schema: Any, name: str, depth: int) -> Any:
    """Give a value that a JSON schema allows; what it does not understand becomes a plain string."""
    if not isinstance(schema, dict):
        return name
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for choices in ("enum", "examples", "anyOf", "oneOf", "allOf"):
        offered = schema.get(choices)
        if isinstance(offered, list) and offered:
            return offered[0] if choices in ("enum", "examples") else _example(offered[0], name, depth)
    return _example_of_type(schema, name, depth)


def _example_of_type(schema: dict[str, Any], name: str, depth: int) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind == "object" or "properties" in schema:
        return _example_object(schema, depth)
    if kind == "array":
        return [_example(schema.get("items", {}), name, depth - 1)] if depth > 0 else []
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    return None if kind == "null" else _example_string(schema, name)


def _example_object(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if depth <= 0 or not isinstance(properties, dict):
        return {}
    required = schema.get("required")
    wanted = required if isinstance(required, list) else list(properties)
    return {key: _example(properties.get(key), str(key), depth - 1) for key in wanted}


def _example_string(schema: dict[str, Any], name: str) -> str:
    text = f"example {name}"
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength", len(text))
    if isinstance(shortest, int) and isinstance(longest, int):
        text = text.ljust(shortest, ".")[: max(shortest, longest)]
    return text
