"""Which headers go up to a provider, and which come down.

Invariant: nothing that belongs to one hop, to the client alone or to an account alone passes;
everything else does, as it came.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from wrapper.formats.lookup import Lookup

UNDERSCORE: Final = ":"
"""Stands for the underscore of a header's name in a WSGI environ, where `_` is a hyphen: no
header's name has a colon."""

# RFC 9110 section 7.6.1, and what is between this client and this gateway alone.
_HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ]
)
_NEVER_UP = _HOP_BY_HOP | frozenset(
    [
        "host",
        "cookie",
        "authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "forwarded",
        "x-forwarded",
        "expect",
        "content-length",
        # Where the caller is, and the way here: servers check them as if they stood at its end.
        "origin",
        "referer",
        "via",
        "cdn-loop",
        "true-client-ip",
        "fastly-client-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-real-ip",
        "x-real-port",
        "x-remote-addr",
        "x-remote-ip",
        "x-host",
        "x-rewrite-url",
        "x-request-start",
        "x-queue-start",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-arr-log-id",
        "x-arr-ssl",
        "x-site-deployment-id",
        "x-scheme",
        "x-proxyuser-ip",
        "alt-used",
        "x-wrapper-tag",  # for the gateway
    ]
)
_NEVER_UP_PREFIXES = (
    *("x-forwarded-", "x-original-", "x-envoy-", "x-azure-", "x-appengine-", "x-vercel-"),
    *("cf-", "cloudfront-", "fly-", "sec-fetch-", "sec-websocket-"),
)
_UP_ALL_THE_SAME = "cf-aig-"  # for Cloudflare's AI Gateway, which may be the provider
# These describe the caller's account: with the gateway's credential they contradict it.
_ACCOUNT = frozenset(
    ["openai-organization", "openai-project", "chatgpt-account-id", "x-goog-user-project"]
)
# With an underscore these would pass for what the gateway reads, checks or sets itself.
_READ_HERE = frozenset(
    [
        "accept-encoding",
        "content-encoding",
        "content-type",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
    ]
)
_NEVER_DOWN = _HOP_BY_HOP | frozenset(
    [
        "set-cookie",
        "set-cookie2",
        "openai-organization",
        "openai-project",
        "anthropic-organization-id",
        "content-length",
        "date",
        "server",
        "x-wrapper-cost-usd",  # the gateway's own, in both spellings
        "x_wrapper_cost_usd",
        "x-wrapper-provider",
        # What a provider says about its own origin would bind the gateway's.
        "strict-transport-security",
        "public-key-pins",
        "public-key-pins-report-only",
        "expect-ct",
        "alt-svc",
        "clear-site-data",
        "nel",
        "report-to",
        "reporting-endpoints",
        "accept-ch",
        "critical-ch",
        "origin-agent-cluster",
        "service-worker-allowed",
        "set-login",
        "secure-session-registration",
        "sec-session-registration",
        "activate-storage-access",
        "timing-allow-origin",
    ]
)

# Codings that usage can be read from; others are removed, so that no response goes unmetered. So is
# "*", which leaves the choice to the provider.
READABLE_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "identity"})
_USUAL = frozenset({"close", "keep-alive"})  # options of `Connection` that name no header
HeaderList = list[tuple[str, str]]

# What becomes of a header on its way up.
_STAYS, _PASSES, _OF_ACCOUNT, _CODINGS, _UNDERSCORED = range(5)


def headers_up(environ: Mapping[str, Any], *, own_account: bool = False) -> dict[str, str]:
    """The client's headers that go on to a provider, from a WSGI environ.

    Left out: hop-by-hop ones and those that `Connection` names (RFC 9110 section 7.6.1),
    credentials, cookies, what describes the way here, and, unless the request uses the caller's
    `own_account`, what describes that account.
    """
    connection = environ.get("HTTP_CONNECTION")
    named = connection.lower().replace(",", " ").split() if connection else ()
    out: dict[str, str] = {}
    for key, value in environ.items():
        rule, lower, name = _HEADERS[key]
        if rule != _PASSES:
            if rule == _STAYS or (rule == _OF_ACCOUNT and not own_account):
                continue
            if rule == _CODINGS:
                value = readable_codings(value)
            elif rule == _UNDERSCORED and not _is_unambiguous(key, environ, named):
                continue
        if not (named and lower in named):
            out[name] = value
    content_type = environ.get("CONTENT_TYPE")
    if content_type and "content-type" not in named:
        out["Content-Type"] = content_type
    return out


def headers_down(headers: HeaderList, connection: str | None = None) -> HeaderList:
    """The provider's headers that go on to the client; the server writes its own Date and Server.

    `connection` are the values of `Connection`.
    """
    down: HeaderList = []
    for header in headers:
        if _GOES_DOWN[header[0]]:
            down.append(header)
    if not connection or connection in _USUAL:
        return down
    named = set(connection.lower().replace(",", " ").split()) - _USUAL
    return [header for header in down if header[0].lower() not in named] if named else down


def _goes_down(name: str) -> bool:
    lower = name.lower()
    return lower not in _NEVER_DOWN and not lower.startswith("access-control-")


_GOES_DOWN: Final = Lookup(_goes_down)


def with_own(headers: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The client's headers with the configured ones in place of theirs, in either spelling."""
    taken = {_hyphened(name) for name in own}
    return {n: v for n, v in headers.items() if _hyphened(n) not in taken} | dict(own)


def is_of_account(name: str) -> bool:
    """Whether a header says to which account at the provider a request belongs."""
    return _hyphened(name) in _ACCOUNT


def readable_codings(accept_encoding: str) -> str:
    """Accept-Encoding (RFC 9110 section 12.5.3) without codings that usage cannot be read from."""
    kept = [
        part.strip()
        for part in accept_encoding.split(",")
        if part.split(";", 1)[0].strip().lower() in READABLE_CODINGS
    ]
    return ", ".join(kept) or "identity"


def _header(key: str) -> tuple[int, str, str]:
    """Of an environ's key: what becomes of the header, its name in lower case, and as it is sent.
    What is no header stays.

    The name is judged as if its underscores were hyphens: to some servers they are.
    """
    if not key.startswith("HTTP_"):
        return _STAYS, "", ""
    name = key[5:].replace("_", "-").replace(UNDERSCORE, "_")
    hyphened = _hyphened(name)
    known = hyphened in _NEVER_UP or hyphened.startswith(_NEVER_UP_PREFIXES)
    if known and not hyphened.startswith(_UP_ALL_THE_SAME):
        rule = _STAYS
    elif "_" in name:
        rule = _STAYS if hyphened in _ACCOUNT | _READ_HERE else _UNDERSCORED
    elif hyphened in _ACCOUNT:
        rule = _OF_ACCOUNT
    else:
        rule = _CODINGS if hyphened == "accept-encoding" else _PASSES
    return rule, name.lower(), name.title()


_HEADERS: Final = Lookup(_header)


def _hyphened(name: str) -> str:
    return name.replace("_", "-").lower()


def _is_unambiguous(key: str, environ: Mapping[str, Any], named: Collection[str]) -> bool:
    """Whether no other header of the request has this name but for hyphens and underscores."""
    twin = key.replace(UNDERSCORE, "_")
    return _hyphened(key[5:].replace(UNDERSCORE, "-")) not in named and not any(
        other != key and other.replace(UNDERSCORE, "_") == twin for other in environ
    )
