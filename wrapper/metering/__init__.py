"""How much was used: readers beside the bytes of an answer, and what it cost."""

from __future__ import annotations

from wrapper.metering.decoding import DecodingTap, decoder_for
from wrapper.metering.extractor import JsonTap, NullTap, Tap
from wrapper.metering.include_usage import set_include_usage
from wrapper.metering.stream import StreamTap
from wrapper.metering.usage import ENCODING, NOT_METERED_TYPE, Reading, Usage

__all__ = ["NullTap", "Reading", "Tap", "Usage", "set_include_usage", "tap_for"]


def tap_for(
    content_type: str | None, content_encoding: str | None, *, strip_usage: bool = False
) -> Tap:
    """The reader for an answer with these headers.

    `strip_usage`: the client did not ask for the usage chunk of a stream, so it is taken out.
    That cannot be done to a compressed stream, which stays as it is: who puts `include_usage`
    in must not let the provider compress (`Accept-Encoding: identity`).
    """
    media = (content_type or "").partition(";")[0].strip().lower()
    is_stream = media == "text/event-stream"
    if not is_stream and media != "application/json" and not media.endswith("+json"):
        return NullTap(NOT_METERED_TYPE)
    encoding = (content_encoding or "").strip().lower()
    if encoding in ("", "identity"):
        return StreamTap(strip_usage=strip_usage) if is_stream else JsonTap()
    decoder = decoder_for(encoding)
    if decoder is None:
        return NullTap(ENCODING)
    return DecodingTap(decoder, StreamTap() if is_stream else JsonTap())
