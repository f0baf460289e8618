"""HTTP by hand over a socket, for what a client library would not send or would hide.

The requests are the bytes a test writes. The answer keeps every piece with the time it
arrived, the chunks as they were framed, and whether it ended as HTTP says it should.
"""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

from .poll import PATIENCE


@dataclass
class Answer:
    """One HTTP response as it came over the wire.

    `pieces` are (seconds since the request's last byte, bytes of the body as received);
    `chunks` the chunked framing's own pieces; `clean_end` is False where the connection
    ended before the framing did (no final chunk, or fewer bytes than Content-Length).
    """

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    clean_end: bool = True

    def header(self, name: str) -> str | None:
        """The header's value, several joined by a comma; None where there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


class Connection:
    """A plain TCP connection with a deadline on everything; use as a context manager."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", deadline: float = PATIENCE) -> None:
        self.deadline = deadline
        self.socket = socket.create_connection((host, port), timeout=deadline)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._sent_at = time.monotonic()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, data: bytes) -> Connection:
        """Write all of `data`."""
        self.socket.sendall(data)
        self._sent_at = time.monotonic()
        return self

    def close(self) -> None:
        """Close the connection, politely (FIN)."""
        self.socket.close()

    def reset(self) -> None:
        """Close the connection rudely (RST)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def is_closed_by_peer(self) -> bool:
        """Whether the other side ends the connection within the deadline (bytes are dropped)."""
        try:
            while self._receive():
                pass
        except TimeoutError:
            return False
        return True

    def read_head(self) -> Answer:
        """Read up to the empty line. Raises ConnectionError where the peer ended before it."""
        while b"\r\n\r\n" not in self._buffer:
            data = self._receive()
            if not data:
                raise ConnectionError(f"ended in the response's head: {self._buffer[:200]!r}")
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3}) ?(.*)", status_line)
        if match is None:
            raise ValueError(f"not a status line: {status_line!r}")
        headers = [(name, value.strip()) for name, _, value in (li.partition(":") for li in lines)]
        return Answer(int(match[1]), match[2], headers)

    def read(self, *, head_only: bool = False) -> Answer:
        """Read one whole response (`head_only` for the answer to a HEAD)."""
        answer = self.read_head()
        if head_only or answer.status in {204, 304} or answer.status < 200:
            return answer
        for _ in self.body(answer):
            pass
        return answer

    def body(self, answer: Answer) -> Iterator[bytes]:
        """Read the body of `answer`, piece by piece, and keep it there too."""
        if (answer.header("transfer-encoding") or "").lower() == "chunked":
            pieces = self._chunked(answer)
        else:
            length = answer.header("content-length")
            pieces = self._plain(answer, None if length is None else int(length))
        for piece in pieces:
            answer.body += piece
            answer.pieces.append((self._elapsed(), piece))
            yield piece

    def _plain(self, answer: Answer, length: int | None) -> Iterator[bytes]:
        left = length
        while left is None or left > 0:
            data = self._take() or self._receive_or_end()
            if not data:
                answer.clean_end = left is None
                return
            if left is not None:
                data, self._buffer = data[:left], data[left:]
                left -= len(data)
            yield data

    def _chunked(self, answer: Answer) -> Iterator[bytes]:
        while True:
            line = self._line()
            if line is None:
                answer.clean_end = False
                return
            size = int(line.split(b";")[0], 16)
            data = self._exactly(size + 2)
            if data is None:
                answer.clean_end = False
                return
            if size == 0:
                return
            answer.chunks.append((self._elapsed(), data[:-2]))
            yield data[:-2]

    def _line(self) -> bytes | None:
        while b"\r\n" not in self._buffer:
            data = self._receive_or_end()
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            data = self._receive_or_end()
            if not data:
                return None
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _take(self) -> bytes:
        data, self._buffer = self._buffer, b""
        return data

    def _receive_or_end(self) -> bytes:
        """The next bytes; none where the peer closed or reset the connection."""
        try:
            return self._receive()
        except ConnectionResetError:
            return b""

    def _receive(self) -> bytes:
        return self.socket.recv(65536)

    def _elapsed(self) -> float:
        return time.monotonic() - self._sent_at


def exchange(
    port: int, request: bytes, *, deadline: float = PATIENCE, head_only: bool = False
) -> Answer:
    """Send `request` on a new connection and read the whole answer."""
    with Connection(port, deadline=deadline) as connection:
        return connection.send(request).read(head_only=head_only)


def post(
    port: int,
    target: str,
    body: bytes,
    *,
    key: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
    deadline: float = PATIENCE,
) -> Answer:
    """POST `body` as JSON with `key` as the bearer, and read the whole answer."""
    return exchange(
        port, request(port, "POST", target, body, key=key, headers=headers), deadline=deadline
    )


def request(
    port: int,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    key: str | None = None,
    headers: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """The bytes of a well-formed request; `headers` are added to the usual ones."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Scripted:
    """A provider that reads one request on each connection, writes what `respond` gives for its
    bytes, and closes. `requests` are those that it has read.
    """

    def __init__(self, respond: Callable[[bytes], bytes]) -> None:
        self.requests: list[bytes] = []
        self._respond = respond
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                request = _read_request(sock)
                self.requests.append(request)
                sock.sendall(self._respond(request))


def _read_request(sock: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def scripted(respond: Callable[[bytes], bytes]) -> Iterator[Scripted]:
    """A running `Scripted` provider."""
    provider = Scripted(respond)
    serving = threading.Thread(target=provider.serve)
    serving.start()
    try:
        yield provider
    finally:
        provider._listener.shutdown(socket.SHUT_RDWR)
        provider._listener.close()
        serving.join()


def response(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """The bytes of a response that ends where the connection does."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@contextlib.contextmanager
def no_tls() -> Iterator[int]:
    """The port of a listener that says something of its own to everybody and hangs up."""

    class Greet(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"220 hello, this is not TLS\r\n")
            self.request.recv(65536)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greet) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            serving.join()


@contextlib.contextmanager
def full_listener() -> Iterator[int]:
    """The port of a listener whose queue is full: Linux leaves whoever connects without an answer.

    The connections that fill it are never accepted.
    """
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(2):
            filling = held.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        yield port
