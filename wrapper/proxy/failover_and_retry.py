"""When a request is sent again: retry at the same provider, failover to the next target.

=================================  =========================  ======================================
failure                            what was sent              what happens
=================================  =========================  ======================================
no connection (DNS, TCP, TLS)      nothing                    failover
`max_connections` in use           nothing                    failover
the provider's account has no      nothing                    failover
room in its limits
no credential for the provider     nothing                    failover
no beginning of a response in      the request                failover
time
429 or 5xx                         the request                failover; the last target's response
                                                              goes to the client
a 2xx stream whose first event is  the request                failover, as for 5xx; not where the
an error                                                      error blames the request
broken response, 401 for the       the request                no failover: what the provider did
gateway's own credential                                      with the request is unknown, or the
                                                              configuration is wrong
the body was streamed through      part of the body           no failover: it cannot be sent again
the response's head went to the    the request                no failover: the response has begun
client
a kept connection was dead before  nothing that the provider  retry on a new connection
the request                        has executed
a kept connection ends without a   a GET or HEAD              retry on a new connection, once
byte of a response
400 or 422 to a stream whose       the request, which was     retry without it; remembered, so that
`stream_options` the gateway put   refused                    it is asked for once
in
=================================  =========================  ======================================

What "the beginning of a response" is stands in `beginning`. Failover and the retry without
`stream_options` are decided here and made in `forward`; the room of a provider's account is
reserved by `admit.move`. The two retries on a new connection are decided and made by the transport
(`_may_resend` in `upstream.adapter`), which knows what its connection has sent.

A provider that keeps failing is asked last in its routes for a short time (`upstream.cooldown`): no
connection, no beginning of a response in time, 5xx, and 429 with `Retry-After` count.

Otherwise a request is sent to a provider once: clients retry by themselves, and know better than
the gateway whether that is safe. Where a POST was sent and no response came, the error tells the
SDKs not to send it again (`x-should-retry: false`): the provider may still be working on it. So it
does where all that is wrong is the gateway's credential at each target, which no time mends.
"""

from __future__ import annotations

import logging

from wrapper import errors
from wrapper.proxy.beginning import Beginning
from wrapper.proxy.request import ProxyRequest
from wrapper.proxy.targets import UpstreamAttempt
from wrapper.record import is_provider_failure
from wrapper.runtime import RequestContext
from wrapper.upstream import Upstream, UpstreamResponse

log = logging.getLogger("wrapper")

_RETRY_AFTER = "retry-after"
_REFUSED = (400, 422)


def note_failure(
    context: RequestContext,
    attempt: UpstreamAttempt,
    failure: errors.UpstreamError | UpstreamResponse,
) -> None:
    """Count a failure before a response towards a cooldown of the provider."""
    upstream, asked = attempt.upstream, None
    if attempt.credential is not None:
        return  # the account is the caller's
    if isinstance(failure, errors.UpstreamError):
        if not isinstance(failure, errors.UpstreamUnreachable | errors.UpstreamTimeout):
            return
    elif failure.status == 429:
        asked = next(
            (value for name, value in failure.headers if name.lower() == _RETRY_AFTER), None
        )
        if asked is None:
            return
    seconds = upstream.cooldown.failed(asked)
    if seconds and upstream.provider.name in context.snapshot.routes.replaceable:
        name = upstream.provider.name
        log.warning("provider %s keeps failing: it is asked last for %g s", name, seconds)
        context.runtime.telemetry.cooldown(name, is_on=True)


def may_fail_over(request: ProxyRequest, failure: errors.UpstreamError | int) -> bool:
    """Whether the next target may be asked after `failure`, an error or a response's status."""
    if request.body_is_consumed:
        return False
    if isinstance(failure, int):
        return is_provider_failure(failure)
    return not failure.sent or isinstance(failure, errors.UpstreamTimeout)


def refuses_stream_options(upstream: Upstream, response: UpstreamResponse, first: bytes) -> bool:
    """Whether a provider may have refused the request because of the `stream_options` that the
    gateway has put in: nothing was executed then.

    A provider that has accepted them before must name them.
    """
    if response.status not in _REFUSED:
        if response.status < 300:
            upstream.takes_stream_options = True
        return False
    if not upstream.takes_stream_options:
        return True
    text = Beginning(response, first).read()
    return b"stream_options" in text or b"include_usage" in text
