"""Usage: what a call used, in the categories that providers report and charge.

One rule: the categories do not overlap, so their sum is the whole; what each provider counts against its limits is one
small function here, with its source. Prices are an adapter's affair.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from headgate.core.amounts import Amounts, amounts_of

Dialect = Literal["anthropic", "openai"]


class Usage(NamedTuple):
    """Tokens of one attempt.

    Input is uncached input, as Anthropic counts it; cached input is in `cache_read_tokens`, input that was written to
    the cache in the two `cache_write` fields. `reasoning_tokens` are part of `output_tokens`. `reported` is False for
    figures that Headgate estimated because the provider told none.
    """

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    reported: bool = True

    @property
    def prompt_tokens(self) -> int:
        """All input, cached or not: the size of the context that was sent."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens


NO_USAGE = Usage()

usage_of = partial(tuple.__new__, Usage)
"""All seven in a tuple in, a usage out, as `amounts_of`."""


def charge_anthropic(usage: Usage, cost_micro_usd: int | None) -> Amounts:
    """Give what a call counts against Anthropic's limits: uncached input, and output as it is really produced.

    Source: Anthropic, "Rate limits" (wire.md section 2, November 2026): cache reads are not counted.
    """
    uncached, _read, written_5m, written_1h, output, _reasoning, _reported = usage
    uncached += written_5m + written_1h
    return amounts_of((1, uncached, output, uncached + output, cost_micro_usd, 0))


def charge_openai(usage: Usage, cost_micro_usd: int | None) -> Amounts:
    """Give what a call counts against OpenAI's limits: all tokens together, cached ones included.

    The provider reserves max(max_tokens, estimate) at the start and gives nothing back (wire.md section 3), so the
    `tokens` of the demand are what is charged; the caller keeps the larger of that and this.
    """
    prompt, output = usage.prompt_tokens, usage.output_tokens
    return amounts_of((1, prompt, output, prompt + output, cost_micro_usd, 0))


def charge_gemini(usage: Usage, cost_micro_usd: int | None) -> Amounts:
    """Give what a call counts against Gemini's limits: its one limit on tokens is on input, cached or not.

    Source: wire.md section 3 (November 2026).
    """
    prompt = usage.prompt_tokens
    return Amounts(1, prompt, usage.output_tokens, prompt, cost_micro_usd)


BEDROCK_OUTPUT_FACTOR = 5
"""Tokens of the quota that one token of output takes, of Claude 4 and later (wire.md section 3, November 2026)."""


def charge_bedrock(usage: Usage, cost_micro_usd: int | None) -> Amounts:
    """Give what a call counts against Bedrock's limits in the end: input, cache writes, and five times the output.

    Until then input + max_tokens is reserved (wire.md section 3, November 2026). Cache reads are not counted.
    """
    uncached = usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    tokens = uncached + BEDROCK_OUTPUT_FACTOR * usage.output_tokens
    return Amounts(1, uncached, usage.output_tokens, tokens, cost_micro_usd)


Counting = Literal["anthropic", "openai", "gemini", "bedrock", "used"]
"""How a provider counts a call against its limits; `used` is whatever was used, input and output together."""

CHARGES: dict[Counting, Callable[[Usage, int | None], Amounts]] = {
    "anthropic": charge_anthropic,
    "openai": charge_openai,
    "gemini": charge_gemini,
    "bedrock": charge_bedrock,
    "used": charge_openai,
}


def tokens_at_start(counting: Counting, likely: Amounts, prompt_tokens: int, max_output_tokens: int | None) -> int:
    """Give the `tokens` that a call holds when it is sent: what its provider reserves, or what it will likely use.

    OpenAI charges max(max_tokens, estimate of the prompt), Bedrock reserves input + max_tokens, cached input too, and
    settles it when the call ends (wire.md section 3).
    """
    match counting:
        case "openai":
            return max(max_output_tokens or 0, prompt_tokens)
        case "bedrock":
            return max(likely.tokens, prompt_tokens + (max_output_tokens or 0))
        case _:
            return likely.tokens


def keeps_reserved(counting: Counting) -> bool:
    """Whether a provider gives nothing back of the `tokens` that it charged at the start, also of calls that failed."""
    return counting == "openai"
