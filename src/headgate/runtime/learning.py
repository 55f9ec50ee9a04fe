"""Learning: what answers tell of limits is taken up beside the calls that got them.

One rule: an answer that says nothing new costs its call almost nothing; only a 429 is waited for, because what is
closed must be closed before the next call looks. What headers and 429s say is `hearing`'s and `closings`'.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from headgate.core import concurrency, told
from headgate.core.accounts import Account
from headgate.core.adaptive import Learned, Source, model_class
from headgate.core.amounts import Demand, amounts_of
from headgate.core.concurrency import Concurrency
from headgate.core.errors import StoreError
from headgate.core.instants import to_ns
from headgate.core.learned_limits import SLOTS
from headgate.core.ledger import UsageQuery
from headgate.core.limits import Level, Limit
from headgate.core.meter import Meter
from headgate.core.notices import MINUTE_S
from headgate.core.retries import Failure, RetryBudget
from headgate.ports import Answer, Clock, LevelStore, Record
from headgate.runtime.clock_steps import ClockSteps, Counts
from headgate.runtime.closings import Closings, Cut
from headgate.runtime.hearing import Hearing
from headgate.runtime.learned import LearnedLimits
from headgate.runtime.plan_shares import PlanShares
from headgate.runtime.plan_windows import PlanWindows
from headgate.runtime.planning import PLANS, PlannedReservations, raised, serial_of
from headgate.runtime.rules import Rules
from headgate.runtime.traffic import Closing, Correction, Sent, Traffic, Traffics

log = logging.getLogger("headgate.learning")

LOOK_EVERY_S = 0.1
"""Of the answers of one traffic one in this time is read: reading headers takes 20 us, a sixth of what a call costs."""

STORE_TROUBLE_S = 1.0
"""How long a refused call waits for itself when nothing could be closed."""

REFRESH_EVERY_S = 10.0

MEASURED_AFTER_S = 0.5
"""How long after a 429 it is counted what was admitted before: others were refused with it, and are none."""

_NOT_ADMITTED = ("failed", "refused")


class Learning:
    """Learns the limits of one process's accounts."""

    def __init__(
        self,
        *,
        store: LevelStore,
        ledger: Counts,
        clock: Clock,
        rules: Rules,
        seen: dict[str, Level],
        nudge: Callable[[Sequence[Limit]], None],
        planned: PlannedReservations,
        accounts: Iterable[Account] = (),
    ) -> None:
        """Learn for `rules`; `seen` has levels as they were last seen, `nudge` lets waiting calls look again."""
        self.limits = LearnedLimits(store, clock, rules)
        self._store = store
        self._ledger = ledger
        self._clock = clock
        self._seen = seen
        self._nudge = nudge
        self._planned = planned
        planned.on_news = self.take_up
        self._plan_windows = PlanWindows(store, clock, nudge)
        self.plan_shares = PlanShares(clock)
        self._hearing = Hearing(self.limits, seen, accounts, partial(self._restate, growth=False))
        self.limits.on_forget = self._hearing.forget
        self._closings = Closings(self.limits)
        self._clock_steps = ClockSteps(store, clock, rules, self.limits, seen, nudge)
        self._traffics = Traffics()
        self._budgets: dict[str, RetryBudget] = {}
        self._tasks: set[asyncio.Task[bool]] = set()
        self._measuring: set[asyncio.Task[bool]] = set()

    # -- the life of a call ------------------------------------------------------------------------------------------

    def began(
        self,
        account: str,
        model: str,
        limits: Sequence[Limit],
        asked: Demand,
        *,
        first: bool = True,
        is_streamed: bool = True,
    ) -> Sent:
        """Count a call that is about to be sent, `first` if it is no retry; it has to end with `ended`."""
        now_s = self._clock.now_s()
        traffic = self._traffics.of(account, model)
        traffic.in_flight += 1
        if first:
            self._budgets[account] = (self._budgets.get(account) or RetryBudget()).earned()
        return Sent(traffic, limits, asked, now_s, is_streamed, self._hearing.began(traffic, asked, now_s))

    def ended(self, sent: Sent, output_tokens: int) -> None:
        """Count a call that is over, and what it wrote."""
        sent.traffic.in_flight -= 1
        self._hearing.ended(sent.traffic, sent.asked)
        if output_tokens:
            sent.traffic.meter.add(amounts_of((0, 0, output_tokens, 0, 0, 0)), self._clock.now_s())

    def heard(self, sent: Sent, answer: Answer) -> None:
        """Take up what the head of an answer tells; of one that was refused, `refused` takes up the rest."""
        self._plan_windows.follow(sent.limits, answer)
        now_s, traffic = self._clock.now_s(), sent.traffic
        if answer.failure is None:
            traffic.refusals = 0
            requests, input_tokens, _output, tokens, cost, slots = sent.asked.expected
            traffic.meter.add(amounts_of((requests, input_tokens, 0, tokens, cost, slots)), now_s)
            self._follow_speed(sent, now_s)
            if not sent.used and abs(now_s - traffic.looked_s) < LOOK_EVERY_S:
                return
        traffic.looked_s = now_s
        notices = told.believed_plans(answer.notices(now_s), now_s)
        if notices.plans:
            self.plan_shares.hear(traffic.account, traffic.models, notices.plans)
        corrections = self._hearing.take_up(sent, notices, now_s)
        self._start_slowly(now_s)
        self._closings.grow(traffic, now_s)
        # More is in force only when the level says that it is not there yet: a bucket that grew is not fuller.
        self._restate(growth=False)
        if self._begin(corrections=corrections) is None:
            self._restate()

    async def refused(self, sent: Sent, answer: Answer, failure: Failure) -> float:
        """Close what a 429 names, now and for the calls that wait; give how long its call waits beside that."""
        now_s, traffic = self._clock.now_s(), sent.traffic
        notices = told.believed_plans(answer.notices(now_s), now_s)
        closings: list[Closing] = []
        if not self._hearing.is_plan_spent(traffic, notices, now_s):  # that says nothing of its rates
            rates = self._hearing.rates(traffic, notices, now_s)
            closings = self._closings.take_up(sent, rates, notices, failure, now_s)
            self._start_slowly(now_s)
        self._restate(growth=False)
        keeping = self._begin(closings=closings)
        log.info("%s %s answered 429: closed %s", traffic.account, traffic.models, [each.key for each in closings])
        kept = keeping is None or await asyncio.shield(keeping)
        if cuts := self._closings.take_cuts(traffic):
            self._start(self._measure(traffic, cuts), self._measuring)
        return 0.0 if kept else STORE_TROUBLE_S

    def troubled(self, sent: Sent) -> None:
        """Halve how many calls go at once: the provider is overloaded, or does not answer in time."""
        traffic, now_s = sent.traffic, self._clock.now_s()
        self._bound(traffic, concurrency.troubled(traffic.concurrency, traffic.in_flight, sent.at_s, now_s), now_s)

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
        await self._clock_steps.look()
        await self.limits.take_up()
        self._start_slowly(self._clock.now_s())
        self.limits.drop_old()
        for traffic in self._traffics.all():
            if traffic.concurrency is not None and traffic.key(SLOTS) not in self.limits.known:
                traffic.concurrency = None  # trouble that is forgotten bounds nothing when calls come again
            if self._closings.taught(traffic):
                await self._count_others(traffic)
            self._closings.grow(traffic, self._clock.now_s())
        self._restate()
        self._begin()

    async def look_at_clock(self) -> None:
        """Set right what a clock that was set back has left ahead of it, if it was."""
        await self._clock_steps.look()

    def configured(self) -> None:
        """Reckon anew with what is configured: that was changed."""
        self.limits.forget_ceilings()
        self._restate()

    async def take_up(self) -> None:
        """Take up what was learned before, here or elsewhere, and start slowly what is closed.

        Nothing is written, unless the clock was set back since.
        """
        await self.limits.take_up()
        self._start_slowly(self._clock.now_s())
        self._restate()
        await self._clock_steps.begin(self._ledger)

    async def look(self) -> None:
        """Take up what was learned, to show it: who only looks starts nothing."""
        await self.limits.take_up()
        self._restate()

    async def close(self) -> None:
        """Return when all that was heard is in the store, or could not be brought there."""
        for task in self._measuring:
            task.cancel()
        while tasks := [*self._measuring, *self._tasks]:
            await asyncio.wait(tasks)
        await self._plan_windows.close()

    async def _measure(self, traffic: Traffic, cuts: Sequence[Cut]) -> bool:
        """Measure cuts by what all processes were admitted, once those that were refused with them are known."""
        await asyncio.sleep(MEASURED_AFTER_S)
        closings = []
        for cut in cuts:
            requests = await self._requests(traffic, cut.since_s, cut.at_s)
            if requests is not None and (closing := self._closings.measured(cut, requests)) is not None:
                closings.append(closing)
        self._restate(growth=False)
        keeping = self._begin(closings=closings)
        return keeping is None or await keeping

    async def _count_others(self, traffic: Traffic) -> None:
        """Count what other processes were admitted lately: their use lets a rate grow too."""
        now_s = self._clock.now_s()
        own, since_s = traffic.meter.counted("requests", now_s, Meter.RECENT)
        requests = await self._requests(traffic, since_s, now_s)
        if requests is not None:
            traffic.others = max(0, requests - own - traffic.in_flight) * MINUTE_S / (now_s - since_s)

    async def _requests(self, traffic: Traffic, since_s: float, until_s: float) -> int | None:
        """Give the requests of all processes that a provider admitted; None if the ledger cannot be read."""
        query = UsageQuery(("model", "state"), since_s, until_s, only=(("account", traffic.account),))
        try:
            groups = await self._ledger.usage(query)
        except StoreError as error:
            log.warning("what all processes send was not counted: %s", error)
            return None
        return sum(
            group.requests
            for group in groups
            if group.group["state"] not in _NOT_ADMITTED and model_class(group.group["model"] or "") == traffic.models
        )

    # -- concurrency -------------------------------------------------------------------------------------------------

    def _follow_speed(self, sent: Sent, now_s: float) -> None:
        """Follow how fast an answer began; one that comes whole says nothing of that."""
        traffic, of_all = sent.traffic, self._traffics.of_class(sent.traffic.account, "")
        if sent.is_streamed:
            traffic.speed.follow(sent.asked.expected.input_tokens, now_s - sent.at_s)
        slowness, found = traffic.speed.slowness, traffic.concurrency
        if (start := of_all.concurrency or self._adopted(of_all, now_s)) is not None:
            self._bound(of_all, concurrency.answered(start, 1.0, start.amount, now_s), now_s)
        if found is None:
            found = self._adopted(traffic, now_s)
        if found is not None:
            self._bound(traffic, concurrency.answered(found, slowness, traffic.in_flight, now_s), now_s)
        elif (begun := concurrency.slowed(slowness, traffic.in_flight, now_s)) is not None:
            self._bound(traffic, begun, now_s)

    def _start_slowly(self, now_s: float) -> None:
        """Let what was closed open with one call, and then with more for each answer."""
        while self.limits.newly_closed:
            key = self.limits.newly_closed.pop()
            traffic, opens_s = self._traffics.of_class(key.account, key.models), self.limits.known[key].closed_until_s
            in_flight = sum(each.in_flight for each in self._traffics.all() if each.is_within(traffic))
            self._keep_bound(traffic, concurrency.reopening(in_flight, now_s, opens_s), now_s)

    def _adopted(self, traffic: Traffic, now_s: float) -> Concurrency | None:
        """Give what another process learned: whoever gets answers lets it grow back."""
        known = self.limits.known.get(traffic.key(SLOTS))
        return None if known is None else Concurrency(known.amount, known.since_s, now_s, known.amount)

    def _bound(self, traffic: Traffic, found: Concurrency | None, now_s: float) -> None:
        if self._keep_bound(traffic, found, now_s):
            self._restate()
            self._begin()

    def _keep_bound(self, traffic: Traffic, found: Concurrency | None, now_s: float) -> bool:
        """Keep a bound; give whether it is another than before."""
        key, traffic.concurrency = traffic.key(SLOTS), found
        known = self.limits.known.get(key)
        if found is None:
            self.limits.forget(key)
        elif known is None or known.amount != found.amount:
            heard_s = max(now_s, found.halved_s)  # which is to come where something opens again
            source: Source = "start" if found.starts else "latency"
            self.limits.keep(key, Learned(found.amount, source, found.since_s, heard_s, now_s), bounds=True)
        else:
            return False
        return True

    # -- in the store ------------------------------------------------------------------------------------------------

    def _restate(self, *, growth: bool = True) -> None:
        changed = self.limits.restate(growth=growth)
        if changed:
            self._nudge(changed)

    def _begin(
        self, *, corrections: Sequence[Correction] = (), closings: Sequence[Closing] = ()
    ) -> asyncio.Task[bool] | None:
        """Begin to bring to the store what is not there; None when all of it is, as after most answers."""
        records = self.limits.unwritten()
        if not records and not corrections and not closings:
            return None
        self._hearing.correcting.update(each.key for each in corrections)
        return self._start(self._keep(records, corrections, closings), self._tasks)

    def _start(self, work: Coroutine[Any, Any, bool], tasks: set[asyncio.Task[bool]]) -> asyncio.Task[bool]:
        task = asyncio.create_task(work, name="learning")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _keep(
        self,
        records: Mapping[str, Record | None],
        corrections: Sequence[Correction],
        closings: Sequence[Closing],
    ) -> bool:
        """Write records and change levels, in one transaction; False if the store could not.

        With news for other processes the serial is raised that each of their admissions compares.
        """
        bounded = [(self.limits.rate(each.key), each) for each in corrections]
        shut = [(self.limits.coming(each.key), each) for each in closings]
        known = self._planned.serial

        def step(found: Mapping[str, Record]) -> tuple[Mapping[str, Record | None], tuple[dict[str, Level], int]]:
            now_ns = to_ns(self._clock.now_s())
            levels = {
                rate.name: rate.corrected(found.get(rate.name), each.least_by_now, each.most, now_ns, each.ease)
                for rate, each in bounded
            }
            for rate, each in shut:
                levels[rate.name] = rate.closed(
                    found.get(rate.name), each.held_of(rate), each.until_ns, now_ns, exactly=each.exactly
                )
            changed = {name: level for name, level in levels.items() if level is not None}
            if not records:
                return changed, (changed, known)
            news = raised(found.get(PLANS), now_ns)
            return {**records, **changed, PLANS: news}, (changed, news[0] if serial_of(found) == known else known)

        try:
            names = [PLANS, *(rate.name for rate, _each in (*bounded, *shut))]
            levels, serial = await self._store.transact(names, step)
        except StoreError as error:
            self.limits.not_written(records)
            log.warning("what was learned was not kept, the next answer tries again: %s", error)
            return False
        finally:
            self._hearing.correcting.difference_update(each.key for each in corrections)
        self._seen.update(levels)
        self._planned.follow(known, serial)
        if fell := [rate for rate, each in bounded if rate.name in levels and (each.ease or each.most is not None)]:
            self._nudge(fell)  # who waits was told to wait for more
        self._restate()
        return True
