"""A stream that is cut at any byte, by its provider or its client: the ledger has what was told, else what was seen."""

import asyncio
import json
from typing import Any, Self

import pytest

from headgate.adapters.memory import MemoryKeyStore, MemoryLedgerStore, MemoryLevelStore
from headgate.adapters.providers.account import AccountProvider
from headgate.adapters.providers.http import Broken
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.accounts import Account
from headgate.core.ledger import Attempt
from headgate.gateway.application import Gateway, GatewaySettings
from headgate.runtime.manager import Manager, Parts
from headgate.testing.scripted import FlatPrices
from headgate.testing.virtual_time import VirtualClock, run

GUESSED_INPUT = 1_000
"""What admission takes a prompt for that its provider never told: see `_estimate`."""

MESSAGES = (
    ("message_start", {"message": {"id": "m", "model": "claude-x", "usage": {
        "input_tokens": 7, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 5, "output_tokens": 1}}}),
    ("ping", {}),
    ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "Twenty-three letters :-)"}}),
    ("message_delta", {"delta": {"stop_reason": None}, "usage": {"output_tokens": 9}}),
    ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "and more of them than that"}}),
    ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 21}}),
    ("message_stop", {}),
)  # fmt: skip
OF_CHAT = {"id": "c", "model": "gpt-x"}
CHAT = (
    ("", {**OF_CHAT, "choices": [{"index": 0, "delta": {"content": "Some text of it"}, "finish_reason": None}]}),
    ("", {**OF_CHAT, "choices": [{"index": 0, "delta": {"content": " and the rest"}, "finish_reason": None}]}),
    ("", {"id": "c", "model": "gpt-x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    ("", {"id": "c", "model": "gpt-x", "choices": [], "usage": {
        "prompt_tokens": 30, "completion_tokens": 11, "prompt_tokens_details": {"cached_tokens": 20}}}),
)  # fmt: skip
RESPONSES = (
    ("response.created", {"response": {"id": "r", "model": "gpt-x", "status": "in_progress", "usage": None}}),
    ("response.output_text.delta", {"delta": "This is what it says"}),
    ("response.output_text.delta", {"delta": ", and this too"}),
    ("response.completed", {"response": {"id": "r", "model": "gpt-x", "status": "completed", "usage": {
        "input_tokens": 30, "output_tokens": 11, "input_tokens_details": {"cached_tokens": 20}}}}),
)  # fmt: skip


def wire(events) -> bytes:
    parts = []
    for name, data in events:
        head = f"event: {name}\n" if name else ""
        named = {"type": name, **data} if name else data
        parts.append(f"{head}data: {json.dumps(named, separators=(',', ':'))}\n\n")
    return "".join(parts).encode()


STREAMS = {
    "/v1/messages": wire(MESSAGES),
    "/v1/chat/completions": wire(CHAT) + b"data: [DONE]\n\n",
    "/v1/responses": wire(RESPONSES),
}


def told_by(path: str, seen: bytes) -> tuple[int | None, int, bool]:
    """Give the prompt, the output, and whether that is reported: what bytes tell, read in the plainest way there is."""
    prompt, told, letters, reported = None, 0, 0, False
    for event in seen.split(b"\n\n"):
        try:
            data = json.loads(event[event.index(b"data: ") + 6 :])
        except ValueError:  # half an event, or the end
            continue
        delta = data.get("delta", {})
        letters += len(delta if isinstance(delta, str) else delta.get("text", ""))
        letters += sum(len(choice["delta"].get("content", "")) for choice in data.get("choices", ()))
        within = data.get("message") or data.get("response") or data
        usage = within.get("usage")
        if usage:
            told = usage.get("output_tokens", usage.get("completion_tokens"))
            if path == "/v1/messages":
                cache = usage.get("cache_read_input_tokens", 0) + usage.get("cache_creation_input_tokens", 0)
                prompt = usage["input_tokens"] + cache if "input_tokens" in usage else prompt
                reported = delta.get("stop_reason") is not None
            else:
                prompt, reported = usage.get("input_tokens", usage.get("prompt_tokens")), True
    return prompt, told if reported else max(told, -(-letters // 4)), reported


class Cut:
    """The way to a provider that sends `stream` in two pieces, and then breaks off, or (None) says no more."""

    def __init__(self, stream: bytes, middle: int, error: Broken | None) -> None:
        self.status, self.reason, self.stale = 200, b"OK", False
        self.headers = [(b"content-type", b"text/event-stream")]
        self.waits, self.is_left = asyncio.Event(), False
        self._pieces = [piece for piece in (stream[:middle], stream[middle:]) if piece]
        self._error = error

    def send(self, *_args: Any, passage: Any, **_kwargs: Any) -> "Cut":
        passage.sent = True
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.is_left = True

    def __aiter__(self) -> "Cut":
        return self

    async def __anext__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._error is not None:
            raise self._error
        self.waits.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody wakes it")

    def arrived(self) -> bytes:
        arrived, self._pieces = b"".join(self._pieces), []
        return arrived


class House:
    """A gateway in virtual time, whose provider is another for each call."""

    def __init__(self, path: str) -> None:
        self.path, self.ledger = path, MemoryLedgerStore()
        self.dialect = "anthropic" if path == "/v1/messages" else "openai"
        self.provider = AccountProvider("main", VENDORS[self.dialect], "http://provider", "key", None)  # type: ignore[arg-type]
        parts = Parts(
            levels=MemoryLevelStore(), ledger=self.ledger, keys=MemoryKeyStore(), prices=FlatPrices(),
            clock=VirtualClock(), owner="here", owner_is_alive=lambda _owner: True,
            accounts=[Account("main", self.dialect, ("*",))], providers={"main": self.provider}, rules=(),
            rules_of_key=lambda _key: (),
        )  # fmt: skip
        self.manager = Manager(parts)
        self.gateway = Gateway(self.manager, GatewaySettings())

    async def call(self, way: Cut, *, reads: bool, leaves: bool) -> tuple[Attempt, bytes]:
        """Carry one call; its client reads or not, and leaves once nothing more comes."""
        self.provider._client = way  # type: ignore[assignment]
        gone, is_stuck, got = [], asyncio.Event(), bytearray()
        body = json.dumps({"model": "x", "max_tokens": 99, "stream": True, "input": "p" * 4 * GUESSED_INPUT}).encode()

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            if message["type"] == "http.response.body":
                if not reads and not is_stuck.is_set():
                    is_stuck.set()
                    await asyncio.Event().wait()
                got.extend(message["body"])

        scope = {
            "method": "POST", "path": self.path, "query_string": b"", "headers": [(b"host", b"localhost")],
            "extensions": {"headgate.when_gone": gone.append},
        }  # fmt: skip
        task = asyncio.create_task(self.gateway(scope, receive, send))
        if leaves:
            ends = [asyncio.create_task(each.wait()) for each in (way.waits, is_stuck)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for each in ends:
                each.cancel()
            gone[-1]()
            await asyncio.sleep(0)
            assert way.is_left, "one pass of the loop after its client the provider is rid of it too"
        await task
        assert way.is_left
        assert not self.manager.in_flight()
        rows = await self.ledger.attempts(None, 1)
        return rows[-1], bytes(got)


async def _input_guessed(house: House) -> int:
    """Give what a prompt is taken for while nobody has told."""
    row, _ = await house.call(Cut(b"", 0, Broken("h", "reset", "cut", elapsed_s=0.0)), reads=True, leaves=False)
    return row.usage.prompt_tokens


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("how", ["the provider breaks off", "the client leaves", "the client leaves and never read"])
def test_what_is_charged_is_what_the_bytes_told(path, how):
    async def main():
        house, stream = House(path), STREAMS[path]
        guessed = await _input_guessed(house)
        assert guessed > 0
        for length in range(1 if "never" in how else 0, len(stream) + 1):
            error = Broken("h", "reset", "cut", elapsed_s=0.0) if "provider" in how else None
            way = Cut(stream[:length], length * 7 % (length + 1), error)
            row, got = await house.call(way, reads="never" not in how, leaves=error is None)
            prompt, output, reported = told_by(path, stream[:length])
            where = stream[max(0, length - 30) : length]
            expected = (guessed if prompt is None else prompt, output, reported)
            assert (row.usage.prompt_tokens, row.usage.output_tokens, row.usage.reported) == expected, where
            assert row.state == ("cancelled" if error is None else "failed"), where
            assert row.cost_micro_usd == FlatPrices().cost("x", row.usage, 0.0).micro_usd
            if error is not None:
                # What its client gets are whole events, and then one of an error.
                whole = stream[: stream.rfind(b"\n\n", 0, length) + 2] if b"\n\n" in stream[:length] else b""
                assert _shown(path, whole) == got[: len(_shown(path, whole))], where
                assert b"error" in got[len(_shown(path, whole)) :], where
        await house.manager.close()

    run(main())


def _shown(path: str, events: bytes) -> bytes:
    """Give what a client sees of events: not the chunk with the usage that it did not ask for."""
    if path != "/v1/chat/completions":
        return events
    return b"".join(event + b"\n\n" for event in events.split(b"\n\n") if event and b'"choices":[]' not in event)
