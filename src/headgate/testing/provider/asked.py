"""Asked: what a request asks for, in one shape for every endpoint, and how it is refused when it asks for nonsense.

One rule: past this shape nobody looks at a request's body again.
It holds values only; each vendor's module fills it.
"""

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Asked", "OfferedTool", "PromptBlock", "RejectedError", "seed_of"]

_SEED_CHARACTERS = 4_096


class RejectedError(Exception):
    """The request is the caller's mistake: it is answered with `status` and counted as failed."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param


class OfferedTool(NamedTuple):
    """A tool that the request lets the model call, with its input schema as raw JSON."""

    name: str
    schema: bytes


class PromptBlock(NamedTuple):
    """One block of the prompt, in the order in which a prompt cache sees it.

    `identity` is everything that makes the block what it is, except its cache marks: equal blocks have equal ones.
    """

    characters: int
    identity: tuple[object, ...]


@dataclass(slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        tool_choice: "auto", "any", "none", or the name of the one tool that must be called.
        ends_with_question: The last message is plain text of the user, not the result of a tool.
        breakpoints: Anthropic's cache marks: index of the block, and its time to live in seconds.
        seed: A number from the request's own bytes; everything drawn for the call comes from it.
    """

    model: str
    stream: bool
    max_tokens: int | None
    prompt_tokens: int
    blocks: list[PromptBlock]
    seed: int
    tools: tuple[OfferedTool, ...] = ()
    tool_choice: str = "auto"
    ends_with_question: bool = True
    breakpoints: list[tuple[int, int]] = field(default_factory=list)
    include_usage: bool = True


def seed_of(model: str, last_text: str, position: int) -> int:
    """Give the request's own 32-bit number: equal in every process, unlike Python's salted hashes."""
    return zlib.crc32(f"{model}\0{position}\0{last_text[-_SEED_CHARACTERS:]}".encode("utf-8", "surrogatepass"))
