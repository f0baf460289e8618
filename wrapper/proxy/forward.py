"""Sends a request to its targets in order, until one responds.

For each target: prepare body and headers, send them, wait for the beginning of the response (see
`beginning`). A failure before that goes on to the next target where `failover_and_retry` allows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import msgspec
from msgspec.structs import replace

from wrapper import errors
from wrapper.cancellation import CLIENT_GONE, DRAINED, TIMEOUT, CancelScope, Interrupted
from wrapper.proxy import timeouts
from wrapper.proxy.admit import move
from wrapper.proxy.batches import BATCH
from wrapper.proxy.beginning import Beginning
from wrapper.proxy.body import RequestBody
from wrapper.proxy.deferred import VIDEO
from wrapper.proxy.failover_and_retry import may_fail_over, note_failure, refuses_stream_options
from wrapper.proxy.handshake import handshake_up
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.targets import UpstreamAttempt
from wrapper.record import is_provider_failure
from wrapper.runtime import RequestContext
from wrapper.upstream import UpstreamResponse, headers_up

clock = time.perf_counter

_STARTS_WORK = frozenset((BATCH, VIDEO))
_NOT_REPEATABLE = frozenset(("POST", "PATCH"))


class Forwarded(msgspec.Struct, frozen=True, eq=False):
    """The response of one target: its head has been read, and the first bytes of its body."""

    attempt: UpstreamAttempt
    response: UpstreamResponse
    first: bytes
    strip_usage: bool


def forward(
    context: RequestContext, request: ProxyRequest, attempts: list[UpstreamAttempt]
) -> Forwarded:
    """Send the request to the first target that responds.

    Raises UpstreamError where none did, ClientGone when the client left meanwhile, Drained when the
    worker stops; StoreUnavailable before a failover (see `move`); InvalidBody where the body of a
    target cannot be prepared; and the errors of a body that is streamed through (see
    `RequestBody`).
    """
    sent, hopeless = False, True
    body = request.body
    context.scope.watch_client(uploading=isinstance(body, RequestBody) and not body.ended)
    own_account = attempts[0].credential is not None
    headers = headers_up(context.environ, own_account=own_account)
    try:
        for index, attempt in enumerate(attempts):
            last = index == len(attempts) - 1
            try:
                if index:
                    move(context, attempt)
                forwarded = _attempt(context, request, attempt, headers)
                if last or not may_fail_over(request, forwarded.response.status):
                    beginning = Beginning(forwarded.response, forwarded.first)
                    if not beginning.is_enough:
                        forwarded = _read_beginning(context, request, forwarded, beginning)
                    if last or not beginning.is_failure() or request.body_is_consumed:
                        return forwarded
                    context.record.upstream_failed("error_event")
            except errors.UpstreamError as error:
                sent = sent or error.sent
                hopeless = hopeless and isinstance(error, errors.UpstreamAuth)
                if last or not may_fail_over(request, error):
                    raise
                continue
            hopeless = False
            forwarded.response.close()
    except errors.UpstreamError as error:
        # No time mends a missing credential.
        if hopeless or ((sent or error.sent) and request.method in _NOT_REPEATABLE):
            error.headers += (("x-should-retry", "false"),)
        raise
    raise AssertionError("a request has at least one target")


def _attempt(
    context: RequestContext,
    request: ProxyRequest,
    attempt: UpstreamAttempt,
    headers: dict[str, str],
) -> Forwarded:
    record, provider = context.record, attempt.upstream.provider
    record.attempted(provider.name, attempt.model)
    if request.endpoint.socket:
        headers = {**headers, **handshake_up(context.environ)}
    # A body that is streamed through waits for its client: that is not the provider's time.
    content = record.content
    began = clock() - (content.waited if content else 0.0)
    try:
        forwarded = _send(context, request, attempt, headers)
    except errors.UpstreamError as error:
        record.upstream_failed(error.reason)
        note_failure(context, attempt, error)
        raise
    finally:
        took = clock() - (content.waited if content else 0.0) - began
        record.upstream += took
    record.ttft = took
    response = forwarded.response
    if response.status >= 400 and is_provider_failure(response.status):
        record.upstream_failed(f"status_{response.status}")
        note_failure(context, attempt, response)
    elif attempt.upstream.cooldown.failures and attempt.credential is None:
        attempt.upstream.cooldown.recovered()
    if response.status == 401 and attempt.credential is None:
        response.close()
        record.upstream_failed(errors.UpstreamAuth.reason)
        raise errors.UpstreamAuth(
            f"Provider {provider.name!r} refused the gateway's own credential."
        )
    if not response.body.complete:
        timeouts.arm_response(context.scope, provider, response, took)
    return forwarded


def _read_beginning(
    context: RequestContext, request: ProxyRequest, forwarded: Forwarded, beginning: Beginning
) -> Forwarded:
    """The response with as much of its body as has to be there before its head goes down."""
    response = forwarded.response
    began = clock()
    try:
        with context.scope:
            return replace(forwarded, first=beginning.read())
    except Interrupted as interruption:
        response.close()
        error = _given_up(context, request, interruption.reason, response.status)
        if isinstance(error, errors.UpstreamError):
            context.record.upstream_failed(error.reason)
        raise error from None
    except errors.UpstreamError as error:
        context.record.upstream_failed(error.reason)
        raise
    finally:
        context.record.upstream += clock() - began


def _send(
    context: RequestContext,
    request: ProxyRequest,
    attempt: UpstreamAttempt,
    headers: dict[str, str],
) -> Forwarded:
    scope, upstream = context.scope, attempt.upstream
    if attempt.credential is None and not upstream.usable:
        raise errors.UpstreamAuth(
            f"The gateway has no credential for provider {upstream.provider.name!r}: "
            f"{upstream.provider.api_key_problem}.",
            sent=False,
        )
    rename = attempt.model if attempt.rename else None
    ask_usage = attempt.ask_usage and upstream.takes_stream_options is not False
    prepared = request.prepare(rename, headers, ask_usage=ask_usage)
    body, strip_usage = prepared.body, prepared.strip_usage
    outgoing: bytes | Iterable[bytes] | None = body
    upload = None
    if isinstance(body, RequestBody):
        outgoing = _Upload(body, scope)
        upload = timeouts.body_seconds(body.length, context.snapshot.settings.server)
    else:
        drains = upstream.provider.on_abort == "drain" and request.endpoint.metered
        scope.grace = upstream.provider.drain_timeout if drains else 0.0
        if request.endpoint.creates in _STARTS_WORK:
            # It goes on without the client, and cannot be booked before its id is known.
            scope.grace = upstream.provider.first_byte_timeout
    if scope.client_left:  # while another target was asked
        raise interrupted(context, CLIENT_GONE)
    timeouts.arm_first_byte(scope, upstream.provider, upload)
    response = None
    try:
        with scope:
            response = upstream.send(
                request.method, attempt.target, prepared.headers, outgoing, attempt.credential
            )
            if strip_usage:
                # Asked for `identity`; a provider may compress all the same, and then the usage
                # chunk could not be removed.
                response.unfold()
            first = response.read_first()
            refused = strip_usage and refuses_stream_options(upstream, response, first)
    except Interrupted as interruption:
        if interruption.sent or response is not None:
            raise _given_up(context, request, interruption.reason) from None
        raise interrupted(context, interruption.reason) from None
    if not refused:
        return Forwarded(attempt, response, first, strip_usage)
    response.close()
    again = _send(context, request, replace(attempt, ask_usage=False), headers)
    if again.response.status < 300:
        upstream.takes_stream_options = False
    return again


class _Upload:
    """A body that is streamed through; at its end the client's socket can be watched directly."""

    def __init__(self, body: RequestBody, scope: CancelScope) -> None:
        self.length = body.length
        self._body = body
        self._scope = scope

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body
        self._scope.watch_client()


def _given_up(
    context: RequestContext, request: ProxyRequest, reason: str, status: int = 200
) -> errors.GatewayError:
    """As `interrupted`, after the request was sent: what it used is unknown."""
    if reason != TIMEOUT and request.endpoint.metered and status < 300:
        context.record.unanswered()
    return interrupted(context, reason)


def interrupted(context: RequestContext, reason: str) -> errors.GatewayError:
    """The error for a wait that ended early; its outcome goes to the record."""
    if reason == CLIENT_GONE:
        context.record.aborted()
        return errors.ClientGone("The client has closed the connection.")
    if reason == DRAINED:
        context.record.drained()
        return errors.Drained()
    return errors.UpstreamTimeout("The provider did not respond in the time allowed.")
