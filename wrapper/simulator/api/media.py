"""Audio and images: transcriptions of any upload, silence as speech, always the same grey pixel."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

from wrapper.simulator.api.call import (
    Call,
    media_usage,
    prompt_words,
    put_usage,
    streamed,
    transcription_usage,
)
from wrapper.simulator.api.content import pieces
from wrapper.simulator.response import Event, Response, Usage, encode, json_response

_BYTES_PER_SECOND = 32_000
_BLOCK = 4096
_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def transcription(call: Call) -> Response:
    """`POST audio/transcriptions` and `audio/translations`.

    A model with "whisper" in its name is billed by seconds (32,000 bytes each), others by
    tokens (one per second in, one per piece out). Groq reports no usage but the duration, where
    `verbose_json` is asked for.
    """
    upload = call.file()
    seconds = max(1, upload.size // _BYTES_PER_SECOND)
    content = pieces(call, "")
    if "whisper" in call.model or call.instructions.seconds:
        usage = Usage(seconds=call.instructions.seconds or seconds)
    else:
        usage = call.plain_usage(seconds, len(content))
    if call.form("stream") == "true":
        events = _transcript_events(call, content, usage)
        return streamed(call, events, usage)
    text = "".join(content)
    wanted = call.form("response_format", "json")
    if wanted in ("text", "srt", "vtt"):
        body = text.encode() + b"\n"
        return Response(content_type="text/plain; charset=utf-8", body=body, planned=usage)
    made: dict[str, object] = {"text": text}
    if wanted == "verbose_json":
        duration = float(usage.seconds or seconds)
        made |= {"task": "transcribe", "language": "english", "duration": duration}
        made |= {"segments": []}
    if call.groq:
        made["x_groq"] = {"id": call.id}
        return json_response(made, usage if "duration" in made else None, planned=usage)
    carried = put_usage(call, made, usage, transcription_usage(usage))
    return json_response(made, carried, planned=usage)


def _transcript_events(call: Call, content: tuple[str, ...], usage: Usage) -> Iterator[Event]:
    for text in content:
        yield Event(encode({"type": "transcript.text.delta", "delta": text}))
    last: dict[str, object] = {"type": "transcript.text.done", "text": "".join(content)}
    carried = put_usage(call, last, usage, transcription_usage(usage))
    yield Event(encode(last), carried)


def speech(call: Call) -> Response:
    """`POST audio/speech`: a WAV file of silence in blocks, or events that end with the usage.

    The file reports nothing: tts-1 is billed by the characters of the text, others by tokens.
    """
    call.need("model", "input")
    size = call.instructions.size if call.instructions.size is not None else 4 * _BLOCK
    usage = call.plain_usage(prompt_words(call.json["input"]), max(1, size // _BLOCK))
    if call.json.get("stream_format") == "sse":
        events = _speech_events(call, size, usage)
        return streamed(call, events, usage)
    kind = _TYPES.get(call.json.get("response_format") or "mp3", "audio/mpeg")
    if not call.model.startswith("tts-1"):
        return Response(content_type=kind, blocks=_silence(size), planned=usage)
    spoken = Usage(characters=len(call.json["input"]))
    return Response(content_type=kind, blocks=_silence(size), usage=spoken, planned=spoken)


def _silence(size: int) -> Iterator[bytes]:
    """A WAV file whose INFO list says that it is simulated."""
    facts = b"LIST" + struct.pack("<I", 32) + b"INFOISFT" + struct.pack("<I", 20)
    facts += b"simulated silence".ljust(20, b"\0")
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16)
    start = b"WAVE" + form + facts + b"data" + struct.pack("<I", max(0, size - 96))
    head = (b"RIFF" + struct.pack("<I", max(0, size - 8)) + start)[:size]
    yield head
    left = size - len(head)
    while left > 0:
        yield bytes(min(left, _BLOCK))
        left -= _BLOCK


def _speech_events(call: Call, size: int, usage: Usage) -> Iterator[Event]:
    for block in _silence(size):
        text = base64.b64encode(block).decode()
        yield Event(encode({"type": "speech.audio.delta", "audio": text}))
    last: dict[str, object] = {"type": "speech.audio.done"}
    carried = put_usage(call, last, usage, media_usage(usage))
    yield Event(encode(last), carried)


_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)
_TOKENS_PER_IMAGE = 16
_FORMAT = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}


def images(call: Call) -> Response:
    """`POST images/generations`, and edits and variations, which are multipart."""
    prompt = call.json.get("prompt") or call.form("prompt")
    count = call.number("n", 1, 10)
    usage = call.plain_usage(prompt_words(prompt), _TOKENS_PER_IMAGE * count)
    if call.json.get("stream") or call.form("stream") == "true":
        events = _image_events(call, usage)
        return streamed(call, events, usage)
    one: dict[str, Any] = {"b64_json": _PIXEL, "revised_prompt": "a simulated image"}
    if call.json.get("response_format") == "url":
        one = {"url": "data:image/png;base64," + _PIXEL}
    made = {"created": call.created, **_FORMAT, "data": [one] * count}
    carried = put_usage(call, made, usage, media_usage(usage))
    return json_response(made, carried, planned=usage)


def _image_events(call: Call, usage: Usage) -> Iterator[Event]:
    same = {"b64_json": _PIXEL, "created_at": call.created, **_FORMAT}
    partial = {"type": "image_generation.partial_image", **same, "partial_image_index": 0}
    yield Event(encode(partial), None, b"image_generation.partial_image")
    last = {"type": "image_generation.completed", **same}
    carried = put_usage(call, last, usage, media_usage(usage))
    yield Event(encode(last), carried, b"image_generation.completed")
