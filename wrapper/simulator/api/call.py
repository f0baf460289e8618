"""One API call as the endpoints see it, its usage, and the objects that calls create.

How usage is counted, so that tests can predict it: the prompt is the number of words in the
request's texts (a part of a message without text counts one), at least 1; the completion is the
number of pieces of content over all choices, plus the reasoning tokens. A response in one piece
reports the same as the stream. Instructions override each number.

Invariant: without such instructions the prompt never exceeds the bytes of the request body, and
the completion never exceeds the output limit of the request times its choices.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from wrapper.simulator.http import Part, Request
from wrapper.simulator.instructions import Instructions
from wrapper.simulator.ledger import Ledger
from wrapper.simulator.response import ApiError, Event, Response, Usage

_MOST_OBJECTS = 1000  # of each kind


@dataclass(frozen=True, slots=True)
class Pace:
    """Defaults for requests without instructions: seconds, and pieces of content."""

    latency: float = 0.0
    gap: float = 0.0
    events: int | None = None


class ObjectStore:
    """Objects that later calls ask for, in memory, by kind and id; the oldest are dropped."""

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[str, dict[str, Any]]] = {}
        self._contents: dict[str, tuple[bytes, int]] = {}
        self.works: dict[str, Any] = {}  # of objects that have not ended: `deferred.Work`

    def put(self, kind: str, made: dict[str, Any], content: bytes = b"", size: int = 0) -> None:
        """Keep an object, and the beginning of its content of `size` bytes."""
        kept = self._kinds.setdefault(kind, OrderedDict())
        kept[made["id"]] = made
        if size:
            self._contents[made["id"]] = (content, size)
        if len(kept) > _MOST_OBJECTS:
            dropped = kept.popitem(last=False)[0]
            self._contents.pop(dropped, None)
            self.works.pop(dropped, None)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object. A 404 if there is none."""
        kept = self._kinds.get(kind)
        if kept is None or name not in kept:
            raise ApiError(404, f"No such object: {name}")
        return kept[name]

    def content(self, name: str) -> tuple[bytes, int]:
        """The beginning of the content and its whole length in bytes."""
        return self._contents.get(name, (b"", 0))

    def delete(self, kind: str, name: str) -> None:
        """Delete an object. A 404 if there is none."""
        self.get(kind, name)
        del self._kinds[kind][name]
        self._contents.pop(name, None)
        self.works.pop(name, None)

    def page(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of a kind: newest first, with `limit`, `order`, `after` and `before`."""
        found = list(self._kinds.get(kind, {}).values())
        if query.get("order", "desc") == "desc":
            found.reverse()
        if query.get("purpose"):
            found = [made for made in found if made.get("purpose") == query["purpose"]]
        names = [made["id"] for made in found]
        if query.get("after") in names:
            found = found[names.index(query["after"]) + 1 :]
        if query.get("before") in names:
            found = found[: names.index(query["before"])]
        limit = query.get("limit", "20")
        count = int(limit) if limit.isdigit() else 20
        shown = found[:count]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > count,
        }


@dataclass(slots=True)
class Call:
    """A request with its instructions, its JSON or form, and the dialect of the response."""

    id: str
    request: Request
    instructions: Instructions
    groq: bool
    pace: Pace
    json: dict[str, Any]
    parts: list[Part]
    objects: ObjectStore
    ledger: Ledger
    model: str = ""
    book: str = ""
    arguments: list[str] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def answered_model(self) -> str:
        return self.instructions.answered_model or self.model

    def need(self, *names: str) -> None:
        """Refuse with a 400, as OpenAI does, when a field is missing."""
        for name in names:
            if name not in self.json:
                raise ApiError(400, f"Missing required parameter: '{name}'.")

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number of the body, no less than 1 and no more than `most`."""
        found = self.json.get(name, self.form(name))
        if isinstance(found, str) and found.isascii() and found.isdigit():
            found = int(found)
        return max(1, min(found, most)) if isinstance(found, int) else default

    def limit(self, *names: str) -> int | None:
        """The output limit of the request in tokens per choice, the lowest of these fields."""
        found = [self.json[name] for name in names if isinstance(self.json.get(name), int)]
        return max(0, min(found)) if found else None

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
        raise ApiError(400, f"Missing required parameter: '{name}'.")

    def usage(self, prompt: int, completion: int, reasoning: int = 0) -> Usage:
        """The usage to report: these numbers, unless the instructions override them."""
        wanted = self.instructions
        counted = completion + reasoning
        prompt = wanted.prompt if wanted.prompt is not None else prompt
        cached = wanted.cached or 0
        return Usage(
            prompt=prompt,
            completion=wanted.completion if wanted.completion is not None else counted,
            cached=prompt // 4 if cached < 0 else cached,
            reasoning=reasoning,
            seconds=wanted.seconds or 0,
            cache_write=wanted.cache_write or 0,
            image=wanted.image or 0,
        )

    def served(self) -> dict[str, str]:
        """The member that names the tier, if one was ordered."""
        tier = self.instructions.tier
        return {"service_tier": tier} if tier else {}

    def tools(self, usage: Usage) -> Usage:
        """The usage with the tools that the provider has run."""
        return usage._replace(**dict([self.instructions.tool] if self.instructions.tool else []))

    def plain_usage(self, prompt: int, completion: int) -> Usage:
        """The usage of endpoints without cached and reasoning tokens."""
        usage = self.usage(prompt, completion)
        return Usage(prompt=usage.prompt, completion=usage.completion, image=usage.image)


def streamed(call: Call, events: Iterator[Event], planned: Usage) -> Response:
    """A response in events, with the content type of the dialect."""
    kind = "text/event-stream" if call.groq else "text/event-stream; charset=utf-8"
    return Response(content_type=kind, events=events, planned=planned)


def words(value: Any) -> int:
    """The number of words in a text, a list of texts or messages, or the content of a message."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, list):
        return sum(words(item) for item in value)
    if isinstance(value, dict):
        inner = value.get("content", value.get("text", value.get("input_text")))
        return 1 if inner is None else words(inner)
    return 1


def prompt_words(*values: Any) -> int:
    """The number of prompt tokens of some texts or messages."""
    return max(1, sum(words(value) for value in values if value is not None))


def chat_usage(call: Call, usage: Usage) -> dict[str, Any]:
    """`usage` of chat completions, with Groq's timings or OpenAI's details."""
    made: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if call.groq:
        made |= {
            "queue_time": 0.00012,
            "prompt_time": 0.00034,
            "completion_time": 0.00056,
            "total_time": 0.0009,
        }
        if usage.cached:
            made["prompt_tokens_details"] = {"cached_tokens": usage.cached}
        if usage.reasoning:
            made["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
        return made
    return made | {
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "audio_tokens": 0,
            **_written(usage),
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _written(usage: Usage) -> dict[str, int]:
    return {"cache_write_tokens": usage.cache_write} if usage.cache_write else {}


def responses_usage(usage: Usage) -> dict[str, Any]:
    """`usage` of the responses API."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, **_written(usage)},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def media_usage(usage: Usage) -> dict[str, Any]:
    """`usage` of images and of speech."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {
            "text_tokens": usage.prompt - usage.image,
            "image_tokens": usage.image,
        },
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def transcription_usage(usage: Usage) -> dict[str, Any]:
    """`usage` of a transcription: seconds if there are any, else tokens."""
    if usage.seconds:
        return {"type": "duration", "seconds": usage.seconds}
    return {
        "type": "tokens",
        "input_tokens": usage.prompt,
        "input_token_details": {"text_tokens": 0, "audio_tokens": usage.prompt},
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def put_usage(
    call: Call, into: dict[str, Any], usage: Usage, written: dict[str, Any]
) -> Usage | None:
    """Write `usage` into a response unless instructed otherwise; returns what it now carries."""
    if call.instructions.no_usage:
        return None
    if call.instructions.usage_null:
        into["usage"] = None
        return None
    into["usage"] = written
    return usage
