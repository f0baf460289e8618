"""Usage in a stream of JSON lines (`application/x-ndjson`), as Ollama's own API answers.

The last line reports what was used, or an error; every line names the model. So only the last line
is kept: bytes pass through, and a line that comes whole costs next to nothing.
"""

from __future__ import annotations

from wrapper.metering.dialects import DECODING_ERRORS, JsonUsage, read
from wrapper.metering.usage import NO_USAGE, TOO_LARGE, TRUNCATED, UNREADABLE, ExtractedUsage

MAX_LINE = 256 * 1024


class LinesExtractor:
    """For `application/x-ndjson`."""

    __slots__ = ("_ended", "_last", "_rest")

    def __init__(self) -> None:
        self._last = b""  # complete lines, of which the last one counts
        self._rest = bytearray()  # the beginning of a line, bounded
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        if not self._rest and data.endswith(b"\n"):
            self._last = data
            return data
        complete, newline, rest = data.rpartition(b"\n")
        if newline:
            self._last = bytes(self._rest + complete)
            self._rest[:] = rest
        elif len(self._rest) <= MAX_LINE:
            self._rest += data
        return data

    def flush(self) -> bytes:
        self._ended = True
        return b""

    def extracted(self) -> ExtractedUsage:
        # The last line may lack its newline; one that is cut off is no JSON, and another counts.
        found, reason = JsonUsage(), NO_USAGE if self._ended else TRUNCATED
        for text in (bytes(self._rest), self._last):
            line = text.rstrip().rpartition(b"\n")[2]
            if not line:
                continue
            if len(line) > MAX_LINE:
                reason = TOO_LARGE
                continue
            try:
                found = read(line)
            except DECODING_ERRORS:
                reason = UNREADABLE if self._ended else TRUNCATED
                continue
            break
        if found.usage is not None:
            return ExtractedUsage(found.usage, found.model, None, found.error, terminal=True)
        reason = UNREADABLE if found.unreadable else reason
        return ExtractedUsage(None, found.model, reason, found.error)
