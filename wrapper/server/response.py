"""The server's side of a response: its head, the framing of its body, and writing both.

As gunicorn's does, with less work for each request:

* One pass over the headers; what a name means is looked up, `Date` is made once a second, and
  characters that no header has are looked for in all of the head at once.
* The head leaves with the first bytes of the body, and the last chunk with the last ones, in one
  system call in place of two; and `sendall` of gevent, which asks the system for the size of its
  buffer each time, is called only for what is left.

Invariant: no header can end its line, or be taken for a part of the framing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gunicorn import SERVER, util
from gunicorn.http.message import TOKEN_RE

from wrapper.formats.lookup import Lookup

if TYPE_CHECKING:
    from wrapper.server.connection import Connection

_PLAIN, _LENGTH, _HOP = range(3)
_LAST_CHUNK: Final = b"0\r\n\r\n"
# All bytes that a header may have, to be taken out: what is left are the ends of lines.
_FIELD_BYTES: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_OWN_LINES: Final = 5  # status line, Server, Date, Connection, and the empty line


class Response:
    """A response to one request of a connection.

    `closes`: the connection ends with it. `chunked`: its length was not said.
    """

    __slots__ = (
        *("_bodiless", "_complete", "_connection", "_head", "_left"),
        *("chunked", "closes", "head_is_sent"),
    )

    def __init__(self, connection: Connection, *, closes: bool) -> None:
        self._connection = connection
        self.closes = closes
        self.head_is_sent = False
        self._complete = False  # the last chunk has been sent

    def start_response(self, status: str, headers: Sequence[tuple[str, str]]) -> None:
        """WSGI's start_response, without exc_info and without write: nothing here uses them."""
        connection = self._connection
        code = int(status[:3])
        sizeless = code < 200 or code == 204  # RFC 9110 section 6.4.2
        length: int | None = None
        text, lines, upgrade, kinds = "", _OWN_LINES + len(headers), False, _KINDS
        for name, value in headers:
            kind = kinds[name]
            if kind != _PLAIN:
                upgrade = upgrade or (kind == _HOP and value.lower() == "upgrade")
                if kind == _HOP or sizeless:
                    lines -= 1
                    continue
                length = int(value)
            text += f"{name}: {value}\r\n"
        self._bodiless = bodiless = sizeless or code == 304 or connection.method == "HEAD"
        self.chunked = length is None and not bodiless and connection.version == "HTTP/1.1"
        until_close = length is None and not self.chunked and not bodiless
        self.closes = self.closes or until_close or not connection.keeps
        self._left = length  # bytes of the body
        options = "upgrade" if upgrade else "close" if self.closes else "keep-alive"
        coding = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        self._head = (
            f"{connection.version} {status}\r\nServer: {SERVER}\r\n"
            f"Date: {_date(int(time.time()))}\r\nConnection: {options}\r\n{coding}{text}\r\n"
        ).encode("latin-1")
        if self._head.translate(None, _FIELD_BYTES) != b"\r\n" * (lines + self.chunked):
            raise ValueError("a control character in a response header")

    def write(self, data: bytes, *, last: bool = False) -> None:
        """Send bytes of the body, and before the first of them the head.

        `last`: nothing follows, so the last chunk goes with them.
        """
        if self.chunked:
            if data:
                data = b"%X\r\n%b\r\n%b" % (len(data), data, _LAST_CHUNK if last else b"")
                self._complete = last
        elif self._bodiless:
            data = b""
        elif self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        self._send(data)

    def close(self) -> None:
        """The body has ended."""
        if not self.head_is_sent or (self.chunked and not self._complete):
            self._send(_LAST_CHUNK if self.chunked else b"")

    @property
    def send_now(self) -> Callable[[bytes], int]:
        """Sends chunks of the body, or what the system takes of them without waiting: how many
        bytes that was. Raises OSError, also where it is none.
        """
        send: Callable[[bytes], int] = self._connection.sock._sock.send
        return send

    def send_rest(self, rest: bytes) -> None:
        """Send what `send_now` has left."""
        self._connection.sock.sendall(rest)

    def _send(self, data: bytes) -> None:
        if not self.head_is_sent:
            self.head_is_sent = True
            data, self._head = self._head + data, b""
        if data:
            sock = self._connection.sock
            sent = sock.send(data)
            if sent < len(data):
                sock.sendall(memoryview(data)[sent:])


def _kind(name: str) -> int:
    """What a response header's name means to the server. Raises ValueError for what is none."""
    if not TOKEN_RE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a header")
    if name.lower() == "content-length":
        return _LENGTH
    return _HOP if util.is_hoppish(name) else _PLAIN


_KINDS: Final = Lookup(_kind)


@lru_cache(maxsize=2)
def _date(at: int) -> str:
    return formatdate(at, usegmt=True)
