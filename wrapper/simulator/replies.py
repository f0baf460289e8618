"""What an answer is made of, before it is sent: a whole body, events, or blocks of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec


class Usage(NamedTuple):
    """Tokens (and seconds of audio) that an answer reports."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    seconds: int = 0


class Event(NamedTuple):
    """One event of a stream: its JSON, the use it carries, its `event:` name if it has one."""

    data: bytes
    usage: Usage | None = None
    name: bytes = b""


@dataclass(slots=True)
class Reply:
    """An answer. Exactly one of `body`, `events` and `blocks` is sent.

    `length` is the length of all blocks in bytes, None where it is not told beforehand.
    `usage` is the use that the body carries; a stream's events carry their own. `planned` is
    what the work came to, whether or not the caller is told.
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


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def json_reply(
    value: Any, usage: Usage | None = None, status: int = 200, planned: Usage | None = None
) -> Reply:
    """A JSON answer, indented as OpenAI's are, so that nobody passes on a tidied copy unseen."""
    body = msgspec.json.format(encode(value), indent=2) + b"\n"
    return Reply(status=status, body=body, usage=usage, planned=planned or usage)


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


class Refusal(Exception):
    """The simulated provider does not accept the request; becomes an error reply."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def reply(self) -> Reply:
        return json_reply(error_body(self.status, str(self)), status=self.status)
