"""The driver: plays a workload through Headgate's own runtime against models of its providers, on a clock that jumps.

One rule: agents ask, wait, are answered and go on, and nothing here decides anything about them. It keeps no ledger:
what came of it is counted in `tally`.
"""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from headgate.adapters.config import Config, ConfiguredAccount
from headgate.adapters.memory import MemoryLevelStore
from headgate.core.accounts import accounts_for
from headgate.core.adaptive import Key, Learned
from headgate.core.errors import LimitError, ProviderError
from headgate.core.limits import Limit
from headgate.core.scheduling import Scheduling, Standing
from headgate.core.scopes import Scopes, fit
from headgate.core.usage import Dialect
from headgate.ports import Prices
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.admission import Admission
from headgate.runtime.health import Health
from headgate.runtime.learning import REFRESH_EVERY_S, Learning
from headgate.runtime.planning import Maintenance, MaintenanceRule, PlannedReservations
from headgate.runtime.reservations import Reservations
from headgate.runtime.rules import Rules
from headgate.runtime.sight import Sight
from headgate.runtime.warming import Warming
from headgate.runtime.wishes import Wishes
from headgate.sim.admitted import Admitted
from headgate.sim.buckets import Meters, Pool
from headgate.sim.calls import Calls
from headgate.sim.foresight import Unasked, estimator_of
from headgate.sim.parts import Parts, Place, Standpoint
from headgate.sim.processes import Play, Processes
from headgate.sim.provider import CACHE_LIFE_S, ModelledProvider, Pace, Truth
from headgate.sim.tally import Sampler, Tally
from headgate.sim.workload import Actor, Program, Workload
from headgate.testing.virtual_time import VirtualClock, VirtualTimeLoop

__all__ = ["Played", "Stage", "play"]

RUN = "simulated"
LEASE_S = 86_400.0
"""Longer than any call: a living process renews its leases, and here none dies."""

MOST_WAITING = 1_000_000
LEAST_AWAY_S = 1.0
MOST_AWAY_S = 60.0
"""An agent whose call was refused or failed begins its next program after `retry_after`, and never sooner than after
this, which doubles each time in a row."""


Looked = Callable[[float, float, int], None]
"""Hears at each look how much virtual time has passed, of about how much, and how many calls wait."""


@dataclass(frozen=True, slots=True)
class Stage:
    """All that a workload is played with.

    `cache_boost`: calls tell until when their caches live. `predicts_cache`: what a warm cache has is not held as
    input. `truth` is what the providers are really like. `model` None leaves the models to the workload, and takes
    `usual_model` where it names none.
    """

    config: Config
    usual_model: str
    prices: Prices
    scheduling: Scheduling
    model: str | None = None
    truth: Truth = field(default_factory=Truth)
    maintenance: tuple[MaintenanceRule, ...] = ()
    pace: Pace = field(default_factory=Pace)
    cache_life_s: float = CACHE_LIFE_S
    max_wait_s: float = 600.0
    cache_boost: bool = True
    predicts_cache: bool = True
    seed: int = 0
    looked: Looked | None = None
    step_s: float = 30.0

    @property
    def accounts(self) -> tuple[ConfiguredAccount, ...]:
        """The configured accounts."""
        return self.config.accounts


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a workload under one policy; `learned` is what was known of limits at the end."""

    tally: Tally
    meters: Meters
    sampler: Sampler
    took_s: float
    config: Config
    learned: dict[Key, Learned]


async def play(workload: Workload, stage: Stage) -> Played:
    """Play a workload on the running loop, which has to be one of virtual time.

    Raises:
        CallerError: a call can never be admitted, or a limit on money meets a model without a price.
    """
    return await _Driver(workload, stage).play()


class _Driver:
    def __init__(self, workload: Workload, stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.workload, self.stage, self.loop = workload, stage, loop
        clock = self.clock = VirtualClock(loop)
        epoch_s = clock.now_s() - loop.time()
        accounts = [each.account for each in stage.accounts]
        store, rules, self.meters, self.tally = MemoryLevelStore(), Rules(stage.config.limits), Meters(), Tally()
        planned, maintenance = PlannedReservations(store, clock), Maintenance(stage.maintenance, clock)
        reservations = Reservations(
            store,
            clock,
            "simulation",
            lease_s=LEASE_S,
            in_force=rules.in_force,
            met=rules.met,
            planned=planned,
            maintenance=maintenance,
            watches=len(accounts) > 1,
        )
        self.admission = Admission(store, reservations, clock, scheduling=stage.scheduling, most_waiting=MOST_WAITING)
        self.admitted = Admitted()
        self.learning = Learning(
            store=store,
            ledger=self.admitted,
            clock=clock,
            rules=rules,
            seen=reservations.seen,
            nudge=self.admission.nudge,
            planned=planned,
            accounts=accounts,
        )
        sight = Sight(
            reservations=reservations,
            rules=rules,
            planned=planned,
            maintenance=maintenance,
            lanes=self.admission.lanes,
            shares=self.learning.plan_shares,
            clock=clock,
        )
        self.admission.on_changed = sight.forget
        health = Health(clock)
        health.on_news = self.admission.moves.look_at
        self.pool = AccountPool(accounts, sight, health, clock)
        self.configured = Rules(stage.config.limits)
        """What the providers' own limits are taken from: nothing that is learned changes them."""
        chooser = random.Random(f"{stage.seed}/faults")  # noqa: S311 - draws that can be repeated, not a secret
        self.providers = {
            account.name: ModelledProvider(
                account.name,
                stage.truth,
                self.meters,
                epoch_s=epoch_s,
                cache_life_s=stage.cache_life_s,
                chooser=chooser,
            )
            for account in accounts
        }
        self.pools: dict[tuple[str, tuple[Limit, ...]], Pool] = {}
        self.keys = {key.name: key for key in stage.config.keys}
        self.sampler = Sampler(store, self.meters, self.tally)
        self.calls = Calls(self._parts(epoch_s, store, rules))
        self.processes = Processes(loop)
        self.stirred = asyncio.Event()
        """A call has come since nothing went on."""

    def _parts(self, epoch_s: float, store: MemoryLevelStore, rules: Rules) -> Parts:
        stage = self.stage
        estimator = estimator_of(predicts_cache=stage.predicts_cache, cache_boost=stage.cache_boost)
        if rules.hold_likely:
            estimator.keep_longest()
        priced = any(rule.template.dimension == "micro_usd" for rule in stage.config.limits)
        asked = stage.prices if priced or len(stage.accounts) > 1 else Unasked()
        return Parts(
            loop=self.loop,
            epoch_s=epoch_s,
            store=store,
            rules=rules,
            admission=self.admission,
            learning=self.learning,
            admitted=self.admitted,
            accounts=self.pool,
            warming=Warming(self.clock),
            wishes=Wishes(self.pool, estimator, asked, self.clock, rules.limits_for),
            estimator=estimator,
            prices=stage.prices,
            retries=stage.config.retries,
            timeouts=stage.config.timeouts,
            chooser=random.Random(f"{stage.seed}/retries"),  # noqa: S311 - jitter that can be repeated, not a secret
            providers=self.providers,
            meters=self.meters,
            tally=self.tally,
            pace=stage.pace,
            max_wait_s=stage.max_wait_s,
            warm_up=stage.scheduling.warm_up,
        )

    async def play(self) -> Played:
        """Let every actor work, until all is done or the workload's time is over."""
        started_s = self.loop.time()
        beside = [asyncio.create_task(self._look()), asyncio.create_task(self._refresh())]
        self.processes.start(self._begin(self.workload.actors()))
        try:
            await self.processes.ended(within_s=self.workload.ends_s)
            ended_s = self.loop.time()
            self.tally.break_off(ended_s)
            await self.sampler.take(self.clock)
            learned = dict(self.learning.limits.known)
        finally:
            self.processes.break_off()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.admission.drain()
            await self.learning.close()
        return Played(self.tally, self.meters, self.sampler, ended_s - started_s, self.stage.config, learned)

    async def _look(self) -> NoReturn:
        """Look every so often, for the plots and for who watches."""
        lasts_s = self.workload.ends_s or self.workload.last_s
        while True:
            await self.sampler.take(self.clock)
            if self.stage.looked is not None:
                self.stage.looked(self.loop.time(), lasts_s, len(self.tally.waiting))
            await asyncio.sleep(self.stage.step_s)

    async def _refresh(self) -> NoReturn:
        """Let what was learned from 429s grow, as the manager's housekeeping does; not while nothing goes on.

        A month without a call was 260,000 of them. What is too old then is forgotten with the next call, in good time.
        """
        while True:
            await asyncio.sleep(REFRESH_EVERY_S - self.loop.time() % REFRESH_EVERY_S)
            if not self.tally.waiting and not self.tally.under_way:
                self.stirred.clear()
                await self.stirred.wait()
            await self.learning.refresh()

    def _begin(self, actors: Iterable[Actor]) -> Play[None]:
        for actor in actors:
            due_s = actor.starts_s - self.loop.time()
            if due_s > 0:
                yield due_s
            self.processes.start(self._act(actor))

    def _act(self, actor: Actor) -> Play[None]:
        away_s: float | None = None
        least_s = LEAST_AWAY_S
        for program in actor.programs:
            if away_s is not None:
                yield max(least_s, away_s)
                least_s = min(MOST_AWAY_S, 2 * least_s)
            away_s = yield from self._program(program)
            if away_s is None:
                least_s = LEAST_AWAY_S

    def _program(self, program: Program) -> Play[float | None]:
        """Play a program; give how long its agent stays away when it was given up, None when it was done."""
        stand = self._standpoint(program)
        time, tally, carry = self.loop.time, self.tally, self.calls.carry
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
                if not self.stirred.is_set():
                    self.stirred.set()
                uncached += yield from carry(asked, stand)
            except LimitError as refused:
                tally.programs_given_up += 1
                return refused.retry_after_s or 0.0
            except ProviderError as failed:
                tally.programs_given_up += 1
                return failed.failure.retry_after_s or 0.0
        tally.program_done(time() - (began_s or 0.0), uncached, interactive=program.interactive)
        return None

    def _standpoint(self, program: Program) -> Standpoint:
        stage, key = self.stage, self.keys.get(program.key or "")
        model = stage.model or program.model or stage.usual_model
        dialect: Dialect = next(
            (each.account.dialect for each in stage.accounts if each.account.serves(model)), "anthropic"
        )
        able = accounts_for([each.account for each in stage.accounts], dialect, model)
        scopes = fit(
            Scopes(
                key=program.key,
                team=None if key is None else key.team,
                run=RUN,
                agent=program.agent,
                session=program.session,
                tags=() if key is None else key.tags,
            )
        )
        return Standpoint(
            program,
            scopes,
            model,
            dialect,
            stage.scheduling.sharer_of(scopes)[0],
            Standing(0 if key is None else key.priority, program.interactive or (key is not None and key.interactive)),
            able[0].name if len(able) == 1 else None,
            {account.name: self._place(account.name, scopes, model) for account in able},
        )

    def _place(self, account: str, scopes: Scopes, model: str) -> Place:
        scopes = scopes._replace(account=account)
        limits = self.configured.limits_for(scopes, model)
        pool = self.pools.get((account, limits))
        if pool is None:
            provider = self.providers[account]
            pool = self.pools[account, limits] = provider.pool(limits)
            self.sampler.follow([*limits, *provider.own_limits])
        return Place(self.providers[account], pool, self.tally.account(account))
