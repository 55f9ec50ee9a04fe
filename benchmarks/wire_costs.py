"""What two roads not taken would cost: HTTP/2 towards providers, and buffers that are used again.

    python -m benchmarks.wire_costs        # needs the `bench` extra, for h2; 10 s

In memory, without sockets: CPU of the client's side of a call alone, the least of several rounds. It is no row of its
own: decision 0031 has the figures and what follows from them.
"""

import time
from collections.abc import Callable
from typing import Any

import httptools

ROUNDS = 5
HEADERS = [
    (b"x-api-key", b"sk-" + b"x" * 40),
    (b"anthropic-version", b"2023-06-01"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"anthropic/2.11"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-os", b"linux"),
    (b"accept", b"application/json"),
    (b"content-length", b"2000"),
]
TOLD = [
    (b"content-type", b"application/json"),
    (b"request-id", b"req_1"),
    (b"anthropic-ratelimit-requests-limit", b"50"),
    (b"anthropic-ratelimit-requests-remaining", b"49"),
]
BODY, DOCUMENT = b"x" * 2_000, b"y" * 1_500
EVENT = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}\n\n'
)
SIZES = (1_024, 4_096, 16_384, 65_536, 262_144)


def main() -> None:
    """Print both tables."""
    say = print
    say("client's side of a call, CPU us       h2   HTTP/1.1   ratio")
    for events, what in ((0, "JSON document of 1.5 KB"), (50, "stream of 50 events")):
        two = min(_h2_us(300, events) for _ in range(ROUNDS))
        one = min(_http_1_us(2_000, events) for _ in range(ROUNDS))
        say(f"{what:30}   {two:8,.0f} {one:10,.0f} {two / one:7.0f}")
    say("one copy of a piece, CPU us        fresh  used again   ratio")
    for size in SIZES:
        fresh, again = (min(_copy_us(5_000, size, again=again) for _ in range(ROUNDS)) for again in (False, True))
        say(f"{size:>12,} bytes             {fresh:8.2f} {again:10.2f} {fresh / again:8.1f}")


def _parts(events: int) -> list[bytes]:
    return [EVENT] * events if events else [DOCUMENT]


def _h2_us(calls: int, events: int) -> float:
    import h2.config  # noqa: PLC0415 - of the bench extra
    import h2.connection  # noqa: PLC0415 - as above
    import h2.events  # noqa: PLC0415 - as above

    def end(*, client: bool) -> Any:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        return h2.connection.H2Connection(config)

    client, server = end(client=True), end(client=False)
    client.initiate_connection()
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    client.receive_data(server.data_to_send())
    server.receive_data(client.data_to_send())
    asked = [(b":method", b"POST"), (b":authority", b"api.example.com"), (b":scheme", b"https"), (b":path", b"/v1/x")]
    spent_s = 0.0
    for _ in range(calls):
        begun_s = time.process_time()
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, [*asked, *HEADERS])
        client.send_data(stream, BODY, end_stream=True)
        sent = client.data_to_send()
        spent_s += time.process_time() - begun_s
        server.receive_data(sent)
        server.acknowledge_received_data(len(BODY), stream)
        server.send_headers(stream, [(b":status", b"200"), *TOLD])
        pieces = [server.data_to_send()]
        parts = _parts(events)
        for place, part in enumerate(parts, start=1):
            server.send_data(stream, part, end_stream=place == len(parts))
            pieces.append(server.data_to_send())
        begun_s = time.process_time()
        for piece in pieces:
            for event in client.receive_data(piece):
                if isinstance(event, h2.events.DataReceived):
                    client.acknowledge_received_data(event.flow_controlled_length, stream)
        updates = client.data_to_send()
        spent_s += time.process_time() - begun_s
        if updates:
            server.receive_data(updates)
    return spent_s / calls * 1e6


class _Reads:
    """What a client keeps of an answer."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.on_body: Callable[[bytes], None] = self.pieces.append

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))


def _http_1_us(calls: int, events: int) -> float:
    head = b"".join(b"%b: %b\r\n" % header for header in HEADERS)
    told = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % header for header in TOLD)
    if events:
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in _parts(events)]
        pieces = [told + b"transfer-encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n"]
    else:
        pieces = [told + b"content-length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT]
    begun_s = time.process_time()
    for _ in range(calls):
        _sent = b"POST /v1/x HTTP/1.1\r\nhost: api.example.com\r\n" + head + b"\r\n" + BODY
        parser = httptools.HttpResponseParser(_Reads())
        for piece in pieces:
            parser.feed_data(piece)
    return (time.process_time() - begun_s) / calls * 1e6


def _copy_us(copies: int, size: int, *, again: bool) -> float:
    source = b"x" * size
    buffer = bytearray(size)
    begun_s = time.process_time()
    for _ in range(copies):
        if again:
            buffer[:] = source
        else:
            buffer = bytearray(source)
    return (time.process_time() - begun_s) / copies * 1e6


if __name__ == "__main__":
    main()
