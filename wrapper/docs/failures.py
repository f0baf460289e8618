"""The errors of the API as named, reusable responses, drawn from the tree in `wrapper.errors`."""

from __future__ import annotations

import json

from wrapper import errors
from wrapper.docs.parts import Json, json_content, ref
from wrapper.errors import GatewayError

SAMPLES: dict[str, tuple[str, GatewayError]] = {
    "invalid_api_key": (
        "No key, a malformed, an unknown or a revoked one",
        errors.InvalidApiKey("The API key is not known. Send 'Authorization: Bearer sk-wr-...'."),
    ),
    "api_key_expired": (
        "The key's last day is over",
        errors.ApiKeyExpired("The API key has expired."),
    ),
    "model_not_allowed": (
        "The key may not call this model",
        errors.ModelNotAllowed("This key may not call the model 'gpt-4o'.", param="model"),
    ),
    "model_not_found": (
        "No route of the gateway takes this model",
        errors.ModelNotFound("No route takes the model 'gpt-5000'.", param="model"),
    ),
    "invalid_json": (
        "The body is not JSON, not UTF-8, or nested too deep",
        errors.InvalidJson("The body is not valid JSON."),
    ),
    "invalid_body": (
        "The body is JSON, but not an object, or 'model' or 'stream' has the wrong type",
        errors.InvalidBody("'model' must be a string.", param="model"),
    ),
    "invalid_path": (
        "The path could be read in two ways",
        errors.InvalidPath("The path has a '..' segment. Send the path in its plain form."),
    ),
    "incomplete_body": (
        "The body is shorter than its Content-Length",
        errors.IncompleteBody("The body ended before its Content-Length."),
    ),
    "unknown_url": ("No such route", errors.UnknownUrl("There is no such URL: see /docs.")),
    "method_not_allowed": (
        "The route does not take this method",
        errors.MethodNotAllowed("This URL takes POST only."),
    ),
    "request_timeout": (
        "The body did not arrive in time",
        errors.RequestTimeout("The body did not arrive in time."),
    ),
    "request_too_large": (
        "The body is over the limit",
        errors.RequestTooLarge("The body is larger than 26214400 bytes."),
    ),
    "unsupported_encoding": (
        "The body is compressed",
        errors.UnsupportedEncoding("Send the body without Content-Encoding."),
    ),
    "rate_limit_exceeded": (
        "Too many requests or tokens per minute, or too many requests at once",
        errors.RateLimitExceeded("60 requests per minute are used up. Try again in 12 s."),
    ),
    "insufficient_quota": (
        "The budget is used up",
        errors.InsufficientQuota("The budget of 20 USD per month is used up."),
    ),
    "internal_error": (
        "A bug of the gateway",
        errors.InternalError("Something went wrong in the gateway. It was logged."),
    ),
    "upstream_unreachable": (
        "The provider could not be reached: DNS, connection or TLS failed",
        errors.UpstreamUnreachable("The provider 'groq' could not be reached."),
    ),
    "upstream_protocol_error": (
        "The provider's answer was not HTTP that can be passed on",
        errors.UpstreamProtocolError("The provider 'groq' sent a broken answer."),
    ),
    "upstream_auth": (
        "The provider refused the gateway's own credential",
        errors.UpstreamAuth("The provider 'groq' refused the gateway's credential."),
    ),
    "upstream_timeout": (
        "The provider was too slow",
        errors.UpstreamTimeout("The provider 'groq' did not answer within 120 s."),
    ),
    "upstream_interrupted": (
        "The last event of a stream that broke off: the connection is cut after it",
        errors.UpstreamInterrupted("The provider 'groq' broke off its answer."),
    ),
    "overloaded": (
        "The gateway serves as many requests as it can",
        errors.Overloaded("The gateway is busy. Try again in a second."),
    ),
}

_CHALLENGE = {"WWW-Authenticate": ref("headers", "WWW-Authenticate")}
_RETRY = {"Retry-After": ref("headers", "Retry-After")}
_LIMITS = _RETRY | {
    f"x-ratelimit-{what}-{unit}": ref("headers", f"x-ratelimit-{what}-{unit}")
    for what in ("limit", "remaining", "reset")
    for unit in ("requests", "tokens")
}

_Row = tuple[str, str, str, tuple[str, ...], dict[str, Json]]
_RESPONSES: tuple[_Row, ...] = (
    ("InvalidPath", "400", "The path could be read in two ways.", ("invalid_path",), {}),
    (
        "InvalidRequest",
        "400",
        "The request cannot be read, or could be read in two ways. Nothing was sent on.",
        ("invalid_json", "invalid_body", "invalid_path", "incomplete_body"),
        {},
    ),
    (
        "Unauthorized",
        "401",
        "No valid key. Press Authorize and paste one.",
        ("invalid_api_key", "api_key_expired"),
        _CHALLENGE,
    ),
    (
        "ModelNotAllowed",
        "403",
        "The key may not call this model.",
        ("model_not_allowed",),
        {},
    ),
    ("UnknownUrl", "404", "No such route.", ("unknown_url",), {}),
    (
        "ModelNotFound",
        "404",
        "No route takes this model, or the provider knows no such object.",
        ("model_not_found", "unknown_url"),
        {},
    ),
    (
        "MethodNotAllowed",
        "405",
        "The route does not take this method.",
        ("method_not_allowed",),
        {},
    ),
    ("RequestTimeout", "408", "The body did not arrive in time.", ("request_timeout",), {}),
    ("RequestTooLarge", "413", "The body is over the limit.", ("request_too_large",), {}),
    (
        "UnsupportedEncoding",
        "415",
        "The request body is compressed.",
        ("unsupported_encoding",),
        {},
    ),
    (
        "TooManyRequests",
        "429",
        "A limit of the key is reached, or its budget is used up; or the provider's own limit.",
        ("rate_limit_exceeded", "insufficient_quota"),
        _LIMITS,
    ),
    ("InternalError", "500", "A bug of the gateway.", ("internal_error",), {}),
    (
        "UpstreamFailed",
        "502",
        "The provider was out of reach, answered broken HTTP, or refused the gateway's credential.",
        ("upstream_unreachable", "upstream_protocol_error", "upstream_auth"),
        {},
    ),
    ("Overloaded", "503", "The gateway is full.", ("overloaded",), _RETRY),
    ("UpstreamTimeout", "504", "The provider was too slow.", ("upstream_timeout",), {}),
)
_STATUS = {name: status for name, status, *_ in _RESPONSES}

RELAY = (
    "Unauthorized",
    "ModelNotFound",
    "MethodNotAllowed",
    "TooManyRequests",
    "InternalError",
    "UpstreamFailed",
    "Overloaded",
    "UpstreamTimeout",
)
"""What can go wrong on every way to a provider."""

WITH_BODY = ("InvalidRequest", "RequestTimeout", "RequestTooLarge", "UnsupportedEncoding")
"""What a request with a body can be refused for beside that."""


def responses(*names: str) -> Json:
    """References to the named error responses, by status."""
    return {
        _STATUS[name]: ref("responses", name) for name in sorted(names, key=_STATUS.__getitem__)
    }


def relayed(*, body: bool, model: bool) -> Json:
    """Every error of a call that goes to a provider, and the provider's own as `default`."""
    names = RELAY + (WITH_BODY if body else ("InvalidPath",))
    names += ("ModelNotAllowed",) if model else ()
    return responses(*names) | {"default": ref("responses", "ProviderError")}


def error_responses() -> Json:
    """`components.responses`."""
    made = {
        name: {
            "description": description,
            "headers": {"x-request-id": ref("headers", "x-request-id")} | headers,
            "content": json_content(
                ref("schemas", "Error"), {code: ref("examples", code) for code in codes}
            ),
        }
        for name, _, description, codes, headers in _RESPONSES
    }
    made["ProviderError"] = {
        "description": "The provider's own error: its status and its body as they came.",
        "headers": {
            "x-request-id": ref("headers", "x-request-id"),
            "x-wrapper-provider": ref("headers", "x-wrapper-provider"),
        },
        "content": json_content(
            ref("schemas", "ProviderError"), {"provider_error": ref("examples", "provider_error")}
        ),
    }
    return made


def error_examples() -> Json:
    """`components.examples`: one for every `code` that the gateway itself answers with."""
    examples: Json = {
        code: {"summary": summary, "value": json.loads(error.body())}
        for code, (summary, error) in SAMPLES.items()
    }
    examples["provider_error"] = {
        "summary": "For instance Groq's answer to a wrong parameter",
        "value": {
            "error": {
                "message": "`temperature` must be between 0 and 2",
                "type": "invalid_request_error",
            }
        },
    }
    return examples
