"""Planned reservations and maintenance over a store that several managers share."""

import asyncio
from dataclasses import dataclass

import pytest

from headgate.adapters.memory import MemoryLevelStore
from headgate.core import quota
from headgate.core.amounts import Amounts, demand
from headgate.core.limits import Limit, Window
from headgate.core.planning import Denied, Planned, Wanted
from headgate.core.quota import Admitted, Refused, Wait
from headgate.core.spans import Lifetime
from headgate.runtime.planning import PLANS, Maintenance, MaintenanceRule, Meeting, PlannedReservations, choose_limit

START_S = 1_750_000_000.0
BUDGET = Window("budget", "account:main", "micro_usd", 1_000, Lifetime())
RUN = ("account:main", "run:nightly")
OTHER = ("account:main", "run:other")


@dataclass
class Hands:
    now: float = START_S

    def now_s(self) -> float:
        return self.now


def named(names: list[str]) -> list[Limit]:
    return [BUDGET] if "budget" in names else []


def wish(units: int = 600, *, id_: str = "p", in_s: int = 0, for_s: int = 600) -> Wanted:
    from_s = int(START_S) + in_s
    return Wanted(id_, "run:nightly", units, from_s, from_s + for_s)


class House:
    """Two processes over one store."""

    def __init__(self) -> None:
        self.store = MemoryLevelStore()
        self.clock = Hands()
        self.here, self.there = (PlannedReservations(self.store, self.clock) for _ in range(2))
        self.calls = 0

    async def take(self, who: PlannedReservations, units: int, path: tuple[str, ...]) -> Admitted | Wait | Refused:
        self.calls += 1
        asked = demand(Amounts(micro_usd=units))
        return await who.take(f"hold/x/{self.calls}", Meeting([BUDGET], asked, path), lease_s=120.0)


@pytest.fixture
def house() -> House:
    return House()


def test_what_one_process_reserves_the_other_leaves_alone_at_its_next_call(house: House):
    async def main() -> None:
        assert isinstance(await house.take(house.there, 1, OTHER), Admitted)
        assert isinstance(await house.here.reserve(wish(), BUDGET), Planned)
        outcome = await house.take(house.there, 400, OTHER)
        assert isinstance(outcome, Wait)
        assert outcome.until_s == START_S + 600
        assert isinstance(await house.take(house.there, 399, OTHER), Admitted)
        assert isinstance(await house.take(house.there, 600, RUN), Admitted)

    asyncio.run(main())


def test_two_who_reserve_at_once_get_no_more_than_there_is(house: House):
    async def main() -> None:
        outcomes = await asyncio.gather(house.here.reserve(wish(), BUDGET), house.there.reserve(wish(id_="q"), BUDGET))
        assert sorted(type(each).__name__ for each in outcomes) == ["Denied", "Planned"]
        (denied,) = [each for each in outcomes if isinstance(each, Denied)]
        assert "possible: at most $0.0004" in denied.reason

    asyncio.run(main())


def test_cancelling_and_the_end_give_everything_back(house: House):
    async def main() -> None:
        await house.here.reserve(wish(), BUDGET)
        cancelled = await house.there.cancel("p")
        assert cancelled is not None
        assert cancelled.id == "p"
        assert await house.there.cancel("p") is None
        assert await house.here.cancel("never") is None
        await house.here.reserve(wish(id_="q"), BUDGET)
        house.clock.now += 600
        assert await house.here.cancel("q") is None
        assert isinstance(await house.take(house.there, 1_000, OTHER), Admitted)

    asyncio.run(main())


def test_a_call_settles_in_the_reservation_from_which_it_was_taken(house: House):
    async def main() -> None:
        await house.here.reserve(wish(), BUDGET)
        outcome = await house.take(house.here, 500, RUN)
        assert isinstance(outcome, Admitted)
        (view,) = await house.there.views(named)
        assert (view.plan.id, view.used, view.held, view.free) == ("p", 0, 500, 100)
        limits = house.here.with_parts([BUDGET])
        names = [limit.name for limit in limits]
        assert [limit.name for limit in house.here.resolve(names, named)] == names
        await house.store.transact(
            names,
            lambda records: (
                quota.settle(limits, records, outcome.reservation, Amounts(micro_usd=200), house.clock.now)[0],
                None,
            ),
        )
        (view,) = await house.here.views(named)
        assert (view.used, view.held, view.free) == (200, 0, 400)
        assert isinstance(await house.take(house.there, 401, OTHER), Wait)
        assert isinstance(await house.take(house.there, 400, OTHER), Admitted)

    asyncio.run(main())


def test_a_denial_changes_nothing(house: House):
    async def main() -> None:
        assert isinstance(await house.here.reserve(wish(1_001), BUDGET), Denied)
        assert isinstance(await house.here.reserve(wish(), None), Denied)
        assert await house.store.names(PLANS) == []

    asyncio.run(main())


def test_those_that_are_over_leave_the_record(house: House):
    async def main() -> None:
        await house.here.reserve(wish(), BUDGET)
        house.clock.now += 601
        assert await house.here.views(named) == []
        await house.here.reserve(wish(id_="q", in_s=700), BUDGET)
        record = await house.store.transact([PLANS], lambda records: ({}, records[PLANS]))
        assert [each[0] for each in record[1:]] == ["q"]

    asyncio.run(main())


def test_a_limit_is_meant_by_name_or_by_scope_and_dimension():
    other = Window("other", "account:b", "micro_usd", 5, Lifetime())
    assert choose_limit([BUDGET, other], name="budget") == BUDGET
    assert choose_limit([BUDGET, other], scope="account:b", dimension="micro_usd") == other
    assert choose_limit([BUDGET, other], dimension="micro_usd") == Denied(
        "'micro_usd' fits 2 limits; expected the name of one: budget; other"
    )
    assert choose_limit([BUDGET, other], name="none") == Denied(
        "there is no limit 'none'; expected one of: budget; other"
    )


def test_maintenance_is_reckoned_ahead_and_again():
    clock = Hands()
    asked: list[tuple[float, float]] = []

    def spans(from_s: float, until_s: float) -> list[tuple[float, float]]:
        asked.append((from_s, until_s))
        return [(from_s + 10, from_s + 20)]

    maintenance = Maintenance([MaintenanceRule("nightly", spans, models="claude-*", refuses=True)], clock)
    (closure,) = maintenance.met(RUN, "claude-x")
    assert (closure.begins_ns, closure.refuses) == ((START_S + 10) * 10**9, True)
    assert maintenance.met(RUN, "gpt-x") == ()
    clock.now += 59
    maintenance.met(RUN, "claude-x")
    assert len(asked) == 1
    clock.now += 1
    maintenance.met(RUN, "claude-x")
    assert len(asked) == 2
