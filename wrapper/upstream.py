"""Sending a call to a provider: connections, headers, deadlines, and what failures mean.

`Transport` is a `requests` transport adapter over the strict client of `http1`: `requests`
gives the vocabulary (PreparedRequest, Response, its exceptions), the adapter sees to it that
the target and the body go out byte for byte, that a TLS context is made once for a provider,
and that no cookie jar, `.netrc`, redirect or retry comes between.

The rules protected here: a request goes to one provider, once, with that provider's credential
and never with the caller's gateway key; a failure is told apart by whether anything was sent.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, BaseAdapter
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ReadTimeout,
    SSLError,
)
from requests.exceptions import (
    ConnectionError as RequestsConnectionError,
)

from wrapper import errors, http1
from wrapper.config import Provider

MAX_IDLE = 45.0  # seconds; providers close idle connections after 60 or more

# RFC 9110 section 7.6.1, and what is between this caller and this gateway alone.
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)
_NEVER_UP = _HOP_BY_HOP | frozenset(
    [
        "host",
        "cookie",
        "authorization",
        "api-key",
        "x-api-key",
        "forwarded",
        "expect",
        "content-length",
    ]
)
_NEVER_DOWN = _HOP_BY_HOP | frozenset(
    [
        "set-cookie",
        "set-cookie2",
        "openai-organization",
        "openai-project",
        "content-length",
        "date",
        "server",
    ]
)
# Codings whose bytes the meter can read; others are taken out so that none goes unmetered.
# So is "*", which leaves the choice to the provider.
READABLE_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "identity"})

HeaderList = list[tuple[str, str]]


class Transport(BaseAdapter):
    """A `requests` adapter for one provider, with its own pool of kept connections.

    Timeouts are seconds; `timeout=(connect, read)` as in requests, each bounding one wait.
    """

    def __init__(self, provider: Provider) -> None:
        super().__init__()
        origin = urlsplit(provider.origin)
        self._host = origin.hostname or ""
        self._port = origin.port or (443 if origin.scheme == "https" else 80)
        self._tls = _tls_context(provider) if origin.scheme == "https" else None
        self._idle: deque[http1.Connection] = deque()
        self._max = provider.max_connections
        self._open = 0
        self._closed = False
        self._authority = origin.netloc

    def send(  # the signature is requests'
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send `request` once; its `url` is the raw target, beginning with a slash.

        Raises ConnectTimeout, SSLError or ConnectionError with nothing sent, and ReadTimeout or
        ChunkedEncodingError when something may have been.
        """
        connect_timeout, read_timeout = timeout
        connection = self._checkout(request, connect_timeout)
        try:
            connection.send(_head(request, self._authority), _pieces(request), read_timeout)
            head = connection.read_head(request.method or "", read_timeout)
        except TimeoutError as error:
            self.release(connection)
            raise ReadTimeout(error, request=request) from error
        except (http1.ProtocolError, OSError) as error:
            self.release(connection)
            raise ChunkedEncodingError(error, request=request) from error
        except BaseException:
            self.release(connection)
            raise
        response = requests.Response()
        response.status_code = head.status
        response.reason = head.reason
        response.request = request
        response.raw = Raw(head, connection.body(head), partial(self.release, connection))
        return response

    def release(self, connection: http1.Connection) -> None:
        """Keep a connection whose answer was whole, close any other."""
        self._open -= 1
        if connection.reusable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close what is idle; what is in use closes when its answer ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _checkout(self, request: requests.PreparedRequest, timeout: float) -> http1.Connection:
        if self._open >= self._max:
            raise errors.Overloaded(
                "All connections to the provider are in use; try again shortly.",
                headers=(("Retry-After", "1"),),
            )
        self._open += 1
        try:
            return self._idle_connection() or http1.Connection.open(
                self._host, self._port, self._tls, timeout
            )
        except TimeoutError as error:
            self._open -= 1
            raise ConnectTimeout(error, request=request) from error
        except ssl.SSLError as error:
            self._open -= 1
            raise SSLError(error, request=request) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a name IDNA cannot spell
            self._open -= 1
            raise RequestsConnectionError(error, request=request) from error
        except BaseException:
            self._open -= 1
            raise

    def _idle_connection(self) -> http1.Connection | None:
        oldest = time.monotonic() - MAX_IDLE
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()  # the warmest first
            if connection.idle_since > oldest and connection.is_quiet():
                return connection
            connection.close()
        return None


class Raw:
    """`Response.raw`: the head and the bytes of an answer, nothing decoded."""

    __slots__ = ("_release", "body", "head")

    def __init__(self, head: http1.Head, body: http1.Body, release: Callable[[], None]) -> None:
        self.head = head
        self.body = body
        self._release: Callable[[], None] | None = release

    def close(self) -> None:
        """Give the connection back, or cut it where the answer is not whole. Safe to repeat."""
        release, self._release = self._release, None
        if release is not None:
            release()


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


def headers_up(environ: Mapping[str, Any]) -> dict[str, str]:
    """The caller's headers that go on to a provider, from a WSGI environ.

    Left out: hop-by-hop ones and those `Connection` names (RFC 9110 section 7.6.1), credentials,
    cookies and what tells of the way here. Codings that the meter cannot read are taken out of
    Accept-Encoding, so that no answer can be made unreadable to it.
    """
    named = {token.strip().lower() for token in environ.get("HTTP_CONNECTION", "").split(",")}
    out: dict[str, str] = {}
    for key, value in environ.items():
        if key[:5] == "HTTP_":
            lower, name = _header_name(key)
            if lower in _NEVER_UP or lower in named or lower[:12] == "x-forwarded-":
                continue
            if lower == "accept-encoding":
                value = readable_codings(value)
            out[name] = value
    content_type = environ.get("CONTENT_TYPE")
    if content_type and "content-type" not in named:
        out["Content-Type"] = content_type
    return out


def headers_down(headers: HeaderList) -> HeaderList:
    """The provider's headers that go on to the caller; gunicorn writes Date and Server itself."""
    named: set[str] = set()
    for name, value in headers:
        if name.lower() == "connection":
            named.update(token.strip().lower() for token in value.split(","))
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NEVER_DOWN
        and lower not in named
        and not lower.startswith("access-control-")
    ]


def readable_codings(accept_encoding: str) -> str:
    """Accept-Encoding (RFC 9110 section 12.5.3) without the codings the meter cannot read."""
    kept = [
        part.strip()
        for part in accept_encoding.split(",")
        if part.split(";", 1)[0].strip().lower() in READABLE_CODINGS
    ]
    return ", ".join(kept) or "identity"


@lru_cache(maxsize=1024)
def _header_name(key: str) -> tuple[str, str]:
    name = key[5:].replace("_", "-")
    return name.lower(), name.title()


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


def _head(request: requests.PreparedRequest, authority: str) -> bytes:
    lines = [f"{request.method} {request.url} HTTP/1.1\r\nHost: {authority}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in request.headers.items()]
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def _pieces(request: requests.PreparedRequest) -> bytes | Iterable[bytes] | None:
    body: Any = request.body
    if "Transfer-Encoding" in request.headers:
        return _chunks(body)
    return body  # type: ignore[no-any-return]


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def _declared_length(head: http1.Head) -> int | None:
    """The Content-Length to repeat to the caller: on HEAD and 304 it is not the body's."""
    text = head.get("content-length")
    return int(text) if text else None


def _tls_context(provider: Provider) -> ssl.SSLContext:
    """One context for all connections: loading the CA bundle takes tens of milliseconds."""
    context = ssl.create_default_context(cafile=str(provider.ca_file or DEFAULT_CA_BUNDLE_PATH))
    context.set_alpn_protocols(["http/1.1"])
    return context


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
