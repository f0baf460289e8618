"""The head of a request, as nearly all are: read at once into the WSGI environment.

gunicorn's parser makes some ten objects for each request, searches its headers four times, and
copies them once more into an environment. Here a line is looked at once, and what a name or a
request line means is looked up.

Invariant: only what gunicorn's parser and `strict_request` would accept is read here, and gives the
same environment, without what nothing here reads (`SCRIPT_NAME`, `SERVER_SOFTWARE`, `wsgi.errors`,
`wsgi.version`, …); for everything else `read_head` gives None, and they decide.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

from wrapper.formats.http1 import LENGTH, NO_CONTROLS, TOKEN
from wrapper.formats.lookup import Lookup
from wrapper.server.strict_request import HOST
from wrapper.upstream.headers import UNDERSCORE

LONGEST: Final = 8000  # bytes of a head that is read here
LONGEST_KNOWN: Final = 256  # characters of a request line or a host that is looked up
MOST_FIELDS: Final = 100

_REQUEST_LINE: Final = re.compile(
    r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/(?!/)[!\"$-~]*) HTTP/1\.1"
)
_LINE_ENDS: Final = [b"\r\n" * count for count in range(MOST_FIELDS + 1)]


class RequestLine(NamedTuple):
    """What a request line says; `path` is decoded, as WSGI has it."""

    method: str
    uri: str
    path: str
    query: str


def read_head(head: bytes, base: dict[str, Any], root: str) -> dict[str, Any] | None:
    """The environment of a request: `base` and what its head adds; None for an unusual one.

    `head` ends before its empty line. `root` is taken off the target, where that begins with it.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    count = len(lines)
    if count > MOST_FIELDS or head.translate(None, NO_CONTROLS) != _LINE_ENDS[count]:
        return None
    is_known = len(first) <= LONGEST_KNOWN and "?" not in first
    line = _known_line(first, root) if is_known else _request_line(first, root)
    if line is None:
        return None
    environ = base.copy()
    environ["REQUEST_METHOD"], environ["RAW_URI"], environ["PATH_INFO"], query = line
    environ["QUERY_STRING"] = query
    expected, keys = len(environ) + count, _KEYS
    for each in lines:
        name, colon, value = each.partition(":")
        key = keys[name]
        if not key or not colon:
            return None
        environ[key] = value.strip(" \t")
    if len(environ) != expected:  # a name is repeated
        return None
    if "HTTP_TRANSFER_ENCODING" in environ or "HTTP_EXPECT" in environ:
        return None
    host = environ.get("HTTP_HOST")
    if host is None or len(host) > LONGEST_KNOWN or not _HOSTS[host]:
        return None
    length = environ.get("CONTENT_LENGTH")
    return environ if length is None or LENGTH.fullmatch(length) else None


def without_root(uri: str, root: str) -> str:
    """The target without `root`, where it begins with it."""
    if uri.startswith(root) and uri[len(root) : len(root) + 1] in ("/", "?", ""):
        rest = uri[len(root) :]
        return rest if rest.startswith("/") else "/" + rest
    return uri


def _request_line(line: str, root: str) -> RequestLine | None:
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        return None
    uri = without_root(found[2], root) if root else found[2]
    path, _, query = uri.partition("?")
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    return RequestLine(found[1], uri, path, query)


# A query may hold a secret, and is rarely the same again.
_known_line: Final = lru_cache(maxsize=256)(_request_line)


def _key(name: str) -> str:
    """What a header is called in an environment; empty for what is no name."""
    if TOKEN.fullmatch(name) is None:
        return ""
    key = name.upper().replace("_", UNDERSCORE).replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


_KEYS: Final = Lookup(_key)


def _is_host(value: str) -> bool:
    return HOST.fullmatch(value) is not None


_HOSTS: Final = Lookup(_is_host, 256)  # a gateway has few names; a look-up takes a third of a match
