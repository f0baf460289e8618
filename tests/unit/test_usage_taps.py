"""Taps beside bytes of any kind: unchanged bytes, bounded memory, one chunk taken out."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import effort
from wrapper.metering import Tap, Usage, tap_for

USAGE = b'{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}'
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-6-luna",'
    b'"system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"hello"},'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
ASKED = b'data: {"id":"chatcmpl-1","model":"gpt-6-luna","choices":[],"usage":' + USAGE + b"}\n\n"
FINISH = (
    b'data: {"model":"llama","choices":[{"delta":{},"finish_reason":"stop"}],'
    b'"x_groq":{"id":"req_1","usage":' + USAGE + b'},"usage":' + USAGE + b"}\n\n"
)
DONE = b"data: [DONE]\n\n"


def pour(tap: Tap, pieces: list[bytes]) -> bytes:
    return b"".join([*(tap.feed(piece) for piece in pieces), tap.flush()])


def cut(stream: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({each % (len(stream) + 1) for each in at} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


CUTS = st.lists(st.integers(0, 2000), max_size=15)
EVENTS = st.lists(
    st.sampled_from(
        [CHUNK, ASKED, FINISH, DONE, b": ping\n\n", b"\n", b"event: x\n", b"data: {broken\n\n"]
    ).flatmap(
        lambda event: st.sampled_from(
            [event, event.replace(b"\n", b"\r\n"), event.replace(b"\n", b"\r")]
        )
    ),
    max_size=8,
)


@given(st.binary(max_size=300), CUTS, st.sampled_from(["application/json", "text/event-stream"]))
def test_any_bytes_come_out_as_they_went_in(data: bytes, at: list[int], kind: str) -> None:
    for encoding in (None, "gzip", "deflate", "br", "zstd", "gzip, br"):
        tap = tap_for(kind, encoding)
        for piece in cut(data, at):
            assert tap.feed(piece) == piece
        assert tap.flush() == b""
        tap.reading()


@given(EVENTS, CUTS)
def test_the_stripped_stream_is_the_same_however_it_is_cut(
    events: list[bytes], at: list[int]
) -> None:
    stream = b"".join(events)
    pieces = cut(stream, at)
    stripping, once = (tap_for("text/event-stream", None, strip_usage=True) for _ in range(2))
    stripped = pour(stripping, pieces)
    assert stripped == pour(once, [stream])
    assert stripping.reading() == once.reading()
    single = tap_for("text/event-stream", None, strip_usage=True)
    assert stripped == pour(single, [stream[i : i + 1] for i in range(len(stream))])


@given(st.integers(0, 3), st.sampled_from([b"\n", b"\r\n", b"\r"]), CUTS)
def test_exactly_the_extra_chunk_is_taken_out(before: int, end: bytes, at: list[int]) -> None:
    head, tail = CHUNK * before, DONE
    stream = (head + ASKED + tail).replace(b"\n", end)
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert pour(tap, cut(stream, at)) == (head + tail).replace(b"\n", end)
    assert tap.reading().usage == Usage(19, 10, 29)


def test_a_finish_chunk_with_usage_stays() -> None:
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert pour(tap, [CHUNK, FINISH, ASKED, DONE]) == CHUNK + FINISH + DONE


def test_empty_choices_without_usage_stay() -> None:
    first = b'data: {"choices":[],"prompt_filter_results":[{}],"usage":null}\n\n'
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert pour(tap, [first, CHUNK]) == first + CHUNK


def test_the_extra_chunk_goes_even_where_its_numbers_cannot_be_read() -> None:
    broken = ASKED.replace(b":19", b":-19")
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert pour(tap, [CHUNK, broken, DONE]) == CHUNK + DONE
    assert tap.reading().reason == "unreadable"


def test_whole_events_are_not_held_back_while_stripping() -> None:
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert tap.feed(CHUNK) == CHUNK
    assert tap.feed(CHUNK + CHUNK[:50]) == CHUNK
    assert tap.feed(CHUNK[50:-1]) == b""
    assert tap.feed(CHUNK[-1:]) == CHUNK


def test_an_event_without_its_blank_line_is_metered_and_stripped_too() -> None:
    for rest in (ASKED[:-1], ASKED[:-2]):
        tap = tap_for("text/event-stream", None, strip_usage=True)
        assert pour(tap, [CHUNK, rest]) == CHUNK
        assert tap.reading().usage == Usage(19, 10, 29)
    tap = tap_for("text/event-stream", None, strip_usage=True)
    assert pour(tap, [CHUNK, DONE[:-1]]) == CHUNK + DONE[:-1]


def test_a_byte_order_mark_does_not_hide_the_first_event() -> None:
    tap = tap_for("text/event-stream", None)
    tap.feed(b"\xef\xbb\xbf" + ASKED)
    assert tap.reading().usage == Usage(19, 10, 29)


@pytest.mark.parametrize("place", ["beginning", "end", "middle"])
def test_ten_megabytes_of_embeddings_are_read_at_their_ends(place: str) -> None:
    vectors = json.dumps([{"embedding": [0.123456789] * 1000}] * 800).encode()
    text = b'"a \\"usage\\":{\\"prompt_tokens\\":1} text"'
    before = b'{"object":"list","usage": ' + USAGE + b',"data":' + vectors + b',"model":"e"}'
    after = (
        b'{"model":"e","note":' + text + b',"data":' + vectors + b',"usage":' + USAGE + b',"x":{}}'
    )
    middle = b'{"model":"e","a":' + vectors + b',"usage":' + USAGE + b',"b":' + vectors + b"}"
    body = {"beginning": before, "end": after, "middle": middle}[place]
    assert len(body) > 10_000_000
    tap = tap_for("application/json", None)
    tracemalloc.start()
    for start in range(0, len(body), 65_536):
        tap.feed(body[start : start + 65_536])
    tap.flush()
    reading = tap.reading()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    if place == "middle":
        assert (reading.usage, reading.reason) == (None, "too_large")
    else:
        assert reading.usage == Usage(19, 10, 29)


@pytest.mark.parametrize(
    "tail",
    [
        b',"choices":[{"usage":' + USAGE + b"}]}",  # deeper
        b',"text":"\\"usage\\":{\\"prompt_tokens\\":1}"}',  # in a string
        b',"usage":"' + b"x" * 70_000 + b'"}',
        b',"usage":' + USAGE,  # cut off
        b',"usage":' + USAGE + b',"broken',
    ],
)
def test_at_the_end_of_a_large_answer_only_the_real_usage_is_taken(tail: bytes) -> None:
    tap = tap_for("application/json", None)
    tap.feed(b'{"model":"e","data":"' + b"x" * 1_000_000 + b'"' + tail)
    tap.flush()
    assert tap.reading().usage is None
    assert tap.reading().model == "e"


def test_an_end_full_of_false_usages_costs_little_time() -> None:
    tap = tap_for("application/json", None)
    tap.feed(b'{"data":[' + b'{"usage":{}},' * 100_000 + b"{}]}")
    assert effort.calls(tap.reading) < 2_000
    assert tap.reading().usage is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_large_answers_of_any_bytes_do_not_make_a_tap_raise(head: bytes, tail: bytes) -> None:
    tap = tap_for("application/json", None)
    tap.feed(b'{"model":' + head + b"x" * 300_000 + tail)
    tap.feed(b',"usage":' + USAGE + tail)
    tap.reading()


def test_a_json_answer_in_many_small_pieces_is_read() -> None:
    body = b'{"model":"m","usage":' + USAGE + b',"x":"' + b"y" * 3000 + b'"}'
    tap = tap_for("application/json", None)
    assert pour(tap, []) == b""
    for i in range(len(body)):
        tap.feed(body[i : i + 1])
    assert tap.reading().usage == Usage(19, 10, 29)


def test_nan_in_an_answer_does_not_cost_its_usage() -> None:
    tap = tap_for("application/json", None)
    tap.feed(b'{"model":"m","choices":[{"logprobs":[NaN,-Infinity]}],"usage":' + USAGE + b"}")
    tap.flush()
    assert tap.reading().usage == Usage(19, 10, 29)
    assert tap.reading().model == "m"


IMAGE_EVENTS = {
    "images": (
        b'event: image_generation.completed\ndata: {"type":"image_generation.completed","b64_json":'
        b'"%s","usage":{"input_tokens":50,"output_tokens":4160,"total_tokens":4210}}\n\n'
    ),
    "responses": (
        b'event: response.completed\ndata: {"type":"response.completed","sequence_number":3,'
        b'"response":{"id":"r","output":[{"result":"%s"}],"usage":{"input_tokens":50,'
        b'"output_tokens":4160,"total_tokens":4210},"user":null,"metadata":{}}}\n\n'
    ),
}


@pytest.mark.parametrize("name", IMAGE_EVENTS)
def test_an_event_with_an_image_in_it_is_metered(name: str) -> None:
    stream = CHUNK + IMAGE_EVENTS[name] % (b"A" * 3_000_000) + DONE
    tap = tap_for("text/event-stream", None)
    assert pour(tap, []) == b""
    for start in range(0, len(stream), 65_536):
        tap.feed(stream[start : start + 65_536])
    assert tap.reading().usage == Usage(50, 4160, 4210)


def test_a_huge_event_without_usage_is_said_to_be_too_large() -> None:
    tap = tap_for("text/event-stream", None, strip_usage=True)
    huge = b'data: {"x":"' + b"A" * 2_000_000 + b'"}\n\n'
    assert pour(tap, cut(huge, [1, 1999, 77])) == huge
    assert tap.reading().reason == "too_large"


def test_a_huge_event_that_the_end_cuts_off_is_metered_or_said_to_be_too_large() -> None:
    for name, whole in IMAGE_EVENTS.items():
        event = (whole % (b"A" * 3_000_000)).rstrip()
        for strip in (False, True):
            tap = tap_for("text/event-stream", None, strip_usage=strip)
            out = pour(tap, cut(event, [1_000_000, 2_000_000]))
            assert out == event, name
            assert tap.reading().usage == Usage(50, 4160, 4210), name
    tap = tap_for("text/event-stream", None)
    pour(tap, [b'data: {"x":"' + b"A" * 2_000_000])
    assert tap.reading().reason == "too_large"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
    "deflate": zlib.compress,
    " Deflate": raw_deflate,
    "br": brotli.compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_a_compressed_answer_passes_untouched_and_is_read(encoding: str, kind: str) -> None:
    plain = CHUNK * 30 + ASKED if "stream" in kind else b'{"model":"m","usage":' + USAGE + b"}"
    packed = PACKERS[encoding](plain)
    for size in (1, 7, len(packed)):
        tap = tap_for(kind, encoding, strip_usage=True)
        pieces = [packed[i : i + size] for i in range(0, len(packed), size)]
        assert pour(tap, pieces) == packed
        assert tap.reading().usage == Usage(19, 10, 29)


def test_an_encoding_that_is_not_known_says_so() -> None:
    for encoding in ("zstd", "gzip, br", "compress"):
        assert tap_for("application/json", encoding).reading().reason == "encoding"
    assert tap_for("application/json", "identity").reading().reason == "truncated"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_broken_compression_is_unreadable(encoding: str) -> None:
    packed = bytearray(PACKERS[encoding](random.Random(1).randbytes(5000)))
    packed[3:60] = b"\xff" * 57
    tap = tap_for("application/json", encoding)
    assert pour(tap, [bytes(packed)]) == packed
    assert tap.reading().reason == "unreadable"


def test_compression_that_breaks_keeps_the_usage_that_was_read() -> None:
    packed = gzip.compress(ASKED)
    tap = tap_for("text/event-stream", "gzip")
    pour(tap, [packed[:-8], b"\xff" * 8])
    assert tap.reading().usage == Usage(19, 10, 29)


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_bomb_costs_neither_memory_nor_time(encoding: str) -> None:
    bomb = PACKERS[encoding](b'{"model":"' + b"x" * 100_000_000 + b'"}')
    tap = tap_for("application/json", encoding)
    tracemalloc.start()
    for i in range(0, len(bomb), 65_536):
        tap.feed(bomb[i : i + 65_536])
    tap.flush()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tap.reading().reason == "too_large"
    assert peak < 4_000_000
    # What comes after is not even unpacked.
    assert effort.calls(lambda: tap.feed(bomb)) < 20


@pytest.mark.parametrize("strip", [False, True])
def test_an_event_of_no_interest_costs_a_handful_of_calls(strip: bool) -> None:
    """What that is in microseconds is told by `make bench`."""
    tap = tap_for("text/event-stream", None, strip_usage=strip)
    tap.feed(CHUNK)
    assert effort.calls(lambda: [tap.feed(CHUNK) for _ in range(100)]) < 100 * 12
