"""Audio and images: JSON in and bytes out, or a form with files in."""

from __future__ import annotations

from wrapper.blueprints.openapi.calls import (
    binary_answer,
    json_answer,
    json_call,
    operation,
    with_stream,
)
from wrapper.blueprints.openapi.chat import events
from wrapper.blueprints.openapi.parts import (
    Json,
    boolean,
    file,
    form_request,
    integer,
    model,
    number,
    text,
)

_SOUND = ("audio/mpeg", "audio/wav", "audio/ogg", "audio/flac", "audio/aac")
_IMAGE = {
    "created": 1767225600,
    "data": [{"b64_json": "iVBORw0KGgo="}],
    "usage": {"input_tokens": 12, "output_tokens": 272, "total_tokens": 284},
}
_FORM = (
    "The form passes through byte for byte. The gateway only looks for the field `model`, "
    "wherever it stands; given twice with different values the form is refused."
)


def _speech() -> Json:
    fields = {
        "model": model("gpt-4o-mini-tts"),
        "input": text("What to say."),
        "voice": text("Whose voice.", examples=["alloy"]),
        "response_format": text("`mp3`, `wav`, `opus`, `flac`, `aac`, `pcm`."),
        "speed": number("1 is usual.", minimum=0.25, maximum=4),
    }
    request = json_call(
        fields,
        ["model", "input", "voice"],
        speech={
            "model": "gpt-4o-mini-tts",
            "input": "Hello, nice to meet you!",
            "voice": "alloy",
            "response_format": "wav",
        },
    )
    return operation(
        "createSpeech",
        "Audio",
        "Turn text into speech",
        binary_answer("The sound, as it is made.", *_SOUND),
        request=request,
    )


def _transcription_fields() -> Json:
    return {
        "file": file("The recording."),
        "model": model("whisper-large-v3-turbo"),
        "language": text("The language, in two letters.", examples=["en"]),
        "prompt": text("Words to expect.", examples=["Hello"]),
        "response_format": text("`json`, `text`, `srt`, `verbose_json`, `vtt`.", default="json"),
        "temperature": number("0 is sober.", minimum=0, maximum=1, default=0),
    }


def _transcriptions() -> Json:
    fields = _transcription_fields() | {
        "stream": boolean("Send the text in pieces.", default=False)
    }
    stream = events(
        {"type": "transcript.text.delta", "delta": "Hello"},
        {"type": "transcript.text.done", "text": "Hello", "usage": {"type": "tokens"}},
        end="",
    )
    return operation(
        "createTranscription",
        "Audio",
        "Write down what is said",
        with_stream(json_answer({"text": "Hello, nice to meet you!"}), stream),
        request=form_request(fields, ["file", "model"]),
        description=_FORM,
    )


def _translations() -> Json:
    return operation(
        "createTranslation",
        "Audio",
        "Write down in English what is said",
        json_answer({"text": "Hello, nice to meet you!"}),
        request=form_request(_transcription_fields(), ["file", "model"]),
        description=_FORM,
    )


def _generations() -> Json:
    fields = {
        "model": model("gpt-image-1"),
        "prompt": text("What to draw."),
        "n": integer("How many images.", minimum=1, default=1),
        "size": text("Width and height.", examples=["1024x1024"]),
        "stream": boolean("Send partial images as they are made."),
    }
    request = json_call(
        fields,
        ["prompt"],
        image={"model": "gpt-image-1", "prompt": "A lighthouse at night", "size": "1024x1024"},
    )
    stream = events({"type": "image_generation.completed", "b64_json": "iVBORw0KGgo="}, end="")
    return operation(
        "createImage",
        "Images",
        "Draw an image",
        with_stream(json_answer(_IMAGE), stream),
        request=request,
    )


def _edits() -> Json:
    fields = {
        "image": file("The image to change (PNG, WebP or JPEG)."),
        "prompt": text("What to change.", examples=["Add a lighthouse"]),
        "mask": file("Where: transparent is where to change."),
        "model": model("gpt-image-1"),
        "n": integer("How many images.", minimum=1, default=1),
        "size": text("Width and height.", examples=["1024x1024"]),
    }
    return operation(
        "editImage",
        "Images",
        "Change an image",
        json_answer(_IMAGE),
        request=form_request(fields, ["image", "prompt"]),
        description=_FORM,
    )


def _variations() -> Json:
    fields = {
        "image": file("The image to vary (a square PNG)."),
        "model": model("dall-e-2"),
        "n": integer("How many images.", minimum=1, default=1),
        "size": text("Width and height.", examples=["1024x1024"]),
    }
    return operation(
        "varyImage",
        "Images",
        "Vary an image",
        json_answer(_IMAGE),
        request=form_request(fields, ["image"]),
        description=_FORM,
    )


def paths() -> Json:
    """What is heard and seen."""
    return {
        "/v1/audio/speech": {"post": _speech()},
        "/v1/audio/transcriptions": {"post": _transcriptions()},
        "/v1/audio/translations": {"post": _translations()},
        "/v1/images/generations": {"post": _generations()},
        "/v1/images/edits": {"post": _edits()},
        "/v1/images/variations": {"post": _variations()},
    }
