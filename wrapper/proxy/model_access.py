"""Which model a request names, and whether the caller may use it.

Invariant: a key that may use some models only cannot reach another one, by its body, by a form's
field, by the path, or by an endpoint where the model is named where the gateway does not look.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import msgspec

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import yield_if_due
from wrapper.endpoints import ADMIN
from wrapper.proxy.request import MAX_LOOKED_INTO, ProxyRequest
from wrapper.runtime import RequestContext

_NULL = msgspec.Raw(b"null")


class _FurtherModels(msgspec.Struct):
    """Where a JSON body names models beside its own: OpenAI's tools (image generation), Groq's
    compound systems, and the fallbacks of gateways such as LiteLLM.
    """

    tools: msgspec.Raw = _NULL
    compound_custom: msgspec.Raw = _NULL
    fallbacks: msgspec.Raw = _NULL


_decode_further = msgspec.json.Decoder(_FurtherModels).decode


def requested_model(principal: Principal, request: ProxyRequest, path: str) -> str:
    """The model a request names, in its body or else in its path; empty where it names none.

    A request that names, or may hide, a model which this key may not use is refused with
    ModelNotAllowed or InvalidBody. Where body and path both name one the key must be allowed both:
    which of them a provider obeys is up to the provider.
    """
    if principal.is_restricted:
        _check_access(principal, request, model_in_path(path))
    return request.model or model_in_path(path)


def check_endpoint(context: RequestContext, principal: Principal, request: ProxyRequest) -> None:
    """Raises EndpointNotAllowed where the endpoint would get past the key's models or budget."""
    key, surface = principal.key, request.endpoint.surface
    if key is None or surface is None:
        return
    if surface == ADMIN.surface:
        raise errors.EndpointNotAllowed(
            "The administration of the provider's account is not open to the gateway's API keys."
        )
    subjects = context.snapshot.limits.of_key(key.name)
    has_budget = any(subject.limits.budget is not None for subject in subjects)
    if (principal.is_restricted or has_budget) and surface not in key.endpoints:
        raise errors.EndpointNotAllowed(
            "This API key has a budget or a list of models, and the gateway cannot see what this"
            f' endpoint uses. The operator can allow it: endpoints = ["{surface}"].'
        )


def _check_access(principal: Principal, request: ProxyRequest, named: str) -> None:
    models = (request.model, named, *request.further_models, *_models_inside(request))
    if not all(principal.may_use(model) for model in models if model):
        raise errors.ModelNotAllowed(
            "This API key may not call that model: GET /v1/models lists those it may.",
            param="model",
        )
    endpoint = request.endpoint
    if (endpoint.metered or endpoint.default_model) and not (request.model or named):
        raise errors.InvalidBody(
            "'model' is missing: this API key may call some models only, so name one.",
            param="model",
        )


def _models_inside(request: ProxyRequest) -> list[str]:
    if not isinstance(request.body, bytes) or not request.body:
        return []
    further = _decode_further(request.body)  # it has been read as an object already
    yield_if_due()
    tools = _items(_value("tools", further.tools), list)
    fallbacks = _items(_value("fallbacks", further.fallbacks), list)
    custom = _items(_value("compound_custom", further.compound_custom), dict)
    compound = _items(custom.get("models"), dict)
    yield_if_due()
    named = [each.get("model") for each in (*tools, *fallbacks) if isinstance(each, dict)]
    return [name for name in (*named, *fallbacks, *compound.values()) if isinstance(name, str)]


def _value(field: str, text: msgspec.Raw) -> Any:
    """What a field says that may name models. Raises InvalidBody where it cannot be looked into."""
    if len(text) > MAX_LOOKED_INTO:
        raise errors.InvalidBody(
            f"'{field}' is larger than {MAX_LOOKED_INTO} bytes: this API key may call some models"
            " only, and it may name others.",
            param=field,
        )
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise errors.InvalidBody(f"'{field}' cannot be read: {error}.", param=field) from None


def _items(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else kind()


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
