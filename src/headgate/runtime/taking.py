"""Taking: a hold that is being taken, and what was asked of the store together with it.

One rule: it only looks: a transaction that runs may ask it. What is held, and for how long, is `reservations`' affair.
"""

import asyncio
from collections.abc import Awaitable, Coroutine

from headgate.runtime.planning import Outcome


class Taking:
    """A hold that is being taken: `kept` gives what came of it."""

    __slots__ = ("is_admitted", "kept")

    kept: Awaitable[Outcome | None]

    def __init__(self) -> None:
        self.is_admitted = False

    def is_held(self) -> bool:
        """Whether it is taken, as far as is known: by the transaction that runs, or for good."""
        kept = self.kept
        if not self.is_admitted or not isinstance(kept, asyncio.Future) or not kept.done():
            return self.is_admitted
        return not kept.cancelled() and kept.exception() is None


def let_be(asked: Awaitable[object]) -> None:
    """Wait no more for what was asked of the store, whatever comes of it."""
    if isinstance(asked, asyncio.Future):
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # seen, so that nobody warns of it
    elif isinstance(asked, Coroutine):
        asked.close()
