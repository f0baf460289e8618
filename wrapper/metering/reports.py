"""The `usage` object of a response, in every spelling: what it reports.

Invariant: a number that cannot be a count (negative, a fraction, a string, a boolean, over 1e12)
is never repaired: as one of the totals it makes the usage unreadable, as a detail it is named
(`Usage.unreadable`) while the sound numbers count.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from wrapper.metering.raw import DECODING_ERRORS, EMPTY_LIST
from wrapper.metering.usage import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)] | None
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None
_FAST = "fast"


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


class Report(msgspec.Struct):
    """The members of a `usage` object that are read."""

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

_decode_report = msgspec.json.Decoder(Report).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_usage(text: bytes, start: Report | None = None, tier: str = "") -> Usage | None:
    """The usage in the JSON object `text`, None where it reports nothing that is billed.

    `tier` is the service tier of the response, for a usage that names none.
    Raises DECODING_ERRORS where it is no object or its totals cannot be counts.
    """
    try:
        report, unreadable = _decode_report(text), ""
    except msgspec.ValidationError:
        report, unreadable = sound_report(text)
    if start is not None:
        for name in Report.__struct_fields__:
            if getattr(report, name) is None:
                setattr(report, name, getattr(start, name))
    return _usage(report, unreadable, tier)


def begun(start: Report) -> Usage | None:
    """What the beginning of a stream reports: its prompt; its output has only begun."""
    usage = _usage(start, "")
    return usage and replace(usage, completion=0, total=usage.prompt)


def _usage(report: Report, unreadable: str, tier: str = "") -> Usage | None:
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
        (
            _service_tier(report)
            if report.speed or report.inference_geo
            else report.service_tier or ""
        )
        or tier,
        unreadable,
    )


def _service_tier(report: Report) -> str:
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


def _server_tools(report: Report) -> tuple[tuple[str, float], ...]:
    """Anthropic's server tools and Cohere's searches."""
    units: dict[str, float] = {}
    for name, number in (report.server_tool_use or {}).items():
        if isinstance(number, int) and number > 0:
            units[name.removesuffix("_requests")] = number
    if report.search_units:
        units["rerank_search"] = report.search_units
    return tuple(sorted(units.items()))


def sound_report(text: bytes) -> tuple[Report, str]:
    """The report without its details that cannot be read, and their names."""
    unreadable: list[str] = []
    report = _decode_sound(text, Report, "", unreadable)
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
        if EMPTY_LIST.fullmatch(raw):
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
