"""The feed: what happens to calls and limits, told as it happens to whoever follows.

One rule: nobody waits for a follower. Each has a bounded queue; one that is too slow loses the oldest events and is
told how many. Nothing is kept for those who come later: the ledger is the record.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from headgate.core.errors import LimitError
from headgate.core.scopes import NO_SCOPES, Scopes
from headgate.ports import Clock

MOST_KEPT = 1_000
"""Events that a follower may be behind."""

MOST_FOLLOWERS = 100

Kind = Literal["waiting", "admitted", "refused", "settled", "limit", "missed"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened at `at_s`. `facts` is what JSON can say; `scopes` says whose it is."""

    kind: Kind
    at_s: float
    facts: Mapping[str, Any]
    scopes: Scopes = NO_SCOPES


class _Follower:
    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=MOST_KEPT)
        self.missed = 0
        self.more = asyncio.Event()

    def tell(self, event: Event) -> None:
        if len(self.events) == MOST_KEPT:
            self.missed += 1
        self.events.append(event)
        self.more.set()


class Feed:
    """Tells followers in this process."""

    def __init__(self, clock: Clock) -> None:
        """Begin with nobody who follows."""
        self._clock = clock
        self._followers: set[_Follower] = set()

    @property
    def is_followed(self) -> bool:
        """Whether anybody would hear: what costs something to say is not said to nobody."""
        return bool(self._followers)

    def tell(self, kind: Kind, scopes: Scopes = NO_SCOPES, **facts: Any) -> None:
        """Tell every follower."""
        if self._followers:
            event = Event(kind, self._clock.now_s(), facts, scopes)
            for follower in self._followers:
                follower.tell(event)

    @contextmanager
    def follow(self) -> Iterator[AsyncIterator[Event]]:
        """Follow from now on, until the block ends; an event `missed` says how many were lost before the next one.

        Raises:
            LimitError: too many follow already.
        """
        if len(self._followers) >= MOST_FOLLOWERS:
            raise LimitError(
                f"{MOST_FOLLOWERS} follow the events already, the most that one process tells; close one",
                limit="followers",
                retry_after_s=None,
            )
        follower = _Follower()
        self._followers.add(follower)
        try:
            yield self._events(follower)
        finally:
            self._followers.discard(follower)

    async def _events(self, follower: _Follower) -> AsyncIterator[Event]:
        while True:
            if follower.missed:
                missed, follower.missed = follower.missed, 0
                yield Event("missed", self._clock.now_s(), {"events": missed})
            while follower.events:
                yield follower.events.popleft()
            follower.more.clear()
            await follower.more.wait()
