"""The answer to what never became a request: bytes that gunicorn could not read as one.

It has OpenAI's shape, and is counted and logged as any other answer is. The rule protected here:
nothing of those bytes is repeated, be it in the answer or in the log.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from wrapper import errors
from wrapper.record import RequestRecord
from wrapper.runtime import Gateway

log = logging.getLogger("wrapper")

# By the name of gunicorn's exception; other exceptions of its parser are a 400.
_KINDS = {
    "LimitRequestLine": (414, "uri_too_long"),
    "LimitRequestHeaders": (431, "headers_too_large"),
    "ExpectationFailed": (417, "invalid_request"),
    "UnsupportedTransferCoding": (501, "unsupported_encoding"),
    "InvalidTarget": (400, errors.InvalidPath.code),
}
_PARSERS = ("Inval", "Chunk", "Obsol", "NoMor", "Limit")
_WORDS = "The request is not well-formed HTTP/1.1."


def answer(gateway: Gateway, error: BaseException, client: str) -> bytes:
    """The whole answer, head and body; the connection is closed after it.

    `client` is the peer's address.
    """
    kind = type(error).__name__
    if kind in _KINDS or kind[:5] in _PARSERS:
        status, code = _KINDS.get(kind, (400, "invalid_request"))
        body = errors.render(_WORDS, errors.BadRequest.type, None, code)
    else:
        log.error("gunicorn could not handle a request: %s", kind)
        status, code = errors.InternalError.status, errors.InternalError.code
        body = errors.InternalError("An internal error.").body()
    record = RequestRecord(method="", client=client, bytes_out=len(body))
    record.refuse(status, code)
    gateway.telemetry.request_started(record, is_probe=True)
    gateway.settle(record, gateway.current, call=False)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"x-request-id: {record.request_id}\r\n\r\n"
    )
    return head.encode() + body
