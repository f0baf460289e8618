"""The made-up words. Every answer says that it is simulated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from wrapper.simulator.answers.call import Call
from wrapper.simulator.replies import encode

SENTENCE = "This is a simulated answer from the built-in provider; no model was asked."
THOUGHT = "This is simulated reasoning"
_LONGEST_QUOTE = 40


def pieces(call: Call, asked: str, limit: int | None) -> tuple[str, ...]:
    """The pieces of the answer's content, at most `limit` of them."""
    count = call.orders.events if call.orders.events is not None else call.pace.events
    if count is None:
        quote = asked.split()[:_LONGEST_QUOTE]
        all_words = SENTENCE.split() + (["You", "said:", *quote] if quote else [])
        made = tuple(word if not n else " " + word for n, word in enumerate(all_words))
        made = tuple(piece.ljust(call.orders.size or 0, ".") for piece in made)
    else:
        made = _counted(count, call.orders.size or 0)
    return made if limit is None else made[:limit]


@lru_cache(maxsize=64)
def _counted(count: int, size: int) -> tuple[str, ...]:
    sentence = SENTENCE.split()
    return tuple(
        (sentence[n % len(sentence)] if not n else " " + sentence[n % len(sentence)]).ljust(
            size, "."
        )
        for n in range(count)
    )


@lru_cache(maxsize=256)
def encoded(texts: tuple[str, ...]) -> tuple[bytes, ...]:
    """Each piece as a JSON string."""
    return tuple(encode(text) for text in texts)


def thoughts(count: int) -> tuple[str, ...]:
    """Some pieces of reasoning."""
    all_words = THOUGHT.split()
    return tuple(("" if not n else " ") + all_words[n % len(all_words)] for n in range(count))


def cut(text: str, size: int = 8) -> tuple[str, ...]:
    """A text in pieces of some characters each."""
    return tuple(text[n : n + size] for n in range(0, len(text), size)) or ("",)


def last_text(messages: Any) -> str:
    """What the user said last: the text of the last message that has one."""
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, list):
        return ""
    for message in reversed(messages):
        content = message.get("content") if isinstance(message, dict) else message
        if isinstance(content, list):
            content = " ".join(
                part["text"]
                for part in content
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        if isinstance(content, str) and content:
            return content
    return ""


def instance(schema: Any) -> Any:
    """The smallest value that fits a JSON schema, with "simulated" for texts."""
    if not isinstance(schema, dict):
        return "simulated"
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    for several in ("anyOf", "oneOf"):
        if schema.get(several):
            return instance(schema[several][0])
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        return {name: instance(inner) for name, inner in schema.get("properties", {}).items()}
    plain: dict[str, Any] = {
        "array": [],
        "integer": 1,
        "number": 1.5,
        "boolean": True,
        "null": None,
    }
    return plain.get(str(kind), "simulated")
