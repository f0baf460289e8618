"""Finds the usage in a JSON answer that is too large to keep.

Of ten megabytes of embeddings or images only the beginning and the end are kept. Usage stands
in one of the two in every dialect, and both can be read without what lies between:

* from the beginning, member by member, as far as the kept bytes go;
* from the end, backwards to the last `"usage": {…}` whose rest closes the document exactly. A
  quote inside of a string is always escaped, so a `"usage"` that follows a comma or a brace and
  that is not preceded by a backslash is a key; and where `{` + the rest is a whole JSON object,
  one brace was open before it: it stood at the top.

The rule protected here: what merely looks like a usage (in a string, in a nested object) is not
taken for one, and memory stays constant.
"""

from __future__ import annotations

import re

import msgspec

from wrapper.formats.jsonbytes import skip_value
from wrapper.metering.dialects import DECODING_ERRORS, Seen, read

HEAD_BYTES = 32 * 1024
TAIL_BYTES = 64 * 1024
# How many places that look like a usage are tried: each try reads the end once more.
MAX_TRIES = 32

_KEY = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_OPEN = re.compile(rb"[ \t\r\n]*+\{")
_COMMA = re.compile(rb"[ \t\r\n]*+,")
_USAGE = re.compile(rb'[,{][ \t\r\n]*+("usage"[ \t\r\n]*+:[ \t\r\n]*+)(?=\{)')

_WANTED = (b'"model"', b'"usage"', b'"type"', b'"error"')

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Windows:
    """Keeps the first and the last bytes of what it is fed."""

    __slots__ = ("head", "tail")

    def __init__(self) -> None:
        self.head = bytearray()
        self.tail = bytearray()

    def feed(self, data: bytes) -> None:
        room = HEAD_BYTES - len(self.head)
        if room > 0:
            self.head += data[:room]
        self.tail += data[-TAIL_BYTES:]
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]

    def read(self) -> Seen:
        """What the two ends say."""
        members = head_members(bytes(self.head))
        seen = _read_members(members)
        # Events of the responses API have it one object deeper, in `response`.
        nested = members.get(b'"type"', b"").startswith(b'"response.')
        last = _from_end(bytes(self.tail), nested=nested)
        if last is not None:
            seen.usage, seen.unreadable = last.usage, last.unreadable
        return seen


def head_members(text: bytes) -> dict[bytes, bytes]:
    """The wanted top-level members that are whole in `text`, the beginning of an object."""
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


def _read_members(members: dict[bytes, bytes]) -> Seen:
    joined = b"{" + b",".join(key + b":" + value for key, value in members.items()) + b"}"
    try:
        return read(joined)
    except DECODING_ERRORS:
        return Seen()


def _from_end(text: bytes, *, nested: bool) -> Seen | None:
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
