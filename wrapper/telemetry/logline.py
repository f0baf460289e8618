"""A finished record as one JSON line.

The rule protected here: no secret, query string or body gets into it, and no text of a caller's
makes it longer than a pipe takes at once.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from wrapper.record import RequestRecord
from wrapper.telemetry.instruments import METHODS, OTHER, PICO

MAX_MODEL_LENGTH = 200  # characters of a name in the log; a caller may send megabytes
MAX_ID_LENGTH = 200  # a line longer than a pipe takes at once mixes with another worker's


_encode = msgspec.json.Encoder().encode


def encoded(record: RequestRecord) -> bytes:
    """The line, its line feed included."""
    return _encode(line(record)) + b"\n"


def line(record: RequestRecord) -> dict[str, Any]:
    """The fields of the line; what is not known is null."""
    usage = record.usage
    status = record.status
    level = "info" if status < 400 else "warning" if status < 500 else "error"
    return {
        "time": _timestamp(record.at),
        "level": level,
        "request_id": record.request_id,
        "upstream_request_id": (record.upstream_request_id or "")[:MAX_ID_LENGTH] or None,
        "client": record.client,
        "method": record.method if record.method in METHODS else OTHER,
        "path": record.path,
        "status": status,
        "outcome": record.outcome,
        "code": record.error_code,
        "api_key": record.api_key,
        "provider": record.provider or None,
        "model": record.model[:MAX_MODEL_LENGTH] or None,
        "stream": record.stream,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "cached_tokens": usage.cached if usage else None,
        "cost_usd": record.cost / PICO if record.cost is not None else None,
        "unmetered": record.unmetered,
        "ttft_ms": _ms(record.ttft),
        "upstream_ms": _ms(record.upstream) if record.relayed else None,
        "overhead_ms": _ms(record.overhead),
        "duration_ms": _ms(record.duration),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _timestamp(at: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(at)
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at - whole) * 1000):03d}Z"
    )
