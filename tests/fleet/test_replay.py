"""Replays: the bodies are what the recorded client would post, and a turn is posted until its stream has ended well."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headgate.adapters.agents.replay import ReplayAgent, bodies
from headgate.core.errors import ProviderError
from headgate.core.jobs import Job
from headgate.core.retries import Failure, RetryRule
from headgate.ports import Desk, Ended
from headgate.testing import virtual_time
from headgate.testing.provider.anthropic_request import read_messages
from headgate.testing.provider.recorded import RecordedSession, load_session

DESK = Desk("http://127.0.0.1:8484", "hg-own-key", Path("/nowhere"))
GOOD = b'event: message_start\ndata: {}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'


def line(kind: str, second: int, content: object, **more: object) -> str:
    at = f"2026-02-08T09:00:{second:02d}.000Z"
    return json.dumps({"t": at, "type": kind, "uuid": "u", "parent": None, "content": content, **more})


def answer(second: int, call: str, content: list[object]) -> str:
    usage = {"input_tokens": 10, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 0}
    return line("assistant", second, content, id=call, model="claude-sonnet-4-5", usage=usage)


@pytest.fixture
def session(tmp_path) -> RecordedSession:
    lines = [
        line("user", 0, "mend the gate"),
        answer(2, "msg_1", [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}]),
        line(
            "user", 12, [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a }]}"}]}]
        ),
        answer(14, "msg_2", [{"type": "text", "text": "mended"}]),
        line("user", 44, "thanks"),
        answer(45, "msg_3", [{"type": "text", "text": "welcome"}]),
    ]
    path = tmp_path / "0b8a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return load_session(path)


@dataclass
class ScriptedReply:
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: tuple[bytes, ...] = (GOOD[:30], GOOD[30:])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield chunk


class Gateway:
    """Answers posts in order with what the test scripted; good ones after that."""

    def __init__(self, *script: ScriptedReply | Exception) -> None:
        self.script = list(script)
        self.posted: list[tuple[float, dict[str, str], bytes]] = []
        self.open = 0

    @asynccontextmanager
    async def __call__(self, gateway: str, path: str, headers, body: bytes) -> AsyncIterator[ScriptedReply]:
        assert (gateway, path) == (DESK.gateway, "/v1/messages")
        named = {name.decode(): value.decode() for name, value in headers}
        self.posted.append((asyncio.get_running_loop().time(), named, body))
        reply = self.script.pop(0) if self.script else ScriptedReply()
        if isinstance(reply, Exception):
            raise reply
        self.open += 1
        try:
            yield reply
        finally:
            self.open -= 1


def job(attempt: int = 1) -> Job:
    return Job("run-1", 0, "0b8a", '{"recording": "x"}', attempt=attempt)


def replay(
    session: RecordedSession, gateway: Gateway, *, speed: float | None = None, attempt: int = 1, attempts: int = 4
) -> Ended:
    agent = ReplayAgent(
        lambda job: session,  # type: ignore[arg-type,return-value]  # msgspec's Raw is no bytes, but joins as bytes do
        gateway,
        speed=speed,
        retries=RetryRule(attempts=attempts),
        jitter=lambda: 1.0,
    )
    return virtual_time.run(agent.work(job(attempt), DESK))


def test_each_turn_is_the_request_that_the_recorded_client_made(session):
    turns = [json.loads(body) for body in bodies(session)]
    assert [len(turn["messages"]) for turn in turns] == [1, 3, 5]
    for turn in turns:
        assert (turn["model"], turn["max_tokens"], turn["stream"]) == ("claude-sonnet-4-5", 32000, True)
        assert turn["system"] == [
            {"type": "text", "text": session.system_text, "cache_control": {"type": "ephemeral"}},
        ]
        marked = [block for message in turn["messages"] for block in message["content"] if "cache_control" in block]
        assert marked == [turn["messages"][-1]["content"][-1]]
    assert turns[1]["messages"][-1]["content"][0]["content"] == [{"type": "text", "text": "a }]}"}]


def test_a_provider_reads_the_bodies_and_finds_the_prefix_of_the_turn_before(session):
    first, second, _ = (read_messages(body) for body in bodies(session))
    assert [block.identity for block in second.blocks[: len(first.blocks)]] == [
        block.identity for block in first.blocks
    ]
    assert len(second.breakpoints) == 2


def test_all_turns_are_posted_in_order_as_one_session_with_the_agents_own_key(session):
    gateway = Gateway()
    ended = replay(session, gateway)
    assert ended == Ended('{"turns": 3, "retries": 0, "limited": 0}')
    assert [body for _, _, body in gateway.posted] == list(bodies(session))
    assert {headers["x-claude-code-session-id"] for _, headers, _ in gateway.posted} == {"0b8a"}
    assert {headers["x-api-key"] for _, headers, _ in gateway.posted} == {"hg-own-key"}


def test_another_attempt_is_another_session(session):
    gateway = Gateway()
    replay(session, gateway, attempt=2)
    assert gateway.posted[0][1]["x-claude-code-session-id"] == "0b8a#2"


@pytest.mark.parametrize(("speed", "at_s"), [(None, [0, 0, 0]), (1.0, [0, 10, 40]), (10.0, [0, 1, 4])])
def test_the_time_between_turns_is_left_out_or_passes_faster(session, speed, at_s):
    gateway = Gateway()
    replay(session, gateway, speed=speed)
    assert [at for at, _, _ in gateway.posted] == pytest.approx(at_s)


def test_a_429_is_waited_out_as_long_as_it_says_and_counted(session):
    limited = ScriptedReply(429, [(b"Retry-After", b"20")], (b'{"error":{"type":"rate_limit_error","message":"m"}}',))
    gateway = Gateway(ScriptedReply(), limited)
    assert replay(session, gateway) == Ended('{"turns": 3, "retries": 1, "limited": 1}')
    assert [at for at, _, _ in gateway.posted] == pytest.approx([0, 0, 22, 22])  # spread by up to a tenth
    assert gateway.posted[1][2] == gateway.posted[2][2]


@pytest.mark.parametrize(
    "trouble",
    [
        ScriptedReply(529),
        ScriptedReply(500),
        ScriptedReply(chunks=(GOOD[:30],)),
        ScriptedReply(chunks=(b"event: error\ndata: {}\n\n",)),
        ProviderError("reset", Failure("connection", "reset")),
    ],
    ids=["overloaded", "server", "cut off", "error in the stream", "no answer"],
)
def test_trouble_that_passes_costs_a_retry(session, trouble):
    gateway = Gateway(trouble)
    assert replay(session, gateway).output == '{"turns": 3, "retries": 1, "limited": 0}'
    assert gateway.open == 0


def refused(status: int, kind: str, *headers: tuple[bytes, bytes]) -> ScriptedReply:
    return ScriptedReply(status, [*headers], (json.dumps({"error": {"type": kind, "message": "why"}}).encode(),))


@pytest.mark.parametrize(
    ("trouble", "posts", "error", "retryable"),
    [
        (lambda: refused(400, "invalid_request_error"), 1, "invalid_request_error: why (status 400)", False),
        (lambda: refused(429, "billing", (b"x-should-retry", b"false")), 1, "billing: why (status 429)", False),
        (lambda: refused(529, "overloaded_error"), 4, "overloaded_error: why (status 529)", True),
    ],
)
def test_trouble_that_stays_fails_the_job(session, trouble: Callable[[], ScriptedReply], posts, error, retryable):
    gateway = Gateway(*(trouble() for _ in range(9)))
    ended = replay(session, gateway)
    assert len(gateway.posted) == posts
    assert (ended.error, ended.retryable) == (f"turn 1: {error}, attempt {posts}", retryable)
