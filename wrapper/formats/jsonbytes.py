"""Byte-exact edits of the top level of a JSON object.

A request body is relayed as it came. Where one member has to change (an alias's `model`, the
`stream_options` of a metered stream), exactly the bytes of that value are replaced; white space,
key order, number spelling, escapes and unknown members stay as the client wrote them.

    {"model": "fast", "messages": […]}
              ^    ^
    value_start    value_end          members() gives these positions

Invariant: the bytes outside of the edited value are the client's. The body must already have been
found to be valid JSON (RFC 8259) in UTF-8; what is not an object is a ValueError, nothing else is
checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from wrapper.formats.lookup import Lookup

# Requests have a few dozen. A body with millions would hold up the worker's other requests.
MAX_MEMBERS = 1000
WINDOW = 1 << 18  # bytes that are looked through in one go

_skip = msgspec.json.Decoder(msgspec.Raw).decode
_LONG_S = "\u017f".encode()  # another s to readers that ignore case
_ESCAPED = re.compile(rb"\\u").search
_TRAILING = re.compile(r"JSON is malformed: trailing characters \(byte ([0-9]+)\)")

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_KEY = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]++")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)
_AFTER = re.compile(rb"[ \t\r\n]*+([,}])")


class Member(NamedTuple):
    """One member: the decoded key and the positions of its value (end exclusive)."""

    key: str
    value_start: int
    value_end: int


def members(body: bytes) -> list[Member]:
    """All members of the object, in the order of the text, duplicates included.

    Raises ValueError where `body` is not a JSON object, or has more than MAX_MEMBERS.
    """
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
        found.append(Member(_text(key[1]), key.end(), end))
        if after[1] == b"}":
            return found
        if len(found) == MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} members")
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
    """The decoder says where something follows the value; in C, a thousand times as fast."""
    try:
        _skip(memoryview(body)[start:])
    except msgspec.DecodeError as error:
        follows = _TRAILING.fullmatch(str(error))
        if follows is not None:
            end = start + int(follows[1]) - 1
            while body[end - 1] in b" \t\r\n":
                end -= 1
            return end
    except RecursionError:
        pass
    return _skip_brackets(body, start)


def _skip_brackets(body: bytes, start: int) -> int:
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


def has_duplicate(
    body: bytes, keys: frozenset[str], pause: Callable[[], None] = lambda: None
) -> bool:
    """Whether one of `keys` stands more than once at the top level, or in another case.

    Two readers take two values from such an object: the gateway one, the provider another. There
    are readers that ignore case, and the last one counts (Go's encoding/json). Escaped spellings
    are seen too. `pause` is called now and then while a large body is looked through. Raises
    ValueError as `members` does.
    """
    if len(body) > WINDOW:
        return not _is_clear(body, keys, pause) and _has_duplicate_member(body, keys)
    if _ESCAPED(body) is None and (body.isascii() or _LONG_S not in body):
        find, known = _FINDERS[keys]
        found = find(body)
        if not known.issuperset(found):
            found = [name for name in found if name.lower() in known]
            if not known.issuperset(found):
                return _has_duplicate_member(body, keys)
        if len(set(found)) == len(found):
            return False
    return _has_duplicate_member(body, keys)


def _finder(keys: frozenset[str]) -> tuple[Callable[[bytes], list[bytes]], frozenset[bytes]]:
    """A function that finds what may be one of the keys, in any case, and more; the keys.

    One expression takes a quarter of the time of a search for each key.
    """
    roots = [key for key in keys if not any(key != each and key.startswith(each) for each in keys)]
    begin = b"|".join(re.escape(root).encode() for root in sorted(roots))
    find = re.compile(rb'"((?:%b)[0-9a-z_]*+)"' % begin, re.IGNORECASE).findall
    return find, frozenset(key.encode() for key in keys)


_FINDERS: Final = Lookup(_finder, 8)


def _has_duplicate_member(body: bytes, keys: frozenset[str]) -> bool:
    seen: set[str] = set()
    for member in members(body):
        key = member.key.casefold()
        if key in keys:
            if key in seen or key != member.key:
                return True
            seen.add(key)
    return False


def _is_clear(body: bytes, keys: frozenset[str], pause: Callable[[], None]) -> bool:
    """Whether each key stands once at most in the body, at any level, and in no other spelling."""
    found = dict.fromkeys((b'"%b"' % key.encode() for key in keys), 0)
    overlap = max(map(len, found)) - 1  # what begins in one window may end in the next
    for start in range(0, len(body), WINDOW):
        window = body[start : start + WINDOW + overlap]
        if b"\\u" in window or _LONG_S in window:
            return False
        lower = window.lower()
        for quoted in found:
            found[quoted] += lower.count(quoted, 0, WINDOW + len(quoted) - 1)
        pause()
    return all(count == 0 or (count == 1 and quoted in body) for quoted, count in found.items())
