"""A manager in front of the simulated provider, in virtual time: agents that call in a loop, and what came of it."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.accounts import Account
from headgate.core.errors import HeadgateError
from headgate.core.scopes import LimitRule
from headgate.core.usage import Dialect
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.runtime.manager import Manager, Parts
from headgate.testing.in_process import InProcess
from headgate.testing.provider import Latency, ModelLimits, ProviderSettings, SimulatedProvider
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import VirtualClock

MODEL = "claude-sonnet-4-5"
MODELS = {"anthropic": MODEL, "openai": "gpt-5-mini"}
ENDPOINTS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
LIMIT_HEADERS = (b"anthropic-ratelimit-", b"retry-after")


@dataclass
class LearningStage:
    manager: Manager
    simulated: SimulatedProvider
    levels: MemoryLevelStore
    clock: VirtualClock
    dialect: Dialect = "anthropic"
    failed: list[str] = field(default_factory=list)
    done: int = 0
    number: Iterable[int] = field(default_factory=itertools.count)

    async def ask(self, *, prompt_bytes: int = 400, max_wait_s: float = 600.0, **facts: Any) -> int:
        model, endpoint = MODELS[self.dialect], ENDPOINTS[self.dialect]
        body = {"model": model, "max_tokens": 200, "messages": [{"role": "user", "content": "x" * prompt_bytes}]}
        body["stream"] = facts.get("is_streamed", False)
        call = Call(model, self.dialect, text_bytes=prompt_bytes, max_output_tokens=200, max_wait_s=max_wait_s, **facts)
        request = Request("POST", endpoint, (), json.dumps(body).encode(), "")
        try:
            async with self.manager.carry(call, request) as exchange:
                async for _piece in self.manager.read(exchange):
                    pass
                status = exchange.answer.status
        except HeadgateError as error:
            self.failed.append(str(error))
            return 0
        self.done += status == 200
        if status != 200:
            self.failed.append(str(status))
        return status

    async def loops(self, agents: int, until_s: float, **facts: Any) -> None:
        """Let agents call, each one call after the other, until an instant of the loop's clock."""
        loop = asyncio.get_running_loop()

        async def agent() -> None:
            while (left_s := until_s - loop.time()) > 0:
                done, _late = await asyncio.wait([asyncio.create_task(self.ask(**facts))], timeout=left_s)
                for task in done:
                    if task.result() != 200:
                        await asyncio.sleep(1)

        await asyncio.gather(*[agent() for _ in range(agents)])

    def refused(self) -> int:
        return sum(self.simulated.usage()["total"]["refused_by"].values())

    def served(self, dimension: str = "requests") -> int:
        return sum(
            each["charged_total"] for each in self.simulated.usage()["buckets"] if each["dimension"] == dimension
        )

    def change(self, dimension: str, rate: int) -> None:
        """Change what the provider really enforces; nobody is told but by its headers."""
        for credential in self.simulated._service.credentials.all():
            for pool in credential._pools.values():
                for bucket in pool.buckets:
                    if bucket.dimension == dimension:
                        level = bucket.level(asyncio.get_running_loop().time())
                        bucket.rate_per_period, bucket.capacity = rate, float(rate)
                        bucket._level = min(level, float(rate))

    async def learned(self, dimension: str = "requests") -> Any:
        views = [view for view in await self.manager.limits() if view.dimension == dimension and view.learned]
        return views[0] if views else None


class Silent(SimulatedProvider):
    """Tells no limits but by refusing; without `waits` not even for how long."""

    waits = True

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        hidden = LIMIT_HEADERS[:1] if self.waits else LIMIT_HEADERS

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [each for each in message["headers"] if not each[0].startswith(hidden)],
                }
            await send(message)

        await super().__call__(scope, receive, tell)


@asynccontextmanager
async def open_learning_stage(
    *rules: LimitRule,
    kind: type[SimulatedProvider] = SimulatedProvider,
    levels: MemoryLevelStore | None = None,
    simulated: SimulatedProvider | None = None,
    key: str = "sk-test-0001",
    latency: Latency | None = None,
    overage: bool = False,
    owner: str = "here",
    dialect: Dialect = "anthropic",
    vendor: str = "",
    path: str = "",
    stores: tuple[Any, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **limits: Any,
) -> AsyncIterator[LearningStage]:
    clock = VirtualClock()
    if simulated is None:
        simulated = kind(
            ProviderSettings(
                limits=(ModelLimits(**limits),) if limits else (),
                latency=latency or Latency(0.5, 200.0, 0.2),
                mean_output_tokens=100,
                output_sigma=0.3,
                **(settings or {}),
            ),
            wall_s=clock.now_s,
        )
    at = VENDORS[vendor or dialect]
    levels, ledger = stores or (levels or MemoryLevelStore(), MemoryLedgerStore())
    manager = Manager(
        Parts(
            levels=levels,
            ledger=ledger,
            keys=MemoryKeyStore(),
            prices=FlatPrices(),
            clock=clock,
            owner=owner,
            owner_is_alive=lambda _owner: True,
            accounts=[Account("main", dialect, overage=overage, counting=at.counting)],
            providers={"main": AccountProvider("main", at, f"http://provider{path}", key, InProcess(simulated))},
            rules=rules,
            rules_of_key=lambda _key: (),
            chooser=Random(7),
        )
    )
    await manager.start()
    try:
        yield LearningStage(manager, simulated, levels, clock, dialect)
    finally:
        await manager.close()
