"""What is sent: a whole body, events or blocks of bytes, with the usage that they carry.

`apply` puts the `x-sim` instructions into a response: status, headers, truncated JSON, an error
within a stream, compression.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import brotli
import msgspec

from wrapper.simulator.instructions import Instructions


class Usage(NamedTuple):
    """What is billed of a response. `cached`, `cache_write` and `image` are parts of `prompt`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    seconds: int = 0
    cache_write: int = 0
    image: int = 0
    web_search: int = 0
    file_search: int = 0
    characters: int = 0


class Event(NamedTuple):
    """One event of a stream: its JSON, the usage it carries, its `event:` name."""

    data: bytes
    usage: Usage | None = None
    name: bytes = b""


@dataclass(slots=True)
class Response:
    """Exactly one of `body`, `events` and `blocks` is sent.

    `length` is the length of all blocks in bytes, None if it is not announced. `usage` is the
    usage that the body carries; the events of a stream carry their own. `planned` is the usage
    of the request, whether or not it is reported. `parts` are the models that share the usage.
    """

    status: int = 200
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    events: Iterator[Event] | None = None
    blocks: Iterator[bytes] | None = None
    length: int | None = None
    usage: Usage | None = None
    planned: Usage | None = None
    parts: tuple[tuple[str, Usage], ...] = ()


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def json_response(
    value: Any, usage: Usage | None = None, status: int = 200, planned: Usage | None = None
) -> Response:
    """A JSON response, indented as OpenAI's are, so that a reformatted copy is noticed."""
    body = msgspec.json.format(encode(value), indent=2) + b"\n"
    return Response(status=status, body=body, usage=usage, planned=planned or usage)


_KINDS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "model_not_allowed"),
    404: ("invalid_request_error", "model_not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("tokens", "rate_limit_exceeded"),
    498: ("tokens", "capacity_exceeded"),
    500: ("server_error", None),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "service_unavailable"),
}


def error_body(
    status: int, message: str = "", *, kind: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object for a status."""
    usual_kind, usual_code = _KINDS.get(
        status, ("server_error" if status >= 500 else "invalid_request_error", None)
    )
    return {
        "error": {
            "message": message or f"This is a simulated error with status {status}.",
            "type": kind or usual_kind,
            "param": None,
            "code": code or usual_code,
        }
    }


class ApiError(Exception):
    """The provider refuses the request; becomes an error response."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Compressor(Protocol):
    """Compresses a body piece by piece."""

    def add(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, gzip: bool) -> None:
        self._inner = zlib.compressobj(wbits=31 if gzip else 15)

    def add(self, data: bytes) -> bytes:
        return self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._inner.flush(zlib.Z_FINISH)


class _Brotli:
    def __init__(self) -> None:
        self._inner = brotli.Compressor(quality=4)

    def add(self, data: bytes) -> bytes:
        return bytes(self._inner.process(data) + self._inner.flush())

    def end(self) -> bytes:
        return bytes(self._inner.finish())


def compressor(encoding: str) -> Compressor:
    """A compressor that flushes each piece, so that it can be decompressed at once."""
    return _Brotli() if encoding == "br" else _Zlib(encoding == "gzip")


_HEADERS = [
    ("Server", "simulator"),
    ("openai-version", "2020-10-01"),
    ("openai-processing-ms", "7"),
    ("openai-organization", "simulated-organization"),
    ("openai-project", "simulated-project"),
    ("Set-Cookie", "simulated=cookie; path=/; HttpOnly"),
    ("x-ratelimit-limit-requests", "14400"),
    ("x-ratelimit-limit-tokens", "18000"),
    ("x-ratelimit-remaining-requests", "14399"),
    ("x-ratelimit-remaining-tokens", "17997"),
    ("x-ratelimit-reset-requests", "2m59.56s"),
    ("x-ratelimit-reset-tokens", "547ms"),
]


def apply(instructions: Instructions, response: Response, request_id: str) -> Response:
    """The response as instructed, its headers complete except for the length."""
    if instructions.status is not None:
        response = _with_status(response, instructions, instructions.status)
    if instructions.redirect:
        response = Response(status=307, headers=[("Location", instructions.redirect)])
    if instructions.malformed_json:
        _malform(response)
    if instructions.error_event is not None and response.events is not None:
        response.events = _interrupted(response.events, instructions.error_event)
    _compress(response, instructions)
    kind = instructions.content_type or response.content_type
    added = {
        "retry-after": instructions.retry_after,
        "x-should-retry": instructions.should_retry,
    }
    response.headers = [
        ("Date", _date(int(time.time()))),
        *([] if response.status in (204, 304) else [("Content-Type", kind)]),
        ("x-request-id", request_id),
        *_HEADERS,
        *response.headers,
        *instructions.set,
        *((name, value) for name, value in added.items() if value),
    ]
    return response


def _with_status(response: Response, instructions: Instructions, status: int) -> Response:
    if status >= 400:
        kind, code = instructions.type, instructions.code
        body = error_body(status, instructions.message or "", kind=kind, code=code)
        return Response(status=status, body=encode(body))
    if status in (204, 304):
        return Response(status=status)
    response.status = status
    return response


def _malform(response: Response) -> None:
    if response.events is not None:
        response.events = _one_malformed(response.events)
    elif response.body:
        response.body, response.usage = response.body[: len(response.body) * 2 // 3], None


def _one_malformed(events: Iterator[Event]) -> Iterator[Event]:
    for number, event in enumerate(events):
        yield event._replace(data=event.data[: len(event.data) // 2]) if number == 1 else event


def _interrupted(events: Iterator[Event], after: int) -> Iterator[Event]:
    for number, event in enumerate(events):
        if number == after:
            yield _error_event(number, typed=bool(event.name))
            return
        yield event


def _error_event(number: int, typed: bool) -> Event:
    """The error in the middle of a stream; typed in the responses API, whose events all are."""
    message = "This is a simulated error in the middle of a stream."
    if not typed:
        return Event(encode(error_body(500, message)))
    error = {"type": "error", "code": "server_error", "message": message, "param": None}
    return Event(encode({**error, "sequence_number": number}), None, b"error")


def _compress(response: Response, instructions: Instructions) -> None:
    """Whole bodies are compressed here, streams while they are sent."""
    if instructions.encoding is None:
        return
    if response.blocks is not None:
        response.body, response.blocks = b"".join(response.blocks), None
    if response.events is None and not response.body:
        return
    response.headers.append(("Content-Encoding", instructions.encoding))
    if response.events is None:
        encoder = compressor(instructions.encoding)
        response.body = encoder.add(response.body) + encoder.end()


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
