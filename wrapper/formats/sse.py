"""An incremental reader of server-sent events: bytes in, byte-exact events out.

Follows the WHATWG HTML standard, section 9.2 "Server-sent events": lines end with LF, CRLF or
CR, a byte order mark may open the stream, a line that starts with a colon is a comment, the
`data` lines of one event are joined with LF, and a blank line ends the event. Events may be cut
anywhere, also between the CR and the LF of one line end.

    feed(bytes) ──> Span, Span, …      the spans joined are the bytes that were fed
    payload(Span.raw) ──> bytes        what an EventSource would hand to its user, undecoded

Invariants: no byte is lost, changed or reordered; an event is given as soon as its blank line has
begun; memory is bounded: an event longer than the limit is passed on in pieces that are marked as
such. The content of the events is not interpreted here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_EVENT_BYTES = 1 << 20

BOM = b"\xef\xbb\xbf"

# Two line ends in a row. Each group is atomic: without that CRLF would also match as CR, LF.
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
# The longest unfinished beginning of an _END that a search may have to see again.
_OVERLAP = 3


class Span(NamedTuple):
    """A run of bytes: one whole event with its blank line, or (`whole` false) a piece of one
    that is over the limit; `last` says that the event ends here. Blank lines that end nothing
    are spans of their own.
    """

    raw: bytes
    whole: bool = True
    last: bool = True


class Reader:
    """Cuts a stream into spans. `pending` holds the bytes of the event that is not yet whole."""

    __slots__ = ("_limit", "_oversized", "_searched", "pending")

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._searched = 0
        self._oversized = False
        self.pending = bytearray()

    def feed(self, data: bytes) -> list[Span]:
        """The spans that `data` completes, in order."""
        pending = self.pending
        pending += data
        spans: list[Span] = []
        start = 0
        # Where all lines end with LF, as nearly everywhere, a search for two of them takes a
        # fraction of the time of the expression's.
        plain = b"\r" not in pending
        while start < len(pending):
            searched = max(start, self._searched - _OVERLAP)
            if not self._oversized and pending[start] in b"\r\n":
                end = start + 1 + pending.startswith(b"\r\n", start)
            elif plain:
                end = pending.find(b"\n\n", searched)
                end += 2 if end >= 0 else 0
            else:
                found = _END.search(pending, searched)
                end = found.end() if found else -1
            if end < 0:
                break
            raw = bytes(pending[start:end])
            # The event was complete at the CR: whether its LF came along must not matter.
            size = end - start - raw.endswith(b"\r\n")
            spans.append(Span(raw, not self._oversized and size <= self._limit))
            self._oversized = False
            start = self._searched = end
        if start:
            del pending[:start]
        self._searched = len(pending)
        if self._oversized or len(pending) > self._limit:
            self._pass_over(spans)
        return spans

    def _pass_over(self, spans: list[Span]) -> None:
        self._oversized = True
        piece = bytes(self.pending[:-_OVERLAP])
        if piece:
            spans.append(Span(piece, False, False))
            del self.pending[:-_OVERLAP]
            self._searched = len(self.pending)

    def flush(self) -> bytes:
        """The bytes of an event that never ended. The standard discards it as an event."""
        rest = bytes(self.pending)
        self.pending.clear()
        self._searched = 0
        self._oversized = False
        return rest


def payload(raw: bytes, *, first: bool = False) -> bytes | None:
    """The joined `data` lines of one event, None where it has none (comments, blank lines).

    `first` says that `raw` opens the stream, where a byte order mark is allowed.
    """
    # One "data: …" line is what nearly every event is.
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        line = raw[6:-2]
        if b"\n" not in line and b"\r" not in line:
            return line
    if first and raw.startswith(BOM):
        raw = raw[len(BOM) :]
    found: list[bytes] = []
    for line in _LINE_END.split(raw):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None
