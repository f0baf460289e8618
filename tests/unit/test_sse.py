"""The event-stream reader against the standard's own algorithm, written out naively."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.formats.sse import BOM, MAX_EVENT_BYTES, Reader, Span, payload

# Texts in which every byte matters to the reader.
PIECES = st.sampled_from(
    (
        *(b"data:", b"data: ", b"data", b"event: x", b"id: 1", b": note", b"{}"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"),
        *(b"a", b" ", b":", BOM, "é".encode(), b"\xff"),
    )
)
STREAMS = st.lists(PIECES, max_size=40).map(b"".join)


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(each, len(stream)) for each in at} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def read(pieces: list[bytes], limit: int = MAX_EVENT_BYTES) -> tuple[list[Span], bytes]:
    reader = Reader(limit)
    spans = [span for piece in pieces for span in reader.feed(piece)]
    return spans, reader.flush()


def payloads(spans: list[Span]) -> list[bytes]:
    found = [payload(span.raw, first=index == 0) for index, span in enumerate(spans)]
    return [each for each in found if each is not None]


def standard(stream: bytes) -> list[bytes]:
    """WHATWG HTML 9.2.6, line by line, on a stream that is there as a whole."""
    stream = stream.removeprefix(BOM)
    found: list[bytes] = []
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", stream)[:-1]:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
    return found


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
def test_any_cut_of_any_stream_gives_the_events_of_the_standard(
    stream: bytes, at: list[int]
) -> None:
    spans, rest = read(cut(stream, at))
    assert b"".join(span.raw for span in spans) + rest == stream
    assert payloads(spans) == standard(stream)


@given(STREAMS)
def test_byte_by_byte_is_as_good_as_all_at_once(stream: bytes) -> None:
    spans, _ = read([stream[i : i + 1] for i in range(len(stream))])
    assert payloads(spans) == standard(stream)


@given(STREAMS, st.integers(4, 30), st.lists(st.integers(0, 200), max_size=12))
def test_events_over_the_limit_are_the_same_ones_however_they_are_cut(
    stream: bytes, limit: int, at: list[int]
) -> None:
    spans, rest = read(cut(stream, at), limit)
    at_once, _ = read([stream], limit)
    assert b"".join(span.raw for span in spans) + rest == stream
    whole = [span.raw.rstrip(b"\n") for span in spans if span.whole]
    assert [each for each in whole if each.strip()] == [
        span.raw.rstrip(b"\n") for span in at_once if span.whole and span.raw.strip()
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_given_as_soon_as_its_blank_line_is_there(end: bytes) -> None:
    reader = Reader()
    assert reader.feed(b"data: 1" + end) == []
    spans = reader.feed(end)
    assert [span.raw for span in spans] == [b"data: 1" + end + end]


def test_an_event_that_ends_with_cr_does_not_wait_for_the_lf() -> None:
    reader = Reader()
    assert [span.raw for span in reader.feed(b"data: 1\r\n\r")] == [b"data: 1\r\n\r"]
    assert [span.raw for span in reader.feed(b"\ndata: 2\n\n")] == [b"\n", b"data: 2\n\n"]


def test_data_lines_are_joined_and_comments_are_not_data() -> None:
    assert payload(b"data: a\n: note\ndata:b\ndata\nevent: x\n\n") == b"a\nb\n"
    assert payload(b": only a comment\n\n") is None
    assert payload(b"dataset: x\n\n") is None


def test_only_one_space_after_the_colon_is_taken_away() -> None:
    assert payload(b"data:  two\n\n") == b" two"


def test_a_byte_order_mark_counts_only_at_the_start() -> None:
    assert payload(BOM + b"data: a\n\n", first=True) == b"a"
    assert payload(BOM + b"data: a\n\n") is None


def test_an_event_over_the_limit_is_passed_on_in_pieces_and_the_next_one_is_read() -> None:
    big = b"data: " + b"x" * 3_000_000
    spans, rest = read([big[i : i + 65_536] for i in range(0, len(big), 65_536)] + [b"\n\n"])
    assert b"".join(span.raw for span in spans) == big + b"\n\n"
    assert rest == b""
    assert not any(span.whole for span in spans)
    assert [span.last for span in spans] == [False] * (len(spans) - 1) + [True]
    assert max(len(span.raw) for span in spans) < MAX_EVENT_BYTES + 70_000
    reader = Reader(100)
    found = reader.feed(b"data: " + b"x" * 200 + b"\n\ndata: y\n\n")
    assert [(span.whole, len(span.raw)) for span in found] == [(False, 208), (True, 9)]


def test_a_byte_that_is_added_to_a_long_event_does_not_read_it_again() -> None:
    reader = Reader()
    reader.feed(b"x" * 900_000)
    start = time.process_time()
    for _ in range(50_000):
        reader.feed(b"x")
    assert time.process_time() - start < 10  # some hundredths; were it all read again, a minute
    assert len(reader.pending) == 950_000
