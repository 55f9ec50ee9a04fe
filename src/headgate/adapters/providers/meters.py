"""Meters: read the usage of an answer while its bytes go by.

One rule: what comes out is what went in, byte for byte, as soon as an event is complete, but for events that a client
did not ask for. What cannot be read is not metered, and never held up or failed for it.
"""

import zlib
from collections.abc import Callable
from typing import Protocol

from headgate.adapters.providers import anthropic, openai
from headgate.adapters.providers.endpoints import Endpoint, EndpointName
from headgate.adapters.providers.reading import Reading
from headgate.adapters.providers.sse import Event, EventSplitter
from headgate.core.usage import NO_USAGE

__all__ = ["BodyDecoder", "Meter", "open_meter"]

DOCUMENT_LIMIT_BYTES = 32 * 1024 * 1024
"""Beyond it an answer's usage stays unknown; the largest answers, embeddings of 2,048 inputs, have about half."""

# How often a document that seems complete is tried; more means that its chunks end in braces by chance.
_MOST_TRIES = 16

_DECODED = frozenset({b"gzip", b"x-gzip", b"deflate"})
_GZIP_MAGIC = b"\x1f"

EventReader = Callable[[Reading, Event], bool]
DocumentReader = Callable[[Reading, bytes], bool]

PutsOff = Callable[[Reading, Event], bool]
"""Whether an event need not be read before somebody asks how much output there was."""

_PUT_OFF: dict[EndpointName, PutsOff] = {"chat": openai.only_speaks, "completions": openai.only_speaks}
_MOST_PUT_OFF = 1_000
_MOST_PUT_OFF_BYTES = 1024 * 1024

_READERS: dict[EndpointName, tuple[EventReader | None, DocumentReader]] = {
    "messages": (anthropic.read_message_event, anthropic.read_message),
    "chat": (openai.read_chat_event, openai.read_chat),
    "completions": (openai.read_chat_event, openai.read_chat),
    "responses": (openai.read_response_event, openai.read_response),
    "embeddings": (None, openai.read_embeddings),
}


class Meter(Protocol):
    """Reads one answer's body."""

    reading: Reading

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the body; give those that may go to the client now."""
        ...

    def close(self) -> bytes:
        """Take the end of the body, also an untimely one; give what is left, such as half an event."""
        ...


def open_meter(endpoint: Endpoint | None, content_type: bytes, encoding: bytes, *, hides_usage: bool) -> Meter:
    """Give the meter for an answer with a 2xx status.

    `hides_usage` keeps the chunk that tells usage from the client; it needs a body without a content-encoding.
    """
    if endpoint is not None and not endpoint.metered:
        return _NoMeter(Reading(told=NO_USAGE, final=True))
    readers = _READERS.get(endpoint.name) if endpoint is not None else None
    encoding = encoding.lower()
    decoder = BodyDecoder() if encoding in _DECODED else None
    if readers is None or (decoder is None and encoding not in (b"", b"identity")):
        return _NoMeter(Reading())
    read_event, read_document = readers
    if content_type.lower().startswith(b"text/event-stream"):
        if read_event is None:
            return _NoMeter(Reading())
        if decoder is not None:
            return _EncodedStreamMeter(read_event, decoder)
        puts_off = _PUT_OFF.get(endpoint.name) if endpoint is not None else None
        return _StreamMeter(read_event, puts_off, hides_usage=hides_usage)
    return _DocumentMeter(read_document, decoder)


class BodyDecoder:
    """Undoes gzip and deflate as the bytes arrive, for reading beside the way; gives nothing more after a fault."""

    def __init__(self, limit_bytes: int = DOCUMENT_LIMIT_BYTES) -> None:
        """Bound what one chunk may become, so that a body made to explode does not."""
        self._limit_bytes = limit_bytes
        self._inflate: zlib._Decompress | None = None
        self._broken = False

    def feed(self, chunk: bytes) -> bytes:
        """Take encoded bytes, give those they decode to."""
        if self._broken or not chunk:
            return b""
        if self._inflate is None:
            # "deflate" is zlib's format by RFC 9110, and bare deflate by some servers; a zlib header is 8 modulo 16.
            framed = chunk.startswith(_GZIP_MAGIC) or chunk[0] & 0x0F == zlib.DEFLATED
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32 if framed else -zlib.MAX_WBITS)
        try:
            data = self._inflate.decompress(chunk, self._limit_bytes)
        except zlib.error:
            self._broken = True
            return b""
        self._broken = bool(self._inflate.unconsumed_tail)
        return data


class _NoMeter:
    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def feed(self, chunk: bytes) -> bytes:
        return chunk

    def close(self) -> bytes:
        return b""


class _StreamMeter:
    """Looks at each event before it goes on, whole, and keeps back the one that the client did not ask for.

    An event goes on when it is complete, so that an error can be told to the client at any time, behind the last one.
    """

    def __init__(self, read_event: EventReader, puts_off: PutsOff | None, *, hides_usage: bool) -> None:
        self.reading = Reading()
        self._read_event = read_event
        self._puts_off = puts_off
        self._hides_usage = hides_usage
        self._splitter = EventSplitter()
        self._put_off: list[Event] = []
        self._put_off_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        events = self._splitter.feed(chunk)
        if len(events) == 1:  # as most providers write
            return events[0].raw if self._shows(events[0]) else b""
        return b"".join([event.raw for event in events if self._shows(event)])

    def close(self) -> bytes:
        last = self._splitter.close()
        return last.raw if last is not None and self._shows(last) else b""

    def _catch_up(self) -> None:
        self.reading.catch_up = None
        put_off, self._put_off, self._put_off_bytes = self._put_off, [], 0
        for event in put_off:
            self._read_event(self.reading, event)

    def _shows(self, event: Event) -> bool:
        if self._puts_off is not None and self._puts_off(self.reading, event):
            self._put_off.append(event)
            self.reading.catch_up = self._catch_up
            self._put_off_bytes += len(event.raw)
            if len(self._put_off) >= _MOST_PUT_OFF or self._put_off_bytes >= _MOST_PUT_OFF_BYTES:
                self._catch_up()
            return True
        return not (self._read_event(self.reading, event) and self._hides_usage)


class _EncodedStreamMeter:
    """Looks at the events of an encoded stream beside the way."""

    def __init__(self, read_event: EventReader, decoder: BodyDecoder) -> None:
        self.reading = Reading()
        self._read_event = read_event
        self._decoder = decoder
        self._splitter = EventSplitter()

    def feed(self, chunk: bytes) -> bytes:
        for event in self._splitter.feed(self._decoder.feed(chunk)):
            self._read_event(self.reading, event)
        return chunk

    def close(self) -> bytes:
        return b""


class _DocumentMeter:
    """Keeps a copy of a document and reads it as soon as it is whole, which is before its end is known."""

    def __init__(self, read_document: DocumentReader, decoder: BodyDecoder | None) -> None:
        self.reading = Reading()
        self._read_document = read_document
        self._decoder = decoder
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._tries_left = _MOST_TRIES

    def feed(self, chunk: bytes) -> bytes:
        plain = chunk if self._decoder is None else self._decoder.feed(chunk)
        self._size_bytes += len(plain)
        if self._size_bytes > DOCUMENT_LIMIT_BYTES:
            self._chunks.clear()
        elif plain:
            self._chunks.append(plain)
            if plain.endswith((b"}", b"}\n")) and self._tries_left:
                self._try()
        return chunk

    def close(self) -> bytes:
        if self._chunks:
            self._try()
        return b""

    def _try(self) -> None:
        self._tries_left -= 1
        body = b"".join(self._chunks)
        self._chunks = [] if self._read_document(self.reading, body) else [body]
