"""The request log: each finished record as one JSON line on standard output; on a terminal as a
line of text for people.

Invariant: no secret, query string or body gets into a line; no text from a caller or a provider
makes it longer than a pipe takes at once, or holds characters that command a terminal. Where stdout
fails or is not read, lines are dropped; no request fails, and none waits for longer than a second.
"""

from __future__ import annotations

import json
import logging
import re
import time
from functools import lru_cache
from typing import Any

import msgspec

from wrapper.metering import PICO
from wrapper.output import QueuedOutput, is_terminal
from wrapper.record import NO_KEY, RequestRecord
from wrapper.telemetry.instruments import LOST_LINES, METHODS, OTHER

MAX_MODEL_LENGTH = 200  # characters of a name in the log, less than the record keeps
MAX_ID_LENGTH = 200
MAX_LINE = 4096  # bytes; of more than a pipe takes at once, two workers' lines mix
SHORT = 40  # characters of each text, where a line would be longer

_MIN_STATUS = {"debug": 0, "info": 0, "warning": 400, "error": 500}

log = logging.getLogger("wrapper")
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct):
    """A line's fields, in their order."""

    time: str = ""
    level: str = ""
    request_id: str = ""
    upstream_request_id: str | None = None
    client: str = ""
    method: str = ""
    path: str = ""
    endpoint: str | None = None
    status: int = 0
    outcome: str = ""
    code: str | None = None
    dry_run: str | None = None
    api_key: str = ""
    tag: str | None = None
    provider: str | None = None
    model: str | None = None
    stream: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    served_model: str | None = None
    service_tier: str | None = None
    units: dict[str, float] | None = None
    cost_usd: float | None = None
    unmetered: str | None = None
    bounded: str | None = None
    tokens_low: int | None = None
    tokens_high: int | None = None
    cost_usd_low: float | None = None
    cost_usd_high: float | None = None
    unpriced: str | None = None
    ttft_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float = 0.0
    duration_ms: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0


class RequestLog:
    """Writes a line for each record whose status fits the log level."""

    def __init__(self, log_level: str = "info") -> None:
        self._min_status = _MIN_STATUS.get(log_level, 0)
        self._output = QueuedOutput()
        self._counted = 0  # lost lines
        self._encode = text_line if is_terminal(1) else encode
        self._failing = False

    def write(self, record: RequestRecord) -> None:
        """Write the record's line, or drop it; the first of several failures is reported."""
        if record.status < self._min_status:
            return
        try:
            self._output.write(self._encode(line(record)) + b"\n")
        except OSError as error:
            self._count()
            if not self._failing:
                log.error("request lines cannot be written to stdout: %s", error.strerror)
            self._failing = True
        else:
            self._failing = False

    def flush(self) -> None:
        """At the end: give a slow reader a moment for the lines that wait."""
        self._output.flush()
        self._count()

    def _count(self) -> None:
        lost = self._output.lost
        LOST_LINES["stdout",].inc(lost - self._counted)
        self._counted = lost


def encode(fields: Line) -> bytes:
    """The line as JSON without unprintable characters.

    JSON itself escapes C0 controls alone, not DEL, C1 (U+009B begins a terminal's commands) or
    marks of direction (U+202E).
    """
    text = _encode(fields)
    if not text.isascii() or b"\x7f" in text:
        text = _UNUSUAL.sub(_escape, text.decode()).encode()
    if len(text) >= MAX_LINE:
        values = msgspec.structs.asdict(fields)
        if any(len(str(value)) > SHORT for value in values.values()):
            return encode(Line(**{name: _short(value) for name, value in values.items()}))
    return text


def text_line(fields: Line) -> bytes:
    """What matters of the line for people."""
    at = time.strftime("%H:%M:%S", time.localtime())
    path = fields.path.replace("/<path>", fields.endpoint or "/<path>")
    parts = [at, str(fields.status), fields.method, path]
    if fields.api_key != NO_KEY:
        parts.append(f"key {fields.api_key}")
    if fields.model:
        parts.append(f"{fields.model} at {fields.provider or '-'}")
    if fields.prompt_tokens is not None:
        parts.append(f"{fields.prompt_tokens} + {fields.completion_tokens} tokens")
    if fields.cost_usd is not None:
        parts.append(f"{fields.cost_usd:.6f} USD")
    if fields.code:
        parts.append(fields.code)
    if fields.outcome not in ("completed", "client_error", "rejected"):
        parts.append(str(fields.outcome))
    parts.append(f"{fields.duration_ms:.0f} ms")
    return _UNUSUAL.sub(_escape, "  ".join(parts)).encode()[:MAX_LINE]


def _short(value: Any) -> Any:
    return value[:SHORT] if isinstance(value, str) else None if isinstance(value, dict) else value


_UNUSUAL = re.compile("[^ -~]")


def _escape(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def line(record: RequestRecord) -> Line:
    """The line of a record; what is not known is null."""
    found, usage, bounds = Line(), record.usage, record.bounds
    second, status = int(record.at), record.status
    found.time = f"{_second(second)}.{int((record.at - second) * 1000):03d}Z"
    found.level = "info" if status < 400 else "warning" if status < 500 else "error"
    found.request_id, found.client = record.request_id, record.client
    if record.upstream_request_id:
        found.upstream_request_id = record.upstream_request_id[:MAX_ID_LENGTH]
    found.method = record.method if record.method in METHODS else OTHER
    found.path, found.endpoint = record.path, record.endpoint.path or None
    found.status, found.outcome = status, record.outcome
    found.code, found.api_key = record.error_code, record.api_key
    if record.dry_run:
        found.dry_run = ",".join(dict.fromkeys(record.dry_run))
    found.tag, found.provider = record.tag or None, record.provider or None
    found.model = record.model[:MAX_MODEL_LENGTH] or None
    found.stream = record.stream
    if record.served_model != record.model:
        found.served_model = record.served_model[:MAX_MODEL_LENGTH] or None
    if usage is not None:
        found.prompt_tokens, found.completion_tokens = usage.prompt, usage.completion
        found.cached_tokens = usage.cached
        found.service_tier = usage.service_tier[:MAX_MODEL_LENGTH] or None
        found.units = dict(usage.units) if usage.units else None
    if record.cost is not None:
        found.cost_usd = record.cost / PICO
    found.unmetered, found.bounded = record.unmetered, record.bounded
    if bounds is not None:
        found.tokens_low, found.tokens_high = bounds.tokens_low, bounds.tokens_high
        found.cost_usd_low, found.cost_usd_high = _usd(bounds.cost_low), _usd(bounds.cost_high)
    if record.unpriced is not None:
        found.unpriced = record.unpriced[:MAX_MODEL_LENGTH]
    # To microseconds; `round` takes three times as long.
    if record.ttft is not None:
        found.ttft_ms = (record.ttft * 1e6 + 0.5) // 1 / 1e3
    if record.relayed:
        found.upstream_ms = (record.upstream * 1e6 + 0.5) // 1 / 1e3
    found.overhead_ms = (record.overhead * 1e6 + 0.5) // 1 / 1e3
    found.duration_ms = (record.duration * 1e6 + 0.5) // 1 / 1e3
    found.bytes_in, found.bytes_out = record.bytes_in, record.bytes_out
    return found


def _usd(pico: int | None) -> float | None:
    return None if pico is None else pico / PICO


@lru_cache(maxsize=2)  # formatted once a second and not for each line
def _second(at: int) -> str:
    """RFC 3339 without the fraction, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
