"""Every name of a model that a request may carry: in its path, its query, its JSON body.

Invariants: what some provider may take for a model's name is found, whichever reading is meant: of
members given twice all count, and letters of either case. The work is bounded: `NamesTooMany` says
that a body has more in which models may be named than is looked at.

Of a body, conversations and documents are skipped: they are large, and data. What is looked at are
the members that name models (OpenAI's `tools`, OpenRouter's `models` and `preset`, Groq's
`compound_custom`, LiteLLM's `fallbacks`), and all others that are not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote

from wrapper.formats import jsonbytes

MAX_SIZE: Final = 1 << 20  # bytes of the members of a body that are looked into
MAX_VALUES: Final = 50_000  # in these members

_NAMING: Final = frozenset(
    [
        *("model", "models", "model_id", "modelid", "model_name", "modelname", "preset"),
        *("model-id", "deployment", "deployment_id", "deployment_name"),
    ]
)
_NAMING_ENDS: Final = ("_model", "_models", "fallback", "fallbacks")
_NAMING_IN_QUERY: Final = frozenset(["engine", "deployment-id"])
# Where a provider's own API, such as Ollama's, may name its models.
_NAMING_ELSEWHERE: Final = frozenset(["name", "from", "source", "destination", "engine"])
# The content of a request: what is in here goes to the model and chooses none.
_CONTENT: Final = frozenset(
    [
        *("messages", "input", "inputs", "prompt", "instructions", "system", "content", "contents"),
        *("suffix", "documents", "query", "queries", "texts", "text", "image", "images", "file"),
        *("items", "stop", "user", "metadata", "logit_bias", "functions", "tool_choice"),
        "response_format",
    ]
)
# Within other members: descriptions of a tool's parameters, headers, free text.
_SCHEMAS: Final = frozenset(
    [
        *("properties", "$defs", "definitions", "input_schema", "json_schema", "schema", "enum"),
        *("default", "example", "examples", "description", "headers", "metadata"),
    ]
)


class NamesTooMany(ValueError):
    """A body has more than is looked at in members that may name models; `member` is the first
    that is not.
    """

    def __init__(self, member: str) -> None:
        super().__init__(
            f"more than {MAX_SIZE} bytes or {MAX_VALUES} values in which models may be named"
        )
        self.member = member


def names_in_body(body: bytes, *, elsewhere: bool = False) -> Iterator[str]:
    """The names in a JSON object, which has been found to be one already.

    `elsewhere`: the body goes to a provider's own API, where a model may be a `name`. Raises
    NamesTooMany, or another ValueError for what Python cannot represent.
    """
    looked_at = values = 0
    for member in jsonbytes.members(body):
        key = member.key.casefold()
        naming = _is_naming(key) or (elsewhere and key in _NAMING_ELSEWHERE)
        if key in _CONTENT or not (naming or body[member.value_start] in b"[{"):
            continue
        looked_at += member.value_end - member.value_start
        value = body[member.value_start : member.value_end] if looked_at <= MAX_SIZE else b""
        values += value.count(b",") + value.count(b"{") + value.count(b"[") + 1
        if looked_at > MAX_SIZE or values > MAX_VALUES:
            raise NamesTooMany(member.key)
        try:
            yield from _names(_decode(value), naming)
        except RecursionError:
            raise ValueError(f"'{key}' is nested too deep") from None


def _decode(value: bytes) -> Any:
    """With objects as tuples of pairs, so that none is lost, and without numbers."""
    return json.loads(value, object_pairs_hook=tuple, parse_int=_no_number, parse_float=_no_number)


def _no_number(_: str) -> None:
    """A number names no model, and may be of any size (`1e999`, 5,000 digits)."""


def _names(value: Any, naming: bool) -> Iterator[str]:
    """The names in a decoded value; `naming`: the value of a member that names models."""
    stack = [(value, naming)]
    while stack:
        value, naming = stack.pop()
        if isinstance(value, str):
            if naming:
                yield value
        elif isinstance(value, list):
            stack.extend((item, naming) for item in value)
        elif isinstance(value, tuple):
            # In {"fallbacks": [{"a": ["b"]}]} both are names; {"model": "a", …} says itself which.
            naming = naming and not any(_is_naming(key.casefold()) for key, _ in value)
            for key, inner in value:
                lower = key.casefold()
                if naming:
                    yield key
                if naming or lower not in _SCHEMAS:
                    stack.append((inner, naming or _is_naming(lower)))


def _is_naming(key: str) -> bool:
    return key in _NAMING or key.endswith(_NAMING_ENDS)


def names_in_query(query: str) -> Iterator[str]:
    """The names in a raw `?query`, as in `/v1/realtime?model=NAME`."""
    for key, value in parse_qsl(query[1:].replace(";", "&")):
        lower = key.casefold()
        if _is_naming(lower) or lower in _NAMING_IN_QUERY:
            yield value


def names_in_path(path: str) -> Iterator[str]:
    """All names that a path may have; see `model_in_path`."""
    start, parts = 0, path.split("/")
    for part, after in pairwise(parts):
        start += len(part) + 1
        kind = _kind(part)
        if kind == "models":
            yield unquote(path[start:])
        elif kind in ("model", "engines", "deployments"):
            yield unquote(after)


def model_in_path(path: str) -> str:
    """The model in old OpenAI and Azure paths: `/engines/{model}/…`, `/deployments/{model}/…`.

    Also that of Bedrock's `/model/{model}/…`, and that of `/models/{model}`, whose name may hold
    slashes. Empty where there is none.
    """
    start, end = _model_span(path)
    return unquote(path[start:end])


def with_model(path: str, model: str) -> str:
    """The raw path with another model in it, where it has one."""
    start, end = _model_span(path)
    safe = ":" if path[end:] else "/:"  # a slash in a model's name ends no segment
    return path[:start] + quote(model, safe=safe) + path[end:] if end > start else path


def _model_span(path: str) -> tuple[int, int]:
    start = 0
    for part in path.split("/")[:-1]:
        start += len(part) + 1
        kind = _kind(part)
        if kind == "models":
            return start, len(path)
        if kind in ("model", "engines", "deployments"):
            end = path.find("/", start)
            if end >= 0 or kind != "model":  # /model/info is LiteLLM's and names none
                return start, len(path) if end < 0 else end
    return 0, 0


def _kind(part: str) -> str:
    """A segment as the most lenient reader sees it: decoded, without parameters, in lower case."""
    return unquote(part).partition(";")[0].lower()
