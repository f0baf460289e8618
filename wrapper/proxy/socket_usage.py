"""What passes over a WebSocket, booked: each response is a request record of its own.

A record begins with `response.created` and is finalized with the event that ends the response; a
transcription of the input has one, too. What is open when the socket ends is finalized as a stream
that broke off is: what it used is bounded.

The socket's own record has no usage. Its lease holds the socket's place (`max_concurrent`) and the
estimate of one response for as long as it is open; each response that has ended is counted against
the key's other limits, and where these have no room for it the socket is closed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

from wrapper import errors
from wrapper.auth import Principal, expired
from wrapper.cancellation import yield_if_due
from wrapper.endpoints import NO_USAGE, Endpoint
from wrapper.formats.websocket import Message
from wrapper.metering import ExtractedUsage, content_begins
from wrapper.metering.events import SocketEvent, read_event
from wrapper.proxy.admit import dry_run_codes, limit_exceeded
from wrapper.proxy.cost import price
from wrapper.proxy.finalize import finalize
from wrapper.proxy.forward import Forwarded
from wrapper.proxy.objects import MAX_ID
from wrapper.proxy.request import ProxyRequest
from wrapper.record import MAX_NAME, UPSTREAM_ERROR, WEBSOCKET, RequestRecord
from wrapper.runtime import RequestContext
from wrapper.store import Demand, Refused, StoreError, Subject

MAX_OPEN: Final = 64  # responses of one socket that have begun and not ended
_RESPONSE: Final = Endpoint("", method=WEBSOCKET, metered=True)

clock = time.perf_counter


class SocketUsage:
    """The records of one socket."""

    def __init__(
        self,
        context: RequestContext,
        principal: Principal,
        request: ProxyRequest,
        forwarded: Forwarded,
    ) -> None:
        self._context = context
        self._principal = principal
        self._attempt = forwarded.attempt
        self._creates = request.endpoint.creates if principal.credential is None else None
        self._open: dict[str, _Open] = {}
        self._transcriber = ""
        self._count = 0
        self._unanswered = 0  # responses asked for since the provider has said something
        self._asked = forwarded.attempt.model  # the model that was asked for last
        self._output_fields: tuple[bytes, ...] = ()

    def read(self, message: Message) -> errors.GatewayError | None:
        """Take a message of the provider; the error where a limit has no room for what it used."""
        text = message.data
        self._unanswered = 0
        if text is not None:
            self._count_content(text)
        event = read_event(text, message.head)
        if event is None or not self._context.snapshot.settings.server.metering:
            return None
        return self._book(event)

    def _count_content(self, text: bytes) -> None:
        if b'.delta"' not in text or not content_begins(text):
            return
        for begun in self._open.values():
            if begun.record.ttft is None:
                begun.record.ttft = clock() - begun.record.started
            begun.content += len(self._open) == 1  # else it may be that of another response

    def _book(self, event: SocketEvent) -> errors.GatewayError | None:
        if event.kind == "session":
            self._transcriber = event.transcriber[:MAX_NAME] or self._transcriber
            self._asked = self._asked or event.model[:MAX_NAME]
            return None
        if event.kind == "begun":
            if self._creates is not None and 0 < len(event.id) <= MAX_ID:
                provider = self._attempt.upstream.provider.name
                self._context.runtime.objects.remember(event.id, self._creates, provider)
            if len(self._open) < MAX_OPEN:
                begun = _Open(self._begin(self._asked or event.model, event.id))
                self._open[event.id[:MAX_NAME]] = begun  # it may be megabytes
            return None
        if event.kind == "transcribed":
            record = self._begin(self._transcriber or self._asked)
        else:
            # Of a message that was too large to be kept no id is known.
            ended = self._open.pop(event.id[:MAX_NAME] or next(iter(self._open), ""), None)
            record = ended.record if ended else self._begin(self._asked or event.model, event.id)
        record.completed(event.extracted, _RESPONSE, ended=True, metering=True)
        refusal = self._count_against_limits(record)
        self._finalize(record)
        yield_if_due()  # a piece may have a thousand of these
        return refusal

    def asks(self, model: str, output_fields: tuple[bytes, ...]) -> None:
        """The client asks for a response."""
        self._asked, self._output_fields = model or self._asked, output_fields
        self._unanswered += 1

    def refused(self, error: errors.GatewayError) -> None:
        """A message of the client asked for what it may not have."""
        record = self._begin("")
        record.relayed = False
        record.refused(error.status, error.label or error.code)
        self._finalize(record)

    def end(self, socket: RequestRecord) -> None:
        """The socket has ended, as its record says: so have the responses that are open, and those
        that the provider may be about to begin.
        """
        if self._context.snapshot.settings.server.metering and socket.outcome != UPSTREAM_ERROR:
            for number in range(min(self._unanswered, MAX_OPEN - len(self._open))):
                self._open[f"unanswered {number}"] = _Open(self._begin(self._asked))
        while self._open:
            begun = self._open.pop(next(iter(self._open)))
            record = begun.record
            record.outcome = socket.outcome
            record.bytes_in = socket.bytes_in  # all that the client has said may be its prompt
            record.upstream_errors = list(socket.upstream_errors)
            seen = ExtractedUsage(None, None, NO_USAGE, content=begun.content)
            record.completed(seen, _RESPONSE, ended=False, metering=True)
            if not self._open:  # the last one has the socket's estimate
                record.lease, socket.lease = socket.lease, None
            self._finalize(record)

    def _begin(self, model: str, name: str = "") -> RequestRecord:
        socket = self._context.record
        self._count += 1
        record = RequestRecord(
            method=WEBSOCKET,
            path=socket.path,
            endpoint=socket.endpoint,
            client=socket.client,
            request_id=f"{socket.request_id}-{self._count}",
            is_proxy_request=True,
            api_key=socket.api_key,
            stream=True,
            status=200,
            upstream_request_id=name[:MAX_NAME] or None,
            output_fields=self._output_fields,
            tag=socket.tag,
        )
        record.attempted(self._attempt.upstream.provider.name, model)
        self._context.runtime.telemetry.proxy_request_started()
        return record

    def _finalize(self, record: RequestRecord) -> None:
        record.upstream = clock() - record.started
        finalize(record, self._context.runtime, self._context.snapshot)

    def _count_against_limits(self, record: RequestRecord) -> errors.GatewayError | None:
        """Reserve what a response has used; the error where there was no room for it, or where the
        key is not valid any more: the configuration is the present one.
        """
        key, snapshot = self._principal.key, self._context.runtime.snapshot
        if key is None:
            return None
        now = snapshot.settings.keys.get(key.name)
        if now is None or key.sha256 not in now.sha256s or expired(now):
            return errors.InvalidApiKey("The API key has been revoked, or has expired.")
        if not snapshot.limits.any:
            return None
        provider = snapshot.limits.of_provider(record.provider)
        subjects = [*snapshot.limits.of_key(key.name), *filter(None, [provider])]
        socket, demand = self._context.record, Demand()
        if record.usage is not None:
            price(record, self._context.snapshot, record.usage, record.served_model)
            demand = Demand(record.usage.total, record.cost or 0)
        elif record.unmetered is not None and socket.lease is not None:
            demand = socket.lease.demand  # the estimate of one response
        try:
            record.lease = self._context.runtime.admission.admit(
                map(_without_place, subjects), demand
            )
        except Refused as refusal:
            if record.unmetered is not None:  # it costs the estimate that the socket has
                record.lease, socket.lease = socket.lease, None
            return limit_exceeded(refusal, record.endpoint)
        except StoreError as error:
            self._context.runtime.store_failed(error)
            return None if key.store_failure == "allow" else errors.StoreUnavailable()
        record.dry_run += dry_run_codes(record.lease)
        return None


@dataclass(slots=True)
class _Open:
    """A response that has begun, and its events with content so far."""

    record: RequestRecord
    content: int = 0


def _without_place(subject: Subject) -> Subject:
    """The socket itself has the place."""
    limits = replace(subject.limits, max_concurrent=None)
    return Subject(subject.name, limits, subject.members)
