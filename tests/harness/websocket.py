"""WebSockets by hand: frames as bytes, a client, and a provider that sends what a test writes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import raw
from .poll import PATIENCE

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
DEADLINE = PATIENCE  # seconds for each wait
_MASK = b"\x37\xfa\x21\x3d"  # always the same, as the names of tests must be
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class Frame:
    """One frame as it came."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int:
        """The code of a Close frame."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) > 1 else 1005

    @property
    def reason(self) -> str:
        """The reason in a Close frame."""
        return self.payload[2:].decode()

    @property
    def event(self) -> Any:
        """The JSON of a text frame."""
        return json.loads(self.payload)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool) -> bytes:
    """The bytes of a frame; `opcode` 0 continues a message."""
    size, mark = len(payload), 0x80 if masked else 0
    head = bytes([opcode | (0x80 if fin else 0)])
    if size < 126:
        head += bytes([mark | size])
    elif size < 1 << 16:
        head += bytes([mark | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mark | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    return head + _MASK + _masked(payload, _MASK)


def _masked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def text(event: Any, *, masked: bool) -> bytes:
    """A text frame with JSON."""
    return frame(TEXT, json.dumps(event).encode(), masked=masked)


def close(code: int, reason: str = "", *, masked: bool) -> bytes:
    """A Close frame."""
    return frame(CLOSE, struct.pack("!H", code) + reason.encode(), masked=masked)


def accept_of(key: str) -> str:
    """What a server answers to a handshake's key."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


class End:
    """One end of a WebSocket: a socket, and what was read from it but not used."""

    def __init__(self, sock: socket.socket, rest: bytes = b"") -> None:
        self.socket = sock
        self._buffer = rest
        sock.settimeout(DEADLINE)

    def __enter__(self) -> End:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes; fewer where the peer has ended before."""
        while len(self._buffer) < size:
            data = self._receive()
            if not data:
                break
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def to_end(self) -> bytes:
        """All that comes until the peer has ended."""
        while data := self._receive():
            self._buffer += data
        data, self._buffer = self._buffer, b""
        return data

    def frame(self) -> Frame:
        """The next frame. EOFError where the peer has ended."""
        first = self.exactly(2)
        if len(first) < 2:
            raise EOFError
        size = first[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self.exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(self.exactly(8), "big")
        mask = self.exactly(4) if first[1] & 0x80 else b""
        payload = self.exactly(size)
        if len(payload) < size:
            raise EOFError
        if mask:
            payload = _masked(payload, mask)
        return Frame(first[0] & 0x0F, payload, bool(first[0] & 0x80))

    def event(self, kind: str) -> Any:
        """The next event of that type; others are passed over. EOFError at the end."""
        while True:
            found = self.frame()
            if found.opcode == CLOSE:
                raise EOFError(f"closed with {found.code} {found.reason}")
            if found.opcode == TEXT and found.event["type"] == kind:
                return found.event

    def closed(self) -> Frame:
        """The Close frame that comes; what comes before it is passed over."""
        while (found := self.frame()).opcode != CLOSE:
            pass
        return found

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            return b""


class Client(End):
    """A client's end; `answer` is the response to its handshake."""

    def __init__(self, sock: socket.socket, rest: bytes, answer: raw.Answer) -> None:
        super().__init__(sock, rest)
        self.answer = answer


HANDSHAKE = (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


def handshake(
    port: int,
    target: str,
    *headers: tuple[str, str],
    key: str | None = None,
    ws_key: str | None = None,
) -> bytes:
    """The bytes of a handshake; `key` is the gateway key in `Authorization`."""
    ws_key = base64.b64encode(os.urandom(16)).decode() if ws_key is None else ws_key
    named = (*HANDSHAKE, ("Sec-WebSocket-Key", ws_key), *headers)
    return raw.request(port, "GET", target, key=key, headers=named)


def connect(
    port: int, target: str, *headers: tuple[str, str], key: str | None = None, early: bytes = b""
) -> Client:
    """A handshake, whatever the answer; `early` is sent with it."""
    connection = raw.Connection(port, deadline=DEADLINE)
    connection.send(handshake(port, target, *headers, key=key) + early)
    answer = connection.read_head()
    if answer.status != 101:
        for _ in connection.body(answer):
            pass
    rest, connection._buffer = connection._buffer, b""
    return Client(connection.socket, rest, answer)


class Provider:
    """A provider that is played by the test: it takes handshakes one by one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Provider:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    @contextlib.contextmanager
    def session(self, *headers: str, early: bytes = b"") -> Iterator[tuple[End, str]]:
        """The next connection: its end once it has the 101, and the head of the handshake."""
        sock, _ = self._listener.accept()
        with End(sock) as end:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += end.exactly(1)
            text = head.decode("latin-1")
            named = dict(line.split(": ", 1) for line in text.split("\r\n")[1:] if ": " in line)
            key = {name.lower(): value for name, value in named.items()}["sec-websocket-key"]
            lines = [
                "HTTP/1.1 101 Switching Protocols",
                "Upgrade: websocket",
                "Connection: Upgrade",
                f"Sec-WebSocket-Accept: {accept_of(key)}",
                *headers,
            ]
            end.send("\r\n".join([*lines, "", ""]).encode() + early)
            yield end, text
