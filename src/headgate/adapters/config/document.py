"""A configuration file as tables: read, parsed, and with the line of everything in it.

One rule: whatever the file holds, the outcome is its tables or a ConfigError that names a line. Which words a table has
is not known here.
"""

import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path

from headgate.adapters.config.lines import TomlPath, find_lines
from headgate.adapters.config.tables import Problems, Table, key_shown, unknown_hint
from headgate.core.errors import ConfigError

__all__ = ["Document", "document_of", "read_text"]

MOST_FILE_BYTES = 1024 * 1024

TABLES = ("server", "store", "retries", "timeouts", "scheduler")
ARRAYS = ("account", "limit", "key", "price", "lane", "maintenance", "model_rule")
LATER = ("cache", "context", "alert")

_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_TOO_MANY_DIGITS = re.compile(r"[0-9][0-9_]{4000,}")


class Document:
    """The tables of one file; each is made once, so that it remembers which of its words were asked for."""

    def __init__(
        self, problems: Problems, data: Mapping[str, object], *, called: Mapping[str, str] | None = None
    ) -> None:
        """Read the tables of `data`; those of JSON have no brackets: `called` says what they are called there."""
        self.problems = problems
        self._called = called or {}
        self._tables = {name: self._read_table(name, data.get(name, {})) for name in TABLES}
        self._arrays = {name: self._read_array(name, data.get(name, [])) for name in ARRAYS}
        self._note_unknown(data)

    def table(self, name: str) -> Table:
        """Give a table that stands once, empty where the file does not have it."""
        return self._tables[name]

    def tables(self, name: str) -> list[Table]:
        """Give every table of an array, in the order of the file."""
        return self._arrays[name]

    def _read_table(self, name: str, value: object) -> Table:
        if not isinstance(value, dict):
            self.problems.add((name,), f"{name}: expected one table, written [{name}]")
            value = {}
        return Table(self.problems, (name,), self._called.get(name, f"[{name}]"), value)

    def _read_array(self, name: str, value: object) -> list[Table]:
        called = self._called.get(name)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            how = f"expected tables, each written [[{name}]]" if called is None else "expected a list of objects"
            self.problems.add((name,), f"{called or name}: {how}")
            return []
        return [
            Table(self.problems, (name, index), f"[[{name}]]" if called is None else f"{called}[{index}]", entry)
            for index, entry in enumerate(value)
        ]

    def _note_unknown(self, data: Mapping[str, object]) -> None:
        for name in data:
            if name in LATER:
                self.problems.add((name,), f"[{name}]: this version of Headgate does not have it; remove the table")
            elif name not in TABLES and name not in ARRAYS:
                self.problems.add((name,), f"{key_shown(name)}: {unknown_hint(name, (*TABLES, *ARRAYS))}")


def document_of(text: str, path: Path) -> Document:
    """Give the tables of what stands in a file.

    Raises:
        ConfigError: it is no TOML.
    """
    data, lines = _parse(text, path)
    return Document(Problems(str(path), lines), data)


def read_text(path: Path) -> str:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(raw) > MOST_FILE_BYTES:
        raise ConfigError(f"{path}:1: the file is larger than {MOST_FILE_BYTES:,} bytes, which no configuration needs")
    try:
        return raw.decode("utf-8-sig")  # some editors begin every file with a byte order mark
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text: expected the file saved as UTF-8") from None


def _parse(text: str, path: Path) -> tuple[dict[str, object], dict[TomlPath, int]]:
    try:
        # Decimal keeps dollars as they are written; floats would round them.
        return tomllib.loads(text, parse_float=_decimal), find_lines(text)
    except tomllib.TOMLDecodeError as error:
        line, message = _located(str(error), text)
    except ValueError:
        too_long = _TOO_MANY_DIGITS.search(text)
        line = 1 + text.count("\n", 0, too_long.start() if too_long else 0)
        message = "a number has too many digits"
    except RecursionError:
        rows = text.split("\n")
        line = 1 + max(range(len(rows)), key=lambda row: rows[row].count("[") + rows[row].count("{"))
        message = "arrays or tables are nested too deeply"
    raise ConfigError(f"{path}:{line}: not TOML: {message}")


def _located(message: str, text: str) -> tuple[int, str]:
    position = _POSITION.search(message)
    if position is None:
        return 1, message
    what = message[: position.start()]
    if position[1] is None:
        return 1 + text.rstrip().count("\n"), f"{what} at the end of the file"
    return int(position[1]), f"{what} at column {position[2]}"


def _decimal(written: str) -> Decimal:
    try:
        return Decimal(written)
    except InvalidOperation:  # an exponent of more than 18 digits: no amount of anything
        return Decimal("NaN")
