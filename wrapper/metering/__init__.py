"""How much a proxy request used, extracted from the response, and what it cost."""

from __future__ import annotations

from wrapper.formats.media import is_json
from wrapper.metering.json_body import JsonExtractor
from wrapper.metering.lines import LinesExtractor
from wrapper.metering.sights import SightExtractor
from wrapper.metering.stream import StreamExtractor, content_begins, set_include_usage
from wrapper.metering.usage import (
    ENCODING,
    NOT_METERED_TYPE,
    PICO,
    ExtractedUsage,
    NullExtractor,
    Sight,
    Usage,
    UsageExtractor,
    exact_usd,
)

__all__ = [
    "PICO",
    "ExtractedUsage",
    "NullExtractor",
    "Sight",
    "Usage",
    "UsageExtractor",
    "content_begins",
    "exact_usd",
    "extractor_for",
    "set_include_usage",
]

_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


def extractor_for(
    media: str, coding: str, *, strip_usage: bool = False, sights: bool = False
) -> UsageExtractor:
    """The extractor for a response of this media type and content coding, as `formats.media` has
    them.

    `strip_usage`: the client did not ask for the usage chunk of a stream, so it is taken out.
    A compressed stream cannot be stripped and stays as it is: a request to which the gateway
    adds `include_usage` must not allow compression (`Accept-Encoding: identity`). `sights`: the
    response shows objects of deferred work.
    """
    is_stream = media == "text/event-stream"
    is_lines = media in _LINES
    if not (is_stream or is_lines or is_json(media)):
        return NullExtractor(NOT_METERED_TYPE)
    extractor: UsageExtractor
    if is_stream:
        extractor = StreamExtractor(strip_usage=strip_usage and not coding)
    else:
        extractor = (
            LinesExtractor() if is_lines else SightExtractor() if sights else JsonExtractor()
        )
    if not coding:
        return extractor
    # Not at the top: decoding yields to other greenlets, and commands do without gevent.
    from wrapper.metering.decoding import DecodingExtractor, decoder_for

    decoder = decoder_for(coding)
    return NullExtractor(ENCODING) if decoder is None else DecodingExtractor(decoder, extractor)
