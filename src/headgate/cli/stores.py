"""Which store a question reads, said with its answer: a store that is not the one meant answers a confident nothing.

One rule: it speaks on stderr, so that what was asked for stays what it is.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from headgate.adapters.config import Config
from headgate.cli.tables import width_of

__all__ = ["EXAMPLE_FOLDER", "say_store"]

EXAMPLE_FOLDER = Path(".headgate")
"""Where the example keeps its store and its runs, in the folder in which it was started."""

_STORE = "headgate.sqlite"


def say_store(config: Config, config_path: Path | None) -> None:
    """Name the store on a terminal; where none was named and the example's is here too, say how to ask that one."""
    console = Console(file=sys.stderr, width=width_of(sys.stderr))
    store = config.store.path
    if sys.stderr.isatty():
        console.print(Text(f"store {store}", style="dim"), soft_wrap=True)
    example = EXAMPLE_FOLDER / _STORE
    if config_path is None and example.exists() and not _same(store, example):
        newest = _newest_config()
        if newest is not None:
            said = f"headgate: this is the store {store}; what the example used is in another:\n    --config {newest}"
            console.print(Text(said), soft_wrap=True)


def _newest_config() -> Path | None:
    found = [(path.stat().st_mtime, path) for path in EXAMPLE_FOLDER.glob("runs/*/headgate.toml")]
    return max(found)[1] if found else None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
