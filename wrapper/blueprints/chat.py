"""`POST /chat/completions`: chat, routed by `model`."""

from __future__ import annotations

from flask import Blueprint

from wrapper import errors
from wrapper.proxy import (
    StreamedResponse,
    admit,
    authenticate,
    begin,
    forward,
    read_request,
    resolve,
    stream,
)

bp = Blueprint("chat", __name__)

PATH = "/chat/completions"


@bp.post("/chat/completions")
@bp.post("/v1/chat/completions")
def chat() -> StreamedResponse:
    """Chat, routed by `model`."""
    context = begin()
    principal = authenticate(context)
    request = read_request(context, principal, routed=True)
    if not request.body:
        raise errors.InvalidJson("The body is empty: send a JSON object.")
    if not request.model:
        raise errors.InvalidBody("'model' is missing: name the model to call.", param="model")
    attempts = resolve(context, principal, request, path=PATH)
    attempts = admit(context, principal, request, attempts)
    return stream(context, request, forward(context, request, attempts))
