"""A `requests` transport adapter over the strict client of `http1`, with its pool.

`requests` gives the vocabulary (PreparedRequest, Response, its exceptions); the adapter sees to
it that target and body go out byte for byte, that a TLS context is made once for a provider, and
that no cookie jar, `.netrc`, redirect or retry comes between.

The rule protected here: a connection serves one call at a time, and serves again only when the
last answer on it was whole and nothing followed.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any
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

from wrapper import errors
from wrapper.cancellation import TIMEOUT, Interrupted, within
from wrapper.config import Provider
from wrapper.formats import http1

MAX_IDLE = 45.0  # seconds; providers close idle connections after 60 or more


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
            raise errors.UpstreamFull(
                "All connections to the provider are in use; try again shortly."
            )
        self._open += 1
        try:
            return self._idle_connection() or self._connect(timeout)
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

    def _connect(self, timeout: float) -> http1.Connection:
        """At most `timeout` seconds for the name, all of its addresses and the TLS handshake."""
        try:
            with within(timeout):
                return http1.Connection.open(self._host, self._port, self._tls, timeout)
        except Interrupted as interruption:
            if interruption.reason != TIMEOUT:
                raise
            raise TimeoutError(f"no connection within {timeout:g} s") from None

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


def _tls_context(provider: Provider) -> ssl.SSLContext:
    """One context for all connections: loading the CA bundle takes tens of milliseconds."""
    if provider.ca_pem is not None:
        context = ssl.create_default_context(cadata=provider.ca_pem)
    else:
        context = ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)
    context.set_alpn_protocols(["http/1.1"])
    return context
