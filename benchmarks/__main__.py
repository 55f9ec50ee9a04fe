"""The face of all benchmarks: python -m benchmarks ROW... [--data FOLDER] [--quick] [--json]

One rule: a row is a module `benchmarks/<row>_<what>.py` (`b1_stores.py` is row B1), or one of ROWS_BY_NAME, that
nothing imports until it is asked for. It has

    TITLE: str                                    one line: what is measured, beside whom
    def run(options: Options) -> Result           measures, shows its table with `options.say`, and gives the result

and ends within 50 s when `options.quick`. What is absent (a folder of data, a rival that cannot be installed) it says
in the result's `note` and never guesses. Exit codes: 0 all rows ran, 1 a row broke off, 2 called wrongly.
"""

import argparse
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROW_FILE = re.compile(r"(?P<row>[a-z]\d*)_\w+\.py")
ROWS_BY_NAME = {"FAULTS": "faults", "REPLAY": "replay", "SOAK": "soak"}


@dataclass(frozen=True, slots=True)
class Options:
    """What every row is run with; `say` shows a line to people and is silent under --json."""

    data: Path | None
    quick: bool
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A row's figures: numbers, or objects of named numbers. `met` compares headgate with target."""

    headgate: object
    rival: object
    target: object
    met: bool
    note: str = ""


def rows() -> dict[str, str]:
    """Give the modules by row, in the order of their names."""
    found: dict[str, str] = {}
    for path in FOLDER.glob("*.py"):
        match = ROW_FILE.fullmatch(path.name)
        if match:
            row = match["row"].upper()
            assert row not in found, f"two modules for row {row}: {found[row]} and {path.stem}"
            found[row] = path.stem
    return dict(sorted(found.items(), key=lambda item: (item[0][0], int(item[0][1:] or 0)))) | ROWS_BY_NAME


def main(arguments: Sequence[str] | None = None) -> int:
    known = rows()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Headgate beside its rivals.")
    parser.add_argument("rows", nargs="+", metavar="ROW", help=f"{', '.join(known)}, or all")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="recorded sessions and traces")
    parser.add_argument("--quick", action="store_true", help="at most 50 s for a row, with fewer rounds")
    parser.add_argument("--json", action="store_true", help="print only the result lines")
    asked = parser.parse_args(arguments)
    chosen = list(known) if "all" in asked.rows else [row.upper() for row in asked.rows]
    unknown = [row for row in chosen if row not in known]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(known)}, and all")
    if asked.data is not None and not asked.data.is_dir():
        parser.error(f"--data {asked.data}: there is no such folder")
    options = Options(asked.data, asked.quick, say=(lambda _: None) if asked.json else print)
    return max([run_row(row, known[row], options) for row in chosen])


def run_row(row: str, module_name: str, options: Options) -> int:
    try:
        module = importlib.import_module(f"benchmarks.{module_name}")
        options.say(f"{row}  {module.TITLE}")
        start_s = time.perf_counter()
        result = module.run(options)
    except Exception as error:  # noqa: BLE001 - one row that breaks off must not hide the others; it is told below
        print(json.dumps({"row": row, "error": f"{type(error).__name__}: {error}"}), flush=True)
        return 1
    options.say(f"    {time.perf_counter() - start_s:.0f} s, target {'met' if result.met else 'MISSED'}")
    print(json.dumps({"row": row, **asdict(result)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
