"""Made-up content. Every response says that it is simulated."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from wrapper.simulator.api.call import Call
from wrapper.simulator.response import encode

Texts = tuple[str, ...]

SENTENCE = "This is a simulated answer from the built-in provider; no model was asked."
THOUGHT = "This is simulated reasoning"
_LONGEST_QUOTE = 40


def pieces(call: Call, asked: str) -> Texts:
    """The pieces of the content; each counts as one token."""
    count = call.instructions.events if call.instructions.events is not None else call.pace.events
    if count is None:
        quote = asked.split()[:_LONGEST_QUOTE]
        all_words = SENTENCE.split() + (["You", "said:", *quote] if quote else [])
        made = tuple(word if not n else " " + word for n, word in enumerate(all_words))
        return tuple(piece.ljust(call.instructions.size or 0, ".") for piece in made)
    return _counted(count, call.instructions.size or 0)


@lru_cache(maxsize=64)
def _counted(count: int, size: int) -> Texts:
    sentence = SENTENCE.split()
    return tuple(
        (sentence[n % len(sentence)] if not n else " " + sentence[n % len(sentence)]).ljust(
            size, "."
        )
        for n in range(count)
    )


@lru_cache(maxsize=256)
def encoded(texts: Texts) -> tuple[bytes, ...]:
    """Each piece as a JSON string."""
    return tuple(encode(text) for text in texts)


def thoughts(call: Call, wanted: bool) -> Texts:
    """The pieces of reasoning: as many as instructed, else 4 if they are wanted."""
    count = call.instructions.reasoning
    if count is None:
        count = 4 if wanted else 0
    all_words = THOUGHT.split()
    return tuple(("" if not n else " ") + all_words[n % len(all_words)] for n in range(count))


def limited(limit: int | None, reasoning: Texts, content: Texts) -> tuple[Texts, Texts, bool]:
    """Reasoning and content within the output limit, and whether anything was cut off."""
    if limit is None or len(reasoning) + len(content) <= limit:
        return reasoning, content, False
    reasoning = reasoning[:limit]
    return reasoning, content[: limit - len(reasoning)], True


def cut(text: str, size: int = 8) -> Texts:
    """A text in pieces of some characters each."""
    return tuple(text[n : n + size] for n in range(0, len(text), size)) or ("",)


def last_text(messages: Any) -> str:
    """The text of the last message that has one."""
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, list):
        return ""
    for message in reversed(messages):
        content = message
        if isinstance(message, dict):
            content = message.get("content", message.get("output"))  # of a tool: responses
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
        properties = schema.get("properties", {})
        required = schema.get("required")
        names = properties if required is None else [n for n in properties if n in required]
        return {name: instance(properties[name]) for name in names}
    values = {"array": [], "integer": 1, "number": 1.5, "boolean": True, "null": None}
    return values.get(str(kind), "simulated")
