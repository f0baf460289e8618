"""The models that the provider has; a request for any other is refused with a 404."""

from __future__ import annotations

import re
from typing import Any

from wrapper.simulator.api.call import Call
from wrapper.simulator.response import ApiError, Response, json_response

NAMES = (
    "openai/gpt-oss-20b",
    "openai/gpt-oss-120b",
    "whisper-large-v3",
    "whisper-large-v3-turbo",
    "gpt-6-luna",
    "gpt-6-sol",
    "gpt-3.5-turbo-instruct",
    "gpt-4o-mini-tts",
    "gpt-image-1",
    "dall-e-2",
    "omni-moderation-latest",
    "text-embedding-3-large",
    "text-embedding-3-small",
    "tts-1",
    "whisper-1",
    "sim-model",
    "sim-large",
    "sim-embedding",
    "sim-transcribe",
    "sim-speech",
    "sim-image",
)
SHUTDOWNS = {"gpt-3.5-turbo-instruct": "2030-06-30"}
"""The days on which models are shut down, as OpenAI's list has them; Groq's has none."""

_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def check_model(call: Call) -> None:
    """A 404 for an unknown model, unless instructed otherwise (`any-model`).

    Known are the listed models, their dated versions and every fine-tuned model (`ft:`).
    """
    name = call.model
    known = not name or name.startswith("ft:") or _DATED.sub("", name) in NAMES
    if not known and not call.instructions.any_model:
        raise _not_found(name)


def model_list(call: Call) -> Response:
    """`GET models`."""
    return json_response({"object": "list", "data": [_model(call, name) for name in NAMES]})


def model(call: Call) -> Response:
    """`GET models/{id}`; a name that begins with "missing" is never found."""
    if call.model.startswith("missing"):
        raise _not_found(call.model)
    return json_response(_model(call, call.model))


def _not_found(name: str) -> ApiError:
    return ApiError(
        404,
        f"The model `{name}` does not exist or you do not have access to it. (This is a simulated"
        " provider: GET /v1/models lists what it imitates.)",
    )


def _model(call: Call, name: str) -> dict[str, Any]:
    made = {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
    if call.groq:
        made |= {"active": True, "context_window": 131_072, "public_apps": None}
    else:
        made["shutdown_date"] = SHUTDOWNS.get(name)
    return made
