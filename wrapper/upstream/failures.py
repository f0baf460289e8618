"""The one mapping from failures of the transport to the gateway's errors.

==========================  ======================================  ================================
exception of `requests`     before the response's first byte        after it
==========================  ======================================  ================================
ConnectTimeout              UpstreamTimeout, nothing sent           –
PoolFull                    UpstreamFull, nothing sent              –
ConnectionError, SSLError   UpstreamUnreachable, nothing sent       –
ReadTimeout                 UpstreamTimeout                         UpstreamTimeout
ChunkedEncodingError        UpstreamProtocolError                   UpstreamInterrupted
==========================  ======================================  ================================
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from requests.exceptions import ChunkedEncodingError, ConnectTimeout, ReadTimeout, RequestException

from wrapper import errors
from wrapper.formats.http1 import ProtocolError
from wrapper.upstream.adapter import PoolFull


def gateway_error(
    error: RequestException, provider: str, *, begun: bool = False
) -> errors.UpstreamError:
    """The gateway's error for a failure at `provider`; `begun`: bytes of the body have come."""
    cause = error.args[0] if error.args else error
    if isinstance(error, ConnectTimeout):
        return errors.UpstreamTimeout(
            f"No connection to provider {provider!r} within its connect_timeout.", sent=False
        )
    if isinstance(error, ReadTimeout):
        if begun:
            return errors.UpstreamTimeout("The provider stopped sending.")
        return errors.UpstreamTimeout(
            f"Provider {provider!r} did not respond within its first_byte_timeout."
        )
    if isinstance(error, PoolFull):
        return errors.UpstreamFull("All connections to the provider are in use; try again shortly.")
    if not isinstance(error, ChunkedEncodingError):
        return errors.UpstreamUnreachable(
            f"Provider {provider!r} cannot be reached: {_describe(cause)}.", sent=False
        )
    if begun:
        return errors.UpstreamInterrupted(f"The provider's response broke off: {_describe(cause)}.")
    return errors.UpstreamProtocolError(
        f"Provider {provider!r} sent no valid response: {_describe(cause)}."
    )


def _describe(error: BaseException | Any) -> str:
    """An error for a client's eyes: no addresses, no repr of objects."""
    if isinstance(error, ProtocolError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'handshake'})"
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
