"""Between what a request that was given up has used lies, worked out by hand."""

from __future__ import annotations

import pytest

from wrapper.metering import ExtractedUsage, Usage, content_begins
from wrapper.metering.bounds import OUTPUT_FIELDS, Asked, Bounds, bounds
from wrapper.metering.stream import StreamExtractor

CHUNK = b'data: {"model":"m","choices":[{"delta":{"content":"%b"}}]}\n\n'


def cost(usage: Usage) -> int:
    """Input 3, cached 1, output 7; cache writes 4; the tier `priority` is twice as dear."""
    fresh = usage.prompt - usage.cached - usage.cache_write
    tokens = 3 * fresh + usage.cached + 4 * usage.cache_write + 7 * usage.completion
    return tokens * (2 if usage.service_tier == "priority" else 1) + round(usage.seconds) * 100


def fields(**values: bytes) -> tuple[bytes, ...]:
    return tuple(values.get(name, b"") for name in OUTPUT_FIELDS)


def seen(content: int, prompt: Usage | None = None) -> ExtractedUsage:
    return ExtractedUsage(None, "m", "truncated", prompt=prompt, content=content)


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        # Nothing has come: at most a token for each byte, and the output that is usual.
        (Asked(10), None, Bounds(0, 60, 0, 10 * 4 + 50 * 7)),
        (Asked(10, input_only=True), None, Bounds(0, 10, 0, 40)),
        # The request's own limit, for each of its completions.
        (Asked(10, fields(max_tokens=b"5", n=b"3")), None, Bounds(0, 25, 0, 40 + 15 * 7)),
        (Asked(10, fields(max_tokens=b"0", best_of=b'"x"')), None, Bounds(0, 60, 0, 390)),
        (Asked(10, fields(max_tokens=b"5.0", n=b'"3"')), None, Bounds(0, 25, 0, 40 + 15 * 7)),
        (Asked(10, fields(max_tokens=b"[[", n=b"null")), None, Bounds(0, 60, 0, 390)),
        # What was seen, its prompt at the price of cached tokens.
        (Asked(10), seen(4), Bounds(5, 60, 1 + 4 * 7, 390)),
        (Asked(10, fields(max_tokens=b"2")), seen(4), Bounds(5, 14, 29, 40 + 28)),
        # A prompt that the stream has said is what it was.
        (Asked(99), seen(2, Usage(20, 0, 20, cached=5)), Bounds(22, 70, 45 + 5 + 14, 430)),
        # The service tier that is asked for may be the one that served it.
        (
            Asked(10, fields(service_tier=b'"priority"')),
            seen(1),
            Bounds(2, 60, 8, (30 + 350) * 2),
        ),
        # A recording: by its tokens or by its length, whatever is dearer.
        (Asked(400_000, media=True), None, Bounds(0, 2050, 0, 20_000)),
    ],
)
def test_what_it_may_have_used(
    asked: Asked, found: ExtractedUsage | None, expected: Bounds
) -> None:
    assert bounds(asked, found, 50, cost) == expected


def test_without_a_price_the_tokens_alone_have_bounds() -> None:
    assert bounds(Asked(10), seen(4), 50, lambda _: None) == Bounds(5, 60, None, None)


def test_events_with_content_are_counted_from_below() -> None:
    extractor = StreamExtractor()
    role = b'data: {"model":"m","choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    pieces = [role, *(CHUNK % text for text in (b"a", b"b", b"c", b"")), b": ping\n\n"]
    counted = []
    for piece in pieces:
        if extractor.extracted().content == 0:
            extractor.marker = content_begins(piece) or extractor.marker
        extractor.feed(piece)
        counted.append(extractor.extracted().content)
    # The last of them might be the empty end of a choice, as the one after it is.
    assert counted == [0, 1, 1, 2, 3, 3]


def test_a_stream_that_only_ends_has_no_content() -> None:
    extractor = StreamExtractor()
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    extractor.marker = content_begins(end)
    extractor.feed(end)
    assert extractor.extracted().content == 0
