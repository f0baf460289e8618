"""The models it claims to have. It answers for every other name too."""

from __future__ import annotations

from typing import Any

from wrapper.simulator.answers.call import Call
from wrapper.simulator.faults import split_model
from wrapper.simulator.replies import Refusal, Reply, json_reply

NAMES = (
    "openai/gpt-oss-20b",  # what the first start's curl line asks for
    "openai/gpt-oss-120b",
    "gpt-6-luna",
    "gpt-6-sol",
    "sim-model",
    "sim-large",
    "sim-embedding",
    "sim-transcribe",
    "sim-speech",
    "sim-image",
)


def model_list(call: Call) -> Reply:
    """`GET models`."""
    return json_reply({"object": "list", "data": [_model(call, name) for name in NAMES]})


def model(call: Call) -> Reply:
    """`GET models/{id}`; a name that begins with "missing" is not found."""
    name, _ = split_model("/".join(call.arguments))
    if name.startswith("missing"):
        raise Refusal(404, f"The model '{name}' does not exist.")
    return json_reply(_model(call, name))


def _model(call: Call, name: str) -> dict[str, Any]:
    made = {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
    if call.groq:
        made |= {"active": True, "context_window": 131_072, "public_apps": None}
    return made
