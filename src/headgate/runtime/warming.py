"""Warming: calls that begin alike wait for the first of them, before anything is held for them.

One rule: whoever went first ends its turn, however it ends, and that wakes all who wait for it; nobody waits beyond its
own deadline. What is worth a wait is the core's to say (`core.warm_up`). It knows this process's calls alone.
"""

import asyncio
from collections.abc import Sequence

from headgate.core.warm_up import MOST_WARM_UP_S, UNSEEN_WARM_UP_S, Mark, Place, WarmUp
from headgate.ports import Clock

MOST_WAITING = 20_000
"""Calls that may wait at once; those beyond go as if there were no warm-up."""


class Turn:
    """A call's turn: from when it may go to its first byte, or to its end without one."""

    def __init__(
        self, warming: "Warming", account: str, marks: Sequence[Mark], led: tuple[Place, ...], lasts_s: float
    ) -> None:
        """Go first for the prefixes that are `led`; once it is sent it is awaited for `lasts_s`."""
        self._warming = warming
        self._account = account
        self._marks = marks
        self._led = led
        self._lasts_s = lasts_s
        self._ended = False

    def went_to(self, account: str) -> "Turn":
        """Say that it was admitted, and is sent; gives its turn there, if it went to another account than was thought.

        There it waits for nobody any more.
        """
        if account != self._account:
            self.ended()
            return self._warming.begin(account, self._marks, self._lasts_s).went_to(account)
        self._warming.went(account, self._marks, self._led, self._lasts_s)
        return self

    def answered(self) -> None:
        """Say that the first byte of its answer is here; later words say nothing."""
        if not self._ended:
            self._ended = True
            self._warming.answered(self._account, self._marks)

    def ended(self) -> None:
        """Say that it is over: without a first byte the turn is another's."""
        if not self._ended:
            self._ended = True
            self._warming.gave_up(self._led)


class Warming:
    """Lets calls wait for their turns."""

    def __init__(self, clock: Clock) -> None:
        """Know of no call."""
        self._clock = clock
        self._prefixes = WarmUp()
        self._woken: dict[Place, asyncio.Event] = {}
        self._waiting = 0
        self._stopped = False

    async def turn(self, account: str, marks: Sequence[Mark], deadline_s: float, *, is_streamed: bool) -> Turn:
        """Wait until no other call is about to write what this one could read; the caller ends the turn it gets."""
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + min(MOST_WARM_UP_S, deadline_s - self._clock.now_s())
        while (found := self._prefixes.awaited(account, marks, now_s())) is not None:
            place, awaited_until_s = found
            left_s = min(until_s, awaited_until_s) - now_s()
            if left_s <= 0 or self._stopped or self._waiting >= MOST_WAITING:
                break
            await self._wait(place, left_s)
        return self.begin(account, marks, MOST_WARM_UP_S if is_streamed else UNSEEN_WARM_UP_S)

    def begin(self, account: str, marks: Sequence[Mark], lasts_s: float) -> Turn:
        """Go at once, first for those prefixes that nobody goes first for."""
        now_s = asyncio.get_running_loop().time()
        led = self._prefixes.began(account, marks, now_s, now_s + lasts_s)
        return Turn(self, account, marks, led, lasts_s)

    def went(self, account: str, marks: Sequence[Mark], led: Sequence[Place], lasts_s: float) -> None:
        """Let others wait for a call that is sent now."""
        if led:
            self._prefixes.went(account, marks, led, asyncio.get_running_loop().time() + lasts_s)

    def answered(self, account: str, marks: Sequence[Mark]) -> None:
        """Let all go that wait for these prefixes: they can be read."""
        self._prefixes.answered(account, marks, asyncio.get_running_loop().time())
        self._wake([(account, mark.key) for mark in marks])

    def gave_up(self, led: Sequence[Place]) -> None:
        """Let those that wait for these prefixes see who goes first now."""
        self._prefixes.gave_up(led)
        self._wake(led)

    def stop(self) -> None:
        """Let all go, and nobody wait any more."""
        self._stopped = True
        self._wake(list(self._woken))

    async def _wait(self, place: Place, left_s: float) -> None:
        woken = self._woken.setdefault(place, asyncio.Event())
        self._waiting += 1
        try:
            async with asyncio.timeout(left_s):
                await woken.wait()
        except TimeoutError:
            return
        finally:
            self._waiting -= 1

    def _wake(self, places: Sequence[Place]) -> None:
        for place in places:
            woken = self._woken.pop(place, None)
            if woken is not None:
                woken.set()
