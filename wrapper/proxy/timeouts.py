"""The table of all timeouts; a request's deadlines are armed here.

==============  =============================================  ====================  ==============
phase           what it bounds                                 setting               armed in
==============  =============================================  ====================  ==============
keep-alive      from one request's end to the next one's       `KEEPALIVE`           `server`
                first byte
request head    from its first byte (of a new connection:      `HEAD`                `server`
                from the beginning) to its end
request body    each wait for the client                       `body_timeout`        `server`
                the whole body, by its size                    `body_timeout`        here
connect         name resolution, all addresses and TLS         `connect_timeout`     `upstream`
                together
provider write  each wait for the provider to take bytes       `first_byte_timeout`  `http1`
first byte      from the connection to the response's first    `first_byte_timeout`  here
                byte
idle            each wait for more of the response, also of    `idle_timeout`        here
                its beginning
total           everything with one provider                   `total_timeout`       here
client write    each wait for the client to take bytes         `body_timeout`        `server`
client gone     what is still read of the response without     `drain_timeout`;      `forward`
                the client, for its usage or for the id of     `first_byte_timeout`
                what it has begun
stream's rest   what follows the event that ends a stream      `REST_SECONDS`        `response`
body's rest     what was not read of a request's body, before  `HEAD`                `server`
                the next head
linger          what the client still sends after the last     `LINGER_SECONDS`      `server`
                response of a connection
==============  =============================================  ====================  ==============

`server`: `server.connection`; `upstream`: `upstream.adapter`; `http1`: `formats.http1`; `forward`
and `response`: those of `proxy`. Deadlines are those of the request's cancel scope, up to a
quarter of a second late, and later by the time in which the worker did not run; so is each wait to
read from the provider. Waits on a socket alone (for the client, and to write to the provider) are
the socket's own timeout. All values are seconds.
"""

from __future__ import annotations

from typing import Final

from wrapper.cancellation import CancelScope
from wrapper.config import Provider, Server
from wrapper.upstream import UpstreamResponse

HEAD: Final = 15
"""Seconds for a request's head, or `KEEPALIVE` where that is less."""

SLOWEST_BYTES_PER_SECOND: Final = 32768


def body_seconds(length: int | None, server: Server) -> float:
    """How long a request's whole body may take: a grace period, then a slow modem's pace."""
    most = server.max_upload_bytes if length is None else min(length, server.max_upload_bytes)
    return server.body_timeout + most / SLOWEST_BYTES_PER_SECOND


def arm_request_body(scope: CancelScope, length: int | None, server: Server) -> None:
    """The whole body; each wait for it is bounded by the socket's own timeout."""
    scope.set_deadline(body_seconds(length, server))


def arm_first_byte(scope: CancelScope, provider: Provider, upload: float | None) -> None:
    """From now to the response's first byte.

    `upload`: the seconds of a body that is streamed through; the client's time to send it is not
    the provider's.
    """
    if upload is not None:
        scope.set_deadline(provider.total_timeout + upload)
    else:
        first_byte = provider.connect_timeout + provider.first_byte_timeout
        scope.set_deadline(min(first_byte, provider.total_timeout))


def arm_response(
    scope: CancelScope, provider: Provider, response: UpstreamResponse, took: float
) -> None:
    """The rest of the response, `took` seconds into it: in all, and each wait for more of it."""
    scope.set_deadline(provider.total_timeout - took)
    watched = scope.set_idle_timeout(provider.idle_timeout)
    response.set_timeout(None if watched else provider.idle_timeout)
