"""What a provider admitted: counted where no header tells a limit, to be measured at its refusals.

One rule: bounded, and in pieces: nothing is kept of a call but its sums.
"""

from typing import NamedTuple

from headgate.core.amounts import DIMENSIONS, Amounts, Dimension
from headgate.core.notices import MINUTE_S


class Measured(NamedTuple):
    """What was admitted until a refusal, each as a minute's: in the last minute, lately, and since the last refusal.

    Between two refusals an empty bucket was filled and emptied once: what went through is what it was given. The first
    one only knows the last minute, in which a full bucket was emptied too.
    """

    minute: int
    recent: int
    since_refusal: int | None = None


class Meter:
    """Counts what one process's calls were admitted in the last minute, in pieces of 5 s."""

    PIECE_S = 5.0
    PIECES = 12
    RECENT = 4
    """Pieces of which lately is made: 15 to 20 s."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._pieces: list[tuple[int, list[int]]] = []

    def add(self, amounts: Amounts, now_s: float) -> None:
        """Count what a call was charged."""
        piece = int(now_s // self.PIECE_S)
        if not self._pieces or self._pieces[-1][0] != piece:
            self._pieces.append((piece, [0] * len(DIMENSIONS)))
            del self._pieces[: -self.PIECES - 1]
        counts = self._pieces[-1][1]
        for place, units in enumerate(amounts):
            if units:
                counts[place] += units

    def counted(self, dimension: Dimension, now_s: float, pieces: int = PIECES) -> tuple[int, float]:
        """Give what was admitted in the last `pieces`, of which one runs still, and since when that counts."""
        place = DIMENSIONS.index(dimension)
        first = int(now_s // self.PIECE_S) - pieces + 1
        return sum(counts[place] for piece, counts in self._pieces if piece >= first), first * self.PIECE_S

    def admitted(self, dimension: Dimension, now_s: float, pieces: int = PIECES) -> int:
        """Give what a minute admits, by the last `pieces`."""
        count, since_s = self.counted(dimension, now_s, pieces)
        return round(count * MINUTE_S / (now_s - since_s))

    def a_request(self, dimension: Dimension, now_s: float, otherwise: int) -> float:
        """Give what a request was charged on the average, `otherwise` where none was lately."""
        if dimension == "requests":
            return 1.0
        requests, _since_s = self.counted("requests", now_s)
        return self.counted(dimension, now_s)[0] / requests if requests else otherwise
