"""How much of a response is read before its head goes down to the client.

============================  ==================================================================
response                      what is waited for
============================  ==================================================================
JSON of up to 64 KiB          its end: one that breaks off is a 502 and never a cut 200. White
                              space at its beginning keeps the connection alive: it goes down
an event stream               its first event: an error there means that the provider has failed,
                              and not that a stream has begun. A comment is no event, and goes
                              down at once
anything else, HEAD, 204      nothing more than the first bytes
============================  ==================================================================
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from wrapper.formats import sse
from wrapper.formats.media import is_json
from wrapper.metering.dialects import DECODING_ERRORS, read
from wrapper.upstream import UpstreamResponse

MAX_BEGINNING: Final = 65536  # bytes
_ERROR_NAME: Final = re.compile(rb"(?:\A|[\r\n])event: ?error(?:[\r\n]|\Z)")
# Statuses of an error that say nothing against the caller's request.
_NOT_THE_CALLERS: Final = frozenset(("408", "429"))
_CLIENT_ERROR: Final = re.compile("4[0-9][0-9]")


class _Failure(msgspec.Struct):
    error: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_Failure).decode


def is_enough(response: UpstreamResponse, first: bytes) -> bool:
    """Whether `first` is all that is waited for."""
    if response.body.complete or len(first) > MAX_BEGINNING:
        return True
    if _is_stream(response):
        return first.endswith(b"\n\n") or FirstEvent().is_enough(first)
    if not is_json(response.media_type):
        return True
    return (response.length or 0) > MAX_BEGINNING or not first.strip()


def read_beginning(response: UpstreamResponse, first: bytes) -> bytes:
    """`first` and as much of the body as has to be there. Raises UpstreamError."""
    pieces, size, event = [first], len(first), FirstEvent() if _is_stream(response) else None
    enough = is_enough(response, first) or (event is not None and event.is_enough(first))
    while not enough:
        piece = response.read_first()
        pieces.append(piece)
        size += len(piece)
        enough = response.body.complete or size > MAX_BEGINNING
        enough = enough or (event is not None and event.is_enough(piece))
    return b"".join(pieces)


class FirstEvent:
    """Looks for the first event of a stream that has data."""

    def __init__(self) -> None:
        self._reader = sse.Reader()
        self._is_first = True
        self.event = b""
        self.data = b""

    def is_enough(self, data: bytes) -> bool:
        """Whether the event is there with the next bytes; also where these end with a comment."""
        for span in self._reader.feed(data):
            found = sse.payload(span.raw, first=self._is_first)
            if found is not None:
                self.event, self.data = span.raw, found
                return True
            self._is_first = False
        return not self._reader.pending

    def flush(self) -> bytes:
        """The event, without its blank line where the stream has ended."""
        return self.event or self._reader.flush()


def _is_stream(response: UpstreamResponse) -> bool:
    """Whether it is an event stream that can be read."""
    return response.is_event_stream and not response.coding


def is_failure(response: UpstreamResponse, first: bytes) -> bool:
    """Whether a 2xx stream begins with an error that another provider might not have.

    An error that blames the request is the caller's, as a 400 is.
    """
    if response.status >= 300 or b"error" not in first or not _is_stream(response):
        return False
    found_first = FirstEvent()
    found_first.is_enough(first[:MAX_BEGINNING])
    event = found_first.flush()
    data = sse.payload(event, first=True) or b""
    try:
        found = read(data).error
    except DECODING_ERRORS:
        return _ERROR_NAME.search(event) is not None
    return (found or _ERROR_NAME.search(event) is not None) and not _blames_the_request(data)


def _blames_the_request(data: bytes) -> bool:
    failure = _decode(data)  # an object: it has been read as one
    error = failure.error
    if isinstance(failure.response, dict):
        error = failure.response.get("error") or error
    if not isinstance(error, dict):
        return False
    if error.get("type") == "invalid_request_error":
        return True
    codes = {str(error.get(name)) for name in ("code", "status", "status_code")}
    return any(_CLIENT_ERROR.fullmatch(code) for code in codes - _NOT_THE_CALLERS)
