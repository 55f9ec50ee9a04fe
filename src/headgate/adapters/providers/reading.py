"""What an answer has told so far: usage, model, id, end and failure, filled in by the dialects' readers.

One rule: what a provider did not tell stays None; a figure that cannot be one is as if it were not there.
It parses no wire format beyond the frame of an event.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from headgate.adapters.providers.sse import Event
from headgate.core.retries import Failure
from headgate.core.usage import Usage

__all__ = ["UNREADABLE", "Reading", "decode_event", "fields_of", "is_unreadable", "token_count"]

T = TypeVar("T")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON it was asked for."""

# Text runs at about four characters a token; for an answer that was cut, low is still better than nothing.
_CHARACTERS_PER_TOKEN = 4
# A million million tokens is no usage, and more would not fit a database's integer.
_MOST_TOKENS = 10**12


@dataclass(slots=True)
class Reading:
    """The state of one answer; the dialects' readers write it, whoever carries the answer reads it."""

    told: Usage | None = None
    """The last usage the provider told; its input is right as soon as it is here."""
    final: bool = False
    """Whether `told` is its last word on the output too."""
    output_characters: int = 0
    output_told_tokens: int = 0
    model: str | None = None
    message_id: str | None = None
    finish: str | None = None
    failure: Failure | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """The provider's usage fields as they came, for dialects that tell them in parts."""
    catch_up: Callable[[], None] | None = None
    """Reads what was put off because it tells only of output that went by, which is mostly told at the end."""

    @property
    def usage(self) -> Usage | None:
        """What was used as far as is known: None until the input was told, `reported` once the output was too."""
        told = self.told
        if told is None or (self.final and told.reported):
            return told
        return told._replace(output_tokens=max(told.output_tokens, self.output_seen_tokens), reported=False)

    @property
    def output_seen_tokens(self) -> int:
        """At least so much output went by, whether or not the provider told its usage."""
        if self.catch_up is not None:
            self.catch_up()
        return max(self.output_told_tokens, -(-self.output_characters // _CHARACTERS_PER_TOKEN))


def decode_event(decoder: "msgspec.json.Decoder[T]", event: Event) -> T | None:
    """Decode an event's data; None when it is not of the decoder's type."""
    raw = event.raw
    try:
        # All vendors put the data on one line, last: this spares the general parser, which costs twice the decoding.
        return decoder.decode(raw[raw.find(b"data: ") + 6 :])
    except UNREADABLE:
        try:
            return decoder.decode(event.data)
        except UNREADABLE:
            return None


def fields_of(value: object) -> dict[str, Any]:
    """Give a decoded JSON value if it is an object; empty if it is anything else, such as the usual null."""
    return value if isinstance(value, dict) else {}


def is_unreadable(fields: Mapping[str, Any], *path: str) -> bool:
    """Whether something is told at `path` that cannot be a token count: what it counts is unknown then, not nothing."""
    return _value_at(fields, path) is not None and token_count(fields, *path) is None


def token_count(fields: Mapping[str, Any], *path: str) -> int | None:
    """Give the token count at `path`, or None when there is none that can be one."""
    value = _value_at(fields, path)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _value_at(fields: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = fields
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
