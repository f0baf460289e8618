"""`/v1/…`: the OpenAI API, routed by `model` where the request names one, else to the `*` route."""

from __future__ import annotations

from flask import Blueprint

from wrapper.proxy import (
    StreamedResponse,
    admit,
    authenticate,
    begin,
    forward,
    read_request,
    relay,
    resolve,
    stream,
)
from wrapper.runtime import RequestContext

bp = Blueprint("openai", __name__)

ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATH = "/v1/<path>"


@bp.route("/v1/<path:rest>", methods=ANY_METHOD)
def unified(rest: str) -> StreamedResponse:
    """Any path of the OpenAI API."""
    return _relay(begin())


def without_version() -> StreamedResponse:
    """A path of the OpenAI API without `/v1`: the same as with it, also in metrics and log."""
    context = begin()
    context.record.path = PATH
    return _relay(context, path=context.target[0])


def _relay(context: RequestContext, path: str | None = None) -> StreamedResponse:
    principal = authenticate(context)
    request = read_request(context, principal, routed=True)
    attempts = resolve(context, principal, request, path=path)
    attempts = admit(context, principal, request, attempts)
    forwarded = forward(context, request, attempts)
    if request.endpoint.socket:
        return relay(context, principal, request, forwarded, routed=True, path=path)
    return stream(context, request, forwarded)
