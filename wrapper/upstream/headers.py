"""Which headers go up to a provider, and which come down.

Invariant: nothing that belongs to one hop, to the client alone or to the account alone passes;
everything else does, as it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

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

# Codings that usage can be read from; others are removed, so that no response goes unmetered. So is
# "*", which leaves the choice to the provider.
READABLE_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "identity"})
HeaderList = list[tuple[str, str]]


def headers_up(environ: Mapping[str, Any]) -> dict[str, str]:
    """The client's headers that go on to a provider, from a WSGI environ.

    Left out: hop-by-hop ones and those that `Connection` names (RFC 9110 section 7.6.1),
    credentials, cookies, and what describes the way here.
    """
    named = environ.get("HTTP_CONNECTION", "").lower().replace(",", " ").split()
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
    """The provider's headers that go on to the client; gunicorn writes Date and Server itself."""
    named: list[str] = []
    down: HeaderList = []
    for header in headers:
        lower = header[0].lower()
        if lower == "connection":
            named += header[1].lower().replace(",", " ").split()
        elif lower not in _NEVER_DOWN and lower[:15] != "access-control-":
            down.append(header)
    if not set(named) - {"close", "keep-alive"}:
        return down
    return [header for header in down if header[0].lower() not in named]


def readable_codings(accept_encoding: str) -> str:
    """Accept-Encoding (RFC 9110 section 12.5.3) without codings that usage cannot be read from."""
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
