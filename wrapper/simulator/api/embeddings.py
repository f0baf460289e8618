"""Embeddings and moderations."""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

from wrapper.simulator.api.call import Call, prompt_words, put_usage
from wrapper.simulator.response import Response, Usage, json_response

_DIMENSIONS = 8
_CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")


def embeddings(call: Call) -> Response:
    """`POST embeddings`: numbers that depend on the text alone, as floats or base64."""
    call.need("model", "input")
    given = call.json["input"]
    several = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    texts = given if several else [given]
    count = call.number("dimensions", _DIMENSIONS, 4096)
    as_text = call.json.get("encoding_format") == "base64"
    usage = Usage(prompt=call.usage(prompt_words(given), 0).prompt)
    made: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": n, "embedding": _vector(text, count, as_text)}
            for n, text in enumerate(texts)
        ],
        "model": call.answered_model,
    }
    written = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    carried = put_usage(call, made, usage, written)
    return json_response(made, carried, planned=usage)


def _vector(text: Any, count: int, as_text: bool) -> list[float] | str:
    digest = hashlib.sha256(repr(text).encode()).digest()
    numbers = [(digest[n % 32] - 128) / 256 for n in range(count)]
    if as_text:
        return base64.b64encode(struct.pack(f"<{count}f", *numbers)).decode()
    return numbers


def moderations(call: Call) -> Response:
    """`POST moderations`: nothing is ever flagged."""
    call.need("input")
    given = call.json["input"]
    texts = given if isinstance(given, list) else [given]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
    made = {
        "id": f"modr-{call.id}",
        "model": call.answered_model or "sim-moderation",
        "results": [result for _ in texts],
    }
    return json_response(made)
