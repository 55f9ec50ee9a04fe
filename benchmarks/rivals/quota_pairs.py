"""Row B1's rivals as a process: python quota_pairs.py RIVAL FILE, one line per round in and one out.

A line in is a number of reserve+settle pairs and of callers; the line out is the seconds they took, by the clock and of
the CPU. Imports nothing of Headgate, so any Python that has the rival can run it.
"""

import asyncio
import sys
import time

LIMITS = {"requests": 10**9, "input_tokens": 10**12, "output_tokens": 10**12, "micro_usd": 10**12}
RESERVED = {"requests": 1, "input_tokens": 1000, "output_tokens": 500, "micro_usd": 300}
USED = {"requests": 1, "input_tokens": 900, "output_tokens": 400, "micro_usd": 250}


class TokenThrottle:
    def __init__(self, backend):
        from token_throttle import PerModelConfig, Quota, RateLimiter, UsageQuotas  # noqa: PLC0415 - one rival a process

        quotas = [Quota(metric=metric, limit=limit, per_seconds=60) for metric, limit in LIMITS.items()]
        self.limiter = RateLimiter(PerModelConfig(quotas=UsageQuotas(quotas)), backend=backend)

    async def pair(self):
        reservation = await self.limiter.acquire_capacity(RESERVED, model="m")
        await self.limiter.refund_capacity(USED, reservation)


class Limits:
    """`limits` cannot reserve and settle: four hits, one for each dimension, each atomic by itself."""

    def __init__(self):
        from limits import RateLimitItemPerMinute  # noqa: PLC0415 - one rival a process
        from limits.storage import MemoryStorage  # noqa: PLC0415 - one rival a process
        from limits.strategies import FixedWindowRateLimiter  # noqa: PLC0415 - one rival a process

        self.limiter = FixedWindowRateLimiter(MemoryStorage())
        self.items = [(RateLimitItemPerMinute(limit), metric) for metric, limit in LIMITS.items()]

    async def pair(self):
        for item, metric in self.items:
            assert self.limiter.hit(item, "account", metric, cost=RESERVED[metric])


def make(rival, path):
    if rival == "limits":
        return Limits()
    from token_throttle import MemoryBackendBuilder, SqliteBackendBuilder  # noqa: PLC0415 - one rival a process

    in_file = rival == "token-throttle-sqlite"
    return TokenThrottle(SqliteBackendBuilder(path, key_prefix="bench") if in_file else MemoryBackendBuilder())


async def round_s(rival, pairs, callers):
    async def work():
        for _ in range(pairs // callers):
            await rival.pair()

    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work() for _ in range(callers)))
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


async def main():
    rival = make(*sys.argv[1:3])
    await round_s(rival, 20, 1)
    print("ready", flush=True)
    for line in sys.stdin:
        pairs, callers = map(int, line.split())
        print(*await round_s(rival, pairs, callers), flush=True)


def new_loop():
    try:
        import uvloop  # noqa: PLC0415 - not everywhere
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
