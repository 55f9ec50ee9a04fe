"""Plan windows follow the provider: told by an answer's head, moved once, beside the call."""

import asyncio
import json
from dataclasses import dataclass, field
from random import Random

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core import quota
from headgate.core.accounts import Account
from headgate.core.amounts import Amounts, demand
from headgate.core.errors import StoreError
from headgate.core.limits import Gauge, Window
from headgate.core.notices import Notices, PlanNotice
from headgate.core.quota import Admitted, Wait
from headgate.core.retries import RetryRule
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import OpenedByUse
from headgate.ports import Request
from headgate.runtime.account_pool import AccountPool
from headgate.runtime.admission import Admission
from headgate.runtime.calls import Call, Calls
from headgate.runtime.health import Health
from headgate.runtime.learning import Learning
from headgate.runtime.plan_windows import PlanWindows
from headgate.runtime.planning import Maintenance, PlannedReservations
from headgate.runtime.reservations import Reservations
from headgate.runtime.rules import Rules
from headgate.runtime.sight import Sight
from headgate.testing.in_process import InProcess
from headgate.testing.provider import Latency, PlanWindow, ProviderSettings, SimulatedProvider
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import VirtualClock, run

HOURS_5, DAYS_7 = 18_000, 604_800
FIVE_HOURS = Window("five hours", "account:main", "tokens", 1_000, OpenedByUse(HOURS_5))
SEVEN_DAYS = Window("seven days", "account:main", "tokens", 9_000, OpenedByUse(DAYS_7))
SLOTS = Gauge("slots", "account:main", "slots", 8)


@dataclass
class Told:
    """As much of an answer as is looked at."""

    ends_s: float | None
    period_s: int = HOURS_5
    asked: int = 0

    def notices(self, now_s: float) -> Notices:
        assert now_s
        self.asked += 1
        return Notices(plans=(PlanNotice(self.period_s, resets_s=self.ends_s),))


class CountingStore(MemoryLevelStore):
    """Counts transactions; fails as many as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.transactions = 0
        self.failures = failures

    async def transact(self, names, step):
        self.transactions += 1
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")
        return await super().transact(names, step)


@dataclass
class Stage:
    """Two processes over one store."""

    store: CountingStore = field(default_factory=CountingStore)
    clock: VirtualClock = field(default_factory=VirtualClock)
    nudged: list[str] = field(default_factory=list)

    def process(self) -> PlanWindows:
        return PlanWindows(self.store, self.clock, lambda limits: self.nudged.extend(each.name for each in limits))

    async def use(self, tokens: int) -> Admitted | Wait:
        reservations = Reservations(self.store, self.clock, "here", lease_s=600)
        return await reservations.take(f"{tokens}", [FIVE_HOURS, SEVEN_DAYS], demand(Amounts(tokens=tokens)))

    async def ends_s(self, limit: Window = FIVE_HOURS) -> float:
        levels = await MemoryLevelStore.transact(self.store, [limit.name], lambda found: ({}, dict(found)))
        return quota.read(limit, levels, self.clock.now_s()).resets_ns / 1e9


def test_a_call_waits_for_the_end_that_the_provider_told_and_not_for_its_own():
    async def main():
        stage = Stage()
        here = stage.process()
        assert isinstance(await stage.use(900), Admitted)
        own_end_s, told_s = await stage.ends_s(), stage.clock.now_s() + 600
        here.follow([SLOTS, FIVE_HOURS, SEVEN_DAYS], Told(told_s))
        await here.close()
        wait = await stage.use(200)
        assert isinstance(wait, Wait)
        assert abs(wait.until_s - told_s) < 1e-6 < own_end_s - told_s
        assert stage.nudged == ["five hours"]
        assert await stage.ends_s(SEVEN_DAYS) > own_end_s
        await asyncio.sleep(600)
        assert isinstance(await stage.use(200), Admitted)

    run(main())


def test_the_same_news_goes_to_the_store_once_from_each_process_and_changes_it_once():
    async def main():
        stage = Stage()
        here, there = stage.process(), stage.process()
        await stage.use(900)
        before = stage.store.transactions
        told_s = stage.clock.now_s() + 600
        for process in (here, there):
            for late_s in (0.0, 0.9, -0.9, 0.4):
                process.follow([FIVE_HOURS], Told(told_s + late_s))
        await here.close()
        await there.close()
        assert stage.store.transactions == before + 2
        assert stage.nudged == ["five hours"]
        assert abs(await stage.ends_s() - told_s) < 1e-6

    run(main())


def test_where_no_plan_window_is_configured_the_headers_are_not_even_read():
    async def main():
        stage = Stage()
        here = stage.process()
        answer = Told(stage.clock.now_s() + 600)
        here.follow([SLOTS, Window("key", "key:ci", "tokens", 5, OpenedByUse(HOURS_5))], answer)
        assert (answer.asked, stage.store.transactions) == (0, 0)
        here.follow([SEVEN_DAYS], answer)
        here.follow([FIVE_HOURS], Told(None))
        assert (answer.asked, stage.store.transactions) == (1, 0)

    run(main())


def test_what_could_not_be_kept_is_tried_again_with_the_next_answer():
    async def main():
        stage = Stage(CountingStore(failures=1))
        here = stage.process()
        told_s = stage.clock.now_s() + 600
        here.follow([FIVE_HOURS], Told(told_s))
        await here.close()
        here.follow([FIVE_HOURS], Told(told_s))
        await here.close()
        assert stage.nudged == ["five hours"]

    run(main())


# -- in front of the simulated provider ----------------------------------------------------------------------------

MODEL = "claude-sonnet-4-5"
A_HUNDRED_TOKENS = "x" * 400
MESSAGE = {"model": MODEL, "max_tokens": 25, "messages": [{"role": "user", "content": A_HUNDRED_TOKENS}]}


@dataclass
class Front:
    """One process's calls over a store, with an account at a provider, and what its limits say."""

    store: MemoryLevelStore
    clock: VirtualClock
    provider: AccountProvider
    limit: Window

    def __post_init__(self) -> None:
        self.ledger = MemoryLedgerStore()
        reservations = Reservations(self.store, self.clock, "here", lease_s=600)
        admission = Admission(self.store, reservations, self.clock)
        rules = Rules([LimitRule(self.limit.scope, self.limit)])
        learning = Learning(
            store=self.store,
            ledger=self.ledger,
            clock=self.clock,
            rules=rules,
            seen={},
            nudge=admission.nudge,
            planned=PlannedReservations(self.store, self.clock),
        )

        def limits_for(_scopes: Scopes, _model: str) -> tuple[Window]:
            return (self.limit,)

        planned, maintenance = PlannedReservations(self.store, self.clock), Maintenance((), self.clock)
        sight = Sight(
            reservations=reservations,
            rules=rules,
            planned=planned,
            maintenance=maintenance,
            lanes=admission.lanes,
            shares=learning.plan_shares,
            clock=self.clock,
        )
        pool = AccountPool([Account("main", "anthropic")], sight, Health(self.clock), self.clock)
        self.calls = Calls(
            admission=admission,
            ledger=self.ledger,
            prices=FlatPrices(),
            clock=self.clock,
            owner="here",
            pool=pool,
            providers={"main": self.provider},
            limits_for=limits_for,
            retries=RetryRule(),
            chooser=Random(7),
            learning=learning,
        )

    async def ask(self) -> int:
        call = Call(MODEL, input_tokens=100, max_output_tokens=25, max_wait_s=HOURS_5)
        request = Request("POST", "/v1/messages", (), json.dumps(MESSAGE).encode(), "")
        async with self.calls.carry(call, request) as exchange:
            async for _piece in self.calls.read(exchange):
                pass
            return exchange.answer.status


def test_calls_follow_a_plan_window_that_was_opened_long_before_headgate_was_there():
    async def main():
        clock, loop = VirtualClock(), asyncio.get_running_loop()
        settings = ProviderSettings(
            latency=Latency.none(), mean_output_tokens=25, output_sigma=0.0, plan=(PlanWindow("5h", 1_000, HOURS_5),)
        )
        simulated = SimulatedProvider(settings, wall_s=clock.now_s)
        provider = AccountProvider("main", VENDORS["anthropic"], "http://provider", "sk-test", InProcess(simulated))
        # Somebody uses half of it, and it is 400 s past the hour then: it ends 4 h 53 min 20 s from now.
        someone = Front(MemoryLevelStore(), clock, provider, FIVE_HOURS)
        assert [await someone.ask() for _ in range(4)] == [200] * 4
        began_s = loop.time()
        await asyncio.sleep(17_000)

        half = Window("half of five hours", "account:main", "tokens", 500, OpenedByUse(HOURS_5))
        front = Front(MemoryLevelStore(), clock, provider, half)
        assert await asyncio.gather(*[front.ask() for _ in range(8)]) == [200] * 8
        assert 17_600 <= loop.time() - began_s < 17_605
        assert simulated.usage()["total"]["refused_by"] == {}
        await front.calls.close()
        await someone.calls.close()

    run(main())
