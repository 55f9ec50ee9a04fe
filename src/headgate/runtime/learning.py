"""Learning: what answers tell of limits is taken up beside the calls that got them.

One rule: an answer that says nothing new costs its call almost nothing; only a 429 is waited for, because what is
closed must be closed before the next call looks. What follows from what was told is the core's (`core/adaptive.py`).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from headgate.core import adaptive
from headgate.core.accounts import Account
from headgate.core.adaptive import Concurrency, Key, Learned, Meter
from headgate.core.amounts import DIMENSIONS, NOTHING, Amounts, Demand, Dimension
from headgate.core.errors import StoreError
from headgate.core.instants import to_ns
from headgate.core.limits import Level, Limit, Rate
from headgate.core.notices import Notices, RateNotice
from headgate.core.retries import Failure, RetryBudget
from headgate.ports import Answer, Clock, LevelStore, Record
from headgate.runtime.learned import PLAN, SLOTS, LearnedLimits
from headgate.runtime.plan_shares import PlanShares
from headgate.runtime.plan_windows import PlanWindows
from headgate.runtime.rules import Rules

log = logging.getLogger("headgate.learning")

LOOK_EVERY_S = 0.1
"""Of the answers of one pool one in this time is read: reading headers takes 20 us, a sixth of what a call costs."""

UNTOLD_S = 1.0
"""How long a limit that was told is closed by a 429 that says no time: another limit than the one that was told."""
MOST_UNTOLD_S = 10.0

STORE_TROUBLE_S = 1.0
"""How long a refused call waits for itself when nothing could be closed."""

REFRESH_EVERY_S = 10.0

MOST_POOLS = 1_000


class Pool:
    """An account's pool of models, as far as this process uses it."""

    __slots__ = ("account", "concurrency", "in_flight", "looked_s", "meter", "name", "tells")

    def __init__(self, account: str, name: str, now_s: float) -> None:
        """Begin with nothing in flight."""
        self.account = account
        self.name = name
        self.in_flight = 0
        self.looked_s = 0.0
        self.tells = False
        self.meter = Meter(now_s)
        self.concurrency: Concurrency | None = None

    def key(self, what: str) -> Key:
        """Name what is learned here."""
        return Key(self.account, self.name, what)


_GUESSED: tuple[Dimension, ...] = ("input_tokens", "output_tokens", "tokens")
"""What calls on their way may use more of than they hold."""
_GUESSED_PLACES = tuple((dimension, DIMENSIONS.index(dimension)) for dimension in _GUESSED)


class Sent(NamedTuple):
    """A call that was sent: where, when, under which limits, and what it asked of them."""

    pool: Pool
    limits: Sequence[Limit]
    asked: Amounts
    at_s: float


class Correction(NamedTuple):
    """What must be in use of a key's level at the least, and what can be at the most (None: nobody knows)."""

    key: Key
    least: int
    most: int | None


class Closing(NamedTuple):
    """A key's level that is to be closed: `units` fit at `until_ns`."""

    key: Key
    units: int
    until_ns: int


class Learning:
    """Learns the limits of one process's accounts."""

    def __init__(
        self,
        *,
        store: LevelStore,
        clock: Clock,
        rules: Rules,
        seen: dict[str, Level],
        nudge: Callable[[Sequence[Limit]], None],
        accounts: Iterable[Account] = (),
    ) -> None:
        """Learn for `rules`; `seen` has levels as they were last seen, `nudge` lets waiting calls look again."""
        self.limits = LearnedLimits(store, clock, rules)
        self._store = store
        self._clock = clock
        self._seen = seen
        self._nudge = nudge
        self._plan_windows = PlanWindows(store, clock, nudge)
        self.plan_shares = PlanShares(clock)
        self._overage = {account.name for account in accounts if account.overage}
        self._pools: OrderedDict[tuple[str, str], Pool] = OrderedDict()
        self._budgets: dict[str, RetryBudget] = {}
        self._correcting: set[Key] = set()
        self._unheld: dict[tuple[str, Dimension], int] = {}
        self._tasks: set[asyncio.Task[bool]] = set()

    # -- the life of a call ------------------------------------------------------------------------------------------

    def began(self, account: str, model: str, asked: Demand, *, first: bool) -> Pool:
        """Count a call that is about to be sent, `first` if it is no retry; it has to end with `ended`."""
        pool = self._pools.get((account, model))
        if pool is None:
            pool = self._pool(account, model)
        pool.in_flight += 1
        self._count_unheld(account, asked, 1)
        if first:
            self._budgets[account] = self._budgets.get(account, RetryBudget()).earned()
        return pool

    def ended(self, pool: Pool, asked: Demand, output_tokens: int) -> None:
        """Count a call that is over, and what it wrote."""
        pool.in_flight -= 1
        self._count_unheld(pool.account, asked, -1)
        if output_tokens and not pool.tells:
            pool.meter.add(NOTHING._replace(output_tokens=output_tokens), self._clock.now_s())

    def heard(self, sent: Sent, answer: Answer) -> None:
        """Take up what the head of an answer tells; of one that was refused, `refused` takes up the rest."""
        self._plan_windows.follow(sent.limits, answer)
        now_s, pool = self._clock.now_s(), sent.pool
        if answer.failure is None:
            if not pool.tells:
                pool.meter.add(sent.asked._replace(output_tokens=0), now_s)
            if pool.concurrency is not None:
                self._follow_speed(pool, now_s - sent.at_s, now_s)
            if abs(now_s - pool.looked_s) < LOOK_EVERY_S:
                return
        pool.looked_s = now_s
        notices = answer.notices(now_s)
        told = adaptive.told_rates(notices, now_s) if notices.rates else {}
        found = [self._told(sent, notice, now_s) for notice in told.values()]
        if notices.plans:
            self.plan_shares.hear(pool.account, pool.name, notices.plans)
            self._close_plans(sent, notices, now_s)
        if not pool.tells:
            self._grow(pool, now_s)
        # More is in force only when the level says that it is not there yet: a bucket that grew is not fuller.
        self._restate(growth=False)
        if self._begin(corrections=[each for each in found if each is not None]) is None:
            self._restate()

    async def refused(self, sent: Sent, answer: Answer, failure: Failure) -> float:
        """Close what a 429 names, now and for the calls that wait; give how long its call waits beside that."""
        now_s, pool = self._clock.now_s(), sent.pool
        notices = answer.notices(now_s)
        told = adaptive.told_rates(notices, now_s)
        if any(self.limits.known[key].closed_until_s > now_s for key in self._plan_keys(sent, notices)):
            closes: list[Closing] = []  # the plan's window is spent, which says nothing of its rates
        else:
            named = adaptive.named_dimensions(told, failure.dimension) or self._known(sent) or ("requests",)
            closes = [self._refuse(sent, dimension, failure.retry_after_s, now_s) for dimension in named]
        self._restate()
        keeping = self._begin(closes=closes)
        log.info("%s %s answered 429: closed %s", pool.account, pool.name, [each.key.what for each in closes])
        return 0.0 if keeping is None or await asyncio.shield(keeping) else STORE_TROUBLE_S

    def troubled(self, sent: Sent) -> None:
        """Halve how many calls go at once: the provider is overloaded, or does not answer in time."""
        pool, now_s = sent.pool, self._clock.now_s()
        pool.concurrency = adaptive.troubled(pool.concurrency, pool.in_flight, sent.at_s, now_s)
        self._restate_slots(pool, now_s)

    def may_retry(self, account: str) -> bool:
        """Take a retry out of an account's budget; False when there is none: retries must not become the load."""
        left = self._budgets.get(account, RetryBudget()).spent(self._clock.now_s())
        if left is None:
            return False
        self._budgets[account] = left
        return True

    # -- keeping -----------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Take up what other processes learned, let curves grow, and forget what is old."""
        await self.limits.take_up()
        self.limits.drop_old()
        for pool in dict.fromkeys(self._pools.values()):
            self._grow(pool, self._clock.now_s())
        self._restate()
        self._begin()

    def configured(self) -> None:
        """Reckon anew with what is configured: that was changed."""
        self.limits.forget_ceilings()
        self._restate()

    async def take_up(self) -> None:
        """Take up what was learned before, here or elsewhere; writes nothing."""
        await self.limits.take_up()
        self.limits.restate()

    async def close(self) -> None:
        """Return when all that was heard is in the store, or could not be brought there."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._plan_windows.close()

    # -- what answers tell -------------------------------------------------------------------------------------------

    def _told(self, sent: Sent, notice: RateNotice, now_s: float) -> Correction | None:
        """Take up one rate; give what its level must be corrected to."""
        pool = sent.pool
        pool.tells = pool.tells or notice.limit is not None
        key = pool.key(notice.dimension)
        over = adaptive.rates_over(sent.limits, key.scope, notice.dimension)
        ceiling = self.limits.ceiling(key, over)
        before = self.limits.known.get(key)
        learned = adaptive.heard(before, notice.limit, notice.dimension, now_s)
        if learned is not None and learned is not before:
            self.limits.keep(key, learned, bounds=ceiling is None or learned.amount < ceiling)
        bounds = key in self.limits.bounding
        if bounds and learned is not before:
            self._restate(growth=False)
        watched = self.limits.rate(key) if bounds else min(over, key=lambda rate: rate.amount, default=None)
        if watched is None or key in self._correcting:
            return None
        amount = (self.limits.amount(key) if bounds else None) or watched.amount
        fell = before is not None and learned is not None and learned.amount < before.amount
        certain, at_most = adaptive.spent_at_least(notice, amount, now_s)
        reading = watched.read(self._seen.get(watched.name), to_ns(now_s))
        # Our own calls on their way may have used more than they hold, and it is charged when they tell.
        unheld = self._unheld.get((pool.account, notice.dimension), 0)
        certain, at_most = max(0, certain - unheld), max(0, at_most - unheld)
        if certain <= reading.used + reading.held:
            return Correction(key, 0, amount) if bounds and fell else None
        if not bounds:  # others spend what is configured for more than this pool
            told = learned or Learned(watched.amount, "header", now_s, now_s, now_s)
            self.limits.keep(key, told, bounds=True)
        return Correction(key, at_most, amount if fell else None)

    def _count_unheld(self, account: str, asked: Demand, sign: int) -> None:
        expected, at_most = asked.expected, asked.at_most
        for dimension, place in _GUESSED_PLACES:
            more = (at_most[place] or 0) - (expected[place] or 0)
            if more > 0:
                key = (account, dimension)
                self._unheld[key] = self._unheld.get(key, 0) + sign * more

    def _refuse(self, sent: Sent, dimension: Dimension, retry_after_s: float | None, now_s: float) -> Closing:
        """Learn from a 429 in one dimension; give the level to close, what is to fit then, and when."""
        pool = sent.pool
        key = pool.key(dimension)
        ceiling = self.limits.ceiling(key, adaptive.rates_over(sent.limits, key.scope, dimension))
        learned = self.limits.known.get(key)
        if learned is None or learned.source != "header":
            admitted = pool.meter.refused(dimension, now_s)
            learned = adaptive.refused(learned, admitted, dimension, sent.at_s, now_s, ceiling)
        units = max(1, getattr(sent.asked, dimension) or 1)
        if retry_after_s is None:
            retry_after_s = UNTOLD_S
            if learned.source == "429":
                retry_after_s = min(MOST_UNTOLD_S, units * adaptive.MINUTE_S / learned.amount)
        learned = adaptive.closed(learned, now_s + retry_after_s, now_s)
        self.limits.keep(key, learned, bounds=True, admitted=pool.meter.admitted(dimension, now_s))
        return Closing(key, units, to_ns(min(now_s + retry_after_s, learned.closed_until_s)))

    def _known(self, sent: Sent) -> tuple[Dimension, ...]:
        """Give the dimensions in which a pool's rates are configured or learned."""
        scope = sent.pool.key("").scope
        met = [limit.dimension for limit in sent.limits if isinstance(limit, Rate) and limit.scope == scope]
        learned = [each for each in DIMENSIONS if sent.pool.key(each) in self.limits.known]
        return tuple(dict.fromkeys([*met, *(each for each in learned if each != SLOTS)]))

    def _grow(self, pool: Pool, now_s: float) -> None:
        for dimension in DIMENSIONS:
            key = pool.key(dimension)
            learned = self.limits.known.get(key)
            if learned is not None and learned.source == "429":
                self.limits.keep(key, learned, bounds=True, admitted=pool.meter.admitted(dimension, now_s))

    # -- plans -------------------------------------------------------------------------------------------------------

    def _plan_keys(self, sent: Sent, notices: Notices) -> list[Key]:
        keys = [_plan_key(sent.pool, plan.period_s, plan.pool) for plan in notices.plans]
        return [key for key in keys if key in self.limits.known]

    def _close_plans(self, sent: Sent, notices: Notices, now_s: float) -> None:
        """Close the plan windows that are spent until they are reset."""
        for plan in adaptive.spent_plans(notices, overage_allowed=sent.pool.account in self._overage):
            key = _plan_key(sent.pool, plan.period_s, plan.pool)
            known, until_s = self.limits.known.get(key), plan.resets_s
            if until_s is None or (known is not None and abs(known.closed_until_s - until_s) <= 1):
                continue
            since_s = now_s if known is None else known.since_s
            learned = Learned(1, "plan", since_s, now_s, now_s, closed_until_s=until_s)
            self.limits.keep(key, learned, bounds=True)
            log.warning("account %s: the plan window of %d s is spent until %.0f", key.account, plan.period_s, until_s)

    # -- concurrency -------------------------------------------------------------------------------------------------

    def _follow_speed(self, pool: Pool, first_byte_s: float, now_s: float) -> None:
        assert pool.concurrency is not None
        pool.concurrency = adaptive.answered(pool.concurrency, first_byte_s, pool.in_flight, now_s)
        self._restate_slots(pool, now_s)

    def _restate_slots(self, pool: Pool, now_s: float) -> None:
        key, found = pool.key(SLOTS), pool.concurrency
        known = self.limits.known.get(key)
        if found is None:
            self.limits.forget(key)
        elif known is None or known.amount != found.amount:
            learned = Learned(found.amount, "latency", found.since_s, now_s, now_s)
            self.limits.keep(key, learned, bounds=True)
        else:
            return
        self._restate()
        self._begin()

    # -- in the store ------------------------------------------------------------------------------------------------

    def _restate(self, *, growth: bool = True) -> None:
        changed = self.limits.restate(growth=growth)
        if changed:
            self._nudge(changed)

    def _begin(
        self, *, corrections: Sequence[Correction] = (), closes: Sequence[Closing] = ()
    ) -> asyncio.Task[bool] | None:
        """Begin to bring to the store what is not there; None when all of it is, as after most answers."""
        records = self.limits.unwritten()
        if not records and not corrections and not closes:
            return None
        task = asyncio.create_task(self._keep(records, corrections, closes), name="keep what was learned")
        self._correcting.update(each.key for each in corrections)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(
        self,
        records: Mapping[str, Record | None],
        corrections: Sequence[Correction],
        closes: Sequence[Closing],
    ) -> bool:
        """Write records and change levels, in one transaction; False if the store could not."""
        bounded = [(self.limits.rate(key), (least, most)) for key, least, most in corrections]
        shut = [(self.limits.rate(key), (units, until_ns)) for key, units, until_ns in closes]

        def step(found: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], dict[str, Level]]:
            now_ns = to_ns(self._clock.now_s())
            corrected = {rate.name: rate.corrected(found.get(rate.name), *facts, now_ns) for rate, facts in bounded}
            closed = {rate.name: rate.closed(found.get(rate.name), *facts, now_ns) for rate, facts in shut}
            levels = {name: level for name, level in (corrected | closed).items() if level is not None}
            return {**records, **levels}, levels

        try:
            names = [rate.name for rate, _facts in (*bounded, *shut)]
            self._seen.update(await self._store.transact(names, step))
        except StoreError as error:
            self.limits.not_written(records)
            log.warning("what was learned was not kept, the next answer tries again: %s", error)
            return False
        finally:
            self._correcting.difference_update(each.key for each in corrections)
        self._restate()
        return True

    def _pool(self, account: str, model: str) -> Pool:
        """Give the pool of a model, shared by all models of its class; the least recently met is forgotten."""
        name = adaptive.model_class(model)
        pool = self._pools.get((account, name)) or Pool(account, name, self._clock.now_s())
        self._pools[account, name] = self._pools[account, model] = pool
        while len(self._pools) > MOST_POOLS:
            self._pools.popitem(last=False)
        return pool


def _plan_key(pool: Pool, period_s: int, models: str) -> Key:
    return Key(pool.account, pool.name if models else "", f"{PLAN}{period_s}s")
