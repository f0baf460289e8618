"""Usage extractors for raw header values, as a response has them."""

from __future__ import annotations

from wrapper import metering
from wrapper.formats.media import content_coding, media_type


def extractor_for(
    content_type: str | None, content_encoding: str | None, *, strip_usage: bool = False
) -> metering.UsageExtractor:
    """The extractor for a response with these headers."""
    media, coding = media_type(content_type or ""), content_coding(content_encoding or "")
    return metering.extractor_for(media, coding, strip_usage=strip_usage)
