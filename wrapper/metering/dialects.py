"""Where the dialects put their numbers.

========================================  ====================================================
answer                                    usage
========================================  ====================================================
chat, old completions (and stream chunk)  usage.{prompt,completion,total}_tokens
embeddings                                usage.{prompt,total}_tokens
responses, images, audio by tokens        usage.{input,output,total}_tokens
audio by length                           usage.{type: "duration", seconds}
responses stream                          response.usage of completed, incomplete and failed
Groq stream, last chunk                   x_groq.usage
========================================  ====================================================

Sources: https://platform.openai.com/docs/api-reference and https://console.groq.com/docs.

Only these members are decoded, everything else is skipped over by the decoder. The rule
protected here: a number that cannot be a count (negative, a fraction, a string, a boolean, over
1e12) makes a report unreadable; it is never repaired.
"""

from __future__ import annotations

import re
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
    # Audio spells it in the singular.
    input_token_details: _PromptDetails | None = None
    output_token_details: _CompletionDetails | None = None
    seconds: _Seconds = None


class _Answer(msgspec.Struct):
    """A JSON answer or the data of one event. Raw members are looked at only where needed."""

    model: msgspec.Raw = _NOTHING
    usage: msgspec.Raw = _NOTHING
    x_groq: msgspec.Raw = _NOTHING
    response: msgspec.Raw = _NOTHING
    choices: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    type: msgspec.Raw = _NOTHING


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_report = msgspec.json.Decoder(_Report).decode
_decode_text = msgspec.json.Decoder(str).decode

# What decoding raises: msgspec's errors and UnicodeDecodeError are ValueErrors, depth is not.
DECODING_ERRORS = (ValueError, RecursionError)

_EMPTY = (b"", b"null")
_EMPTY_LIST = re.compile(rb"\[[ \t\r\n]*\]")


class Seen:
    """What one JSON text says. `unreadable`: it has a usage that could not be read."""

    __slots__ = ("error", "model", "only_usage", "unreadable", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.model: str | None = None
        self.error = False
        self.unreadable = False
        # The extra chunk of `stream_options.include_usage`: a usage and empty `choices`.
        self.only_usage = False


def read(text: bytes) -> Seen:
    """What `text`, one JSON value, says. Raises DECODING_ERRORS where it is not an object."""
    answer = _decode_answer(text)
    seen = Seen()
    _read_level(answer, seen)
    nested = bytes(answer.response)
    if nested.startswith(b"{"):
        _read_level(_decode_answer(nested), seen)
    groq = bytes(answer.x_groq)
    # Groq's own place counts only where the usual one is empty: in an unary answer it holds
    # numbers about caches.
    if groq.startswith(b"{"):
        extra = _decode_answer(groq)
        seen.error = seen.error or bytes(extra.error) not in _EMPTY
        if seen.usage is None and not seen.unreadable:
            _read_usage(bytes(extra.usage), seen)
    seen.error = seen.error or bytes(answer.type) in (b'"error"', b'"response.failed"')
    seen.only_usage = (
        bytes(answer.usage).startswith(b"{")
        and _EMPTY_LIST.fullmatch(bytes(answer.choices)) is not None
        and not seen.error
    )
    return seen


def _read_level(answer: _Answer, seen: Seen) -> None:
    if seen.model is None:
        seen.model = _model(bytes(answer.model))
    seen.error = seen.error or bytes(answer.error) not in _EMPTY
    _read_usage(bytes(answer.usage), seen)


def _read_usage(text: bytes, seen: Seen) -> None:
    if text in _EMPTY:
        return
    try:
        usage = read_usage(text)
    except DECODING_ERRORS:
        seen.unreadable = True
        return
    if usage is not None:
        seen.usage = usage


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


def _model(text: bytes) -> str | None:
    if not text.startswith(b'"'):
        return None
    try:
        return _decode_text(text) or None
    except ValueError:
        return None
