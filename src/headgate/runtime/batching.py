"""Batching: small calls of the same kind that come within a moment are made as one.

One rule: nobody waits longer than a tenth of a second for others to come, and the call goes on as long as one of those
that wait for it is there. What is of the same kind, and whose part is whose, is for the caller to say.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from headgate.runtime.coalesce import Answered

__all__ = ["MOST_INPUTS", "WAIT_S", "Batching", "Joined"]

WAIT_S = 0.1
"""How long the first waits for others."""

MOST_INPUTS = 10
"""With so many a batch goes at once."""

Work = Callable[[Sequence[Sequence[bytes]]], Coroutine[Any, Any, Answered]]
"""Makes the call for all: the inputs of each that joined, in their order."""


class Joined(NamedTuple):
    """An answer to all, the inputs of each that joined, and which of them is the asker's."""

    answered: Answered
    inputs: Sequence[Sequence[bytes]]
    place: int


class _Batch:
    __slots__ = ("count", "full", "inputs", "task", "waiting")

    def __init__(self) -> None:
        self.inputs: list[Sequence[bytes]] = []
        self.count = 0
        self.waiting = 0
        self.full = asyncio.Event()
        self.task: asyncio.Task[Answered]


class Batching:
    """The batches of one process that others may still join."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: dict[bytes, _Batch] = {}
        self.batched = 0
        """Calls that were made as a part of another's."""

    async def join(self, group: bytes, inputs: Sequence[bytes], work: Work) -> Joined:
        """Join the batch of a group, or begin one; `work` of who began it makes the call.

        What goes wrong with it is raised to all. It is cancelled when the last of those that wait is.
        """
        batch = self._open.get(group)
        if batch is not None and batch.count + len(inputs) > MOST_INPUTS:
            self._close(group, batch)
            batch = None
        if batch is None:
            batch = self._open[group] = _Batch()
            batch.task = asyncio.create_task(self._make(group, batch, work), name="batched call")
            batch.task.add_done_callback(_seen)
        else:
            self.batched += 1
        place = len(batch.inputs)
        batch.inputs.append(inputs)
        batch.count += len(inputs)
        batch.waiting += 1
        if batch.count >= MOST_INPUTS:
            self._close(group, batch)
        try:
            return Joined(await asyncio.shield(batch.task), batch.inputs, place)
        finally:
            batch.waiting -= 1
            if not batch.waiting and not batch.task.done():
                self._close(group, batch)
                batch.task.cancel()

    async def _make(self, group: bytes, batch: _Batch, work: Work) -> Answered:
        try:
            async with asyncio.timeout(WAIT_S):
                await batch.full.wait()
        except TimeoutError:
            self._close(group, batch)
        return await work(batch.inputs)

    def _close(self, group: bytes, batch: _Batch) -> None:
        """Let nobody join it any more."""
        if self._open.get(group) is batch:
            del self._open[group]
        batch.full.set()


def _seen(task: "asyncio.Task[Answered]") -> None:
    if not task.cancelled():
        task.exception()  # so that nobody warns of it where all have left
