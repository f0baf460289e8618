"""Usage in a JSON response: a small one is decoded whole, of a large one the head and the tail.

Ten megabytes of embeddings or images are not kept. In every dialect the usage is near one of the
two ends, and both ends can be read without what lies between:

* from the head, member by member, as far as the kept bytes go;
* from the tail, backwards to the last `"usage": {…}` (or another wanted member) whose rest closes
  the document exactly. A quote inside a string is always escaped, so a `"usage"` that follows a
  comma or a brace (and no backslash) is a key; and where `{` + the rest is a complete JSON object,
  exactly one brace was open before it, so the key was at the top level.

What lies between may have calls of hosted tools, which are billed: those that nothing at the two
ends counts make a unit without a price ("uncounted …"), so that the response is not priced without
them.

Invariant: what merely looks like a usage (in a string, in a nested object) is not taken for one,
and memory stays constant.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from wrapper.formats.jsonbytes import skip_value
from wrapper.metering.dialects import DECODING_ERRORS, MEMBERS, JsonUsage, read, with_executed
from wrapper.metering.usage import (
    NO_USAGE,
    TOO_LARGE,
    TRUNCATED,
    UNREADABLE,
    ExtractedUsage,
    Usage,
)

# A JSON body up to this size is decoded as a whole.
WHOLE_BYTES = 256 * 1024
HEAD_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
# How many places that look like a usage are tried: each try reads the tail once more.
MAX_TRIES = 32

_KEY = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_OPEN = re.compile(rb"[ \t\r\n]*+\{")
_COMMA = re.compile(rb"[ \t\r\n]*+,")
_LAST = re.compile(
    rb'[,{][ \t\r\n]*+("(?:usage|tool_usage|tools|service_tier|usage_breakdown'
    rb'|(?:prompt_)?eval_count)")[ \t\r\n]*+:[ \t\r\n]*+(?=[{\["0-9])'
)
_HOSTED = re.compile(rb'"((?:web_search|file_search|code_interpreter|image_generation)_call)"')

_PLAIN = frozenset((b'"model"', b'"usage"', b'"type"', b'"error"', b'"service_tier"'))
_WANTED = frozenset(f'"{name}"'.encode() for name in MEMBERS)

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
        usage = with_executed(found.usage, found.executed) if found.executed else found.usage
        return ExtractedUsage(usage, found.model, None, found.error)
    reason = UNREADABLE if found.unreadable else reason
    return ExtractedUsage(None, found.model, reason, found.error)


class HeadTailBuffer:
    """Keeps the first and the last bytes of what it is fed."""

    __slots__ = ("_hosted", "head", "tail")

    def __init__(self, pieces: list[bytes] | None = None) -> None:
        self.head = bytearray()
        self.tail = bytearray()
        self._hosted: set[bytes] = set()
        for piece in pieces or ():
            self.feed(piece)

    def feed(self, data: bytes) -> None:
        if b'_call"' in data:
            self._hosted.update(_HOSTED.findall(self.tail[-32:] + data))
        room = HEAD_BYTES - len(self.head)
        if room > 0:
            self.head += data[:room]
        self.tail += data[-TAIL_BYTES:]
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]

    def read(self) -> JsonUsage:
        """What the head and the tail report."""
        members = head_members(bytes(self.head))
        # Events of the Responses API have the usage one level deeper, in `response`.
        nested = members.get(b'"type"', b"").startswith(b'"response.')
        found = _read_members({**members, **_last_members(bytes(self.tail), nested=nested)})
        if found.usage is not None and self._hosted:
            found.usage = self._with_uncounted(found.usage)
        return found

    def _with_uncounted(self, usage: Usage) -> Usage:
        counted = {unit for unit, _ in usage.units}
        uncounted = [
            (f"uncounted {kind}", 1)
            for kind in sorted(each.decode().removesuffix("_call") for each in self._hosted)
            if kind not in counted and not (kind == "image_generation" and usage.parts)
        ]
        return replace(usage, units=(*usage.units, *uncounted))


def head_members(text: bytes, wanted: frozenset[bytes] = _WANTED) -> dict[bytes, bytes]:
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
        if key[1] in wanted:
            found[key[1]] = text[key.end() : end]
        at = _COMMA.match(text, end)
    return found


def _read_members(members: dict[bytes, bytes]) -> JsonUsage:
    # Where a member is no JSON (`choices` with NaN), the short ones are read without it.
    for keys in (members.keys(), members.keys() & _PLAIN):
        joined = b",".join(key + b":" + members[key] for key in keys)
        try:
            return read(b"{" + joined + b"}")
        except DECODING_ERRORS:
            continue
    return JsonUsage()


def _last_members(text: bytes, *, nested: bool) -> dict[bytes, bytes]:
    """The wanted top-level members in `text`, the end of an object."""
    text = text.rstrip()
    prefixes = (b"{", b'{"_":{') if nested else (b"{",)
    members: dict[bytes, bytes] = {}
    for found in list(_LAST.finditer(text))[: -MAX_TRIES - 1 : -1]:
        if found[1] in members:
            continue
        try:
            end = skip_value(text, found.end())
        except ValueError:
            continue
        rest = text[end:].lstrip()
        rest = rest[1:] if rest.startswith(b",") else rest
        if any(_is_object(prefix + rest) for prefix in prefixes):
            members[found[1]] = text[found.end() : end]
    return members


def _is_object(text: bytes) -> bool:
    try:
        _decode_object(text)
    except DECODING_ERRORS:
        return False
    return True
