"""Embeddings: several requests as one, and the answer to each cut out of the answer to all.

One rule: inputs and vectors go as they were written, byte for byte; only the list around them, the places in it and the
tokens told are new. What cannot be understood is not joined and not cut.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from headgate.adapters.providers.body import member_spans
from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.errors import CallerError

__all__ = ["Inputs", "inputs_of", "joined", "parts_of"]

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_answer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_rows = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_place = msgspec.json.Decoder(int).decode
_decode_usage = msgspec.json.Decoder(dict[str, Any]).decode


class Inputs(NamedTuple):
    """A request for embeddings: what stands before its inputs and after them, and each of them as it was written."""

    before: bytes
    each: tuple[bytes, ...]
    after: bytes


def inputs_of(body: bytes) -> Inputs | None:
    """Give the inputs of a request, which is an object; None where it cannot be told which they are."""
    try:
        start, end = member_spans(body)["input"]
        written = body[start:end]
        if written.startswith(b'"'):
            return Inputs(body[:start], (written,), body[end:])
        parts = [bytes(part) for part in _decode_list(written)]
    except (*UNREADABLE, CallerError, KeyError):
        return None
    if parts and all(part.startswith((b'"', b"[")) for part in parts):
        return Inputs(body[:start], tuple(parts), body[end:])
    # A list of numbers is one input, written as tokens.
    return Inputs(body[:start], (written,), body[end:]) if parts else None


def joined(like: Inputs, inputs: Sequence[bytes]) -> bytes:
    """Give the request for all inputs, in all else as `like` was written."""
    return b"%b[%b]%b" % (like.before, b",".join(inputs), like.after)


def parts_of(body: bytes, inputs: Sequence[Sequence[bytes]]) -> list[bytes] | None:
    """Cut the answer to all into those to each, of whose inputs it is told; None where it is not what was asked for.

    The tokens are divided by the sizes of the inputs, and their sum is the whole.
    """
    try:
        answer = _decode_answer(body)
        found = {_decode_place(row["index"]): row for row in _decode_rows(answer["data"])}
        told = _decode_usage(answer["usage"])
    except (*UNREADABLE, KeyError):
        return None
    tokens = told.get("prompt_tokens")
    if sorted(found) != list(range(sum(map(len, inputs)))) or not isinstance(tokens, int) or tokens < 0:
        return None
    shares = _divided(tokens, [sum(map(len, each)) for each in inputs])
    parts, at = [], 0
    for each, share in zip(inputs, shares, strict=True):
        data = [{**found[at + place], "index": place} for place in range(len(each))]
        at += len(each)
        usage = {**told, "prompt_tokens": share, "total_tokens": share}
        parts.append(msgspec.json.encode({**answer, "data": data, "usage": usage}))
    return parts


def _divided(whole: int, weights: Sequence[int]) -> list[int]:
    """Divide a whole number by weights: each part within one of its share, and their sum the whole."""
    total = sum(weights)
    shares = [whole * weight // total for weight in weights]
    by_rest = sorted(range(len(weights)), key=lambda place: (-(whole * weights[place] % total), place))
    for place in by_rest[: whole - sum(shares)]:
        shares[place] += 1
    return shares
