"""Bodies of requests: how much of one is text, and the one change that metering needs made to it.

One rule: bytes are cut and joined, never decoded and written again: what is not changed stays as the client wrote it.
"""

import re
from typing import NamedTuple

import msgspec

from headgate.adapters.providers.reading import UNREADABLE
from headgate.core.errors import CallerError

__all__ = ["TextSize", "ask_for_usage", "cache_life", "member_spans", "text_size"]


class TextSize(NamedTuple):
    """The size of a body without its media, and how many media parts it has."""

    text_bytes: int
    media: int


# Sampling finds every run that is longer than a step, in 10 us per 200 KB; one search for a word takes 30 to 160 us.
# What is shorter passes for text, of about as many tokens as a picture counts (4,096 bytes at 0.4 tokens).
_SAMPLE_STEP_BYTES = 4096
_SAMPLE = re.compile(rb"[A-Za-z0-9+/\\]{64}")
_DATA_URL = re.compile(rb'data:[^,"]{1,100};base64,')
# How far from the data the other fields of its object may stand: media type, format, kind of source.
_NEAR_BYTES = 120
_MEDIA_FIELDS = (b'"media_type"', b'"format"')


def text_size(body: bytes) -> TextSize:
    """Measure a body, leaving out base64 of pictures, documents and sound.

    Other long base64 stays: signatures, encrypted reasoning.
    """
    media = media_bytes = end = 0
    looks_encoded = _SAMPLE.match
    for at in range(_SAMPLE_STEP_BYTES, len(body), _SAMPLE_STEP_BYTES):
        if looks_encoded(body, at) is None or at < end:
            continue
        # Strings of base64 have no quotes in them, so that the nearest ones are their own.
        start, end = body.rfind(b'"', 0, at) + 1, body.find(b'"', at)
        if end < 0:
            break
        if _is_media(body, start, end):
            media += 1
            media_bytes += end - start
    return TextSize(len(body) - media_bytes, media)


def _is_media(body: bytes, start: int, end: int) -> bool:
    if body[start - 2 : start - 1] == b"\\" or body[end - 1 : end] == b"\\":
        return False  # an escaped quote: what looks like data is quoted in a text
    if _DATA_URL.match(body, start):
        return True
    before, after = body[max(0, start - _NEAR_BYTES) : start], body[end : end + _NEAR_BYTES]
    if b"redacted_thinking" in before:
        return False
    return before.rstrip(b'" :\t\r\n').endswith(b'"data') and any(
        name in before or name in after for name in _MEDIA_FIELDS
    )


_CACHE_CONTROL = b'"cache_control"'
_TTL_1H = re.compile(rb'"ttl"\s*:\s*"1h"')
# A request may have four; whoever has so many others of that name is taken at the dearest.
_MOST_CACHE_CONTROLS = 32
_CACHE_CONTROL_BYTES = 100


def cache_life(body: bytes) -> str | None:
    """Give the longest life, "5m" or "1h", of the prompt caches that a messages body asks for; None if for none."""
    # Backwards: breakpoints stand at the end of conversations, and rfind is three times as fast as find (CPython 3.11).
    at = body.rfind(_CACHE_CONTROL)
    if at < 0:
        return None
    for _ in range(_MOST_CACHE_CONTROLS):
        if _TTL_1H.search(body, at, at + _CACHE_CONTROL_BYTES):
            return "1h"
        at = body.rfind(_CACHE_CONTROL, 0, at)
        if at < 0:
            return "5m"
    return "1h"


class _Streamed(msgspec.Struct, gc=False):
    stream: object = None
    stream_options: msgspec.Raw = msgspec.Raw()


class _Options(msgspec.Struct, gc=False):
    include_usage: object = None


_streamed_decoder = msgspec.json.Decoder(_Streamed)
_options_decoder = msgspec.json.Decoder(_Options)
_members_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_OPEN = re.compile(rb"\s*\{")
_NAME = re.compile(rb'\s*,?\s*("(?:[^"\\]|\\.)*")\s*:\s*')
_ASKED = b'"include_usage":true'


def ask_for_usage(body: bytes) -> bytes | None:
    """Give a chat body that asks a stream for its usage; None if it does so already, or is not to be streamed.

    A body that is not understood is the provider's to refuse: None.

    Raises:
        CallerError: a field comes twice, so that it cannot be told what a change would do.
    """
    if body.rfind(b'"stream"') < 0:  # backwards, as above
        return None
    try:
        asked = _streamed_decoder.decode(body)
    except UNREADABLE:
        return None
    if asked.stream is not True:
        return None
    options = bytes(asked.stream_options)
    if not options:
        opened = _opening(body)
        return b'%b"stream_options":{%b},' % (opened, _ASKED) + body[len(opened) :]
    try:
        changed = _with_usage(options)
        if changed is None:
            return None
        start, end = member_spans(body)["stream_options"]
    except UNREADABLE:  # the name of a field that nobody reads is no text
        return None
    return body[:start] + changed + body[end:]


def _with_usage(options: bytes) -> bytes | None:
    if options == b"null":
        return b"{%b}" % _ASKED
    try:
        include = _options_decoder.decode(options).include_usage
    except UNREADABLE:
        return None
    if include not in (None, False):
        return None
    spans = member_spans(options)
    if "include_usage" in spans:
        start, end = spans["include_usage"]
        return options[:start] + b"true" + options[end:]
    opened = _opening(options)
    return opened + _ASKED + (b"," if spans else b"") + options[len(opened) :]


def _opening(body: bytes) -> bytes:
    opened = _OPEN.match(body)
    assert opened is not None, "it was decoded as an object"
    return opened[0]


def member_spans(body: bytes) -> dict[str, tuple[int, int]]:
    """Give where the value of each member of a readable object begins and ends.

    The values' lengths come from the decoder, which is fifteen times as fast as any walk through them here. Of a field
    that comes twice it keeps the last value only, so that there the lengths no longer fit.

    Raises:
        CallerError: a field comes twice.
    """
    at = len(_opening(body))
    spans = {}
    for name, value in _members_decoder.decode(body).items():
        text = bytes(value)
        found = _NAME.match(body, at)
        start = found.end() if found else at
        at = start + len(text)
        if found is None or msgspec.json.decode(found[1]) != name or body[start:at] != text:
            raise CallerError(f"a field near {name} comes twice: expected each once, for the body has to be changed")
        spans[name] = (start, at)
    return spans
