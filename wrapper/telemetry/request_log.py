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

MAX_MODEL_LENGTH = 200  # characters of a name in the log; a caller may send megabytes
MAX_ID_LENGTH = 200
MAX_LINE = 4096  # bytes; of more than a pipe takes at once, two workers' lines mix
SHORT = 40  # characters of each text, where a line would be longer

_MIN_STATUS = {"debug": 0, "info": 0, "warning": 400, "error": 500}

log = logging.getLogger("wrapper")
_encode = msgspec.json.Encoder().encode


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


def encode(fields: dict[str, Any]) -> bytes:
    """The fields as JSON without unprintable characters.

    JSON itself escapes C0 controls alone, not DEL, C1 (U+009B begins a terminal's commands) or
    marks of direction (U+202E).
    """
    text = _encode(fields)
    if not text.isascii() or b"\x7f" in text:
        text = _UNUSUAL.sub(_escape, text.decode()).encode()
    if len(text) >= MAX_LINE and any(len(str(value)) > SHORT for value in fields.values()):
        return encode({name: _short(value) for name, value in fields.items()})
    return text


def text_line(fields: dict[str, Any]) -> bytes:
    """What matters of the fields in a line for people."""
    at = time.strftime("%H:%M:%S", time.localtime())
    path = fields["path"].replace("/<path>", fields["endpoint"] or "/<path>")
    parts = [at, str(fields["status"]), fields["method"], path]
    if fields["api_key"] != NO_KEY:
        parts.append(f"key {fields['api_key']}")
    if fields["model"]:
        parts.append(f"{fields['model']} at {fields['provider'] or '-'}")
    if fields["prompt_tokens"] is not None:
        parts.append(f"{fields['prompt_tokens']} + {fields['completion_tokens']} tokens")
    if fields["cost_usd"] is not None:
        parts.append(f"{fields['cost_usd']:.6f} USD")
    if fields["code"]:
        parts.append(fields["code"])
    if fields["outcome"] not in ("completed", "client_error", "rejected"):
        parts.append(str(fields["outcome"]))
    parts.append(f"{fields['duration_ms']:.0f} ms")
    return _UNUSUAL.sub(_escape, "  ".join(parts)).encode()[:MAX_LINE]


def _short(value: Any) -> Any:
    return value[:SHORT] if isinstance(value, str) else None if isinstance(value, dict) else value


_UNUSUAL = re.compile("[^ -~]")


def _escape(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def line(record: RequestRecord) -> dict[str, Any]:
    """The fields of the line; what is not known is null."""
    usage = record.usage
    bounds, status = record.bounds, record.status
    second = int(record.at)
    level = "info" if status < 400 else "warning" if status < 500 else "error"
    return {
        "time": f"{_second(second)}.{int((record.at - second) * 1000):03d}Z",
        "level": level,
        "request_id": record.request_id,
        "upstream_request_id": (record.upstream_request_id or "")[:MAX_ID_LENGTH] or None,
        "client": record.client,
        "method": record.method if record.method in METHODS else OTHER,
        "path": record.path,
        "endpoint": record.endpoint.path or None,
        "status": status,
        "outcome": record.outcome,
        "code": record.error_code,
        "dry_run": ",".join(dict.fromkeys(record.dry_run)) if record.dry_run else None,
        "api_key": record.api_key,
        "tag": record.tag or None,
        "provider": record.provider or None,
        "model": record.model[:MAX_MODEL_LENGTH] or None,
        "stream": record.stream,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "cached_tokens": usage.cached if usage else None,
        "served_model": (
            record.served_model[:MAX_MODEL_LENGTH] if record.served_model != record.model else None
        )
        or None,
        "service_tier": (usage.service_tier[:MAX_MODEL_LENGTH] or None) if usage else None,
        "units": dict(usage.units) if usage and usage.units else None,
        "cost_usd": record.cost / PICO if record.cost is not None else None,
        "unmetered": record.unmetered,
        "bounded": record.bounded,
        "tokens_low": bounds.tokens_low if bounds else None,
        "tokens_high": bounds.tokens_high if bounds else None,
        "cost_usd_low": _usd(bounds.cost_low) if bounds else None,
        "cost_usd_high": _usd(bounds.cost_high) if bounds else None,
        "unpriced": record.unpriced and record.unpriced[:MAX_MODEL_LENGTH],
        # To microseconds; `round` takes twice as long.
        "ttft_ms": None if record.ttft is None else int(record.ttft * 1e6 + 0.5) / 1e3,
        "upstream_ms": int(record.upstream * 1e6 + 0.5) / 1e3 if record.relayed else None,
        "overhead_ms": int(record.overhead * 1e6 + 0.5) / 1e3,
        "duration_ms": int(record.duration * 1e6 + 0.5) / 1e3,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }


def _usd(pico: int | None) -> float | None:
    return None if pico is None else pico / PICO


@lru_cache(maxsize=2)  # formatted once a second and not for each line
def _second(at: int) -> str:
    """RFC 3339 without the fraction, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
