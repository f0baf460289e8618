"""Where a request goes: the upstream attempts that may be made for it, in their order."""

from __future__ import annotations

import msgspec

from wrapper import errors
from wrapper.auth import Credential, Principal
from wrapper.proxy.batches import BATCH, check_batch
from wrapper.proxy.handshake import with_query_model
from wrapper.proxy.model_access import check_endpoint, requested_model
from wrapper.proxy.model_names import with_model
from wrapper.proxy.objects import targets_of_object
from wrapper.proxy.request import ProxyRequest
from wrapper.runtime import RequestContext
from wrapper.upstream import Upstream


class UpstreamAttempt(msgspec.Struct, frozen=True, eq=False):
    """One target of a request: the provider, the path there, and what has to be changed."""

    upstream: Upstream
    target: str  # raw path and query on the provider's origin
    model: str  # the model's name at this provider, empty where the request names none
    rename: bool = False  # the body's model has to be changed to `model`
    credential: Credential | None = None  # the caller's own, in place of the gateway's
    ask_usage: bool = False  # the stream reports its usage only when asked


def resolve(
    context: RequestContext, principal: Principal, request: ProxyRequest, *, path: str | None = None
) -> list[UpstreamAttempt]:
    """The targets of the route for the request's model, `path` being below the base URL.

    Where a target uses another name for the model, that one value is changed, in the body or, where
    the body has none, in the path. Raises EndpointNotAllowed, ModelNotAllowed,
    InvalidBody, ModelNotFound, UnknownUrl.
    """
    if path is None:
        path = below_first_segment(request.target)
    if request.endpoint.surface is not None and request.endpoint.creates != BATCH:
        check_endpoint(context, principal, request)
    model = requested_model(principal, request, path)
    routes = context.snapshot.routes
    # An object lives at one provider: another one could only respond that it has none.
    targets = routes.for_model(model) if model else routes.catch_all()[:1]
    if request.objects or not model:
        targets = targets_of_object(context, request, path, targets, model)
    if not targets:
        raise errors.UnknownUrl("No route leads there: the configuration has no '*' route.")
    attempts = []
    for target in targets:
        upstream, name = context.snapshot.upstreams[target.provider], target.model or model
        rename = name != model
        changed = with_model(path, name) if rename and request.model is None else path
        attempts.append(
            _attempt_at(context, request, upstream, upstream.base_path + changed, name, rename)
        )
    if request.endpoint.creates == BATCH:
        check_batch(context, principal, request, attempts[0].upstream)
        return attempts[:1]  # no other provider has the file
    if request.endpoint.socket:
        return _with_sockets(attempts)
    if len(attempts) == 1 or request.objects:  # the provider that has the objects stays the first
        return attempts
    return cooling_last(attempts)


def cooling_last(attempts: list[UpstreamAttempt]) -> list[UpstreamAttempt]:
    """The attempts in their order, those at providers in a cooldown behind the others."""
    return sorted(attempts, key=lambda attempt: attempt.upstream.cooldown.is_on)


def resolve_provider(
    context: RequestContext, principal: Principal, request: ProxyRequest, provider: str
) -> list[UpstreamAttempt]:
    """The one target of a provider's own path, with the caller's own credential if they use one."""
    path = below_first_segment(request.target)
    if request.endpoint.surface is not None and request.endpoint.creates != BATCH:
        check_endpoint(context, principal, request)
    upstream, credential = context.snapshot.upstreams[provider], principal.credential
    model = requested_model(principal, request, path, base_path=upstream.base_path)
    attempt = _attempt_at(context, request, upstream, path, model, credential=credential)
    if request.endpoint.creates == BATCH:
        check_batch(context, principal, request, attempt.upstream)
    return _with_sockets([attempt]) if request.endpoint.socket else [attempt]


def _with_sockets(attempts: list[UpstreamAttempt]) -> list[UpstreamAttempt]:
    """Those at providers that take WebSockets. Raises UpgradeRequired where there is none."""
    found = [attempt for attempt in attempts if attempt.upstream.provider.websockets]
    if not found:
        raise errors.UpgradeRequired(
            f"Provider {attempts[0].upstream.provider.name!r} takes no WebSockets: use HTTP."
        )
    return found


def _attempt_at(
    context: RequestContext,
    request: ProxyRequest,
    upstream: Upstream,
    path: str,
    model: str,
    rename: bool = False,
    credential: Credential | None = None,
) -> UpstreamAttempt:
    settings = context.snapshot.settings
    if settings.stand_in and credential is None and not upstream.usable:
        upstream = context.snapshot.upstreams[settings.stand_in]  # the demo provider
    ask_usage = (
        request.stream
        and request.endpoint.ask_stream_usage
        and upstream.provider.stream_usage == "ask"
        and settings.server.metering
    )
    query = request.query
    if rename and request.endpoint.socket:
        query = with_query_model(query, model)
    return UpstreamAttempt(upstream, path + query, model, rename, credential, ask_usage)


def below_first_segment(target: str) -> str:
    """The raw path without its first segment."""
    return "/" + target[1:].partition("/")[2]
