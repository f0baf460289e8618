"""The one record of a request, filled in as it goes and read when it is over.

Metrics, the log line and the ledger are all views of a finished `RequestRecord`. Nothing counts in
the middle of the flow, so they cannot disagree. (`Server-Timing` is what is known when headers go.)

Times are `time.perf_counter()` seconds. A request's duration is split into three: `upstream`
(waiting for the provider), `client` (waiting for the caller to send or to take bytes) and the
rest, which is the gateway's own overhead.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Final

from wrapper.metering import Usage

COMPLETED: Final = "completed"
CLIENT_ERROR: Final = "client_error"
REJECTED: Final = "rejected"
CLIENT_ABORT: Final = "client_abort"
UPSTREAM_ERROR: Final = "upstream_error"
DRAINED: Final = "drained"
NO_KEY: Final = "none"
NO_MODEL: Final = "none"
UNMATCHED: Final = "(unmatched)"
MAX_NAME: Final = 256  # characters of a model's name that are kept; a caller may send megabytes

# What a gateway error means for the outcome; other 4xx are the caller's mistake.
_REJECTIONS = frozenset({401, 403, 429, 503})


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request and what became of it."""

    method: str
    path: str = UNMATCHED  # the route's pattern, never what a stranger typed
    client: str = ""
    request_id: str = field(default_factory=lambda: "req_" + os.urandom(12).hex())
    at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)

    api_key: str = NO_KEY
    provider: str = ""
    model: str = ""
    stream: bool = False
    relayed: bool = False  # a provider was asked
    in_flight: bool = False  # counted in `requests_in_flight`

    status: int = 0
    outcome: str = ""
    error_code: str | None = None
    upstream_request_id: str | None = None
    upstream_errors: list[tuple[str, str]] = field(default_factory=list)  # provider, reason

    usage: Usage | None = None
    cost: int | None = None  # pico-USD
    unmetered: str | None = None  # why a 2xx has no usage

    bytes_in: int = 0
    bytes_out: int = 0
    upstream: float = 0.0
    waited_for_client: float = 0.0
    ttft: float | None = None
    duration: float = 0.0

    @property
    def overhead(self) -> float:
        """Seconds spent in the gateway itself; exact once the record is finished."""
        total = self.duration or time.perf_counter() - self.started
        return max(0.0, total - self.upstream - self.waited_for_client)

    def refuse(self, status: int, code: str) -> None:
        """The gateway answered with an error of its own."""
        self.status = status
        self.error_code = code
        if self.outcome:
            return
        if status in _REJECTIONS:
            self.outcome = REJECTED
        elif status >= 500:  # a bug of ours too: whoever called is not at fault
            self.outcome = UPSTREAM_ERROR
        else:
            self.outcome = CLIENT_ERROR

    def finish(self) -> None:
        """Stop the clock and give the outcome that follows from the status, if none was set."""
        self.duration = time.perf_counter() - self.started
        if not self.outcome:
            self.outcome = outcome_of(self.status)

    def server_timing(self) -> str:
        """`Server-Timing` (W3C) with durations in milliseconds, as known when headers go out."""
        parts = [
            f"gateway;dur={self.overhead * 1e3:.3f}",
            f"upstream;dur={self.upstream * 1e3:.3f}",
        ]
        if self.ttft is not None:
            parts.append(f"ttft;dur={self.ttft * 1e3:.3f}")
        return ", ".join(parts)


def is_providers_failure(status: int) -> bool:
    """Whether a provider's status says that it, and not the caller, has failed."""
    return status == 429 or status >= 500


def outcome_of(status: int) -> str:
    """The outcome of a call that a provider answered with `status`."""
    if is_providers_failure(status):
        return UPSTREAM_ERROR
    return CLIENT_ERROR if status >= 400 else COMPLETED
