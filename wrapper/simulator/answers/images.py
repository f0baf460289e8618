"""Images: always the same grey point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wrapper.simulator.answers.call import Call, prompt_words, streamed
from wrapper.simulator.answers.use import media_use, put_use
from wrapper.simulator.replies import Event, Reply, Usage, encode, json_reply

_POINT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)
_TOKENS_PER_IMAGE = 16
_LOOK = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}


def images(call: Call) -> Reply:
    """`POST images/generations`, and edits and variations, which are multipart."""
    prompt = call.json.get("prompt") or call.form("prompt")
    count = call.number("n", 1, 10)
    usage = call.plain_usage(prompt_words(prompt), _TOKENS_PER_IMAGE * count)
    if call.json.get("stream") or call.form("stream") == "true":
        events = _events(call, usage)
        return streamed(call, events, usage)
    one: dict[str, Any] = {"b64_json": _POINT, "revised_prompt": "a simulated image"}
    if call.json.get("response_format") == "url":
        one = {"url": "data:image/png;base64," + _POINT}
    made = {"created": call.created, **_LOOK, "data": [one] * count}
    carried = put_use(call, made, usage, media_use(usage))
    return json_reply(made, carried, planned=usage)


def _events(call: Call, usage: Usage) -> Iterator[Event]:
    same = {"b64_json": _POINT, "created_at": call.created, **_LOOK}
    partial = {"type": "image_generation.partial_image", **same, "partial_image_index": 0}
    yield Event(encode(partial), None, b"image_generation.partial_image")
    last = {"type": "image_generation.completed", **same}
    carried = put_use(call, last, usage, media_use(usage))
    yield Event(encode(last), carried, b"image_generation.completed")
