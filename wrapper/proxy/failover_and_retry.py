"""When a request is sent again: retry at the same provider, failover to the next target.

=================================  =========================  ======================================
failure                            what was sent              what happens
=================================  =========================  ======================================
no connection (DNS, TCP, TLS)      nothing                    failover
`max_connections` in use           nothing                    failover
no credential for the provider     nothing                    failover
no first byte in time              the request                failover
429 or 5xx                         the request                failover; the last target's response
                                                              goes to the client
broken response, 401 for the       the request                no failover: what the provider did
gateway's own credential                                      with the request is unknown, or the
                                                              configuration is wrong
the body was streamed through      part of the body           no failover: it cannot be sent again
the first byte went to the client  the request                no failover: the response has begun
=================================  =========================  ======================================

Retry: never. A request is sent to a provider once; clients retry by themselves, and know better
than the gateway whether that is safe.
"""

from __future__ import annotations

from wrapper import errors
from wrapper.proxy.request import ProxyRequest
from wrapper.record import is_provider_failure


def may_fail_over(request: ProxyRequest, failure: errors.UpstreamError | int) -> bool:
    """Whether the next target may be asked after `failure`, an error or a response's status."""
    if request.body_is_consumed:
        return False
    if isinstance(failure, int):
        return is_provider_failure(failure)
    return not failure.sent or isinstance(failure, errors.UpstreamTimeout)
