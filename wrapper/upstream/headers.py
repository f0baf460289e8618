"""Which headers go up to a provider, and which come down.

The rule protected here: nothing that belongs to one hop, to the caller alone or to the account
alone crosses over; everything else does, as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

# RFC 9110 section 7.6.1, and what is between this caller and this gateway alone.
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
    ]
)
_NEVER_UP = _HOP_BY_HOP | frozenset(
    [
        "host",
        "cookie",
        "authorization",
        "api-key",
        "x-api-key",
        "forwarded",
        "expect",
        "content-length",
    ]
)
_NEVER_DOWN = _HOP_BY_HOP | frozenset(
    [
        "set-cookie",
        "set-cookie2",
        "openai-organization",
        "openai-project",
        "content-length",
        "date",
        "server",
    ]
)

# Codings whose bytes the meter can read; others are taken out so that none goes unmetered.
# So is "*", which leaves the choice to the provider.
READABLE_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "identity"})
HeaderList = list[tuple[str, str]]


def headers_up(environ: Mapping[str, Any]) -> dict[str, str]:
    """The caller's headers that go on to a provider, from a WSGI environ.

    Left out: hop-by-hop ones and those `Connection` names (RFC 9110 section 7.6.1), credentials,
    cookies and what tells of the way here. Codings that the meter cannot read are taken out of
    Accept-Encoding, so that no answer can be made unreadable to it.
    """
    named = {token.strip().lower() for token in environ.get("HTTP_CONNECTION", "").split(",")}
    out: dict[str, str] = {}
    for key, value in environ.items():
        if key[:5] == "HTTP_":
            lower, name = _header_name(key)
            if lower in _NEVER_UP or lower in named or lower[:12] == "x-forwarded-":
                continue
            if lower == "accept-encoding":
                value = readable_codings(value)
            out[name] = value
    content_type = environ.get("CONTENT_TYPE")
    if content_type and "content-type" not in named:
        out["Content-Type"] = content_type
    return out


def headers_down(headers: HeaderList) -> HeaderList:
    """The provider's headers that go on to the caller; gunicorn writes Date and Server itself."""
    named: set[str] = set()
    for name, value in headers:
        if name.lower() == "connection":
            named.update(token.strip().lower() for token in value.split(","))
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NEVER_DOWN
        and lower not in named
        and not lower.startswith("access-control-")
    ]


def readable_codings(accept_encoding: str) -> str:
    """Accept-Encoding (RFC 9110 section 12.5.3) without the codings the meter cannot read."""
    kept = [
        part.strip()
        for part in accept_encoding.split(",")
        if part.split(";", 1)[0].strip().lower() in READABLE_CODINGS
    ]
    return ", ".join(kept) or "identity"


@lru_cache(maxsize=1024)
def _header_name(key: str) -> tuple[str, str]:
    name = key[5:].replace("_", "-")
    return name.lower(), name.title()
