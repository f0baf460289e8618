"""The response on its way to the client: bytes down, usage read beside them.

Invariants:

* Bytes go down as they came, as soon as they came.
* A response that broke off never looks complete: the connection is cut, and a stream gets an error
  event first.
* The body is an object with `close()`, not a generator: a generator that never starts never runs
  its `finally` (HEAD). The server calls `close()` at the end, at a break, and when nothing was
  iterated.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flask import Response
from werkzeug.datastructures import Headers

from wrapper import errors
from wrapper.cancellation import TURN, Interrupted, yield_if_due
from wrapper.metering import NullExtractor, UsageExtractor, extractor_for
from wrapper.proxy.forward import Forwarded, interrupted
from wrapper.proxy.request import ProxyRequest
from wrapper.record import CLIENT_ABORT, MAX_NAME
from wrapper.runtime import RequestContext

clock = time.perf_counter

# How an event's blank line ends, and what comes before the first event.
_EVENT_ENDS = (b"\n\n", b"\r\n", b"\r\r", b"")


def stream(context: RequestContext, request: ProxyRequest, forwarded: Forwarded) -> Response:
    """The client's response: the provider's status, headers and body, and the gateway's headers."""
    record, response = context.record, forwarded.response
    content_type = response.get("content-type", "").lower()
    encoding = response.get("content-encoding", "").lower()
    record.status = response.status
    record.stream = content_type.startswith("text/event-stream")
    record.upstream_request_id = response.request_id
    strip = forwarded.strip_usage and record.stream and not encoding
    has_length = response.length is not None and not strip and response.status != 204
    metering = context.snapshot.settings.server.metering
    if record.content is not None and record.content.holdings and isinstance(request.body, bytes):
        # It has been sent, and streams last for minutes.
        request = request._replace(body=None)
        record.content.holdings[0].release()
    credential = forwarded.attempt.credential
    if credential is not None and request.method == "POST" and response.status < 300:
        context.runtime.capacity.newcomers.accepted(context.scope, credential)
    body = StreamingBody(
        context,
        request,
        forwarded,
        extractor_for(content_type, encoding, strip_usage=strip) if metering else NullExtractor(),
        error_event=record.stream and encoding in ("", "identity") and not has_length,
    )
    down = Headers(response.headers)
    if has_length:
        down.add("Content-Length", str(response.length))
    if not response.request_id:
        down.add("x-request-id", record.request_id)
    down.set("x-wrapper-provider", forwarded.attempt.upstream.provider.name)
    down.add("Server-Timing", record.server_timing())
    return StreamedResponse(body, f"{response.status} {response.reason}".rstrip(), down)


class StreamedResponse(Response):
    """A provider's response: no header is corrected, removed or added by the framework, and closing
    it closes the body and then does what `call_on_close` was asked for.
    """

    def __init__(self, body: StreamingBody, status: str, headers: Headers) -> None:
        super().__init__(body, status, direct_passthrough=True)
        self.headers = headers
        self._body = body

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """The response itself is the iterable, so that the server's `close()` reaches it."""
        start_response(self.status, self.headers.to_wsgi_list())
        return self if environ["REQUEST_METHOD"] != "HEAD" else _Bodiless(self)

    def __iter__(self) -> Iterator[bytes]:
        return self._body


class _Bodiless:
    """The response to a HEAD request: closed like any other, with no body to iterate."""

    def __init__(self, response: StreamedResponse) -> None:
        self.close = response.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class StreamingBody:
    """A response's body on its way down: an iterator of bytes.

    `error_event`: an event reports that it broke off. (Not so in compressed bytes, nor where the
    event would count into a length that was promised.)
    """

    def __init__(
        self,
        context: RequestContext,
        request: ProxyRequest,
        forwarded: Forwarded,
        extractor: UsageExtractor,
        *,
        error_event: bool,
    ) -> None:
        self._context = context
        self._request = request
        self._response = forwarded.response
        self._first = forwarded.first
        self._extractor = extractor
        self._error_event = error_event
        self._ended = self._response.body.complete and not self._first
        self._broken = False
        self._closed = False
        self._tail = b""  # the end of what was sent last
        self._yielded = 0.0  # when other requests could last run, as far as is known here
        self._handed_over = 0.0
        if self._ended:
            extractor.flush()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        record = self._context.record
        if self._handed_over:  # what was handed over last has been sent: that was the client's time
            record.waited_for_client += clock() - self._handed_over
            self._handed_over = 0.0
        try:
            data = self._next()
        except (errors.UpstreamError, errors.Cancelled) as error:
            data = self._break(error)
        record.bytes_out += len(data)
        self._tail = data[-2:]
        self._handed_over = clock()
        if self._handed_over - self._yielded > TURN:
            self._yield()
        return data

    def _next(self) -> bytes:
        """The next bytes for the client, never empty; StopIteration at the clean end."""
        if self._ended:
            raise StopIteration
        if self._broken:
            # gunicorn cuts the connection on this, without a final chunk and without a log line.
            raise ConnectionResetError(errno.ECONNRESET, "the response broke off")
        response = self._response
        data, self._first = self._first, b""
        while True:
            if not data and not response.body.complete:
                data = self._read()
            out = self._extractor.feed(data) if data else b""
            if response.body.complete:
                self._ended = True
                out += self._extractor.flush()
            if out:
                return out
            if self._ended:
                raise StopIteration
            data = b""
            yield_if_due()

    def _yield(self) -> None:
        yield_if_due()
        self._yielded = self._handed_over = clock()

    def _read(self) -> bytes:
        began = clock()
        try:
            with self._context.scope:
                return self._response.read1()
        except Interrupted as interruption:
            raise interrupted(self._context, interruption.reason) from None
        finally:
            self._context.record.upstream += clock() - began

    def _break(self, error: errors.GatewayError) -> bytes:
        """The response broke off: a stream gets a last event that says so, anything else is cut."""
        record = self._context.record
        self._broken = True
        if isinstance(error, errors.UpstreamError):
            record.failed(error.reason)
        gone = record.outcome == CLIENT_ABORT
        record.error_code = error.code if gone else errors.UpstreamInterrupted.code
        if gone or not self._error_event:
            raise ConnectionResetError(errno.ECONNRESET, "the response broke off") from None
        last = errors.UpstreamInterrupted(error.message)
        # A half-sent event must not swallow the last one.
        between = b"" if self._tail in _EVENT_ENDS else b"\n\n"
        return between + b"data: " + last.body() + b"\n\n"

    def close(self) -> None:
        """Give back the connection or cut it; take the usage into the record. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        record, request = self._context.record, self._request
        if self._handed_over:
            record.waited_for_client += clock() - self._handed_over
        self._context.scope.close()
        if not self._response.body.complete:
            self._response.close()
        request.release()
        if not record.model:
            record.model = request.named_model[:MAX_NAME]
        record.completed(
            self._extractor.extracted(),
            ended=self._ended,
            used=not request.endpoint.reports_stored_usage,
            expected=request.endpoint.metered and self._context.snapshot.settings.server.metering,
        )
