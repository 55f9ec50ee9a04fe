"""Listening: hear of what other processes change in the store, while somebody here wants to know.

One rule: a trouble of the store ends nothing; it is told once and tried again.
"""

import asyncio
import logging
import random
from collections.abc import Callable

from headgate.core.errors import StoreError
from headgate.ports import LevelStore

log = logging.getLogger("headgate.admission")

LISTEN_AGAIN_S = 1.0
"""After a trouble of the store, other processes' changes are looked for again within this."""


async def listen(store: LevelStore, wanted: Callable[[], int], heard: Callable[[], None]) -> None:
    """Call `heard` each time that another process has changed a level, while it is `wanted`."""
    troubled = False
    while wanted():
        try:
            await store.wait_changed()
        except StoreError as error:
            # Nobody is told to look: lanes that did would meet the same trouble, which ends a wait.
            if not troubled:
                log.warning("what other processes change is not seen for now: %s", error)
            troubled = True
            await asyncio.sleep(LISTEN_AGAIN_S * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
        else:
            troubled = False
            heard()
