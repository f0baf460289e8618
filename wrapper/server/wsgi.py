"""gunicorn's side of WSGI with less work for each request: the environment and the response.

Both are gunicorn's in what they do. What they save, of all that a short call costs in a worker:

* The part of the environment that depends on settings alone is made once, the keys of headers are
  looked up. (gunicorn makes both for each request, and a function for early hints.)
* Response headers are checked by one search over all of them, and what their names mean is looked
  up; `Date` is made once a second.
* The head of a response leaves with the first bytes of its body, and the last chunk with the last
  ones, in one system call in place of two; and `sendall` of gevent, which asks the system for the
  size of its buffer each time, is called only for what is left.

Invariant: a header that gunicorn would refuse is refused, by gunicorn's own code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final

from gunicorn import util
from gunicorn.http import wsgi

# A character that no header has, once its line has ended.
_REFUSED: Final = re.compile(r"[^\t\r\n\x20-\x7e\x80-\xff]")
_PLAIN, _LENGTH, _HOP = range(3)
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Environments:
    """Makes the WSGI environments of a worker's requests."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._base = {
            **wsgi.base_environ(cfg),
            "wsgi.multithread": True,
            "SCRIPT_NAME": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
        }

    def of(self, req: Any, sock: Any, client: Any, server: Any) -> dict[str, Any]:
        """The environment of `req`; `client` and `server` are the addresses of the connection."""
        if not isinstance(client, tuple) or not isinstance(server, tuple):
            return self._unusual(req, sock, client, server)  # a Unix socket
        if req.proxy_protocol_info or req.version != (1, 1):
            return self._unusual(req, sock, client, server)
        if req._expected_100_continue:
            sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        environ = {
            **self._base,
            "wsgi.input": req.body,
            "gunicorn.socket": sock,
            "REQUEST_METHOD": req.method,
            "QUERY_STRING": req.query,
            "RAW_URI": req.uri,
            "wsgi.url_scheme": req.scheme,
            "REMOTE_ADDR": client[0],
            "REMOTE_PORT": str(client[1]),
            "SERVER_NAME": server[0],
            "SERVER_PORT": str(server[1]),
            "PATH_INFO": util.unquote_to_wsgi_str(req.path) if "%" in req.path else req.path,
        }
        repeated: dict[str, list[str]] = {}
        for name, value in req.headers:
            key = _key(name)
            if key in environ:
                repeated.setdefault(key, [environ[key]]).append(value)
            else:
                environ[key] = value
        for key, values in repeated.items():
            environ[key] = ",".join(values)
        return environ

    def _unusual(self, req: Any, sock: Any, client: Any, server: Any) -> dict[str, Any]:
        _, environ = wsgi.create(req, sock, client, server, self._cfg)
        made: dict[str, Any] = {**environ, "wsgi.multithread": True}
        return made


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    """What a header is called in an environment."""
    if name in ("CONTENT-TYPE", "CONTENT-LENGTH"):
        return name.replace("-", "_")
    return "HTTP_" + name.replace("-", "_")


class Response(wsgi.Response):  # type: ignore[misc]  # gunicorn has no types
    """A response to one request; see the module's docstring."""

    headers: list[tuple[str, str]]
    upgrade: bool
    _complete = False  # the last chunk has been sent
    _rest = b""

    def process_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take the headers that stay."""
        for name, value in headers:
            kind = _kind(name)
            if kind == _HOP:
                self.upgrade = self.upgrade or value.lower() == "upgrade"
                continue
            if kind == _LENGTH:
                self.response_length = int(value)
            self.headers.append((name, value))

    def _head(self) -> bytes:
        """The head of the response, which now counts as sent."""
        lines = 0
        text = ""
        for name, value in self.headers:
            text += f"{name}: {value}\r\n"
            lines += 1
        if _REFUSED.search(text) or text.count("\r") != lines or text.count("\n") != lines:
            kept, self.headers = self.headers, []
            super().process_headers(kept)  # says which one is wrong
        self.headers_sent = True
        major, minor = self.req.version
        connection = "close" if self.should_close() else "keep-alive"
        if self.upgrade:
            connection = "upgrade"
        coding = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        return (
            f"HTTP/{major}.{minor} {self.status}\r\nServer: {self.version}\r\n"
            f"Date: {_date(int(time.time()))}\r\nConnection: {connection}\r\n{coding}{text}\r\n"
        ).encode("latin-1")

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of the body, and before the first of them the head.

        After the `last` ones goes what says so.
        """
        if self._omits_body:
            data = b""
        elif self.response_length is not None:
            data = data[: self.response_length - self.sent]
        self.sent += len(data)
        if self.chunked and data:
            data = b"%X\r\n%b\r\n%b" % (len(data), data, _LAST_CHUNK if last else b"")
            self._complete = last
        self._send(data if self.headers_sent else self._head() + data)

    def close(self) -> None:
        """The body has ended."""
        end = _LAST_CHUNK if self.chunked and not self._complete else b""
        self._send(end if self.headers_sent else self._head() + end)

    def send_at_once(self, data: bytes) -> bool:
        """Send chunks of the body, or what the system takes of them without waiting.

        Whether that was all; if not, `send_rest` has to be called next.
        """
        try:
            sent = self.sock._sock.send(data)
        except OSError:  # `send_rest` raises it
            sent = 0
        if sent == len(data):
            return True
        self._rest = data[sent:]
        return False

    def send_rest(self) -> None:
        """Send what `send_at_once` has left."""
        rest, self._rest = self._rest, b""
        self.sock.sendall(rest)

    def _send(self, data: bytes) -> None:
        if data:
            sent = self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(memoryview(data)[sent:])


@lru_cache(maxsize=1024)
def _kind(name: str) -> int:
    """What a response header's name means to the server. Raises InvalidResponseHeaderName."""
    if not wsgi.TOKEN_RE.fullmatch(name):
        raise wsgi.InvalidResponseHeaderName(f"{name!r}")
    if name.lower() == "content-length":
        return _LENGTH
    return _HOP if util.is_hoppish(name) else _PLAIN


@lru_cache(maxsize=2)
def _date(at: int) -> str:
    return formatdate(at, usegmt=True)
