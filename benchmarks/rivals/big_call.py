"""Row B3's work, and its rivals as processes: python big_call.py RIVAL PIECE ROUNDS, one JSON line per round.

20 loops take small pieces of one limit as fast as it gives them; when it is empty comes one call of 90 % of it. The
loops go on for BUSY_S more, or until that is through. Imports nothing of Headgate, so any Python that has the rival can
run it.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

Acquire = Callable[[int], Awaitable[None]]

UNITS_PER_S = 1_000
BIG = 900
LOOPS = 20
EMPTY_AFTER_S = 1.0
BUSY_S = 5.9

IDEAL_S = BIG / UNITS_PER_S
"""The bucket is empty, and refills at the rate: nothing can let the big call in earlier. First in, first out, it comes
behind the small calls that wait already, one of each loop: with pieces of 2 units these are 0.04 s, with 10 0.2 s."""


async def round_of(acquire: Acquire, piece: int) -> dict[str, float]:
    """Give the big call's wait, and the share of the limit that all calls together used until it was through."""
    loop = asyncio.get_running_loop()
    taken = 0
    stop_s = loop.time() + EMPTY_AFTER_S + BUSY_S

    async def take_small() -> None:
        nonlocal taken
        while loop.time() < stop_s:
            await acquire(piece)
            taken += piece

    loops = [asyncio.create_task(take_small()) for _ in range(LOOPS)]
    await asyncio.sleep(EMPTY_AFTER_S)
    taken_before, start_s = taken, time.perf_counter()
    await acquire(BIG)
    wait_s = time.perf_counter() - start_s
    used = (taken - taken_before + BIG) / (wait_s * UNITS_PER_S)
    stop_s = 0.0
    await asyncio.gather(*loops)
    return {"wait_s": round(wait_s, 3), "used": round(used, 3)}


def aiolimiter() -> Acquire:
    from aiolimiter import AsyncLimiter  # noqa: PLC0415 - one rival a process

    return AsyncLimiter(UNITS_PER_S, 1).acquire


def token_throttle() -> Acquire:
    from token_throttle import (  # noqa: PLC0415 - one rival a process
        MemoryBackendBuilder,
        PerModelConfig,
        Quota,
        RateLimiter,
        UsageQuotas,
    )

    quotas = UsageQuotas([Quota(metric="tokens", limit=UNITS_PER_S, per_seconds=1)])
    limiter = RateLimiter(PerModelConfig(quotas=quotas), backend=MemoryBackendBuilder())

    async def acquire(units: int) -> None:
        reservation = await limiter.acquire_capacity({"tokens": units}, model="m")
        await limiter.refund_capacity({"tokens": units}, reservation)  # it used just what it reserved

    return acquire


RIVALS = {"aiolimiter": aiolimiter, "token-throttle": token_throttle}


async def main() -> None:
    rival, piece, rounds = RIVALS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3])
    for _ in range(rounds):
        print(json.dumps(await round_of(rival(), piece)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
