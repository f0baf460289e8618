"""Where each dialect reports its usage.

========================================  ====================================================
response                                  usage
========================================  ====================================================
chat, old completions (and stream chunk)  usage.{prompt,completion,total}_tokens
embeddings                                usage.{prompt,total}_tokens
responses, images, audio by tokens        usage.{input,output,total}_tokens
audio by length                           usage.{type: "duration", seconds}
transcription, verbose_json               duration
responses stream                          response.usage of completed, incomplete and failed
Responses: hosted tools                   output[].type, tool_usage
Groq stream, last chunk                   x_groq.usage
Groq compound systems                     usage_breakdown, executed_tools of each choice
Anthropic messages                        usage.{input,output,cache_…}_tokens, server_tool_use
Anthropic stream                          message.usage of message_start, then that of
                                          message_delta, which replaces what it repeats
Ollama /api/chat, generate, embed         prompt_eval_count, eval_count
video                                     seconds, size
rerank                                    meta.billed_units
========================================  ====================================================

Sources: https://platform.openai.com/docs/api-reference, https://console.groq.com/docs,
https://docs.anthropic.com/en/api/messages and https://github.com/ollama/ollama/blob/main/docs/api.md

Only these members are decoded; the decoder skips everything else. `reports` reads the usage object
itself, `hosted` the tools and models that are billed apart.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from wrapper.metering.hosted import (
    breakdown,
    decode_item,
    hosted_tools,
    read_executed,
    with_executed,
)
from wrapper.metering.raw import (
    DECODING_ERRORS,
    EMPTY,
    EMPTY_LIST,
    NOTHING,
    count_of,
    opens,
    seconds_of,
    text_of,
)
from wrapper.metering.reports import Report, begun, read_usage, sound_report
from wrapper.metering.usage import Usage

__all__ = [
    "DECODING_ERRORS",
    "MEMBERS",
    "TERMINAL_TYPES",
    "JsonUsage",
    "begun",
    "read",
    "with_executed",
]


class _Body(msgspec.Struct):
    """A JSON response or the data of one event. Raw members are decoded only where needed."""

    model: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    x_groq: msgspec.Raw = NOTHING
    response: msgspec.Raw = NOTHING
    message: msgspec.Raw = NOTHING
    choices: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING
    type: msgspec.Raw = NOTHING
    service_tier: msgspec.Raw = NOTHING
    output: msgspec.Raw = NOTHING
    tools: msgspec.Raw = NOTHING
    tool_usage: msgspec.Raw = NOTHING
    usage_breakdown: msgspec.Raw = NOTHING
    prompt_eval_count: msgspec.Raw = NOTHING
    eval_count: msgspec.Raw = NOTHING
    task: msgspec.Raw = NOTHING
    duration: msgspec.Raw = NOTHING
    object: msgspec.Raw = NOTHING
    seconds: msgspec.Raw = NOTHING
    size: msgspec.Raw = NOTHING
    meta: msgspec.Raw = NOTHING


_NULL: Final = len(b"null")
MEMBERS = _Body.__struct_fields__
"""The top-level members of a response that are read."""

_decode_body = msgspec.json.Decoder(_Body).decode

# The event that ends a stream, in the dialects whose events have a type.
TERMINAL_TYPES = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "message_stop"}
)


class JsonUsage(msgspec.Struct):
    """What one JSON text reports.

    `unreadable`: it has a usage that could not be read. `only_usage`: it is the additional chunk of
    `stream_options.include_usage`, with a usage and empty `choices`. `start` is the usage of an
    Anthropic `message_start`, which is not complete. `executed` are Groq's tools, by their index.
    """

    usage: Usage | None = None
    model: str | None = None
    error: bool = False
    unreadable: bool = False
    only_usage: bool = False
    type: str = ""
    service_tier: str = ""
    start: Report | None = None
    executed: dict[str, str] = {}


def read(text: bytes, start: Report | None = None) -> JsonUsage:
    """What `text`, one JSON value, reports. Raises DECODING_ERRORS where it is no object.

    `start`: the report that an earlier event of the same stream has begun.
    """
    body = _decode_body(text)
    found = JsonUsage(type=text_of(body.type) if body.type else "")
    _read_level(body, found, start)
    if body.response and opens(body.response, b"{"):
        _read_level(_decode_body(body.response), found)
    if found.type == "message_start":
        _read_start(body, found)
    if body.x_groq and len(body.x_groq) > _NULL:
        _read_groq(bytes(body.x_groq), found)
    found.error = found.error or found.type in ("error", "response.failed")
    if body.usage and not found.error and EMPTY_LIST.fullmatch(body.choices):
        found.only_usage = opens(body.usage, b"{")
    return found


def _read_groq(groq: bytes, found: JsonUsage) -> None:
    """`x_groq.usage` counts only where `usage` is empty: outside streams it is about caches."""
    has_usage = found.usage is not None or found.unreadable
    if b'"error"' in groq or (not has_usage and b'"usage"' in groq):
        extra = _decode_body(groq)
        if has_usage:
            extra.usage = NOTHING
        _read_level(extra, found)


def _read_level(body: _Body, found: JsonUsage, start: Report | None = None) -> None:
    # (What is not there is NOTHING, and false: to look at its bytes would be to copy them.)
    usage = bytes(body.usage)
    if body.model and found.model is None:
        found.model = text_of(body.model) or None
    found.error = found.error or (bool(body.error) and bytes(body.error) not in EMPTY)
    if body.service_tier:
        found.service_tier = text_of(body.service_tier) or found.service_tier
    if body.choices and b"executed_tools" in bytes(body.choices):
        with contextlib.suppress(*DECODING_ERRORS):
            read_executed(body.choices, found.executed)
    try:
        reported = None
        if usage not in EMPTY:
            reported = read_usage(usage, start, found.service_tier)
        elif (
            body.eval_count or body.prompt_eval_count or body.duration or body.seconds or body.meta
        ):
            reported = _without_usage(body)
        if reported is None:
            reported = found.usage
    except DECODING_ERRORS:
        found.unreadable = True
        return
    found.usage = reported
    if reported is not None and (
        body.output
        or body.tool_usage
        or (body.usage_breakdown and bytes(body.usage_breakdown) not in EMPTY)
        or (found.service_tier and not reported.service_tier)
    ):
        try:
            found.usage = _priced_apart(body, reported, found)
        except DECODING_ERRORS:
            found.usage = replace(reported, unreadable=reported.unreadable or "tools")


def _read_start(body: _Body, found: JsonUsage) -> None:
    """The model and the first numbers of an Anthropic stream; its output has only begun."""
    message = bytes(body.message)
    if message.startswith(b"{"):
        inner = _decode_body(message)
        found.model = found.model or text_of(inner.model) or None
        with contextlib.suppress(*DECODING_ERRORS):
            found.start = sound_report(bytes(inner.usage))[0]


def _without_usage(body: _Body) -> Usage | None:
    """The usage of the dialects that have no `usage` member."""
    if bytes(body.eval_count) not in EMPTY or bytes(body.prompt_eval_count) not in EMPTY:
        prompt, completion = count_of(body.prompt_eval_count), count_of(body.eval_count)
        return Usage(prompt, completion, prompt + completion)
    if bytes(body.task) in (b'"transcribe"', b'"translate"') and body.duration:
        return Usage(0, 0, 0, seconds=seconds_of(body.duration))
    if bytes(body.object) == b'"video"' and body.seconds:
        size = "x".join(sorted(text_of(body.size).split("x"), key=lambda side: (len(side), side)))
        unit = f"video_second {size}".strip()
        return Usage(0, 0, 0, units=((unit, seconds_of(body.seconds)),))
    if opens(body.meta, b"{"):
        billed = decode_item(body.meta).billed_units
        if opens(billed, b"{"):
            return read_usage(bytes(billed))
    return None


def _priced_apart(body: _Body, usage: Usage, found: JsonUsage) -> Usage:
    """`usage` with what the rest of the response says about its price."""
    changes: dict[str, Any] = {}
    if not usage.service_tier and found.service_tier:
        changes["service_tier"] = found.service_tier
    units: Counter[str] = Counter()
    parts = breakdown(body.usage_breakdown) if body.usage_breakdown else ()
    if body.output or body.tool_usage:
        parts += hosted_tools(body.output, body.tool_usage, body.tools, units, usage)
    if parts:
        changes["parts"] = parts
    if units:
        changes["units"] = (*usage.units, *sorted(units.items()))
    return replace(usage, **changes) if changes else usage
