"""Which store a question reads, and whose configuration, said with its answer: another one answers something else.

One rule: it speaks on stderr, so that what was asked for stays what it is.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from headgate.adapters.config import Config, changes_in_words, needs_restart
from headgate.adapters.owners import process_of
from headgate.cli.tables import width_of
from headgate.runtime.announced import Announced

__all__ = ["EXAMPLE_FOLDER", "differences", "say_in_force", "say_store"]

EXAMPLE_FOLDER = Path(".headgate")
"""Where the example keeps its store and its runs, in the folder in which it was started."""

_MOST_CHANGES = 5
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


def differences(in_force: Config, config: Config) -> list[str]:
    """Say what would change for a gateway that goes by one configuration if it went by another, a line each."""
    restart = needs_restart(in_force, config)
    return [*changes_in_words(in_force, config), *(f"{what}, with a restart" for what in restart)]


def say_in_force(said: Announced, path: Path | None, changes: Sequence[str], *, is_shown: bool) -> None:
    """Say that a gateway goes by something else than the file says by now, and whether this is what is shown."""
    if not changes:
        return
    since = f"{datetime.fromtimestamp(said.since_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    shown = [f"\n    {change}" for change in changes[:_MOST_CHANGES]]
    more = f"\n    and {len(changes) - _MOST_CHANGES} more" if len(changes) > _MOST_CHANGES else ""
    told = (
        f"headgate: a gateway that runs ({process_of(said.owner)}) goes by what {path} said at {since}, "
        f"{'and that is shown here' if is_shown else 'which is not what is shown here'}. To reload it (POST "
        f"/api/v1/reload) would change:{''.join(shown)}{more}"
    )
    Console(file=sys.stderr, width=width_of(sys.stderr)).print(Text(told), soft_wrap=True)


def _newest_config() -> Path | None:
    found = [(path.stat().st_mtime, path) for path in EXAMPLE_FOLDER.glob("runs/*/headgate.toml")]
    return max(found)[1] if found else None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
