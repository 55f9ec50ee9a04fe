"""Workers together: what one process of several knows alone is asked of all, whichever of them a request reaches.

One rule: who asks is identified before any other worker is troubled, and by each of them anew, with the credentials
that came; each tells only what that one may see. One that does not answer is named. What is in the store, one tells.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from headgate.adapters.providers.refusals import error_answer
from headgate.adapters.switchboard import UnansweredError
from headgate.core.errors import CallerError, CallerGoneError
from headgate.gateway.exchange import BodyTooLargeError, HttpExchange
from headgate.gateway.merging import MERGED, is_told_by_each

log = logging.getLogger("headgate.workers")

UNANSWERED = "unanswered"
"""The field, and after `x-headgate-` the header, that names the workers that did not answer."""

EVENTS_PATH, METRICS_PATH, KEYS_PATH, SCHEDULER_PATH = (
    "/api/v1/events", "/metrics", "/api/v1/keys", "/api/v1/scheduler",
)  # fmt: skip
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
MOST_CHANGE_BYTES = 64 * 1024
MOST_ANSWER_BYTES = 64 * 1024 * 1024
FOLLOW_AGAIN_S = 0.5
"""After a worker's events have ended, how long until they are asked for again: it is started anew meanwhile."""

BEGIN_WITHIN_S = 2.0
_OK, _MADE = 200, 201

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Siblings(Protocol):
    """The other workers, by number, as one of them reaches them."""

    @property
    def me(self) -> int:
        """The number of this one."""
        ...

    @property
    def others(self) -> Sequence[int]:
        """The numbers of the others, whether they are there or not."""
        ...

    async def ask(self, worker: int, word: str, body: Any) -> Any:
        """Give a worker's answer; raises UnansweredError within a bound."""
        ...

    def follow(self, worker: int, word: str, body: Any) -> Any:
        """Give a context of what a worker tells, piece by piece."""
        ...

    async def change_scheduler(self, change: Callable[[], Awaitable[bool]]) -> None:
        """Let this worker change its scheduler as the only one that does; if it did, the others then go by its.

        Raises:
            UnansweredError: not all could: nothing has changed.
        """
        ...


@dataclass(slots=True)
class Answer:
    """A whole answer of a gateway."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


class Together:
    """The ASGI application of one worker: its gateway, and the others where they have a part in the answer."""

    def __init__(self, gateway: App, siblings: Siblings) -> None:
        """Serve `gateway`."""
        self._gateway = gateway
        self._siblings = siblings

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        if not path.startswith("/api/v1/") and path != METRICS_PATH:
            await self._gateway(scope, receive, send)
        elif path == EVENTS_PATH and method == "GET":
            await self._events(scope, receive, send)
        elif path in MERGED and method == "GET":
            await self._merged(scope, receive, send)
        elif path == SCHEDULER_PATH and method == "PUT":
            await self._change_scheduler(scope, receive, send)
        elif (path == KEYS_PATH or path.startswith(f"{KEYS_PATH}/")) and method in _CHANGES:
            await self._change_keys(scope, receive, send)
        else:
            await self._gateway(scope, receive, send)

    async def _merged(self, scope: Message, receive: Receive, send: Send) -> None:
        own = await whole(self._gateway, scope, receive)
        if own.status == _OK:  # what is refused here is refused by all
            told, missing = await self._of_others("http", packed(scope))
            bodies = {self._siblings.me: own.body}
            for worker, (status, body) in told.items():
                if status == _OK:
                    bodies[worker] = body
                else:
                    missing.append(worker)
            names = _names(missing)
            # A page of many calls is milliseconds of work, for which no stream should stand still.
            own.body = await asyncio.to_thread(MERGED[scope["path"]], dict(sorted(bodies.items())), names)
            _name_unanswered(own, names)
        await _give(send, own)

    async def _change_keys(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lend or end keys: one that has ended has ended in all workers that answer before it is told."""
        own = await whole(self._gateway, scope, receive)
        if own.status in {_OK, _MADE}:
            names = _names((await self._of_others("forget keys", None))[1])
            if names:
                own.body = msgspec.json.encode({**msgspec.json.decode(own.body), UNANSWERED: names})
                _name_unanswered(own, names)
        await _give(send, own)

    async def _of_others(self, word: str, body: Any) -> tuple[dict[int, Any], list[int]]:
        """Ask all others at once; give what they answer, and who does not."""

        async def ask(worker: int) -> Any:
            try:
                return await self._siblings.ask(worker, word, body)
            except (UnansweredError, CallerError) as error:
                log.warning("%s was not answered: %s", word, error)
                return None

        others = self._siblings.others
        answers = dict(zip(others, await asyncio.gather(*map(ask, others)), strict=True))
        told = {worker: answer for worker, answer in answers.items() if answer is not None}
        return told, [worker for worker in others if worker not in told]

    async def _change_scheduler(self, scope: Message, receive: Receive, send: Send) -> None:
        # Whoever may not is refused before the body is read; whoever may gets no answer, for here the client has left.
        own = await whole(self._gateway, scope, _has_left)
        if own.status:
            await _give(send, own)
            return
        # Read before anybody waits for it: a slow client must not keep others from changing anything.
        try:
            body = await HttpExchange.of(scope, receive, send).body(MOST_CHANGE_BYTES)
        except CallerGoneError:
            return
        except BodyTooLargeError:
            body = bytes(MOST_CHANGE_BYTES + 1)  # for the gateway to refuse in its own words

        async def change() -> bool:
            nonlocal own
            own = await whole(self._gateway, scope, _replayed(body))
            return own.status == _OK

        try:
            await self._siblings.change_scheduler(change)
        except UnansweredError as error:
            own = Answer(
                *error_answer("anthropic", "overloaded", str(error), request_id=f"req_{secrets.token_hex(10)}")
            )
        await _give(send, own)

    async def _events(self, scope: Message, receive: Receive, send: Send) -> None:
        """Stream this worker's events with those of the others between them."""
        asked, tasks = packed(scope), list[asyncio.Task[None]]()
        sending = asyncio.Lock()

        async def send_between(message: Message) -> None:
            async with sending:
                await send(message)

        async def send_own(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _OK:
                begun = {worker: asyncio.Event() for worker in self._siblings.others}
                tasks.extend(
                    asyncio.create_task(self._follow(worker, asked, send_between, event), name=f"events of {worker}")
                    for worker, event in begun.items()
                )
                # Whoever has the head of the answer hears of all that happens from then on.
                with suppress(TimeoutError):
                    async with asyncio.timeout(BEGIN_WITHIN_S):
                        await asyncio.gather(*(event.wait() for event in begun.values()))
            await send_between(message)

        try:
            await self._gateway(scope, receive, send_own)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, worker: int, asked: Any, send: Send, begun: asyncio.Event) -> None:
        """Send on what another worker tells, of it and of the one that is started in its place."""
        while True:
            try:
                async with self._siblings.follow(worker, "events", asked) as pieces:
                    async for piece in pieces:
                        if not piece:
                            begun.set()
                            continue
                        if isinstance(piece, int):
                            piece = b'event: missed\ndata: {"events":%d}\n\n' % piece  # noqa: PLW2901
                        if not is_told_by_each(piece):
                            await send({"type": "http.response.body", "body": piece, "more_body": True})
            except UnansweredError as error:
                log.info("events: %s", error)
            begun.set()
            await asyncio.sleep(FOLLOW_AGAIN_S)


def answers_of(gateway: App) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """Give what a worker answers to others: requests, by its gateway alone."""

    async def http(asked: Any) -> tuple[int, bytes]:
        answer = await whole(gateway, unpacked(asked), _replayed(b""))
        return answer.status, answer.body

    return {"http": http}


def streams_of(gateway: App) -> dict[str, Callable[[Any], AsyncIterator[bytes]]]:
    """Give what a worker tells others piece by piece: its events."""

    async def events(asked: Any) -> AsyncIterator[bytes]:
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        status, is_read = 0, True

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status == _OK and is_read:
                await pieces.put(message.get("body", b""))

        async def run() -> None:
            try:
                await gateway(unpacked(asked), _nobody_leaves, send)
            except Exception:  # the boundary of a task: whoever reads hears of the end, and the log why
                log.exception("events for another worker broke off")
            await pieces.put(None)  # not in `finally`: one who reads no more leaves no room for it

        running = asyncio.create_task(run(), name="events for another worker")
        try:
            while (piece := await pieces.get()) is not None:
                # Comments are signs of life, of which each worker gives its own; the first says that it has begun.
                yield b"" if piece.startswith(b":") else piece
        finally:
            is_read = False
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    return {"events": events}


def packed(scope: Message) -> Any:
    """Give what of a request another worker needs to answer it."""
    return [scope["method"], scope["path"], scope["raw_path"], scope["query_string"], list(scope["headers"])]


def unpacked(asked: Sequence[Any]) -> Message:
    """Give the request again."""
    method, path, raw_path, query, headers = asked
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": [(bytes(name), bytes(value)) for name, value in headers],
    }


async def whole(gateway: App, scope: Mapping[str, Any], receive: Receive) -> Answer:
    """Give a whole answer of a gateway."""
    answer, pieces, size = Answer(), [], 0

    async def send(message: Message) -> None:
        nonlocal size
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], list(message.get("headers", ()))
        else:
            size += len(message.get("body", b""))
            if size > MOST_ANSWER_BYTES:
                raise UnansweredError(f"an answer of more than {MOST_ANSWER_BYTES:,} bytes is not merged")
            pieces.append(message.get("body", b""))

    await gateway(dict(scope), receive, send)
    answer.body = b"".join(pieces)
    return answer


def _names(workers: Sequence[int]) -> list[str]:
    return [f"worker {worker}" for worker in sorted(workers)]


def _name_unanswered(answer: Answer, names: Sequence[str]) -> None:
    """Say in the head of an answer who did not, and how long its new body is."""
    kept = [(name, value) for name, value in answer.headers if name != b"content-length"]
    named = [(f"x-headgate-{UNANSWERED}".encode(), ", ".join(names).encode())] if names else []
    answer.headers = [*kept, *named, (b"content-length", b"%d" % len(answer.body))]


async def _give(send: Send, answer: Answer) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


def _replayed(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _has_left() -> Message:
    return {"type": "http.disconnect"}


async def _nobody_leaves() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets it")
