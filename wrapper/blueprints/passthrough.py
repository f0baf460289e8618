"""`/<provider>/…`: a provider's own API, byte for byte."""

from __future__ import annotations

from flask import Blueprint, Response, current_app
from flask import request as flask_request

from wrapper import errors
from wrapper.blueprints.openai import ANY_METHOD
from wrapper.proxy import (
    admit,
    authenticate,
    begin,
    forward,
    read_request,
    resolve_provider,
    stream,
)
from wrapper.runtime import current_runtime

bp = Blueprint("passthrough", __name__)


@bp.route("/<provider>/<path:rest>", methods=ANY_METHOD)
def passthrough(provider: str, rest: str) -> Response:
    """Any path of one provider."""
    if provider not in current_runtime().snapshot.upstreams:
        raise _unknown(provider)
    context = begin()
    principal = authenticate(context, provider=provider)
    request = read_request(context, principal, routed=False)
    attempts = resolve_provider(context, principal, request, provider)
    attempts = admit(context, principal, request, attempts)
    return stream(context, request, forward(context, request, attempts))


def _unknown(first_segment: str) -> errors.GatewayError:
    """The path is no provider's: it may be one of the gateway's own, for other methods."""
    method, path = flask_request.method, flask_request.path
    rules = [rule for rule in current_app.url_map.iter_rules() if rule.rule == path]
    methods = {method for rule in rules for method in rule.methods or ()}
    if methods:
        allowed = ", ".join(sorted(methods))
        return errors.MethodNotAllowed(
            "This URL does not take that method.", headers=(("Allow", allowed),)
        )
    quoted = ascii("/" + first_segment[:60] + "/...")
    return errors.UnknownUrl(f"Unknown request URL: {method} {quoted}.")
