"""`/v1/…`: the OpenAI API, routed by `model` where the request names one, else to the `*` route."""

from __future__ import annotations

from flask import Blueprint, Response

from wrapper.proxy import admit, authenticate, begin, forward, read_request, resolve, stream

bp = Blueprint("openai", __name__)

ANY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@bp.route("/v1/<path:rest>", methods=ANY_METHOD)
def unified(rest: str) -> Response:
    """Any path of the OpenAI API."""
    context = begin()
    principal = authenticate(context)
    request = read_request(context, principal, routed=True)
    attempts = resolve(context, principal, request)
    attempts = admit(context, principal, request, attempts)
    return stream(context, request, forward(context, request, attempts))
