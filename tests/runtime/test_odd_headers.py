"""Whatever a provider writes into its headers: nothing crashes, and no call fails because of it, only waits a while."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_stage import ENDPOINTS, MODELS
from small_house import open_small_house

from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.accounts import Account
from headgate.core.errors import DeadlineError
from headgate.core.usage import Dialect
from headgate.ports import Request
from headgate.runtime.calls import Call
from headgate.testing.in_process import InProcess
from headgate.testing.virtual_time import run

DAY_S = 86_400.0
BEGINS = datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)  # where the virtual clock does

PARTS = [b"limit", b"remaining", b"reset"]
ANTHROPIC = [
    *(
        b"anthropic-ratelimit-%b-%b" % (what, part)
        for what in (b"requests", b"tokens", b"input-tokens", b"output-tokens")
        for part in PARTS
    ),
    *(b"anthropic-ratelimit-unified-%b" % name for name in (b"status", b"reset", b"representative-claim")),
    *(
        b"anthropic-ratelimit-unified-%b-%b" % (window, part)
        for window in (b"5h", b"7d", b"0h", b"7d_opus", b"overage")
        for part in (b"status", b"utilization", b"reset", b"in-use")
    ),
]
OPENAI = [
    *(
        b"x-ratelimit-%b-%b" % (part, what)
        for what in (b"requests", b"tokens", b"project-requests", b"project-tokens")
        for part in PARTS
    ),
    *(
        b"x-codex-%b-%b" % (slot, part)
        for slot in (b"primary", b"secondary", b"fox-primary")
        for part in (b"used-percent", b"window-minutes", b"reset-at", b"reset-after-seconds")
    ),
]
WAITS = [b"retry-after", b"retry-after-ms", b"x-ms-retry-after-ms", b"date"]
NAMES = {"anthropic": [*ANTHROPIC, *WAITS], "openai": [*OPENAI, *WAITS]}

instants = st.floats(-DAY_S, 400 * DAY_S).map(lambda ahead_s: BEGINS + timedelta(seconds=ahead_s))
numbers = st.one_of(
    st.integers(-5, 100), st.sampled_from([10**6, 10**9, 10**15, 2**63, 10**30]), st.floats(allow_nan=True, width=64)
)
values = st.one_of(
    numbers.map(lambda number: str(number).encode()),
    st.sampled_from([b"", b" ", b"-1", b"NaN", b"inf", b"1e309", b"0x10", b"1_000", b"60,60", b"9" * 400, b"\xff\xfe"]),
    st.sampled_from([b"6m0s", b"-6m0s", b"12ms", b"99999h", b"1d", b"0s", b"432", b"7m12s", b"8h0m0s"]),
    st.sampled_from([b"allowed", b"rejected", b"allowed_warning", b"true", b"five_hour"]),
    instants.map(lambda at: at.isoformat().encode()),
    instants.map(lambda at: b"%d" % at.timestamp()),
    instants.map(lambda at: b"%d" % (1000 * at.timestamp())),  # milliseconds where seconds are meant
    st.sampled_from([b"9999-12-31T23:59:59Z", b"2026-13-45T99:99:99Z", b"2026-11-02T12:30:00", b"Mon, 02 Nov 2026"]),
)


def answers(dialect: Dialect) -> st.SearchStrategy[list[list[tuple[bytes, bytes]]]]:
    """Heads of answers, in which a name may stand more than once."""
    header = st.tuples(st.sampled_from(NAMES[dialect]), values)
    return st.lists(st.lists(header, max_size=12), min_size=1, max_size=4)


class Odd:
    """Answers calls with the headers it was given, the last ones for all that come after."""

    def __init__(self, dialect: Dialect, heads: Sequence[list[tuple[bytes, bytes]]], status: int) -> None:
        self.dialect = dialect
        self.heads = heads
        self.status = status
        self.asked = 0

    async def __call__(self, scope, receive, send) -> None:
        head = self.heads[min(self.asked, len(self.heads) - 1)]
        refuses = self.status != 200 and self.asked < len(self.heads)
        self.asked += 1
        usage = {"input_tokens": 9, "output_tokens": 5, "prompt_tokens": 9, "completion_tokens": 5}
        body = {"type": "message", "model": MODELS[self.dialect], "stop_reason": "end_turn", "usage": usage}
        if refuses:
            body = {"type": "error", "error": {"type": "rate_limit_error", "message": "no"}}
        headers = [(b"content-type", b"application/json"), *head]
        await send({"type": "http.response.start", "status": self.status if refuses else 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def play(dialect: Dialect, heads: Sequence[list[tuple[bytes, bytes]]], status: int) -> list[int]:
    """Let calls that may wait for days come one after the other; give what became of them."""
    odd = Odd(dialect, heads, status)
    provider = AccountProvider("main", VENDORS[dialect], "http://provider", "sk-test", InProcess(odd))

    async def ask(house) -> int:
        call = Call(MODELS[dialect], dialect, text_bytes=40, max_output_tokens=20, max_wait_s=4 * DAY_S)
        body = {"model": call.model, "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]}
        request = Request("POST", ENDPOINTS[dialect], (), json.dumps(body).encode(), "")
        async with house.manager.carry(call, request) as exchange:
            async for _piece in house.manager.read(exchange):
                pass
            return exchange.answer.status

    async def main() -> list[int]:
        account = Account("main", dialect, overage=False)
        async with open_small_house(accounts=[account], providers={"main": provider}) as house:
            found = []
            for _ in range(6):
                found.append(await ask(house))
                await asyncio.sleep(2)
            await house.manager.limits()
            return found

    return run(main(), max_virtual_s=40 * DAY_S)


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
@settings(max_examples=60)
@given(data=st.data())
def test_no_call_fails_because_of_what_the_headers_of_answers_say(dialect, data):
    assert play(dialect, data.draw(answers(dialect)), 200) == [200] * 6


@pytest.mark.parametrize("dialect", ["anthropic", "openai"])
@pytest.mark.parametrize("status", [429, 529, 503])
@settings(max_examples=25)
@given(data=st.data())
def test_a_refusal_with_odd_headers_is_waited_for_or_given_to_its_caller(dialect, status, data):
    with suppress(DeadlineError):  # what is closed for a day at a time, again and again, may be too late for a call
        found = play(dialect, data.draw(answers(dialect)), status)
        assert set(found) <= {200, status}
        assert found[-1] == 200
