"""Held answers: how many bytes of whole answers one process holds for clients that share them.

One rule: a piece is counted before it is kept, and given back when nobody has the answer any more; what finds no room
is not held at all.
"""

import weakref

from headgate.core.errors import HeadgateError

__all__ = ["MOST_HELD_BYTES", "HeldAnswer", "HeldAnswers", "NoRoomError"]

MOST_HELD_BYTES = 256 * 1024 * 1024
"""Of all answers together: four of the largest, thousands of the usual ones."""


class NoRoomError(HeadgateError):
    """So much is held already that an answer cannot be: each of those that wait for it makes its call by itself."""


class HeldAnswers:
    """What one process holds."""

    def __init__(self, most_bytes: int = MOST_HELD_BYTES) -> None:
        """Hold nothing yet."""
        self.most_bytes = most_bytes
        self.held_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether another answer may be begun."""
        return self.held_bytes < self.most_bytes

    def begin(self) -> "HeldAnswer":
        """Give the pieces of an answer to come a place; what is counted goes with the last who has that."""
        answer = HeldAnswer(self)
        weakref.finalize(answer, self._give_back, answer.size).atexit = False
        return answer

    def _give_back(self, size: list[int]) -> None:
        self.held_bytes -= size[0]


class HeldAnswer:
    """The pieces of one answer."""

    __slots__ = ("__weakref__", "_all", "_pieces", "size")

    def __init__(self, of: HeldAnswers) -> None:
        """Begin with none; `size` has the bytes that are counted, for who gives them back."""
        self._all = of
        self._pieces: list[bytes] = []
        self.size = [0]

    def add(self, piece: bytes) -> int:
        """Keep a piece; give how many bytes there are.

        Raises:
            NoRoomError: too much is held by all.
        """
        if self._all.held_bytes + len(piece) > self._all.most_bytes:
            self.drop()
            raise NoRoomError("too many shared answers are held at a time")
        self._all.held_bytes += len(piece)
        self.size[0] += len(piece)
        self._pieces.append(piece)
        return self.size[0]

    def drop(self) -> None:
        """Keep nothing of it: an error may live for long, and its frames with it."""
        self._all.held_bytes -= self.size[0]
        self.size[0] = 0
        self._pieces.clear()

    def whole(self) -> bytes:
        """Give all of it, which is one piece from now on."""
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]
