"""Lines of a TOML document: on which line a table, a key or an element of an array stands.

One rule: the document is valid, `tomllib` has parsed it; this only finds again where it read what, because the standard
parser tells no positions. It reads no value.
"""

import re
import tomllib
from bisect import bisect_right

__all__ = ["TomlPath", "find_lines"]

TomlPath = tuple[str | int, ...]
"""Keys and indices from the root: `("limit", 1, "models")` is `models` of the second `[[limit]]`."""

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|'[^'\n]*'|"(?:[^"\\\n]|\\.)*\"""")
# Longest quotes first. A multi-line string may end in up to two quotes of its own before the three that close it.
_STRING = re.compile(
    r"'''.*?'''(?:'{0,2})|\"\"\"(?:[^\\]|\\.)*?\"\"\"(?:\"{0,2})|'[^'\n]*'|\"(?:[^\"\\\n]|\\.)*\"", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def find_lines(text: str) -> dict[TomlPath, int]:
    """Give the line, counted from 1, of everything in a valid document; a key's is the one on which the key begins.

    Every path that the parsed document has is there. Line ends may be those of any system.
    """
    scanner = _Scanner(text.replace("\r\n", "\n"))
    scanner.read_document()
    return scanner.lines


class _Scanner:
    """Walks once through the text; `_at` is the next character."""

    def __init__(self, text: str) -> None:
        self.lines: dict[TomlPath, int] = {(): 1}
        self._text = text
        self._at = 0
        self._line_ends = [match.start() for match in re.finditer("\n", text)]
        self._tables_of_array: dict[TomlPath, int] = {}

    def read_document(self) -> None:
        table: TomlPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text.startswith("[", self._at):
                table = self._read_header()
            else:
                self._read_pair(table)
            self._skip(_BLANK)

    def _read_header(self) -> TomlPath:
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        line = self._line()
        self._at += brackets
        self._skip(_SPACE)
        *parents, last = self._read_key()
        self._skip(_SPACE)
        self._at += brackets
        table: TomlPath = ()
        for part in parents:
            table = self._newest((*table, part))
            self.lines.setdefault(table, line)
        table = (*table, last)
        if brackets == 1:
            # Dotted keys and sub-tables may have made it known before: the header is where a reader looks.
            self.lines[table] = line
            return table
        count = self._tables_of_array.get(table, 0)
        self._tables_of_array[table] = count + 1
        self.lines.setdefault(table, line)
        self.lines[*table, count] = line
        return (*table, count)

    def _newest(self, path: TomlPath) -> TomlPath:
        """Give the last table of an array of tables, which is the one that a header below it means."""
        count = self._tables_of_array.get(path)
        return path if count is None else (*path, count - 1)

    def _read_pair(self, table: TomlPath) -> None:
        line = self._line()
        path = table
        for part in self._read_key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._skip(_SPACE)
        self._at += 1  # the equals sign
        self._skip(_SPACE)
        self._read_value(path)

    def _read_key(self) -> list[str]:
        parts = [self._read_key_part()]
        self._skip(_SPACE)
        while self._text.startswith(".", self._at):
            self._at += 1
            self._skip(_SPACE)
            parts.append(self._read_key_part())
            self._skip(_SPACE)
        return parts

    def _read_key_part(self) -> str:
        part = self._skip(_KEY_PART)
        if part.startswith('"'):
            return str(tomllib.loads(f"key = {part}")["key"])
        return part.strip("'")

    def _read_value(self, path: TomlPath) -> None:
        match self._text[self._at]:
            case "[":
                self._read_array(path)
            case "{":
                self._read_inline_table(path)
            case '"' | "'":
                self._skip(_STRING)
            case _:
                self._skip(_SCALAR)

    def _read_array(self, path: TomlPath) -> None:
        self._at += 1
        index = 0
        self._skip(_BLANK)
        while not self._text.startswith("]", self._at):
            element = (*path, index)
            self.lines[element] = self._line()
            self._read_value(element)
            index += 1
            self._skip_comma()
        self._at += 1

    def _read_inline_table(self, path: TomlPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        while not self._text.startswith("}", self._at):
            self._read_pair(path)
            self._skip_comma()
        self._at += 1

    def _skip_comma(self) -> None:
        self._skip(_BLANK)
        if self._text.startswith(",", self._at):
            self._at += 1
            self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        # Everything that can stand here matches; an endless loop over a text that is no TOML would be worse than this.
        assert match is not None, f"no TOML at character {self._at}"
        self._at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_right(self._line_ends, self._at - 1) + 1
