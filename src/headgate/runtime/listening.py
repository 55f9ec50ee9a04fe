"""Listening: hear of what other processes change in the store, while somebody here wants to know.

One rule: a trouble of the store ends nothing; it is told once and tried again.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable

from headgate.core.errors import StoreError
from headgate.ports import Clock, LevelStore

log = logging.getLogger("headgate.admission")

LISTEN_AGAIN_S = 1.0
"""After a trouble of the store, other processes' changes are looked for again within this."""

OTHERS_WORK_S = 60.0
"""Other processes count as at work so long after the store was changed by one."""


class Listening:
    """Calls `heard` each time that another process has changed a level, while it is `wanted`."""

    def __init__(self, store: LevelStore, clock: Clock, wanted: Callable[[], int], heard: Callable[[], None]) -> None:
        """Begin deaf."""
        self._store, self._clock, self._wanted, self._heard = store, clock, wanted, heard
        self._heard_s = -math.inf
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Listen from now on, unless it does already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen(), name="lanes of other processes")

    def others_work(self, now_s: float) -> bool:
        """Whether other processes are at work."""
        return now_s - self._heard_s < OTHERS_WORK_S

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        troubled = False
        while self._wanted():
            try:
                await self._store.wait_changed()
            except StoreError as error:
                # Nobody is told to look: lanes that did would meet the same trouble, which ends a wait.
                if not troubled:
                    log.warning("what other processes change is not seen for now: %s", error)
                troubled = True
                await asyncio.sleep(LISTEN_AGAIN_S * random.uniform(0.5, 1))  # noqa: S311 - jitter, not a secret
            else:
                troubled = False
                self._heard_s = self._clock.now_s()
                self._heard()
