"""Rows of recorded traces: read from files, checked one by one.

One rule: what is wrong with a row is told with its file, line, value and what was expected, up to 20 of them at once,
before anything is played. What the columns mean is `traces`' affair.
"""

import csv
import gzip
import json
import math
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from headgate.core.errors import CallerError

__all__ = ["Row", "Rows", "csv_rows", "first_line_of", "header_of", "json_rows"]

MOST_ROWS = 2_000_000
MOST_LINE_CHARACTERS = 1_000_000
MOST_TOKENS = 10_000_000
MOST_SECONDS = 10 * 366 * 86_400.0
PROBLEMS_SHOWN = 20
_VALUE_CHARACTERS = 60

_nested = reprlib.Repr()
_nested.maxlevel = 2
"""What is nested is shown so deep: what JSON could just be read of may be too deep to be shown."""


class _BrokenError(Exception):
    """A value cannot be what it should be."""


class Row:
    """One row; its readers tell what is wrong by raising, which `Rows` collects."""

    def __init__(self, values: Mapping[str, Any], line: int) -> None:
        """Hold a row's values by column."""
        self._values = values
        self.line = line

    def tokens(self, column: str, *, least: int = 0) -> int:
        """Read a number of tokens."""
        return int(self._number(column, f"a whole number of tokens, {least} to {MOST_TOKENS:,}", least, MOST_TOKENS, 1))

    def whole(self, column: str) -> int:
        """Read a whole number from 0 up, such as an index."""
        return int(self._number(column, f"a whole number from 0 to {MOST_ROWS:,}", 0, MOST_ROWS, 1))

    def seconds(self, column: str, *, per_second: float = 1.0) -> float:
        """Read a time that is written in units of which so many make a second."""
        return self._number(column, "a time, 0 or more", 0.0, MOST_SECONDS * per_second) / per_second

    def number(self, column: str, most: float) -> float:
        """Read any number from 0 up."""
        return self._number(column, f"a number from 0 to {most:,g}", 0.0, most)

    def text(self, column: str) -> str:
        """Read a name."""
        value = self._value(column)
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise _broken(column, value, "a name")
        return str(value).strip()

    def moment_s(self, column: str) -> float:
        """Read a date with a time, in seconds since the epoch; one without a zone is UTC."""
        return _moment_s(column, self._value(column))

    def optional_text(self, column: str) -> str | None:
        """Read a name that may be missing."""
        return None if self._values.get(column) is None else self.text(column)

    def span_s(self, column: str, key: str) -> tuple[float, float]:
        """Read a list of events, each with a time under `key`; give the first and the last of these."""
        events = self._value(column)
        if not isinstance(events, list) or not events or not all(isinstance(event, dict) for event in events):
            raise _broken(column, events, "a list of events")
        moments = [_moment_s(f"{column}.{key}", event.get(key)) for event in events]
        return min(moments), max(moments)

    def whole_numbers(self, column: str) -> list[int]:
        """Read a list of ids."""
        value = self._value(column)
        if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
            raise _broken(column, value, "a list of whole numbers")
        return value

    def _number(self, column: str, expected: str, least: float, most: float, step: int = 0) -> float:
        value = self._value(column)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):  # the last of a whole number of more than 308 digits
            raise _broken(column, value, expected) from None
        if isinstance(value, bool) or not least <= number <= most or (step and number != math.floor(number)):
            raise _broken(column, value, expected)
        return number

    def _value(self, column: str) -> Any:
        value = self._values.get(column)
        if value is None:
            raise _BrokenError(f"{column} is missing")
        return value


def _moment_s(column: str, value: Any) -> float:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _broken(column, value, "a date and time such as 2023-11-16 18:17:03.97") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _broken(column: str, value: object, expected: str) -> _BrokenError:
    shown = _nested.repr(value) if isinstance(value, list | dict) else repr(value)
    if len(shown) > _VALUE_CHARACTERS:
        shown = f"{shown[:_VALUE_CHARACTERS]}..."
    return _BrokenError(f"{column} is {shown}; expected {expected}")


class Rows:
    """The rows of one file."""

    def __init__(self, path: Path, rows: Iterable[Row | str]) -> None:
        """Take rows, or a word on what is wrong with a line that is none."""
        self.path = path
        self._rows = rows

    def read(self, take: Callable[[Row], None]) -> None:
        """Hand over every row.

        Raises:
            CallerError: rows are broken, too many, or the file cannot be read; a line for each problem.
        """
        problems: list[str] = []
        count = 0
        with _readable(self.path):
            for count, row in enumerate(self._rows, 1):
                if count > MOST_ROWS:
                    raise CallerError(f"{self.path}: more than {MOST_ROWS:,} rows; cut it into parts")
                if isinstance(row, str):
                    problems.append(row)
                    continue
                try:
                    take(row)
                except _BrokenError as broken:
                    problems.append(f"{self.path}:{row.line}: {broken}")
        if not count:
            raise CallerError(f"{self.path}: it has no rows; expected one for each call")
        if problems:
            more = f"\nand {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
            raise CallerError("\n".join(problems[:PROBLEMS_SHOWN]) + more)


def header_of(path: Path) -> list[str]:
    """Give the columns that the first line of a table names."""
    with _readable(path), _open(path) as file:
        return [column.strip() for column in file.readline(MOST_LINE_CHARACTERS).lstrip("\ufeff").split(",")]


def first_line_of(path: Path) -> str:
    """Give the first line of a file."""
    with _readable(path), _open(path) as file:
        return file.readline(MOST_LINE_CHARACTERS)


def csv_rows(path: Path) -> Rows:
    """Read a table with a header."""

    def rows() -> Iterator[Row | str]:
        with _open(path) as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if reader.fieldnames is not None:
                reader.fieldnames = [name.strip().lstrip("\ufeff") for name in reader.fieldnames]
            for values in reader:
                if None in values:
                    yield f"{path}:{reader.line_num}: it has more values than the header has columns"
                else:
                    yield Row(values, reader.line_num)

    return Rows(path, rows())


def json_rows(path: Path) -> Rows:
    """Read one JSON object a line."""

    def rows() -> Iterator[Row | str]:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except ValueError as error:
                    yield f"{path}:{number}: {error}; expected one JSON object a line"
                    continue
                except RecursionError:
                    start = f"{line.strip()[:_VALUE_CHARACTERS]}..."
                    yield f"{path}:{number}: {start} is nested too deeply; expected one flat JSON object a line"
                    continue
                yield Row(values, number) if isinstance(values, dict) else f"{path}:{number}: expected a JSON object"

    return Rows(path, rows())


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise CallerError(f"{path}: it cannot be read: {error}") from error
