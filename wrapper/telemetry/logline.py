"""A finished exchange as one JSON line.

The rule protected here: no secret, query string or body gets into it, and no text of a caller's
makes it longer than a pipe takes at once.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from wrapper.exchange import Exchange
from wrapper.telemetry.instruments import METHODS, OTHER, PICO

MAX_MODEL_LENGTH = 200  # characters of a name in the log; a caller may send megabytes
MAX_ID_LENGTH = 200  # a line longer than a pipe takes at once mixes with another worker's


_encode = msgspec.json.Encoder().encode


def encoded(exchange: Exchange) -> bytes:
    """The line, its line feed included."""
    return _encode(line(exchange)) + b"\n"


def line(exchange: Exchange) -> dict[str, Any]:
    """The fields of the line; what is not known is null."""
    usage = exchange.usage
    status = exchange.status
    level = "info" if status < 400 else "warning" if status < 500 else "error"
    return {
        "time": _timestamp(exchange.at),
        "level": level,
        "request_id": exchange.request_id,
        "upstream_request_id": (exchange.upstream_request_id or "")[:MAX_ID_LENGTH] or None,
        "client": exchange.client,
        "method": exchange.method if exchange.method in METHODS else OTHER,
        "path": exchange.path,
        "status": status,
        "outcome": exchange.outcome,
        "code": exchange.error_code,
        "api_key": exchange.api_key,
        "provider": exchange.provider or None,
        "model": exchange.model[:MAX_MODEL_LENGTH] or None,
        "stream": exchange.stream,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "cached_tokens": usage.cached if usage else None,
        "cost_usd": exchange.cost / PICO if exchange.cost is not None else None,
        "unmetered": exchange.unmetered,
        "ttft_ms": _ms(exchange.ttft),
        "upstream_ms": _ms(exchange.upstream) if exchange.relayed else None,
        "overhead_ms": _ms(exchange.overhead),
        "duration_ms": _ms(exchange.duration),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _timestamp(at: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    whole = int(at)
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((at - whole) * 1000):03d}Z"
    )
