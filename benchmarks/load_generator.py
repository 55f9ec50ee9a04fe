"""A load generator: so many connections, each with one call after the other, for so long.

One rule: an answer counts only when it is whole: status 200, all of its bytes, and of a stream all of its events.
It takes no part in what it measures; the cost of the gateway is read from outside while this runs.

As a script it takes one JSON object of `Load` on stdin, runs it against 127.0.0.1, and prints one of `Seen`.
"""

import json
import re
import selectors
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field

STALL_S = 1.0
"""A stream whose next piece takes longer stalls: its provider sends one every few milliseconds."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_READ_BYTES = 256 * 1024
_LAST_CHUNK = b"0\r\n\r\n"
_SEND_BOUND_S = 20
_MOST_ERRORS = 100
"""So many failed calls end a run: what comes after them says nothing."""


@dataclass(frozen=True)
class Load:
    """What to do: calls start for `seconds` and at most `most_calls` times, and have `grace_s` to end.

    `events` is how many a whole stream has; 0 where the answer is no stream.
    """

    port: int
    path: str
    headers: dict[str, str]
    body: str
    connections: int
    seconds: float
    most_calls: int
    grace_s: float = 30.0
    events: int = 0


@dataclass
class Seen:
    """What came of it; times are those of whole answers, from the first byte sent to the last one read."""

    calls: int = 0
    errors: int = 0
    stalls: int = 0
    took_s: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    longest_gap_s: float = 0.0
    first_error: str = ""


@dataclass(slots=True, eq=False)
class _Connection:
    plug: socket.socket
    busy: bool = False
    started_s: float = 0.0
    read_s: float = 0.0
    gap_s: float = 0.0
    body_at: int = 0
    size_bytes: int | None = None
    chunked: bool = False
    read: bytearray = field(default_factory=bytearray)


class Generator:
    """Runs one load, once."""

    def __init__(self, load: Load) -> None:
        body = load.body.encode()
        lines = [f"POST {load.path} HTTP/1.1", f"host: 127.0.0.1:{load.port}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in load.headers.items()]
        lines += [f"content-length: {len(body)}", "", ""]
        self._request = "\r\n".join(lines).encode() + body
        self._load = load
        self._selector = selectors.DefaultSelector()
        self._seen = Seen()
        self._latencies_s: list[float] = []
        self._started = 0
        self._busy = 0
        self._end_s = 0.0
        self._space = memoryview(bytearray(_READ_BYTES))

    def run(self) -> Seen:
        seen, load = self._seen, self._load
        try:
            connections = [self._connect() for _ in range(load.connections)]
        except OSError as error:
            return Seen(errors=load.connections, first_error=f"no connection: {error}")
        begun_s = time.perf_counter()
        self._end_s = begun_s + load.seconds
        for connection in connections:
            self._start(connection)
        while self._busy and seen.errors < _MOST_ERRORS:
            left_s = self._end_s + load.grace_s - time.perf_counter()
            if left_s <= 0:
                seen.errors += self._busy
                seen.first_error = seen.first_error or f"{self._busy} calls had not ended after {load.grace_s:.0f} s"
                break
            for key, _ in self._selector.select(left_s):
                self._read(key.data)
        seen.took_s = time.perf_counter() - begun_s
        latencies_s = sorted(self._latencies_s)
        if latencies_s:
            seen.p50_us = latencies_s[len(latencies_s) // 2] * 1e6
            seen.p99_us = latencies_s[len(latencies_s) * 99 // 100] * 1e6
        return seen

    def _connect(self) -> _Connection:
        plug = socket.create_connection(("127.0.0.1", self._load.port), timeout=_SEND_BOUND_S)
        # From here on it blocks, with its bound in the kernel: Python's own would cost a poll for each call.
        plug.settimeout(None)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_BOUND_S, 0))
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(plug)
        self._selector.register(plug, selectors.EVENT_READ, connection)
        return connection

    def _start(self, connection: _Connection) -> None:
        now_s = time.perf_counter()
        if self._started >= self._load.most_calls or now_s >= self._end_s:
            return
        self._started += 1
        self._busy += 1
        connection.busy = True
        connection.started_s = connection.read_s = now_s
        connection.gap_s = 0.0
        connection.size_bytes, connection.chunked = None, False
        connection.read.clear()
        try:
            connection.plug.sendall(self._request)
        except OSError as error:
            self._failed(connection, f"the request was not taken: {error}")

    def _read(self, connection: _Connection) -> None:
        try:
            size_bytes = connection.plug.recv_into(self._space)
        except OSError as error:
            self._failed(connection, f"reading: {error}")
            return
        if not size_bytes:
            self._failed(connection, "the connection was closed before the answer's end")
            return
        if not connection.busy:
            self._failed(connection, "")  # bytes that no call had asked for
            return
        now_s = time.perf_counter()
        if connection.read:
            connection.gap_s = max(connection.gap_s, now_s - connection.read_s)
        connection.read_s = now_s
        connection.read += self._space[:size_bytes]
        if connection.size_bytes is None and not connection.chunked and not self._read_head(connection):
            return
        if connection.chunked:
            if connection.read.endswith(_LAST_CHUNK):
                self._ended(connection, now_s)
        elif connection.size_bytes is not None and len(connection.read) >= connection.size_bytes:
            self._ended(connection, now_s)

    def _read_head(self, connection: _Connection) -> bool:
        read = connection.read
        head_end = read.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        connection.body_at = head_end + 4
        if not read.startswith(b"HTTP/1.1 200 "):
            status, body = read.partition(b"\r\n")[0], read[connection.body_at : connection.body_at + 200]
            self._failed(connection, f"{status.decode(errors='replace')}: {body.decode(errors='replace')}")
            return False
        if length := _LENGTH.search(read, 0, head_end):
            connection.size_bytes = head_end + 4 + int(length[1])
        elif _CHUNKED.search(read, 0, head_end):
            connection.chunked = True
        else:
            self._failed(connection, "the answer does not say where it ends")
            return False
        return True

    def _ended(self, connection: _Connection, now_s: float) -> None:
        expected = self._load.events
        # A proxy may cut an event in two chunks: only then are the chunks taken apart.
        found = connection.read.count(b"data: ")
        if expected and found != expected:
            found = _unchunked(connection.read, connection.body_at).count(b"data: ")
        if found != expected:
            self._failed(connection, f"{found} events came instead of {expected}")
            return
        seen = self._seen
        seen.calls += 1
        self._latencies_s.append(now_s - connection.started_s)
        seen.longest_gap_s = max(seen.longest_gap_s, connection.gap_s)
        seen.stalls += connection.gap_s > STALL_S
        self._busy -= 1
        connection.busy = False
        if _CLOSES.search(connection.read, 0, connection.body_at):
            self._go_on(connection)
        else:
            self._start(connection)

    def _failed(self, connection: _Connection, what: str) -> None:
        """Count a call that failed; between calls a server may close, which is no error."""
        if connection.busy:
            self._busy -= 1
            self._seen.errors += 1
            self._seen.first_error = self._seen.first_error or what
        if self._seen.errors < _MOST_ERRORS:
            self._go_on(connection)

    def _go_on(self, connection: _Connection) -> None:
        """Make the next call of a connection that cannot be used any more on a new one."""
        self._selector.unregister(connection.plug)
        connection.plug.close()
        try:
            self._start(self._connect())
        except OSError as error:
            self._seen.errors += 1
            self._seen.first_error = self._seen.first_error or f"no connection: {error}"


def _unchunked(read: bytearray, at: int) -> bytes:
    pieces = []
    while at < len(read):
        line_end = read.find(b"\r\n", at)
        if line_end < 0:
            break
        size_bytes = int(read[at:line_end].partition(b";")[0], 16)
        pieces.append(bytes(read[line_end + 2 : line_end + 2 + size_bytes]))
        at = line_end + 2 + size_bytes + 2
    return b"".join(pieces)


if __name__ == "__main__":
    print(json.dumps(asdict(Generator(Load(**json.load(sys.stdin))).run())))
