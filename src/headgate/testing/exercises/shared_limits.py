"""Limits that many threads or processes share: together they never exceed them, and nothing is lost.

One rule: the workers stop only when the core says that there is no room, so what they were given must be all there is.
`spend_all` is what one worker does; run it in as many threads or processes as the store allows, and `check_all_spent`
on what they report.
"""

import asyncio
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from headgate.core import quota
from headgate.core.amounts import Amounts, Demand
from headgate.core.limits import Gauge, Level, Limit, Rate, Window
from headgate.core.quota import Admitted, Reservation
from headgate.core.spans import Lifetime
from headgate.ports import LevelStore, Record, Step
from headgate.testing.exercises import Exercise, OpenStore

NOW_S = 1_750_000_000.0
"""Time stands still: nothing refills, so what there is can be counted."""

CALLS = 240
THREADS = 8

MOST_TRIES = 20_000
"""A worker that has tried so often waits for room that a worker which died has taken with it."""

_SLOTS = Gauge("run:shared * slots gauge", "run:shared", "slots", 5)
_REQUESTS = Window("run:shared * requests lifetime", "run:shared", "requests", CALLS, Lifetime())
_TOKENS = Rate("run:shared * output_tokens rate-60s", "run:shared", "output_tokens", 60, 60, CALLS * 100)
_MONEY = Window("run:shared * micro_usd lifetime", "run:shared", "micro_usd", CALLS * 10 + 5, Lifetime())
LIMITS: tuple[Limit, ...] = (_SLOTS, _REQUESTS, _TOKENS, _MONEY)

_ASKED = Demand(Amounts(1, 0, 100, 0, 10, 1), Amounts(1, 0, 100, 0, 15, 1))
_USED = Amounts(1, 0, 100, 0, 10, 1)


@dataclass(frozen=True, slots=True)
class Spent:
    """What one worker was given, and the most that it saw held or used of each limit."""

    admitted: int
    most_in_use: dict[str, int]


async def spend_all(store: LevelStore) -> Spent:
    """Admit and settle until there is nothing left; a call holds more money than it uses, and gives it back."""
    names = [limit.name for limit in LIMITS]
    most_in_use = dict.fromkeys(names, 0)
    admitted = 0
    for _ in range(MOST_TRIES):
        outcome = await store.transact(names, _take)
        if isinstance(outcome, Admitted):
            for limit in LIMITS:
                reading = quota.read(limit, outcome.levels, NOW_S)
                most_in_use[limit.name] = max(most_in_use[limit.name], reading.used + reading.held)
            await asyncio.sleep(0)
            await store.transact(names, _giving_back(outcome.reservation))
            admitted += 1
        elif isinstance(outcome, quota.Refused):  # lifetime budgets have no more for anybody
            return Spent(admitted, most_in_use)
        else:
            await asyncio.sleep(0)
    raise AssertionError(f"no room after {MOST_TRIES:,} tries, {admitted} of them admitted: somebody holds it for ever")


async def check_all_spent(store: LevelStore, spent: Sequence[Spent]) -> None:
    """Check what all workers together were given, and the levels they left."""
    assert sum(worker.admitted for worker in spent) == CALLS, [worker.admitted for worker in spent]
    for limit in LIMITS:
        most = max(worker.most_in_use[limit.name] for worker in spent)
        bound = limit.burst if isinstance(limit, Rate) else limit.amount
        assert most <= bound, f"{limit.name}: {most} in use, {bound} allowed"
    levels = _levels(await store.transact([limit.name for limit in LIMITS], lambda found: ({}, dict(found))))
    left = {limit.dimension: quota.read(limit, levels, NOW_S)[:3] for limit in LIMITS}
    assert left == {
        "slots": (0, 0, 5),
        "requests": (CALLS, 0, 0),
        "output_tokens": (CALLS * 100, 0, 0),
        "micro_usd": (CALLS * 10, 0, 5),
    }, left


async def threads_together_spend_what_there_is(open_store: OpenStore[LevelStore]) -> None:
    """Each of 8 threads has a loop and a store of its own."""
    spent: list[Spent] = []
    failures: list[BaseException] = []

    async def work() -> None:
        async with open_store() as store:
            spent.append(await spend_all(store))

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - the exercise raises it, in its own thread
            failures.append(error)

    # Not asyncio.to_thread: its pool may have fewer threads than the exercise promises.
    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    switch_interval_s = sys.getswitchinterval()
    async with open_store() as store:
        sys.setswitchinterval(1e-6)  # a lock that is missing shows only when threads take turns inside a step
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)
        finally:
            sys.setswitchinterval(switch_interval_s)
        if failures:
            raise failures[0]
        await check_all_spent(store, spent)


async def tasks_together_spend_what_there_is(open_store: OpenStore[LevelStore]) -> None:
    """Many callers in one loop, over two stores."""
    async with open_store() as store, open_store() as other:
        workers = [spend_all(some) for some in (store, other) for _ in range(10)]
        await check_all_spent(store, await asyncio.gather(*workers))


SHARED_LIMIT_EXERCISES: tuple[Exercise[LevelStore], ...] = (
    tasks_together_spend_what_there_is,
    threads_together_spend_what_there_is,
)


def _take(found: Mapping[str, Record]) -> tuple[dict[str, Level], quota.Admitted | quota.Wait | quota.Refused]:
    outcome = quota.admit(LIMITS, _levels(found), _ASKED, NOW_S)
    return (outcome.levels if isinstance(outcome, Admitted) else {}), outcome


def _giving_back(reservation: Reservation) -> Step[None]:
    def step(found: Mapping[str, Record]) -> tuple[dict[str, Level], None]:
        changed, _rest = quota.settle(LIMITS, _levels(found), reservation, _USED, NOW_S)
        return changed, None

    return step


def _levels(records: Mapping[str, Record]) -> Mapping[str, Level]:
    # These exercises write levels only, and levels are whole numbers.
    return cast("Mapping[str, Level]", records)
