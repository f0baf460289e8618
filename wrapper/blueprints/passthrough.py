"""What is relayed: chat, the unified OpenAI paths, and each provider's own.

Each handler reads as the sentence it is: who calls, what is asked, who can answer, relay.
"""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request

from wrapper import errors
from wrapper.proxy.model_access import (
    below_first_segment,
    checked_model,
    is_metered,
    is_restricted,
    takes_json,
)
from wrapper.proxy.visit import Visit

bp = Blueprint("api", __name__)

_CHAT = "/chat/completions"
ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@bp.post("/chat/completions")
@bp.post("/v1/chat/completions")
def chat() -> Response:
    """Chat, routed by `model`."""
    visit = Visit()
    principal = visit.principal()
    call = visit.read(lambda call, limit: call.read_json(limit.max_body_bytes))
    if not call.model:
        raise errors.InvalidBody("'model' is missing: name the model to call.", param="model")
    model = checked_model(principal, call, _CHAT)
    targets = visit.state.routes.for_model(model)
    return visit.relay([visit.unified(target, _CHAT, model) for target in targets])


@bp.route("/v1/<path:rest>", methods=ANY_METHOD)
def unified(rest: str) -> Response:
    """The OpenAI API, routed by `model` where the body has one, else to the `*` route."""
    visit = Visit()
    principal = visit.principal()
    call = visit.read(
        lambda call, limit: call.read_any(
            limit.max_body_bytes,
            limit.max_upload_bytes,
            need_model=True,
            only_readable=is_restricted(principal) or is_metered(call),
            only_json=takes_json(call),
        )
    )
    path = below_first_segment(call.target)
    model = checked_model(principal, call, path)
    routes = visit.state.routes
    # A file or a batch lives with one provider: another one could only say that it has none.
    targets = routes.for_model(model) if model else routes.catch_all()[:1]
    if not targets:
        raise errors.UnknownUrl("No route leads there: the configuration has no '*' route.")
    return visit.relay([visit.unified(target, path, model) for target in targets])


@bp.route("/<provider>/<path:rest>", methods=ANY_METHOD)
def passthrough(provider: str, rest: str) -> Response:
    """A provider's own API, byte for byte."""
    upstream = current_app.extensions["gateway"].current.upstreams.get(provider)
    if upstream is None:
        refuse_method(request.path)
        raise errors.UnknownUrl(f"Unknown request URL: {request.method} {unknown(provider)}.")
    visit = Visit()
    principal = visit.principal(client_credentials=upstream.provider.client_credentials)
    restricted = is_restricted(principal)
    call = visit.read(
        lambda call, limit: call.read_any(
            limit.max_body_bytes,
            limit.max_upload_bytes,
            need_model=restricted,
            only_readable=restricted,
            only_json=takes_json(call),
        )
    )
    path = below_first_segment(call.target)
    model = checked_model(principal, call, path)
    return visit.relay([visit.attempt(provider, path, model, rename=False)])


def refuse_method(path: str) -> None:
    """Raises MethodNotAllowed where the path is one of the gateway's own, for other methods."""
    rules = current_app.url_map.iter_rules()
    methods = {method for rule in rules if rule.rule == path for method in rule.methods or ()}
    if methods:
        raise errors.MethodNotAllowed(
            "This URL does not take that method.",
            headers=(("Allow", ", ".join(sorted(methods))),),
        )


def unknown(text: str) -> str:
    """What the caller typed, short and on one line."""
    return ascii("/" + text[:60] + "/...")
