"""Providers that say other things of their limits than they do: told waits of nothing, limits above the real ones."""

import asyncio
import json
from contextlib import suppress
from dataclasses import astuple
from itertools import pairwise

import pytest
from learning_stage import ENDPOINTS, MODEL, open_learning_stage
from small_house import open_small_house
from test_learning import carry, limited

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.accounts import Account
from headgate.core.adaptive import Learned
from headgate.core.errors import HeadgateError
from headgate.core.notices import Notices, RateNotice
from headgate.core.told import Gap
from headgate.runtime.traffic import Correction
from headgate.testing.in_process import InProcess
from headgate.testing.scripted import Reply, ScriptedProvider
from headgate.testing.virtual_time import run

DAY_S = 86_400
NOW_S = 1_750_000_000.0


@pytest.mark.parametrize("facts", [{}, {"dimension": "requests", "period_s": DAY_S}])
@pytest.mark.parametrize("told_s", [0.0, 0.001])
def test_who_refuses_again_and_again_and_tells_no_wait_is_asked_ever_less(told_s, facts):
    """Headgate sent its call again and again in one instant."""

    async def main():
        provider = ScriptedProvider([limited(told_s, **facts)] * 6 + [Reply(), limited(told_s, **facts), Reply()])
        async with open_small_house(provider=provider) as here:
            assert await carry(here) == 200
            sent_s = [at_s for at_s, _request in provider.sent]
            # By the minute at least as long as a call takes at the rate that is guessed: 0.7 of 60 a minute.
            one_s = 0.0 if facts else 60 / 42
            floors_s = [max(one_s, floor_s) for floor_s in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)]
            waited_s = [later - at_s for at_s, later in pairwise(sent_s)]
            assert waited_s == pytest.approx(floors_s, rel=0.1, abs=0.02)
            await carry(here)
            waited_s = provider.sent[-1][0] - provider.sent[-2][0]
            assert waited_s == pytest.approx(max(one_s, 0.05), rel=0.4, abs=0.02), "begins anew"

    run(main())


class Liar:
    """Lets `real` requests a minute go, and tells with each answer that `told` do and that nearly all are left."""

    def __init__(self, real: int, told: int, wait: bytes | None) -> None:
        self.real, self.told, self.wait = real, told, wait
        self.used, self.at_s = 0.0, 0.0
        self.served = self.refused = 0

    async def __call__(self, scope, receive, send) -> None:
        now_s = asyncio.get_running_loop().time()
        self.used, self.at_s = max(0.0, self.used - (now_s - self.at_s) * self.real / 60), now_s
        is_served = self.used + 1 <= self.real
        self.used += is_served
        self.served += is_served
        self.refused += not is_served
        told = {b"limit": self.told, b"remaining": self.told - 5, b"reset": int(NOW_S + now_s) + 1}
        headers = [(b"anthropic-ratelimit-requests-" + name, b"%d" % value) for name, value in told.items()]
        usage = {"input_tokens": 9, "output_tokens": 5}
        body = {"type": "message", "model": MODEL, "stop_reason": "end_turn", "usage": usage}
        if not is_served:
            body = {"type": "error", "error": {"type": "rate_limit_error", "message": "no"}}
            headers += [] if self.wait is None else [(b"retry-after", self.wait)]
        await asyncio.sleep(0.5)
        headers.append((b"content-type", b"application/json"))
        await send({"type": "http.response.start", "status": 200 if is_served else 429, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    def house(self):
        provider = AccountProvider("main", VENDORS["anthropic"], "http://provider", "sk-test", InProcess(self))
        return open_small_house(accounts=[Account("main", "anthropic")], providers={"main": provider})


async def ask_again_and_again(here, until_s: float) -> None:
    while asyncio.get_running_loop().time() < until_s:
        with suppress(HeadgateError):
            await carry(here, endpoint=ENDPOINTS["anthropic"], max_wait_s=600)
            continue
        await asyncio.sleep(1)


@pytest.mark.parametrize("wait", [None, b"0", b"1", b"10"])
@pytest.mark.parametrize("told", [70, 100_000])
def test_a_told_limit_above_the_real_one_costs_a_few_429s_a_minute_as_one_that_is_not_told(told, wait):
    """It was 1,500 a minute, for ever: what remained said go on."""

    async def main():
        liar = Liar(60, told, wait)
        async with liar.house() as here:
            agents = [asyncio.create_task(ask_again_and_again(here, 300.0)) for _ in range(50)]
            await asyncio.sleep(60)
            assert liar.refused <= 110, "twice what was on its way at once"
            refused, served = liar.refused, liar.served
            await asyncio.sleep(240)
            assert liar.refused - refused <= 4 * 3, "it was 17 a minute where 0 s are told"
            assert liar.served - served >= 0.9 * 4 * 60
            (view,) = [view for view in await here.manager.limits() if view.dimension == "requests"]
            assert view.learned_from == "429"
            assert view.learned <= told
            await asyncio.gather(*agents)

    run(main())


@pytest.mark.parametrize(("refusals", "source"), [(2, "header"), (3, "429")])
def test_two_429s_beside_headers_that_tell_room_cut_nothing_and_a_third_does(refusals, source):
    async def main():
        liar = Liar(1_000, 1_000, b"1")
        async with liar.house() as here:
            for _ in range(refusals):
                liar.used, liar.at_s = (
                    1_000.0,
                    asyncio.get_running_loop().time(),
                )  # another limit than the one that is told refuses one call
                await carry(here, endpoint=ENDPOINTS["anthropic"], max_wait_s=600)
                await asyncio.sleep(20)
            assert liar.refused == refusals
            (view,) = [view for view in await here.manager.limits() if view.dimension == "requests"]
            assert view.learned_from == source
            assert (view.learned == 1_000) == (source == "header")

    run(main())


def test_what_is_told_is_believed_again_ten_minutes_after_the_last_429():
    async def main():
        liar = Liar(10, 100, b"1")
        async with liar.house() as here:
            await asyncio.gather(*[ask_again_and_again(here, 60.0) for _ in range(20)])
            await carry(here)
            assert [view.learned_from for view in await here.manager.limits()] == ["429"]
            liar.real = 100
            await asyncio.sleep(650)
            for _ in range(5):
                await carry(here)
                await asyncio.sleep(6)
            facts = [(view.learned, view.learned_from) for view in await here.manager.limits()]
            assert facts == [(100, "header")]

    run(main())


def test_what_a_429_closed_is_not_filled_again_because_much_remains():
    async def main():
        told = Notices((RateNotice("requests", 60, 50, NOW_S + 10),))
        provider = ScriptedProvider([Reply(notices=told), limited(1, notices=told), Reply(notices=told)])
        async with open_small_house(provider=provider) as here:
            await carry(here)
            await asyncio.gather(*[ask_again_and_again(here, 15.0) for _ in range(10)])
            sent = sum(1 for at_s, _request in provider.sent if 1 <= at_s < 12.5)
            assert 11 <= sent <= 13, "one each second, as the rate gives it"

    run(main())


def test_a_call_that_waits_looks_again_when_its_level_turns_out_to_be_less_used():
    """It slept on until the instant that it was told before the level was corrected."""

    async def main():
        async with open_learning_stage(input_tokens_per_minute=10_000) as stage:
            await stage.ask(prompt_bytes=4_000)
            learning = stage.manager._learning
            (key,) = [each for each in learning.limits.bounding if each.what == "input_tokens"]
            waiting = asyncio.create_task(stage.ask(prompt_bytes=24_000))
            while (await asyncio.wait([waiting], timeout=2))[0]:
                waiting = asyncio.create_task(stage.ask(prompt_bytes=24_000))
            (waits,) = stage.manager._admission.waiting()
            assert waits.wait.until_s > stage.clock.now_s() + 3
            learning._begin(corrections=[Correction(key, 0, None, 100_000)])
            await asyncio.sleep(0.2)
            left = [each.wait.until_s for each in stage.manager._admission.waiting()]
            assert not left or left[0] < waits.wait.until_s - 10
            await waiting

    run(main())


def test_records_that_are_too_old_hide_no_fresh_ones_and_leave_the_store():
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        old_s = NOW_S - 3 * DAY_S
        old = astuple(Learned(60, "header", old_s, old_s, old_s))
        records = {f"learned/main a-model-{number:04} requests 60": old for number in range(1_200)}
        records["learned/main claude-sonnet-4* requests 60"] = astuple(Learned(60, "header", NOW_S, NOW_S, NOW_S))
        await stores[0].transact([*records], lambda _found: (records, None))
        async with open_learning_stage(stores=stores, requests_per_minute=60) as stage:
            await stage.manager._learning.refresh()
            assert [key.models for key in stage.manager._learning.limits.known] == ["claude-sonnet-4*"]
            await asyncio.sleep(1)
            assert await stores[0].names("learned/") == ["learned/main claude-sonnet-4* requests 60"]

    run(main())


def test_nothing_is_kept_of_a_key_that_was_forgotten():
    async def main():
        async with open_learning_stage(requests_per_minute=60) as stage:
            await stage.ask()
            learning = stage.manager._learning
            (key,) = learning.limits.known
            learning._hearing._gaps[key, "ease"] = Gap(NOW_S, 1)
            learning.limits.forget(key)
            assert learning._hearing._gaps == {}

    run(main())
