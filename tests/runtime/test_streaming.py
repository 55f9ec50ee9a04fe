"""While an answer streams, its output leaves the hold in parts and drains, and is counted once at the end."""

import asyncio
from dataclasses import dataclass

import pytest
from small_house import level_of, rate, slots

from headgate.core.amounts import Amounts, demand
from headgate.core.errors import StoreError
from headgate.core.limits import Rate
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.ports import Fate, Request
from headgate.runtime.calls import Call
from headgate.runtime.streaming import DRAWS, EarlyCharges
from headgate.testing.scripted import Reply, ScriptedAnswer, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
LIMITS = (rate("input_tokens", 6_000_000), rate("output_tokens", 60_000), slots(5))
HELD = 1_000


@dataclass(slots=True)
class Speaking(ScriptedAnswer):
    """An answer of which 100 tokens go by with each piece."""

    async def __aiter__(self):
        async for piece in super(Speaking, self).__aiter__():
            self.output_seen_tokens += 100
            yield piece


class SpeakingProvider(ScriptedProvider):
    def send(self, request):
        sending = super().send(request)

        class Sent:
            async def __aenter__(self):
                answer = await sending.__aenter__()
                return Speaking(answer.reply, answer.status, answer.failure)

            async def __aexit__(self, *ended):
                return await sending.__aexit__(*ended)

        return Sent()


def call(**facts) -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=HELD, **facts)


async def carry(house, what=None):
    async with house.manager.carry(what or call(), REQUEST) as carried:
        async for _chunk in house.manager.read(carried):
            pass


def provider(pieces, tokens):
    return SpeakingProvider([Reply(usage=Usage(100, output_tokens=tokens), pieces=pieces, pause_s=1)])


def test_output_is_charged_in_parts_while_it_goes_by(house):
    async def main():
        async with house(*LIMITS, provider=provider(8, 800)) as here:
            task = asyncio.create_task(carry(here))
            seen = []
            for _ in range(8):
                await asyncio.sleep(1.001)
                view = level_of(await here.manager.limits(), "output_tokens")
                seen.append(view.held)
            await task
            # 1,000 are held; 300 and 600 are the first to reach a quarter and one more, 800 is told at the end.
            assert seen == [1_000, 1_000, 700, 700, 700, 400, 400, 0]
            assert level_of(await here.manager.limits(), "output_tokens").held == 0

    run(main())


@pytest.mark.parametrize(
    ("facts", "second"),
    [
        ({}, [304] * 6 + [300, 200, 100, 0]),  # 135 tokens a second while a bucket of 2 s drains, and for 0.25 s more
        ({"is_streamed": False}, [1_000, 1_000, 700, 700, 700, 400, 400, 400, 100, 0]),
    ],
)
def test_of_a_stream_whose_pace_is_known_only_what_comes_next_is_held(house, facts, second):
    shallow = rate("output_tokens", 60_000, burst=2_000)

    async def main():
        async with house(shallow, provider=provider(10, 900)) as here:
            await carry(here, call())
            task = asyncio.create_task(carry(here, call(**facts)))
            held = []
            for _ in range(10):
                await asyncio.sleep(1.001)
                held.append(level_of(await here.manager.limits(), "output_tokens").held)
            await task
            assert held == second
            async with here.manager.admit(call()):  # its answer is not read here, so nothing of it is charged before
                assert level_of(await here.manager.limits(), "output_tokens").held == HELD

    run(main())


def test_calls_that_wait_are_estimated_anew(house):
    async def main():
        async with house(rate("output_tokens", 60_000, burst=HELD), provider=provider(10, 900)) as here:
            waiting = [asyncio.create_task(carry(here)) for _ in range(4)]
            begun_s = asyncio.get_running_loop().time()
            await asyncio.gather(*waiting)
            took_s = asyncio.get_running_loop().time() - begun_s
        # One by one they would take 40 s: the first holds the whole bucket, the others what comes next at its pace.
        assert took_s < 30

    run(main())


class CountingAdmission:
    def __init__(self, *, broken=False) -> None:
        self.drawn, self.settled, self.broken = [], [], broken

    async def change(self, _attempt, _limits, step):
        so_far, _asked = step.args
        self.drawn.append(so_far.output_tokens)
        if self.broken:
            raise StoreError("disk full")

    async def settle(self, _attempt, _limits, actual, dimensions):
        self.settled.append((actual.input_tokens, dimensions))


def early_charges(admission, *, held, dialect="anthropic", dimension="output_tokens"):
    limit = Rate("rate", "account:a", dimension, 10_000, 60, 10_000)
    return EarlyCharges(admission, "a.1", (limit,), demand(Amounts(output_tokens=held, input_tokens=1)), dialect)


@pytest.mark.parametrize(
    ("facts", "tokens", "most"),
    [
        ({"held": 1_000}, 1_000, DRAWS),
        ({"held": 40}, 60, 0),  # short answers cost nothing
        ({"held": 300}, 64_000, 30),  # beyond the hold ever more seldom
        ({"held": 1_000, "dialect": "openai"}, 1_000, 0),  # charged at the start
        ({"held": 1_000, "dimension": "tokens"}, 1_000, 0),
    ],
)
def test_few_charges_are_made_whatever_the_length(facts, tokens, most):
    async def main():
        admission = CountingAdmission()
        early = early_charges(admission, **facts)
        answer = ScriptedAnswer(Reply(), 200, None)
        for seen in range(1, tokens + 1):
            answer.output_seen_tokens = seen
            early.look(answer)
        await early.ended()
        assert len(admission.drawn) <= most
        assert bool(admission.drawn) is (most > 0)
        if tokens > facts["held"]:
            assert all(charged >= 0.7 * tokens for charged in admission.drawn[-1:])

    run(main())


def test_the_input_is_settled_once_with_the_first_that_tells_it():
    async def main():
        admission = CountingAdmission()
        early = early_charges(admission, held=1_000, dimension="input_tokens")
        answer = ScriptedAnswer(Reply(), 200, None)
        early.look(answer)
        for usage in (Usage(100, reported=False), Usage(100, output_tokens=5)):
            answer.usage = usage
            early.look(answer)
        await early.ended()
        assert admission.settled == [(100, ("input_tokens",))]

    run(main())


def test_an_answer_that_tells_all_at_once_is_settled_once():
    async def main():
        admission = CountingAdmission()
        early = early_charges(admission, held=1_000, dimension="input_tokens")
        early.look(ScriptedAnswer(Reply(), 200, None, usage=Usage(100, output_tokens=5)))
        await early.ended()
        assert admission.settled == []

    run(main())


def test_a_trouble_of_the_store_on_the_way_is_left_to_the_end():
    async def main():
        early = early_charges(CountingAdmission(broken=True), held=1_000)
        answer = ScriptedAnswer(Reply(), 200, None, output_seen_tokens=500)
        early.look(answer)
        await early.ended()

    run(main())


@pytest.mark.parametrize("fate", [None, Fate(Usage(100, output_tokens=800))])
def test_a_process_killed_in_the_middle_of_a_stream_is_counted_once(house, fate):
    async def main():
        alive = {"first": True}
        facts = {"alive": lambda owner: alive.get(owner, True)}
        async with house(*LIMITS, owner="first", provider=provider(8, 800), **facts) as first:
            stores = (first.levels, first.ledger)
            task = asyncio.create_task(carry(first, call(scopes=Scopes(run="r"))))
            await asyncio.sleep(4.5)
            (row,) = await first.ledger.in_flight()
            assert level_of(await first.manager.limits(), "output_tokens").held == 700
            alive["first"] = False
            asker = ScriptedProvider(fates={} if fate is None else {row.id: fate})
            async with house(*LIMITS, stores=stores, owner="second", provider=asker, **facts) as second:
                await second.manager.recover()
                view = level_of(await second.manager.limits(), "output_tokens")
                # 300 were charged 1.5 s ago and have drained; what was still held is spent, or known to be 500.
                assert (view.used, view.held) == ((700, 0) if fate is None else (500, 0))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_what_is_told_early_leaves_a_callers_share_to_be_corrected_at_the_end(house):
    async def main():
        async with house(*LIMITS) as here:
            admission = here.manager._admission
            async with here.manager.admit(call()) as grant:
                admission.lanes._charged[grant.attempt.id] = []
                early = EarlyCharges(admission, grant.attempt.id, grant.limits, grant.asked, grant.counting)
                early.look(ScriptedAnswer(Reply(), 200, None, usage=Usage(100)))
                await early.ended()
                assert grant.attempt.id in admission.lanes._charged
            assert not admission.lanes._charged

    run(main())
