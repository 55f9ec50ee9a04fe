"""Splitting event streams: whatever the chunks, the events are the same and the bytes are the stream's."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.providers.sse import Event, EventSplitter


def split(chunks: Iterable[bytes], splitter: EventSplitter | None = None) -> list[Event]:
    splitter = splitter or EventSplitter()
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    rest = splitter.close()
    return events if rest is None else [*events, rest]


def raws(chunks: Iterable[bytes]) -> list[bytes]:
    return [event.raw for event in split(chunks)]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def test_an_event_gives_its_name_its_data_and_its_bytes() -> None:
    stream = b'event: message_start\ndata: {"a":1}\n\n'
    (event,) = split([stream])
    assert (event.event, event.data, event.raw, event.whole) == (b"message_start", b'{"a":1}', stream, True)


def test_many_events_in_one_chunk_and_one_event_in_many() -> None:
    stream = b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert raws([stream]) == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    assert raws(stream[i : i + 1] for i in range(len(stream))) == raws([stream])


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\r", b"\r\n\r"])
def test_every_kind_of_blank_line_ends_an_event(blank: bytes) -> None:
    stream = b"data: 1" + blank + b"data: 2" + blank
    assert [event.data for event in split([stream])] == [b"1", b"2"]
    assert [event.whole for event in split([stream])] == [True, True]


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\n\n"])
def test_an_event_is_given_with_its_last_byte(blank: bytes) -> None:
    splitter = EventSplitter()
    stream = b"data: 1" + blank
    given_at = [at for at, byte in enumerate(stream) if splitter.feed(bytes([byte]))]
    assert given_at == [len(stream) - 1]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: 1\n\ndata: 2\r\n\r\n"],
        [b"data: 1\r\rdata: 2\r\n\r\n"],
        [b"data: 1\r\n\ndata: 2\r\n\r\n"],
        [b"data: 1\r\r", b"data: 2\n\n"],
        [b"data: 1", b"\r\r", b"data: 2\n\n"],
        [b"data: 1", b"\r", b"\r", b"data: 2\n\n"],
        [b"data: 1\r\n\r", b"\n", b"data: 2\n\n"],
    ],
)
def test_kinds_of_line_ends_may_be_mixed(chunks: list[bytes]) -> None:
    assert [event.data for event in split(chunks)] == [b"1", b"2"]


def test_one_crlf_is_one_line_end() -> None:
    assert len(split([b"event: a\r\ndata: 1\r\n\r\n"])) == 1


@pytest.mark.parametrize(
    ("raw", "event", "data"),
    [
        (b": a comment\ndata: 1\n\n", b"", b"1"),
        (b":\n\n", b"", b""),
        (b"data:1\n\n", b"", b"1"),
        (b"data:  1\n\n", b"", b" 1"),
        (b"data: 1\ndata: 2\n\n", b"", b"1\n2"),
        (b"data\ndata:\n\n", b"", b"\n"),
        (b"data: a:b\n\n", b"", b"a:b"),
        (b"event: x\nevent: y\ndata: 1\n\n", b"y", b"1"),
        (b"id: 7\nretry: 10\nunknown: z\ndata: 1\n\n", b"", b"1"),
        (b"\xef\xbb\xbfdata: 1\n\n", b"", b"1"),
        (b"event: x\rdata: 1\r\r", b"x", b"1"),
        (b"database: 1\n\n", b"", b""),
        (b"data: \xe2\x80\xa8 is no line end here\n\n", b"", b"\xe2\x80\xa8 is no line end here"),
    ],
)
def test_fields_are_read_as_the_standard_says(raw: bytes, event: bytes, data: bytes) -> None:
    (parsed,) = split([raw])
    assert (parsed.event, parsed.data) == (event, data)


def test_what_the_end_cut_off_is_passed_on_but_not_read() -> None:
    events = split([b"data: 1\n\n", b'event: x\ndata: {"usage":1'])
    assert [event.whole for event in events] == [True, False]
    assert (events[1].event, events[1].data) == (b"", b"")
    assert b'"usage"' in events[1].raw


def test_an_event_beyond_the_bound_passes_in_parts_and_the_next_one_is_read_again() -> None:
    splitter = EventSplitter(max_event_bytes=100)
    chunks = [b"data: " + b"x" * 60, b"x" * 60, b"x" * 60, b"\n", b"\ndata: 2\n\n"]
    events = split(chunks, splitter)
    assert b"".join(event.raw for event in events) == b"".join(chunks)
    assert [event.whole for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].data == b"2"
    assert len(events) > 2


def test_no_more_than_the_bound_and_a_chunk_is_ever_kept() -> None:
    splitter = EventSplitter(max_event_bytes=1_000)
    for _ in range(1_000):
        splitter.feed(b"x" * 100)
        assert len(splitter._pending) <= 1_000
    splitter = EventSplitter(max_event_bytes=1_000)
    splitter.feed(b"data: 1\n\n" + b"y" * 5_000)
    assert len(splitter._pending) <= 1_000


def test_an_event_beyond_the_bound_in_one_chunk_is_not_whole_either() -> None:
    splitter = EventSplitter(max_event_bytes=10)
    assert [(event.whole, event.data) for event in splitter.feed(b"data: 12345\n\ndata: 1\n\n")] == [
        (False, b""),
        (True, b"1"),
    ]


LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.one_of(
    st.sampled_from([b"", b"data: 1", b"event: x", b": c", b"data", b"\xef\xbb\xbf"]), st.binary(max_size=8)
)
STREAMS = st.lists(st.tuples(LINES, LINE_ENDS), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)
PLACES = st.lists(st.integers(min_value=0, max_value=400), max_size=12)


@given(STREAMS, PLACES)
def test_any_chunking_gives_the_same_events_and_loses_no_byte(stream: bytes, places: list[int]) -> None:
    whole = split([stream])
    assert b"".join(event.raw for event in whole) == stream
    assert split(cut(stream, places)) == whole


@given(STREAMS, PLACES, st.integers(min_value=4, max_value=30))
def test_the_bound_loses_no_byte_and_reads_nothing_that_is_not_there(
    stream: bytes, places: list[int], bound: int
) -> None:
    events = split(cut(stream, places), EventSplitter(max_event_bytes=bound))
    assert b"".join(event.raw for event in events) == stream
    unbounded = [event.raw for event in split([stream]) if event.whole]
    assert all(event.raw in unbounded for event in events if event.whole)


@given(STREAMS)
def test_the_events_are_those_of_a_reader_that_takes_line_by_line(stream: bytes) -> None:
    expected = []
    data: list[bytes] = []
    for line in stream.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
        text = line.rstrip(b"\r\n")
        if not text and line:
            expected.append(b"\n".join(data))
            data = []
        elif text == b"data" or text.startswith(b"data:"):
            data.append(text[5:].removeprefix(b" "))
    assert [data for data in expected if data] == [event.data for event in split([stream]) if event.data]
