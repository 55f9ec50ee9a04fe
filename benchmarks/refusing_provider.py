"""A provider with one exact bucket of requests, in virtual time: what rows B6 and B7 are measured against.

One rule: the bucket is the simulated provider's own and shares no code with Headgate's; it says what it is asked to say
(`headers`: what is left; `waits`: for how long it refuses) and nothing else.
"""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.core.accounts import Account
from headgate.core.notices import NO_NOTICES, Notices, RateNotice
from headgate.core.retries import Failure
from headgate.core.usage import Usage
from headgate.ports import Clock, Fate, Request
from headgate.runtime.manager import Manager, Parts
from headgate.testing.provider.buckets import MINUTE_S, Bucket
from headgate.testing.scripted import FlatPrices, Reply, ScriptedAnswer
from headgate.testing.virtual_time import VirtualClock

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
MODEL = "claude-sonnet-4-5"


class RefusingProvider:
    def __init__(
        self,
        rate: int,
        *,
        answer_s: float,
        headers: bool = False,
        waits: bool = True,
        depth_s: float = MINUTE_S,
        noise: float = 0.0,
        transit_s: float = 0.0,
    ) -> None:
        """`depth_s` is how much of its rate the bucket holds, `noise` the sigma of their duration (lognormal)."""
        self.depth_s = depth_s
        self.bucket = self._bucket(rate)
        self.answer_s = answer_s
        self.noise = noise
        self.transit_s = transit_s
        self.chooser = random.Random(11)
        self.headers = headers
        self.waits = waits
        self.refused = 0
        self.served = 0

    def change(self, rate: int) -> None:
        """Enforce another rate from now on, with as much left as there is, but no more than fits."""
        now_s = asyncio.get_running_loop().time()
        left = self.bucket.level(now_s)
        self.bucket = self._bucket(rate)
        self.bucket.charge(max(0, int(self.bucket.capacity - left)), now_s)

    def _bucket(self, rate: int) -> Bucket:
        return Bucket("requests", rate, rate * self.depth_s / MINUTE_S, asyncio.get_running_loop().time())

    async def ask(self) -> float | None:
        """Answer a call; give None, or for how long it is refused."""
        if self.transit_s:
            await asyncio.sleep(self.transit_s * self.chooser.random())
        now_s = asyncio.get_running_loop().time()
        wait_s = self.bucket.wait_s(1, now_s)
        if wait_s > 0:
            self.refused += 1
            return float(max(1, math.ceil(wait_s)))
        self.bucket.charge(1, now_s)
        self.served += 1
        await asyncio.sleep(self.answer_s * math.exp(self.noise * self.chooser.gauss(0, 1)))
        return None

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[ScriptedAnswer]:
        del request
        wait_s = await self.ask()
        notices = NO_NOTICES
        if self.headers:
            now_s = asyncio.get_running_loop().time()
            left = max(0, int(self.bucket.level(now_s)))
            full_s = math.ceil(VirtualClock().now_s() + self.bucket.full_in_s(now_s))  # told in whole seconds
            notices = Notices((RateNotice("requests", self.bucket.rate_per_period, left, full_s),))
        if wait_s is None:
            yield ScriptedAnswer(Reply(Usage(100, output_tokens=50), pieces=1, notices=notices), 200, None)
            return
        failure = Failure("limited", "rate_limit_error", 429, retry_after_s=wait_s if self.waits else None)
        yield ScriptedAnswer(Reply(failure=failure, notices=notices), 429, failure)

    async def look_up(self, call_id: str) -> Fate | None:
        del call_id
        return None


@asynccontextmanager
async def managed(provider: RefusingProvider, clock: Clock) -> AsyncIterator[Manager]:
    """Run a manager that is told no limit, in memory."""
    manager = Manager(
        Parts(
            levels=MemoryLevelStore(),
            ledger=MemoryLedgerStore(),
            keys=MemoryKeyStore(),
            prices=FlatPrices(),
            clock=clock,
            owner="bench:1:2:3",
            owner_is_alive=lambda _owner: True,
            accounts=[Account("main", "anthropic")],
            providers={"main": provider},
            rules=(),
            rules_of_key=lambda _key: (),
            chooser=random.Random(7),
        )
    )
    await manager.start()
    try:
        yield manager
    finally:
        await manager.close()
