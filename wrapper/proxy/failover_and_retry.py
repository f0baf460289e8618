"""When a request is sent again: retry at the same provider, failover to the next target.

=================================  =========================  ======================================
failure                            what was sent              what happens
=================================  =========================  ======================================
no connection (DNS, TCP, TLS)      nothing                    failover
`max_connections` in use           nothing                    failover
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

What "the beginning of a response" is stands in `beginning`. The retries on a new connection are the
transport's (`upstream.adapter`), the one without `stream_options` is `forward`'s.

Otherwise a request is sent to a provider once: clients retry by themselves, and know better than
the gateway whether that is safe. Where a POST was sent and no response came, the error tells the
SDKs not to send it again (`x-should-retry: false`): the provider may still be working on it.
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
