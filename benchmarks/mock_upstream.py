"""A provider that costs next to nothing: answers chat completions at once, so that a gateway is what is measured.

One rule: each event of a stream is a write of its own, as providers send them. It checks and counts nothing, and looks
into small bodies only.

As a script it serves 127.0.0.1 in one thread until it is stopped, and prints its port. A body whose `user` is
`pace-20ms` has its events sent that far apart.
"""

import heapq
import re
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field

EVENTS = 50
"""Events of a stream, all told: the role, the words, the reason why it ended with the usage, and the end."""

_ANSWER = (
    b'{"id":"chatcmpl-7Q2mockmockmock","object":"chat.completion","created":1748736000,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"A gate at the head of a channel lets through as '
    b'much water as the channel bears, when it bears it, and shares it between the fields.","refusal":null},'
    b'"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":128,"completion_tokens":32,"total_tokens":160,'
    b'"prompt_tokens_details":{"cached_tokens":64}},"system_fingerprint":"fp_mock"}'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nx-request-id: req_mock_0001\r\n%b\r\n\r\n"
_WHOLE = _HEAD % (b"application/json", b"content-length: %d" % len(_ANSWER)) + _ANSWER
_STREAM_HEAD = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_PACE = re.compile(rb'"user": ?"pace-(\d+)ms"')
_READ_BYTES = 256 * 1024
_LOOKED_INTO_BYTES = 16 * 1024
_SEND_BOUND_S = 10
_BACKLOG = 2048


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(choices: bytes, usage: bytes = b"") -> bytes:
    return _chunk(
        b'data: {"id":"chatcmpl-7Q2mock","object":"chat.completion.chunk","created":1748736000,"model":"gpt-4o-mini",'
        b'"system_fingerprint":"fp_mock","choices":[%b]%b}\n\n' % (choices, usage)
    )


def _events() -> list[bytes]:
    delta = b'{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}'
    role = _event(delta % (b'"role":"assistant","content":""', b"null"))
    word = _event(delta % (b'"content":" gateway"', b"null"))
    usage = b',"usage":{"prompt_tokens":128,"completion_tokens":50,"total_tokens":178}'
    end = _chunk(b"data: [DONE]\n\n") + _chunk(b"")
    return [role, *[word] * (EVENTS - 4), _event(delta % (b"", b'"stop"')), _event(b"", usage), end]


_STREAMED = _events()


@dataclass(slots=True, eq=False)
class _Connection:
    plug: socket.socket
    unread: bytearray = field(default_factory=bytearray)
    passing_bytes: int = 0
    """What is still to come of a large body, which is thrown away."""


class MockUpstream:
    """The provider; `serve` runs until the process ends."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._due: list[tuple[float, int, _Connection, int, float]] = []
        self._order = 0
        self._space = memoryview(bytearray(_READ_BYTES))
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self._selector.select(wait_s):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                _, _, connection, position, gap_s = heapq.heappop(self._due)
                self._send_event(connection, position, gap_s, now_s)

    def _accept(self) -> None:
        plug, _ = self._listener.accept()
        # It blocks where a reader does not read; the bound is in the kernel, for Python's own costs a poll per write.
        plug.settimeout(None)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_BOUND_S, 0))
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(plug, selectors.EVENT_READ, _Connection(plug))

    def _read(self, connection: _Connection) -> None:
        try:
            size_bytes = connection.plug.recv_into(self._space)
        except OSError:
            size_bytes = 0
        if not size_bytes:
            self._drop(connection)
        elif connection.passing_bytes:
            connection.passing_bytes -= size_bytes
            if not connection.passing_bytes:
                self._send(connection, _WHOLE)
        else:
            self._take(connection, self._space[:size_bytes])

    def _take(self, connection: _Connection, data: memoryview) -> None:
        unread = connection.unread
        unread += data
        head_end = unread.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(unread, 0, head_end)
        size_bytes = head_end + 4 + (int(length[1]) if length else 0)
        if size_bytes - head_end > _LOOKED_INTO_BYTES:
            connection.passing_bytes = size_bytes - len(unread)
            unread.clear()
            if not connection.passing_bytes:
                self._send(connection, _WHOLE)
        elif len(unread) >= size_bytes:
            body = bytes(unread[head_end:size_bytes])
            del unread[:size_bytes]
            self._answer(connection, body)

    def _answer(self, connection: _Connection, body: bytes) -> None:
        if b'"stream"' not in body or _STREAM.search(body) is None:
            self._send(connection, _WHOLE)
            return
        pace = _PACE.search(body)
        if not self._send(connection, _STREAM_HEAD + _STREAMED[0]):
            return
        if pace is None:
            for event in _STREAMED[1:]:
                self._send(connection, event)
        else:
            self._later(connection, 1, int(pace[1]) / 1000, time.monotonic())

    def _send_event(self, connection: _Connection, position: int, gap_s: float, now_s: float) -> None:
        if self._send(connection, _STREAMED[position]) and position + 1 < EVENTS:
            self._later(connection, position + 1, gap_s, now_s)

    def _later(self, connection: _Connection, position: int, gap_s: float, now_s: float) -> None:
        self._order += 1
        heapq.heappush(self._due, (now_s + gap_s, self._order, connection, position, gap_s))

    def _send(self, connection: _Connection, data: bytes) -> bool:
        try:
            connection.plug.sendall(data)
        except OSError:  # the gateway hung up: its client will say so
            self._drop(connection)
            return False
        return True

    def _drop(self, connection: _Connection) -> None:
        if connection.plug.fileno() >= 0:
            self._selector.unregister(connection.plug)
            connection.plug.close()


if __name__ == "__main__":
    upstream = MockUpstream()
    print(upstream.port, flush=True)
    upstream.serve()
