"""The switchboard: processes that serve together ask and tell one another, over sockets that one of them has to all.

One rule: every wait has a bound, and whoever does not answer is an `UnansweredError` that names it. An answer reaches
only who asked for it: not the process that is started in its place. The one in the middle (number 0) reaches all.
"""

import asyncio
import itertools
import logging
import secrets
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec

from headgate.core.errors import CallerError, HeadgateError

__all__ = ["MIDDLE", "Switchboard", "UnansweredError"]

log = logging.getLogger("headgate.workers")

MIDDLE = 0
"""The process that has a socket to each."""

ANSWER_WITHIN_S = 2.0
"""How long an answer is waited for: the longest of them is a look into the store."""
MOST_MESSAGE_BYTES = 64 * 1024 * 1024
MOST_UNSENT_BYTES = 64 * 1024 * 1024
"""Kept for a process that does not read; what comes beyond is dropped, and who waits for it hears nothing."""
MOST_UNREAD = 1_000
"""Pieces of a stream that a reader may be behind; it loses the oldest and is told how many."""

_LENGTH = struct.Struct("!I")

Answerer = Callable[[Any], Awaitable[Any]]
Streamer = Callable[[Any], AsyncIterator[Any]]


class UnansweredError(HeadgateError):
    """Another process did not answer in time, or is not there."""


class _Message(msgspec.Struct, array_like=True):
    to: int
    sender: int
    kind: Literal["ask", "answer", "caller_error", "error", "stream", "piece", "end", "stop", "gone"]
    number: int
    life: int
    """Of who asks: random, and another one in the process that is started in its place and counts from 1 again."""
    word: str = ""
    body: Any = None


_Key = tuple[int, int, int]
"""Who asks, in which life, and which of its numbers it is."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Message).decode


class _Stream:
    def __init__(self) -> None:
        self.pieces: deque[Any] = deque(maxlen=MOST_UNREAD)
        self.missed = 0
        self.more = asyncio.Event()
        self.ended = False


class Switchboard:
    """The messages of one process. `answers` and `streams` say by word what it tells those who ask."""

    def __init__(self, me: int, answers: Mapping[str, Answerer], streams: Mapping[str, Streamer] | None = None) -> None:
        """Begin without a socket."""
        self.me = me
        self.answers = dict(answers)
        self.streams = dict(streams or {})
        self.on_lost: Callable[[int], None] = lambda _peer: None
        """Told whose socket has ended."""
        self._ways: dict[int, _Way] = {}
        self._life = secrets.randbits(63)
        self._lives: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        self._heard: dict[int, tuple[int, _Stream]] = {}
        self._working: dict[_Key, asyncio.Task[None]] = {}

    async def connect(self, peer: int, plug: socket.socket) -> None:
        """Reach a process, and from the middle all others, over a socket."""
        plug.settimeout(0)
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: _Way(self, peer), sock=plug)

    def has(self, peer: int) -> bool:
        """Whether there is a socket to a process."""
        return peer in self._ways

    def close(self) -> None:
        """Close all sockets, and end what is asked or told over them."""
        for way in list(self._ways.values()):
            way.transport.close()
        for task in self._working.values():
            task.cancel()

    async def ask(
        self, to: int, word: str, body: Any = None, *, within_s: float = ANSWER_WITHIN_S, or_never: bool = False
    ) -> Any:
        """Ask a process, and give its answer.

        `or_never`: what was asked is not to be done any more once nobody waits for it.

        Raises:
            UnansweredError: it does not answer in time, or has an error of its own.
            CallerError: what was asked cannot be done, as it says.
        """
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[number] = (to, answer)
        try:
            self._send(_Message(to, self.me, "ask", number, self._life, word, body))
            async with asyncio.timeout(within_s):
                return await answer
        except (TimeoutError, asyncio.CancelledError) as error:
            if or_never:
                self._send(_Message(to, self.me, "stop", number, self._life))
            if isinstance(error, asyncio.CancelledError):
                raise
            raise UnansweredError(f"{_named(to)} did not answer within {within_s:g} s") from None
        finally:
            del self._asked[number]

    def tell(self, to: int, word: str, body: Any = None) -> None:
        """Tell a process something that it need not answer; whether it is there is not known."""
        if self._way_to(to) is not None:
            self._send(_Message(to, self.me, "ask", next(self._numbers), self._life, word, body))

    @asynccontextmanager
    async def follow(self, to: int, word: str, body: Any = None) -> AsyncIterator[AsyncIterator[Any]]:
        """Give what a process tells piece by piece, until it ends or the block does; an int says how many were missed.

        Raises:
            UnansweredError: there is no way to it.
        """
        number, stream = next(self._numbers), _Stream()
        self._heard[number] = (to, stream)
        try:
            self._send(_Message(to, self.me, "stream", number, self._life, word, body))
            yield _pieces(stream)
        finally:
            del self._heard[number]
            if not stream.ended and self._way_to(to) is not None:
                self._send(_Message(to, self.me, "stop", number, self._life))

    # --- what comes

    def made(self, way: "_Way") -> None:
        """Take a socket for the way to its peer; there may be no other."""
        if (before := self._ways.get(way.peer)) is not None:
            self.lost(before)
            before.transport.close()
        self._ways[way.peer] = way

    def came(self, peer: int, packed: bytes) -> None:
        """Take up a message that came over a peer's socket, or hand it on."""
        message = _decode(packed)
        if self.me == MIDDLE and message.sender != peer:
            log.error("%s spoke as %s: that is not handed on", _named(peer), _named(message.sender))
        elif message.to != self.me:
            self._hand_on(message)
        elif message.kind == "gone":
            if message.sender == MIDDLE:
                self._gone(message.number)
        elif message.kind in {"ask", "stream", "stop"}:
            self._asked_of_me(message)
        elif message.life == self._life:  # any other was for who had this number before
            if message.kind in {"piece", "end"}:
                self._piece(message)
            else:
                self._answered(message)

    def lost(self, way: "_Way") -> None:
        """Let nobody wait for a process whose socket has ended, and nothing be done for it."""
        peer = way.peer
        if self._ways.get(peer) is not way:  # known, and there may be another in its place by now
            return
        del self._ways[peer]
        self._gone(peer)
        if self.me == MIDDLE:  # others wait for it, and work for it, through this one
            for other in self._ways:
                self._send(_Message(other, self.me, "gone", peer, self._life))
        self.on_lost(peer)

    def _gone(self, peer: int) -> None:
        def gone(other: int) -> bool:
            return peer in (MIDDLE, other)  # without the one in the middle nobody can be reached

        for to, answer in list(self._asked.values()):
            if gone(to) and not answer.done():
                answer.set_exception(UnansweredError(f"{_named(to)} has gone"))
        for to, stream in self._heard.values():
            if gone(to):
                stream.ended = True
                stream.more.set()
        for (asker, _life, _number), task in list(self._working.items()):
            if gone(asker):
                task.cancel()

    def _hand_on(self, message: _Message) -> None:
        if self._way_to(message.to) is not None:
            self._send(message)
        elif message.kind in {"ask", "stream"}:
            kind: Literal["error", "end"] = "error" if message.kind == "ask" else "end"
            gone = f"{_named(message.to)} is not there"
            self._send(_Message(message.sender, message.to, kind, message.number, message.life, "", gone))

    def _answered(self, message: _Message) -> None:
        to, answer = self._asked.get(message.number, (0, None))
        if answer is None or answer.done() or to != message.sender:
            return
        if message.kind == "answer":
            answer.set_result(message.body)
        elif message.kind == "caller_error":
            answer.set_exception(CallerError(message.body))
        else:
            answer.set_exception(UnansweredError(message.body))

    def _piece(self, message: _Message) -> None:
        to, stream = self._heard.get(message.number, (0, None))
        if stream is None or to != message.sender:
            return
        if message.kind == "end":
            stream.ended = True
        else:
            stream.missed += len(stream.pieces) == MOST_UNREAD
            stream.pieces.append(message.body)
        stream.more.set()

    # --- what is told

    def _asked_of_me(self, message: _Message) -> None:
        asker, life = message.sender, message.life
        if self._lives.setdefault(asker, life) != life:  # whoever said that it has gone may not have been heard
            self._lives[asker] = life
            for key, task in list(self._working.items()):
                if key[0] == asker:
                    task.cancel()
        key = (asker, life, message.number)
        if message.kind == "ask":
            self._work(key, self._answer(message))
        elif message.kind == "stream":
            self._work(key, self._stream(message))
        elif (unwanted := self._working.get(key)) is not None:
            unwanted.cancel()

    def _work(self, key: _Key, work: Any) -> None:
        task = asyncio.create_task(work, name="switchboard")
        self._working[key] = task
        task.add_done_callback(lambda _task: self._working.pop(key, None))

    async def _answer(self, asked: _Message) -> None:
        answer = self.answers.get(asked.word, self._unknown)
        kind: Literal["answer", "caller_error", "error"] = "answer"
        body: Any
        try:
            body = await answer(asked.body)
        except CallerError as error:
            kind, body = "caller_error", str(error)
        except HeadgateError as error:
            kind, body = "error", str(error)
        except Exception:  # the boundary of a question: whoever asks hears that there is no answer
            log.exception("%r could not be answered", asked.word[:50])
            kind, body = "error", f"{_named(self.me)} failed; its log says how"
        self._send(_Message(asked.sender, self.me, kind, asked.number, asked.life, "", body))

    async def _unknown(self, _body: Any) -> Any:
        raise UnansweredError(f"{_named(self.me)} does not serve yet")

    async def _silent(self, _body: Any) -> AsyncIterator[Any]:
        nothing: tuple[Any, ...] = ()
        for piece in nothing:
            yield piece

    async def _stream(self, asked: _Message) -> None:
        try:
            async for piece in self.streams.get(asked.word, self._silent)(asked.body):
                self._send(_Message(asked.sender, self.me, "piece", asked.number, asked.life, "", piece))
        except HeadgateError as error:
            log.info("%r ended: %s", asked.word[:50], error)
        finally:
            self._send(_Message(asked.sender, self.me, "end", asked.number, asked.life))

    def _way_to(self, peer: int) -> "_Way | None":
        return self._ways.get(peer if self.me == MIDDLE else MIDDLE)

    def _send(self, message: _Message) -> None:
        way = self._way_to(message.to)
        if way is None:
            if message.kind in {"ask", "stream"}:
                raise UnansweredError(f"{_named(message.to)} is not there")
            return
        packed = _encode(message)
        if len(packed) > MOST_MESSAGE_BYTES or way.transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
            log.warning("a message of %d bytes to %s was dropped", len(packed), _named(message.to))
            return
        way.transport.write(_LENGTH.pack(len(packed)) + packed)


class _Way(asyncio.Protocol):
    """A socket to one process."""

    transport: asyncio.Transport

    def __init__(self, board: Switchboard, peer: int) -> None:
        self._board, self.peer = board, peer
        self._read = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's are none, and have all of its methods
        self._board.made(self)

    def data_received(self, data: bytes) -> None:
        read = self._read
        read += data
        while len(read) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(read)[0]
            if len(read) < end:
                break
            packed = bytes(read[_LENGTH.size : end])
            del read[:end]
            self._board.came(self.peer, packed)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it was lost
        self._board.lost(self)


async def _pieces(stream: _Stream) -> AsyncIterator[Any]:
    while True:
        if stream.missed:
            missed, stream.missed = stream.missed, 0
            yield missed
        while stream.pieces:
            yield stream.pieces.popleft()
        if stream.ended:
            return
        stream.more.clear()
        await stream.more.wait()


def _named(peer: int) -> str:
    return "the process that started the workers" if peer == MIDDLE else f"worker {peer}"
