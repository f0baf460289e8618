"""Audio both ways: transcriptions of uploads that nobody listened to, and silence as speech."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

from wrapper.simulator.answers.call import Call, prompt_words, streamed
from wrapper.simulator.answers.text import pieces
from wrapper.simulator.answers.use import media_use, put_use, transcription_use
from wrapper.simulator.replies import Event, Reply, Usage, encode, json_reply

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


def transcription(call: Call) -> Reply:
    """`POST audio/transcriptions` and `audio/translations`.

    A model with "whisper" in its name is billed by seconds (32,000 bytes each), others by
    tokens (one per second in, one per piece out). Groq tells no use.
    """
    upload = call.file()
    seconds = max(1, upload.size // _BYTES_PER_SECOND)
    content = pieces(call, "", None)
    if "whisper" in call.model or call.orders.seconds:
        usage = Usage(seconds=call.orders.seconds or seconds)
    else:
        usage = call.plain_usage(seconds, len(content))
    if call.form("stream") == "true":
        events = _transcript_events(call, content, usage)
        return streamed(call, events, usage)
    text = "".join(content)
    wanted = call.form("response_format", "json")
    if wanted in ("text", "srt", "vtt"):
        body = text.encode() + b"\n"
        return Reply(content_type="text/plain; charset=utf-8", body=body, planned=usage)
    made: dict[str, object] = {"text": text}
    if wanted == "verbose_json":
        made |= {"task": "transcribe", "language": "english", "duration": float(seconds)}
        made |= {"segments": []}
    if call.groq:
        made["x_groq"] = {"id": call.id}
        return json_reply(made, None, planned=usage)
    carried = put_use(call, made, usage, transcription_use(usage))
    return json_reply(made, carried, planned=usage)


def _transcript_events(call: Call, content: tuple[str, ...], usage: Usage) -> Iterator[Event]:
    for text in content:
        yield Event(encode({"type": "transcript.text.delta", "delta": text}))
    last: dict[str, object] = {"type": "transcript.text.done", "text": "".join(content)}
    carried = put_use(call, last, usage, transcription_use(usage))
    yield Event(encode(last), carried)


def speech(call: Call) -> Reply:
    """`POST audio/speech`: a RIFF file of silence in blocks, or events that end with the use."""
    call.need("model", "input")
    size = call.orders.size if call.orders.size is not None else 4 * _BLOCK
    usage = call.plain_usage(prompt_words(call.json["input"]), max(1, size // _BLOCK))
    if call.json.get("stream_format") == "sse":
        events = _speech_events(call, size, usage)
        return streamed(call, events, usage)
    kind = _TYPES.get(call.json.get("response_format") or "mp3", "audio/mpeg")
    return Reply(content_type=kind, blocks=_silence(size), planned=usage)


def _silence(size: int) -> Iterator[bytes]:
    """A WAV file that says in its list of facts that it is simulated."""
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
    carried = put_use(call, last, usage, media_use(usage))
    yield Event(encode(last), carried)
