"""The response to what gunicorn could not read as a request.

It has OpenAI's shape, and is counted and logged as any other response is. Invariant: nothing of
the received bytes is repeated, neither in the response nor in the log.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from wrapper import errors
from wrapper.proxy.finalize import finalize
from wrapper.record import RequestRecord
from wrapper.runtime import Runtime

log = logging.getLogger("wrapper")

# By the name of gunicorn's exception; the other exceptions of its parser become a 400.
_ERRORS = {
    "LimitRequestLine": (414, "uri_too_long"),
    "LimitRequestHeaders": (431, "headers_too_large"),
    "ExpectationFailed": (417, "invalid_request"),
    "UnsupportedTransferCoding": (501, "unsupported_encoding"),
    "InvalidTarget": (400, errors.InvalidPath.code),
}
_PARSER_ERRORS = ("Inval", "Chunk", "Obsol", "NoMor", "Limit")  # how their names begin
_MESSAGE = "The request is not well-formed HTTP/1.1."
# {0} is gunicorn's configuration.
_MESSAGES = {
    "InvalidHost": "An HTTP/1.1 request needs one valid Host header (RFC 9112 section 3.2).",
    "LimitRequestLine": "The request line, which has the URL, is longer than {0.limit_request_line}"
    " bytes.",
    "LimitRequestHeaders": "A header is longer than {0.limit_request_field_size} bytes, or there"
    " are more than {0.limit_request_fields}.",
    "ExpectationFailed": "The Expect header may be 100-continue only.",
    "UnsupportedTransferCoding": "The Transfer-Encoding of a request may be chunked only.",
    "InvalidTarget": "The URL has characters that no URL may have (RFC 3986 section 2).",
}


def malformed_response(runtime: Runtime, error: BaseException, client: str, config: Any) -> bytes:
    """The whole response, head and body; the caller closes the connection after it.

    `client` is the peer's address, `config` is gunicorn's.
    """
    name = type(error).__name__
    if name in _ERRORS or name.startswith(_PARSER_ERRORS):
        status, code = _ERRORS.get(name, (400, "invalid_request"))
        message = _MESSAGES.get(name, _MESSAGE).format(config)
        body = errors.render(message, errors.BadRequest.type, None, code)
    else:
        log.error("unhandled exception outside of the application: %s", name)
        status, code = errors.InternalError.status, errors.InternalError.code
        body = errors.InternalError("An internal error.").body()
    record = RequestRecord(method="", client=client, bytes_out=len(body))
    record.refused(status, code)
    runtime.telemetry.request_started(record, is_probe=True)
    finalize(record, runtime, runtime.snapshot)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"x-request-id: {record.request_id}\r\n\r\n"
    )
    return head.encode() + body
