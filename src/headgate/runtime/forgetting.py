"""Forgetting: levels that say nothing any more leave the store, so that not every session stays for ever.

One rule: what is dropped must read like what never was; so a lifetime's level stays, and a hold does. It works through
the store in small pieces, so that no call waits for it; when it begins is the manager's affair.
"""

import asyncio

from headgate.core.instants import to_ns
from headgate.core.spans import Lifetime
from headgate.ports import Clock, LevelStore, Record, SaysNothing
from headgate.runtime.announced import PREFIX as ANNOUNCED_PREFIX
from headgate.runtime.reservations import HOLD_PREFIX
from headgate.runtime.rules import Rules

IDLE_S = 3_600.0
"""How long a level must have said nothing: a clock that steps back by less does not give a spent window anew."""

UNKNOWN_S = 40 * 86_400.0
"""How long a level that no limit keeps here must be untouched (another process may have the limit): longer than the
longest window that resets, a month of 31 days."""

PIECE = 100
"""Records looked at in one transaction: 1.6 ms."""

PAUSE_S = 0.05
MOST_PIECES = 100_000
"""Ten million records a round; the next round goes on where this one ended."""

_FOR_EVER = f" {Lifetime().name}"


async def forget_idle(store: LevelStore, rules: Rules, clock: Clock) -> None:
    """Look at every record once and drop the levels that say nothing."""
    for _ in range(MOST_PIECES):
        if await store.forget(_says_nothing(rules, clock.now_s()), PIECE):
            break
        await asyncio.sleep(PAUSE_S)


def _says_nothing(rules: Rules, now_s: float) -> SaysNothing:
    idle_ns = to_ns(now_s - IDLE_S)

    def says_nothing(name: str, record: Record, untouched_s: float) -> bool:
        if name.startswith((HOLD_PREFIX, ANNOUNCED_PREFIX)) or name.endswith(_FOR_EVER):
            return False
        keepers = rules.named((name,))
        return keepers[0].idle_from_ns(record) <= idle_ns if keepers else untouched_s > UNKNOWN_S

    return says_nothing
