"""What every policy promises, kept by the whole of admission: in virtual time, over a memory store.

The laws of the line alone are in `tests/core/test_ordering.py`; here calls wait, go, settle and give up as they do.
"""

import asyncio
from collections import Counter
from itertools import count
from random import Random

import pytest
from small_house import rate, slots

from headgate.core.choosing import POLICIES
from headgate.core.errors import DeadlineError
from headgate.core.scheduling import Scheduling, Standing
from headgate.core.scopes import Scopes
from headgate.core.shares import RETURN_CALLS
from headgate.core.usage import Usage
from headgate.runtime.calls import Call
from headgate.testing.virtual_time import run

every_policy = pytest.mark.parametrize("policy", list(POLICIES))
TOKENS_PER_S = 100
ONCE_S = 5.0
"""What a call of the costliest kind takes of the limit."""


async def call(here, log: list[tuple[str, float]], name: str, tokens: int, *, holds_s: float = 0.0, **facts) -> None:
    asked = Call("claude-test", input_tokens=tokens, max_output_tokens=1, **{"max_wait_s": 36_000.0, **facts})
    async with here.manager.admit(asked) as grant:
        log.append((name, asyncio.get_running_loop().time()))
        await asyncio.sleep(holds_s)
        grant.settle(Usage(tokens))


def a_mix(seed: int, calls: int) -> list[tuple[str, int, dict]]:
    """Calls of several sizes, priorities, classes and sessions, in an order of their own."""
    draw = Random(seed)
    return [
        (
            f"{number}",
            draw.choice((20, 100, 480)),
            {
                "standing": Standing(draw.randrange(-5, 6), interactive=draw.random() < 0.5),
                "scopes": Scopes(session=f"s{draw.randrange(4)}"),
            },
        )
        for number in range(calls)
    ]


async def all_of(here, mix: list[tuple[str, int, dict]], *, holds_s: float = 0.0) -> list[tuple[str, float]]:
    log: list[tuple[str, float]] = []
    async with asyncio.TaskGroup() as group:
        for name, tokens, facts in mix:
            group.create_task(call(here, log, name, tokens, holds_s=holds_s, **facts))
            await asyncio.sleep(0.01)
    return log


@every_policy
def test_a_spent_limit_is_used_to_the_full_and_nobody_is_lost(house, policy):
    """The last call goes when the limit has given all that was asked: none idled while others waited."""

    async def main():
        limits = (rate("input_tokens", 60 * TOKENS_PER_S, burst=500),)
        async with house(*limits, scheduling=Scheduling(policy)) as here:
            mix = a_mix(7, 60)
            log = await all_of(here, mix)
            assert sorted(name for name, _ in log) == sorted(name for name, _, _ in mix)
            took_s = (sum(tokens for _, tokens, _ in mix) - 500) / TOKENS_PER_S
            assert log[-1][1] - log[0][1] == pytest.approx(took_s, abs=0.01)

    run(main())


@every_policy
def test_slots_never_stand_empty_while_calls_wait(house, policy):
    async def main():
        async with house(slots(3), scheduling=Scheduling(policy)) as here:
            log = await all_of(here, a_mix(8, 60), holds_s=2.0)
            assert log[-1][1] - log[0][1] == pytest.approx(2.0 * (60 / 3 - 1), abs=0.1)

    run(main())


@every_policy
def test_the_same_calls_go_in_the_same_order_again(house, policy):
    async def main():
        limits = (rate("input_tokens", 60 * TOKENS_PER_S, burst=500), slots(2))
        async with house(*limits, scheduling=Scheduling(policy)) as here:
            return [name for name, _ in await all_of(here, a_mix(9, 40), holds_s=0.3)]

    assert run(main()) == run(main())


NEW_S = 0.5
"""What a call of the favoured takes of the limit; one comes as often, so that as many wait as at the beginning."""

WAITING = 5
MOST_S = {
    "fifo": WAITING * NEW_S,
    "priority": 20 * 60.0,
    "shortest": 20 * 20.0,
    "round_robin": 2 * WAITING * NEW_S,
    "fair": 4 * (ONCE_S + RETURN_CALLS * NEW_S) * (WAITING + 2),
    "program": 16 * 2 * ONCE_S * WAITING,
    "adaptive": 20 * 30.0 + 20 * 10.0,
}
"""Within how long the favoured may go first: what each policy states, for the calls that follow here."""


@every_policy
def test_a_call_that_the_policy_puts_last_goes_all_the_same(house, policy):
    """Without end others come that the policy likes better, as many as the limit lets go."""
    favoured = {"standing": Standing(priority=10, program_tokens=1)}
    last = {"standing": Standing(priority=-10, program_tokens=1_000), "scopes": Scopes(session="last")}

    async def main():
        async with house(rate("input_tokens", 60 * TOKENS_PER_S, burst=500), scheduling=Scheduling(policy)) as here:
            log: list[tuple[str, float]] = []
            came = [asyncio.create_task(call(here, log, "first", 500))]
            await asyncio.sleep(0)
            started = asyncio.get_running_loop().time()
            victim = asyncio.create_task(call(here, log, "last", 480, **last))
            for number in count():
                scopes = Scopes(session=f"new {number}")
                came.append(asyncio.create_task(call(here, log, "new", 50, scopes=scopes, **favoured)))
                if number >= WAITING:
                    await asyncio.sleep(NEW_S)
                waited_s = asyncio.get_running_loop().time() - started
                if victim.done():
                    break
                assert waited_s <= MOST_S[policy] + 2 * ONCE_S
            for each in came:
                each.cancel()
            await asyncio.gather(*came, return_exceptions=True)
            if policy in {"priority", "shortest", "program"}:  # the favoured really are
                assert waited_s > 10 * ONCE_S

    run(main())


@every_policy
def test_calls_that_give_up_leave_no_hole(house, policy):
    """Some wait no longer than a little: the others use what they leave, and none of it twice."""

    async def main():
        async with house(rate("input_tokens", 60 * TOKENS_PER_S, burst=500), scheduling=Scheduling(policy)) as here:
            log: list[tuple[str, float]] = []
            mix = a_mix(10, 60)
            waits_s = Random(11)
            outcomes = await asyncio.gather(
                *(
                    call(here, log, name, tokens, max_wait_s=waits_s.choice((3.0, 36_000.0)), **facts)
                    for name, tokens, facts in mix
                ),
                return_exceptions=True,
            )
            gave_up = Counter(type(each) for each in outcomes if each is not None)
            assert set(gave_up) == {DeadlineError}
            went = {name for name, _ in log}
            assert len(went) == len(log) == 60 - gave_up[DeadlineError]
            took_s = (sum(tokens for name, tokens, _ in mix if name in went) - 500) / TOKENS_PER_S
            assert log[-1][1] - log[0][1] == pytest.approx(took_s, abs=0.01)

    run(main())
