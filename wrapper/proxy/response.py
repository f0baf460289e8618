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

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from wrapper import errors
from wrapper.cancellation import TIMEOUT, TURN, Interrupted, within, yield_if_due
from wrapper.formats.http1 import ChunkedBody
from wrapper.formats.media import is_json
from wrapper.metering import (
    ExtractedUsage,
    NullExtractor,
    Usage,
    UsageExtractor,
    content_begins,
    exact_usd,
    extractor_for,
)
from wrapper.metering.stream import StreamExtractor
from wrapper.proxy.admit import with_rate_limits
from wrapper.proxy.batches import FILE, remember_file
from wrapper.proxy.body import SMALL
from wrapper.proxy.cost import price
from wrapper.proxy.deferred import remember, saw_end_of_request
from wrapper.proxy.forward import Forwarded, interrupted
from wrapper.proxy.objects import remember_created
from wrapper.proxy.pump import Client, Pump
from wrapper.proxy.request import ProxyRequest
from wrapper.record import CLIENT_ABORT, MAX_NAME
from wrapper.runtime import RequestContext

clock = time.perf_counter

# How an event ends: a line end and an empty line. After any other end an empty line is sent first,
# which is no event by itself.
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")

# What is read of a body after the event that ends it, so that the provider's connection lives.
REST_SECONDS = 0.1
REST_BYTES = 1 << 16

TINY = 1024  # bytes of a request's body that are not worth letting go of

_CHARACTER = "character"  # the unit of speech

_decode_input = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


def stream(
    context: RequestContext, request: ProxyRequest, forwarded: Forwarded
) -> StreamedResponse:
    """The client's response: the provider's status, headers and body, and the gateway's headers."""
    record, response = context.record, forwarded.response
    media, coding = response.media_type, response.coding
    record.status = response.status
    record.stream = response.is_event_stream
    record.upstream_request_id = response.request_id
    if request.endpoint.creates is not None:
        _remember(context, request, forwarded)
    strip = forwarded.strip_usage and record.stream and not coding
    has_length = response.length is not None and not strip and response.status != 204
    metering = context.snapshot.settings.server.metering
    # Free the request's body: it has been sent, and a stream lasts for minutes. (Speech is billed
    # by its characters at the end.)
    kept = request.endpoint.by_character or response.body.complete
    if not kept and isinstance(request.body, bytes) and len(request.body) > TINY:
        if len(request.body) > SMALL and record.content is not None:
            record.content.close()
        request = replace(request, body=None)
    credential = forwarded.attempt.credential
    if credential is not None and request.method == "POST" and response.status < 300:
        context.runtime.capacity.newcomers.accepted(context.scope, credential)
    body = StreamingBody(
        context,
        request,
        forwarded,
        extractor_for(media, coding, strip_usage=strip, sights=request.endpoint.shows is not None)
        if metering
        else NullExtractor(),
        error_event=record.stream and not coding and not has_length,
    )
    down, response.headers = response.headers, []
    if record.lease is not None:
        down = with_rate_limits(down, record.lease.standings)
    if has_length:
        down.append(("Content-Length", str(response.length)))
    if not response.request_id:
        down.append(("x-request-id", record.request_id))
    if record.stream or (not has_length and media and not is_json(media)):
        # nginx would collect the stream.
        down = [pair for pair in down if pair[0].lower() != "x-accel-buffering"]
        down.append(("X-Accel-Buffering", "no"))
    whole = response.body.complete and not record.stream and metering and response.status < 300
    if whole and (cost := body.cost_of_whole()) is not None:
        down.append(("x-wrapper-cost-usd", exact_usd(cost)))
    down.append(("x-wrapper-provider", forwarded.attempt.upstream.provider.name))
    down.append(("Server-Timing", record.server_timing()))
    return StreamedResponse(body, f"{response.status} {response.reason}".rstrip(), down)


def _unchanged(data: bytes) -> bytes:
    return data


def _remember(context: RequestContext, request: ProxyRequest, forwarded: Forwarded) -> None:
    """Before the client learns of it: what the request has created, and what goes on after it."""
    created = remember_created(context, request, forwarded)
    if created is not None:
        remember(context, request, forwarded.attempt, created)
        if request.endpoint.creates == FILE:
            remember_file(context, request, forwarded.attempt.upstream, created.id)


class RelayedBody(Iterator[bytes], Protocol):
    """The body of a `StreamedResponse`.

    The server (`server.connection`) uses two more members where a body has them:
    `send_through(client)`, called before the first piece of a chunked response, allows the body to
    send chunks to the client itself between two pieces; `ended`, true with a piece, says that none
    follows, so that the last chunk goes with it.
    """

    def close(self) -> None:
        """Nothing more is iterated."""


class StreamedResponse:
    """A provider's response, with its headers as they are; an application and its iterable.

    Flask's own would be made, corrected and converted for each request. Closing it closes the body
    and then calls `on_close`.
    """

    __slots__ = ("_body", "headers", "on_close", "status")

    def __init__(self, body: RelayedBody, status: str, headers: list[tuple[str, str]]) -> None:
        self._body = body
        self.headers, self.status = headers, status
        self.on_close: Callable[[], object] = lambda: None

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """The response itself is the iterable, so that the server's `close()` reaches it."""
        start_response(self.status, self.headers)
        self.headers = []  # a stream has no use for them
        return self if environ["REQUEST_METHOD"] != "HEAD" else _Bodiless(self)

    def __iter__(self) -> Iterator[bytes]:
        return self._body

    def close(self) -> None:
        """The body is not iterated any more, whether to its end or not."""
        try:
            self._body.close()
        finally:
            self.on_close()


class _Bodiless:
    """The response to a HEAD request: closed like any other, with no body to iterate."""

    def __init__(self, response: StreamedResponse) -> None:
        self.close = response.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


class StreamingBody:
    """A response's body on its way down: an iterator of bytes.

    `error_event`: an event reports that it broke off. (Not so in compressed bytes, nor where the
    event would count into a length that was promised.) `ended`: no bytes follow those given last.
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
        self._attempt = forwarded.attempt
        self._response = forwarded.response
        self._first = forwarded.first
        self._extractor = extractor
        self._feed: Callable[[bytes], bytes] = extractor.feed
        self._upstream_at_first_byte = context.record.upstream
        if context.record.stream:
            self._feed = self._feed_until_content
        self._error_event = error_event
        self.ended = self._response.body.complete and not self._first
        self._broken = False
        self._closed = False
        # Whether the client has left without the end; known here where its leaving ends no wait.
        self._gone = context.scope.client_left
        self._extracted: ExtractedUsage | None = None  # of a response that was whole at once
        self._tail = b""  # the end of what was sent last; empty before the first byte
        self._client: Client | None = None
        self._pump: Pump | None = None  # from the first event with content on
        self._yielded = clock()  # when other requests could last run, as far as is known here
        self._handed_over = 0.0
        if self.ended:
            extractor.flush()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def send_through(self, client: Client) -> None:
        """The pump may send chunks to `client` itself between two pieces; see RelayedBody."""
        self._client = client

    def __next__(self) -> bytes:
        record = self._context.record
        if self._handed_over:  # what was handed over last has been sent: that was the client's time
            record.waited_for_client += clock() - self._handed_over
            self._handed_over = 0.0
        if self._broken:
            # The server cuts the connection on this, without a final chunk and without a log line.
            raise ConnectionResetError(errno.ECONNRESET, "the response broke off")
        body, out = self._response.body, b""
        try:
            while not out:
                if self.ended:
                    raise StopIteration
                data, self._first = self._first or self._read(), b""
                if data:
                    out = self._feed(data)
                if body.complete or not data:
                    self.ended = True
                    out += self._extractor.flush()
                elif not out:
                    yield_if_due()
        except (errors.UpstreamError, errors.Cancelled) as error:
            out = self._break(error)
        record.bytes_out += len(out)
        self._tail = out[-4:]
        self._handed_over = clock()
        if self._handed_over - self._yielded > TURN:
            yield_if_due()
            self._yielded = self._handed_over = clock()
        return out

    def cost_of_whole(self) -> int | None:
        """What a response that is here as a whole has cost, before it goes down; None where that
        is not known.
        """
        record, request = self._context.record, self._request
        self._first = self._extractor.feed(self._first) + self._extractor.flush()
        self._feed = _unchanged
        extracted = self._extracted = self._extractor.extracted()
        used = not request.endpoint.reports_stored_usage and record.deferred is None
        if extracted.usage is None or not used:
            return None
        served = (extracted.model or "")[:MAX_NAME]
        record.model = record.model or request.named_model[:MAX_NAME] or served
        price(record, self._context.snapshot, extracted.usage, served)
        return record.cost

    def _feed_until_content(self, data: bytes) -> bytes:
        """The time to the first token is that of the first event with content.

        Why: a provider may send comments or a chunk with a role long before it responds.
        """
        begins = content_begins(data)
        if begins:
            record = self._context.record
            if isinstance(self._extractor, StreamExtractor):
                self._extractor.marker = begins
            if record.ttft is not None:
                record.ttft += record.upstream - self._upstream_at_first_byte
            self._feed = self._extractor.feed
            body, extractor = self._response.body, self._extractor
            if (
                self._client is not None
                and isinstance(body, ChunkedBody)
                and isinstance(extractor, StreamExtractor)
            ):
                self._pump = Pump(self._context, body, extractor, self._client)
        return self._extractor.feed(data)

    def _read(self) -> bytes:
        """The bytes that have come; none where the client has all of the stream that matters.

        A client leaves when it has read the event that ends a stream in its dialect, which may be
        before the provider ends the body.
        """
        began = clock()
        scope, pump = self._context.scope, self._pump
        try:
            if pump is not None and self._tail:  # it must not send before the head has gone down
                pump.move()
            with scope:
                data = self._response.read1()
            if scope.client_left and not self._gone:
                self._gone = not self._extractor.extracted().terminal
            return data
        except Interrupted as interruption:
            if interruption.reason != TIMEOUT and self._extractor.extracted().terminal:
                return b""
            raise interrupted(self._context, interruption.reason) from None
        finally:
            now = clock()
            self._context.record.upstream += now - began - (pump.busy if pump is not None else 0.0)
            if now - began > TURN:  # it was a wait, in which the others ran
                self._yielded = now

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
        ended = not self._tail or self._tail.endswith(_EVENT_ENDS)
        between = b"" if ended else b"\n\n"
        return between + b"data: " + last.body() + b"\n\n"

    def close(self) -> None:
        """Give back the connection or cut it; take the usage into the record. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        self._feed = _unchanged  # break the cycle: it may be a bound method of this object
        record, request = self._context.record, self._request
        if self._handed_over:
            record.waited_for_client += clock() - self._handed_over
        extracted = self._extracted or self._extractor.extracted()
        if self._context.scope.grace and self._may_drain(extracted):
            self._drain()
            extracted = self._extractor.extracted()
        if self._gone:
            record.aborted()
        self._context.scope.close()
        if not self._response.body.complete:
            if extracted.terminal:
                self._read_rest()
            self._response.close()
        if not record.model:
            record.model = request.named_model[:MAX_NAME]
        if request.endpoint.by_character and self.ended and 200 <= record.status < 300:
            extracted = self._by_character(extracted)
        metering = self._context.snapshot.settings.server.metering
        record.completed(extracted, request.endpoint, ended=self.ended, metering=metering)
        if record.deferred is not None or (
            request.endpoint.shows is not None and self._attempt.credential is None
        ):
            saw_end_of_request(self._context, request, extracted)

    def _may_drain(self, extracted: ExtractedUsage) -> bool:
        """Whether the rest of the response is read without the client, for its usage."""
        return (
            not (self.ended or self._broken or extracted.terminal)
            and extracted.usage is None
            and self._request.method == "POST"
        )

    def _drain(self) -> None:
        """Read what the provider goes on sending, for at most the grace period."""
        scope, record, began = self._context.scope, self._context.record, clock()
        self._gone = True
        scope.leave()
        with contextlib.suppress(errors.UpstreamError, Interrupted):
            data, self._first = self._first, b""
            while data or not self._response.body.complete:
                if data:
                    self._extractor.feed(data)
                    yield_if_due()
                with scope:
                    data = b"" if self._response.body.complete else self._response.read1()
            self._extractor.flush()
        record.upstream += clock() - began

    def _read_rest(self) -> None:
        """Read what follows the last event, so that the provider's connection can be kept."""
        moved, deadline = 0, clock() + REST_SECONDS
        with contextlib.suppress(errors.UpstreamError, Interrupted), within(REST_SECONDS):
            while not self._response.body.complete and moved < REST_BYTES and clock() < deadline:
                moved += len(self._response.read1())

    def _by_character(self, extracted: ExtractedUsage) -> ExtractedUsage:
        """Speech reports nothing; some models are billed by the characters of the request."""
        upstream, record = self._attempt.upstream, self._context.record
        priced = self._context.snapshot.prices.has_unit
        if extracted.usage is not None or not priced(
            upstream.provider.name, upstream.host, record.model, _CHARACTER
        ):
            return extracted
        try:
            text = _decode_text(_decode_input(self._request.body)["input"])  # type: ignore[arg-type]
        except (ValueError, KeyError, TypeError):
            return extracted
        return ExtractedUsage(Usage(0, 0, 0, units=((_CHARACTER, len(text)),)), None, None)
