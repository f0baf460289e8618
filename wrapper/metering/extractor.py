"""Readers that stand beside the bytes of an answer.

    tap = tap_for(content_type, content_encoding)
    for piece in answer:
        send(tap.feed(piece))      # the same bytes, unless a usage chunk is taken out
    send(tap.flush())              # at a clean end
    tap.reading()                  # at any time, also after the answer broke off

The rules protected here: what a tap is fed comes out unchanged (but for the one chunk that a
client did not ask for), whatever the bytes are a tap does not raise, and its memory is bounded.
"""

from __future__ import annotations

from typing import Protocol

from wrapper.metering.dialects import DECODING_ERRORS, Seen, read
from wrapper.metering.head_tail import Windows
from wrapper.metering.usage import (
    NO_USAGE,
    NOT_METERED_TYPE,
    TOO_LARGE,
    TRUNCATED,
    UNREADABLE,
    Reading,
)

# A JSON answer up to this size is decoded as a whole.
WHOLE_BYTES = 256 * 1024


class Tap(Protocol):
    """Stands beside the bytes of one answer."""

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes of the answer and gives what goes to the client now."""

    def flush(self) -> bytes:
        """Says that the answer ended cleanly; gives what was held back."""

    def reading(self) -> Reading:
        """What is known by now, also in the middle and after a broken answer."""


class NullTap:
    """For what reports no usage or cannot be read: says why."""

    __slots__ = ("_reason",)

    def __init__(self, reason: str = NOT_METERED_TYPE) -> None:
        self._reason = reason

    def feed(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""

    def reading(self) -> Reading:
        return Reading(None, None, self._reason)


class JsonTap:
    """For `application/json`: small answers are decoded whole, of large ones the two ends."""

    __slots__ = ("_ended", "_pieces", "_size", "_windows")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._windows: Windows | None = None
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._windows is not None:
            self._windows.feed(data)
            return data
        self._pieces.append(data)
        if self._size > WHOLE_BYTES:
            self._windows = _windows(self._pieces)
            self._pieces.clear()
        elif len(self._pieces) > 64:
            self._pieces = [b"".join(self._pieces)]
        return data

    def flush(self) -> bytes:
        self._ended = True
        return b""

    def reading(self) -> Reading:
        if not self._size:
            return Reading(None, None, NO_USAGE if self._ended else TRUNCATED)
        if self._windows is not None:
            return _reading(self._windows.read(), TOO_LARGE if self._ended else TRUNCATED)
        body = b"".join(self._pieces)
        try:
            return _reading(read(body), NO_USAGE)
        except DECODING_ERRORS:
            # Some servers write NaN, which is not JSON. Where the ends are whole they do.
            return _reading(_windows(self._pieces).read(), UNREADABLE if self._ended else TRUNCATED)


def _windows(pieces: list[bytes]) -> Windows:
    windows = Windows()
    for piece in pieces:
        windows.feed(piece)
    return windows


def _reading(seen: Seen, otherwise: str) -> Reading:
    if seen.usage is not None:
        return Reading(seen.usage, seen.model, None, seen.error)
    return Reading(None, seen.model, UNREADABLE if seen.unreadable else otherwise, seen.error)
