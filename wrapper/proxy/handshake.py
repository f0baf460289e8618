"""A WebSocket handshake (RFC 6455 section 4): what is asked for, what goes up, what comes back.

The client's `Sec-WebSocket-Key` goes up, so that the provider's `Sec-WebSocket-Accept` is right for
the client, and the bytes that follow can pass as they are. Extensions are not offered to the
provider: a compressed frame could not be read beside the bytes.

Browsers cannot send headers with a handshake. They offer the key as a subprotocol,
`openai-insecure-api-key.<key>`.

Invariant: no subprotocol that carries a key, or names an account, goes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_plus

from wrapper import errors
from wrapper.endpoints import SOCKETS, Endpoint, find_socket
from wrapper.formats import websocket

_KEY_PROTOCOL: Final = "openai-insecure-api-key."
_NOT_UP: Final = (_KEY_PROTOCOL, "openai-organization.", "openai-project.")


def asked_for(environ: Mapping[str, Any], target: str) -> Endpoint | None:
    """The endpoint of a handshake; None for a request that is none.

    An Upgrade to anything else is ignored (RFC 9110 section 7.8). Raises BadRequest, or
    UpgradeRequired, with which clients that can do without a WebSocket go on over HTTP.
    """
    upgrade = _tokens(environ, "HTTP_UPGRADE")
    asked = "websocket" in upgrade and "upgrade" in _tokens(environ, "HTTP_CONNECTION")
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY")
    if environ["REQUEST_METHOD"] != "GET" or not (asked or key):
        return None
    endpoint = find_socket(target)
    if endpoint is None:
        paths = " and ".join(socket.path for socket in SOCKETS)
        raise errors.UpgradeRequired(f"WebSockets are relayed at {paths} only: use HTTP.")
    if not asked or environ.get("gunicorn.socket") is None:
        # A proxy in front may have removed the headers of the connection; the others are left.
        raise errors.UpgradeRequired(
            "The handshake arrived without 'Upgrade: websocket' and 'Connection: Upgrade': a proxy"
            " in front has to forward them. Or use HTTP."
        )
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != websocket.VERSION:
        refusal = errors.UpgradeRequired(f"WebSockets have version {websocket.VERSION} here.")
        refusal.headers += (("Sec-WebSocket-Version", websocket.VERSION),)
        raise refusal
    if not (key and websocket.is_key(key)) or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise errors.BadRequest(
            "The WebSocket handshake is malformed: it is HTTP/1.1 with a Sec-WebSocket-Key of 16"
            " bytes in base64."
        )
    return endpoint


def authorization_of(protocols: str) -> str | None:
    """The `Authorization` that a browser's subprotocols stand for; None where they have no key."""
    found = [name for name in _split(protocols) if name.startswith(_KEY_PROTOCOL)]
    return f"Bearer {found[0][len(_KEY_PROTOCOL) :]}" if len(found) == 1 else None


def handshake_up(environ: Mapping[str, Any]) -> dict[str, str]:
    """The headers of the handshake with the provider."""
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-Websocket-Version": websocket.VERSION,
        "Sec-Websocket-Key": environ["HTTP_SEC_WEBSOCKET_KEY"],
    }
    offered = _offered(environ)
    if offered:
        headers["Sec-Websocket-Protocol"] = ", ".join(offered)
    return headers


def check_accepted(environ: Mapping[str, Any], headers: list[tuple[str, str]]) -> None:
    """Whether a provider's 101 accepts this handshake. Raises UpstreamProtocolError."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    accepts = found.get("sec-websocket-accept")
    chosen = found.get("sec-websocket-protocol", [])
    if (
        accepts != [websocket.accept_of(environ["HTTP_SEC_WEBSOCKET_KEY"])]
        or "sec-websocket-extensions" in found
        or len(chosen) > 1
        or not set(chosen) <= set(_offered(environ))
    ):
        raise errors.UpstreamProtocolError("The provider's WebSocket handshake is not valid.")


def model_of(query: str) -> str | None:
    """The model that a raw `?query` names. Raises InvalidBody where there are two."""
    found = [value for name, value in parse_qsl(query[1:]) if name.lower() == "model"]
    if len(found) > 1:
        raise errors.InvalidBody("The query names two models: name one.", param="model")
    return found[0] if found else None


def with_query_model(query: str, model: str) -> str:
    """The raw `?query` with another model in it."""
    parts = query[1:].split("&")
    return "?" + "&".join(
        f"{name}={quote(model, safe='')}" if unquote_plus(name).lower() == "model" else part
        for part in parts
        for name in (part.partition("=")[0],)
    )


def _offered(environ: Mapping[str, Any]) -> list[str]:
    protocols = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
    return [name for name in _split(protocols) if not name.lower().startswith(_NOT_UP)]


def _split(protocols: str) -> list[str]:
    return [stripped for name in protocols.split(",") if (stripped := name.strip())]


def _tokens(environ: Mapping[str, Any], name: str) -> list[str]:
    return str(environ.get(name, "")).lower().replace(",", " ").split()
