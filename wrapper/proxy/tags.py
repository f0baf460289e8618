"""Who inside a key a request is for, where the configuration asks for it (`[tags]`).

Invariant: a tag never refuses a request. One that is no short printable text counts as `other`, and
so does one more than a key may have (`Telemetry.tag`): callers choose it, and the usage table has a
row for each. Those that the configuration lists (`labels`) are few, and always count as themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from wrapper.config import MAX_TAG, Tags
from wrapper.proxy.body import Body
from wrapper.runtime import RequestContext
from wrapper.telemetry.instruments import OTHER

# Bytes of a member that is looked into: decoded, a body's worth of lists takes half a gigabyte.
MAX_MEMBER: Final = 1 << 16
_NOTHING: Final = msgspec.Raw(b"")


class _Tagged(msgspec.Struct):
    metadata: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Tagged).decode
_decode_member = msgspec.json.Decoder().decode


def tag_of(context: RequestContext, tags: Tags, body: Body) -> str:
    """The request's tag, empty where it has none."""
    found = context.environ.get(tags.header) if tags.header else None
    if found and not found.isascii():  # its characters are bytes (PEP 3333)
        found = found.encode("latin-1").decode(errors="replace")
    if not found and isinstance(body, bytes) and (tags.metadata or tags.user):
        found = next((each for each in _in_body(tags, body) if isinstance(each, str)), None)
    text = (found or "").strip()
    if not text or text in tags.labels:
        return text
    if len(text) > MAX_TAG or not text.isprintable():
        return OTHER
    return context.runtime.telemetry.tag(context.record.api_key, text)


def _in_body(tags: Tags, body: bytes) -> Iterator[object]:
    """What the body says, whatever it is."""
    try:
        fields = _decode(body)
        if tags.metadata and isinstance(metadata := _member(fields.metadata), dict):
            yield metadata.get(tags.metadata)
        if tags.user:
            yield _member(fields.user)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return


def _member(text: msgspec.Raw) -> Any:
    content = bytes(text)
    return _decode_member(content) if 0 < len(content) <= MAX_MEMBER else None
