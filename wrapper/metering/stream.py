"""The tap for event streams.

Nearly every piece of a stream is one event with a few letters of text. So a piece is searched
for the words that matter (`"usage"` with a value, `"error"`, and `"model"` until it is known)
and is decoded only when one is there: an event without them costs about a microsecond. The last
usage seen counts; they are never added up, for Groq reports the same numbers three times.

Where the gateway asked for usage in the client's place (`strip_usage`), the chunk that was
made for it (a usage and empty `choices`) is taken out with its blank line. The rule protected
here: all other bytes stay as they were, however the stream is cut into pieces.
"""

from __future__ import annotations

import re

from wrapper.formats.sse import Reader, Span, payload
from wrapper.metering.dialects import DECODING_ERRORS, Seen, read
from wrapper.metering.head_tail import Windows
from wrapper.metering.usage import NO_USAGE, TOO_LARGE, TRUNCATED, UNREADABLE, Reading, Usage

_ENDS = (b"\n\n", b"\r\n\r\n")
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?")


class StreamTap:
    """Reads the events of one stream; see the module's text for `strip_usage`."""

    __slots__ = (
        "_ended",
        "_error",
        "_first",
        "_gone_at_cr",
        "_model",
        "_oversized",
        "_reader",
        "_reason",
        "_strip",
        "_usage",
    )

    def __init__(self, *, strip_usage: bool = False) -> None:
        self._reader = Reader()
        self._strip = strip_usage
        self._usage: Usage | None = None
        self._model: str | None = None
        self._reason: str | None = None
        self._error = False
        self._ended = False
        self._first = True
        self._oversized: Windows | None = None
        # The event that was taken out ended with CR: an LF that follows belongs to it.
        self._gone_at_cr = False

    def feed(self, data: bytes) -> bytes:
        # Whole events with nothing of interest: the reader need not see them.
        if (
            data.endswith(_ENDS)
            and not self._reader.pending
            and not self._gone_at_cr
            and not self._interesting(data)
        ):
            self._first = False
            return data
        spans = self._reader.feed(data)
        if not self._strip:
            for span in spans:
                self._look_at(span)
            return data
        return b"".join([span.raw for span in spans if self._stays(span)])

    def flush(self) -> bytes:
        self._ended = True
        # The standard drops an event without its blank line; its tokens were used all the same.
        rest = Span(self._reader.flush(), whole=self._oversized is None)
        stays = self._stays(rest)
        return rest.raw if self._strip and stays else b""

    def reading(self) -> Reading:
        if self._usage is not None:
            return Reading(self._usage, self._model, None, self._error)
        reason = self._reason or (NO_USAGE if self._ended else TRUNCATED)
        return Reading(None, self._model, reason, self._error)

    def _interesting(self, data: bytes) -> bool:
        if b'"usage"' in data and data.count(b'"usage"') > data.count(b'"usage":null'):
            return True
        return b'"error"' in data or (self._model is None and b'"model"' in data)

    def _stays(self, span: Span) -> bool:
        if self._gone_at_cr:
            self._gone_at_cr = False
            if span.raw == b"\n":
                return False
        seen = self._look_at(span)
        if seen is None or not seen.only_usage:
            return True
        self._gone_at_cr = span.raw.endswith(b"\r")
        return False

    def _look_at(self, span: Span) -> Seen | None:
        first, self._first = self._first, False
        if not span.whole:
            self._look_at_piece(span)
            return None
        if not self._interesting(span.raw):
            return None
        data = payload(span.raw, first=first)
        if data is None:
            return None
        try:
            seen = read(data)
        except DECODING_ERRORS:
            if b'"usage"' in data:
                self._reason = UNREADABLE
            return None
        self._note(seen)
        return seen

    def _look_at_piece(self, span: Span) -> None:
        # An image in base64 makes such an event, and its usage stands beside it.
        if self._oversized is None:
            self._oversized = Windows()
        self._oversized.feed(span.raw)
        if not span.last:
            return
        start = _DATA.search(self._oversized.head)
        if start is not None:
            del self._oversized.head[: start.end()]
        seen = self._oversized.read()
        self._oversized = None
        if seen.usage is None and not seen.unreadable:
            self._reason = self._reason or TOO_LARGE
        self._note(seen)

    def _note(self, seen: Seen) -> None:
        self._model = self._model or seen.model
        self._error = self._error or seen.error
        if seen.usage is not None:
            self._usage = seen.usage
        elif seen.unreadable:
            self._reason = UNREADABLE
