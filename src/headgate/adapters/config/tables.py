"""Tables of a configuration: typed words out of untyped TOML, with every problem collected instead of only the first.

One rule: a problem says where, which value and what was expected, in one line; a value that may be a secret is not
shown. What the words mean is not known here.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, TypeVar

from headgate.adapters.config.lines import TomlPath
from headgate.core.amounts import MICRO_USD_PER_USD, usd
from headgate.core.errors import ConfigError

__all__ = [
    "MOST_AMOUNT",
    "Problems",
    "Reader",
    "Table",
    "Unfit",
    "boolean",
    "choice",
    "decimal",
    "dollars",
    "key_shown",
    "number",
    "text",
    "unknown_hint",
    "whole",
]

T = TypeVar("T")

Reader = Callable[[object], T]
"""Gives the value as the program wants it, or raises Unfit."""

MOST_AMOUNT = 10**15
"""The largest amount in a configuration: a billion dollars in micro-dollars. A larger one is a slip of the hand."""

MOST_PROBLEMS = 20
NOT_SHOWN = "(not shown)"
_MOST_SHOWN_CHARS = 60
# Turning longer integers into decimal digits is slow, and Python refuses the longest.
_MOST_BITS = 200

# A vendor's key, or a user and password in a URL, that landed in the wrong place.
_SECRET = re.compile(r"\bsk-|://[^/]*@")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


class Unfit(Exception):  # noqa: N818 - an answer to "is this value fit", caught a few lines away
    """A value that cannot be used; the message says what was expected.

    `shown` is False for a value that may be a secret; `inside` leads to the part of the value that is meant.
    """

    def __init__(self, message: str, *, shown: bool = True, inside: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.shown = shown
        self.inside = inside


class Problems:
    """What is wrong with a file, by line. Without a file the problems of words that came from elsewhere."""

    def __init__(self, file: str | None = None, lines: Mapping[TomlPath, int] | None = None) -> None:
        self._file = file
        self._lines = lines or {}
        self._found: list[tuple[int, str]] = []

    def add(self, path: TomlPath, message: str) -> None:
        """Note a problem at a path."""
        self._found.append((self.line(path), message))

    def line(self, path: TomlPath) -> int:
        """Give the line of a path, or of the nearest table around it that has one."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def in_line(self, path: TomlPath) -> str:
        """Give ` in line N` for a message that points at a second place; nothing where there is no file."""
        return "" if self._file is None else f" in line {self.line(path)}"

    def raise_any(self) -> None:
        """Raise all problems as one error, a line each; nothing happens if there are none.

        Raises:
            ConfigError: there were problems.
        """
        if not self._found:
            return
        found = sorted(self._found, key=lambda problem: problem[0])
        lines = [f"{self._where(line)}{message}" for line, message in found]
        more = len(lines) - MOST_PROBLEMS
        if more > 0:
            lines[MOST_PROBLEMS:] = [f"{self._where(found[MOST_PROBLEMS][0])}and {more} more from here on"]
        raise ConfigError("\n".join(lines))

    def _where(self, line: int) -> str:
        return "" if self._file is None else f"{self._file}:{line}: "


class Table:
    """One table of a configuration. Words that nobody has asked for are unknown."""

    def __init__(self, problems: Problems, path: TomlPath, header: str, values: Mapping[str, object]) -> None:
        self.problems = problems
        self.path = path
        self.values = values
        self._header = header
        self._known: set[str] = set()

    def has(self, word: str) -> bool:
        """Whether the table has the word."""
        return word in self.values

    def take(self, word: str, read: Reader[T], default: T, *, required: bool = False) -> T:
        """Give a word's value; where it is missing or unfit, the default stands in so that the rest is checked too."""
        self._known.add(word)
        if word not in self.values:
            if required:
                self.problems.add(self.path, f"{self._header} has no {word}")
            return default
        value = self.values[word]
        try:
            return read(value)
        except Unfit as unfit:
            shown = _shown(_part(value, unfit.inside)) if unfit.shown else NOT_SHOWN
            # In a list the value says which entry is meant, in a table the key does.
            keys = "".join(f" {key_shown(step)}" for step in unfit.inside if isinstance(step, str))
            self.problems.add((*self.path, word, *unfit.inside), f"{self._header} {word}{keys} = {shown}: {unfit}")
            return default

    def problem(self, word: str | None, message: str) -> None:
        """Note a problem with a word, or with the table."""
        where = self.path if word is None else (*self.path, word)
        self.problems.add(where, f"{self._header}{'' if word is None else f' {key_shown(word)}'}: {message}")

    def line(self, word: str | None = None) -> int:
        """Give the line of the table, or of a word."""
        return self.problems.line(self.path if word is None else (*self.path, word))

    def close(
        self, also_known: Iterable[str] = (), hints: Mapping[str, str] | None = None, expected: str | None = None
    ) -> None:
        """Note every word that is not known; `hints` are answers to particular ones, `expected` to all others."""
        known = self._known | set(also_known)
        for word in self.values:
            if word not in known:
                self.problem(word, (hints or {}).get(word) or unknown_hint(word, known, expected))


def unknown_hint(word: str, known: Iterable[str], expected: str | None = None) -> str:
    """Say that a word is unknown, and which known one is near, or else what was expected."""
    near = get_close_matches(word, sorted(known), n=1)
    if near:
        return f"unknown; did you mean {near[0]}?"
    return f"unknown; expected {expected or 'one of ' + ', '.join(sorted(known))}"


def key_shown(word: str) -> str:
    """Give a key as it can stand in a message: on one line, and not too long."""
    return word if _BARE_KEY.fullmatch(word) else _shown(word)


def whole(least: int = 1, most: int = MOST_AMOUNT) -> Reader[int]:
    """Read a whole number within bounds."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unfit(f"expected a whole number such as {min(max(least, 50), most)}")
        _check_bounds(value, least, most)
        return value

    return read


def number(least: float, most: float, what: str) -> Reader[float]:
    """Read a finite number within bounds; `what` says what it counts, with an example."""
    # As they print: the float 0.001 is a little more than the number 0.001 that a file says.
    lowest, highest = Decimal(str(least)), Decimal(str(most))

    def read(value: object) -> float:
        amount = _number(value, what)
        _check_bounds(amount, lowest, highest)
        return float(amount)

    return read


def dollars(what: str = "a number of dollars such as 25 or 0.45") -> Reader[int]:
    """Read an amount of dollars as whole micro-dollars."""

    def read(value: object) -> int:
        amount = _number(value, what)
        if amount <= 0:
            raise Unfit("expected more than 0")
        _check_bounds(amount, 0, MOST_AMOUNT // MICRO_USD_PER_USD)
        micro_usd = usd(amount)
        if not micro_usd or micro_usd != amount * MICRO_USD_PER_USD:  # a tiny product may have become 0
            raise Unfit("expected millionths of a dollar at the smallest, such as 0.000001")
        return micro_usd

    return read


def decimal(least: int, most: int, what: str) -> Reader[Decimal]:
    """Read a finite number within bounds, exactly as it is written."""

    def read(value: object) -> Decimal:
        amount = _number(value, what)
        _check_bounds(amount, least, most)
        return amount

    return read


def boolean(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise Unfit("expected true or false")
    return value


def choice(words: Mapping[str, T]) -> Reader[T]:
    """Read one of some words, and give what it stands for."""

    def read(value: object) -> T:
        if not isinstance(value, str) or value not in words:
            raise Unfit("expected " + " or ".join(json.dumps(word) for word in words))
        return words[value]

    return read


def text(pattern: str, expected: str) -> Reader[str]:
    """Read a string that a pattern matches as a whole."""
    compiled = re.compile(pattern)

    def read(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise Unfit(f"expected {expected}")
        return value

    return read


def _number(value: object, what: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Unfit(f"expected {what}")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise Unfit(f"expected at most {MOST_AMOUNT:,}")
    amount = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    if not amount.is_finite():
        raise Unfit(f"expected {what}")
    return amount


def _check_bounds(value: int | Decimal, least: int | Decimal, most: int | Decimal) -> None:
    if value < least:
        raise Unfit(f"expected at least {least:,}")
    if value > most:
        raise Unfit(f"expected at most {most:,}")


def _part(value: Any, inside: Iterable[str | int]) -> object:
    for step in inside:
        value = value[step]
    return value


def _shown(value: object) -> str:
    match value:
        case None:  # from JSON: TOML has none
            shown = "null"
        case bool():
            shown = "true" if value else "false"
        case int() if value.bit_length() > _MOST_BITS:
            shown = "(a huge number)"
        case str():
            # ASCII only, so that no message moves a cursor, reverses its direction or has a second line.
            shown = NOT_SHOWN if _SECRET.search(value) else json.dumps(value)
        case list():
            shown = "[...]"
        case dict():
            shown = "{...}"
        case _:
            shown = str(value)
    return shown if len(shown) <= _MOST_SHOWN_CHARS else shown[: _MOST_SHOWN_CHARS - 3] + "..."
