"""Giving back: holds of attempts that were never sent.

One rule: what is to be given back stays known until the store has it, whoever is cancelled meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from headgate.core.amounts import NOTHING, Amounts
from headgate.core.errors import StoreError
from headgate.core.limits import Limit
from headgate.runtime.lanes import Ticket

log = logging.getLogger("headgate.admission")

Settle = Callable[[str, Sequence[Limit], Amounts], Awaitable[bool]]


class GivingBack:
    """The holds of one process that are to be given back."""

    def __init__(self, settle: Settle) -> None:
        """Give back by settling with nothing."""
        self._settle = settle
        self._tickets: dict[str, Ticket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def now(self, ticket: Ticket) -> None:
        """Give back what an attempt holds; where the store fails, `again` goes on."""
        self._tickets[ticket.attempt] = ticket
        try:
            await self._settle(ticket.attempt, ticket.limits, NOTHING)
        except StoreError as error:
            log.warning("the hold of %s is given back later: %s", ticket.attempt, error)
        else:
            self._tickets.pop(ticket.attempt, None)

    async def again(self) -> int:
        """Try again what could not be given back; give how many holds are left."""
        for ticket in list(self._tickets.values()):
            await self.now(ticket)
        return len(self._tickets)

    def soon(self, ticket: Ticket) -> None:
        """Give back beside whoever says so."""
        task = asyncio.create_task(self.now(ticket), name=f"back {ticket.attempt}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Return when nothing is on its way back."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
