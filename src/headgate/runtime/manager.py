"""The manager: one process's Headgate, joined together and kept in order.

One rule: it decides nothing and knows no third party; it hands calls to `calls`, questions to `monitor` and `ledger`,
and does the housekeeping that keeps leases alive and cleans up after processes that died.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

from headgate.core.accounts import Account
from headgate.core.errors import RuledOutError
from headgate.core.estimates import Estimator
from headgate.core.instants import to_ns
from headgate.core.ledger import Attempt, UsageGroup, UsageQuery
from headgate.core.limits import Limit
from headgate.core.model_rules import ModelChoice, ModelRule, RuledOut
from headgate.core.planning import Denied, Plan, Planned, Wanted
from headgate.core.retries import RetryRule
from headgate.core.scheduling import Scheduling
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.set_aside import Closure
from headgate.core.usage import Usage
from headgate.ports import Clock, Cost, Fate, HashedKey, KeyStore, LedgerStore, LevelStore, Prices, Provider, Request
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.admission import Admission
from headgate.runtime.batching import Batching
from headgate.runtime.calls import Call, Calls, Exchange, Grant
from headgate.runtime.feed import Feed
from headgate.runtime.forecasting import Forecasting
from headgate.runtime.forgetting import forget_idle
from headgate.runtime.health import Health
from headgate.runtime.housekeeping import repeat, tried
from headgate.runtime.keys import Keys, in_force
from headgate.runtime.learning import REFRESH_EVERY_S, Learning
from headgate.runtime.limit_news import LimitNews
from headgate.runtime.model_choice import ModelChoosing
from headgate.runtime.monitor import LimitView, Monitor, WaitView
from headgate.runtime.orders import Orders, at_once, bring_rates_up_to_date, raised
from headgate.runtime.planning import Maintenance, MaintenanceRule, PlannedReservations, PlanView
from headgate.runtime.recalling import Recalling
from headgate.runtime.recovery import Recovered, Recovery, Settled
from headgate.runtime.reservations import Reservations
from headgate.runtime.rules import Rules
from headgate.runtime.sight import Sight
from headgate.runtime.telling import ruled_out_in_words
from headgate.runtime.warming import Warming

log = logging.getLogger("headgate")

LEASE_S = 120.0
"""How long a hold may go without a sign of life. A living process renews at a third of it."""

FORGET_EVERY_S = 3_600.0
"""How often the levels that say nothing any more are looked for."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a manager is joined from; `compose` fills it."""

    levels: LevelStore
    ledger: LedgerStore
    keys: KeyStore
    prices: Prices
    clock: Clock
    owner: str
    owner_is_alive: Callable[[str], bool]
    accounts: Sequence[Account]
    providers: Mapping[str, Provider]
    rules: Sequence[LimitRule]
    rules_of_key: Callable[[HashedKey], Sequence[LimitRule]]
    retries: RetryRule = field(default_factory=RetryRule)
    scheduling: Scheduling = field(default_factory=Scheduling)
    maintenance: Sequence[MaintenanceRule] = ()
    model_rules: Sequence[ModelRule] = ()
    chooser: random.Random | None = None
    lease_s: float = LEASE_S


class Manager:
    """Who may call now, who waits, for how long and at what cost: for one process, over stores that others share."""

    def __init__(self, parts: Parts) -> None:
        """Join the parts; `start` begins."""
        self.accounts = tuple(parts.accounts)
        self.providers = parts.providers
        self.clock = parts.clock
        self.keys = Keys(parts.keys, parts.clock)
        self._levels = parts.levels
        self._ledger = parts.ledger
        self._prices = parts.prices
        self._lease_s = parts.lease_s
        self._rules_of_key = parts.rules_of_key
        self.feed = Feed(parts.clock)
        self._rules = Rules(parts.rules, [account.name for account in parts.accounts])
        self._limit_news = LimitNews(parts.levels, self._rules, parts.clock, self.feed)
        self._rules.on_learned = self._limit_news.learned
        self._planned = PlannedReservations(parts.levels, parts.clock)
        self._maintenance = Maintenance(parts.maintenance, parts.clock)
        self._reservations = Reservations(
            parts.levels,
            parts.clock,
            parts.owner,
            lease_s=parts.lease_s,
            in_force=self._rules.in_force,
            met=self._rules.met,
            planned=self._planned,
            maintenance=self._maintenance,
            watches=len(self.accounts) > 1,
        )
        self._admission = Admission(
            parts.levels, self._reservations, parts.clock, scheduling=parts.scheduling, feed=self.feed
        )
        self._learning = Learning(
            store=parts.levels,
            ledger=parts.ledger,
            clock=parts.clock,
            rules=self._rules,
            seen=self._reservations.seen,
            nudge=self._admission.nudge,
            planned=self._planned,
            accounts=parts.accounts,
        )
        sight = Sight(
            reservations=self._reservations,
            rules=self._rules,
            planned=self._planned,
            maintenance=self._maintenance,
            lanes=self._admission.lanes,
            shares=self._learning.plan_shares,
            clock=parts.clock,
        )
        self._admission.on_changed = sight.forget
        health = Health(parts.clock)
        health.on_news = self._admission.moves.look_at
        self.pool = AccountPool(parts.accounts, sight, health, parts.clock)
        self.plan_shares = self._learning.plan_shares
        self._estimator = Estimator()
        self._recalling = Recalling(parts.ledger, self._estimator, self._rules)
        self._warming = Warming(parts.clock)
        self._calls = Calls(
            admission=self._admission,
            ledger=parts.ledger,
            prices=parts.prices,
            clock=parts.clock,
            owner=parts.owner,
            pool=self.pool,
            providers=parts.providers,
            limits_for=self._rules.limits_for,
            learning=self._learning,
            retries=parts.retries,
            chooser=parts.chooser or random.Random(),  # noqa: S311 - jitter, not a secret
            estimator=self._estimator,
            warming=self._warming,
            finished=self._finished,
        )
        self.coalescing = self._calls.coalescing
        self.batching = Batching()
        self._model_choosing = ModelChoosing(
            rules=tuple(parts.model_rules),
            accounts=self.accounts,
            limits=self._rules,
            levels=parts.levels,
            planned=self._planned,
            maintenance=self._maintenance,
            pool=self.pool,
            waiting_s=self._admission.lanes.known_waiting_s,
            prices=parts.prices,
            estimator=self._estimator,
            clock=parts.clock,
        )
        self._recovery = Recovery(
            reservations=self._reservations,
            ledger=parts.ledger,
            prices=parts.prices,
            clock=parts.clock,
            owner=parts.owner,
            owner_is_alive=parts.owner_is_alive,
            providers=parts.providers,
            countings={account.name: account.counts for account in parts.accounts},
            resolve=lambda names: self._planned.resolve(names, self._rules.named),
            look_at_clock=self._learning.look_at_clock,
        )
        self._reservations.revive = self._recovery.revive
        self._monitor = Monitor(parts.levels, self._admission, self._rules, self._learning.limits, parts.clock)
        self.forecasting = Forecasting(
            parts.ledger, self._rules, parts.clock, {account.name: account.counts for account in parts.accounts}
        )
        self._ruled: dict[str, HashedKey] = {}
        self._housekeeping: list[asyncio.Task[None]] = []

    async def know_keys(self) -> None:
        """Take up the limits that keys carry."""
        now_s = self.clock.now_s()
        # Those in force last: of several keys of one name, such as one that was replaced, they say what holds.
        for key in sorted(await self.keys.all(), key=lambda each: in_force(each, now_s)):
            self._rule(key)

    async def start(self) -> Recovered:
        """Clean up after processes that died, and begin the housekeeping."""
        await self.know_keys()
        await tried(self._recalling.see_likely)
        await self._planned.refresh()
        await self._learning.take_up()
        recovered = await self._recovery.sweep()
        # Each by itself: a provider that is slow to say what became of a call must not let our own leases lapse.
        often_s = self._lease_s / 6
        work = {
            "renew": repeat(self._renew, often_s, after_s=often_s),
            "keep unkept": repeat(self._calls.keep_unkept, often_s, after_s=often_s),
            "recover": repeat(self.recover, often_s, after_s=often_s),
            "learn": repeat(self._learning.refresh, REFRESH_EVERY_S, after_s=REFRESH_EVERY_S),
            "forget": repeat(lambda: forget_idle(self._levels, self._rules, self.clock), FORGET_EVERY_S),
            "watch limits": self._limit_news.watch(),
            "recall": tried(self._recalling.recall),
            "forecast": tried(self._learn_to_forecast),
        }
        self._housekeeping = [asyncio.create_task(each, name=f"housekeeping: {name}") for name, each in work.items()]
        return recovered

    def admit(self, call: Call) -> AbstractAsyncContextManager[Grant]:
        """Hold what the call asks of every limit it meets, waiting for it; settle at the end of the block.

        A call that may degrade is held with the model that the owner's rules choose for it: its grant says which.
        """
        return self._admit_as_ruled(call) if call.may_degrade else self._calls.admit(call)

    async def model_for(self, call: Call) -> ModelChoice:
        """Give the model to send a call with: the one it asks for, unless it may degrade and one of the rules fits.

        Raises:
            RuledOutError: a rule turns it down, which is recorded.
        """
        ruled = await self._model_choosing.choose(call)
        if isinstance(ruled, RuledOut):
            await self._calls.note_ruled_out(call, ruled)
            raise RuledOutError(
                ruled_out_in_words(ruled, call.model),
                limit=f"model_rule:{ruled.rule}",
                retry_after_s=ruled.retry_after_s,
            )
        return ruled

    def carry(self, call: Call, request: Request) -> AbstractAsyncContextManager[Exchange]:
        """Admit a call, send it to its account, retry what is worth it, and give the answer to be read.

        The request is sent as it is: whose call may degrade asks `model_for` before.
        """
        return self._calls.carry(call, request)

    def read(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Iterate over the body of an answer."""
        return self._calls.read(exchange)

    def cost(self, grant: Grant, usage: Usage, model_served: str | None) -> int | None:
        """Price what an attempt used, in micro-dollars; None where no price is known."""
        return self._calls.cost(grant, usage, model_served).micro_usd

    async def check(self) -> None:
        """Return if the store can be written.

        Raises:
            StoreError: it cannot.
        """
        await self._levels.transact(["health"], lambda _records: ({"health": (1,)}, None))

    async def authenticate(self, presented: str) -> HashedKey | None:
        """Give the Headgate key that was presented, with its limits in force; None if it is not one."""
        key = await self.keys.check(presented)
        if key is not None:
            # A child meets its parent's limits, and the parent itself may never have come to this process.
            limited = key if key.parent is None else await self.keys.parent_of(key) or key
            if self._ruled.get(limited.id) != limited:
                self._rule(limited)
                await tried(self._recalling.see_likely)
        return key

    async def needs_key(self) -> bool:
        """Whether calls need a key of Headgate's: once there is one that is in force and not a run's own."""
        return await self.keys.any_standing()

    async def limits(self) -> list[LimitView]:
        """Give every limit that is configured, learned or in use."""
        await self._learning.look()
        return await self._monitor.limits()

    def maintenance(self) -> list[Closure]:
        """Give of each maintenance window the one that lasts, or else the next within a week."""
        now_ns = to_ns(self.clock.now_s())
        coming = sorted(self._maintenance.known(), key=lambda each: each.ends_ns, reverse=True)
        return list({each.name: each for each in coming if now_ns < each.ends_ns}.values())

    async def limits_kept(self) -> tuple[Limit, ...]:
        """Give the limits that `limits` shows, as what is reserved of them is reckoned with."""
        return self._rules.named([view.name for view in await self.limits()])

    async def reserve(self, wanted: Wanted, limit: Limit) -> Planned | Denied:
        """Set a part of a limit aside for a scope and a time, or say why that cannot be honoured."""
        return await self._planned.reserve(wanted, limit, self._rules.of_scope(wanted.scope))

    async def cancel_reservation(self, plan_id: str) -> Plan | None:
        """Give back what a planned reservation has left; None if there is none, or it is over."""
        cancelled = await self._planned.cancel(plan_id)
        self._admission.nudge()
        return cancelled

    async def reservations(self) -> list[PlanView]:
        """Give every planned reservation that is not over, in the order in which they begin."""
        return await self._planned.views(self._rules.named)

    def queue(self) -> list[WaitView]:
        """Give every call that waits in this process."""
        return self._monitor.queue()

    async def configure(self, orders: Orders, agree: Callable[[], Awaitable[None]] = at_once) -> None:
        """Go by other orders once `agree` has returned, all of them at once, also for the calls that wait.

        What is used and held stays counted: a limit goes on from its level. What is reserved of a limit that is no more
        is kept, and counts again if the limit comes back.

        Raises:
            StoreError: the store cannot be used; nothing has changed.
        """
        await bring_rates_up_to_date(self._levels, self._rules, orders.rules, self.clock)
        more = raised(self._rules.all_configured(), orders.rules)
        await tried(lambda: self._limit_news.raised(more))
        await agree()
        # Nothing from here on waits or fails.
        self._rules.configure(orders.rules)
        self._maintenance.configure(orders.maintenance)
        self._model_choosing = replace(self._model_choosing, rules=tuple(orders.model_rules))
        self._calls.retries = orders.retries
        self._learning.configured()
        self._admission.set_scheduling(orders.scheduling)

    @property
    def scheduling(self) -> Scheduling:
        """Who goes next, as it is configured now."""
        return self._admission.scheduling

    def set_scheduling(self, scheduling: Scheduling) -> None:
        """Order the calls that wait by another configuration from now on, in this process."""
        self._admission.set_scheduling(scheduling)

    @property
    def refused_by_providers(self) -> int:
        """How often a provider answered 429 to this process; what Headgate is there to keep at 0."""
        return self._calls.refused_by_providers

    def limits_met(self, scopes: Scopes, model: str) -> tuple[Limit, ...]:
        """Give the limits that a call of these scopes for this model meets."""
        return self._rules.limits_for(scopes, model)

    def in_flight(self) -> list[Grant]:
        """Give the attempts of this process that were admitted and are not settled."""
        return self._calls.in_flight()

    def knows(self, model: str) -> bool:
        """Whether a list of models has it, with its window or its price."""
        if self._prices.reach(model).context_window is not None:
            return True
        return self._prices.cost(model, Usage(input_tokens=1), self.clock.now_s()).micro_usd is not None

    async def usage(self, query: UsageQuery) -> list[UsageGroup]:
        """Sum the ledger, over all processes."""
        return await self._ledger.usage(query)

    async def attempts(self, run: str) -> list[Attempt]:
        """Give the ledger's rows of a run in the order of their admission, at most 1,000,000."""
        return await self._ledger.attempts(run)

    async def recover(self) -> Recovered:
        """Clean up now after processes that died."""
        recovered = await self._recovery.sweep()
        if recovered.expired or recovered.reconciled:
            self._admission.nudge()
        return recovered

    async def lost(self) -> list[Attempt]:
        """Give the calls of processes that died whose use nobody knows, oldest first, at most 10,000."""
        return await self._recovery.lost()

    async def settle_lost(self, row: Attempt, fate: Fate, cost: Cost) -> Settled:
        """Settle a lost call by what somebody knows of it; what was held and is not used comes back to its budgets."""
        settled = await self._recovery.settle(row, fate, cost)
        self._admission.nudge()
        return settled

    async def drain(self) -> None:
        """Admit nothing more and refuse what waits; what was sent goes on."""
        self._warming.stop()
        await self._admission.drain()

    async def close(self) -> None:
        """Admit nothing more, refuse what waits, and return when all that was admitted is settled and recorded."""
        await self.drain()
        await self._calls.close()
        for task in self._housekeeping:
            task.cancel()
        await asyncio.gather(*self._housekeeping, return_exceptions=True)
        if left := await self._calls.keep_unkept():
            log.error("%d outcomes could not be recorded; their holds stay at their estimates", left)

    @asynccontextmanager
    async def _admit_as_ruled(self, call: Call) -> AsyncIterator[Grant]:
        async with self._calls.admit(call.as_ruled(await self.model_for(call))) as grant:
            yield grant

    def _rule(self, key: HashedKey) -> None:
        if key.fleet:  # they are many, and limited by run and agent
            return
        self._rules.set_key(key.name, self._rules_of_key(key) if in_force(key, self.clock.now_s()) else ())
        self._ruled[key.id] = key

    async def _learn_to_forecast(self) -> None:
        """Read what windows used in the past weeks: who asks first need not wait for that."""
        standing = {limit.name for limit in self._rules.standing()}
        await self.forecasting.forecasts([view for view in await self._monitor.limits() if view.name in standing])

    def _finished(self, grant: Grant) -> None:
        self._limit_news.settled(grant.limits)
        if self.feed.is_followed:
            row = grant.attempt
            self.feed.tell(
                "settled",
                row.scopes,
                call=row.id,
                model=row.model,
                state=row.state,
                input_tokens=row.usage.input_tokens,
                output_tokens=row.usage.output_tokens,
                cache_read_tokens=row.usage.cache_read_tokens,
                cost_micro_usd=row.cost_micro_usd,
                estimated=not row.usage.reported,
                error_type=row.error_type,
            )

    async def _renew(self) -> None:
        for grant in self._calls.in_flight():
            await self._reservations.renew(grant.attempt.id, grant.limits)
        self._reservations.renewed()
