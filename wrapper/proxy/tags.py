"""Who inside a key a request is for, where the configuration asks for it (`[tags]`).

Invariant: a tag never refuses a request. One that is no short printable text counts as `other`, and
so does one more than a key may have (`Telemetry.tag`): callers choose it, and the usage table has a
row for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from wrapper.config import Tags
from wrapper.proxy.body import Body
from wrapper.runtime import RequestContext
from wrapper.telemetry.instruments import OTHER

MAX_TAG: Final = 64  # characters


class _Tagged(msgspec.Struct):
    metadata: Any = None
    user: Any = None


_decode = msgspec.json.Decoder(_Tagged).decode


def tag_of(context: RequestContext, tags: Tags, body: Body) -> str:
    """The request's tag, empty where it has none."""
    found = context.environ.get(tags.header) if tags.header else None
    if not found and isinstance(body, bytes) and (tags.metadata or tags.user):
        found = next((each for each in _in_body(tags, body) if isinstance(each, str)), None)
    text = (found or "").strip()
    if not text:
        return ""
    if len(text) > MAX_TAG or not text.isprintable():
        return OTHER
    return context.runtime.telemetry.tag(context.record.api_key, text)


def _in_body(tags: Tags, body: bytes) -> Iterator[object]:
    """What the body says, whatever it is."""
    try:
        fields = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return
    if tags.metadata and isinstance(fields.metadata, dict):
        yield fields.metadata.get(tags.metadata)
    if tags.user:
        yield fields.user
