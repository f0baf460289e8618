"""The provider's own books: what arrived, and what was really sent.

Use counts as sent once the system has taken the last byte of the piece that carries it. Use
that never got so far stands apart as `unsent`. A test that compares its own sums with these
compares them with what a provider's invoice would say.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from wrapper.simulator.http import Request
from wrapper.simulator.replies import Usage


@dataclass(slots=True)
class Record:
    """One request and what became of it; times are `time.time()`."""

    id: str
    request: Request
    connection: int
    nth: int
    begun: float
    ended: float | None = None
    noticed: float | None = None
    outcome: str | None = None  # completed, aborted (by the caller), broken (as ordered)
    status: int | None = None
    book: str = ""
    model: str = ""
    endpoint: str = ""
    stream: bool = False
    events: int = 0
    bytes: int = 0
    usage: Usage | None = None
    unsent: Usage | None = None

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
            "endpoint": self.endpoint,
            "stream": self.stream,
            "events_sent": self.events,
            "bytes_sent": self.bytes,
            "usage": self.usage._asdict() if self.usage else None,
            "unsent": self.unsent._asdict() if self.unsent else None,
        }


@dataclass(slots=True)
class Sums:
    """One line of the books."""

    requests: int = 0
    events: int = 0
    sent: list[int] = field(default_factory=lambda: [0] * 5)
    unsent: list[int] = field(default_factory=lambda: [0] * 5)

    def as_json(self) -> dict[str, Any]:
        """Sums as JSON: tokens that were sent at the top, the others under `unsent`."""
        sent = dict(zip(Usage._fields, self.sent, strict=True))
        return {
            "requests": self.requests,
            "events": self.events,
            **sent,
            "total": sent["prompt"] + sent["completion"],
            "unsent": dict(zip(Usage._fields, self.unsent, strict=True)),
        }


class Books:
    """All records (the last `remember`) and the sums over every request."""

    def __init__(self, remember: int = 1000) -> None:
        self._remember = remember
        self.connections = 0
        self.accepted = 0
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """Forget all records and sums; requests under way are still entered at their end."""
        self.records: deque[Record] = deque(maxlen=self._remember)
        self._sums: dict[tuple[str, str, str, str, int], Sums] = {}

    def begin(self, record: Record) -> None:
        self.open += 1
        self.records.append(record)

    def end(self, record: Record) -> None:
        """Enter a finished request into the sums."""
        self.open -= 1
        record.ended = time.time()
        key = (
            record.book,
            record.model,
            record.endpoint,
            record.outcome or "",
            record.status or 0,
        )
        sums = self._sums.get(key)
        if sums is None:
            sums = self._sums[key] = Sums()
        sums.requests += 1
        sums.events += record.events
        for into, usage in ((sums.sent, record.usage), (sums.unsent, record.unsent)):
            if usage is not None:
                for place, number in enumerate(usage):
                    into[place] += number

    def as_json(self) -> list[dict[str, Any]]:
        """The lines of `GET /_sim/books`."""
        names = ("book", "model", "endpoint", "outcome", "status")
        return [
            {**dict(zip(names, key, strict=True)), **sums.as_json()}
            for key, sums in sorted(self._sums.items())
        ]

    def stats(self) -> dict[str, int]:
        """Requests and connections open now, and how many connections there have been."""
        return {
            "connections": self.connections,
            "accepted": self.accepted,
            "open": self.open,
        }
