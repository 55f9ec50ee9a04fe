"""The same workload through `runtime.manager` itself: real tasks, rows and contexts before the simulator's providers.

One rule: it shares the providers' models with the simulator and nothing of how a call is carried.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from headgate.adapters.config import Config
from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.core.errors import LimitError, ProviderError
from headgate.core.notices import Notices
from headgate.core.retries import Failure, is_timeout
from headgate.core.scheduling import Scheduling, Standing
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.core.warm_up import Mark
from headgate.ports import Prices, Request
from headgate.runtime.grants import Call
from headgate.runtime.manager import Manager, Parts
from headgate.runtime.rules import Rules
from headgate.sim.buckets import Meters, Pool
from headgate.sim.driver import LEASE_S, LEAST_AWAY_S, MOST_AWAY_S, RUN
from headgate.sim.foresight import BYTES_PER_TOKEN
from headgate.sim.provider import ModelledProvider, Pace, Truth, reserved_tokens
from headgate.sim.workload import Actor, Program, Round, Workload
from headgate.testing.virtual_time import VirtualClock, run


@dataclass
class Said:
    """What a provider's answer says by now."""

    status: int
    failure: Failure | None
    head: Notices
    usage: Usage | None = None
    output_seen_tokens: int = 0
    headers = ()
    model_served = None
    provider_request = None
    pieces: AsyncIterator[bytes] | None = None

    def notices(self, now_s: float) -> Notices:
        return self.head

    def __aiter__(self) -> AsyncIterator[bytes]:
        assert self.pieces is not None
        return self.pieces


@dataclass
class Asking:
    """A call on its way: what it asks, and under which limits."""

    asked: Round
    program: Program
    model: str
    dialect: str


@dataclass
class Provider:
    """A modelled provider as `ports.Provider`: it answers token by token."""

    model: ModelledProvider
    rules: Rules
    meters: Meters
    pace: Pace
    asking: dict[str, Asking] = field(default_factory=dict)
    pools: dict[object, Pool] = field(default_factory=dict)

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[Said]:
        asking = self.asking[request.call_id.rpartition(".")[0]]
        loop, asked, program = asyncio.get_running_loop(), asking.asked, asking.program
        scopes = Scopes(account=self.model.account, run=RUN, agent=program.agent, session=program.session)
        limits = self.rules.limits_for(scopes, asking.model)
        pool = self.pools.setdefault(limits, self.model.pool(limits))
        prompt = self.model.caches.read(program.session, asked, loop.time(), program.prefix)
        failure = self.model.fault(loop.time())
        if failure is None:
            reserved = reserved_tokens(pool, asked)
            failure = self.model.refusal(pool, prompt.uncached_tokens, reserved, loop.time())
        if failure is not None and failure.kind == "connection":
            if is_timeout(failure):
                await asyncio.sleep(600.0)
            raise ProviderError(failure.error_type, failure)
        if failure is not None:
            head = self.model.head(pool, failure, loop.time())
            yield Said(head.status, failure, head.notices(0.0))
            return
        pool.charge(prompt.uncached_tokens, asked)
        await asyncio.sleep(self.pace.first_token_s)
        self.model.caches.write(program.session, asked, loop.time(), program.prefix)
        said = Said(200, None, self.model.head(pool, None, loop.time()).notices(0.0))
        usage = prompt.usage(asked.output_tokens, asking.dialect)
        said.pieces = self._pieces(said, usage, pool, streamed=asking.dialect == "anthropic")
        yield said

    async def _pieces(self, said: Said, usage: Usage, pool: Pool, *, streamed: bool) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        if streamed:
            said.usage = usage._replace(output_tokens=0, reported=False)
            yield b"head"
        pool.flow(self.pace.tokens_per_second, loop.time(), waiting=False)
        begun_s = loop.time()
        for seen in range(1, usage.output_tokens):
            await asyncio.sleep(begun_s + seen / self.pace.tokens_per_second - loop.time())
            if streamed:
                said.output_seen_tokens = seen
            yield b"token"
        await asyncio.sleep(begun_s + usage.output_tokens / self.pace.tokens_per_second - loop.time())
        pool.flow(-self.pace.tokens_per_second, loop.time(), waiting=False)
        said.usage = usage
        yield b"end"

    async def look_up(self, call_id: str) -> None:
        raise NotImplementedError


@dataclass
class Life:
    """What both sides are played with."""

    workload: Workload
    config: Config
    prices: Prices
    model: str
    truth: Truth
    pace: Pace
    scheduling: Scheduling
    max_wait_s: float


def live(life: Life) -> MemoryLedgerStore:
    """Let agents call through the real thing; give the ledger."""
    ledger = MemoryLedgerStore()

    async def main() -> None:
        await _Living(life, ledger).live()

    run(main(), max_virtual_s=1e7)
    return ledger


class _Living:
    def __init__(self, life: Life, ledger: MemoryLedgerStore) -> None:
        self.life, self.loop = life, asyncio.get_running_loop()
        clock = VirtualClock(self.loop)
        config, accounts = life.config, [each.account for each in life.config.accounts]
        self.dialect = accounts[0].dialect
        meters, chooser = Meters(), random.Random("0/faults")
        self.providers = {
            account.name: Provider(
                ModelledProvider(
                    account.name, life.truth, meters, epoch_s=clock.now_s(), cache_life_s=300.0, chooser=chooser
                ),
                Rules(config.limits),
                meters,
                life.pace,
            )
            for account in accounts
        }
        self.manager = Manager(
            Parts(
                levels=MemoryLevelStore(),
                ledger=ledger,
                keys=MemoryKeyStore(),
                prices=life.prices,
                clock=clock,
                owner="live",
                owner_is_alive=lambda _owner: True,
                accounts=accounts,
                providers=self.providers,
                rules=config.limits,
                rules_of_key=lambda _key: (),
                retries=config.retries,
                scheduling=life.scheduling,
                chooser=random.Random("0/retries"),
                lease_s=LEASE_S,
            )
        )
        self.numbers = count(1)

    async def live(self) -> None:
        await self.manager.start()
        await asyncio.gather(*(self._act(actor) for actor in self.life.workload.actors()))
        await self.manager.close()

    async def _act(self, actor: Actor) -> None:
        await asyncio.sleep(actor.starts_s)
        away_s, least_s = None, LEAST_AWAY_S
        for program in actor.programs:
            if away_s is not None:
                await asyncio.sleep(max(least_s, away_s))
                least_s = min(MOST_AWAY_S, 2 * least_s)
            away_s = await self._work(program)
            if away_s is None:
                least_s = LEAST_AWAY_S

    async def _work(self, program: Program) -> float | None:
        for asked in program.rounds:
            pause_s = max(asked.pause_s, asked.at_s - self.loop.time())
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            try:
                await self._carry(asked, program)
            except LimitError as refused:
                return refused.retry_after_s or 0.0
            except ProviderError as failed:
                return failed.failure.retry_after_s or 0.0
        return None

    async def _carry(self, asked: Round, program: Program) -> None:
        prefix, life = program.prefix, self.life
        marks = None
        if prefix is not None and not asked.known_tokens:
            mark = Mark(hash(prefix.name), min(prefix.tokens, asked.prompt_tokens) * BYTES_PER_TOKEN, 300.0)
            marks = lambda: (mark,)  # noqa: E731 - as a call has it
        call = Call(
            life.model,
            self.dialect,
            text_bytes=asked.prompt_tokens * BYTES_PER_TOKEN,
            max_output_tokens=asked.max_output_tokens,
            cache_write="5m",
            scopes=Scopes(run=RUN, agent=program.agent, session=program.session),
            standing=Standing(0, program.interactive),
            max_wait_s=life.max_wait_s,
            prompt_marks=marks,
            id=str(next(self.numbers)),
        )
        for provider in self.providers.values():
            provider.asking[call.id] = Asking(asked, program, life.model, self.dialect)
        async with self.manager.carry(call, Request("POST", "/", (), b"", call.id)) as exchange:
            failure = exchange.answer.failure
            if failure is not None and failure.kind == "limited":
                raise LimitError("refused", limit="", retry_after_s=failure.retry_after_s)
            if failure is not None:
                raise ProviderError(failure.error_type, failure)
            async for _ in self.manager.read(exchange):
                pass
