"""Usage in a JSON response: a small one is decoded whole, of a large one the head and the tail.

Ten megabytes of embeddings or images are not kept. In every dialect the usage is near one of the
two ends, and both ends can be read without what lies between:

* from the head, member by member, as far as the kept bytes go;
* from the tail, backwards to the last `"usage": {…}` whose rest closes the document exactly. A
  quote inside a string is always escaped, so a `"usage"` that follows a comma or a brace (and no
  backslash) is a key; and where `{` + the rest is a complete JSON object, exactly one brace was
  open before it, so the key was at the top level.

Invariant: what merely looks like a usage (in a string, in a nested object) is not taken for one,
and memory stays constant.
"""

from __future__ import annotations

import re

import msgspec

from wrapper.formats.jsonbytes import skip_value
from wrapper.metering.dialects import DECODING_ERRORS, JsonUsage, read
from wrapper.metering.usage import NO_USAGE, TOO_LARGE, TRUNCATED, UNREADABLE, ExtractedUsage

# A JSON body up to this size is decoded as a whole.
WHOLE_BYTES = 256 * 1024
HEAD_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
# How many places that look like a usage are tried: each try reads the tail once more.
MAX_TRIES = 32

_KEY = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_OPEN = re.compile(rb"[ \t\r\n]*+\{")
_COMMA = re.compile(rb"[ \t\r\n]*+,")
_USAGE = re.compile(rb'[,{][ \t\r\n]*+("usage"[ \t\r\n]*+:[ \t\r\n]*+)(?=\{)')

_WANTED = (b'"model"', b'"usage"', b'"type"', b'"error"')

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class JsonExtractor:
    """For `application/json`."""

    __slots__ = ("_buffer", "_ended", "_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._buffer: HeadTailBuffer | None = None
        self._ended = False

    def feed(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._buffer is not None:
            self._buffer.feed(data)
            return data
        self._pieces.append(data)
        if self._size > WHOLE_BYTES:
            self._buffer = HeadTailBuffer(self._pieces)
            self._pieces.clear()
        elif len(self._pieces) > 64:
            self._pieces = [b"".join(self._pieces)]
        return data

    def flush(self) -> bytes:
        self._ended = True
        return b""

    def extracted(self) -> ExtractedUsage:
        if not self._size:
            return ExtractedUsage(None, None, NO_USAGE if self._ended else TRUNCATED)
        if self._buffer is not None:
            return _extracted(self._buffer.read(), TOO_LARGE if self._ended else TRUNCATED)
        try:
            return _extracted(read(b"".join(self._pieces)), NO_USAGE)
        except DECODING_ERRORS:
            # Some servers write NaN, which is not JSON. The head and the tail may be valid.
            ends = HeadTailBuffer(self._pieces).read()
            return _extracted(ends, UNREADABLE if self._ended else TRUNCATED)


def _extracted(found: JsonUsage, reason: str) -> ExtractedUsage:
    if found.usage is not None:
        return ExtractedUsage(found.usage, found.model, None, found.error)
    reason = UNREADABLE if found.unreadable else reason
    return ExtractedUsage(None, found.model, reason, found.error)


class HeadTailBuffer:
    """Keeps the first and the last bytes of what it is fed."""

    __slots__ = ("head", "tail")

    def __init__(self, pieces: list[bytes] | None = None) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        for piece in pieces or ():
            self.feed(piece)

    def feed(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self.head)
        if room > 0:
            self.head += data[:room]
        self.tail += data[-TAIL_BYTES:]
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]

    def read(self) -> JsonUsage:
        """What the head and the tail report."""
        members = head_members(bytes(self.head))
        found = _read_members(members)
        # Events of the Responses API have the usage one level deeper, in `response`.
        nested = members.get(b'"type"', b"").startswith(b'"response.')
        last = _from_tail(bytes(self.tail), nested=nested)
        if last is not None:
            found.usage, found.unreadable = last.usage, last.unreadable
        return found


def head_members(text: bytes) -> dict[bytes, bytes]:
    """The wanted top-level members that are complete in `text`, the beginning of an object."""
    found: dict[bytes, bytes] = {}
    at = _OPEN.match(text)
    while at is not None:
        key = _KEY.match(text, at.end())
        if key is None:
            break
        try:
            end = skip_value(text, key.end())
        except ValueError:
            break
        if key[1] in _WANTED:
            found[key[1]] = text[key.end() : end]
        at = _COMMA.match(text, end)
    return found


def _read_members(members: dict[bytes, bytes]) -> JsonUsage:
    joined = b"{" + b",".join(key + b":" + value for key, value in members.items()) + b"}"
    try:
        return read(joined)
    except DECODING_ERRORS:
        return JsonUsage()


def _from_tail(text: bytes, *, nested: bool) -> JsonUsage | None:
    text = text.rstrip()
    prefixes = (b"{", b'{"_":{') if nested else (b"{",)
    for found in list(_USAGE.finditer(text))[: -MAX_TRIES - 1 : -1]:
        try:
            end = skip_value(text, found.end())
        except ValueError:
            continue
        rest = text[end:].lstrip()
        rest = rest[1:] if rest.startswith(b",") else rest
        if any(_is_object(prefix + rest) for prefix in prefixes):
            return _read_members({b'"usage"': text[found.end() : end]})
    return None


def _is_object(text: bytes) -> bool:
    try:
        _decode_object(text)
    except DECODING_ERRORS:
        return False
    return True
