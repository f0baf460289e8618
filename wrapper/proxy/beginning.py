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
from typing import Any, Final, cast

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


class Beginning:
    """What has come of a response: `data`, and whether `is_enough` of it is there."""

    def __init__(self, response: UpstreamResponse, first: bytes) -> None:
        self._response = response
        self.data = first
        self._event: FirstEvent | None = None  # made where it has to be looked for
        if response.body.complete or len(first) > MAX_BEGINNING:
            self.is_enough = True
        elif _is_stream(response):
            self.is_enough = first.endswith(b"\n\n") or self._look(first)
        elif is_json(response.media_type):
            self.is_enough = (response.length or 0) > MAX_BEGINNING or not first.strip()
        else:
            self.is_enough = True

    def read(self) -> bytes:
        """As much of the body as has to be there. Raises UpstreamError."""
        pieces, size = [self.data], len(self.data)
        while not self.is_enough:
            piece = self._response.read_first()
            pieces.append(piece)
            size += len(piece)
            found = self._event is not None and self._look(piece)
            self.is_enough = found or self._response.body.complete or size > MAX_BEGINNING
        self.data = b"".join(pieces)
        return self.data

    def _look(self, data: bytes) -> bool:
        """Whether the first event is there with `data`, which comes next."""
        if self._event is None:
            self._event = FirstEvent()
        return self._event.is_enough(data)

    def is_failure(self) -> bool:
        """Whether a 2xx stream begins with an error that another provider might not have.

        An error that blames the request is the caller's, as a 400 is.
        """
        response = self._response
        if response.status >= 300 or b"error" not in self.data or not _is_stream(response):
            return False
        if self._event is None:
            self._look(self.data[:MAX_BEGINNING])
        event = cast(FirstEvent, self._event).flush()
        data = sse.payload(event, first=True) or b""
        try:
            found = read(data).error
        except DECODING_ERRORS:
            return _ERROR_NAME.search(event) is not None
        return (found or _ERROR_NAME.search(event) is not None) and not _blames_the_request(data)


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
