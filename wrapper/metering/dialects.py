"""Where each dialect reports its usage.

========================================  ====================================================
response                                  usage
========================================  ====================================================
chat, old completions (and stream chunk)  usage.{prompt,completion,total}_tokens
embeddings                                usage.{prompt,total}_tokens
responses, images, audio by tokens        usage.{input,output,total}_tokens
audio by length                           usage.{type: "duration", seconds}
responses stream                          response.usage of completed, incomplete and failed
Groq stream, last chunk                   x_groq.usage
========================================  ====================================================

Sources: https://platform.openai.com/docs/api-reference and https://console.groq.com/docs.

Only these members are decoded; the decoder skips everything else.

Invariant: a number that cannot be a count (negative, a fraction, a string, a boolean, over 1e12)
makes the usage unreadable; it is never repaired.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from wrapper.metering.usage import Usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)] | None
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None

_NOTHING = msgspec.Raw(b"")


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count = None
    audio_tokens: _Count = None
    image_tokens: _Count = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Count = None
    audio_tokens: _Count = None
    image_tokens: _Count = None


_NO_PROMPT_DETAILS = _PromptDetails()
_NO_COMPLETION_DETAILS = _CompletionDetails()


class _Report(msgspec.Struct):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    total_tokens: _Count = None
    input_tokens: _Count = None
    output_tokens: _Count = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None
    # The audio endpoints use the singular.
    input_token_details: _PromptDetails | None = None
    output_token_details: _CompletionDetails | None = None
    seconds: _Seconds = None


class _Body(msgspec.Struct):
    """A JSON response or the data of one event. Raw members are decoded only where needed."""

    model: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    x_groq: msgspec.Raw = _NOTHING
    response: msgspec.Raw = _NOTHING
    choices: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    type: msgspec.Raw = _NOTHING


_decode_body = msgspec.json.Decoder(_Body).decode
_decode_report = msgspec.json.Decoder(_Report).decode
_decode_text = msgspec.json.Decoder(str).decode

# What decoding raises: msgspec's errors and UnicodeDecodeError are ValueErrors, depth is not.
DECODING_ERRORS = (ValueError, RecursionError)

_EMPTY = (b"", b"null")
_EMPTY_LIST = re.compile(rb"\[[ \t\r\n]*\]")


@dataclass(slots=True)
class JsonUsage:
    """What one JSON text reports.

    `unreadable`: it has a usage that could not be read. `only_usage`: it is the additional chunk of
    `stream_options.include_usage`, with a usage and empty `choices`.
    """

    usage: Usage | None = None
    model: str | None = None
    error: bool = False
    unreadable: bool = False
    only_usage: bool = False


def read(text: bytes) -> JsonUsage:
    """What `text`, one JSON value, reports. Raises DECODING_ERRORS where it is no object."""
    body = _decode_body(text)
    found = JsonUsage()
    _read_level(body, found)
    nested, groq = bytes(body.response), bytes(body.x_groq)
    if nested.startswith(b"{"):
        _read_level(_decode_body(nested), found)
    # `x_groq.usage` counts only where `usage` is empty: outside streams it is about caches.
    if groq.startswith(b"{"):
        extra = _decode_body(groq)
        if found.usage is not None or found.unreadable:
            extra.usage = _NOTHING
        _read_level(extra, found)
    found.error = found.error or bytes(body.type) in (b'"error"', b'"response.failed"')
    found.only_usage = (
        bytes(body.usage).startswith(b"{")
        and _EMPTY_LIST.fullmatch(bytes(body.choices)) is not None
        and not found.error
    )
    return found


def _read_level(body: _Body, found: JsonUsage) -> None:
    model, usage = bytes(body.model), bytes(body.usage)
    if found.model is None and model.startswith(b'"'):
        with contextlib.suppress(ValueError):
            found.model = _decode_text(model) or None
    found.error = found.error or bytes(body.error) not in _EMPTY
    if usage in _EMPTY:
        return
    try:
        found.usage = read_usage(usage) or found.usage
    except DECODING_ERRORS:
        found.unreadable = True


def read_usage(text: bytes) -> Usage | None:
    """The usage in the JSON object `text`, None where it reports neither tokens nor seconds.

    Raises DECODING_ERRORS where it is no object or its numbers cannot be counts.
    """
    report = _decode_report(text)
    prompt = report.input_tokens if report.prompt_tokens is None else report.prompt_tokens
    completion = (
        report.output_tokens if report.completion_tokens is None else report.completion_tokens
    )
    total = report.total_tokens
    if prompt is None and completion is None and total is None and report.seconds is None:
        return None
    before = (
        report.prompt_tokens_details
        or report.input_tokens_details
        or report.input_token_details
        or _NO_PROMPT_DETAILS
    )
    after = (
        report.completion_tokens_details
        or report.output_tokens_details
        or report.output_token_details
        or _NO_COMPLETION_DETAILS
    )
    if completion is None:
        completion = 0
    if prompt is None:
        prompt = max((total or 0) - completion, 0)
    return Usage(
        prompt,
        completion,
        prompt + completion if total is None else total,
        before.cached_tokens or 0,
        after.reasoning_tokens or 0,
        report.seconds or 0.0,
        before.audio_tokens or 0,
        before.image_tokens or 0,
        after.audio_tokens or 0,
        after.image_tokens or 0,
    )
