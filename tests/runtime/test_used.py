"""What a call is charged for when its provider told less than all of it, or nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from small_house import budget, level_of, rate, slots

from headgate.core.ledger import UsageQuery
from headgate.core.retries import Failure
from headgate.core.scopes import Scopes
from headgate.core.usage import Usage
from headgate.ports import Cost, Request
from headgate.runtime.calls import Call
from headgate.testing.scripted import FlatPrices, Reply, ScriptedAnswer, ScriptedProvider
from headgate.testing.virtual_time import run

REQUEST = Request("POST", "/v1/messages", (), b"{}", "")
LIMITS = (rate("input_tokens", 6_000_000), rate("output_tokens", 6_000_000), slots(5), budget(10**9))


def call(**facts) -> Call:
    return Call("claude-test", text_bytes=400, max_output_tokens=100, scopes=Scopes(run="r"), **facts)


class NeverAnswers(ScriptedProvider):
    """Says how far a call came, and stays there."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__()
        self.connected = sent

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[ScriptedAnswer]:
        request.passage.sent = self.connected
        await asyncio.Event().wait()
        yield ScriptedAnswer(Reply(), 200, None)


async def carry(house, *, of: Call | None = None) -> None:
    async with house.manager.carry(of or call(), REQUEST) as carried:
        async for _chunk in house.manager.read(carried):
            pass


async def rows(house) -> list:
    return await house.manager.attempts("r")


async def cancelled(house) -> None:
    task = asyncio.create_task(carry(house))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_call_cancelled_while_it_connects_is_charged_nothing(house):
    async def main():
        async with house(*LIMITS, provider=NeverAnswers(sent=False)) as here:
            await cancelled(here)
            (row,) = await rows(here)
            assert (row.state, row.sent, row.cost_micro_usd) == ("cancelled", False, 0)
            assert (row.usage.prompt_tokens, row.usage.output_tokens) == (0, 0)
            assert all(view.used == view.held == 0 for view in await here.manager.limits())

    run(main())


def test_a_call_cancelled_before_the_first_byte_is_charged_its_prompt_as_one_that_broke(house):
    async def main():
        broken = ScriptedProvider([Reply(failure=Failure("connection", "no_answer_reset", retryable=False))])
        seen = []
        for provider in (NeverAnswers(sent=True), broken):
            async with house(*LIMITS, provider=provider) as here:
                if provider is broken:
                    await asyncio.gather(carry(here), return_exceptions=True)
                else:
                    await cancelled(here)
                (row,) = await rows(here)
                views = await here.manager.limits()
                seen.append((row.sent, row.usage, row.cost_micro_usd, level_of(views, "output_tokens").used))
        assert seen[0] == seen[1]
        sent, usage, cost, output_used = seen[0]
        assert (sent, usage.output_tokens, usage.reported, output_used) == (True, 0, False, 0)
        assert cost == usage.input_tokens * 3 > 0

    run(main())


def test_a_block_that_is_left_without_a_word_is_charged_its_estimate(house):
    async def main():
        async with house(*LIMITS) as here:
            with pytest.raises(asyncio.CancelledError):
                async with here.manager.admit(call()):
                    raise asyncio.CancelledError  # whoever sent it by other means may have had all of it
            (row,) = await rows(here)
            assert (row.sent, row.usage.output_tokens) == (True, 100)

    run(main())


class Silent(ScriptedAnswer):
    """An answer that is whole, and whose output could not be read."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.usage = Usage(90, output_tokens=0, reported=False)
        yield b"{}"


class Unread(ScriptedProvider):
    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[ScriptedAnswer]:
        request.passage.sent = True
        yield Silent(Reply(), 200, None)


def test_output_that_could_not_be_read_is_taken_as_estimated(house):
    async def main():
        async with house(*LIMITS, provider=Unread()) as here:
            await carry(here)
            (row,) = await rows(here)
            assert row.usage == Usage(90, output_tokens=100, reported=False)
            (total,) = await here.manager.usage(UsageQuery())
            assert total.estimated == 1

    run(main())


class Served(ScriptedProvider):
    """Names another model in its answer than it was asked for."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[ScriptedAnswer]:
        yield ScriptedAnswer(Reply(), 200, None, model_served=self.model)


class ByModel(FlatPrices):
    def cost(self, model: str, usage: Usage, at_s: float) -> Cost:
        by_model = {"claude-test": 1, "claude-test-2026": 2}
        return Cost(by_model[model], "list") if model in by_model else Cost(None, None)


@pytest.mark.parametrize(
    ("served", "cost"), [("claude-test-2026", 2), ("/models/my-model.gguf", 1), ("claude-test", 1)]
)
def test_a_call_is_priced_as_it_was_served_or_else_as_it_was_asked(house, served, cost):
    async def main():
        async with house(*LIMITS, provider=Served(served), prices=ByModel()) as here:
            async with here.manager.carry(call(), REQUEST) as carried:
                _ = [chunk async for chunk in here.manager.read(carried)]
                told = carried.answer
                assert here.manager.cost(carried.grant, told.usage, told.model_served) == cost
            (row,) = await rows(here)
            assert (row.cost_micro_usd, row.price_version, row.model_served) == (cost, "list", served)
            spent = next(view for view in await here.manager.limits() if view.dimension == "micro_usd")
            assert (spent.used, spent.held) == (cost, 0)

    run(main())


@pytest.mark.parametrize(
    ("reply", "charged"),
    [
        (Reply(usage=Usage(10, output_tokens=5)), 1_000),
        (Reply(usage=Usage(900, output_tokens=500)), 1_400),
        (Reply(failure=Failure("server", "server_error", 500, retryable=False)), 1_000),
        (Reply(failure=Failure("connection", "refused", retryable=False, sent=False)), 0),
    ],
)
def test_what_openai_reserves_at_the_start_is_not_given_back(house, reply, charged):
    async def main():
        async with house(rate("tokens", 6_000_000), provider=ScriptedProvider([reply])) as here:
            what = Call("gpt-test", "openai", max_output_tokens=1_000, scopes=Scopes(account="main", run="r"))
            await asyncio.gather(carry(here, of=what), return_exceptions=True)
            (view,) = [view for view in await here.manager.limits() if view.dimension == "tokens"]
            assert (view.used, view.held) == (charged, 0)

    run(main())
