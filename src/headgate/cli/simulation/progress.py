"""Progress: what is told on stderr while scenarios are played, and when they are.

One rule: a line now and then where somebody watches, else only the last one; nothing of it is a figure.
"""

import sys
import time
from typing import TextIO

from headgate.cli.wording import span_text
from headgate.sim.simulation import Scenario

__all__ = ["Progress"]

EVERY_S = 5.0


class Progress:
    """Tells how far the scenarios of one command are."""

    def __init__(self, count: int, out: TextIO | None = None) -> None:
        """Begin before the first of them."""
        self._count, self._number, self._name = count, 0, ""
        self._out = sys.stderr if out is None else out
        self._watched = self._out.isatty()
        self._begun_s = self._told_s = time.monotonic()

    def began(self, scenario: Scenario) -> None:
        """Hear that the next scenario is played."""
        self._number += 1
        self._name = scenario.name
        if self._watched:
            self._tell(f"{self._number} of {self._count}: {self._name}")

    def looked(self, played_s: float, lasts_s: float, waiting: int) -> None:
        """Hear how much virtual time has passed, of about how much, and how many calls wait."""
        if self._watched and time.monotonic() - self._told_s >= EVERY_S:
            about = f" of about {span_text(lasts_s)}" if played_s < lasts_s else ""
            many = f"{waiting:,} call{'' if waiting == 1 else 's'} waiting"
            self._tell(f"{self._number} of {self._count}: {self._name}: {span_text(played_s)}{about}, {many}")

    def ended(self) -> None:
        """Hear that all are played."""
        many = "1 scenario" if self._count == 1 else f"{self._count} scenarios"
        self._tell(f"{many} played in {span_text(time.monotonic() - self._begun_s)}")

    def _tell(self, text: str) -> None:
        self._told_s = time.monotonic()
        print(f"headgate: {text}", file=self._out, flush=True)
