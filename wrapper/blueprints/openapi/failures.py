"""The errors of the API as named, reusable responses, drawn from the tree in `wrapper.errors`."""

from __future__ import annotations

import json

from wrapper import errors
from wrapper.blueprints.openapi.parts import Json, json_content, ref
from wrapper.errors import GatewayError

SAMPLES: dict[str, tuple[str, GatewayError]] = {
    "invalid_api_key": (
        "No key, a malformed, an unknown or a revoked one",
        errors.InvalidApiKey("The API key is unknown or revoked."),
    ),
    "api_key_expired": (
        "The key's date has come",
        errors.ApiKeyExpired("The API key has expired: ask for a new one."),
    ),
    "model_not_allowed": (
        "The key may not call this model",
        errors.ModelNotAllowed(
            "This API key may not call that model: GET /v1/models lists those it may.",
            param="model",
        ),
    ),
    "model_not_found": (
        "No route of the gateway takes this model",
        errors.ModelNotFound(
            "No route leads to the model 'gpt-5000': GET /v1/models lists those there are.",
            param="model",
        ),
    ),
    "invalid_json": (
        "The body is not JSON, not UTF-8, or nested too deep",
        errors.InvalidJson("The body is nested too deep."),
    ),
    "invalid_body": (
        "The body is not an object, or a field is missing, given twice, or of the wrong type",
        errors.InvalidBody("'model' is missing: name the model to call.", param="model"),
    ),
    "invalid_path": (
        "The path could be read in two ways",
        errors.InvalidPath(
            "The path could be read in two ways: no dot segments, encoded slashes, '//', "
            "backslashes, malformed percent-encodings or control characters."
        ),
    ),
    "incomplete_body": (
        "The body is shorter than its Content-Length",
        errors.IncompleteBody("The body ended after 100 bytes; Content-Length said 120."),
    ),
    "unknown_url": (
        "No such route",
        errors.UnknownUrl("There is no such URL here; see /docs."),
    ),
    "method_not_allowed": (
        "The route does not take this method",
        errors.MethodNotAllowed("This URL does not take GET."),
    ),
    "request_timeout": (
        "The body did not arrive in time",
        errors.RequestTimeout("The request body did not arrive in time."),
    ),
    "request_too_large": (
        "The body is over the limit",
        errors.RequestTooLarge("The request body is larger than the 26214400 bytes allowed here."),
    ),
    "unsupported_encoding": (
        "The body is compressed",
        errors.UnsupportedEncoding(
            "Compressed request bodies are not accepted: send the body without Content-Encoding."
        ),
    ),
    "rate_limit_exceeded": (
        "Too many requests or tokens per minute, or too many requests at once",
        errors.RateLimitExceeded("The key's 60 requests per minute are used up."),
    ),
    "insufficient_quota": (
        "The budget is used up",
        errors.InsufficientQuota("The key's budget of 20 USD per month is used up."),
    ),
    "internal_error": (
        "A bug of the gateway",
        errors.InternalError("An internal error; the log has it under this request's id."),
    ),
    "upstream_unreachable": (
        "The provider could not be reached: DNS, connection or TLS failed",
        errors.UpstreamUnreachable("The provider could not be reached."),
    ),
    "upstream_protocol_error": (
        "The provider's answer was not HTTP that can be passed on",
        errors.UpstreamProtocolError("The provider sent a broken answer."),
    ),
    "upstream_auth": (
        "The provider refused the gateway's own credential, or the gateway has none",
        errors.UpstreamAuth("Provider 'groq' refused the gateway's own credential."),
    ),
    "upstream_timeout": (
        "The provider was too slow",
        errors.UpstreamTimeout("The provider did not answer in the time allowed."),
    ),
    "upstream_interrupted": (
        "The last event of a stream that broke off: the connection is cut after it",
        errors.UpstreamInterrupted("The provider's answer broke off."),
    ),
    "overloaded": (
        "The gateway serves as many calls as it can, or is restarting",
        errors.Overloaded(
            "The gateway is serving as many calls as it can; try again shortly.",
        ),
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
        {"Allow": ref("headers", "Allow")},
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
        (
            "The provider's own limit. (Limits and budgets of keys will answer so; this version "
            "records them and does not enforce them.)"
        ),
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
    ("Overloaded", "503", "The gateway is full, or is restarting.", ("overloaded",), _RETRY),
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
