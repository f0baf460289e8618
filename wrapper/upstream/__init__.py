"""The provider as an HTTP peer: sending a request, its response, and what failures mean.

Invariant: a request goes to one provider with that provider's credential and never with the
caller's gateway key, and it goes there once, except as `proxy.failover_and_retry` says; an error
says whether anything may have been sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

import requests
from requests.exceptions import RequestException

from wrapper import errors
from wrapper.auth import AUTHORIZATION, Credential
from wrapper.cancellation import Interrupted, within, yield_if_due
from wrapper.config import Provider
from wrapper.formats.http1 import Body, Connection, Head
from wrapper.formats.media import content_coding, media_type
from wrapper.metering.decoding import decoder_for
from wrapper.upstream.adapter import BODY_ERRORS, ProviderAdapter, reading_failed
from wrapper.upstream.cooldown import Cooldown
from wrapper.upstream.failures import gateway_error
from wrapper.upstream.headers import headers_down, headers_up, is_of_account, with_own
from wrapper.upstream.unfold import UnfoldedBody

__all__ = ["Upstream", "UpstreamResponse", "headers_up"]


class UpstreamResponse:
    """A provider's response: `status`, `headers` fit to go down, and the body as it comes.

    `media_type` and `coding` are as `formats.media` has them.
    """

    __slots__ = (
        *("_adapter", "_provider", "body", "coding", "headers", "length", "media_type"),
        *("is_event_stream", "reason", "request_id", "status"),
    )

    def __init__(self, provider: str, adapter: ProviderAdapter, head: Head, body: Body) -> None:
        self._provider = provider
        self._adapter: ProviderAdapter | None = adapter  # while it has the connection
        self.body = body
        self.status = head.status
        self.reason = head.reason
        given = head.first.get
        self.headers = headers_down(head.headers, given("connection"))
        self.media_type = media_type(given("content-type", ""))
        coding = given("content-encoding")
        self.coding = content_coding(coding) if coding else ""
        self.is_event_stream = self.media_type.startswith("text/event-stream")
        # The Content-Length to repeat to the client: on HEAD and 304 it is not the body's.
        length = given("content-length")
        self.length = int(length) if length else None
        self.request_id = given("x-request-id") or None

    def set_timeout(self, seconds: float | None) -> None:
        """How long one wait for more of the body may take; None: a cancel scope watches it."""
        self.body.connection.set_timeout(seconds)

    def unfold(self) -> None:
        """Take the content coding off, so that the body can be changed; as it is where the coding
        is not known.
        """
        decoder = decoder_for(self.coding)
        if decoder is None or self.body.complete:
            return
        self.body = UnfoldedBody(self.body, decoder)
        self.coding = ""
        self.length = None
        self.headers = [pair for pair in self.headers if pair[0].lower() != "content-encoding"]

    def read1(self) -> bytes:
        """The bytes that have come, waiting for some; empty at a clean end only.

        Raises UpstreamTimeout when nothing came for the provider's idle timeout, and
        UpstreamInterrupted when the response broke off.
        """
        try:
            data = self.body.read1()
        except BODY_ERRORS as error:
            raise gateway_error(reading_failed(error), self._provider, begun=True) from error
        if self.body.complete:
            self.close()
        return data

    def read_first(self) -> bytes:
        """Read bytes before the head goes down; a failure is as if there were no response."""
        data = b""
        try:
            if not self.body.complete:  # else there is none, as after HEAD
                data = self.body.read1()
        except BODY_ERRORS as error:
            self.close()
            raise gateway_error(reading_failed(error), self._provider) from error
        except BaseException:
            self.close()
            raise
        if self.body.complete and self.status != 101:
            self.close()
        return data

    @property
    def connection(self) -> Connection:
        """That of a 101: what follows its head is the other protocol's."""
        return self.body.connection

    def close(self) -> None:
        """Cut a response short, or give back the connection of a complete one. Safe to repeat."""
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            adapter.release(self.body.connection)


class Upstream:
    """One configured provider, ready to be called."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.usable = provider.usable
        self.base_path = provider.base_path
        self.host = urlsplit(provider.origin).hostname or ""
        self._adapter = ProviderAdapter(provider)
        self._timeout = (provider.connect_timeout, provider.first_byte_timeout)
        self._configured_headers = _configured_headers(provider)
        self._headers_for_callers = _headers_for_callers(provider)
        self._credential = _credential(provider)
        self.cooldown = Cooldown(provider.cooldown_seconds)
        self.takes_stream_options: bool | None = None
        """Whether it accepts `stream_options`; None until one stream has shown it."""

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
        credential: Credential | None = None,
    ) -> UpstreamResponse:
        """Send one request and return its response as soon as the head is there.

        `target` is the raw path and query on the provider's origin. `headers` have been through
        `headers_up`. `credential` is the caller's own, used instead of the gateway's: then no
        secret of the gateway goes up. Raises the kinds of UpstreamError.
        """
        own = self._configured_headers if credential is None else self._headers_for_callers
        sent = with_own(headers, own) if own else {**headers}
        used = credential or self._credential
        if used is not None:
            sent[used.header] = used.value
        # Content-Length where it is known, else chunks (RFC 9112 section 6).
        length = len(body) if isinstance(body, bytes) else getattr(body, "length", None)
        if length is not None:
            sent["Content-Length"] = str(length)
        elif body is not None:
            sent["Transfer-Encoding"] = "chunked"
        elif method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = "0"
        try:
            head, response = self._adapter.exchange(method, target, sent, body, *self._timeout)
        except RequestException as error:
            raise gateway_error(error, self.provider.name) from error
        return UpstreamResponse(self.provider.name, self._adapter, head, response)

    def fetch(self, path: str, *, timeout: float, limit: int) -> bytes:
        """The body of a GET of `path` below the base URL: what the gateway itself asks for.

        At most `timeout` seconds and `limit` bytes. Raises UpstreamError, also for a status that is
        not 200: UpstreamAuth where the provider refuses the credential.
        """
        body = bytearray()
        status = self.get(self.base_path + path, body.extend, timeout=timeout, limit=limit)
        if status != 200:
            kind = errors.UpstreamAuth if status in (401, 403) else errors.UpstreamError
            raise kind(f"The provider responded {status}.")
        return bytes(body)

    def get(
        self, target: str, take: Callable[[bytes], object], *, timeout: float, limit: int
    ) -> int:
        """The status of a GET of the raw `target` on the provider's origin; `take` gets its body.

        At most `timeout` seconds, and no piece more after `limit` bytes. Raises UpstreamError.
        """
        size = 0
        try:
            with within(timeout), self.session() as session:
                response = session.get(
                    self.provider.origin + target,
                    timeout=(timeout, timeout),
                    stream=True,
                    allow_redirects=False,
                )
                with response:
                    pieces = response.iter_content(None)
                    while size < limit and (piece := next(pieces, b"")):
                        take(piece)
                        size += len(piece)
                        yield_if_due()
        except Interrupted:
            raise errors.UpstreamTimeout(f"No response within {timeout:g} s.") from None
        except RequestException as error:
            raise gateway_error(error, self.provider.name) from error
        return response.status_code

    def session(self) -> requests.Session:
        """An ordinary session to this provider, with its credential: for what is not the hot path.

        It follows no redirects, keeps no cookies and reads no `.netrc` or proxy variables.
        """
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        session.headers.clear()
        session.headers.update(
            {"User-Agent": "wrapper", "Accept-Encoding": "identity", **self._configured_headers}
        )
        if self._credential is not None:
            session.headers[self._credential.header] = self._credential.value
        session.mount(self.provider.origin, self._adapter)
        return session

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()


def _credential(provider: Provider) -> Credential | None:
    """The gateway's own, in the header that the provider wants it in."""
    if provider.api_key is None:
        return None
    secret = provider.api_key.reveal()
    if provider.auth == "bearer":
        return Credential(AUTHORIZATION, f"Bearer {secret}")
    return Credential(provider.auth, secret)


def _configured_headers(provider: Provider) -> dict[str, str]:
    """The headers that the configuration adds."""
    return {name.title(): value for name, value in provider.headers}


def _headers_for_callers(provider: Provider) -> dict[str, str]:
    """Those of them that go with a caller's own credential: none of the gateway's account."""
    return {
        name.title(): value
        for name, value in provider.headers
        if name.lower() not in provider.secret_headers and not is_of_account(name)
    }
