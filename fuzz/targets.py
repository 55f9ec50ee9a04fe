"""Targets: one function for each reader of foreign bytes, which fails where a law of that reader does not hold.

One rule: a target takes any bytes, waits for nothing and keeps nothing, so that any fuzzer can call it a million times.
"""

import asyncio
import gzip
import logging
import math
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headgate.adapters.config import load_config
from headgate.adapters.http_server import Connection, Connections
from headgate.adapters.providers.body import ask_for_usage, cache_life, text_size
from headgate.adapters.providers.call_head import read_call
from headgate.adapters.providers.endpoints import Endpoint, endpoint_of
from headgate.adapters.providers.failures import read_failure
from headgate.adapters.providers.meters import BodyDecoder, open_meter
from headgate.adapters.providers.model_change import CHANGEABLE, effort_of, with_model
from headgate.adapters.providers.prompts import prompt_bound
from headgate.adapters.providers.reading import UNREADABLE
from headgate.adapters.providers.sse import Event, EventSplitter
from headgate.adapters.providers.vendors.catalogue import VENDORS
from headgate.core.errors import CallerError, ConfigError
from headgate.core.model_rules import EFFORTS
from headgate.gateway.exchange import HttpExchange
from headgate.gateway.own_headers import check_own_headers
from headgate.gateway.parameters import coming_s, count, scopes_wanted
from headgate.gateway.usage import usage_query

Target = Callable[[bytes], None]

NOW_S = 1_790_000_000.0
KEY = "sk-planted-key-of-an-account"
ENVIRON = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY, "HOME": "/home/me"}
MOST_DECODED_BYTES = 1 << 20

_PATHS = ("/v1/messages", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
_ENDPOINTS = [endpoint for path in _PATHS if (endpoint := endpoint_of(path, [])) is not None]
_TYPES = (b"application/json", b"text/event-stream", b"text/event-stream; charset=utf-8", b"", b"image/png")
_ENCODINGS = (b"", b"identity", b"gzip", b"deflate", b"br")


class _Clock:
    def now_s(self) -> float:
        return NOW_S


def pieces(data: bytes, seed: int) -> list[bytes]:
    """Cut bytes at places that a number chooses: it is part of the input, so that a finding comes again."""
    found, at = [], 0
    while at < len(data):
        seed = (seed * 1_103_515_245 + 12_345) & 0x7FFFFFFF
        size = 1 + (seed >> 16) % 23
        found.append(data[at : at + size])
        at += size
    return found


def events(data: bytes) -> None:
    """The events of a stream are the same however it is cut, and its bytes are the stream's."""
    seed, bound, stream = *data[:2].ljust(2, b"\0"), data[2:]
    limit = 16 + bound * 8

    def split(chunks: list[bytes]) -> list[Event]:
        splitter = EventSplitter(limit)
        found = [event for chunk in chunks for event in splitter.feed(chunk)]
        last = splitter.close()
        return found if last is None else [*found, last]

    whole, cut = split([stream]), split(pieces(stream, seed))
    assert b"".join(event.raw for event in whole) == stream
    assert b"".join(event.raw for event in cut) == stream
    if (
        all(event.whole for event in whole[:-1]) and len(whole[-1].raw if whole else b"") <= limit
    ):  # what is larger passes in parts, which the cuts decide
        assert [event.raw for event in whole] == [event.raw for event in cut]
    for event in cut:
        assert len(event.data) <= len(event.raw)
        assert len(event.event) <= len(event.raw)


def meter(data: bytes) -> None:
    """What a meter lets through is what came, but for what it may hide; what it reads are counts."""
    choice, seed, body = *data[:2].ljust(2, b"\0"), data[2:]
    endpoint = _ENDPOINTS[choice % len(_ENDPOINTS)]
    kind = _TYPES[choice // 5 % len(_TYPES)]
    encoding = _ENCODINGS[seed % len(_ENCODINGS)]
    hides = bool(choice & 0x80) and encoding in {b"", b"identity"}
    found = open_meter(endpoint, kind, encoding, hides_usage=hides)
    out = b"".join([*(found.feed(piece) for piece in pieces(body, seed)), found.close()])
    assert hides or out == body
    assert len(out) <= len(body)
    usage = found.reading.usage
    assert usage is None or all(0 <= each < 1 << 63 for each in usage)
    assert 0 <= found.reading.output_seen_tokens < 1 << 63
    assert found.reading.model is None or isinstance(found.reading.model, str)


def decoder(data: bytes) -> None:
    """What undoes encodings gives as much of a body as is whole, up to a bound, and nothing after a fault."""
    choice, seed, body = *data[:2].ljust(2, b"\0"), data[2:]
    if choice & 1:
        _decode(pieces(body, seed))
        return
    packed = gzip.compress(body, mtime=0) if choice & 2 else zlib.compress(body)
    assert _decode(pieces(packed, seed)) == body
    broken = bytearray(packed)
    broken[seed % len(broken)] ^= 1 << (choice >> 5)
    _decode(pieces(bytes(broken), seed))


def _decode(chunks: list[bytes]) -> bytes:
    reader = BodyDecoder(MOST_DECODED_BYTES)
    found = [reader.feed(chunk) for chunk in chunks]
    assert all(len(each) <= MOST_DECODED_BYTES for each in found)
    return b"".join(found)


def body(data: bytes) -> None:
    """A body is read or refused in words; the one splice keeps all else, and what is counted is in it."""
    choice, sent = data[:1].ljust(1, b"\0")[0], data[1:]
    endpoint = _ENDPOINTS[choice % len(_ENDPOINTS)]
    size = text_size(sent)
    assert 0 <= size.text_bytes <= len(sent)
    assert size.media * 4096 <= len(sent) + 4096
    assert cache_life(sent) in {None, "5m", "1h"}
    bound = prompt_bound(endpoint.name, "claude-sonnet-4-5", sent)
    assert 0 <= bound.text_bytes <= len(sent)
    assert bound.extra_tokens >= 0
    try:
        head = read_call(endpoint, [], sent)
    except CallerError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1_000
    else:
        assert head.model.isprintable()
        assert head.max_output_tokens is None or 0 <= head.max_output_tokens < 1 << 63
        if endpoint.name in CHANGEABLE:
            _change(endpoint, sent)
    try:
        asked = ask_for_usage(sent)
    except CallerError:
        return
    if asked is not None:
        try:
            before, after = msgspec.json.decode(sent), msgspec.json.decode(asked)
        except UNREADABLE:  # in a field that nobody here reads
            return
        assert after.pop("stream_options")["include_usage"] is True
        before.pop("stream_options", None)
        assert before == after


def _change(endpoint: Endpoint, sent: bytes) -> None:
    try:
        assert effort_of(endpoint.name, sent) in {None, *EFFORTS}
        changed = with_model(endpoint.name, sent, "another-model", "low")
    except CallerError:
        return
    assert read_call(endpoint, [], changed).model == "another-model"


def headers(data: bytes) -> None:
    """No header makes a reader fail, and whatever it tells can be true."""
    said = [
        (name.strip().lower(), value.strip()) for line in data.split(b"\n") for name, _, value in [line.partition(b":")]
    ]
    for vendor in VENDORS.values():
        found = vendor.read_notices(said, NOW_S)
        for rate in found.rates:
            assert rate.limit is None or 0 <= rate.limit < 1 << 63
            assert rate.remaining is None or 0 <= rate.remaining < 1 << 63
            assert rate.resets_s is None or NOW_S < rate.resets_s < NOW_S + 40 * 86_400
        for plan in found.plans:
            assert plan.period_s > 0
            assert plan.used_share is None or 0 <= plan.used_share < math.inf
    failure = read_failure(429, said, data)
    assert failure.retry_after_s is None or 0 <= failure.retry_after_s < math.inf
    scope = {"method": "POST", "path": "/v1/messages", "query_string": b"", "headers": said}
    try:
        check_own_headers(HttpExchange.of(scope, _nothing, _nothing))
    except CallerError as error:
        assert "\n" not in str(error)


async def _nothing(*_: object) -> Mapping[str, object]:
    return {}


_folder = tempfile.TemporaryDirectory()


def config(data: bytes) -> None:
    """A configuration is read, or told about in lines that name a place, without what may be a key."""
    path = Path(_folder.name) / "headgate.toml"
    path.write_bytes(data)
    try:
        load_config(path, ENVIRON)
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert KEY not in told
    for line in told.split("\n"):
        place = re.match(rf"{re.escape(str(path))}:(\d+): .", line)
        assert place is not None, line
        assert 1 <= int(place[1]) <= data.count(b"\n") + 1
        assert line.isprintable()
        assert len(line) < 400 + len(str(path))


def parameters(data: bytes) -> None:
    """What stands behind a question mark is understood, or refused in words."""
    text, clock = data.decode("ascii", "replace"), _Clock()
    for read in (
        lambda: usage_query(text, clock),
        lambda: scopes_wanted(text)("key:ci"),
        lambda: coming_s(text, clock),
        lambda: count({"after": text}, "after", 0),
    ):
        try:
            read()
        except CallerError as error:
            assert len(str(error)) < 1_000


class _Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.said = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self.said += data

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, _name: str) -> None:
        return None

    def pause_reading(self) -> None:
        return

    resume_reading = pause_reading


async def _served(chunks: list[bytes]) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    got: list[tuple[str, bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent = b""
        while (message := await receive()).get("more_body"):
            sent += message["body"]
        if message["type"] == "http.disconnect":
            return
        got.append((scope["method"], scope["raw_path"], sent + message["body"]))
        answer = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": b"hi"})

    all_of_them = Connections(app, logging.getLogger("fuzz"))
    connection, wire = Connection(all_of_them), _Wire()
    connection.connection_made(wire)  # type: ignore[arg-type]  # as much of a transport as it uses
    for chunk in chunks:
        if not wire.is_closed:
            connection.data_received(chunk)
    for _ in range(200):
        if not all_of_them.tasks:
            break
        await asyncio.sleep(0)
    connection.connection_lost(None)
    if all_of_them.tasks:
        done, left = await asyncio.wait(all_of_them.tasks, timeout=10)
        assert not left, "an app goes on although its client has gone"
        assert all(each.exception() is None for each in done)
    return wire.said, got


def http(data: bytes) -> None:
    """However its bytes are cut, a client is read as the same requests and has the same answers, in their order."""
    seed, said = data[:1].ljust(1, b"\0")[0], data[1:]
    whole, cut = (_loop.run_until_complete(_served(chunks)) for chunks in ([said], pieces(said, seed)))
    assert whole == cut
    answers, got = whole
    statuses = re.findall(rb"(?:^|hi)HTTP/1\.1 (\d{3})", answers.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))
    assert len(statuses) in {len(got), len(got) + 1} or b"HEAD" in said
    assert all(status == b"200" for status in statuses[: len(got)]) or b"HEAD" in said


_loop = asyncio.new_event_loop()

TARGETS: dict[str, Target] = {
    each.__name__: each for each in (events, meter, decoder, body, headers, parameters, http, config)
}
