"""Byte-exact edits of the top level of a JSON object.

A request body is relayed as it came. Where one member has to change (an alias's `model`, the
`stream_options` of a metered stream), exactly the bytes of that value are replaced; white space,
key order, number spelling, escapes and unknown members stay as the caller wrote them.

    {"model": "fast", "messages": […]}
     ^      ^ ^    ^
     key_start      value_end         members() gives these positions

The rule protected here: the bytes outside of the edited value are the caller's. The body must
already have been found to be valid JSON (RFC 8259) in UTF-8; what is not an object is a
ValueError, nothing else is checked.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import msgspec

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_KEY = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]++")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
_AFTER = re.compile(rb"[ \t\r\n]*+([,}])")


class Member(NamedTuple):
    """One member: the decoded key and the positions of key and value (end exclusive)."""

    key: str
    key_start: int
    value_start: int
    value_end: int


def members(body: bytes) -> list[Member]:
    """All members of the object, in the order of the text, duplicates included.

    Raises ValueError where `body` is not a JSON object.
    """
    try:
        values = _decode_raw(body)
    except (ValueError, RecursionError):
        return _scan(body)
    known = _walk(body, values)
    return _scan(body) if known is None else known


def _walk(body: bytes, values: dict[str, msgspec.Raw]) -> list[Member] | None:
    """The members, when the lengths of the decoded values lead exactly through the text.

    A complete JSON value that is followed by a comma or a brace can be read in one way only, so
    a comparison proves each step. Duplicate keys with different values end it: None.
    """
    found: list[Member] = []
    at = _open(body)
    if body[at : at + 1] == b"}":
        return found
    while True:
        key = _KEY.match(body, at)
        if key is None:
            return None
        name = _text(key[1])
        value = values.get(name)
        if value is None:
            return None
        start = key.end()
        raw = bytes(value)
        after = _AFTER.match(body, start + len(raw))
        if after is None or not body.startswith(raw, start):
            return None
        found.append(Member(name, key.start(1), start, start + len(raw)))
        if after[1] == b"}":
            return found
        at = after.end()


def _scan(body: bytes) -> list[Member]:
    """The members by a scan of the whole text: slower, and needs nothing but its structure."""
    found: list[Member] = []
    at = _open(body)
    if body[at : at + 1] == b"}":
        return found
    while True:
        key = _KEY.match(body, at)
        if key is None:
            raise ValueError("not a JSON object")
        end = skip_value(body, key.end())
        after = _AFTER.match(body, end)
        if after is None:
            raise ValueError("not a JSON object")
        found.append(Member(_text(key[1]), key.start(1), key.end(), end))
        if after[1] == b"}":
            return found
        at = after.end()


def skip_value(body: bytes, start: int) -> int:
    """Where the JSON value that begins at `start` ends. ValueError where it does not end."""
    first = body[start : start + 1]
    if first == b'"':
        found = _STRING.match(body, start)
    elif first and first in b"[{":
        return _skip_nested(body, start)
    else:
        found = _SCALAR.match(body, start)
    if found is None:
        raise ValueError("not a JSON value")
    return found.end()


def _skip_nested(body: bytes, start: int) -> int:
    depth = 0
    for token in _TOKEN.finditer(body, start):
        char = token[0]
        if char in (b"{", b"["):
            depth += 1
        elif char in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end()
    raise ValueError("not a JSON value")


def _open(body: bytes) -> int:
    """The position of the first key, or of the closing brace."""
    brace = _SPACE.match(body)
    at = brace.end() if brace else 0
    if body[at : at + 1] != b"{":
        raise ValueError("not a JSON object")
    space = _SPACE.match(body, at + 1)
    return space.end() if space else at + 1


def _text(quoted: bytes) -> str:
    if b"\\" not in quoted:
        return quoted[1:-1].decode("utf-8", "replace")
    try:
        text: str = json.loads(quoted)
    except ValueError:
        return quoted[1:-1].decode("utf-8", "replace")
    return text


def replace_value(body: bytes, key: str, new: bytes) -> bytes:
    """`body` with the value of every top-level `key` replaced by the JSON text `new`.

    Unchanged where there is no such key. Every occurrence is replaced, so that no reader can
    find the old value.
    """
    for member in reversed(members(body)):
        if member.key == key:
            body = body[: member.value_start] + new + body[member.value_end :]
    return body


def insert_member(body: bytes, key: str, new: bytes) -> bytes:
    """`body` with a member put in right behind the opening brace, the rest as it was."""
    first = _open(body)
    brace = body.index(b"{") + 1
    comma = b"" if body[first : first + 1] == b"}" else b","
    return b"".join((body[:brace], msgspec.json.encode(key), b":", new, comma, body[brace:]))


def has_duplicate(body: bytes, keys: frozenset[str]) -> bool:
    """Whether one of `keys` stands more than once at the top level, escaped spellings included.

    Two readers take two values from such an object: the gateway one, the provider another.
    """
    if b"\\u" not in body and all(body.count(_quoted(key)) < 2 for key in keys):
        return False
    seen: set[str] = set()
    for member in members(body):
        if member.key in keys:
            if member.key in seen:
                return True
            seen.add(member.key)
    return False


def _quoted(key: str) -> bytes:
    return b'"' + key.encode() + b'"'
