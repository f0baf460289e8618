"""The response head and the framing of the body: the right one, and those no server may send.

RFC 9112 6.1 to 6.3 define how the length of a body is given. Each wrong framing here is one that
client libraries were seen to accept without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from wrapper.simulator.http import Request
from wrapper.simulator.instructions import Instructions
from wrapper.simulator.response import Response

_CLOSE_DELIMITED = frozenset({"no-length", "http10"})
_UNCHUNKED = frozenset(
    {"bad-te", "cl-negative", "cl-double", "cl-list", "cl-garbage", "short-body"}
)
_ALWAYS_CHUNKED = frozenset({"cl-te", "bad-chunk", "chunk-ext", "trailers"})
_UNUSABLE = _UNCHUNKED | {
    *("cl-te", "nul-header", "101", "bad-chunk", "bad-status", "lf", "fold", "garbage")
}
_EXTRA = {
    "nul-header": b"X-Nul: a\0b\r\n",
    "fold": b"X-Folded: a\r\n b\r\n",
    "long-header": b"X-Long: " + b"a" * 131_072 + b"\r\n",
    "many-headers": b"".join(b"X-Many-%d: %d\r\n" % (n, n) for n in range(400)),
}
_BEFORE = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
}


@dataclass(slots=True)
class Framing:
    """A head ready to be sent, and what wraps and follows the pieces of the body."""

    head: bytes
    wrap: Callable[[bytes], bytes]
    end: bytes
    reusable: bool
    unreadable: bool = False
    paced: bool = False


def _plain(data: bytes) -> bytes:
    return data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _bad_chunk(data: bytes) -> bytes:
    return b"zz\r\n%b\r\n" % data


def _extended_chunk(data: bytes) -> bytes:
    return b'%x;sim="a;b"\r\n%b\r\n' % (len(data), data)


def framing_for(instructions: Instructions, response: Response, request: Request) -> Framing:
    """The framing of a response whose headers are complete except for the length."""
    old = request.version == "HTTP/1.0"
    how = instructions.framing or ("http10" if old else "")
    length = (
        len(response.body)
        if response.events is None and response.blocks is None
        else response.length
    )
    bodiless = response.status in (204, 304)
    chunked = (length is None or how in _ALWAYS_CHUNKED) and how not in _CLOSE_DELIMITED
    closing = instructions.close or request.header("connection").lower() == "close"
    closing = closing or how in _CLOSE_DELIMITED or how in _UNUSABLE
    lines = [_status_line(how, response.status)]
    lines += [b"%b: %b\r\n" % (_latin(name), _latin(value)) for name, value in response.headers]
    if not bodiless:
        lines.append(_length_lines(how, length, chunked))
    if how in _EXTRA:
        lines.append(_EXTRA[how])
    lines.append(b"Connection: close\r\n\r\n" if closing else b"Connection: keep-alive\r\n\r\n")
    head = _BEFORE.get(how, b"") + b"".join(lines)
    if how == "lf":
        head = head.replace(b"\r\n", b"\n")
    if how == "garbage":
        head = b"\x16\x03\x01 this is simulated garbage, not HTTP\r\n\r\n"
    return Framing(
        head=head,
        wrap=_wrap(how, chunked),
        end=b"" if bodiless or request.method == "HEAD" else _end(how, chunked),
        reusable=not closing,
        paced=length is None,
        unreadable=how in ("garbage", "bad-status", "bad-chunk"),
    )


def _status_line(how: str, status: int) -> bytes:
    if how == "101":
        return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: simulated\r\n"
    if how == "bad-status":
        return b"HTTP/1.1 okay fine\r\n"
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Simulated"
    return b"HTTP/1.%d %d %b\r\n" % (how != "http10", status, phrase.encode())


def _length_lines(how: str, length: int | None, chunked: bool) -> bytes:
    known = 4096 if length is None else length
    lines = {
        "cl-te": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % known,
        "bad-te": b"Transfer-Encoding: xchunked\r\n",
        "cl-negative": b"Content-Length: -5\r\n",
        "cl-double": b"Content-Length: %d\r\nContent-Length: %d\r\n" % (known, known + 7),
        "cl-list": b"Content-Length: %d, %d\r\n" % (known, known),
        "cl-garbage": b"Content-Length: %dx\r\n" % known,
        "short-body": b"Content-Length: %d\r\n" % (known + 64),
        "no-length": b"",
        "http10": b"",
    }.get(how)
    if lines is not None:
        return lines
    if chunked:
        trailer = b"Trailer: X-Sim-Trailer\r\n" if how == "trailers" else b""
        return trailer + b"Transfer-Encoding: chunked\r\n"
    return b"Content-Length: %d\r\n" % known


def _wrap(how: str, chunked: bool) -> Callable[[bytes], bytes]:
    if not chunked or how in _UNCHUNKED:
        return _plain
    return {"bad-chunk": _bad_chunk, "chunk-ext": _extended_chunk}.get(how, _chunk)


def _end(how: str, chunked: bool) -> bytes:
    if how == "long-body":
        return b'{"simulated": "more than was declared"}' if not chunked else b"0\r\n\r\nmore"
    if how == "trailers":
        return b"0\r\nX-Sim-Trailer: simulated\r\n\r\n"
    if not chunked or _wrap(how, chunked) is _plain:
        return b""
    return b"0\r\n\r\n"


def _latin(text: str) -> bytes:
    return text.encode("latin-1", "replace")
