"""A load generator that costs little: one thread, epoll, bytes counted and not parsed.

It sends the same request over and over on kept connections, so many at a time, and counts
answers and events. For the delay of events it keeps every piece with its time of arrival;
they are taken apart when the run is over (`delays`).
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
    """An answer that was not a whole 200: the numbers would mean nothing."""


@dataclass
class Load:
    """What a run of the driver saw: answers, events, and with `record` each answer's pieces."""

    answers: int = 0
    events: int = 0
    seconds: float = 0.0
    recordings: list[Pieces] = field(default_factory=list)


class _Caller:
    """One connection: sends the request, reads the answer, begins again while asked to."""

    def __init__(self, port: int, request: bytes, *, record: bool) -> None:
        self._request = request
        self._record = record
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.pieces: Pieces = []

    def ask(self) -> None:
        """Send the request; it is small, so the socket takes it whole."""
        self._head = b""
        self._left: int | None = None
        self._tail = b""
        self.events = 0
        self.pieces = []
        self.socket.sendall(self._request)

    def take(self) -> bool:
        """Read what is there; whether the answer is complete."""
        data = self.socket.recv(262144)
        if not data:
            raise BenchmarkFailed(f"the connection ended in an answer: {self._head[:300]!r}")
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


def run(port: int, request: bytes, *, answers: int, connections: int, record: bool = False) -> Load:
    """Have `request` answered `answers` times, over `connections` at once."""
    load = Load()
    callers: dict[int, _Caller] = {}
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        for _ in range(min(connections, answers)):
            caller = _Caller(port, request, record=record)
            stack.callback(caller.socket.close)
            callers[caller.socket.fileno()] = caller
            epoll.register(caller.socket.fileno(), select.EPOLLIN)
        started = time.perf_counter()
        asked = len(callers)
        for caller in callers.values():
            caller.ask()
        while load.answers < answers:
            ready = epoll.poll(120)
            if not ready:
                raise BenchmarkFailed("nothing arrived for two minutes")
            for fd, _ in ready:
                caller = callers[fd]
                if not caller.take():
                    continue
                load.answers += 1
                load.events += caller.events
                if record:
                    load.recordings.append(caller.pieces)
                if asked < answers:
                    asked += 1
                    caller.ask()
        load.seconds = time.perf_counter() - started
    return load


def delays(recording: Pieces) -> list[float]:
    """Seconds between the provider's sending of each stamped event and its arrival here.

    An event has arrived when its last byte has. Both clocks are this machine's.
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
    """The body's own bytes, each part with the time at which its chunk's bytes had come."""
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
