"""The provider's own ledger: what arrived, what was really sent, and `/_sim/...` to read it.

Invariant: usage counts as sent once the system has taken the last byte of the piece that carries
it; other usage is `unsent`. A test that compares its sums with these compares them with the
provider's invoice.

`by_day` is that invoice: sums by day (UTC), endpoint and model, which `api.organization` reports
as OpenAI's usage and costs APIs do.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from wrapper.simulator.http import Request
from wrapper.simulator.response import Usage, encode


@dataclass(slots=True)
class Record:
    """One request and its outcome; times are `time.time()`."""

    id: str
    request: Request
    connection: int
    nth: int
    begun: float
    ended: float | None = None
    noticed: float | None = None
    outcome: str | None = None  # completed, aborted (by the client), broken (as instructed)
    status: int | None = None
    book: str = ""
    model: str = ""
    tier: str = ""
    parts: tuple[tuple[str, Usage], ...] = ()
    endpoint: str = ""
    stream: bool = False
    events: int = 0
    bytes: int = 0
    usage: Usage | None = None
    unsent: Usage | None = None

    def billed(self) -> tuple[tuple[str, Usage], ...]:
        """What was sent, by the model that it is billed to."""
        if self.usage is None:
            return ()
        return self.parts or ((self.model, self.usage),)

    def as_json(self) -> dict[str, Any]:
        """The record for `GET /_sim/requests`."""
        request = self.request
        return {
            "id": self.id,
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body_sha256": request.sha256,
            "body_length": request.length,
            "body_base64": base64.b64encode(request.sample).decode(),
            "connection": self.connection,
            "nth_on_connection": self.nth,
            "begun": self.begun,
            "ended": self.ended,
            "abort_noticed": self.noticed,
            "outcome": self.outcome,
            "status": self.status,
            "book": self.book,
            "model": self.model,
            "tier": self.tier,
            "endpoint": self.endpoint,
            "stream": self.stream,
            "events_sent": self.events,
            "bytes_sent": self.bytes,
            "usage": self.usage._asdict() if self.usage else None,
            "unsent": self.unsent._asdict() if self.unsent else None,
        }


@dataclass(slots=True)
class Totals:
    """One entry of the ledger."""

    requests: int = 0
    events: int = 0
    sent: list[int] = field(default_factory=lambda: [0] * len(Usage._fields))
    unsent: list[int] = field(default_factory=lambda: [0] * len(Usage._fields))

    def add(self, record: Record) -> None:
        """Count one more request, without what was sent."""
        self.requests += 1
        if record.unsent is not None:
            _add(self.unsent, record.unsent)

    def bill(self, usage: Usage) -> None:
        """Count what was sent."""
        _add(self.sent, usage)

    def as_json(self) -> dict[str, Any]:
        """Tokens that were sent at the top, the others under `unsent`."""
        sent = dict(zip(Usage._fields, self.sent, strict=True))
        return {
            "requests": self.requests,
            "events": self.events,
            **sent,
            "total": sent["prompt"] + sent["completion"],
            "unsent": dict(zip(Usage._fields, self.unsent, strict=True)),
        }


def _add(sums: list[int], usage: Usage) -> None:
    for place, number in enumerate(usage):
        sums[place] += number


class Ledger:
    """All records (the last `remember`) and the sums over every request."""

    def __init__(self, remember: int = 1000) -> None:
        self._remember = remember
        self.connections = 0
        self.accepted = 0
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """Delete all records and sums; requests in progress are still recorded at their end."""
        self.records: deque[Record] = deque(maxlen=self._remember)
        self._sums: dict[tuple[str, str, str, str, int, str], Totals] = {}
        self.by_day: dict[tuple[int, str, str], Totals] = {}  # day: Unix time / 86,400

    def begin(self, record: Record) -> None:
        self.open += 1
        self.records.append(record)

    def end(self, record: Record) -> None:
        """Add a finished request to the sums."""
        self.open -= 1
        record.ended = time.time()
        end = (record.endpoint, record.outcome or "", record.status or 0, record.tier)
        sums = self._sums.setdefault((record.book, record.model, *end), Totals())
        sums.events += record.events
        sums.add(record)
        for model, usage in record.billed():
            self._sums.setdefault((record.book, model, *end), Totals()).bill(usage)
        # What the provider refused or broke off itself is on no invoice.
        if record.outcome in ("completed", "aborted") and 200 <= (record.status or 0) < 300:
            day = (int(record.ended // 86_400), record.endpoint)
            self.by_day.setdefault((*day, record.model), Totals()).add(record)
            for model, usage in record.billed():
                self.by_day.setdefault((*day, model), Totals()).bill(usage)

    def bill(self, book: str, model: str, endpoint: str, usage: Usage) -> None:
        """Add what was used by work that went on after its request."""
        at = (book, model, endpoint, "completed", 200, "")
        self._sums.setdefault(at, Totals()).bill(usage)

    def as_json(self) -> list[dict[str, Any]]:
        """The entries of `GET /_sim/books`."""
        names = ("book", "model", "endpoint", "outcome", "status", "tier")
        return [
            {**dict(zip(names, key, strict=True)), **sums.as_json()}
            for key, sums in sorted(self._sums.items())
        ]

    def stats(self) -> dict[str, int]:
        """Open requests and connections, and the number of connections accepted so far."""
        return {name: getattr(self, name) for name in ("connections", "accepted", "open")}


def control(ledger: Ledger, request: Request) -> tuple[int, bytes]:
    """The status and the JSON body for `/_sim/...`; these requests are not recorded."""
    match request.method, request.path:
        case "GET", "/_sim/requests":
            book = request.query.get("book")
            picked = (record for record in ledger.records if book in (None, record.book))
            return 200, encode([record.as_json() for record in picked])
        case "GET", "/_sim/books":
            return 200, encode(ledger.as_json())
        case "GET", "/_sim/stats":
            return 200, encode(ledger.stats())
        case "POST", "/_sim/reset":
            ledger.reset()
            return 200, b"{}"
    return 404, encode({"error": {"message": "no such control path"}})
