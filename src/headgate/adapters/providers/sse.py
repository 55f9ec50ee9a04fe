"""Split a stream of server-sent events at its blank lines, so that usage can be read while the bytes pass through.

Its one rule: the raw bytes of all events, joined, are the stream as it came. It reads no JSON and fails no stream.
The format is that of the WHATWG HTML standard, section 9.2 (server-sent events).
"""

import re

import msgspec

__all__ = ["Event", "EventSplitter"]

# Two line ends in a row. Atomic groups, lest the two halves of one CRLF pass for two line ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
# A blank line of two CRLFs may have had all but its last byte in the bytes that were searched before.
_BLANK_LINE_OVERLAP = 3
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event as it came, its blank line included; `event` and `data` are parsed anew whenever they are asked for.

    Look at `raw` first (`b'"usage"' in event.raw`): that is an order of magnitude cheaper than parsing.
    """

    # A msgspec struct because making one costs a third of a slotted class, and every event of every stream makes one.
    raw: bytes
    whole: bool = True
    """False for a part of an event: one beyond the splitter's bound, or one that the stream's end cut off."""

    @property
    def event(self) -> bytes:
        """The name of the event; empty when it has none, or when it is not whole."""
        return (self._field(b"event") or [b""])[-1]

    @property
    def data(self) -> bytes:
        r"""The data lines joined by ``\n``; empty when there are none, or when the event is not whole."""
        return b"\n".join(self._field(b"data"))

    def _field(self, name: bytes) -> list[bytes]:
        # A client drops an event that its stream cut off; whoever reads half a usage record would count it wrong.
        if not self.whole:
            return []
        values = []
        for line in self.raw.removeprefix(_BYTE_ORDER_MARK).splitlines():
            field, _, value = line.partition(b":")
            if field == name:
                values.append(value.removeprefix(b" "))
        return values


class EventSplitter:
    """Finds the events of one stream, in whatever chunks it comes.

    An event beyond `max_event_bytes` is not an error: it passes in parts that are not `whole`. The stream belongs to
    the client, who may well take it; all that is lost is that nothing can be read from that one event.

    A blank line that ends in a lone CR is only known to be complete with the next byte, for an LF may belong to it: in
    a stream whose lines end in CR alone (no provider sends one) every event waits for the first byte of the next.
    """

    __slots__ = ("_has_cr", "_max_event_bytes", "_pending", "_skipping")

    def __init__(self, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self._has_cr = False
        self._skipping = False

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes and give the events that they complete; linear in the bytes, however they are cut."""
        pending = self._pending
        bound = self._max_event_bytes
        has_cr = b"\r" in chunk
        # Providers write event by event, so this is most of what comes.
        if not pending and 1 < len(chunk) <= bound:
            if chunk.find(b"\n\n") == len(chunk) - 2 and not has_cr:
                return [Event(chunk)]
            if has_cr and _is_one_event_of_crlf(chunk):
                return [Event(chunk)]
        has_cr = has_cr or self._has_cr
        if pending:
            searched = max(len(pending) - _BLANK_LINE_OVERLAP, 0)
            pending += chunk
            if _end_of_event(pending, searched, has_cr=has_cr) < 0:
                self._has_cr = has_cr
                return self._overflow() if len(pending) > bound else []
            chunk = bytes(pending)
            pending.clear()
        raws, rest = _cut_with_cr(chunk) if has_cr else _cut(chunk)
        events = [Event(raw, len(raw) <= bound) for raw in raws]
        if events and self._skipping:
            self._skipping = False
            events[0] = Event(raws[0], whole=False)
        self._has_cr = has_cr and b"\r" in rest
        pending += rest
        if len(rest) > bound:
            events += self._overflow()
        return events

    def close(self) -> Event | None:
        """Give what the end of the stream cut off, if anything: the bytes since the last blank line."""
        rest, ended = bytes(self._pending), self._pending.endswith(b"\r")
        self._pending.clear()
        if not rest:
            return None
        # The one end that `feed` had to hold back, because a line feed might still have followed.
        return Event(rest, ended and not self._skipping and _BLANK_LINE.search(rest) is not None)

    def _overflow(self) -> list[Event]:
        # The last bytes stay: they may be the beginning of the blank line.
        passed = bytes(self._pending[:-_BLANK_LINE_OVERLAP])
        del self._pending[:-_BLANK_LINE_OVERLAP]
        self._skipping = True
        return [Event(passed, whole=False)] if passed else []


def _is_one_event_of_crlf(chunk: bytes) -> bool:
    """Tell the usual case; False when in doubt. The scans cost a fraction of the regular expression."""
    # Every blank line has one of these three pairs in it.
    return (
        chunk.endswith(b"\r\n\r\n")
        and chunk.find(b"\n\r") == len(chunk) - 3
        and b"\n\n" not in chunk
        and b"\r\r" not in chunk
    )


def _cut(data: bytes) -> tuple[list[bytes], bytes]:
    *pieces, rest = data.split(b"\n\n")
    return [piece + b"\n\n" for piece in pieces], rest


def _cut_with_cr(data: bytes) -> tuple[list[bytes], bytes]:
    raws = []
    start = 0
    while (end := _end_of_event(data, start, has_cr=True)) >= 0:
        raws.append(data[start:end])
        start = end
    return raws, data[start:]


def _end_of_event(data: bytes | bytearray, start: int, *, has_cr: bool) -> int:
    """Give the index behind the first blank line at or after `start`, or -1."""
    if not has_cr:
        found = data.find(b"\n\n", start)
        return found + 2 if found >= 0 else -1
    match = _BLANK_LINE.search(data, start)
    if match is None:
        return -1
    end = match.end()
    return -1 if end == len(data) and data[-1] == ord("\r") else end
