"""Which model a request names, and whether the caller may use it.

Invariant: a key that may use some models only cannot reach another one, by its body, by a form's
field, by the path or the query, or by an endpoint where the model is named where the gateway does
not look: of such a key everything that may name a model is allowed, or the request is refused.
"""

from __future__ import annotations

import msgspec

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import yield_if_due
from wrapper.config.problems import quote
from wrapper.endpoints import ADMIN, WITHOUT_MODEL
from wrapper.proxy.model_names import (
    NamesTooMany,
    model_in_path,
    names_in_body,
    names_in_path,
    names_in_query,
)
from wrapper.proxy.request import ProxyRequest
from wrapper.record import MAX_NAME
from wrapper.runtime import RequestContext


def requested_model(
    principal: Principal, request: ProxyRequest, path: str, *, base_path: str = ""
) -> str:
    """The model a request names, in its body or else in its path; empty where it names none.

    `path` is the one at the provider, with the OpenAI API below `base_path`. A request that names,
    or may hide, a model which this key may not use is refused with ModelNotAllowed or InvalidBody.
    Where body and path both name one the key must be allowed both: which of them a provider obeys
    is up to the provider.
    """
    if principal.is_restricted:
        _check_access(principal, request, path, base_path)
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
    has_budget = context.snapshot.limits.has_budget(key.name)
    if (principal.is_restricted or has_budget) and surface not in key.endpoints:
        raise errors.EndpointNotAllowed(
            "This API key has a budget or a list of models, and the gateway cannot see what this"
            f' endpoint uses. The operator can allow it: endpoints = ["{surface}"].'
        )


def not_priced(model: str, how: str = "", *, param: str = "model") -> errors.ModelNotPriced:
    """The error for a model without a known price; `how` is what follows its name. Empty: the
    request names none.
    """
    allow = 'unpriced = "allow" to the key'
    if not model:
        return errors.ModelNotPriced(
            "A key with a budget may call models with a known price only, and the request names"
            f" none. GET /v1/models lists the models. The operator can add {allow}.",
            param=param,
        )
    named = msgspec.json.encode(model).decode() if len(model) <= MAX_NAME else '"MODEL"'
    return errors.ModelNotPriced(
        f"The price of {quote(model)}{how} is not known, and a key with a budget may not call it."
        " Is the name right? GET /v1/models lists the models. The operator can add"
        f" [prices.{named}] to gateway.toml, or {allow}.",
        param=param,
    )


def _check_access(principal: Principal, request: ProxyRequest, path: str, base_path: str) -> None:
    endpoint = request.endpoint
    # Allowed by the operator, by name; else the paths of which the gateway knows what they do.
    is_known = endpoint.surface is not None or _begins_with_known(path, base_path)
    is_known = is_known or endpoint.metered or endpoint.default_model
    names = {request.model or "", *names_in_path(path), *names_in_query(request.query)}
    if isinstance(request.body, bytes) and request.body:
        try:
            names.update(names_in_body(request.body, elsewhere=not is_known))
            yield_if_due()
        except NamesTooMany as error:
            raise errors.InvalidBody(
                f"This API key may call some models only, and the body has {error}.",
                param=error.member[:MAX_NAME],
            ) from None
        except ValueError as error:
            raise errors.InvalidBody(f"The body cannot be read: {error}.") from None
    names.discard("")
    if not all(map(principal.may_use, names)):
        raise errors.ModelNotAllowed(
            "This API key may not call that model: GET /v1/models lists those it may.",
            param="model",
        )
    needs_model = endpoint.surface is None and (endpoint.metered or endpoint.default_model)
    if needs_model and not (request.model or model_in_path(path)):
        raise errors.InvalidBody(
            "'model' is missing: this API key may call some models only, so name one.",
            param="model",
        )
    if not (is_known or names or (request.method in _READING and not request.body)):
        raise errors.ModelNotAllowed(
            "This API key may call some models only, and the gateway cannot see which one this"
            " request uses.",
            param="model",
        )


_READING = frozenset(("GET", "HEAD", "OPTIONS"))


def _begins_with_known(path: str, base_path: str) -> bool:
    """Whether the path is one of the OpenAI API's that use no model unless they name it."""
    below = path.removeprefix(base_path)
    return path.startswith(base_path + "/") and below[1:].partition("/")[0] in WITHOUT_MODEL
