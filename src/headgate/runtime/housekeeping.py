"""Housekeeping: work that goes on beside the calls, again and again.

One rule: what fails is said in one line and tried again, or can be done without; it ends nothing else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from headgate.core.errors import HeadgateError

__all__ = ["repeat", "tried"]

log = logging.getLogger("headgate.manager")


async def repeat(work: Callable[[], Awaitable[object]], every_s: float, *, after_s: float = 0.0) -> None:
    """Do some work for ever, every so often."""
    await asyncio.sleep(after_s)
    while True:
        await tried(work)
        await asyncio.sleep(every_s)


async def tried(work: Callable[[], Awaitable[object]]) -> None:
    """Do some work once."""
    try:
        await work()
    except HeadgateError as error:
        log.error("housekeeping: %s", error)  # noqa: TRY400 - one line; it is tried again, or can be done without
