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

Only these members are decoded; the decoder skips everything else.

Invariant: a number that cannot be a count (negative, a fraction, a string, a boolean, over 1e12)
is never repaired: as one of the totals it makes the usage unreadable, as a detail it is named
(`Usage.unreadable`) while the sound numbers count.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from wrapper.metering.usage import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)] | None
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None

_NOTHING = msgspec.Raw(b"")


class _Split(msgspec.Struct):
    """Tokens by kind of content, or the audio and image tokens among those that were cached."""

    text_tokens: _Count = None
    audio_tokens: _Count = None
    image_tokens: _Count = None
    cached_image_tokens: _Count = None
    cached_text_tokens: _Count = None


class _Written(msgspec.Struct):
    ttl_12h_tokens: _Count = None


class _Details(msgspec.Struct):
    """The parts of the prompt, or those of the completion."""

    cached_tokens: _Count = None
    cached_tokens_details: _Split | None = None
    cache_write_tokens: _Count = None
    cache_write_tokens_details: _Written | None = None
    reasoning_tokens: _Count = None
    text_tokens: _Count = None
    audio_tokens: _Count = None
    image_tokens: _Count = None


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: _Count = None


class _Report(msgspec.Struct):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    # The audio endpoints use the singular.
    input_token_details: _Details | None = None
    output_token_details: _Details | None = None
    seconds: _Seconds = None
    prompt_audio_seconds: _Seconds = None  # Mistral
    # Cached tokens have many names.
    cached_tokens: _Count = None
    cached_tokens_details: _Split | None = None
    prompt_cache_hit_tokens: _Count = None
    cachedContentTokenCount: _Count = None  # noqa: N815
    # Anthropic
    cache_read_input_tokens: _Count = None
    cache_creation_input_tokens: _Count = None
    cache_creation: _CacheCreation | None = None
    server_tool_use: dict[str, Any] | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    # Rerank
    search_units: _Count = None


_TOTALS = frozenset(
    {
        *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"),
        *("seconds", "prompt_audio_seconds"),
    }
)
_NO_DETAILS = _Details()


class _Body(msgspec.Struct):
    """A JSON response or the data of one event. Raw members are decoded only where needed."""

    model: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    x_groq: msgspec.Raw = _NOTHING
    response: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING
    choices: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    type: msgspec.Raw = _NOTHING
    service_tier: msgspec.Raw = _NOTHING
    output: msgspec.Raw = _NOTHING
    tools: msgspec.Raw = _NOTHING
    tool_usage: msgspec.Raw = _NOTHING
    usage_breakdown: msgspec.Raw = _NOTHING
    prompt_eval_count: msgspec.Raw = _NOTHING
    eval_count: msgspec.Raw = _NOTHING
    task: msgspec.Raw = _NOTHING
    duration: msgspec.Raw = _NOTHING
    object: msgspec.Raw = _NOTHING
    seconds: msgspec.Raw = _NOTHING
    size: msgspec.Raw = _NOTHING
    meta: msgspec.Raw = _NOTHING


class _Item(msgspec.Struct):
    """An item of `output`, a tool, a choice, or a model of a breakdown; whatever is there."""

    type: msgspec.Raw = _NOTHING
    action: msgspec.Raw = _NOTHING
    container_id: msgspec.Raw = _NOTHING
    model: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING
    delta: msgspec.Raw = _NOTHING
    index: msgspec.Raw = _NOTHING
    executed_tools: msgspec.Raw = _NOTHING
    models: msgspec.Raw = _NOTHING
    image_gen: msgspec.Raw = _NOTHING
    web_search: msgspec.Raw = _NOTHING
    num_requests: msgspec.Raw = _NOTHING
    billed_units: msgspec.Raw = _NOTHING


MEMBERS = _Body.__struct_fields__
"""The top-level members of a response that are read."""

_decode_body = msgspec.json.Decoder(_Body).decode
_decode_report = msgspec.json.Decoder(_Report).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_items = msgspec.json.Decoder(list[_Item]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_count = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0, le=10**12)]).decode
_decode_seconds = msgspec.json.Decoder(
    Annotated[float, msgspec.Meta(ge=0, le=1e12)], strict=False
).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

# What decoding raises: msgspec's errors and UnicodeDecodeError are ValueErrors, depth is not.
DECODING_ERRORS = (ValueError, RecursionError)

_EMPTY = (b"", b"null")
_EMPTY_LIST = re.compile(rb"\[[ \t\r\n]*\]")

# The event that ends a stream, in the dialects whose events have a type.
TERMINAL_TYPES = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "message_stop"}
)
_FAST = "fast"


@dataclass(slots=True)
class JsonUsage:
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
    start: _Report | None = None
    executed: dict[str, str] = field(default_factory=dict)


def read(text: bytes, start: _Report | None = None) -> JsonUsage:
    """What `text`, one JSON value, reports. Raises DECODING_ERRORS where it is no object.

    `start`: the report that an earlier event of the same stream has begun.
    """
    body = _decode_body(text)
    found = JsonUsage(type=_text(body.type) if body.type else "")
    _read_level(body, found, start)
    nested, groq = bytes(body.response), bytes(body.x_groq)
    if nested.startswith(b"{"):
        _read_level(_decode_body(nested), found)
    if found.type == "message_start":
        _read_start(body, found)
    # `x_groq.usage` counts only where `usage` is empty: outside streams it is about caches.
    if b'"error"' in groq or (b'"usage"' in groq and found.usage is None and not found.unreadable):
        extra = _decode_body(groq)
        if found.usage is not None or found.unreadable:
            extra.usage = _NOTHING
        _read_level(extra, found)
    found.error = found.error or found.type in ("error", "response.failed")
    found.only_usage = (
        bytes(body.usage).startswith(b"{")
        and _EMPTY_LIST.fullmatch(bytes(body.choices)) is not None
        and not found.error
    )
    return found


def _read_level(body: _Body, found: JsonUsage, start: _Report | None = None) -> None:
    usage = bytes(body.usage)
    if found.model is None and body.model:
        found.model = _text(body.model) or None
    found.error = found.error or bytes(body.error) not in _EMPTY
    if body.service_tier:
        found.service_tier = _text(body.service_tier) or found.service_tier
    if b"executed_tools" in bytes(body.choices):
        with contextlib.suppress(*DECODING_ERRORS):
            _read_executed(body.choices, found.executed)
    try:
        reported = None
        if usage not in _EMPTY:
            reported = read_usage(usage, start)
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
        found.service_tier or body.output or body.tool_usage or body.usage_breakdown
    ):
        try:
            found.usage = _priced_apart(body, reported, found)
        except DECODING_ERRORS:
            found.usage = reported._replace(unreadable=reported.unreadable or "tools")


def _read_start(body: _Body, found: JsonUsage) -> None:
    """The model and the first numbers of an Anthropic stream; its output has only begun."""
    message = bytes(body.message)
    if message.startswith(b"{"):
        inner = _decode_body(message)
        found.model = found.model or _text(inner.model) or None
        with contextlib.suppress(*DECODING_ERRORS):
            found.start = _sound_report(bytes(inner.usage))[0]


def _without_usage(body: _Body) -> Usage | None:
    """The usage of the dialects that have no `usage` member."""
    if bytes(body.eval_count) not in _EMPTY or bytes(body.prompt_eval_count) not in _EMPTY:
        prompt, completion = _count(body.prompt_eval_count), _count(body.eval_count)
        return Usage(prompt, completion, prompt + completion)
    if bytes(body.task) in (b'"transcribe"', b'"translate"') and body.duration:
        return Usage(0, 0, 0, seconds=_decode_seconds(body.duration))
    if bytes(body.object) == b'"video"' and body.seconds:
        size = "x".join(sorted(_text(body.size).split("x"), key=lambda side: (len(side), side)))
        unit = f"video_second {size}".strip()
        return Usage(0, 0, 0, units=((unit, _decode_seconds(body.seconds)),))
    if _opens(body.meta, b"{"):
        billed = _decode_item(body.meta).billed_units
        if _opens(billed, b"{"):
            return read_usage(bytes(billed))
    return None


def _priced_apart(body: _Body, usage: Usage, found: JsonUsage) -> Usage:
    """`usage` with what the rest of the response says about its price."""
    changes: dict[str, Any] = {}
    if not usage.service_tier and found.service_tier:
        changes["service_tier"] = found.service_tier
    units: Counter[str] = Counter()
    parts = _breakdown(body.usage_breakdown) if body.usage_breakdown else ()
    if body.output or body.tool_usage:
        parts += _hosted_tools(body, units, usage)
    if parts:
        changes["parts"] = parts
    if units:
        changes["units"] = (*usage.units, *sorted(units.items()))
    return usage._replace(**changes) if changes else usage


def _breakdown(breakdown: msgspec.Raw) -> tuple[tuple[str, Usage], ...]:
    """Groq's compound systems: the usage of each model that worked."""
    if not _opens(breakdown, b"{"):
        return ()
    models = _decode_item(breakdown).models
    found = []
    for each in _decode_items(models) if _opens(models, b"[") else ():
        usage = read_usage(bytes(each.usage))
        if usage is not None:
            found.append((_text(each.model), usage))
    return tuple(found)


def with_executed(usage: Usage, executed: dict[str, str]) -> Usage:
    """`usage` with the tools that Groq has executed as units, by their type."""
    if not executed:
        return usage
    tools = Counter(f"executed_tool {kind}" for kind in executed.values())
    return usage._replace(units=(*usage.units, *sorted(tools.items())))


def _read_executed(choices: msgspec.Raw, executed: dict[str, str]) -> None:
    """A stream names a tool more than once: when it is called, and with what it returned."""
    for number, choice in enumerate(_decode_items(choices)):
        inner = choice.message or choice.delta
        if not _opens(inner, b"{"):
            continue
        tools = _decode_item(inner).executed_tools
        for place, tool in enumerate(_decode_items(tools) if _opens(tools, b"[") else ()):
            key = f"{number}.{bytes(tool.index).decode() or place}"
            executed[key] = _text(tool.type) or executed.get(key, "")


def _hosted_tools(body: _Body, units: Counter[str], usage: Usage) -> tuple[tuple[str, Usage], ...]:
    """Counts the calls of tools that the Responses API runs and bills apart from the tokens."""
    calls: Counter[str] = Counter()
    containers = set()
    if b'_call"' in bytes(body.output):
        for item in _decode_items(body.output):
            kind = _text(item.type)
            calls[kind] += kind != "web_search_call" or _is_search(item.action)
            if kind in ("code_interpreter_call", "shell_call_output") or item.container_id:
                containers.add(bytes(item.container_id))
    told = _decode_item(body.tool_usage) if _opens(body.tool_usage, b"{") else _Item()
    searches = calls["web_search_call"]
    if _opens(told.web_search, b"{"):
        searches = _count(_decode_item(told.web_search).num_requests)
    images = read_usage(bytes(told.image_gen)) if _opens(told.image_gen, b"{") else None
    for unit, number in (
        ("web_search", searches),
        ("file_search", calls["file_search_call"]),
        ("container", len(containers)),
    ):
        if number:
            units[unit] += number
    if images is not None and images.total:
        return (("", usage), (_image_model(body.tools), images))
    if calls["image_generation_call"]:
        units["image_generation"] += calls["image_generation_call"]
    return ()


def _is_search(action: msgspec.Raw) -> bool:
    """Opening a page and looking in it are not billed; only searches are."""
    return not _opens(action, b"{") or _text(_decode_item(action).type) in ("", "search")


def _image_model(tools: msgspec.Raw) -> str:
    for tool in _decode_items(tools) if _opens(tools, b"[") else ():
        if _text(tool.type) == "image_generation":
            return _text(tool.model) or "image_generation"
    return "image_generation"


def read_usage(text: bytes, start: _Report | None = None) -> Usage | None:
    """The usage in the JSON object `text`, None where it reports nothing that is billed.

    Raises DECODING_ERRORS where it is no object or its totals cannot be counts.
    """
    try:
        report, unreadable = _decode_report(text), ""
    except msgspec.ValidationError:
        report, unreadable = _sound_report(text)
    if start is not None:
        for name in _Report.__struct_fields__:
            if getattr(report, name) is None:
                setattr(report, name, getattr(start, name))
    return _usage(report, unreadable)


def begun(start: _Report) -> Usage | None:
    """What the beginning of a stream reports: its prompt; its output has only begun."""
    usage = _usage(start, "")
    return usage and usage._replace(completion=0, total=usage.prompt)


def _usage(report: _Report, unreadable: str) -> Usage | None:
    # Both spellings may stand in one object: a zero beside a positive twin is no report.
    prompt = report.prompt_tokens or report.input_tokens
    completion = report.completion_tokens or report.output_tokens
    if prompt is None:
        prompt = report.prompt_tokens
    if completion is None:
        completion = report.completion_tokens
    total = report.total_tokens
    seconds = report.seconds or report.prompt_audio_seconds
    units = _server_tools(report) if report.server_tool_use or report.search_units else ()
    if prompt is None and completion is None and total is None and seconds is None and not units:
        return None
    before = (
        report.prompt_tokens_details
        or report.input_tokens_details
        or report.input_token_details
        or _NO_DETAILS
    )
    after = (
        report.completion_tokens_details
        or report.output_tokens_details
        or report.output_token_details
        or _NO_DETAILS
    )
    written = before.cache_write_tokens or report.cache_creation_input_tokens or 0
    cached = max(
        before.cached_tokens or 0,
        report.cached_tokens or 0,
        report.prompt_cache_hit_tokens or 0,
        report.cache_read_input_tokens or 0,
        report.cachedContentTokenCount or 0,
    )
    if report.prompt_tokens is None and total is None and before is _NO_DETAILS:
        # Anthropic counts what was read from and written to the cache beside `input_tokens`.
        prompt = (prompt or 0) + written + (cached if report.cache_read_input_tokens else 0)
    if completion is None:
        completion = 0
    if prompt is None:
        prompt = max((total or 0) - completion, 0)
    elif total is not None and total > prompt + completion and seconds is None:
        # Reasoning on top of the completion (xAI, Gemini) is output too. Embeddings report
        # nothing but the prompt and a total.
        completion = total - prompt
    creation, written_details = report.cache_creation, before.cache_write_tokens_details
    long = (creation.ephemeral_1h_input_tokens if creation else 0) or (
        written_details.ttl_12h_tokens if written_details else 0
    )
    by_kind = before.cached_tokens_details or report.cached_tokens_details
    return Usage(
        prompt,
        completion,
        prompt + completion if total is None else total,
        cached,
        after.reasoning_tokens or 0,
        seconds or 0.0,
        before.audio_tokens or 0,
        before.image_tokens or 0,
        after.audio_tokens or 0,
        after.image_tokens or 0,
        written,
        long or 0,
        (by_kind.audio_tokens or 0) if by_kind else 0,
        (by_kind.image_tokens or by_kind.cached_image_tokens or 0) if by_kind else 0,
        before is not _NO_DETAILS and _is_split(before),
        after is not _NO_DETAILS and _is_split(after),
        by_kind is not None,
        units,
        (),
        _service_tier(report)
        if report.speed or report.inference_geo
        else report.service_tier or "",
        unreadable,
    )


def _service_tier(report: _Report) -> str:
    """Anthropic bills its fast mode, and inference that is bound to a region, at other prices."""
    tier = _FAST if report.speed == _FAST else report.service_tier or ""
    anywhere = report.inference_geo in (None, "", "global", "not_available")
    return tier if anywhere else f"{tier or 'standard'} in {report.inference_geo}"


def _is_split(details: _Details) -> bool:
    return not (
        details.text_tokens is None
        and details.audio_tokens is None
        and details.image_tokens is None
    )


def _server_tools(report: _Report) -> tuple[tuple[str, float], ...]:
    """Anthropic's server tools and Cohere's searches."""
    units: dict[str, float] = {}
    for name, number in (report.server_tool_use or {}).items():
        if isinstance(number, int) and number > 0:
            units[name.removesuffix("_requests")] = number
    if report.search_units:
        units["rerank_search"] = report.search_units
    return tuple(sorted(units.items()))


def _sound_report(text: bytes) -> tuple[_Report, str]:
    """The report without its details that cannot be read, and their names."""
    unreadable: list[str] = []
    report = _decode_sound(text, _Report, "", unreadable)
    if _TOTALS.intersection(unreadable):
        raise ValueError(f"no counts: {unreadable}")
    return report, ",".join(unreadable)


def _decode_sound(text: bytes, kind: Any, where: str, unreadable: list[str]) -> Any:
    """As much of a `kind` as can be read; what cannot is named in `unreadable`."""
    values = _decode_members(text)
    sound = kind()
    for name, decode, nested in _fields(kind):
        raw = bytes(values.get(name, b"null"))
        # PHP writes an empty object as an empty list.
        if _EMPTY_LIST.fullmatch(raw):
            continue
        try:
            setattr(sound, name, decode(raw))
        except DECODING_ERRORS:
            if nested is not None and raw.startswith(b"{"):
                inner = _decode_sound(raw, nested, f"{where}{name}.", unreadable)
                setattr(sound, name, inner)
            else:
                unreadable.append(where + name)
    return sound


@lru_cache
def _fields(kind: Any) -> list[tuple[str, Any, Any]]:
    """Name, decoder and (for an object of its own) type of each field."""
    return [
        (
            each.name,
            msgspec.json.Decoder(each.type).decode,
            next(
                (t for t in getattr(each.type, "__args__", ()) if hasattr(t, "__struct_fields__")),
                None,
            ),
        )
        for each in msgspec.structs.fields(kind)
    ]


def _text(raw: msgspec.Raw) -> str:
    """The string in `raw`, empty where it is none."""
    if bytes(raw).startswith(b'"'):
        with contextlib.suppress(ValueError):
            return _decode_text(raw)
    return ""


def _opens(raw: msgspec.Raw, bracket: bytes) -> bool:
    return bytes(raw).startswith(bracket)


def _count(raw: msgspec.Raw) -> int:
    return 0 if bytes(raw) in _EMPTY else _decode_count(raw)
