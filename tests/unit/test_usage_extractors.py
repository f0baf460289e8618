"""Usage extractors: bytes pass unchanged, memory is bounded, one chunk is taken out."""

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
from msgspec.structs import replace

from harness import effort
from harness.metering import extractor_for
from wrapper.metering import Usage, UsageExtractor
from wrapper.metering.stream import StreamExtractor

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


def pour(extractor: UsageExtractor, pieces: list[bytes]) -> bytes:
    return b"".join([*(extractor.feed(piece) for piece in pieces), extractor.flush()])


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
        extractor = extractor_for(kind, encoding)
        for piece in cut(data, at):
            assert extractor.feed(piece) == piece
        assert extractor.flush() == b""
        extractor.extracted()


@given(EVENTS, CUTS)
def test_the_stripped_stream_is_the_same_however_it_is_cut(
    events: list[bytes], at: list[int]
) -> None:
    stream = b"".join(events)
    pieces = cut(stream, at)
    stripping, once = (extractor_for("text/event-stream", None, strip_usage=True) for _ in range(2))
    stripped = pour(stripping, pieces)
    assert stripped == pour(once, [stream])
    # (Blank lines in a piece of their own hide that the last event has passed.)
    assert replace(stripping.extracted(), terminal=False) == replace(
        once.extracted(), terminal=False
    )
    single = extractor_for("text/event-stream", None, strip_usage=True)
    assert stripped == pour(single, [stream[i : i + 1] for i in range(len(stream))])


OF_INTEREST = b'data: {"model":"m","choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
EVENTS = [
    OF_INTEREST,
    b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"},"message":{"content":"all"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}\n\n',
    b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":-3}}\n\n',
    b'data: {"error":{"message":"no"}}\n\n',
    b'event: x\ndata: {"delta":{"content":"a"}}\n\n',
    b'data: {"choices":\ndata: [{"delta":{"content":"a"}}],\ndata: "content":"b"}\n\n',
    b": a comment\n\n",
    b"\n\n",
    b"data: [DONE]\n\n",
    b'data: {"type":"message_stop"}\n\n',
    b'data: {"usage\n\n',
]


@given(events=st.lists(st.sampled_from(EVENTS), max_size=12), strip=st.booleans())
def test_events_that_come_together_say_what_they_say_one_by_one(
    events: list[bytes], strip: bool
) -> None:
    data = OF_INTEREST + b"".join(events)
    together, apart = StreamExtractor(strip_usage=strip), StreamExtractor(strip_usage=strip)
    together.marker = apart.marker = b'"content":"'
    out = together.feed(data)
    assert out == b"".join(apart.feed(bytes([byte])) for byte in data)
    assert together.extracted() == apart.extracted()
    assert together.flush() == apart.flush() == b""


@given(st.integers(0, 3), st.sampled_from([b"\n", b"\r\n", b"\r"]), CUTS)
def test_exactly_the_additional_chunk_is_taken_out(before: int, end: bytes, at: list[int]) -> None:
    head, tail = CHUNK * before, DONE
    stream = (head + ASKED + tail).replace(b"\n", end)
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert pour(extractor, cut(stream, at)) == (head + tail).replace(b"\n", end)
    assert extractor.extracted().usage == Usage(19, 10, 29)


def test_a_finish_chunk_with_usage_stays() -> None:
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert pour(extractor, [CHUNK, FINISH, ASKED, DONE]) == CHUNK + FINISH + DONE


def test_empty_choices_without_usage_stay() -> None:
    first = b'data: {"choices":[],"prompt_filter_results":[{}],"usage":null}\n\n'
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert pour(extractor, [first, CHUNK]) == first + CHUNK


def test_the_additional_chunk_is_taken_out_even_where_its_numbers_are_unreadable() -> None:
    broken = ASKED.replace(b":19", b":-19")
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert pour(extractor, [CHUNK, broken, DONE]) == CHUNK + DONE
    assert extractor.extracted().reason == "unreadable"


def test_whole_events_are_not_held_back_while_stripping() -> None:
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert extractor.feed(CHUNK) == CHUNK
    assert extractor.feed(CHUNK + CHUNK[:50]) == CHUNK
    assert extractor.feed(CHUNK[50:-1]) == b""
    assert extractor.feed(CHUNK[-1:]) == CHUNK


def test_an_event_without_its_blank_line_is_metered_and_stripped_too() -> None:
    for rest in (ASKED[:-1], ASKED[:-2]):
        extractor = extractor_for("text/event-stream", None, strip_usage=True)
        assert pour(extractor, [CHUNK, rest]) == CHUNK
        assert extractor.extracted().usage == Usage(19, 10, 29)
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    assert pour(extractor, [CHUNK, DONE[:-1]]) == CHUNK + DONE[:-1]


def test_a_byte_order_mark_does_not_hide_the_first_event() -> None:
    extractor = extractor_for("text/event-stream", None)
    extractor.feed(b"\xef\xbb\xbf" + ASKED)
    assert extractor.extracted().usage == Usage(19, 10, 29)


@pytest.mark.parametrize("place", ["beginning", "end", "middle"])
def test_of_ten_megabytes_of_embeddings_the_head_and_the_tail_are_read(place: str) -> None:
    vectors = json.dumps([{"embedding": [0.123456789] * 1000}] * 800).encode()
    text = b'"a \\"usage\\":{\\"prompt_tokens\\":1} text"'
    before = b'{"object":"list","usage": ' + USAGE + b',"data":' + vectors + b',"model":"e"}'
    after = (
        b'{"model":"e","note":' + text + b',"data":' + vectors + b',"usage":' + USAGE + b',"x":{}}'
    )
    middle = b'{"model":"e","a":' + vectors + b',"usage":' + USAGE + b',"b":' + vectors + b"}"
    body = {"beginning": before, "end": after, "middle": middle}[place]
    assert len(body) > 10_000_000
    extractor = extractor_for("application/json", None)
    tracemalloc.start()
    for start in range(0, len(body), 65_536):
        extractor.feed(body[start : start + 65_536])
    extractor.flush()
    extracted = extractor.extracted()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    if place == "middle":
        assert (extracted.usage, extracted.reason) == (None, "too_large")
    else:
        assert extracted.usage == Usage(19, 10, 29)


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
def test_in_the_tail_of_a_large_response_only_the_real_usage_is_read(tail: bytes) -> None:
    extractor = extractor_for("application/json", None)
    extractor.feed(b'{"model":"e","data":"' + b"x" * 1_000_000 + b'"' + tail)
    extractor.flush()
    assert extractor.extracted().usage is None
    assert extractor.extracted().model == "e"


def test_a_tail_full_of_false_usages_costs_little_time() -> None:
    extractor = extractor_for("application/json", None)
    extractor.feed(b'{"data":[' + b'{"usage":{}},' * 100_000 + b"{}]}")
    assert effort.calls(extractor.extracted) < 2_000
    assert extractor.extracted().usage is None


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_large_responses_of_any_bytes_do_not_make_an_extractor_raise(
    head: bytes, tail: bytes
) -> None:
    extractor = extractor_for("application/json", None)
    extractor.feed(b'{"model":' + head + b"x" * 300_000 + tail)
    extractor.feed(b',"usage":' + USAGE + tail)
    extractor.extracted()


def test_a_json_response_in_many_small_pieces_is_read() -> None:
    body = b'{"model":"m","usage":' + USAGE + b',"x":"' + b"y" * 3000 + b'"}'
    extractor = extractor_for("application/json", None)
    assert pour(extractor, []) == b""
    for i in range(len(body)):
        extractor.feed(body[i : i + 1])
    assert extractor.extracted().usage == Usage(19, 10, 29)


def test_nan_in_a_response_does_not_hide_its_usage() -> None:
    extractor = extractor_for("application/json", None)
    extractor.feed(b'{"model":"m","choices":[{"logprobs":[NaN,-Infinity]}],"usage":' + USAGE + b"}")
    extractor.flush()
    assert extractor.extracted().usage == Usage(19, 10, 29)
    assert extractor.extracted().model == "m"


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
    extractor = extractor_for("text/event-stream", None)
    assert pour(extractor, []) == b""
    for start in range(0, len(stream), 65_536):
        extractor.feed(stream[start : start + 65_536])
    assert extractor.extracted().usage == Usage(50, 4160, 4210)


def test_a_huge_event_without_usage_is_reported_as_too_large() -> None:
    extractor = extractor_for("text/event-stream", None, strip_usage=True)
    huge = b'data: {"x":"' + b"A" * 2_000_000 + b'"}\n\n'
    assert pour(extractor, cut(huge, [1, 1999, 77])) == huge
    assert extractor.extracted().reason == "too_large"


def test_a_huge_event_without_its_end_is_metered_or_reported_as_too_large() -> None:
    for name, whole in IMAGE_EVENTS.items():
        event = (whole % (b"A" * 3_000_000)).rstrip()
        for strip in (False, True):
            extractor = extractor_for("text/event-stream", None, strip_usage=strip)
            out = pour(extractor, cut(event, [1_000_000, 2_000_000]))
            assert out == event, name
            assert extractor.extracted().usage == Usage(50, 4160, 4210), name
    extractor = extractor_for("text/event-stream", None)
    pour(extractor, [b'data: {"x":"' + b"A" * 2_000_000])
    assert extractor.extracted().reason == "too_large"


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
def test_a_compressed_response_passes_unchanged_and_is_read(encoding: str, kind: str) -> None:
    plain = CHUNK * 30 + ASKED if "stream" in kind else b'{"model":"m","usage":' + USAGE + b"}"
    packed = PACKERS[encoding](plain)
    for size in (1, 7, len(packed)):
        extractor = extractor_for(kind, encoding, strip_usage=True)
        pieces = [packed[i : i + size] for i in range(0, len(packed), size)]
        assert pour(extractor, pieces) == packed
        assert extractor.extracted().usage == Usage(19, 10, 29)


def test_an_unsupported_encoding_is_the_reason() -> None:
    for encoding in ("zstd", "gzip, br", "compress"):
        assert extractor_for("application/json", encoding).extracted().reason == "encoding"
    assert extractor_for("application/json", "identity").extracted().reason == "truncated"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_broken_compression_is_unreadable(encoding: str) -> None:
    packed = bytearray(PACKERS[encoding](random.Random(1).randbytes(5000)))
    packed[3:60] = b"\xff" * 57
    extractor = extractor_for("application/json", encoding)
    assert pour(extractor, [bytes(packed)]) == packed
    assert extractor.extracted().reason == "unreadable"


def test_compression_that_breaks_keeps_the_usage_that_was_read() -> None:
    packed = gzip.compress(ASKED)
    extractor = extractor_for("text/event-stream", "gzip")
    pour(extractor, [packed[:-8], b"\xff" * 8])
    assert extractor.extracted().usage == Usage(19, 10, 29)


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_a_bomb_costs_neither_memory_nor_time(encoding: str) -> None:
    bomb = PACKERS[encoding](b'{"model":"' + b"x" * 100_000_000 + b'"}')
    extractor = extractor_for("application/json", encoding)
    tracemalloc.start()
    for i in range(0, len(bomb), 65_536):
        extractor.feed(bomb[i : i + 65_536])
    extractor.flush()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert extractor.extracted().reason == "too_large"
    assert peak < 4_000_000
    # What comes after is not decompressed.
    assert effort.calls(lambda: extractor.feed(bomb)) < 20


@pytest.mark.parametrize("strip", [False, True])
def test_an_event_of_no_interest_costs_a_handful_of_calls(strip: bool) -> None:
    """`make bench` measures it in microseconds."""
    extractor = extractor_for("text/event-stream", None, strip_usage=strip)
    extractor.feed(CHUNK)
    assert effort.calls(lambda: [extractor.feed(CHUNK) for _ in range(100)]) < 100 * 12
