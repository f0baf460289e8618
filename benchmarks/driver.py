"""A cheap load generator: one thread, epoll, bytes counted and not parsed.

It repeats one request on persistent connections and counts responses and events. To measure the
delay of events it keeps every piece with its time of arrival; `delays` parses them afterwards.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import select
import socket
import time
from dataclasses import dataclass, field

_END = b"0\r\n\r\n"
_EVENT_END = b"\n\n"
_STAMP = re.compile(rb'"sim_t":([0-9]+\.[0-9]+)')
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)

Pieces = list[tuple[float, bytes]]


class BenchmarkFailed(Exception):
    """A response that is not a complete 200: the results would be meaningless."""


@dataclass
class Load:
    """The result of a run: responses, events, and with `record` the pieces of each response."""

    responses: int = 0
    events: int = 0
    seconds: float = 0.0
    recordings: list[Pieces] = field(default_factory=list)


class _Client:
    """One connection: sends the request, reads the response, repeats."""

    def __init__(self, port: int, request: bytes, *, record: bool) -> None:
        self._request = request
        self._record = record
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.pieces: Pieces = []

    def send(self) -> None:
        """Send the request, which is small enough for one write."""
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self.events = 0
        self.pieces = []
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Read what has arrived; returns whether the response is complete."""
        data = self.socket.recv(262144)
        if not data:
            raise BenchmarkFailed(f"the connection closed within a response: {self._head[:300]!r}")
        if self._record:
            self.pieces.append((time.time(), data))
        if self._tail or self._left is not None:
            return self._body(data)
        self._head += data
        head, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BenchmarkFailed(self._head[:600].decode("latin-1"))
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else None
        self._tail = b"\r\n"
        return self._body(rest)

    def _body(self, data: bytes) -> bool:
        if self._left is not None:
            self._left -= len(data)
            return self._left <= 0
        joined = self._tail + data
        self.events += joined.count(_EVENT_END) - self._tail.count(_EVENT_END)
        self._tail = joined[-7:]
        return self._tail.endswith(b"\r\n" + _END) or joined == b"\r\n" + _END


def run(
    port: int, request: bytes, *, responses: int, connections: int, record: bool = False
) -> Load:
    """Send `request` until there are `responses` of them, over `connections` at once."""
    load = Load()
    clients: dict[int, _Client] = {}
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        for _ in range(min(connections, responses)):
            client = _Client(port, request, record=record)
            stack.callback(client.socket.close)
            clients[client.socket.fileno()] = client
            epoll.register(client.socket.fileno(), select.EPOLLIN)
        started = time.perf_counter()
        sent = len(clients)
        for client in clients.values():
            client.send()
        while load.responses < responses:
            ready = epoll.poll(120)
            if not ready:
                raise BenchmarkFailed("no response for two minutes")
            for fd, _ in ready:
                client = clients[fd]
                if not client.receive():
                    continue
                load.responses += 1
                load.events += client.events
                if record:
                    load.recordings.append(client.pieces)
                if sent < responses:
                    sent += 1
                    client.send()
        load.seconds = time.perf_counter() - started
    return load


def delays(recording: Pieces) -> list[float]:
    """Seconds from the provider's sending of each stamped event to the arrival of its last byte.

    Both clocks are this machine's.
    """
    payload, ends, times = bytearray(), [], []
    for at, data in dechunked(recording):
        payload += data
        ends.append(len(payload))
        times.append(at)
    found: list[float] = []
    position = 0
    while (end := payload.find(_EVENT_END, position)) >= 0:
        stamp = _STAMP.search(payload, position, end)
        if stamp:
            arrived = times[bisect.bisect_left(ends, end + len(_EVENT_END))]
            found.append(arrived - float(stamp[1]))
        position = end + len(_EVENT_END)
    return found


def dechunked(recording: Pieces) -> Pieces:
    """The body without chunked framing, each part with its time of arrival."""
    buffer = b""
    in_head, left = True, 0
    out: Pieces = []
    for at, data in recording:
        buffer += data
        if in_head:
            _, found, rest = buffer.partition(b"\r\n\r\n")
            if not found:
                continue
            in_head, buffer = False, rest
        while buffer:
            if left > 2:
                out.append((at, buffer[: left - 2]))
            if left:
                taken = min(left, len(buffer))
                buffer, left = buffer[taken:], left - taken
                continue
            line, found, rest = buffer.partition(b"\r\n")
            if not found:
                break
            buffer, left = rest, int(line, 16) + 2
    return out
