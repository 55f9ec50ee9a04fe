"""Alike: the calls of a lane that ask something of the same limits, and which of them may pass those before them.

One rule: nobody passes one that is alike, came before it and asks for no more of anything: where that one cannot go,
neither can this one. So of many calls that ask for the same, one is worth a try out of its turn.
"""

from typing import Generic, Protocol, TypeVar

MOST_LOOKED_AT = 1_000
"""Of the calls that are alike, so many of the first are compared with one another."""

Asks = tuple[int, ...]
"""What a call asks of each of the limits, in their order."""


class Waits(Protocol):
    """A call that waits."""

    @property
    def order(self) -> int:
        """Its number; who came earlier has the smaller one."""
        ...


W = TypeVar("W", bound=Waits)


class Alike(Generic[W]):
    """The calls of one kind."""

    def __init__(self) -> None:
        """Start with none."""
        self._calls: dict[int, tuple[W, Asks]] = {}
        self._first: dict[int, tuple[W, Asks]] | None = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: W, asks: Asks) -> None:
        """Add one."""
        self._calls[call.order] = call, asks
        if self._first is not None and self.before(asks) is None:
            self._first = None

    def remove(self, call: W) -> bool:
        """Take one out; True if others may be the first now."""
        found = self._calls.get(call.order)
        if found is None or found[0] is not call:
            return False
        del self._calls[call.order]
        if self._first is not None and call.order in self._first:
            self._first = None
        return self._first is None and bool(self._calls)

    def first(self) -> dict[int, tuple[W, Asks]]:
        """Give those that nobody is before: by their numbers, with what they ask."""
        if self._first is None:
            self._first = {}
            for order in sorted(self._calls)[:MOST_LOOKED_AT]:
                call, asks = self._calls[order]
                if self.before(asks) is None:
                    self._first[order] = call, asks
        return self._first

    def before(self, asks: Asks) -> W | None:
        """Give one that waits and asks for no more of anything than a call that comes; None: there is none."""
        for call, least in self.first().values():
            if all(less <= more for less, more in zip(least, asks, strict=True)):
                return call
        return None
