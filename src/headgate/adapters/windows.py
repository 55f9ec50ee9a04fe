"""Windows of models: how much a model can read and write at once, for bounds that hard budgets of money hold.

One rule: too large is dear and too small is wrong, so every figure is the largest that a source gives; what no source
gives is None. The owner's words win. Which prices hold is `prices`' affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headgate.core.bounds import SERVER_TOOL_TURNS, Reach

__all__ = ["WindowOverride", "model_reach"]


@dataclass(frozen=True, slots=True)
class WindowOverride:
    """An owner's word on the models that a glob matches; None leaves a figure to what is known."""

    model: str
    context_window: int | None = None
    max_output_tokens: int | None = None
    server_tool_turns: int | None = None


# The price list rounds: 1,000,000 stands for 1,047,576 (gpt-4.1) and 1,050,000 (gpt-5.5), 128,000 for 131,072. Claude's
# 200,000 and 1,000,000 are exact (Anthropic, "Context windows", 2026; the larger one of Sonnet 4 and 4.5 was retired
# in April 2026).
_ROUNDED_BY_PERCENT = 5

# The longest answers, largest first where several match. Sources: OpenAI, model pages (developers.openai.com/api/docs/
# models, gpt-6.2-sol read November 2026: 128,000); gpt-5-pro 272,000; Anthropic, "Models overview" and "Batch
# processing": 128,000 is the most that any Claude writes outside of batches (June 2026).
_MAX_OUTPUT_TOKENS = (
    ("gpt-5*-pro*", 272_000),
    ("gpt-5*", 128_000),
    ("gpt-6*", 128_000),
    ("claude-*", 128_000),
    ("codex-mini*", 100_000),
    ("o[134]", 100_000),
    ("o[134]-*", 100_000),
    ("gpt-4.1*", 32_768),
    ("gpt-4o*", 16_384),
    ("chatgpt-4o*", 16_384),
)


def model_reach(model: str, listed_window: int | None, overrides: Sequence[WindowOverride] = ()) -> Reach:
    """Give how far a model reaches, from the price list's window, the table here and the first override that matches.

    `model` is what a client sends: an id, or one after `provider/`.
    """
    name = model.lower().rpartition("/")[2]
    window = listed_window
    if window is not None and "claude" not in name:
        window += window * _ROUNDED_BY_PERCENT // 100
    output = next((most for pattern, most in _MAX_OUTPUT_TOKENS if fnmatchcase(name, pattern)), None)
    turns = SERVER_TOOL_TURNS
    override = next((each for each in overrides if fnmatchcase(model, each.model)), None)
    if override is not None:
        window = override.context_window or window
        output = override.max_output_tokens or output
        turns = override.server_tool_turns or turns
    return Reach(window, output, turns)
