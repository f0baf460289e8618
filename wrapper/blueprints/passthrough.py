"""`/<provider>/…`: a provider's own API, byte for byte."""

from __future__ import annotations

from flask import Blueprint, current_app
from flask import request as flask_request

from wrapper import errors
from wrapper.blueprints import chat
from wrapper.blueprints.openai import ANY_METHOD, without_version
from wrapper.endpoints import FIRST_SEGMENTS
from wrapper.proxy import (
    StreamedResponse,
    admit,
    authenticate,
    begin,
    forward,
    read_request,
    relay,
    resolve_provider,
    stream,
)
from wrapper.runtime import request_context

bp = Blueprint("passthrough", __name__)


@bp.route("/<provider>", methods=ANY_METHOD)
@bp.route("/<provider>/<path:rest>", methods=ANY_METHOD)
def passthrough(provider: str, rest: str = "") -> StreamedResponse:
    """Any path of one provider; else it may be one of the OpenAI API without `/v1`.

    In this order, so that no provider in a configuration disappears behind a path of that API.
    """
    if provider not in request_context().snapshot.upstreams:
        if provider in FIRST_SEGMENTS and flask_request.path != chat.PATH:
            return without_version()
        raise _unknown()
    context = begin()
    principal = authenticate(context, provider=provider)
    request = read_request(context, principal, routed=False)
    attempts = resolve_provider(context, principal, request, provider)
    attempts = admit(context, principal, request, attempts)
    forwarded = forward(context, request, attempts)
    if request.endpoint.socket:
        return relay(context, principal, request, forwarded, routed=False)
    return stream(context, request, forwarded)


def _unknown() -> errors.GatewayError:
    """The path is no provider's: it may be one of the gateway's own, for other methods."""
    method, path = flask_request.method, flask_request.path
    rules = [rule for rule in current_app.url_map.iter_rules() if rule.rule == path]
    methods = {method for rule in rules for method in rule.methods or ()}
    if methods:
        allowed = ", ".join(sorted(methods))
        return errors.MethodNotAllowed(
            "This URL does not take that method.", headers=(("Allow", allowed),)
        )
    quoted = ascii(path if len(path) <= 60 else path[:60] + "...")
    return errors.UnknownUrl(f"Unknown request URL: {method} {quoted}.")
