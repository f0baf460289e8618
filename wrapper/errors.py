"""The errors a client can get, and the one function that renders them.

Every response in which the gateway itself refuses or fails a request has OpenAI's shape, so that
the SDKs raise their own exception classes (https://platform.openai.com/docs/guides/error-codes)::

    GatewayError
    ├── Unauthorized             401  InvalidApiKey, ApiKeyExpired
    ├── BadRequest               400  InvalidJson, InvalidBody, InvalidQuery, InvalidPath,
    │                             IncompleteBody
    ├── ModelNotAllowed          403
    ├── ModelNotPriced           403
    ├── EndpointNotAllowed       403
    ├── ModelNotFound            404
    ├── UnknownUrl               404
    ├── MethodNotAllowed         405
    ├── RequestTimeout           408
    ├── RequestTooLarge          413
    ├── UnsupportedEncoding      415
    ├── UpgradeRequired          426
    ├── RateLimitExceeded        429
    ├── InsufficientQuota        429
    ├── Overloaded               503  NoRoom
    ├── StoreUnavailable         503
    ├── UpstreamError            502  UpstreamUnreachable, UpstreamProtocolError, UpstreamAuth
    │   ├── UpstreamFull         503
    │   ├── UpstreamTimeout      504
    │   └── UpstreamInterrupted  502  (only as the last event of a stream)
    ├── Cancelled                     (the client has gone, or the worker stops)
    │   ├── ClientGone           499
    │   └── Drained              503
    └── InternalError            500

Invariant: a message says what was wrong and what would be right, and never repeats a secret, a body
or a query string.
"""

from __future__ import annotations

import msgspec

_encode = msgspec.json.Encoder().encode

Headers = tuple[tuple[str, str], ...]


class GatewayError(Exception):
    """A request that the gateway responds to itself.

    `status` is the HTTP status, `type` and `code` are OpenAI's error fields, `param` names the
    offending field where there is one, `headers` go out with the response. `label` stands in
    metrics and log where several errors share a `code`.
    """

    status = 500
    type = "internal_error"
    code = "internal_error"
    label = ""

    def __init__(self, message: str, *, param: str | None = None, headers: Headers = ()) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers

    def body(self) -> bytes:
        """The error as OpenAI's JSON object, all four fields present (null where empty)."""
        return render(self.message, self.type, self.param, self.code)


def render(message: str, type_: str, param: str | None, code: str | None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}` as UTF-8 bytes."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


class InternalError(GatewayError):
    """A bug of ours."""


class _ClientError(GatewayError):
    type = "invalid_request_error"


class Unauthorized(_ClientError):
    """RFC 9110 section 11.6.1: a 401 carries a challenge."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=(("WWW-Authenticate", "Bearer"),))


class InvalidApiKey(Unauthorized):
    """No key, a malformed one, an unknown or a revoked one."""


class ApiKeyExpired(Unauthorized):
    """The key's date has passed."""

    code = "api_key_expired"


class BadRequest(_ClientError):
    status = 400
    code = "invalid_body"


class InvalidJson(BadRequest):
    code = "invalid_json"


class InvalidBody(BadRequest):
    """JSON, but not what the endpoint takes."""


class InvalidQuery(BadRequest):
    """A query parameter of the gateway's own routes with a value that it cannot have."""

    code = "invalid_query"


class InvalidPath(BadRequest):
    """A path that two readers could understand in two ways."""

    code = "invalid_path"


class IncompleteBody(BadRequest):
    """Shorter than its Content-Length, or broken chunked framing (RFC 9112 section 8)."""

    code = "incomplete_body"


class ModelNotAllowed(_ClientError):
    status = 403
    code = "model_not_allowed"


class ModelNotPriced(_ClientError):
    """A key with a budget, and a model whose price is unknown."""

    status = 403
    code = "model_not_priced"


class EndpointNotAllowed(_ClientError):
    """An endpoint that a key may use only where it is allowed by name."""

    status = 403
    code = "endpoint_not_allowed"


class ModelNotFound(_ClientError):
    status = 404
    code = "model_not_found"


class UnknownUrl(_ClientError):
    status = 404
    code = "unknown_url"


class MethodNotAllowed(_ClientError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(_ClientError):
    """The body did not arrive in time (RFC 9110 section 15.5.9)."""

    status = 408
    code = "request_timeout"


class RequestTooLarge(_ClientError):
    status = 413
    code = "request_too_large"


class UnsupportedEncoding(_ClientError):
    status = 415
    code = "unsupported_encoding"


class UpgradeRequired(_ClientError):
    """A WebSocket handshake: the resource is served over HTTP/1.1 alone (RFC 9110 15.5.22)."""

    status = 426
    code = "websocket_not_supported"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers=(("Upgrade", "HTTP/1.1"), ("Connection", "upgrade")))


class RateLimitExceeded(GatewayError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class InsufficientQuota(GatewayError):
    """The budget is used up, and SDKs must not retry it; or other requests have reserved what is
    left, and may leave some in `retry_after` seconds.
    """

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        retry = ("x-should-retry", "false")
        if retry_after is not None:
            retry = ("Retry-After", str(retry_after))
        super().__init__(message, headers=(retry,))


class Overloaded(GatewayError):
    """The worker serves as many requests as it may."""

    status = 503
    type = "api_error"
    code = "overloaded"


class StoreUnavailable(GatewayError):
    """The store cannot be reached, and this key's limits must hold, or its usage was asked for."""

    status = 503
    type = "api_error"
    code = "store_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The store of usage and limits is out of reach; try again shortly.",
            headers=(("Retry-After", "2"),),
        )


class NoRoom(Overloaded):
    """The disk is full, so that an upload cannot be kept."""

    label = "no_room"


class UpstreamError(GatewayError):
    """The provider could not respond.

    `reason` is the label in `upstream_errors_total`; `sent` says whether the provider may have
    seen the request.
    """

    status = 502
    type = "api_error"
    code = "upstream_unreachable"
    reason = "unreachable"

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class UpstreamUnreachable(UpstreamError):
    """DNS, TCP or TLS failed: nothing was sent."""


class UpstreamProtocolError(UpstreamError):
    """The response was not HTTP that can be relayed safely."""

    code = "upstream_protocol_error"
    reason = "protocol"


class UpstreamAuth(UpstreamError):
    """The provider refused the gateway's own credential, or the gateway has none."""

    code = "upstream_auth"
    reason = "auth"


class UpstreamFull(UpstreamError):
    """The provider's `max_connections` are in use, or the gateway's account there has no room in
    its limits: nothing was sent.
    """

    status = 503
    code = "overloaded"
    label = "upstream_full"
    reason = "full"

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)
        self.headers = (("Retry-After", "1"),)


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"
    reason = "timeout"


class UpstreamInterrupted(UpstreamError):
    """The response broke off after it had begun."""

    code = "upstream_interrupted"
    reason = "interrupted"


class Cancelled(GatewayError):
    """The request was ended from this side; the provider is not at fault."""

    type = "api_error"


class ClientGone(Cancelled):
    """The client has closed the connection (nginx's 499)."""

    status = 499
    code = "client_closed_request"


class Drained(Cancelled):
    """The worker stops and has waited long enough."""

    status = 503
    code = "overloaded"

    def __init__(self) -> None:
        super().__init__("The gateway is restarting; try again.", headers=(("Retry-After", "1"),))
