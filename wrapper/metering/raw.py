"""JSON values that are decoded only where they are needed."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

# What decoding raises: msgspec's errors and UnicodeDecodeError are ValueErrors, depth is not.
DECODING_ERRORS: Final = (ValueError, RecursionError)

NOTHING: Final = msgspec.Raw(b"")
EMPTY: Final = (b"", b"null")
EMPTY_LIST: Final = re.compile(rb"\[[ \t\r\n]*\]")

_decode_text = msgspec.json.Decoder(str).decode
_decode_count = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, le=10**12)]).decode

seconds_of = msgspec.json.Decoder(
    Annotated[float, msgspec.Meta(ge=0, le=1e12)], strict=False
).decode
"""The number of seconds in a raw value. Raises DECODING_ERRORS."""


def text_of(raw: msgspec.Raw) -> str:
    """The string in `raw`, empty where it is none."""
    if bytes(raw).startswith(b'"'):
        try:
            return _decode_text(raw)
        except ValueError:
            return ""
    return ""


def opens(raw: msgspec.Raw, bracket: bytes) -> bool:
    """Whether the value begins with this bracket."""
    return bytes(raw).startswith(bracket)


def count_of(raw: msgspec.Raw) -> int:
    """The count in `raw`, 0 where there is none. Raises DECODING_ERRORS for what is no count."""
    return 0 if bytes(raw) in EMPTY else _decode_count(raw)
