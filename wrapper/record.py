"""The one record of a request: filled in while it is handled, read when it is over.

Metrics, the log line and the ledger are all views of a finished `RequestRecord`. Nothing counts in
the middle of the flow, so they cannot disagree. (`Server-Timing` is what is known when headers go.)

Times are `time.perf_counter()` seconds. A request's duration is split into three: `upstream`
(waiting for the provider), waiting for the client to send or to take bytes, and the rest, which is
the gateway's own overhead.

Outcomes go through the methods below, measurements are assigned. How a request ends is said by one
method each, and the first one that says an outcome wins::

    refused     the gateway responded with an error of its own
    aborted     the client closed the connection
    cut_off     the gateway ended it: a limit has no room for more, or it cannot be read
    drained     the worker stopped before the response was complete
    failed      the provider failed after its response had begun
    completed   nothing more is passed through: the response was, to its end, or the client left
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, Protocol

import msgspec
from msgspec import field

from wrapper.endpoints import OTHER, Endpoint
from wrapper.metering import ExtractedUsage, Usage
from wrapper.metering.bounds import Bounds
from wrapper.metering.usage import ABORTED, NO_USAGE, TOO_LARGE, TRUNCATED

COMPLETED: Final = "completed"
CLIENT_ERROR: Final = "client_error"
REJECTED: Final = "rejected"
CLIENT_ABORT: Final = "client_abort"
UPSTREAM_ERROR: Final = "upstream_error"
DRAINED: Final = "drained"
NO_KEY: Final = "none"
NO_MODEL: Final = "none"
NO_PROVIDER: Final = "none"
UNMATCHED: Final = "(unmatched)"
WEBSOCKET: Final = "WEBSOCKET"  # the method of a response that came over one
MAX_NAME: Final = 256  # characters of a model's name that are kept; a client may send megabytes

_IDS: Final = 64  # at once

# What a gateway error means for the outcome; other 4xx are the client's mistake.
_REJECTIONS = frozenset({401, 403, 429, 503})


def _more_ids() -> list[str]:
    """Ids of 96 random bits each. The system is asked for many at once: one call takes as long."""
    random = os.urandom(12 * _IDS).hex()
    return [f"req_{random[at : at + 24]}" for at in range(0, 24 * _IDS, 24)]


def _begin_ids() -> Iterator[str]:
    global _ids
    _ids = chain.from_iterable(iter(_more_ids, None))
    return _ids


_ids = _begin_ids()
os.register_at_fork(after_in_child=_begin_ids)  # no two processes have the same ones


class Content(Protocol):
    """The request's body as it is read: bytes so far, seconds spent waiting for the client."""

    received: int
    waited: float
    ended: bool

    def close(self) -> None:
        """Give back what the body holds."""


class RequestRecord(msgspec.Struct, eq=False):
    """One request and what became of it."""

    method: str
    path: str = UNMATCHED  # the route's pattern, never the path that was requested
    client: str = ""
    request_id: str = field(default_factory=lambda: next(_ids))
    at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)

    is_proxy_request: bool = False  # counts for the key's metrics and the ledger
    api_key: str = NO_KEY
    provider: str = ""
    model: str = ""
    # What the client asked for; once the response has begun, whether it is an event stream.
    stream: bool = False
    relayed: bool = False  # a provider was asked
    in_flight: bool = False  # counted in `requests_in_flight`
    content: Content | None = None  # its body, where it was read
    lease: Any = None  # what admission reserved for it
    deferred: Any = None  # the work that it has started and that is booked when it has ended
    dry_run: list[str] = field(default_factory=list)  # codes of refusals that are not enforced

    status: int = 0
    outcome: str = ""
    error_code: str | None = None
    upstream_request_id: str | None = None
    upstream_errors: list[tuple[str, str]] = field(default_factory=list)  # provider, reason
    attempts: int = 0

    usage: Usage | None = None
    served_model: str = ""  # as the response names it
    cost: int | None = None  # pico-USD
    unpriced: str | None = None  # the part of the usage that has no known price
    cost_by_kind: tuple[int, int, int, int] = (0, 0, 0, 0)  # as `Priced.kinds`
    unmetered: str | None = None  # why the usage of a 2xx is not known
    bounded: str | None = None  # why it lies between `bounds`: given up, or broken off
    bounds: Bounds | None = None
    output_fields: tuple[bytes, ...] = ()  # how much the request lets the model write
    media: bool = False  # its body is a form or a file
    tag: str = ""  # who inside the key it is for
    endpoint: Endpoint = OTHER
    seen: ExtractedUsage | None = None  # what has come of a response that is bounded

    bytes_in: int = 0
    bytes_out: int = 0
    upstream: float = 0.0
    waited_for_client: float = 0.0  # to take bytes; `content.waited` is the time to send them
    ttft: float | None = None
    duration: float = 0.0
    overhead: float = 0.0

    def attempted(self, provider: str, model: str) -> None:
        """The request is about to be sent to this provider, under this model's name."""
        self.provider, self.model, self.relayed = provider, model[:MAX_NAME], True
        self.attempts += 1

    @property
    def failovers(self) -> list[tuple[str, str]]:
        """The failures after which the next target was asked: of each attempt but the last."""
        return self.upstream_errors[: self.attempts - 1] if self.attempts > 1 else []

    def upstream_failed(self, reason: str) -> None:
        """The attempt at the present provider failed; `reason` is the metric's label."""
        self.upstream_errors.append((self.provider, reason))

    def refused(self, status: int, code: str) -> None:
        """The gateway responded with an error of its own."""
        self.status, self.error_code = status, code
        if status in _REJECTIONS:
            self._end(REJECTED)
        else:  # a bug of ours counts as a failure too: the client is not at fault
            self._end(UPSTREAM_ERROR if status >= 500 else CLIENT_ERROR)

    def aborted(self) -> None:
        """The client closed the connection before the response was complete."""
        self._end(CLIENT_ABORT)

    def drained(self) -> None:
        """The worker stopped before the response was complete."""
        self._end(DRAINED)

    def unanswered(self) -> None:
        """The request was sent and given up before its response."""
        self.bounded = ABORTED

    def cut_off(self, code: str, *, by_client: bool = False) -> None:
        """The gateway ended what had begun: a limit of the caller's has no room for more, or, where
        it was caused `by_client`, what they sent cannot be read.
        """
        self.error_code = code
        self._end(CLIENT_ERROR if by_client else REJECTED)

    def failed(self, reason: str) -> None:
        """The provider failed after its response had begun."""
        self.upstream_failed(reason)
        self._end(UPSTREAM_ERROR)

    def completed(
        self, extracted: ExtractedUsage, endpoint: Endpoint, *, ended: bool, metering: bool
    ) -> None:
        """Nothing more is passed through: take over what the usage extractor has read.

        `ended`: the response is whole; else, unless it is known why not, the client has gone.
        `metering`: a response that should report what it used and does not is counted.
        """
        if not ended:
            self.aborted()
        elif extracted.error and self.status < 300:
            self.failed("error_event")
        # What is shown of a stored response was counted when that was made, and what goes on after
        # the request is counted when it has ended.
        used = not endpoint.reports_stored_usage and self.deferred is None
        if used and extracted.usage is not None:
            self.usage = extracted.usage
            self.served_model = (extracted.model or "")[:MAX_NAME]
            # A request may leave the model to the provider, as one with a stored prompt does.
            self.model = self.model or self.served_model
        if self.usage is None and metering and 200 <= self.status < 300 and self.deferred is None:
            if endpoint.metered and not ended:
                self.bounded = ABORTED if self.outcome in (CLIENT_ABORT, DRAINED) else TRUNCATED
                self.seen = extracted
            else:
                self.unmetered = self._unmetered(extracted, endpoint)

    def _unmetered(self, extracted: ExtractedUsage, endpoint: Endpoint) -> str | None:
        """Why there is no usage; None where there is none to be expected."""
        if endpoint.metered:
            return (extracted.reason == NO_USAGE and endpoint.unreported) or extracted.reason
        if endpoint is OTHER and extracted.reason not in (NO_USAGE, TOO_LARGE):
            return None
        return endpoint.unreported or None

    def finish(self) -> None:
        """Stop the clock, release the body, and set the outcome that follows from the status, if
        none was set.
        """
        self.duration = time.perf_counter() - self.started
        waited = self.waited_for_client
        if self.content is not None:
            self.content.close()
            self.bytes_in = self.content.received
            waited += self.content.waited
        self.overhead = max(0.0, self.duration - self.upstream - waited)
        if not self.outcome:
            if self.status < 400:
                self.outcome = COMPLETED
            else:
                self.outcome = UPSTREAM_ERROR if is_provider_failure(self.status) else CLIENT_ERROR

    def _end(self, outcome: str) -> None:
        self.outcome = self.outcome or outcome

    def server_timing(self) -> str:
        """`Server-Timing` (W3C) with durations in milliseconds, as known when headers go out."""
        waited = self.content.waited if self.content is not None else 0.0
        total = time.perf_counter() - self.started
        overhead = max(0.0, total - self.upstream - self.waited_for_client - waited)
        text = f"gateway;dur={overhead * 1e3:.3f}, upstream;dur={self.upstream * 1e3:.3f}"
        return text if self.ttft is None else f"{text}, ttft;dur={self.ttft * 1e3:.3f}"


def is_provider_failure(status: int) -> bool:
    """Whether a provider's status means that it, and not the client, has failed."""
    return status == 429 or status >= 500
