"""The OpenAI Embeddings endpoint: unit vectors that depend on the text alone.

One rule: equal texts get equal vectors, in every process; nothing about their meaning is promised.
"""

import array
import base64
import math
import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from headgate.testing.provider.answers import token_count
from headgate.testing.provider.asked import Asked, RejectedError
from headgate.testing.provider.counting import Usage
from headgate.testing.provider.openai_wire import decode

__all__ = ["EmbeddingsAsked", "embeddings_document", "read_embeddings"]

_DEFAULT_DIMENSIONS = 1_536
_DIMENSIONS_LIMIT = 3_072
# OpenAI, "Embeddings": at most 2,048 inputs in one request.
_INPUTS_LIMIT = 2_048


class _Body(Struct):
    model: str
    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: str | None = None


_BODY = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True)
class EmbeddingsAsked:
    """What a request for embeddings asks for: one number for each input, from its text."""

    asked: Asked
    seeds: list[int]
    dimensions: int
    as_base64: bool


def read_embeddings(body: bytes) -> EmbeddingsAsked:
    """Decode and check a request.

    Raises:
        RejectedError: 400, with the parameter that is wrong.
    """
    asked = decode(_BODY, body)
    assert isinstance(asked, _Body)
    inputs = _inputs(asked.input)
    if not 1 <= len(inputs) <= _INPUTS_LIMIT or not all(inputs):
        raise RejectedError(400, f"input: expected 1 to {_INPUTS_LIMIT} texts, none of them empty", param="input")
    dimensions = _DEFAULT_DIMENSIONS if asked.dimensions is None else asked.dimensions
    if not 1 <= dimensions <= _DIMENSIONS_LIMIT:
        raise RejectedError(400, f"dimensions is {dimensions}; expected 1 to {_DIMENSIONS_LIMIT}", param="dimensions")
    tokens = sum(token_count(len(each)) if isinstance(each, str) else len(each) for each in inputs)
    plain = Asked(model=asked.model, stream=False, max_tokens=None, prompt_tokens=tokens, blocks=[], seed=0)
    seeds = [zlib.crc32(str(each).encode("utf-8", "surrogatepass")) for each in inputs]
    return EmbeddingsAsked(plain, seeds, dimensions, asked.encoding_format == "base64")


def _inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    numbers = [each for each in given if isinstance(each, int)]
    if not numbers:
        return [each for each in given if not isinstance(each, int)]
    if len(numbers) != len(given):
        raise RejectedError(400, "input: expected texts or tokens, not both", param="input")
    return [numbers]


def embeddings_document(asked: EmbeddingsAsked, usage: Usage, *, hides_usage: bool) -> bytes:
    """Write the answer."""
    document: dict[str, Any] = {
        "object": "list",
        "model": asked.asked.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(seed, asked)}
            for index, seed in enumerate(asked.seeds)
        ],
    }
    if not hides_usage:
        document["usage"] = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return msgspec.json.encode(document)


def _written(seed: int, asked: EmbeddingsAsked) -> list[float] | str:
    vector = _vector(seed, asked.dimensions)
    if not asked.as_base64:
        return vector.tolist()
    # The wire is little-endian, whatever the machine is.
    little = array.array("f", vector)
    if array.array("H", [1]).tobytes()[0] == 0:
        little.byteswap()
    return base64.b64encode(little.tobytes()).decode()


@lru_cache(maxsize=512)
def _vector(seed: int, dimensions: int) -> "array.array[float]":
    dice = random.Random(seed)  # noqa: S311 - repeatable by design, not a secret
    values = [dice.random() * 2 - 1 for _ in range(dimensions)]
    length = math.sqrt(sum(value * value for value in values)) or 1.0
    return array.array("f", [value / length for value in values])
