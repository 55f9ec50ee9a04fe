"""Options: those that many commands have, and those whose values are read within bounds or refused in a line.

One rule: a refusal has the option, the value and what is expected. typer's own readers leave out the value, and what
checks the number further down does not know the option.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from headgate.core.errors import CallerError

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="The configuration; without it ./headgate.toml, else the environment.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]

MOST_WHOLE = 10**15
"""As in a configuration: a larger amount is a slip of the hand."""


def whole(option: str, least: int = 1, most: int = MOST_WHOLE) -> Callable[[str | int], int]:
    """Read a whole number from `least` to `most`."""

    def read(text: str | int) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _unfit(option, text, f"a whole number from {least:,} to {most:,}") from None
        if not least <= value <= most:
            raise _unfit(option, text, f"a whole number from {least:,} to {most:,}")
        return value

    return read


def number(option: str, least: float = -math.inf, most: float = math.inf) -> Callable[[str | float], float]:
    """Read a number from `least` to `most`."""
    bounds = "" if math.isinf(most) else f" from {least:,g} to {most:,.15g}"

    def read(text: str | float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise _unfit(option, text, f"a number{bounds}")
        return value

    return read


def said(option: str, expected: str) -> Callable[[str], str]:
    """Read words; none where the option stands is a script's empty variable, and would ask another question."""

    def read(text: str) -> str:
        if not text.strip():
            raise CallerError(f"{option} has no value: expected {expected}")
        return text

    return read


def _unfit(option: str, text: object, expected: str) -> CallerError:
    return CallerError(f"{option} {str(text)[:40]}: expected {expected}")
