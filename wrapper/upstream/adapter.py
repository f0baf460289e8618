"""A `requests` transport adapter over the strict HTTP/1.1 client, with its own connection pool.

It can be mounted on a `requests.Session`. The hot path calls `exchange` with the raw target: target
and body then go out byte for byte, a TLS context is made once for a provider, and no cookie jar,
`.netrc`, redirect or retry comes between.

Invariant: a connection serves one request at a time, and serves again only when the last response
on it was complete and nothing followed.
"""

from __future__ import annotations

import functools
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ReadTimeout,
    RequestException,
    SSLError,
)
from requests.exceptions import (
    ConnectionError as RequestsConnectionError,
)
from requests.structures import CaseInsensitiveDict

from wrapper.cancellation import TIMEOUT, Interrupted, within
from wrapper.config import Provider
from wrapper.formats import http1
from wrapper.upstream.connect import Name, open_connection, tls_context

_READ_ONLY = frozenset(("GET", "HEAD"))


class PoolFull(RequestsConnectionError):
    """The provider's `max_connections` are in use: nothing was sent."""


class ProviderAdapter(BaseAdapter):
    """A `requests` adapter for one provider, with its own pool of kept connections.

    Timeouts are seconds; `timeout=(connect, read)` as in requests, each bounding one wait.
    """

    def __init__(self, provider: Provider) -> None:
        super().__init__()
        origin = urlsplit(provider.origin)
        port = origin.port or (443 if origin.scheme == "https" else 80)
        self._name = Name(origin.hostname or "", port)
        self._tls = tls_context(provider) if origin.scheme == "https" else None
        self._idle: deque[http1.Connection] = deque()
        self._keepalive = provider.keepalive
        self._max = provider.max_connections
        self._in_use = 0
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
        """Send `request` as `exchange` does.

        With `stream` the body is left to be read from `Response.raw`, else it is read here.
        """
        connect_timeout, read_timeout = timeout if isinstance(timeout, tuple) else (timeout,) * 2
        try:
            head, body = self.exchange(
                request.method or "",
                request.path_url,
                request.headers,
                request.body,
                connect_timeout,
                read_timeout,
            )
        except RequestException as error:
            error.request = request
            raise
        response = _Response(request, RawResponse(head, body, self.release))
        if not stream:
            response.content  # noqa: B018  # reads the body and gives the connection back
        return response

    def exchange(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Any,
        connect_timeout: float,
        read_timeout: float,
    ) -> tuple[http1.Head, http1.Body]:
        """Send one request, and return the head of its response and the body to be read.

        The hot path calls this itself: objects of `requests` for each call cost more than all that
        is done with them. The caller gives back `body.connection` (`release`).

        It is sent once, and again on a new connection only where a kept one turns out to be dead
        and the provider has executed nothing of it, or where the request only reads.

        A request with `Upgrade` goes out on a connection of its own; after a 101 that is the
        caller's, until it is given back.

        Raises PoolFull, ConnectTimeout, SSLError or ConnectionError with nothing sent, and
        ReadTimeout or ChunkedEncodingError when something may have been.
        """
        text = f"{method} {target} HTTP/1.1\r\nHost: {self._authority}\r\n"
        for name, value in headers.items():
            text += f"{name}: {value}\r\n"
        head = f"{text}\r\n".encode("latin-1")
        outgoing = _chunks(body) if "Transfer-Encoding" in headers else body
        upgrade = "Upgrade" in headers
        kept = not upgrade
        while True:
            connection = self._checkout(connect_timeout, kept=kept)
            try:
                connection.send(head, outgoing, read_timeout)
                response = connection.read_head(method, read_timeout, upgrade=upgrade)
                return response, response.reader(connection, response)
            except TimeoutError as error:
                self.release(connection)
                raise ReadTimeout(error) from error
            except (http1.ProtocolError, OSError) as error:
                again = kept and _may_resend(method, body, connection, error)
                self.release(connection)
                if not again:
                    raise ChunkedEncodingError(error) from error
                kept = False
            except BaseException as error:
                self.release(connection)
                if isinstance(error, Interrupted):
                    error.sent = True
                raise

    def release(self, connection: http1.Connection) -> None:
        """Keep a connection whose response was complete, close any other."""
        self._in_use -= 1
        if connection.reusable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the idle connections; one in use closes when its response ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _checkout(self, timeout: float, *, kept: bool) -> http1.Connection:
        if self._in_use >= self._max:
            raise PoolFull("all connections are in use")
        self._in_use += 1
        try:
            return (self._idle_connection() if kept else None) or self._connect(timeout)
        except TimeoutError as error:
            self._in_use -= 1
            raise ConnectTimeout(error) from error
        except ssl.SSLError as error:
            self._in_use -= 1
            raise SSLError(error) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a name IDNA cannot spell
            self._in_use -= 1
            raise RequestsConnectionError(error) from error
        except BaseException:
            self._in_use -= 1
            raise

    def _connect(self, timeout: float) -> http1.Connection:
        """At most `timeout` seconds for the name, all of its addresses and the TLS handshake."""
        try:
            with within(timeout):
                return open_connection(self._name, self._tls, timeout)
        except Interrupted as interruption:
            if interruption.reason != TIMEOUT:
                raise
            raise TimeoutError(f"no connection within {timeout:g} s") from None

    def _idle_connection(self) -> http1.Connection | None:
        oldest = http1.clock() - self._keepalive
        while self._idle and self._idle[0].idle_since <= oldest:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()  # the warmest first
            if connection.idle_since > oldest and connection.is_quiet():
                return connection
            connection.close()
        return None


class _Response(requests.Response):
    """A response whose header mapping is made when it is asked for: the hot path does not ask."""

    def __init__(self, request: requests.PreparedRequest, raw: RawResponse) -> None:
        # Not `super().__init__()`: a cookie jar and a mapping for each response cost more than
        # all the rest.
        self._content: Any = False
        self._content_consumed = False
        self._next = None
        self.status_code = raw.head.status
        self.reason = raw.head.reason
        self.request = request
        self.url = request.url or ""
        self.raw: Any = raw
        self.encoding = "utf-8"
        self.history = []

    @functools.cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The headers; of several with one name, the last."""
        return CaseInsensitiveDict(self.raw.head.headers)

    @functools.cached_property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]
        """None are kept."""
        return RequestsCookieJar()


class RawResponse:
    """`Response.raw`: the head and the bytes of a response, nothing decoded."""

    def __init__(
        self, head: http1.Head, body: http1.Body, release: Callable[[http1.Connection], None]
    ) -> None:
        self.head = head
        self.body = body
        self._release: Callable[[http1.Connection], None] | None = release

    def read1(self) -> bytes:
        """The bytes that have come, waiting for some; empty at a clean end only.

        Raises ReadTimeout, or ChunkedEncodingError where the response broke off.
        """
        try:
            data = self.body.read1()
        except BODY_ERRORS as error:
            raise reading_failed(error) from error
        if self.body.complete:
            self.close()
        return data

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """The pieces of the body as they come, for `Response.iter_content`. Not decompressed: ask
        for `identity`.
        """
        while piece := self.read1():
            yield piece

    def close(self) -> None:
        """Give the connection back, or cut it where the response is incomplete. Safe to repeat."""
        release, self._release = self._release, None
        if release is not None:
            release(self.body.connection)

    release_conn = close  # what `Response.close` calls


BODY_ERRORS: Final = (TimeoutError, http1.ProtocolError, OSError)
"""What reading a body raises; see `reading_failed`."""


def reading_failed(error: Exception) -> RequestException:
    """The exception of requests for one of BODY_ERRORS."""
    return (ReadTimeout if isinstance(error, TimeoutError) else ChunkedEncodingError)(error)


def _may_resend(method: str, body: Any, connection: http1.Connection, error: Exception) -> bool:
    """Whether a request that got no response on a kept connection goes out once more."""
    if not isinstance(body, bytes | None):
        return False  # a body that streams through has been consumed
    if method in _READ_ONLY:
        return bool(connection.idle_since) and isinstance(error, http1.NoResponse)
    return connection.was_dead(error)


def _chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
