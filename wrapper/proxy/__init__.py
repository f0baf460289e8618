"""The path of a proxy request, from top to bottom; a handler calls these in order.

    begin            the request counts as a proxy request       here
    authenticate     the key's header → principal                auth
    read_request     endpoint, model, body                       request, body
    resolve          model access, route → upstream attempts     model_access, model_names,
                                                                 targets, objects
    admit            limits and budgets: reserve, or refuse      admit, batches
    forward          failover over the attempts                  forward, failover_and_retry,
                                                                 beginning
    stream           bytes down, usage read beside them          response, pump, objects,
                                                                 deferred
    relay            in place of `stream`, a WebSocket: bytes    handshake, websocket,
                     both ways, usage read beside them           socket_messages, socket_usage
    finalize         price → ledger → metrics → log, once        finalize

`finalize` is called by no handler: it runs when the response is closed (`app`).

Data goes down this list and never back up. Each step returns a value; the one mutable thing is the
request record: outcomes go through its methods, measurements are assigned. `timeouts` has the table
of all timeouts, and arms a request's deadlines on the way.
"""

from __future__ import annotations

from wrapper.auth import Credential, Principal
from wrapper.proxy.admit import admit
from wrapper.proxy.forward import forward
from wrapper.proxy.handshake import authorization_of
from wrapper.proxy.request import read_request
from wrapper.proxy.response import StreamedResponse, stream
from wrapper.proxy.targets import resolve, resolve_provider
from wrapper.proxy.websocket import relay
from wrapper.runtime import RequestContext, request_context

__all__ = [
    "StreamedResponse",
    "admit",
    "authenticate",
    "begin",
    "forward",
    "read_request",
    "relay",
    "resolve",
    "resolve_provider",
    "stream",
]


def begin() -> RequestContext:
    """The request is a proxy request: it counts for its key and has to be settled."""
    context = request_context()
    context.record.is_proxy_request = True
    context.runtime.telemetry.proxy_request_started()
    return context


def authenticate(context: RequestContext, *, provider: str | None = None) -> Principal:
    """Authenticate the caller, before any byte of the body is read. Raises the errors of `auth`.

    On a `provider`'s own paths the key may stand in the header that the provider has for it, and
    callers may come with a credential of their own.
    """
    snapshot, environ = context.snapshot, context.environ
    settings = None if provider is None else snapshot.upstreams[provider].provider
    authorization = environ.get("HTTP_AUTHORIZATION")
    if authorization is None and "HTTP_SEC_WEBSOCKET_PROTOCOL" in environ:
        authorization = authorization_of(environ["HTTP_SEC_WEBSOCKET_PROTOCOL"])
    if settings is None or settings.auth == "bearer":
        principal = snapshot.keyring.authenticate(
            authorization, client_credentials=settings is not None and settings.client_credentials
        )
    else:
        given = environ.get("HTTP_" + settings.auth.upper().replace("-", "_"), "")
        principal = snapshot.keyring.authenticate_either(
            authorization,
            Credential(settings.auth, given),
            client_credentials=settings.client_credentials,
        )
    context.record.api_key = principal.name
    return principal
