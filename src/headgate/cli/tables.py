"""Tables of the questions (`usage`, `limits`): they fit the terminal, whatever the names in them are.

One rule: a number is never broken. Names wrap in their cells; where that is not enough the rightmost columns are left
out, and that is said: `--json` is the full truth.
"""

import os
import sys
from collections.abc import Sequence
from itertools import accumulate
from textwrap import wrap
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["open_console", "print_fitted", "print_table", "width_of"]

_GAP_CELLS = 2
_LEAST_NAME_CELLS = 16
# A pipe or a file has no edge: lines are as long as their cells.
_ENDLESS_CELLS = 10_000


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, names: int) -> None:
    """Print a table on stdout whose first `names` columns hold words and whose others hold figures, dearest first."""
    print_fitted(open_console(), columns, rows, names=names)


def print_fitted(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], *, names: int, last: str = ""
) -> None:
    """Print a table on a console; `last` stands under it in place of further rows. A heading may have two lines."""
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    heads = [max(map(len, column.split("\n"))) for column in columns]
    widths = [max(head, *(row[at].cell_len for row in texts), 0) for at, head in enumerate(heads)]
    shown = _fitting(widths, names, console.width)
    name_cells = _name_cells(widths[:names], console.width - sum(width + _GAP_CELLS for width in widths[names:shown]))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP_CELLS, 0, 0), header_style="bold")
    for at, column in enumerate(columns[:shown]):
        if at < names:
            table.add_column(column, width=name_cells[at])
        else:
            table.add_column(column, justify="right", no_wrap=True, width=widths[at])
    for row in texts:
        folded = [Text(_folded(cell.plain, cells), cell.style) for cell, cells in zip(row, name_cells, strict=False)]
        table.add_row(*folded, *row[names:shown])
    # Narrower than that, the terminal may break lines where it likes: rich would break the numbers.
    cells = console.width
    console.width = max(cells, sum(name_cells) + sum(widths[names:shown]) + _GAP_CELLS * shown)
    console.print(table)
    if last:
        console.print(Text(last, style="dim"))
    if shown < len(columns):
        left_out = ", ".join(column.replace("\n", " ") for column in columns[shown:])
        console.print(Text(f"too narrow for: {left_out}; --json has everything", style="dim"))
    console.width = cells


def open_console() -> Console:
    """Give stdout for styled lines: folded at the edge of a terminal, never into a pipe."""
    return Console(file=sys.stdout, width=width_of(sys.stdout))


def width_of(stream: TextIO) -> int | None:
    """Give the width for what goes into a stream; None: what the terminal has."""
    return None if stream.isatty() or "COLUMNS" in os.environ else _ENDLESS_CELLS


def _fitting(widths: Sequence[int], names: int, cells: int) -> int:
    """Give how many columns have room when the names are wrapped as far as they may be; one figure is always shown."""
    least = [min(width, _LEAST_NAME_CELLS) if at < names else width for at, width in enumerate(widths)]
    ends = accumulate(width + _GAP_CELLS for width in least)
    return max(min(names + 1, len(widths)), sum(end - _GAP_CELLS <= cells for end in ends))


def _name_cells(widths: Sequence[int], room: int) -> list[int]:
    """Share the room among the names: the widest gives way first."""
    cells = list(widths)
    while cells and sum(each + _GAP_CELLS for each in cells) - _GAP_CELLS > room and max(cells) > _LEAST_NAME_CELLS:
        cells[cells.index(max(cells))] -= 1
    return cells


def _folded(name: str, cells: int) -> str:
    """Fold a name at its spaces and hyphens, within a word only where there is none."""
    return "\n".join(wrap(name, cells, break_on_hyphens=True)) or name
