"""The events of a WebSocket session, as far as they matter for what is used.

========================================================  ==========================================
event                                                     what it says
========================================================  ==========================================
session.created, .updated                                 the session's model, and the one that
                                                          transcribes its input
response.created                                          a response has begun: its id
response.done (Realtime API)                              its use: `response.usage`
response.completed, .incomplete, .failed (Responses API)  its use: `response.usage`
conversation.item.input_audio_transcription.completed     the use of one transcription: `usage`
========================================================  ==========================================

Sources: https://platform.openai.com/docs/api-reference/realtime-server-events and
https://platform.openai.com/docs/api-reference/responses-streaming

Nearly every event is a piece of text or sound: it is searched for the types above and not decoded.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import msgspec

from wrapper.metering.dialects import DECODING_ERRORS, read
from wrapper.metering.raw import NOTHING, text_of
from wrapper.metering.usage import NO_USAGE, TOO_LARGE, UNREADABLE, ExtractedUsage

_TRANSCRIBED: Final = "conversation.item.input_audio_transcription.completed"
_BEGUN: Final = "response.created"
_ENDED: Final = frozenset(
    ["response.done", "response.completed", "response.incomplete", "response.failed"]
)
_SESSION: Final = re.compile(r"(?:transcription_)?session\.(?:created|updated)")
_MATTERS: Final = re.compile(
    rb'"type"[ \t\r\n]*:[ \t\r\n]*"(?:response\.(?:created|done|completed|incomplete|failed)'
    rb"|(?:transcription_)?session\.(?:created|updated)"
    rb'|conversation\.item\.input_audio_transcription\.completed)"'
)


class SocketEvent(NamedTuple):
    """`kind` is "session", "begun", "ended" or "transcribed"; `id` is that of the response.

    `model` is the response's or the session's, `transcriber` the model that transcribes.
    """

    kind: str
    id: str = ""
    model: str = ""
    transcriber: str = ""
    extracted: ExtractedUsage = ExtractedUsage(None, None, NO_USAGE)


class _Response(msgspec.Struct):
    """Neither its output nor what may stand in place of a text is decoded."""

    id: msgspec.Raw = NOTHING
    model: msgspec.Raw = NOTHING
    status: msgspec.Raw = NOTHING


class _Event(msgspec.Struct):
    type: msgspec.Raw = NOTHING
    response: _Response | None = None


class _Session(msgspec.Struct):
    """Any object on the way to the models of a session. The provider repeats what the client has
    put beside them: it is not decoded.
    """

    session: msgspec.Raw = NOTHING
    audio: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING
    transcription: msgspec.Raw = NOTHING
    input_audio_transcription: msgspec.Raw = NOTHING
    model: msgspec.Raw = NOTHING


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_session = msgspec.json.Decoder(_Session).decode


def read_event(text: bytes | None, head: bytes) -> SocketEvent | None:
    """What a message of the server says; None where it says nothing of use.

    `text` is None where the message was too large to be kept: `head` has its beginning.
    """
    if text is None:
        found = _MATTERS.search(head)
        ended = found is not None and (b"done" in found[0] or b"complete" in found[0])
        lost = SocketEvent("ended", extracted=ExtractedUsage(None, None, TOO_LARGE))
        return lost if ended else None
    if _MATTERS.search(text) is None:
        return None
    try:
        return _read(text)
    except DECODING_ERRORS:
        return SocketEvent("ended", extracted=ExtractedUsage(None, None, UNREADABLE))


def _read(text: bytes) -> SocketEvent | None:
    event = _decode_event(text)
    kind, response = text_of(event.type), event.response or _Response()
    name, model = text_of(response.id), text_of(response.model)
    if kind == _BEGUN:
        return SocketEvent("begun", name, model)
    if kind in _ENDED:
        failed = text_of(response.status) == "failed"
        return SocketEvent("ended", name, model, extracted=_extracted(text, failed=failed))
    if kind == _TRANSCRIBED:
        return SocketEvent("transcribed", extracted=_extracted(text))
    if _SESSION.fullmatch(kind):
        session = bytes(_decode_session(text).session)
        return SocketEvent(
            "session",
            model=_text_at(session, "model"),
            transcriber=_text_at(session, "audio", "input", "transcription", "model")
            or _text_at(session, "input_audio_transcription", "model"),
        )
    return None


def _extracted(text: bytes, *, failed: bool = False) -> ExtractedUsage:
    found = read(text)
    reason = None if found.usage is not None else UNREADABLE if found.unreadable else NO_USAGE
    return ExtractedUsage(found.usage, found.model, reason, found.error or failed, terminal=True)


def _text_at(text: bytes, *names: str) -> str:
    """The text that the names lead to; empty where there is none."""
    for name in names:
        if not text.startswith(b"{"):
            return ""
        text = bytes(getattr(_decode_session(text), name))
    return text_of(msgspec.Raw(text))
