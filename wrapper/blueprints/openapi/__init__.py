"""Serves the API's description (`/openapi.json`) and Swagger UI (`/docs`) from local files.

The description is openapi.yaml, completed with the errors and the version from the code.

Invariant: the page needs no other host: its Content-Security-Policy lets the browser load, run and
contact nothing but this gateway.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from functools import cache
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from wrapper import __version__
from wrapper.child import ChildFailed, in_child
from wrapper.endpoints import find_endpoint
from wrapper.errors import GatewayError, UnknownUrl, render

bp = Blueprint("docs", __name__)

_making = threading.Lock()
_made: list[tuple[bytes, str]] = []

_SOURCE = Path(__file__).parent / "openapi.yaml"
_STATIC = Path(__file__).parent / "static"
_ASSETS = {
    "init.js": _STATIC / "init.js",
    "page.css": _STATIC / "page.css",
    "favicon-32x32.png": _STATIC / "vendor" / "favicon-32x32.png",
    "swagger-ui.css": _STATIC / "vendor" / "swagger-ui.css",
    "swagger-ui-bundle.js": _STATIC / "vendor" / "swagger-ui-bundle.js",
}
# Swagger UI draws its icons from data: URLs and offers binary responses as blob: URLs.
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
    """The OpenAPI document; 304 where the client has it already (RFC 9110 section 13.1.2)."""
    body, tag = _encoded()
    response = Response(body, mimetype="application/json")
    response.set_etag(tag)
    response.cache_control.no_cache = True
    response.make_conditional(request)
    return response


@bp.get("/docs")
@bp.get("/swagger/index.html")
def page() -> Response:
    """Swagger UI."""
    response = _file(_STATIC / "index.html", _root())
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@bp.get("/")
@bp.get("/swagger")
def to_page() -> AnyResponse:
    """Where a browser looks first, and the address of the page in other gateways."""
    return redirect(_root() + "docs")


@bp.get("/docs/<asset>")
def asset(asset: str) -> Response:
    """One of the page's own files; no other file can be reached."""
    if asset not in _ASSETS:
        raise UnknownUrl("There is no such file: the page is at /docs.")
    return _file(_ASSETS[asset])


def _root() -> str:
    """The way from the requested path to `/`, as a relative reference (RFC 3986 section 4.2).

    A proxy in front may serve the gateway below a prefix that the gateway does not know.
    """
    return "../" * (request.path.count("/") - 1)


def document() -> dict[str, Any]:
    """The OpenAPI document: openapi.yaml, completed with what the code knows."""
    import yaml  # not at the top: only requests for the document need it, the start does not

    # The parser in C (libyaml), which all wheels of PyYAML contain, is several times faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    made: dict[str, Any] = loader(_SOURCE.read_bytes()).get_single_data()
    parts, components = made.pop("x-parts"), made["components"]
    made["info"]["version"] = __version__
    kinds = error_kinds()
    for code, example in components["examples"].items():
        if code in kinds:
            error = example["value"]["error"]
            body = render(error["message"], kinds[code].type, error.get("param"), code)
            example["value"] = json.loads(body)
            if code == "upstream_interrupted":
                parts["interrupted"]["value"] += f"data: {body.decode()}\n\n"
    types = components["schemas"]["Error"]["properties"]["error"]["properties"]["type"]
    types["enum"] = sorted({kind.type for kind in kinds.values()})
    for path, item in made["paths"].items():
        if "post" in item and path != "/v1/{path}":
            item["post"]["x-usage"] = find_endpoint("POST", path).usage
    return made


def error_kinds() -> dict[str, type[GatewayError]]:
    """The gateway's errors by `code`; errors with the same code have the same type and status."""

    def family(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        for child in kind.__subclasses__():
            yield from family(child)
        yield kind  # after its children, so that the class that introduces a code wins

    return {kind.code: kind for kind in family(GatewayError)}


def _encoded() -> tuple[bytes, str]:
    """The document as UTF-8 JSON, and its entity tag (without quotes).

    Made once, in a forked child: importing and running the YAML parser takes a tenth of a second,
    in which no other request of the worker would be served.
    """
    with _making:
        if not _made:
            try:
                body = in_child(_document)
            except (ChildFailed, OSError):  # there is no room for one
                body = _document()
            _made.append((body, _tag(body)))
    return _made[0]


def _document() -> bytes:
    return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


@cache
def _content(path: Path, root: str | None) -> tuple[bytes, str]:
    """A file's bytes and entity tag, read once; `{root}` in it is where its links begin."""
    data = path.read_bytes()
    if root is not None:
        data = data.replace(b"{root}", root.encode())
    return data, _tag(data)


def _file(path: Path, root: str | None = None) -> Response:
    """A file that the browser caches and revalidates each time. All responses share its bytes.

    Not `send_file`: its direct way to the server (wsgi.file_wrapper) skips the callbacks at the
    response's end, and the request would never be recorded.
    """
    data, tag = _content(path, root)
    response = Response(data, mimetype=guess_type(path.name)[0])
    response.set_etag(tag)
    response.cache_control.no_cache = True
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    return response
