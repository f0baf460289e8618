"""Sending a call to a provider: what goes up, what comes down, and what failures mean.

The rules protected here: a request goes to one provider, once, with that provider's credential
and never with the caller's gateway key; a failure is told apart by whether anything was sent.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ReadTimeout,
)
from requests.exceptions import (
    ConnectionError as RequestsConnectionError,
)

from wrapper import errors
from wrapper.config import Provider
from wrapper.formats import http1
from wrapper.upstream.headers import headers_down, headers_up
from wrapper.upstream.transport import Raw, Transport

__all__ = ["Answer", "Upstream", "headers_up"]


class Answer:
    """A provider's answer: `status`, `headers` fit to go down, and the body as it comes."""

    __slots__ = ("_raw", "headers", "length", "reason", "request_id", "status")

    def __init__(self, response: requests.Response) -> None:
        self._raw = cast(Raw, response.raw)
        head = self._raw.head
        self.status = head.status
        self.reason = head.reason
        self.headers = headers_down(head.headers)
        self.length = _declared_length(head)
        self.request_id = head.get("x-request-id") or None

    def patience(self, seconds: float | None) -> None:
        """How long one wait for more of the body may take; None: somebody else sees to it."""
        self._raw.body.connection.sock.settimeout(seconds)

    @property
    def complete(self) -> bool:
        """Whether the last byte has been read."""
        return self._raw.body.complete

    def get(self, name: str) -> str:
        """The first value of a header by its lower-case name, empty where there is none."""
        return self._raw.head.get(name)

    def read1(self) -> bytes:
        """The bytes that have come, waiting for some; empty at a clean end only.

        Raises UpstreamTimeout when nothing came for the provider's idle timeout, and
        UpstreamInterrupted when the answer broke off.
        """
        try:
            data = self._raw.body.read1()
        except TimeoutError:
            raise errors.UpstreamTimeout("The provider stopped sending.") from None
        except (http1.ProtocolError, OSError) as error:
            raise errors.UpstreamInterrupted(
                f"The provider's answer broke off: {_told(error)}."
            ) from error
        if self._raw.body.complete:
            self._raw.close()
        return data

    def close(self) -> None:
        """Cut an answer short, or give back the connection of a whole one."""
        self._raw.close()


class Upstream:
    """One configured provider, ready to be called."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._transport = Transport(provider)
        self.host = urlsplit(provider.origin).hostname or ""
        self._extra = {name.title(): value for name, value in provider.headers}
        self._open_extra = {
            name.title(): value
            for name, value in provider.headers
            if name.lower() not in provider.secret_headers
        }
        self._credential = (
            f"Bearer {provider.api_key.reveal()}" if provider.api_key is not None else None
        )

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        credential: str | None = None,
        first_byte_timeout: float | None = None,
    ) -> Answer:
        """Send one request and return its answer as soon as the head is there.

        `target` is the raw path and query on the provider's origin. `headers` have been through
        `headers_up`. `credential` is the caller's own `Authorization`, where that is to be used
        instead of the gateway's; `first_byte_timeout` (seconds) stands in for the provider's.
        Raises the kinds of UpstreamError.
        """
        request = requests.PreparedRequest()
        request.method, request.url = method, target
        prepared = dict(headers)
        # A caller with a credential of his own must not get the gateway's with it.
        prepared.update(self._extra if credential is None else self._open_extra)
        if credential or self._credential:
            prepared["Authorization"] = credential or self._credential or ""
        _set_framing(prepared, method, body)
        request.headers = prepared  # type: ignore[assignment]  # already as they go out
        request.body = body  # type: ignore[assignment]  # an iterable is allowed in fact
        provider = self.provider
        try:
            patience = first_byte_timeout or provider.first_byte_timeout
            response = self._transport.send(request, timeout=(provider.connect_timeout, patience))
        except ConnectTimeout:
            raise errors.UpstreamTimeout(
                f"No connection to provider {provider.name!r} within its connect_timeout.",
                sent=False,
            ) from None
        except ReadTimeout:
            raise errors.UpstreamTimeout(
                f"Provider {provider.name!r} did not answer within its first_byte_timeout."
            ) from None
        except ChunkedEncodingError as error:
            raise errors.UpstreamProtocolError(
                f"Provider {provider.name!r} gave no proper answer: {_told(error.args[0])}."
            ) from error
        except RequestsConnectionError as error:  # SSLError is one of its kinds
            raise errors.UpstreamUnreachable(
                f"Provider {provider.name!r} cannot be reached: {_told(error.args[0])}.",
                sent=False,
            ) from error
        answer = Answer(response)
        answer.patience(provider.idle_timeout)
        return answer

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()


def _set_framing(
    headers: dict[str, str], method: str, body: bytes | Iterable[bytes] | None
) -> None:
    """Content-Length where it is known, else chunks (RFC 9112 section 6)."""
    if isinstance(body, bytes):
        headers["Content-Length"] = str(len(body))
    elif body is not None:
        length = getattr(body, "length", None)
        if length is None:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(length)
    elif method in ("POST", "PUT", "PATCH"):
        headers["Content-Length"] = "0"


def _declared_length(head: http1.Head) -> int | None:
    """The Content-Length to repeat to the caller: on HEAD and 304 it is not the body's."""
    text = head.get("content-length")
    return int(text) if text else None


def _told(error: BaseException | Any) -> str:
    """An error in words fit for a caller: no addresses, no repr of objects."""
    if isinstance(error, http1.ProtocolError):
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
