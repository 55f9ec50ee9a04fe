"""The driver: plays a workload through Headgate's own admission against a provider's model, on a clock that jumps.

One rule: who goes when is decided by `runtime.admission` alone; here agents ask, wait, are answered and settle, as
`runtime.calls` would have them. It keeps no ledger: what came of it is counted in `tally`.
"""

import asyncio
import random
from collections.abc import Coroutine, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from headgate.adapters.config import Config, ConfiguredAccount
from headgate.adapters.memory import MemoryLevelStore
from headgate.core.amounts import Amounts, Dimension
from headgate.core.errors import LimitError
from headgate.core.limits import Limit, Rate
from headgate.core.scheduling import Scheduling, Standing
from headgate.core.scopes import Scopes, fit
from headgate.core.usage import CHARGES
from headgate.ports import Prices
from headgate.runtime.admission import Admission
from headgate.runtime.lanes import Ticket
from headgate.runtime.reservations import Reservations
from headgate.runtime.rules import Rules
from headgate.runtime.streaming import DRAWS, LEAST_DRAWN_TOKENS
from headgate.sim.foresight import Foreseen, Foresight
from headgate.sim.processes import Play, Processes, at_once
from headgate.sim.provider import CACHE_LIFE_S, Caches, Meters, Pace, Pool, Prompt, refusal
from headgate.sim.tally import Sampler, Tally
from headgate.sim.workload import Actor, Program, Round, Workload
from headgate.testing.virtual_time import VirtualClock

__all__ = ["Played", "Stage", "play"]

RUN = "simulated"
LEASE_S = 86_400.0
"""Longer than any call: a living process renews its leases, and here none dies."""

MOST_WAITING = 1_000_000
LEAST_AWAY_S = 1.0
"""An agent whose call was refused begins its next program after `retry_after` and never sooner than this."""

RETRY_SPREAD = 0.1

_INPUT: tuple[Dimension, ...] = ("input_tokens",)
_REFUSED = Amounts(requests=1)


@dataclass(frozen=True, slots=True)
class Stage:
    """All that a workload is played with.

    `cache_boost`: calls tell until when their caches live. `predicts_cache`: what a warm cache has is not held as
    input. `provider_scale` is what the account really enforces, as a part of what is configured. `one_model`: what a
    recording says of models is left out.
    """

    config: Config
    account: ConfiguredAccount
    model: str
    prices: Prices
    scheduling: Scheduling
    pace: Pace = field(default_factory=Pace)
    cache_life_s: float = CACHE_LIFE_S
    provider_scale: float = 1.0
    max_wait_s: float = 600.0
    cache_boost: bool = True
    predicts_cache: bool = True
    one_model: bool = False
    seed: int = 0
    step_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a workload under one policy."""

    tally: Tally
    meters: Meters
    sampler: Sampler
    took_s: float


@dataclass(frozen=True, slots=True)
class _Standpoint:
    """What all calls of a program have in common."""

    program: Program
    scopes: Scopes
    model: str
    limits: tuple[Limit, ...]
    pool: Pool
    tells_input: bool
    sharer: str
    standing: Standing
    most_held_output: int


async def play(workload: Workload, stage: Stage) -> Played:
    """Play a workload on the running loop, which has to be one of virtual time.

    Raises:
        CallerError: a call can never be admitted, or a limit on money meets a model without a price.
    """
    return await _Driver(workload, stage).play()


class _Driver:
    def __init__(self, workload: Workload, stage: Stage) -> None:
        self.workload, self.stage = workload, stage
        self.loop = asyncio.get_running_loop()
        self.clock = VirtualClock(self.loop)
        self.epoch_s = self.clock.now_s() - self.loop.time()
        self.store = MemoryLevelStore()
        self.rules = Rules(stage.config.limits)
        reservations = Reservations(self.store, self.clock, "simulation", lease_s=LEASE_S)
        self.admission = Admission(
            self.store, reservations, self.clock, scheduling=stage.scheduling, most_waiting=MOST_WAITING
        )
        self.dialect = stage.account.account.dialect
        self.charge = CHARGES[self.dialect]
        priced = any(rule.template.dimension == "micro_usd" for rule in stage.config.limits)
        self.foresight = Foresight(
            self.dialect,
            stage.prices if priced else None,
            predicts_cache=stage.predicts_cache,
            cache_boost=stage.cache_boost,
        )
        if any(rule.template.holds_likely for rule in stage.config.limits):
            self.foresight.keep_longest()
        self.caches = Caches(stage.cache_life_s)
        self.meters = Meters()
        self.pools: dict[tuple[Limit, ...], Pool] = {}
        self.keys = {key.name: key for key in stage.config.keys}
        self.tally = Tally()
        self.sampler = Sampler(self.store, self.meters, self.tally, stage.step_s)
        self.chooser = random.Random(f"{stage.seed}/retries")  # noqa: S311 - jitter that can be repeated, not a secret
        self.processes = Processes(self.loop)
        self.calls = 0

    async def play(self) -> Played:
        """Let every actor work, until all is done or the workload's time is over."""
        started_s = self.loop.time()
        sampling = asyncio.create_task(self.sampler.sample(self.clock))
        self.processes.start(self._begin(self.workload.actors()))
        try:
            await self.processes.ended(within_s=self.workload.ends_s)
            ended_s = self.loop.time()
            self.tally.break_off(ended_s)
            await self.sampler.take(self.clock)
        finally:
            self.processes.break_off()
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            await self.admission.drain()
        return Played(self.tally, self.meters, self.sampler, ended_s - started_s)

    def _begin(self, actors: Iterable[Actor]) -> Play[None]:
        for actor in actors:
            due_s = actor.starts_s - self.loop.time()
            if due_s > 0:
                yield due_s
            self.processes.start(self._act(actor))

    def _act(self, actor: Actor) -> Play[None]:
        away_s: float | None = None
        for program in actor.programs:
            if away_s is not None:
                yield max(LEAST_AWAY_S, away_s)
            away_s = yield from self._program(program)

    def _program(self, program: Program) -> Play[float | None]:
        """Play a program; give how long its agent stays away when it was given up, None when it was done."""
        stand = self._standpoint(program)
        time, tally = self.loop.time, self.tally
        began_s: float | None = None
        uncached = 0
        for asked in program.rounds:
            pause_s = max(asked.pause_s, asked.at_s - time())
            if pause_s > 0:
                yield pause_s
            if began_s is None:
                began_s = time()
                tally.programs_begun += 1
            try:
                uncached += yield from self._call(asked, stand)
            except LimitError as refused:
                tally.programs_given_up += 1
                return refused.retry_after_s or 0.0
        tally.program_done(time() - (began_s or 0.0), uncached, interactive=program.interactive)
        return None

    def _call(self, asked: Round, stand: _Standpoint) -> Play[int]:
        """Carry one call; give the input that was not in the cache."""
        self.calls += 1
        call, attempt, time = self.calls, 1, self.loop.time
        came_s = time()
        deadline_s = self.epoch_s + came_s + self.stage.max_wait_s
        work = asked.prompt_tokens - asked.known_tokens + asked.output_tokens
        self.tally.came(call, stand.sharer, work, came_s, interactive=stand.program.interactive)
        while True:
            foreseen, ticket = self._ask(f"{call}.{attempt}", asked, stand, deadline_s)
            yield from self._admitted(ticket, call)
            prompt = self._prompt(asked, stand)
            reserved = max(asked.max_output_tokens, asked.prompt_tokens) if stand.pool.tokens else 0
            retry_s = refusal(stand.pool, prompt.uncached_tokens, reserved, time(), waiting=self.meters.waiting > 0)
            if retry_s is None:
                break
            yield self._turned_away(ticket, call, retry_s, deadline_s)
            attempt += 1
        self.tally.taken(call, time())
        usage = prompt.usage(asked.output_tokens, self.dialect)
        if asked.recorded is not None:
            usage = asked.recorded._replace(output_tokens=asked.output_tokens)
        sent_s = self.epoch_s + time()
        cost = self.stage.prices.cost(stand.model, usage, sent_s).micro_usd
        actual = self.charge(usage, cost)
        yield from self._served(asked, stand, prompt, ticket, actual)
        self.foresight.learn(foreseen.size, usage, sent_s)
        if self.dialect == "openai":  # what was reserved at the start is not given back
            actual = actual._replace(tokens=max(actual.tokens, ticket.asked.expected.tokens))
        at_once(self.admission.settle(ticket.attempt, stand.limits, actual))
        self.tally.served_call(call, usage, cost)
        return prompt.uncached_tokens

    def _ask(self, attempt: str, asked: Round, stand: _Standpoint, deadline_s: float) -> tuple[Foreseen, Ticket]:
        now_s = self.epoch_s + self.loop.time()
        program = stand.program
        foreseen = self.foresight.of(asked, program.session, program.agent, stand.model, stand.standing, now_s)
        return foreseen, Ticket(
            attempt, stand.limits, foreseen.asked, stand.scopes, stand.model, now_s, deadline_s, foreseen.standing
        )

    def _admitted(self, ticket: Ticket, call: int) -> Play[None]:
        meters, time = self.meters, self.loop.time
        meters.enters(time())
        try:
            yield from _through(self.admission.admit(ticket))
        except LimitError:
            self.tally.refused_call(call, time())
            raise
        finally:
            meters.leaves(time())

    def _turned_away(self, ticket: Ticket, call: int, retry_s: float, deadline_s: float) -> float:
        """Take in a 429: settle the attempt, and give when it comes again; raises LimitError when that is too late.

        `retry-after` is kept in full, and spread by up to a tenth so that those who were refused together do not come
        back as one. The product closes the lane for as long; here nothing is learned, and each waits for itself.
        """
        self.tally.answered_429 += 1
        at_once(self.admission.settle(ticket.attempt, ticket.limits, _REFUSED))
        delay_s = retry_s * (1 + RETRY_SPREAD * self.chooser.random())
        if delay_s > deadline_s - self.epoch_s - self.loop.time():
            self.tally.refused_call(call, self.loop.time())
            raise LimitError("the provider refused it for too long", limit="", retry_after_s=retry_s)
        return delay_s

    def _served(self, asked: Round, stand: _Standpoint, prompt: Prompt, ticket: Ticket, actual: Amounts) -> Play[None]:
        """Let the provider answer: input is charged and told at once, output flows and is drawn in parts."""
        pace, time, pool, limits = self.stage.pace, self.loop.time, stand.pool, stand.limits
        pool.charge(prompt.uncached_tokens, asked)
        if pace.first_token_s:
            yield pace.first_token_s
        self.caches.write(stand.program.session, asked, time())
        if stand.tells_input:
            at_once(self.admission.settle(ticket.attempt, limits, actual, _INPUT))
        pool.flow(pace.tokens_per_second, time(), waiting=self.meters.waiting > 0)
        try:
            produced = 0
            for tokens in self._draws(ticket.asked.expected.output_tokens, stand, asked.output_tokens):
                yield (tokens - produced) / pace.tokens_per_second
                at_once(self.admission.draw(ticket.attempt, limits, ticket.asked, Amounts(output_tokens=tokens)))
                produced = tokens
            yield (asked.output_tokens - produced) / pace.tokens_per_second
        finally:
            pool.flow(-pace.tokens_per_second, time(), waiting=self.meters.waiting > 0)

    def _draws(self, held_tokens: int, stand: _Standpoint, output_tokens: int) -> range:
        """Give how much output there is when a part of the hold on it is drawn, as `runtime.streaming` has it."""
        if self.dialect != "anthropic":
            return range(0)
        held_tokens = min(held_tokens, stand.most_held_output)
        part_tokens = max(LEAST_DRAWN_TOKENS, held_tokens // DRAWS)
        return range(part_tokens, min(held_tokens, output_tokens), part_tokens)

    def _prompt(self, asked: Round, stand: _Standpoint) -> Prompt:
        recorded = asked.recorded
        if recorded is not None:
            return Prompt(recorded.cache_read_tokens, recorded.prompt_tokens - recorded.cache_read_tokens)
        return self.caches.read(stand.program.session, asked, self.loop.time())

    def _standpoint(self, program: Program) -> _Standpoint:
        stage, key = self.stage, self.keys.get(program.key or "")
        scopes = Scopes(
            account=stage.account.account.name,
            key=program.key,
            team=None if key is None else key.team,
            run=RUN,
            agent=program.agent,
            session=program.session,
            tags=() if key is None else key.tags,
        )
        model = stage.model if stage.one_model or program.model is None else program.model
        limits = self.rules.limits_for(fit(scopes), model)
        pool = self.pools.get(limits)
        if pool is None:
            pool = self.pools[limits] = Pool(limits, self.meters, stage.provider_scale)
            self.sampler.follow(limits)
        return _Standpoint(
            program,
            fit(scopes),
            model,
            limits,
            pool,
            any(limit.dimension == "input_tokens" for limit in limits),
            stage.scheduling.sharer_of(scopes)[0],
            Standing(0 if key is None else key.priority, program.interactive or (key is not None and key.interactive)),
            _most_held_output(limits),
        )


def _most_held_output(limits: Iterable[Limit]) -> int:
    rates = [limit for limit in limits if isinstance(limit, Rate) and limit.dimension == "output_tokens"]
    return min((limit.most_held for limit in rates), default=0)


def _through(waiting: Coroutine[Any, Any, object]) -> Generator[asyncio.Future[None], None, None]:
    """Run a coroutine inside a process: what it waits for, the process waits for."""
    yield from waiting.__await__()
