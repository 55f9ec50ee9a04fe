"""Identical calls of one key are made once, where its owner wants that; what each of their clients gets, and pays."""

import asyncio
import json

import anthropic
import pytest
from standing_keys import a_standing_key, bearing

from headgate.core.errors import StoreError
from headgate.core.ledger import UsageQuery

SAID = json.dumps(
    {"type": "message", "id": "m", "role": "assistant", "model": "claude-opus-4-6", "stop_reason": "end_turn",
     "content": [{"type": "text", "text": "once"}], "usage": {"input_tokens": 100, "output_tokens": 10}}
).encode()  # fmt: skip
ASKED = {"model": "claude-opus-4-6", "max_tokens": 64, "messages": [{"role": "user", "content": "How are you?"}]}
BODY = json.dumps(ASKED).encode()
SHARES = '[[key]]\nname = "ci"\ncoalesce = true\n[[key]]\nname = "other"\n'


class Patient:
    """A provider that answers once it may, and counts what it is asked."""

    def __init__(self, status: int = 200, body: bytes = SAID) -> None:
        self.may_answer, self.asked, self.left = asyncio.Event(), 0, 0
        self._status, self._body = status, body

    async def __call__(self, scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        self.asked += 1
        gone = asyncio.create_task(receive())
        may = asyncio.create_task(self.may_answer.wait())
        await asyncio.wait((gone, may), return_when=asyncio.FIRST_COMPLETED)
        self.left += not may.done()
        for each in (gone, may):
            each.cancel()
        await asyncio.gather(gone, may, return_exceptions=True)
        head = [(b"content-type", b"application/json"), (b"x-should-retry", b"false")]
        await send({"type": "http.response.start", "status": self._status, "headers": head})
        await send({"type": "http.response.body", "body": self._body})


async def _until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - who waits for an answer has no event
            await asyncio.sleep(0)


def _waiting(stack) -> int:
    return sum(each.waiting for each in stack.house.manager.coalescing._under_way.values())


async def _sent(stack, keys, body=BODY) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(stack.send("POST", "/v1/messages", body, bearing(key.secret))) for key in keys]
    await _until(lambda: _waiting(stack) == sum(key.stored.name == "ci" for key in keys))
    return tasks


def test_three_identical_calls_are_one_at_the_provider_and_three_in_the_ledger(with_stack):
    provider = Patient()

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        tasks = await _sent(stack, [ci, ci, ci])
        provider.may_answer.set()
        answers = await asyncio.gather(*tasks)
        assert provider.asked == 1
        assert {(status, body) for status, _, body in answers} == {(200, SAID)}
        heads = sorted((head for _, head, _ in answers), key=lambda head: b"x-headgate-coalesced" in head)
        own, *shared = heads
        assert b"x-headgate-coalesced" not in own
        assert {head[b"x-headgate-coalesced"] for head in shared} == {own[b"x-headgate-call-id"]}
        assert {head[b"x-headgate-cost-micro-usd"] for head in shared} == {b"0"}
        assert len({head[b"x-headgate-call-id"] for head in heads}) == 3
        rows = await stack.house.manager._ledger.attempts(None)
        cost = int(own[b"x-headgate-cost-micro-usd"])
        assert sorted((row.cost_micro_usd, row.saved_micro_usd or 0, row.state, row.sent) for row in rows) == [
            (0, cost, "done", False),
            (0, cost, "done", False),
            (cost, 0, "done", True),
        ]
        assert {row.shared_with for row in rows} == {None, own[b"x-headgate-call-id"].decode()}
        (group,) = await stack.house.manager.usage(UsageQuery())
        assert (group.requests, group.attempts, group.input_tokens, group.cost_micro_usd) == (1, 3, 100, cost)
        _, _, metrics = await stack.send("GET", "/metrics", headers=bearing("admin-token"))
        assert b"headgate_coalesced_calls_total 2.0" in metrics

    admin = {"server": 'admin_token = "env:ADMIN"', "environ": {"ADMIN": "admin-token"}}
    with_stack(test, limits=SHARES, app=provider, **admin)


def test_other_keys_bodies_and_streams_share_nothing(with_stack):
    provider = Patient()

    async def test(stack):
        ci, other = await a_standing_key(stack, "ci"), await a_standing_key(stack, "other")
        tasks = await _sent(stack, [ci, other, other])
        for body in (BODY + b" ", BODY.replace(b"64", b'64,"stream":true'), BODY.replace(b"64", b'64, "stream": true')):
            tasks.append(asyncio.create_task(stack.send("POST", "/v1/messages", body, bearing(ci.secret))))
        await _until(lambda: provider.asked == 6)
        provider.may_answer.set()
        answers = await asyncio.gather(*tasks)
        assert not any(b"x-headgate-coalesced" in head for _, head, _ in answers)

    with_stack(test, limits=SHARES, app=provider)


def test_who_asked_first_may_leave_and_who_leaves_last_ends_it(with_stack):
    provider = Patient()

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        (first,) = await _sent(stack, [ci])
        second = await _one_more(stack, ci)
        await _until(lambda: provider.asked == 1)
        first.cancel()
        await _until(lambda: _waiting(stack) == 1)
        assert provider.left == 0
        second.cancel()
        await _until(lambda: provider.left == 1)
        await _until(lambda: not stack.house.manager.in_flight())
        (row,) = await stack.house.manager._ledger.attempts(None)
        assert row.state == "cancelled"
        (third,) = await _sent(stack, [ci])  # what was given up is joined by nobody
        provider.may_answer.set()
        assert (await third)[0] == 200
        assert provider.asked == 2

    with_stack(test, limits=SHARES, app=provider)


async def _one_more(stack, key) -> asyncio.Task:
    before = _waiting(stack)
    task = asyncio.create_task(stack.send("POST", "/v1/messages", BODY, bearing(key.secret)))
    await _until(lambda: _waiting(stack) == before + 1)
    return task


def test_what_goes_wrong_is_told_to_all(with_stack):
    provider = Patient(400, b'{"type":"error","error":{"type":"invalid_request_error","message":"No"}}')

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        async with anthropic.AsyncAnthropic(base_url=stack.url, api_key=ci.secret, max_retries=0) as client:
            calls = [asyncio.create_task(client.messages.create(**ASKED)) for _ in range(2)]
            await _until(lambda: _waiting(stack) == 2)
            provider.may_answer.set()
            for call in calls:
                with pytest.raises(anthropic.BadRequestError, match="No"):
                    await call
        rows = await stack.house.manager._ledger.attempts(None)
        assert [(row.state, row.saved_micro_usd) for row in rows] == [("failed", None)] * 2

    with_stack(test, limits=SHARES, app=provider)


class Failing:
    """A ledger whose rows are begun, after which something happens, and finished, or not at first."""

    def __init__(self, ledger, happens=lambda: None, fails: int = 0) -> None:
        self._ledger, self._happens, self.fails = ledger, happens, fails

    async def begin(self, row, when=None):
        begun = await self._ledger.begin(row, when)
        if row.shared_with is not None:
            self._happens()
            await asyncio.sleep(0)
        return begun

    async def finish(self, row):
        if row.shared_with is not None and self.fails:
            self.fails -= 1
            raise StoreError("the disk is full")
        return await self._ledger.finish(row)


@pytest.mark.parametrize("trouble", ["its client leaves", "the store fails"])
def test_a_shared_calls_row_gets_its_outcome_whatever_comes_between(with_stack, trouble):
    provider = Patient()

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        tasks = await _sent(stack, [ci, ci])
        settlements = stack.house.manager._calls._settlements
        noting = asyncio.Event()

        def happens() -> None:
            noting.set()
            if trouble == "its client leaves":
                for task in asyncio.all_tasks():
                    if task.get_name() == "noting":
                        task.cancel()

        kept = settlements._ledger
        settlements._ledger = Failing(kept, happens, fails=trouble == "the store fails")
        note = stack.house.manager.coalescing.note

        async def noted(*args, **more):
            asyncio.current_task().set_name("noting")
            await note(*args, **more)

        stack.house.manager.coalescing.note = noted
        provider.may_answer.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(noting.wait(), 10)
        await settlements.close()
        assert await stack.house.manager._calls.keep_unkept() == 0
        rows = await kept.attempts(None)
        assert sorted((row.state, row.shared_with is None) for row in rows) == [("done", False), ("done", True)]

    with_stack(test, limits=SHARES, app=provider)


@pytest.mark.parametrize("kind", [b"agent", b"session"])
def test_nobody_waits_under_anothers_limits(with_stack, kind):
    provider = Patient()

    async def test(stack):
        ci = await a_standing_key(stack, "ci")

        def send(who: bytes, body: bytes) -> asyncio.Task:
            headers = [*bearing(ci.secret), (b"x-headgate-" + kind, who)]
            return asyncio.create_task(stack.send("POST", "/v1/messages", body, headers))

        first = send(b"a", BODY + b" ")
        await _until(lambda: provider.asked == 1)
        second = send(b"a", BODY)  # waits for the one slot of its own
        await _until(lambda: _waiting(stack) == 2)
        other = send(b"b", BODY)
        await _until(lambda: provider.asked == 2)
        provider.may_answer.set()
        answers = await asyncio.gather(first, second, other)
        assert [status for status, _, _ in answers] == [200, 200, 200]

    slots = f'[[limit]]\nscope = "{kind.decode()}:*"\nslots = 1\n'
    with_stack(test, limits=SHARES + slots, app=provider)


def test_beyond_what_a_process_holds_each_call_is_made_by_itself(with_stack):
    provider = Patient()

    async def test(stack):
        ci = await a_standing_key(stack, "ci")
        held = stack.house.manager.coalescing.held

        async def send_two() -> None:
            tasks = await _sent(stack, [ci, ci])
            provider.may_answer.set()
            answers = await asyncio.gather(*tasks)
            assert {(status, body) for status, _, body in answers} == {(200, SAID)}
            await _until(lambda: not held.held_bytes)
            provider.may_answer.clear()

        await send_two()
        assert provider.asked == 1
        held.most_bytes = len(SAID) - 1
        await send_two()
        assert provider.asked == 1 + 3, "the one that could not be held, and one for each"
        held.most_bytes = 0
        tasks = [asyncio.create_task(stack.send("POST", "/v1/messages", BODY, bearing(ci.secret))) for _ in range(2)]
        await _until(lambda: provider.asked == 1 + 3 + 2)
        provider.may_answer.set()
        assert [status for status, _, _ in await asyncio.gather(*tasks)] == [200, 200]

    with_stack(test, limits=SHARES, app=provider)
