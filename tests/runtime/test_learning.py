"""Learned limits, end to end: agents in front of a provider whose limits nobody told Headgate, in virtual time."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from learning_stage import MODEL, InProcess, LearningStage, Silent, open_learning_stage
from small_house import level_of, open_small_house, rate, slots

from headgate.adapters.memory import MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.errors import DeadlineError, ProviderError, StoreError
from headgate.core.notices import Notices, OverageNotice, PlanNotice, RateNotice
from headgate.core.retries import Failure
from headgate.core.scopes import Scopes
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.testing.provider import PlanWindow
from headgate.testing.scripted import Reply, ScriptedAnswer, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
CLASS = "claude-sonnet-4*"


class Bare(Silent):
    """Does not even tell for how long it refuses."""

    waits = False


async def carry(house, model: str = MODEL, **facts) -> int:
    async with house.manager.carry(Call(model, text_bytes=400, max_output_tokens=100, **facts), REQUEST) as exchange:
        async for _piece in house.manager.read(exchange):
            pass
        return exchange.answer.status


async def minutes(stage: LearningStage, last: int, agents: int = 20) -> tuple[int, int]:
    """Let agents call until the end of a minute; give the 429s and what was served since the last time."""
    refused, served = stage.refused(), stage.served()
    await stage.loops(agents, last * 60.0)
    return stage.refused() - refused, stage.served() - served


# -- from headers --------------------------------------------------------------------------------------------------


def test_a_limit_that_nobody_configured_is_learned_from_the_first_answer_and_used_whole():
    async def main():
        async with open_learning_stage(requests_per_minute=100) as stage:
            refused, served = await minutes(stage, 4)
            assert (refused, stage.failed) == (0, [])
            assert served >= 100 * 4.8  # the bucket was full, and a sixth of it stays unused
            view = await stage.learned()
            assert (view.learned, view.learned_from, view.models, view.configured) == (100, "header", CLASS, False)

    run(main())


def test_a_limit_that_is_halved_and_doubled_while_it_runs_is_followed():
    async def main():
        async with open_learning_stage(requests_per_minute=200) as stage:
            await minutes(stage, 2)
            stage.change("requests", 100)
            refused, served = await minutes(stage, 5)
            assert refused <= 1
            assert 270 <= served <= 310
            stage.change("requests", 200)
            refused, served = await minutes(stage, 8)
            assert refused == 0
            assert served >= 550
            assert stage.failed == []

    run(main())


def test_tokens_are_learned_with_the_requests():
    async def main():
        async with open_learning_stage(
            requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=10_000
        ) as stage:
            refused, _served = await minutes(stage, 5, agents=30)
            assert refused == 0
            assert stage.served("output_tokens") >= 0.9 * 10_000 * 5
            learned = {view.dimension: view.learned for view in await stage.manager.limits()}
            assert learned == {"requests": 1_000, "input_tokens": 60_000, "output_tokens": 10_000}

    run(main())


async def _other_client(stage: LearningStage, every_s: float, until_s: float) -> None:
    provider = AccountProvider(
        "other", VENDORS["anthropic"], "http://provider", "sk-test-0001", InProcess(stage.simulated)
    )
    message = {"model": MODEL, "max_tokens": 20, "messages": [{"role": "user", "content": "y"}]}
    while asyncio.get_running_loop().time() < until_s:
        async with provider.send(Request("POST", "/v1/messages", (), json.dumps(message).encode(), "")) as answer:
            async for _piece in answer:
                pass
        await asyncio.sleep(every_s)


def test_another_client_that_spends_too_is_seen_in_what_remains():
    async def main():
        async with open_learning_stage(requests_per_minute=200) as stage:
            other = asyncio.create_task(_other_client(stage, 0.3, 300))
            await minutes(stage, 5)
            await other
            assert stage.manager.refused_by_providers <= 2
            assert stage.served() >= 0.95 * 200 * 5
            assert stage.failed == []

    run(main())


def test_what_is_configured_is_a_ceiling_and_what_is_learned_stands_beside_it():
    async def main():
        async with open_learning_stage(rate("requests", 60), requests_per_minute=100) as stage:
            _refused, served = await minutes(stage, 3)
            assert served <= 60 * 4
            (view,) = await stage.manager.limits()
            assert (view.amount, view.learned, view.learned_from, view.configured) == (60, 100, "header", True)

    run(main())


def test_a_bucket_of_a_second_is_used_nearly_whole_though_resets_are_told_in_whole_seconds():
    async def main():
        async with open_learning_stage(requests_per_minute=1_800, burst_s=1.0) as stage:
            refused, served = await minutes(stage, 2, agents=60)
            assert refused <= 30  # what was on its way before the first answers, and the first steps
            assert served >= 0.9 * 1_800 * 2

    run(main())


class InStep:
    """Answers each call after the same time and in one piece, and tells what is left of its requests by then."""

    def __init__(self, rate_per_minute: int) -> None:
        self.rate, self.left, self.at_s, self.refused = rate_per_minute, float(rate_per_minute), 0.0, 0

    def remaining(self) -> float:
        now_s = asyncio.get_running_loop().time()
        self.left = min(self.rate, self.left + (now_s - self.at_s) * self.rate / 60)
        self.at_s = now_s
        return self.left

    @asynccontextmanager
    async def send(self, _request):
        if self.remaining() < 1:
            self.refused += 1
            reply = limited(1)
            yield ScriptedAnswer(reply, 429, reply.failure)
            return
        self.left -= 1
        await asyncio.sleep(0.3)
        yield ScriptedAnswer(replace(told(self.rate, int(self.remaining())), pieces=1), 200, None)


def test_agents_in_step_are_not_refused_though_they_call_again_while_the_last_answers_are_taken_up():
    async def main():
        provider = InStep(300)
        async with open_small_house(provider=provider) as here:

            async def agent():
                while asyncio.get_running_loop().time() < 60:
                    await carry(here)

            await asyncio.gather(*[agent() for _ in range(50)])
            assert provider.refused == 0

    run(main())


def test_a_pool_that_gets_less_than_is_configured_for_all_has_a_limit_of_its_own():
    async def main():
        async with open_learning_stage(rate("requests", 400), requests_per_minute=100) as stage:
            assert (await minutes(stage, 3))[0] <= 5  # the ones that were on their way before the first answer
            over_all, own = sorted(await stage.manager.limits(), key=lambda view: view.configured, reverse=True)
            assert (over_all.amount, over_all.learned, over_all.learned_models) == (400, 100, CLASS)
            assert (own.models, own.learned, own.configured) == (CLASS, 100, False)

    run(main())


def test_a_limit_configured_for_the_very_pool_goes_on_from_its_own_level():
    async def main():
        own = replace(rate("requests", 400), template=replace(rate("requests", 400).template, models=CLASS))
        async with open_learning_stage(own, requests_per_minute=100) as stage:
            await minutes(stage, 3)
            (view,) = await stage.manager.limits()
            assert (view.amount, view.learned, view.burst, view.configured) == (400, 100, 96, True)
            assert stage.failed == []

    run(main())


def told(limit: int | None, remaining: int | None = None, dimension="requests", **facts) -> Reply:
    return Reply(notices=Notices((RateNotice(dimension, limit, remaining, **facts),)))


class CountingStore(MemoryLevelStore):
    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.transactions = 0
        self.broken = broken

    async def transact(self, names, step):
        names = list(names)
        self.transactions += 1
        if self.broken and any(" rate-60s" in name for name in names) and "hold/" not in str(names):
            raise StoreError("the disk is full")
        return await super().transact(names, step)


def test_an_answer_that_says_nothing_new_goes_to_no_store():
    async def main():
        store = CountingStore()
        provider = ScriptedProvider([told(60, 59)])
        async with open_small_house(
            rate("requests", 60, burst=60), stores=(store, MemoryLedgerStore()), provider=provider
        ) as here:
            await asyncio.sleep(1)  # what a start looks at
            before = store.transactions
            for _ in range(3):
                provider.script = [told(60, 59)]
                await carry(here)
                await asyncio.sleep(1.5)
            assert store.transactions - before == 6  # each call's own: held, settled

    run(main())


def test_what_is_learned_is_taken_up_by_others_and_at_the_next_start():
    async def main():
        stores = (MemoryLevelStore(), MemoryLedgerStore())
        async with open_small_house(stores=stores, provider=ScriptedProvider([told(60, 59)])) as here:
            await carry(here)
            await asyncio.sleep(0.001)  # what an answer tells is kept beside its call
            async with open_small_house(stores=stores, owner="there") as there:
                view = level_of(await there.manager.limits(), "requests")
                assert (view.learned, view.learned_from, view.used) == (60, "header", 1)
                before = asyncio.get_running_loop().time()
                await asyncio.gather(*[carry(there) for _ in range(60)])
                assert asyncio.get_running_loop().time() - before >= 2.9  # two seconds of the rate stay, one was used

    run(main())


def test_what_nobody_has_heard_of_for_a_day_is_forgotten():
    async def main():
        async with open_small_house(provider=ScriptedProvider([told(60, 59)])) as here:
            await carry(here)
            await asyncio.sleep(86_500)
            assert await here.levels.names("learned/") == []
            assert here.manager.limits_met(Scopes(account="main"), MODEL) == ()

    run(main(), max_virtual_s=200_000)


def test_calls_that_waited_before_a_limit_was_learned_meet_it_too():
    async def main():
        provider = ScriptedProvider([replace(told(10), pieces=1, head_s=1.0)])
        async with open_small_house(slots(1), provider=provider) as here:
            await asyncio.gather(*[carry(here) for _ in range(20)])
            # Nine in a burst, then one each 6 s; without that it would take 20 s.
            assert asyncio.get_running_loop().time() >= 60

    run(main())


@pytest.mark.parametrize(
    "lie",
    [
        RateNotice("requests", 0, 0),
        RateNotice("requests", 10**15, 10**15),
        RateNotice("requests", 10**15, 0),
        RateNotice("requests", None, 0),
        RateNotice("requests", 1, 10**15),
        RateNotice("output_tokens", 1, 0, rounded_to=1000),
        RateNotice("input_tokens", 5, 3, rounded_to=1000),
        RateNotice("requests", 200, 199, resets_s=1_750_000_432.0),
        RateNotice("requests", 50, 0, tier="priority"),
    ],
)
def test_absurd_headers_do_no_harm_beyond_the_next_true_one(lie):
    async def main():
        truth = RateNotice("requests", 600, 590)
        script = [Reply(notices=Notices((lie,)))] * 5 + [Reply(notices=Notices((truth, RateNotice("tokens", 9))))]
        async with open_small_house(provider=ScriptedProvider(script)) as here:
            for _ in range(12):
                assert await carry(here, max_wait_s=400) == 200
                await asyncio.sleep(5)
            assert asyncio.get_running_loop().time() <= 420

    run(main())


# -- from 429s -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Silent, Bare])
def test_a_limit_that_is_told_by_refusing_alone_is_learned_with_a_handful_of_429s(kind):
    async def main():
        async with open_learning_stage(kind=kind, requests_per_minute=100) as stage:
            first, _served = await minutes(stage, 2)
            assert first <= 20  # the agents that were on their way at once
            refused, served = await minutes(stage, 8)
            assert refused <= 12  # two a minute
            assert served >= 0.95 * 100 * 6
            assert stage.failed == []
            assert (await stage.learned()).learned_from == "429"

    run(main())


@pytest.mark.parametrize("requests", [12, 20])
def test_a_small_limit_is_measured_over_several_429s_where_too_little_goes_through_between_two(requests):
    async def main():
        async with open_learning_stage(kind=Silent, requests_per_minute=requests) as stage:
            refused, served = await minutes(stage, 5, agents=4)
            assert refused <= 12  # about 30 where each is cut by a guess
            assert served >= 0.9 * requests * 5
            assert stage.failed == []

    run(main())


def limited(retry_after_s: float | None = 20, **facts) -> Reply:
    named = {name: facts.pop(name) for name in ("dimension", "period_s") if name in facts}
    failure = Failure("limited", "rate_limit_error", 429, retry_after_s=retry_after_s, **named)
    return Reply(failure=failure, **facts)


def test_a_429_closes_its_lane_for_all_that_wait_and_then_lets_one_go_at_a_time():
    async def main():
        loop = asyncio.get_running_loop()
        provider = ScriptedProvider([limited(20), Reply()])
        async with open_small_house(rate("requests", 60), provider=provider) as here:
            await asyncio.gather(carry(here), *[_later(here, 1 + number) for number in range(4)])
            sent_s = [at_s for at_s, _request in provider.sent]
            assert sent_s[0] == 0
            assert sent_s[1] == pytest.approx(20, abs=0.01)
            assert all(later - sooner >= 1 - 0.01 for sooner, later in pairwise(sent_s))
            assert loop.time() < 45

    run(main())


async def _later(house, after_s: float) -> int:
    await asyncio.sleep(after_s)
    return await carry(house)


def test_a_429_closes_the_dimension_it_names_and_no_other():
    async def main():
        rates = [rate(name, 60_000) for name in ("input_tokens", "output_tokens", "requests")]
        provider = ScriptedProvider([limited(30, dimension="output_tokens"), Reply()])
        async with open_small_house(*rates, provider=provider) as here:
            calling = asyncio.create_task(carry(here))
            await asyncio.sleep(1)
            views = {view.dimension: view for view in await here.manager.limits() if not view.configured}
            assert views.keys() == {"output_tokens"}
            assert views["output_tokens"].free == 0
            assert views["output_tokens"].closed_until_s == pytest.approx(here.clock.now_s() + 29, abs=0.01)
            assert await calling == 200

    run(main())


def test_what_is_told_to_be_empty_is_what_a_429_closes():
    async def main():
        notices = Notices((RateNotice("requests", 60, 40), RateNotice("output_tokens", 8_000, 0, rounded_to=1000)))
        provider = ScriptedProvider([limited(30, notices=notices), Reply()])
        async with open_small_house(provider=provider) as here:
            calling = asyncio.create_task(carry(here))
            await asyncio.sleep(1)
            closed = [view.dimension for view in await here.manager.limits() if view.closed_until_s is not None]
            assert closed == ["output_tokens"]
            await calling
            assert asyncio.get_running_loop().time() == pytest.approx(30, abs=0.1)

    run(main())


@pytest.mark.parametrize("period_s", [60, 86_400])
@pytest.mark.parametrize("dimension", ["output_tokens", "tokens", "requests"])
@pytest.mark.parametrize("most_tokens", [0, 100])
def test_a_429_is_waited_for_whatever_its_call_asks_of_the_dimension_that_is_named(dimension, most_tokens, period_s):
    """Nothing of it, or something that its refusal gives back."""

    async def main():
        provider = ScriptedProvider([limited(30, dimension=dimension, period_s=period_s)] * 2 + [Reply()])
        async with open_small_house(provider=provider) as here:
            call = Call(MODEL, text_bytes=400, max_output_tokens=most_tokens)
            async with here.manager.carry(call, REQUEST) as exchange:
                assert exchange.answer.status == 200
            assert [round(at_s) for at_s, _request in provider.sent] == [0, 30, 60]

    run(main())


def test_a_refused_call_waits_in_its_lane_until_its_deadline_and_not_for_four_attempts():
    async def main():
        provider = ScriptedProvider([limited(5)] * 9 + [Reply()])
        async with open_small_house(provider=provider) as here:
            assert await carry(here) == 200
            assert len(provider.sent) == 10
            provider.script = [limited(5)]
            began_s = asyncio.get_running_loop().time()
            with suppress(DeadlineError):  # or the provider's own word, when that is longer than what is left
                assert await carry(here, max_wait_s=60) == 429
            assert 50 <= asyncio.get_running_loop().time() - began_s <= 60

    run(main())


def test_a_retry_after_without_end_is_tried_again_every_hour():
    async def main():
        provider = ScriptedProvider([limited(1e15), Reply()])
        async with open_small_house(provider=provider) as here:
            assert await carry(here) == 429  # nobody waits for so long
            with pytest.raises(DeadlineError) as error:
                await carry(here)
            assert error.value.retry_after_s <= 3_600.1
            await asyncio.sleep(3_600)
            assert await carry(here) == 200

    run(main())


def test_when_nothing_can_be_closed_a_refused_call_waits_for_itself():
    async def main():
        provider = ScriptedProvider([limited(None)] * 3 + [Reply()])
        stores = (CountingStore(broken=True), MemoryLedgerStore())
        async with open_small_house(stores=stores, provider=provider) as here:
            with suppress(StoreError):
                await carry(here)
            assert len(provider.sent) <= 1 + asyncio.get_running_loop().time()

    run(main())


# -- plan windows --------------------------------------------------------------------------------------------------

FIVE_HOURS = 18_000


def test_a_spent_plan_window_is_closed_until_its_reset_and_nothing_counts_as_spent():
    async def main():
        settings = {"plan": (PlanWindow("5h", 1_000, FIVE_HOURS),)}
        async with open_learning_stage(settings=settings) as stage:
            while await stage.ask(max_wait_s=60) == 200:
                assert stage.done < 100
            ends_s = (await stage.manager.limits())[0].closed_until_s
            assert ends_s is not None
            assert stage.refused() <= 1
            began_s = stage.clock.now_s()
            assert await stage.ask(max_wait_s=FIVE_HOURS + 10) == 200
            assert stage.clock.now_s() == pytest.approx(ends_s, abs=3)
            assert stage.clock.now_s() - began_s > 3_600
            assert stage.refused() <= 1

    run(main(), max_virtual_s=100_000)


@pytest.mark.parametrize(("allowed", "sent"), [(False, 1), (True, 2)])
def test_overage_is_spent_only_where_the_owner_allows_it(allowed, sent):
    async def main():
        loop = asyncio.get_running_loop()
        resets_s = 1_750_000_000.0 + 7_000
        plan = PlanNotice(FIVE_HOURS, used_share=1.02, resets_s=resets_s, status="allowed")
        notices = Notices(plans=(plan,), overage=OverageNotice("allowed", in_use=True))
        provider = ScriptedProvider([Reply(notices=notices)])
        async with open_small_house(provider=provider, overage=allowed) as here:
            await carry(here)
            with suppress(DeadlineError):
                await carry(here, max_wait_s=60)
            assert len(provider.sent) == sent
            assert loop.time() < 61

    run(main())


# -- retries and overload ------------------------------------------------------------------------------------------

OVERLOADED = Reply(failure=Failure("overloaded", "overloaded_error", 529))


def test_retries_do_not_become_the_load():
    async def main():
        provider = ScriptedProvider([OVERLOADED])
        async with open_small_house(provider=provider) as here:
            for _ in range(100):
                await carry(here)
            assert len(provider.sent) <= 100 + 10 + 10 + asyncio.get_running_loop().time() / 6 + 1

    run(main())


def test_an_overloaded_provider_gets_fewer_calls_at_once_and_then_more_again():
    async def main():
        provider = ScriptedProvider([replace(OVERLOADED, pause_s=1.0)])

        async def agents(number: int, seconds: float) -> int:
            until_s = asyncio.get_running_loop().time() + seconds
            provider.most_open = 0

            async def agent() -> None:
                while asyncio.get_running_loop().time() < until_s:
                    with suppress(ProviderError, DeadlineError):
                        await carry(here, max_wait_s=30)

            await asyncio.gather(*[agent() for _ in range(number)])
            return provider.most_open

        async with open_small_house(provider=provider) as here:
            await agents(32, 20)
            assert await agents(32, 20) <= 8
            view = level_of(await here.manager.limits(), "slots")
            assert view.learned_from == "latency"
            provider.script = [Reply(pieces=1, pause_s=1.0)]
            await agents(32, 200)
            assert await agents(32, 20) >= 24

    run(main())
