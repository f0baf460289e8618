"""Serves the API's description (`/openapi.json`) and Swagger UI (`/docs`) from local files.

The rule it protects: the page is whole without any other host, and stays that way: its
Content-Security-Policy lets the browser load, run and contact nothing but this gateway.
"""

from __future__ import annotations

import hashlib
from functools import cache
from mimetypes import guess_type
from pathlib import Path

from flask import Blueprint, Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from wrapper.blueprints.openapi.openapi import encoded
from wrapper.errors import UnknownUrl

bp = Blueprint("docs", __name__)

_PIECE = 64 * 1024  # bytes; a caller that takes none for a while is noticed at each
_STATIC = Path(__file__).parent / "static"
_ASSETS = {
    "init.js": _STATIC / "init.js",
    "page.css": _STATIC / "page.css",
    "favicon-32x32.png": _STATIC / "vendor" / "favicon-32x32.png",
    "swagger-ui.css": _STATIC / "vendor" / "swagger-ui.css",
    "swagger-ui-bundle.js": _STATIC / "vendor" / "swagger-ui-bundle.js",
}
# Swagger UI draws its icons from data: URLs and offers binary answers as blob: URLs.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


@bp.get("/openapi.json")
def openapi() -> Response:
    """The OpenAPI document; 304 where the caller has it already (RFC 9110 section 13.1.2)."""
    body, tag = encoded()
    response = Response(body, mimetype="application/json")
    response.set_etag(tag)
    response.cache_control.no_cache = True
    response.make_conditional(request)
    return response


@bp.get("/docs")
@bp.get("/swagger/index.html")
def page() -> Response:
    """The page itself."""
    response = _file(_STATIC / "index.html")
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@bp.get("/swagger")
def swagger() -> AnyResponse:
    """What people who know other gateways type first."""
    return redirect("/docs")


@bp.get("/docs/<asset>")
def asset(asset: str) -> Response:
    """One of the page's own files; there is no way to any other."""
    if asset not in _ASSETS:
        raise UnknownUrl("There is no such file: the page is at /docs.")
    return _file(_ASSETS[asset])


@cache
def _content(path: Path) -> tuple[bytes, str]:
    """The bytes, once for all who ask, and what they are known by."""
    data = path.read_bytes()
    return data, hashlib.sha256(data).hexdigest()[:32]


def _file(path: Path) -> Response:
    """A file that the browser keeps, and asks about each time, in pieces of 64 KiB.

    Not by `send_file`: its direct way to the server leaves out what is to happen at the
    response's end, and the request would never be recorded.
    """
    data, stamp = _content(path)
    pieces = (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))
    response = Response(pieces, mimetype=guess_type(path.name)[0])
    response.content_length = len(data)
    response.set_etag(stamp)
    response.cache_control.no_cache = True
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    return response
