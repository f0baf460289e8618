"""A strict HTTP/1.1 client connection: the bytes of one request to a provider, as they come.

Theory of operation. `Connection` owns a socket and the bytes read ahead from it. A request is
`send`, then `read_head`, then `body(...)`, whose `read1` returns what has arrived so far and
waits only when nothing has. A whole body leaves the connection `reusable`; anything else does
not. Nothing is decoded, decompressed, followed or repeated here.

Invariants:

* What two readers could frame in two ways is refused, never guessed (RFC 9112 section 6.3 and
  11.2): Content-Length beside Transfer-Encoding, several or malformed Content-Lengths, unknown
  transfer codings, bare line feeds, folded lines, control characters in a header.
* A body that ends early raises; it never looks complete (RFC 9112 section 8).
* No byte of one response is ever read as another's: a connection serves again only when the end of
  the last response was seen, and nothing followed it.
* Events that wait together leave together, and one that has arrived never waits for the next.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from wrapper.formats.lookup import Lookup

READ_SIZE = 65536
TLS_RECORD = 16384  # RFC 8446 section 5.1
MAX_HEAD = 65536
MAX_CHUNK_LINE = 1024
MAX_TRAILERS = 64
MAX_PIECES = 1024  # chunks in one piece: a millisecond of work, however small they are
MAX_INTERIM = 16
LONGEST_KNOWN = 64  # characters of a status line that is looked up

READ = frozenset(
    [
        *("connection", "content-encoding", "content-length", "content-type"),
        *("transfer-encoding", "x-request-id"),
    ]
)
"""The headers of a response that are read; the others only pass."""

_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: (.*))?", re.DOTALL)
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# White space around the value is stripped afterwards: were it matched here, a long run of it before
# a control character would be divided in every possible way, for minutes.
_HEADER_LINE = re.compile(TOKEN.pattern.encode() + rb":[\t\x20-\x7e\x80-\xff]*")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
NO_CONTROLS = bytes(set(range(256)) - set(_CONTROLS))
LENGTH = re.compile("[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")

# What nearly every chunk-size line is: no extension, and not the last chunk.
_CHUNK = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,14})\r\n")

# How a chunk ends whose data ends with an empty line.
_ENDS_EMPTY = (b"\n\n\r\n", b"\r\n\r\n\r\n")
_LONGEST_EMPTY = 4  # bytes of the longest such line, with the end of the line before

_LAST_CHUNK = b"0\r\n\r\n"  # without trailers

# Linux's account of a connection (tcp(7)). Its last 8 bytes here are `tcpi_bytes_acked`, the bytes
# that the peer has acknowledged.
_TCP, _TCP_INFO = socket.IPPROTO_TCP, getattr(socket, "TCP_INFO", -1)
_TCP_INFO_BYTES = 128

# A machine's sleep counts: the peer has not slept.
clock = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

Headers = list[tuple[str, str]]

NOTHING_THERE = (BlockingIOError, ssl.SSLWantReadError)
"""What a read that does not wait raises where nothing has come."""


class ProtocolError(Exception):
    """The peer's bytes are not HTTP/1.1 that can be relayed safely."""


class Disconnected(ProtocolError):
    """The peer closed before its response was complete."""


class NoResponse(Disconnected):
    """The peer closed, or `reset` the connection, before the first byte of a response."""

    def __init__(self, message: str, *, reset: bool = False) -> None:
        super().__init__(message)
        self.reset = reset


class Head(msgspec.Struct):
    """Status line and headers; `length` is None for chunked and close-delimited bodies.

    `reader(connection, head)` reads the body that follows.
    """

    status: int
    reason: str
    headers: Headers
    length: int | None
    reader: Callable[[Connection, Head], Body]
    keep_alive: bool
    # The first value of each header of `READ`, by its lower-case name; of Connection, all of them.
    first: dict[str, str]


class Connection:
    """One TCP or TLS connection to `host:port`, used for one request at a time."""

    __slots__ = (
        *("_acked", "_ahead", "_emptied", "_most", "_recv", "_sent", "_timeout", "_wait"),
        *("_written", "idle_since", "reusable", "sock"),
    )

    def __init__(
        self, sock: socket.socket, wait: Callable[[Any, float | None], None] | None = None
    ) -> None:
        self.sock = sock
        is_tls = isinstance(sock, ssl.SSLSocket)
        # Where gevent's sockets are in use: waits until there is something to read, for some
        # seconds, and reads what is there without waiting.
        self._wait = wait
        self._recv: Any = None
        if wait is not None:
            self._recv = sock._sslobj.read if is_tls else sock._sock.recv  # type: ignore[attr-defined]
        # A read that gives less has taken all that was there. OpenSSL gives the rest of one record,
        # and reads none ahead.
        self._most = TLS_RECORD if is_tls else READ_SIZE
        self._emptied = False  # the last read took all that was there
        self._ahead = b""
        self._timeout: float | None = -1  # as set here; -1: it has not been
        self.reusable = False
        self.idle_since = 0.0  # 0: it has served no request yet
        # What the peer will have acknowledged with the last request, by the kernel's account; the
        # kernel is asked once, and each time for TLS, which adds bytes of its own.
        self._acked: int | None = None
        self._sent = 0  # bytes of the last request
        self._written = False

    def set_timeout(self, seconds: float | None) -> None:
        """How long one wait may take."""
        self._timeout = seconds
        self.sock.settimeout(seconds)

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open with nothing on it, as it must be."""
        try:
            if self._recv is not None:
                self._recv(1)
            else:
                self._timeout = 0
                self.sock.settimeout(0)
                self.sock.recv(1)
        except NOTHING_THERE:
            if self._acked is None or isinstance(self.sock, ssl.SSLSocket):
                self._acked = self._bytes_acked()
            return True
        except OSError:
            return False
        return False

    def was_dead(self, error: Exception) -> bool:
        """Whether `error`, before any byte of a response on a kept connection, shows that the
        peer had closed it before the request: then nothing of the request was executed.

        Either the request could not be written to its end, or the peer's close has arrived and
        acknowledges nothing of it. (A reset says nothing: a peer that has read a request may
        send one without acknowledging anything.)
        """
        if not self.idle_since or not isinstance(error, NoResponse):
            return False
        if not self._written:
            return True
        if error.reset or self._acked is None:
            return False
        now = self._bytes_acked()
        return now is not None and now <= self._acked - self._sent

    def _bytes_acked(self) -> int | None:
        """How much the peer has acknowledged so far, where the system says so."""
        try:
            info = self.sock.getsockopt(_TCP, _TCP_INFO, _TCP_INFO_BYTES)
        except OSError:  # no TCP
            return None
        if len(info) < _TCP_INFO_BYTES:  # no Linux, or an old one
            return None
        return int.from_bytes(info[_TCP_INFO_BYTES - 8 :], sys.byteorder)

    def send(self, head: bytes, body: bytes | Iterable[bytes] | None, timeout: float) -> None:
        """Write a request; `timeout` bounds each wait for the peer to take bytes.

        A peer that responds early and stops reading is legitimate (RFC 9112 section 9.3): a broken
        pipe here is left to `read_head`, which finds the response or its absence.
        """
        self.reusable = False
        self._written = False
        if timeout != self._timeout:  # setting it takes longer
            self._timeout = timeout
            self.sock.settimeout(timeout)
        try:
            if body is None or (isinstance(body, bytes) and len(body) <= READ_SIZE):
                data = head + body if body else head
                # `sendall` of gevent asks the system for the buffer's size each time.
                sent = self.sock.send(data)
                if sent < len(data):
                    self.sock.sendall(data[sent:])
                self._sent = len(data)
            else:
                self.sock.sendall(head)
                self._sent = len(head)
                body = (body,) if isinstance(body, bytes) else body  # not copied behind the head
                for piece in body:
                    self.sock.sendall(piece)
                    self._sent += len(piece)
            if self._acked is not None:
                self._acked += self._sent
            self._written = True
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            pass

    def read_head(self, method: str, timeout: float, *, upgrade: bool = False) -> Head:
        """The final response's head; interim ones (RFC 9110 section 15.2) are passed over.

        A 101 is final where the request asked for an `upgrade`.
        """
        if timeout != self._timeout:
            self.set_timeout(timeout)
        for _ in range(MAX_INTERIM):
            head = parse_head(self._until_blank_line(), method)
            if head.status >= 200 or (upgrade and head.status == 101):
                return head
            if head.status == 101:
                raise ProtocolError("an upgrade that was not requested")
        raise ProtocolError("too many interim responses")

    def receive(self) -> bytes:
        """What is there, waiting only when nothing is; empty when the peer has closed."""
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        if self._emptied and self._wait is not None:
            # `recv` would ask the system in vain first, for each event of a stream.
            self._wait(self.sock, self._timeout)
        data = self.sock.recv(READ_SIZE)
        self._emptied = len(data) < self._most
        return data

    @property
    def receive_now(self) -> Callable[[int], bytes] | None:
        """Reads up to so many bytes without waiting: empty when the peer has closed, and one of
        NOTHING_THERE where nothing is. None where it cannot be used next.
        """
        return None if self._ahead else self._recv

    def unread(self, data: bytes) -> None:
        """Put back what belongs to the next reader."""
        self._ahead = data + self._ahead

    def finish(self, body: Body, rest: bytes = b"") -> None:
        """`body` is whole: the connection may serve again if nothing follows, not even `rest`."""
        body.complete = True
        if rest:
            self.unread(rest)
        self.reusable = body.keep_alive and not self._ahead
        if self.reusable:
            self.idle_since = clock()

    def half_close(self) -> bool:
        """Nothing more is sent; whether the peer may still send. TLS has no such state."""
        if isinstance(self.sock, ssl.SSLSocket):
            return False
        self.sock.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        self.reusable = False
        self._recv = None
        self.sock.close()

    def _until_blank_line(self) -> bytes:
        try:
            data = self.receive()
        except ssl.SSLEOFError:  # closed without TLS's close_notify
            data = b""
        except (ConnectionResetError, BrokenPipeError):
            raise NoResponse("connection reset by peer", reset=True) from None
        if not data:
            raise NoResponse("closed without a response")
        end = data.find(b"\r\n\r\n")
        while end < 0:
            if len(data) > MAX_HEAD:
                raise ProtocolError("the head is too long")
            more = self.receive()
            if not more:
                raise Disconnected("closed within the head")
            searched = max(0, len(data) - 3)
            data += more
            end = data.find(b"\r\n\r\n", searched)
        self._ahead = data[end + 4 :]
        return data[:end]


def _read_as(name: str) -> str:
    """What of `READ` a header's name is, or nothing."""
    if TOKEN.fullmatch(name) is None:
        raise ProtocolError("a malformed header line")
    lower = name.lower()
    return lower if lower in READ else ""


_READ_AS = Lookup(_read_as)  # responses have the same names again


def _status_line(line: str) -> tuple[bool, int, str]:
    """Whether it is HTTP/1.1, the status and its reason."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("not an HTTP/1.x status line")
    return match[1] == "1", int(match[2]), (match[3] or "").strip()


_STATUS_LINES = Lookup(_status_line, 64)


def parse_head(data: bytes, method: str) -> Head:
    """Read a response head (without its blank line) strictly, or raise ProtocolError.

    The body's length is that of RFC 9112 section 6.3, refusing whatever section 11.2 warns of.
    """
    first_line, *lines = data.decode("latin-1").split("\r\n")
    is_known = len(first_line) <= LONGEST_KNOWN
    is_11, status, reason = _STATUS_LINES[first_line] if is_known else _status_line(first_line)
    # What is left without all characters that may stand in a line: its ends, and nothing else. An
    # expression that looks at each character takes ten times as long.
    if data.translate(None, NO_CONTROLS) != b"\r\n" * len(lines):
        raise ProtocolError("a control character in the head")
    headers: Headers = []
    first: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        read = _READ_AS[name if colon else ""]
        value = value.strip(" \t")
        headers.append((name, value))
        if read:
            if read not in first:
                first[read] = value
            elif read == "connection":
                first[read] += "," + value
            elif read in ("content-length", "transfer-encoding"):
                raise ProtocolError(f"{name} is given twice")
    length, coding = first.get("content-length"), first.get("transfer-encoding")
    if coding is not None and (coding.lower() != "chunked" or length is not None or not is_11):
        raise ProtocolError("Transfer-Encoding that cannot be trusted")
    if length is not None and LENGTH.fullmatch(length) is None:
        raise ProtocolError("Content-Length that cannot be trusted")
    bodiless = method == "HEAD" or status < 200 or status in (204, 304)
    # That no body follows these is presumed. One that does, a moment later, would be read as the
    # response to the next request, which may be another client's.
    keep_alive, connection = is_11 and not bodiless, first.get("connection")
    if connection and not (is_11 and connection == "keep-alive"):
        tokens = connection.lower().replace(",", " ").split()
        keep_alive = (is_11 or "keep-alive" in tokens) and "close" not in tokens and not bodiless
    size = 0 if bodiless else None if length is None else int(length)
    unsized = UntilCloseBody if coding is None else ChunkedBody
    reader = unsized if size is None else LengthBody
    return Head(status, reason, headers, size, reader, keep_alive, first)


class Body:
    """What follows a head. `read1` gives bytes as they come, then `b""` each time.

    `complete` turns true as soon as the end is known, which may be before `read1` says so.
    """

    __slots__ = ("complete", "connection", "keep_alive")

    def __init__(self, connection: Connection, head: Head) -> None:
        self.connection = connection
        self.keep_alive = head.keep_alive
        self.complete = False

    def read1(self) -> bytes:
        """Bytes of the body, at least one unless it has ended.

        Raises Disconnected, ProtocolError, TimeoutError or another OSError.
        """
        raise NotImplementedError


class LengthBody(Body):
    """As many bytes as Content-Length said."""

    __slots__ = ("_left",)

    def __init__(self, connection: Connection, head: Head) -> None:
        super().__init__(connection, head)
        self._left = head.length or 0
        if not self._left:
            self.connection.finish(self)

    def read1(self) -> bytes:
        if self.complete:
            return b""
        data = self.connection.receive()
        if not data:
            raise Disconnected(f"closed {self._left} bytes before the end")
        if len(data) > self._left:
            self.connection.unread(data[self._left :])
            data = data[: self._left]
        self._left -= len(data)
        if not self._left:
            self.connection.finish(self)
        return data


class UntilCloseBody(Body):
    """No length and no chunks: the end is where the peer closes (RFC 9112 section 6.3 (8))."""

    __slots__ = ()

    def read1(self) -> bytes:
        if self.complete:
            return b""
        data = self.connection.receive()
        if not data:
            self.keep_alive = False
            self.connection.finish(self)
        return data


class ChunkedBody(Body):
    """RFC 9112 section 7.1. All the chunks that have arrived come out as one piece."""

    __slots__ = ("_left", "_pending", "_trailers")

    def __init__(self, connection: Connection, head: Head) -> None:
        # Not super().__init__(): that saves a call for each stream.
        self.connection = connection
        self.keep_alive = head.keep_alive
        self.complete = False
        self._left = 0  # bytes to come of the chunk we are in, its CRLF included
        self._pending = b""  # the beginning of a chunk-size line
        self._trailers = 0  # lines that may still follow the last chunk

    def read1(self) -> bytes:
        while not self.complete:
            data = self.connection.receive()
            if not data:
                raise Disconnected("closed within a chunked body")
            if self._pending:
                data = self._pending + data
                self._pending = b""
            out = self._take(data)
            if out:
                return out
        return b""

    @property
    def is_between_chunks(self) -> bool:
        """Whether a chunk begins with the next byte."""
        return not (self._left or self._trailers or self._pending)

    def _take(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        position, size = 0, len(data)
        while position < size:
            if len(pieces) == MAX_PIECES:
                self.connection.unread(data[position:])
                break
            left = self._left
            if left > 2:
                end = min(position + left - 2, size)
                pieces.append(data[position:end])
                self._left = left - (end - position)
                position = end
            elif left:
                if data[position] != (13 if left == 2 else 10):
                    raise ProtocolError("a chunk does not end where it said")
                self._left = left - 1
                position += 1
            else:
                chunk = _CHUNK.match(data, position) if not self._trailers else None
                if chunk is not None:
                    position, length = chunk.end(), int(chunk[1], 16)
                    end = position + length
                    if data[end : end + 2] == b"\r\n":  # all of it is here, as nearly always
                        pieces.append(data[position:end])
                        position = end + 2
                    else:
                        self._left = length + 2
                elif not self._trailers and data.startswith(_LAST_CHUNK, position):
                    self.connection.finish(self, data[position + len(_LAST_CHUNK) :])
                    break
                else:
                    position = self._next_chunk(data, position)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _next_chunk(self, data: bytes, start: int) -> int:
        """Read a chunk-size line or a trailer at `start`; return where the next part begins."""
        end = data.find(b"\r\n", start)
        if end < 0:
            if len(data) - start > MAX_CHUNK_LINE:
                raise ProtocolError("a chunk-size line is too long")
            self._pending = data[start:]
            return len(data)
        line = data[start:end]
        if self._trailers:
            if not line:
                self.connection.finish(self, data[end + 2 :])
                return len(data)
            self._trailers -= 1
            if not self._trailers or _HEADER_LINE.fullmatch(line) is None:
                raise ProtocolError("a malformed trailer, or too many")
            return end + 2
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise ProtocolError("a malformed chunk size")
        length = int(match[1], 16)
        if length:
            self._left = length + 2
        else:
            self._trailers = MAX_TRAILERS
        return end + 2


def _one_chunk(size: int) -> tuple[tuple[bytes, ...], int]:
    """How `size` bytes begin that are one chunk as nearly every peer writes it, in either case of
    the letters, and how many bytes of data it has. Nothing where no such chunk has that size.
    """
    for digits in range(1, len(f"{size:x}") + 1):
        length = size - digits - 4
        line = b"%x\r\n" % max(length, 0)
        if length >= _LONGEST_EMPTY and len(line) == digits + 2:
            return (line, line.upper()), length
    return (), 0


_ONE_CHUNK = Lookup(_one_chunk)


def size_of_chunks(data: bytes) -> int:
    """How many bytes of a body `data` has, where that is whole chunks and each of them ends with an
    empty line; 0 for anything else.

    What the look-up saves: to read the size-line of a chunk that came alone.
    """
    begins, length = _ONE_CHUNK[len(data)]
    if data.startswith(begins) and data.endswith(_ENDS_EMPTY):
        return length
    position, size = 0, len(data)
    total = chunks = 0
    while position < size:
        chunk = _CHUNK.match(data, position)
        if chunk is None or chunks == MAX_PIECES:
            return 0
        begin, length = chunk.end(), int(chunk[1], 16)
        position = begin + length + 2
        if not data.endswith(_ENDS_EMPTY, begin, position):
            return 0
        total += length
        chunks += 1
    return total if position == size else 0
