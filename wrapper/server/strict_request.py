"""A request's head, checked again after gunicorn's parser.

Invariants: a head that another server could read in a second way is refused. A header whose name
has an underscore never passes for the one with a hyphen: WSGI writes both as `HTTP_X_TRACE`, so
the name's underscores are replaced before that (`wrapper.upstream.headers` puts them back).
"""

from __future__ import annotations

import re
from typing import Any

from gunicorn.http.body import Body, LengthReader
from gunicorn.http.errors import InvalidHeader, InvalidRequestLine, ObsoleteFolding
from gunicorn.http.message import Request

from wrapper.formats.http1 import LENGTH
from wrapper.upstream.headers import UNDERSCORE

_INVALID_TARGET = re.compile(rb"[A-Z]+ /[^ \r\n]*[\x00-\x1f\x7f-\xff][^ \r\n]* HTTP/1\.[01]\b")
# RFC 9110 section 7.2: uri-host [":" port] of RFC 3986 section 3.2.2; the host may be empty.
HOST = re.compile(r"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class InvalidTarget(InvalidRequestLine):  # type: ignore[misc]  # gunicorn has no types
    """The request target has characters that no URI has (RFC 3986 section 2)."""


class InvalidHost(InvalidHeader):  # type: ignore[misc]  # gunicorn has no types
    """HTTP/1.1 without a Host header, or a Host that is none (RFC 9112 section 3.2)."""


class StrictRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request whose head is checked against the grammar again.

    The C parser accepts a bare LF as line terminator, folded lines, and several spaces in the
    request line; another server on the way may not (RFC 9112 sections 2.2, 3 and 5.2).
    """

    headers: list[tuple[str, str]]

    def _peer_trusted_for_forwarded(self) -> tuple[dict[str, str], list[str]]:
        """No peer may set the scheme or WSGI's variables; gunicorn would parse its address first,
        for each request.
        """
        return {}, []

    def parse_request_line(self, line_bytes: bytes) -> None:
        try:
            super().parse_request_line(line_bytes)
        except InvalidRequestLine as error:
            raise _classified(error, line_bytes) from None

    def _parse_fast(self, unreader: Any, buf: bytearray) -> bytes:
        try:
            rest: bytes = super()._parse_fast(unreader, buf)
        except InvalidRequestLine as error:
            raise _classified(error, bytes(buf)) from None
        head = bytes(buf[: len(buf) - len(rest)])
        if head.count(b"\n") != head.count(b"\r\n"):
            raise InvalidRequestLine("bare LF as line terminator")
        if b"\r\n " in head or b"\r\n\t" in head:
            raise ObsoleteFolding("folded line")
        if head.lstrip(b"\r\n").split(b"\r\n", 1)[0].count(b" ") != 2:
            raise InvalidRequestLine("several spaces")
        return rest

    def set_body_reader(self) -> None:
        """Called by gunicorn when the head has been parsed, before anything is made of it."""
        host = length = None
        usual = True
        headers: list[tuple[str, str]] = []
        for name, value in self.headers:
            if name == "HOST":
                host = value
            elif name == "CONTENT-LENGTH":
                usual = usual and length is None and LENGTH.fullmatch(value) is not None
                length = value
            elif name == "TRANSFER-ENCODING":
                usual = False
            elif "_" in name:
                name = name.replace("_", UNDERSCORE)
            headers.append((name, value))
        self.headers = headers
        if host is None:
            if self.version >= (1, 1):
                raise InvalidHost("HOST")
        elif HOST.fullmatch(host) is None:
            raise InvalidHost("HOST")
        if usual:  # else gunicorn decides, which searches the headers again
            self.body = Body(LengthReader(self.unreader, int(length or 0)))
        else:
            super().set_body_reader()


def _classified(error: InvalidRequestLine, head: bytes) -> InvalidRequestLine:
    """`InvalidTarget` where only the target of the request line is wrong, else `error`."""
    return InvalidTarget("") if _INVALID_TARGET.match(head) else error
