"""Amounts: whole numbers per dimension, and what a call asks for.

One rule: amounts are integers in the dimension's own unit, and an unknown amount is None, never 0.
Prices and token counting live elsewhere; here are only the numbers that limits bound.
"""

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from functools import partial
from typing import Literal, NamedTuple

Dimension = Literal["requests", "input_tokens", "output_tokens", "tokens", "micro_usd", "slots"]

MICRO_USD_PER_USD = 1_000_000


class Amounts(NamedTuple):
    """Whole amounts per dimension.

    `tokens` is what a provider counts that has one limit for input and output together (OpenAI); it is charged by the
    provider's own formula and is not the sum of the two fields before it. `micro_usd` is None where no price is known.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0
    micro_usd: int | None = 0
    slots: int = 0


amounts_of = partial(tuple.__new__, Amounts)
"""All six in a tuple in, amounts out: on the way of every call, a named tuple's own constructor costs three times as
much."""

DIMENSIONS: tuple[Dimension, ...] = ("requests", "input_tokens", "output_tokens", "tokens", "micro_usd", "slots")

NOTHING = Amounts()


class Demand(NamedTuple):
    """What a call asks for: rates hold what it will probably use, windows and gauges what it can use at the most.

    A rate forgives a guess that was too low, because the excess is debt that drains; a budget does not, so it holds a
    bound, or `likely` where its owner prefers that: more than 99.9 % of such calls use. None: nobody knows yet, and the
    bound is held. `output_tokens_per_s` is the pace of an answer that is charged as it goes by (0: of none): of it
    rates hold only what comes next (`rates.Rate.ahead_of_stream`).
    """

    expected: Amounts
    at_most: Amounts
    output_tokens_per_s: int = 0
    likely: Amounts | None = None


demand_made = partial(tuple.__new__, Demand)
"""All four in a tuple in, a demand out, as `amounts_of`."""


def demand(amounts: Amounts) -> Demand:
    """Give the demand of a call whose amounts are known exactly."""
    return Demand(amounts, amounts)


def usd(dollars: float | str | Decimal) -> int:
    """Give dollars as whole micro-dollars, rounded up; a float counts as it prints, so `usd(0.45)` is 450,000.

    Raises:
        ValueError: not a finite, non-negative number.
    """
    try:
        value = Decimal(str(dollars))
    except InvalidOperation:
        raise ValueError(f"{dollars!r} is not an amount of dollars; write a number such as 0.45") from None
    if not value.is_finite() or value < 0:
        raise ValueError(f"{dollars!r} dollars: an amount must be finite and not negative")
    return int((value * MICRO_USD_PER_USD).to_integral_value(rounding=ROUND_CEILING))
