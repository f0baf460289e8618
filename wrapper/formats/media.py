"""What `Content-Type` and `Content-Encoding` say, in the form in which it is compared."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)  # few values are sent, and each with every request
def media_type(content_type: str) -> str:
    """The media type in lower case, without its parameters (RFC 9110 section 8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


def content_coding(content_encoding: str) -> str:
    """The coding in lower case; empty for none and `identity` (RFC 9110 section 8.4)."""
    coding = content_encoding.strip().lower()
    return "" if coding == "identity" else coding


def is_json(media: str) -> bool:
    """Whether a media type is `application/json` or one of its `+json` relatives."""
    return media == "application/json" or media.endswith("+json")
