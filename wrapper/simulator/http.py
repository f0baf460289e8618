"""Reading requests from a socket, leniently and byte for byte.

What was received is kept as it came: the raw target, spelling and order of the headers. Bodies are
hashed while they arrive; only those that a response needs as a whole stay in memory, so an upload
of any size costs one block. Multipart bodies (RFC 7578, RFC 2046 5.1.1) are read block by block.
"""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

import gevent

BLOCK = 65536
SAMPLE = 65536
_HEX = re.compile(rb"[0-9A-Fa-f]{1,15}")
_DISPOSITION = re.compile(r'(filename|name)="((?:[^"\\]|\\.)*)"')
_LONGEST_HEAD = 1 << 20
_PART_KEPT = 1 << 20
_YIELD_EVERY = 16  # blocks, so that an upload delays no stream


class BadRequest(Exception):
    """What was received is not HTTP that this reader understands."""


class ClientGone(Exception):
    """The client closed or reset the connection during a request."""


@dataclass(slots=True)
class Request:
    """One request as received; `body` is empty unless it is to be kept."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    sha256: str = ""
    length: int = 0
    sample: bytes = b""
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first value of a header (`name` in lower case), or an empty string."""
        for found, value in self.headers:
            if found.lower() == name:
                return value
        return ""


class Connection:
    """A socket and what was received from it but not yet used."""

    def __init__(self, sock: socket.socket, number: int = 0) -> None:
        self.sock = sock
        self.number = number
        self.served = 0
        self.idle: float | None = None  # longest wait for the next request, in seconds
        self._buffer = b""

    def head(self) -> Request | None:
        """The next request without its body; None when the client closed instead."""
        while True:
            end, width = self._buffer.find(b"\r\n\r\n"), 4
            if end < 0:
                end, width = self._buffer.find(b"\n\n"), 2
            if end >= 0:
                head, self._buffer = self._buffer[:end], self._buffer[end + width :]
                return _request(head)
            if len(self._buffer) > _LONGEST_HEAD:
                raise BadRequest("the head is too long")
            try:
                self.sock.settimeout(self.idle)
                data = self.sock.recv(BLOCK)
                self.sock.settimeout(None)
            except (ConnectionError, TimeoutError):
                return None
            if not data:
                return None
            self._buffer = (self._buffer + data).lstrip(b"\r\n")

    def body(self, request: Request) -> Iterator[bytes]:
        """The body in blocks as they arrive. Raises `ClientGone` when it ends too early."""
        if "chunked" in request.header("transfer-encoding").lower():
            yield from self._chunked()
            return
        declared = request.header("content-length") or "0"
        if not (declared.isascii() and declared.isdigit()):
            raise BadRequest("Content-Length is not a number")
        yield from self._exactly(int(declared))

    def rest(self) -> bytes:
        """What was received behind the last request."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _exactly(self, left: int) -> Iterator[bytes]:
        count = 0
        while left:
            data = self._buffer or self._receive()
            self._buffer = data[left:]
            data = data[:left]
            left -= len(data)
            yield data
            count += 1
            if not count % _YIELD_EVERY:
                gevent.sleep(0)

    def _chunked(self) -> Iterator[bytes]:
        while True:
            digits = self._line().split(b";")[0].strip()
            if not _HEX.fullmatch(digits):
                raise BadRequest("a chunk's size is not a number")
            size = int(digits, 16)
            if not size:
                break
            yield from self._exactly(size)
            self._line()
        while self._line():
            pass

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_HEAD:
                raise BadRequest("a line is too long")
            self._buffer += self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r")

    def _receive(self) -> bytes:
        try:
            data = self.sock.recv(BLOCK)
        except ConnectionError as problem:
            raise ClientGone from problem
        if not data:
            raise ClientGone
        return data


def _request(head: bytes) -> Request:
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/"):
        raise BadRequest("the request line is not one")
    headers = []
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.append((name, value.strip(" \t")))
    request = Request(parts[0], parts[1], parts[2], headers)
    path, _, query = request.target.partition("?")
    request.path = path
    if query:
        request.query = dict(parse_qsl(query, keep_blank_values=True))
    return request


def segments(path: str) -> list[str]:
    """A raw path's segments, percent-decoded one by one."""
    return [unquote(part) for part in path.strip("/").split("/")]


class BodyReader:
    """Consumes a body block by block: hash, length, the first 64 KiB, and all of it if `keep`."""

    def __init__(self, keep: bool) -> None:
        self._hash = hashlib.sha256()
        self.length = 0
        self._sample = bytearray()
        self._kept = bytearray()
        self._keep = keep

    def take(self, block: bytes) -> None:
        self._hash.update(block)
        self.length += len(block)
        if len(self._sample) < SAMPLE:
            self._sample += block[: SAMPLE - len(self._sample)]
        if self._keep:
            self._kept += block

    def finish(self, request: Request) -> None:
        """Write what was taken into the request."""
        request.sha256 = self._hash.hexdigest()
        request.length = self.length
        request.sample = bytes(self._sample)
        request.body = bytes(self._kept)


@dataclass(slots=True)
class Part:
    """One part of a multipart body; only the first MiB of its bytes is kept."""

    name: str
    filename: str | None
    content_type: str
    data: bytearray = field(default_factory=bytearray)
    size: int = 0


class MultipartReader:
    """Collects the parts of a multipart body while it streams in."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._held = b"\r\n"
        self._part: Part | None = None
        self._in_head = False
        self.parts: list[Part] = []

    def take(self, block: bytes) -> None:
        self._held += block
        while self._step():
            pass

    def _step(self) -> bool:
        if self._in_head:
            head, found, rest = self._held.partition(b"\r\n\r\n")
            if found:
                self._held, self._in_head = rest, False
                self._part = _part(head.decode("utf-8", "replace"))
                self.parts.append(self._part)
            return bool(found)
        content, found, rest = self._held.partition(self._delimiter)
        if found:
            self._add(content)
            self._held, self._in_head, self._part = rest, True, None
            return True
        safe = len(self._held) - len(self._delimiter)
        if safe > 0:
            self._add(self._held[:safe])
            self._held = self._held[safe:]
        return False

    def _add(self, data: bytes) -> None:
        if self._part is not None:
            self._part.size += len(data)
            if len(self._part.data) < _PART_KEPT:
                self._part.data += data[: _PART_KEPT - len(self._part.data)]


def _part(head: str) -> Part:
    names: dict[str, str] = {}
    kind = "application/octet-stream"
    for line in head.split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            names = dict(_DISPOSITION.findall(value))
        elif field.strip().lower() == "content-type":
            kind = value.strip()
    return Part(names.get("name", ""), names.get("filename"), kind)


def multipart_reader(content_type: str) -> MultipartReader | None:
    """A reader for a request's content type; None where it is not multipart."""
    kind, _, rest = content_type.partition(";")
    if not kind.strip().lower().startswith("multipart/"):
        return None
    found = re.search(r'boundary=(?:"([^"]+)"|([^;\s]+))', rest)
    return MultipartReader(found.group(1) or found.group(2)) if found else None
