"""Objects of deferred work in a JSON response: background responses, batches, videos, and lists.

An object says how far it is in its `status`, and what it used once it has ended. A large one is
read at its two ends, as any JSON response is.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec.structs import replace

from wrapper.metering.dialects import DECODING_ERRORS, read
from wrapper.metering.json_body import JsonExtractor, head_members
from wrapper.metering.usage import ExtractedUsage, Sight

# Statuses of what has ended; and of what has not, which a new object has that is worked on later.
ENDED = frozenset({"completed", "incomplete", "failed", "cancelled", "canceled", "expired"})
PENDING = frozenset({"queued", "in_progress", "validating", "finalizing", "cancelling"})
MAX_OBJECTS = 1000  # of a list
_MAX_TIME = 1e11  # Unix time; a whole number in JSON may be larger than any float

_NAMED = frozenset((b'"id"', b'"status"', b'"background"', b'"response"'))


class Shown(msgspec.Struct):
    """What is read of an object beside its usage; whatever is there."""

    id: Any = None
    status: Any = None
    background: Any = None
    output_file_id: Any = None
    completed_at: Any = None
    cancelled_at: Any = None
    expired_at: Any = None
    data: msgspec.Raw = msgspec.Raw(b"")
    response: msgspec.Raw = msgspec.Raw(b"")


_NESTED = re.compile(rb'[{,][ \t\r\n]*"response"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
_decode = msgspec.json.Decoder(Shown).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


def shown_in(text: bytes) -> Shown:
    """The object in the beginning of a response, or in the event that begins a stream."""
    try:
        found = _decode(text)
        if bytes(found.response).startswith(b"{"):
            found = _decode(found.response)
    except DECODING_ERRORS:  # it is not complete: what names it comes first
        return _shown_in_head(text)
    return found


def _shown_in_head(text: bytes) -> Shown:
    members = head_members(text, _NAMED)
    if b'"id"' not in members and (nested := _NESTED.search(text)):
        members = head_members(text[nested.end() :], _NAMED)
    joined = b",".join(key + b":" + value for key, value in members.items())
    try:
        return _decode(b"{" + joined + b"}")
    except DECODING_ERRORS:
        return Shown()


class SightExtractor(JsonExtractor):
    """A JsonExtractor that also tells which objects were shown."""

    __slots__ = ()

    def extracted(self) -> ExtractedUsage:
        found = super().extracted()
        if self._buffer is not None:
            shown = _shown_in_head(bytes(self._buffer.head))
            return replace(found, sights=_sights(shown, found.usage, found.model))
        text = b"".join(self._pieces)
        try:
            return replace(found, sights=sights_in(text))
        except DECODING_ERRORS:
            return found


def sights_in(text: bytes) -> tuple[Sight, ...]:
    """The objects in a whole response. Raises DECODING_ERRORS."""
    shown = _decode(text)
    if not bytes(shown.data).startswith(b"["):
        found = read(text)
        return _sights(shown, found.usage, found.model)
    sights: list[Sight] = []
    for item in _decode_items(shown.data)[:MAX_OBJECTS]:
        found = read(bytes(item))
        sights += _sights(_decode(item), found.usage, found.model)
    return tuple(sights)


def _sights(shown: Shown, usage: Any, model: str | None) -> tuple[Sight, ...]:
    if not isinstance(shown.id, str) or not isinstance(shown.status, str):
        return ()
    output = shown.output_file_id if isinstance(shown.output_file_id, str) else ""
    times = (shown.completed_at, shown.cancelled_at, shown.expired_at)
    known = (float(at) for at in times if isinstance(at, int | float) and 0 < at < _MAX_TIME)
    ended = next(known, 0.0)
    return (Sight(shown.id, shown.status, usage, model or "", output, ended),)
