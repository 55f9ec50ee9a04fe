"""Bounds: the most a call can use, for budgets of money that must never be exceeded.

One rule: what the request does not tell is bounded by the model's context window, and what nothing bounds is said to be
unbounded, never guessed. What a call will probably use is `estimates`' affair; what a body holds is read by adapters.
"""

from collections.abc import Iterable
from typing import NamedTuple

from headgate.core.limits import Limit, Rate

MOST_TOKENS_PER_BYTE = 1
"""Tokenizers of the vendors work on bytes: a token stands for one at the least (OpenAI, "tiktoken": byte pair encoding;
Anthropic publishes none for its newer models). JSON's escapes only lengthen what is counted here."""

OVERHEAD_TOKENS = 512
"""What providers add around the text that its own bytes do not cover."""

SERVER_TOOL_TURNS = 10
"""How often a model may read a prompt that has tools which the provider runs: Anthropic pauses such a turn after 10
rounds ("Server tools", `pause_turn`, 2026). OpenAI documents no number unless `max_tool_calls` says one."""


class PromptBound(NamedTuple):
    """What a request tells of its size: text in bytes, and the most that its media and the provider's own words count.

    `unknown` names the first part whose size it does not tell. `turns` is how often the model may read it: 1, or as
    many as a request with the provider's own tools states, or None where it states none. `choices` are the answers it
    asks for. `windowed` is False where one context window does not bound the whole (embeddings of many texts).
    """

    text_bytes: int
    extra_tokens: int = 0
    unknown: str | None = None
    turns: int | None = 1
    choices: int = 1
    windowed: bool = True


class Reach(NamedTuple):
    """How far a model reaches, None where nobody knows: tokens of its context window, and of one answer at the most.

    `server_tool_turns` is how many rounds of the provider's own tools are reckoned with.
    """

    context_window: int | None = None
    max_output_tokens: int | None = None
    server_tool_turns: int = SERVER_TOOL_TURNS


class Most(NamedTuple):
    """The most tokens that a call can be charged for.

    `beside_text` is how many of its input are not for text: media and the provider's own words, or None where the
    request does not tell all that will be read.
    """

    input_tokens: int
    output_tokens: int
    beside_text: int | None = None


class Unbounded(NamedTuple):
    """Nothing bounds the call: what is not known of it, in words."""

    why: str


def meets_budget(limits: Iterable[Limit]) -> bool:
    """Whether one of the limits is a budget of money that must not be exceeded; 0.1 us for each limit."""
    return any(limit.dimension == "micro_usd" and not isinstance(limit, Rate) for limit in limits)


def most_used(prompt: PromptBound, max_output_tokens: int | None, reach: Reach) -> Most | Unbounded:
    """Give the most that a call can use; `max_output_tokens` is what it states for all its answers together.

    A prompt that does not fit the window is refused by the provider and costs nothing, so the window bounds each turn;
    an answer stands in the window too.
    """
    window = reach.context_window if prompt.windowed else None
    turns = reach.server_tool_turns if prompt.turns is None else prompt.turns
    told = prompt.text_bytes * MOST_TOKENS_PER_BYTE + prompt.extra_tokens
    # With the provider's tools, what they find comes to the prompt: from the second turn on its size is unknown.
    unknown = prompt.unknown or (None if turns == 1 else "what the provider's own tools add")
    if window is None and unknown is not None:
        return Unbounded(f"{unknown} may be as large as the context window")
    input_tokens = told if window is None else window if unknown is not None else min(told, window)
    output_tokens = max_output_tokens
    if output_tokens is None:
        most = reach.max_output_tokens if reach.max_output_tokens is not None else window
        if most is None:
            return Unbounded("it states no maximum of output tokens")
        output_tokens = most * prompt.choices
    if window is not None:
        output_tokens = min(output_tokens, window * prompt.choices)
    beside_text = prompt.extra_tokens if unknown is None else None
    return Most(input_tokens * turns, output_tokens * turns, beside_text)
