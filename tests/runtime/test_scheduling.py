"""Who goes next among the calls that wait, by the policy of their lane: in virtual time, over a memory store."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from small_house import rate, slots

from headgate.core.amounts import NOTHING, Amounts, Demand
from headgate.core.errors import DeadlineError
from headgate.core.limits import Rate, Window
from headgate.core.scheduling import LaneRule, Scheduling, Standing
from headgate.core.scopes import LimitRule, Scopes
from headgate.core.spans import Calendar
from headgate.core.usage import Usage
from headgate.runtime.backfill import MOST_IN_TURN, TURN_S
from headgate.runtime.calls import Call
from headgate.runtime.lanes import Ticket
from headgate.testing.virtual_time import run

SIX_A_MINUTE = rate("requests", 6, burst=1)


async def use(house, log: list[str], name: str, *, holds_s: float = 0.0, used: int | None = None, **facts) -> None:
    facts.setdefault("max_wait_s", 36_000.0)
    facts.setdefault("input_tokens", 100)
    facts.setdefault("max_output_tokens", 1)
    async with house.manager.admit(Call("claude-test", **facts)) as grant:
        log.append(name)
        await asyncio.sleep(holds_s)
        grant.settle(Usage(facts["input_tokens"] if used is None else used))


async def in_order(house, *calls: tuple[str, dict]) -> list[str]:
    """Let one call take what there is, then all others wait; give them as they go."""
    log: list[str] = []
    await use(house, [], "first")
    tasks = [asyncio.create_task(use(house, log, name, **facts)) for name, facts in calls]
    await asyncio.gather(*tasks)
    return log


def session(name: str) -> dict:
    return {"scopes": Scopes(session=name)}


@pytest.mark.parametrize(
    ("policy", "calls", "expected"),
    [
        ("fifo", [("a", {}), ("b", {}), ("c", {})], "abc"),
        (
            "priority",
            [("low", {"standing": Standing(priority=-5)}), ("mid", {}), ("top", {"standing": Standing(priority=5)})],
            ["top", "mid", "low"],
        ),
        ("round_robin", [("a", session("1")), ("b", session("1")), ("c", session("2")), ("d", session("2"))], "acbd"),
        ("fair", [("a", session("1")), ("b", session("1")), ("c", session("2"))], "acb"),
    ],
)
def test_a_lane_goes_by_its_policy(house, policy, calls, expected):
    async def main():
        async with house(SIX_A_MINUTE, scheduling=Scheduling(policy)) as here:
            assert await in_order(here, *calls) == list(expected)

    run(main())


def test_the_shortest_goes_first_by_its_estimate(house):
    async def main():
        limits = (rate("input_tokens", 6_000, burst=1_000),)
        async with house(*limits, scheduling=Scheduling("shortest")) as here:
            log: list[str] = []
            await use(here, [], "first", input_tokens=1_000)
            sizes = {"large": 900, "small": 50, "mid": 400}
            await asyncio.gather(*(use(here, log, name, input_tokens=size) for name, size in sizes.items()))
            assert log == ["small", "mid", "large"]

    run(main())


def test_what_was_really_used_corrects_a_share(house):
    """Two keys ask the same; what one really uses is ten times as much, so it goes less often."""

    async def main():
        async with house(rate("output_tokens", 600, burst=100), scheduling=Scheduling("fair")) as here:
            served: Counter[str] = Counter()

            async def loop(key: str, output: int):
                while True:
                    call = Call(
                        "claude-test",
                        input_tokens=1,
                        max_output_tokens=50,
                        scopes=Scopes(key=key),
                        max_wait_s=36_000,
                    )
                    async with here.manager.admit(call) as grant:
                        grant.settle(Usage(1, output_tokens=output))
                    served[key] += output

            loops = [asyncio.create_task(loop(key, output)) for key, output in (("a", 50), ("b", 5)) for _ in range(8)]
            await asyncio.sleep(3_600)
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            assert 0.8 < served["a"] / served["b"] < 1.25

    run(main())


def test_weights_are_respected(house):
    async def main():
        scheduling = Scheduling("fair", weights={"key:a": 3.0})
        async with house(rate("requests", 60, burst=1), scheduling=scheduling) as here:
            log: list[str] = []

            async def loop(key: str):
                while True:
                    await use(here, log, key, scopes=Scopes(key=key))

            loops = [asyncio.create_task(loop(key)) for key in "ab" for _ in range(5)]
            await asyncio.sleep(400)
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            assert Counter(log)["a"] / Counter(log)["b"] == pytest.approx(3, rel=0.05)

    run(main())


def test_a_policy_is_changed_while_calls_wait(house):
    async def main():
        async with house(SIX_A_MINUTE, scheduling=Scheduling("fifo")) as here:
            log: list[str] = []
            await use(here, [], "first")
            calls = [("a", {}), ("b", {"standing": Standing(priority=9)}), ("c", {}), ("d", {})]
            tasks = [asyncio.create_task(use(here, log, name, **facts)) for name, facts in calls]
            await asyncio.sleep(5)
            assert next(view.reason for view in here.manager.queue()) == "calls go in the order in which they came"
            here.manager.set_scheduling(Scheduling("priority"))
            (first, *_rest) = here.manager.queue()
            assert (first.policy, first.reason.partition(",")[0]) == ("priority", "its priority is 9")
            await asyncio.gather(*tasks)
            assert log == ["b", "a", "c", "d"]

    run(main())


def test_a_call_that_went_before_anybody_waited_was_its_agents_turn(house):
    async def main():
        async with house(slots(1), scheduling=Scheduling("round_robin")) as here:
            log: list[str] = []
            first = asyncio.create_task(use(here, log, "m", holds_s=1.0, **session("m")))
            await asyncio.sleep(0.1)
            await asyncio.gather(first, *(use(here, log, name, holds_s=1.0, **session(name)) for name in "mmno"))
            assert log == ["m", "n", "o", "m", "m"]

    run(main())


def test_lanes_have_policies_of_their_own(house):
    async def main():
        rule = LaneRule("run:*", "*", "priority")
        limits = (rate("requests", 6, burst=1, scope="run:*"),)
        async with house(*limits, scheduling=Scheduling("fifo", lanes=(rule,))) as here:
            scopes = Scopes(run="r")
            log: list[str] = []
            await use(here, [], "first", scopes=scopes)
            await asyncio.gather(
                use(here, log, "low", scopes=scopes),
                use(here, log, "top", scopes=scopes, standing=Standing(priority=1)),
            )
            assert log == ["top", "low"]

    run(main())


def test_a_call_that_needs_nothing_of_what_the_head_waits_for_goes_first(house):
    async def main():
        limits = (rate("output_tokens", 60, burst=60), rate("input_tokens", 60_000))
        async with house(*limits) as here:
            log: list[str] = []
            async with here.manager.admit(Call("claude-test", input_tokens=1, max_output_tokens=60)) as grant:
                grant.settle(Usage(1, output_tokens=60))
            waits = asyncio.create_task(use(here, log, "writes", max_output_tokens=60))
            await asyncio.sleep(1)
            started = asyncio.get_running_loop().time()
            await use(here, log, "embeds", endpoint="embeddings", max_output_tokens=0)
            assert asyncio.get_running_loop().time() == started
            await waits
            assert log == ["embeds", "writes"]

    run(main())


def test_a_call_whose_cache_is_about_to_die_goes_first(house):
    async def main():
        async with house(rate("input_tokens", 6_000, burst=6_000)) as here:
            now_s = here.clock.now_s()
            log: list[str] = []
            await use(here, [], "first", input_tokens=6_000)
            warm = Standing(warm_until_s=now_s + 40, cold=Amounts(1, 5_000))
            await asyncio.gather(
                use(here, log, "cold", input_tokens=3_000),
                use(here, log, "other", input_tokens=3_000),
                use(here, log, "warm", input_tokens=100, standing=warm),
            )
            assert log == ["warm", "cold", "other"]

    run(main())


def test_a_person_goes_before_a_batch_but_a_batch_is_not_starved(house):
    async def main():
        async with house(rate("requests", 60, burst=1)) as here:
            log: list[str] = []
            await use(here, [], "first")
            person = Standing(interactive=True)
            batch = [use(here, log, "batch") for _ in range(3)]
            people = [use(here, log, "person", standing=person) for _ in range(20)]
            await asyncio.gather(*batch, *people)
            assert log[:7] == ["person"] * 7
            assert log[7] == "batch"
            assert log.index("batch", 8) == 15

    run(main())


def test_who_cannot_make_its_deadline_is_told_at_once_when_it_could_run(house):
    async def main():
        async with house(slots(100), rate("requests", 60, burst=1)) as here:
            log: list[str] = []
            await use(here, log, "first")
            tasks = [asyncio.create_task(use(here, log, "waits")) for _ in range(100)]
            await asyncio.sleep(0.5)
            started = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineError, match="behind the 100 that wait already") as late:
                await use(here, log, "late", max_wait_s=30)
            assert asyncio.get_running_loop().time() == started
            assert late.value.retry_after_s == pytest.approx(100.5, abs=0.1)
            await asyncio.gather(*tasks)

    run(main())


def test_a_call_that_goes_first_in_two_lanes_does_not_move_between_them_for_ever(house):
    """A person's call waits for its account and its key, in both of which another came before it."""
    rules = (rate("requests", 60, burst=1), rate("input_tokens", 60, burst=60, scope="key:ci"))

    async def main():
        async with house(*rules, scheduling=Scheduling(policy="priority")) as here:

            async def use(what, name, log):
                async with here.manager.admit(what) as grant:
                    grant.settle(Usage(what.input_tokens))
                log.append(name)

            def call(key, priority, tokens):
                return Call(
                    "claude-test",
                    input_tokens=tokens,
                    max_output_tokens=0,
                    scopes=Scopes(key=key),
                    standing=Standing(priority=priority),
                    max_wait_s=600,
                )

            log = []
            await use(call("ci", 0, 60), "both full", [])
            of_account = asyncio.create_task(use(call("other", 0, 1), "account", log))
            await asyncio.sleep(0.1)
            of_key = asyncio.create_task(use(call("ci", 0, 50), "key", log))
            await asyncio.sleep(0.1)
            first = asyncio.create_task(use(call("ci", 5, 30), "first", log))
            moves = 0
            entered = here.manager._admission._enter

            def counted(waiting):
                nonlocal moves
                moves += 1
                assert moves < 100, "it moves from lane to lane"
                entered(waiting)

            here.manager._admission._enter = counted
            await asyncio.gather(of_account, of_key, first)
            assert log.index("first") < log.index("key")

    run(main())


BEHIND = 100
"""Calls behind a head: many times what is tried at each change."""


async def start(house, log: list[str], name: str, **facts) -> asyncio.Task[None]:
    task = asyncio.create_task(use(house, log, name, **facts))
    await asyncio.sleep(0.001)
    return task


@asynccontextmanager
async def day_with_a_queue(house, free: int):
    """A day with so much left, a call behind whose head many wait that need more than that."""
    day = Window("", "account:main", "input_tokens", 1_000, Calendar("day"))
    limits = rate("requests", 600_000), LimitRule("account:main", day)
    async with house(*limits) as here:
        log: list[str] = []
        await use(here, log, "spends", input_tokens=1_000 - free - 1)
        tasks = [await start(here, log, "head", input_tokens=990)]
        tasks += [await start(here, log, "large", input_tokens=900 + number % 7) for number in range(BEHIND)]
        yield here, log, tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_call_that_comes_behind_many_goes_at_once_where_that_delays_nobody(house):
    async def main():
        async with day_with_a_queue(house, free=400) as (_here, log, tasks):
            tasks.append(await start(_here, log, "small", input_tokens=100))
            assert log == ["spends", "small"]

    run(main())


def test_one_of_many_behind_a_head_goes_soon_after_a_change_lets_it(house):
    async def main():
        async with day_with_a_queue(house, free=400) as (here, log, tasks):
            tasks.append(await start(here, log, "holds", input_tokens=300, used=10, holds_s=10.0))
            tasks += [await start(here, log, "fits", input_tokens=250 + number) for number in range(3)]
            await asyncio.sleep(9.5)
            assert log == ["spends", "holds"]
            await asyncio.sleep(0.5 + 2 * (BEHIND / MOST_IN_TURN + 1) * TURN_S)
            assert log == ["spends", "holds", "fits"]

    run(main())


def test_who_waits_behind_a_head_is_told_at_once_that_it_cannot_make_its_deadline(house):
    async def main():
        async with day_with_a_queue(house, free=400) as (here, log, _tasks):
            started = asyncio.get_running_loop().time()
            for tokens in (500, 950):  # the cheapest of all, and one of many
                with pytest.raises(DeadlineError, match="would be admitted"):
                    await use(here, log, "late", input_tokens=tokens, max_wait_s=60)
            assert asyncio.get_running_loop().time() == started

    run(main())


def test_the_program_that_is_guessed_to_need_least_goes_first(house):
    """Without a guess the first one would go first."""

    async def main():
        async with house(rate("input_tokens", 6_000, burst=1_000), scheduling=Scheduling("program")) as here:
            guesses = {"long": 90_000, "short": 2_000, "middle": 20_000}
            calls = [
                (name, {"input_tokens": 950, "standing": Standing(program_tokens=guess), **session(name)})
                for name, guess in guesses.items()
            ]
            assert await in_order(here, *calls) == ["short", "middle", "long"]
            unsaid = [(name, {"input_tokens": 950, **session(f"another {name}")}) for name in guesses]
            assert await in_order(here, *unsaid) == ["long", "short", "middle"]

    run(main())


def test_one_that_asks_for_less_of_one_thing_and_more_of_another_goes_when_it_fits(house):
    """It was not tried behind one that asks for less in all, and the limit stood idle."""
    limits = [
        Rate(name, "account:main", dimension, 600, 60, 600, charged_at_start=dimension == "tokens")
        for name, dimension in (("o", "output_tokens"), ("i", "input_tokens"), ("t", "tokens"))
    ]

    async def main():
        async with house() as here:
            admission, went = here.manager._admission, {}

            async def go(name: str, **asks: int) -> None:
                amounts = NOTHING._replace(**asks)
                now_s = here.clock.now_s()
                asked = Demand(amounts, amounts)
                ticket = Ticket(f"{name}.1", tuple(limits), asked, Scopes(), "m", now_s, now_s + 1e5)
                await admission.admit(ticket)
                went[name] = asyncio.get_running_loop().time() - began
                await admission.settle(f"{name}.1", limits, amounts)

            began = asyncio.get_running_loop().time()
            await go("first", output_tokens=600, input_tokens=600, tokens=1)
            calls = [("head", {"output_tokens": 600, "tokens": 1})]
            calls += [(f"front {number}", {"output_tokens": 600, "tokens": 1}) for number in range(4)]
            calls += [("less in all", {"input_tokens": 500, "tokens": 10})]
            calls += [("less of one", {"input_tokens": 50, "tokens": 480})]
            tasks = []
            for name, asks in calls:
                tasks.append(asyncio.create_task(go(name, **asks)))
                await asyncio.sleep(0.001)
            await asyncio.sleep(59)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert went["less of one"] == pytest.approx(5.0, abs=0.2)

    run(main())
