"""One request as the answers see it, and the numbers that every answer reports by one rule.

The rule, so that tests can predict it: the prompt is the number of words in the request's
texts (a part of a message without text counts one), at least 1; the completion is the number of
pieces of content, over all choices, plus the reasoning tokens. An answer in one piece counts
the same as the stream of the same request. Orders override each number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from wrapper.simulator.answers.shelf import Shelf
from wrapper.simulator.http import Request
from wrapper.simulator.orders import Orders
from wrapper.simulator.replies import Event, Refusal, Reply, Usage


@dataclass(frozen=True, slots=True)
class Pace:
    """The provider's habits where a request orders nothing: seconds, and pieces of content."""

    latency: float = 0.0
    gap: float = 0.0
    events: int | None = None


@dataclass(slots=True)
class Part:
    """One part of a multipart body; only the first MiB of its bytes is kept."""

    name: str
    filename: str | None
    content_type: str
    data: bytearray = field(default_factory=bytearray)
    size: int = 0


@dataclass(slots=True)
class Call:
    """A request with its orders, its JSON or form, and the dialect to answer in."""

    id: str
    request: Request
    orders: Orders
    groq: bool
    pace: Pace
    json: dict[str, Any]
    parts: list[Part]
    shelf: Shelf
    model: str = ""
    arguments: list[str] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def answered_model(self) -> str:
        return self.orders.answered_model or self.model

    def need(self, *names: str) -> None:
        """Refuse with a 400, as OpenAI does, when a field is missing."""
        for name in names:
            if name not in self.json:
                raise Refusal(400, f"Missing required parameter: '{name}'.")

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number of the body, no less than 1 and no more than `most`."""
        found = self.json.get(name, self.form(name))
        if isinstance(found, str) and found.isascii() and found.isdigit():
            found = int(found)
        return max(1, min(found, most)) if isinstance(found, int) else default

    def form(self, name: str, default: str = "") -> str:
        """A text field of a multipart body."""
        for part in self.parts:
            if part.name == name:
                return part.data.decode("utf-8", "replace")
        return default

    def file(self, name: str = "file") -> Part:
        """A file of a multipart body."""
        for part in self.parts:
            if part.name == name:
                return part
        raise Refusal(400, f"Missing required parameter: '{name}'.")

    def usage(self, prompt: int, completion: int, reasoning: int = 0) -> Usage:
        """The use to report: the rule's numbers, unless the orders say otherwise."""
        orders = self.orders
        if orders.reasoning is not None:
            reasoning = orders.reasoning
        counted = completion + reasoning
        prompt = orders.prompt if orders.prompt is not None else prompt
        cached = orders.cached or 0
        return Usage(
            prompt=prompt,
            completion=orders.completion if orders.completion is not None else counted,
            cached=prompt // 4 if cached < 0 else cached,
            reasoning=reasoning,
            seconds=orders.seconds or 0,
        )

    def plain_usage(self, prompt: int, completion: int) -> Usage:
        """The use of answers that know neither cached nor reasoning tokens."""
        usage = self.usage(prompt, completion)
        return Usage(prompt=usage.prompt, completion=usage.completion)


def streamed(call: Call, events: Iterator[Event], planned: Usage) -> Reply:
    """A reply in events, under the content type that the dialect's provider gives it."""
    kind = "text/event-stream" if call.groq else "text/event-stream; charset=utf-8"
    return Reply(content_type=kind, events=events, planned=planned)


def words(value: Any) -> int:
    """How many words are in a text, a list of texts or messages, or a message's content."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(words(item) for item in value)
    if isinstance(value, dict):
        inner = value.get("content", value.get("text", value.get("input_text")))
        return 1 if inner is None else words(inner)
    return 1


def prompt_words(*values: Any) -> int:
    """The rule's number of prompt tokens for some texts or messages."""
    return max(1, sum(words(value) for value in values if value is not None))
