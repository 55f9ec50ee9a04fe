"""Replays as agents: a recorded session's conversation is posted again, turn by turn, as its client posted it.

One rule: a turn is posted until its stream has come to its proper end, a bounded number of times; then the job fails.
It reads no recordings and knows no HTTP client: both are handed in.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Protocol

from headgate.core.errors import ProviderError
from headgate.core.jobs import Job
from headgate.core.retries import Failure, RetryRule, retry_delay_s
from headgate.ports import Desk, Ended, Headers

__all__ = ["Recording", "ReplayAgent", "Reply", "Send", "Turn", "bodies"]

_MAX_TOKENS = 32_000
_MARK = b',"cache_control":{"type":"ephemeral"}'
_END_OF_LAST_BLOCK = b"}]}"
# The last event of a good stream is some 50 bytes long; an error event that ends a bad one may be longer.
_TAIL_BYTES = 4_096
_ERROR_BODY_BYTES = 16_384
_ERROR_CHARACTERS = 500
# Longer than the longest plan window that a provider would have one wait for (5 h).
_MOST_WAIT_S = 6 * 3_600.0
_OK, _SERVER_ERRORS = 200, 500


class Turn(Protocol):
    """One call of a recording. `messages_before` are in the API's own JSON, each with a list of blocks."""

    @property
    def model(self) -> str:
        """The model that was asked."""
        ...

    @property
    def gap_s(self) -> float:
        """The time since the answer before: tools that ran, people who thought."""
        ...

    @property
    def messages_before(self) -> Sequence[bytes]:
        """The conversation that the call carries."""
        ...


class Recording(Protocol):
    """A recorded session."""

    @property
    def session_id(self) -> str:
        """Its name."""
        ...

    @property
    def system_text(self) -> str:
        """What stands where the system prompt was."""
        ...

    @property
    def turns(self) -> Sequence[Turn]:
        """Its calls, in order."""
        ...


class Reply(Protocol):
    """An answer while it is read."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Headers:
        """The headers as they came."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the body."""
        ...


class Send(Protocol):
    """Posts a body to a path of the gateway; raises ProviderError where there is no answer."""

    def __call__(self, gateway: str, path: str, headers: Headers, body: bytes, /) -> AbstractAsyncContextManager[Reply]:
        """Enter when the head of the answer is there; leaving early cancels the call."""
        ...


@dataclass(slots=True)
class _Counts:
    turns: int = 0
    retries: int = 0
    limited: int = 0


class _TurnFailedError(Exception):
    """A turn failed for good."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ReplayAgent:
    """Replays what `open_recording` gives for a job; that is called in a thread, for reading a recording takes a while.

    `speed` says how much faster than recorded the time between turns passes; None leaves it out.
    """

    def __init__(
        self,
        open_recording: Callable[[Job], Recording],
        send: Send,
        *,
        speed: float | None = None,
        retries: RetryRule | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._open_recording = open_recording
        self._send = send
        self._speed = speed
        self._retries = retries or RetryRule(attempts=10)  # as often as the recorded client tries (wire.md section 1)
        self._jitter = jitter

    async def work(self, job: Job, desk: Desk) -> Ended:
        """Post every turn; the output counts turns, retries and the answers that were a 429."""
        recording = await asyncio.to_thread(self._open_recording, job)
        headers = _headers(recording, job, desk)
        counts = _Counts()
        failed: _TurnFailedError | None = None
        try:
            for turn, body in zip(recording.turns, bodies(recording), strict=True):
                if self._speed is not None and turn.gap_s > 0:
                    await asyncio.sleep(turn.gap_s / self._speed)
                await self._post(desk.gateway, headers, body, counts)
                counts.turns += 1
        except _TurnFailedError as error:
            failed = error
        said = json.dumps({"turns": counts.turns, "retries": counts.retries, "limited": counts.limited})
        if failed is None:
            return Ended(said)
        return Ended(said, error=f"turn {counts.turns + 1}: {failed}", retryable=failed.retryable)

    async def _post(self, gateway: str, headers: Headers, body: bytes, counts: _Counts) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._send(gateway, "/v1/messages", headers, body) as reply:
                    failure = await _read(reply)
            except ProviderError as error:
                failure = error.failure
            if failure is None:
                return
            counts.limited += failure.kind == "limited"
            delay_s = retry_delay_s(self._retries, failure, attempt, _MOST_WAIT_S, self._jitter())
            if delay_s is None:
                status = "" if failure.status is None else f" (status {failure.status})"
                again = failure.retryable and failure.kind != "rejected"
                raise _TurnFailedError(f"{failure.error_type}{status}, attempt {attempt}", retryable=again)
            if failure.kind == "limited":  # no lane is closed on this side: a client waits as long as it is told
                after_s = self._retries.first_delay_s if failure.retry_after_s is None else failure.retry_after_s
                delay_s = max(delay_s, after_s * (1 + 0.1 * self._jitter()))
            counts.retries += 1
            await asyncio.sleep(delay_s)


def bodies(recording: Recording) -> Iterator[bytes]:
    """Give the request of each turn.

    Messages are encoded already, so that a body is a join: 30 us for 300 KB. The system text and the last block carry
    cache marks, as the recorded client's do.
    """
    system = json.dumps(recording.system_text, ensure_ascii=False).encode()
    marked_system = b'"system":[{"type":"text","text":' + system + _MARK + b"}]," if recording.system_text else b""
    for turn in recording.turns:
        head = b'{"model":%b,"max_tokens":%d,"stream":true,' % (json.dumps(turn.model).encode(), _MAX_TOKENS)
        *before, last = turn.messages_before
        yield b"".join((head, marked_system, b'"messages":[', b",".join((*before, _marked(bytes(last)))), b"]}"))


def _marked(message: bytes) -> bytes:
    assert message.endswith(_END_OF_LAST_BLOCK), "a recorded message ends with its last block"
    return message[: -len(_END_OF_LAST_BLOCK)] + _MARK + _END_OF_LAST_BLOCK


def _headers(recording: Recording, job: Job, desk: Desk) -> Headers:
    # What one attempt has cached must not be taken for what the next one has sent.
    session = recording.session_id if job.attempt <= 1 else f"{recording.session_id}#{job.attempt}"
    return (
        (b"content-type", b"application/json"),
        (b"anthropic-version", b"2023-06-01"),
        (b"x-api-key", desk.key.encode()),
        (b"x-claude-code-session-id", session.encode()),
    )


async def _read(reply: Reply) -> Failure | None:
    """Read an answer to its end; give why it was none, if it was none."""
    tail = b""
    if reply.status == _OK:
        async for chunk in reply:
            tail = (tail + chunk)[-_TAIL_BYTES:]
        if b"event: message_stop" in tail:
            return None
        broken = "the stream ended with an error" if b"event: error" in tail else "the stream ended before its end"
        return Failure("server", broken, _OK)
    async for chunk in reply:
        tail = (tail + chunk)[:_ERROR_BODY_BYTES]
    return _failure(reply, tail)


def _failure(reply: Reply, body: bytes) -> Failure:
    headers = {name.lower(): value for name, value in reply.headers}
    error_type = f"status {reply.status}"
    with suppress(ValueError, KeyError, TypeError):  # an answer of something between: its status says enough
        error = json.loads(body)["error"]
        error_type = f"{error['type']}: {error['message']}"[:_ERROR_CHARACTERS]
    after_s: float | None = None
    with suppress(ValueError, KeyError):  # absent, or a date, which these providers never send
        after_s = max(0.0, float(headers[b"retry-after"]))
    retryable = headers.get(b"x-should-retry") != b"false"
    match reply.status:
        case 429:
            return Failure("limited", error_type, reply.status, after_s, retryable)
        case 503 | 529:
            return Failure("overloaded", error_type, reply.status, after_s, retryable)
        case status if status >= _SERVER_ERRORS:
            return Failure("server", error_type, status, after_s, retryable)
        case status:
            return Failure("rejected", error_type, status, after_s, retryable=False)
