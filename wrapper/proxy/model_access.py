"""Which model a call names, and whether the caller may have it.

The rule protected here: a key that may call some models only cannot get at another one, by its
body, by a form's field, by the path, or by an endpoint where the model is named out of sight.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from wrapper import errors
from wrapper.auth import Principal
from wrapper.proxy.request import Call

# Where a POST's answer reports what it used. Others (files, batches, …) use nothing by themselves.
_METERED = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/responses/compact",
    "/embeddings",
    "/audio/transcriptions",
    "/audio/translations",
    "/audio/speech",
    "/images/generations",
    "/images/edits",
    "/images/variations",
)
# Where a body is JSON whatever its type says: what a provider that does not look at the type reads
# must not be hidden from the gateway in something else.
_JSON_ONLY = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/responses/compact",
    "/embeddings",
    "/audio/speech",
    "/images/generations",
)
# Where a POST that names no model gets one that the provider chooses, at a price.
_DEFAULT_MODELS = ("/videos",)
# Where a POST names its models out of our sight: in a file, in an object that the provider keeps,
# deep in the body, or for a session with the provider.
_UNSEEN_MODELS = (
    "/api/copy",
    "/api/create",
    "/batches",
    "/chatkit/sessions",
    "/graders/run",
    "/realtime/calls",
    "/realtime/client_secrets",
    "/realtime/sessions",
    "/realtime/transcription_sessions",
    "/remix",
    "/runs",
    "/videos/edits",
    "/videos/extensions",
)

# Where a POST's answer is an object that the provider keeps: what it tells of use was counted when
# it was made.
_KEPT = re.compile(
    r"/(?:chat/completions/[^/]+|responses/[^/]+/cancel|runs/[^/]+(?:/cancel)?|batches(?:/.*)?)$"
)


class _Further(msgspec.Struct):
    """Where a JSON body names models beside its own: OpenAI's tools (image generation), Groq's
    compound systems, and the fallbacks of gateways such as LiteLLM.
    """

    tools: Any = None
    compound_custom: Any = None
    fallbacks: Any = None


_decode_further = msgspec.json.Decoder(_Further).decode


def allow(principal: Principal, model: str) -> None:
    """Raises ModelNotAllowed where the key's `models` do not have it."""
    if not principal.may_call(model):
        raise errors.ModelNotAllowed(
            "This API key may not call that model: GET /v1/models lists those it may.",
            param="model",
        )


def is_restricted(principal: Principal) -> bool:
    """Whether the key may call some models only."""
    return principal.models != ("*",)


def checked_model(principal: Principal, call: Call, path: str) -> str:
    """The model a call asks for, in its body or else in its path; empty where it names none.

    A call that names, or may hide, a model which this key may not call is refused. Where body
    and path both name one the key must be allowed both: which of them a provider obeys is its
    own affair.
    """
    named = model_in_path(path)
    for model in (call.model, named):
        if model:
            allow(principal, model)
    if is_restricted(principal):
        for model in (*call.further_models, *_models_inside(call)):
            allow(principal, model)
        if call.method == "POST":
            _refuse_hidden_model(call, named)
    return call.model or named


def _models_inside(call: Call) -> list[str]:
    if not isinstance(call.body, bytes) or not call.body:
        return []
    further = _decode_further(call.body)  # it has been read as an object already
    tools, fallbacks = _items(further.tools, list), _items(further.fallbacks, list)
    compound = _items(_items(further.compound_custom, dict).get("models"), dict)
    named = [each.get("model") for each in (*tools, *fallbacks) if isinstance(each, dict)]
    return [name for name in (*named, *fallbacks, *compound.values()) if isinstance(name, str)]


def _items(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else kind()


def _refuse_hidden_model(call: Call, named: str) -> None:
    if call.path.endswith(_UNSEEN_MODELS):
        raise errors.ModelNotAllowed(
            "This API key may call some models only, and here the gateway cannot see which.",
            param="model",
        )
    needs_model = is_metered(call) or call.path.endswith(_DEFAULT_MODELS)
    if needs_model and not (call.model or named):
        raise errors.InvalidBody(
            "'model' is missing: this API key may call some models only, so name one.",
            param="model",
        )


def model_in_path(path: str) -> str:
    """The model in old OpenAI and Azure paths: `/engines/{model}/…`, `/deployments/{model}/…`.

    Also that of `/models/{model}`, whose name may hold slashes. Empty where there is none.
    """
    start, end = _model_span(path)
    return unquote(path[start:end])


def with_model(path: str, model: str) -> str:
    """The raw path with another model in it, where it has one."""
    start, end = _model_span(path)
    safe = ":" if path[end:] else "/:"  # a slash in a model's name ends no segment
    return path[:start] + quote(model, safe=safe) + path[end:] if end > start else path


def _model_span(path: str) -> tuple[int, int]:
    start = 0
    for part in path.split("/")[:-1]:
        start += len(part) + 1
        kind = unquote(part).lower()
        if kind == "models":
            return start, len(path)
        if kind in ("engines", "deployments"):
            end = path.find("/", start)
            return start, len(path) if end < 0 else end
    return 0, 0


def is_metered(call: Call) -> bool:
    """Whether a 2xx to this call should say what it used."""
    return call.method == "POST" and call.path.endswith(_METERED)


def uses_something(call: Call) -> bool:
    """Whether what a 2xx to this call reports was used by this call."""
    return call.method == "POST" and not _KEPT.search(call.path)


def takes_json(call: Call) -> bool:
    """Whether a body there is JSON, whatever its type says."""
    return call.method == "POST" and call.path.endswith(_JSON_ONLY)


def below_first_segment(target: str) -> str:
    """The raw path without its first segment, in whichever spelling that came."""
    return "/" + target[1:].partition("/")[2]
