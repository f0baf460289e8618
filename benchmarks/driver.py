"""A cheap load generator: one thread, epoll, bytes counted and not parsed.

`run` is a closed loop: each connection sends its next request when it has its response. `open_loop`
sends each request at its time, whatever became of those before it, on a connection that is free or
new; its latencies count from that time, so that a relay that stalls is charged for all who waited.

To measure the delay of events both can keep every piece with its time of arrival; `delays` parses
them afterwards.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_END = b"0\r\n\r\n"
_EVENT_END = b"\n\n"
_STAMP = re.compile(rb'"sim_t":([0-9]+\.[0-9]+)')
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_SPIN = 0.001  # seconds; epoll counts milliseconds, so the last one before a request is not slept

Pieces = list[tuple[float, bytes]]


class BenchmarkFailed(Exception):
    """A response that is not a complete 200: the results would be meaningless."""


@dataclass
class Load:
    """The result of `run`: responses, events, and with `record` the pieces of each response."""

    responses: int = 0
    events: int = 0
    seconds: float = 0.0
    recordings: list[Pieces] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request of `open_loop`: when it is due, in seconds from the start, and after how many
    events the client leaves (None: it stays).
    """

    at: float
    request: bytes
    leave_after: int | None = None


@dataclass(slots=True)
class Response:
    """What became of a planned request; times are `time.time()`, 0 for what never came."""

    planned: Planned
    due: float
    status: int = 0
    first: float = 0.0  # the first event, or the first byte of a body that has none
    end: float = 0.0
    events: int = 0
    left: bool = False  # the client left, as planned
    pieces: Pieces = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the whole response has come."""
        return self.end > 0 and not self.left


class _Client:
    """One connection: sends a request, reads its response, and so on."""

    def __init__(self, port: int, *, record: bool, timeout: float = 60.0) -> None:
        self._record = record
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._reset()

    def _reset(self) -> None:
        self.head = b""
        self._left: int | None = None
        self._tail = b""
        self.status = self.events = 0
        self.first = 0.0
        self.pieces: Pieces = []

    def send(self, request: bytes) -> None:
        """Send a request, which is small enough for one write."""
        self._reset()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read what has arrived; returns whether the response is complete.

        Raises ConnectionError where the connection ends within it.
        """
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError(f"the connection closed within a response: {self.head[:300]!r}")
        if self._record:
            self.pieces.append((time.time(), data))
        if self._tail or self._left is not None:
            return self._body(data)
        self.head += data
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if not found:
            return False
        self.status = int(head[9:12])
        length = _LENGTH.search(head)
        self._left = int(length[1]) if length else None
        self._tail = b"\r\n"
        return self._body(rest)

    def _body(self, data: bytes) -> bool:
        if self._left is not None:
            self.first = self.first or time.time()
            self._left -= len(data)
            return self._left <= 0
        joined = self._tail + data
        self.events += joined.count(_EVENT_END) - self._tail.count(_EVENT_END)
        if self.events and not self.first:
            self.first = time.time()
        self._tail = joined[-7:]
        return self._tail.endswith(b"\r\n" + _END) or joined == b"\r\n" + _END


def run(
    port: int,
    request: bytes,
    *,
    connections: int,
    responses: int | None = None,
    seconds: float = 0.0,
    record: bool = False,
) -> Load:
    """Send `request` over `connections` at once, until there are `responses`, or for `seconds`.

    Raises BenchmarkFailed, ConnectionError.
    """
    load = Load()
    clients: dict[int, _Client] = {}
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        for _ in range(min(connections, responses or connections)):
            client = _Client(port, record=record)
            stack.callback(client.socket.close)
            clients[client.socket.fileno()] = client
            epoll.register(client.socket.fileno(), select.EPOLLIN)
        started = time.perf_counter()
        sent = len(clients)
        for client in clients.values():
            client.send(request)
        while load.responses < sent:
            ready = epoll.poll(120)
            if not ready:
                raise BenchmarkFailed("no response for two minutes")
            for fd, _ in ready:
                client = clients[fd]
                if not client.receive():
                    continue
                if client.status != 200:
                    raise BenchmarkFailed(client.head[:600].decode("latin-1"))
                load.responses += 1
                load.events += client.events
                if record:
                    load.recordings.append(client.pieces)
                more = sent < responses if responses else time.perf_counter() - started < seconds
                if more:
                    sent += 1
                    client.send(request)
        load.seconds = time.perf_counter() - started
    return load


class _OpenLoop:
    def __init__(
        self, port: int, plan: Sequence[Planned], *, record: bool, patience: float
    ) -> None:
        self._port = port
        self._record = record
        self._epoll = select.epoll()
        self._free: list[_Client] = []
        self._clients: dict[int, _Client] = {}
        self._busy: dict[int, Response] = {}
        self._begin = time.time() + 0.02
        self.responses = [Response(each, self._begin + each.at) for each in plan]
        self._last = self._begin + (plan[-1].at if plan else 0.0) + patience

    def run(self, at: float, look: Callable[[int], None]) -> None:
        waiting = list(reversed(self.responses))
        looked = False
        while (waiting or self._busy) and (now := time.time()) < self._last:
            if not looked and now >= self._begin + at:
                looked = True
                look(sum(response.status == 200 for response in self._busy.values()))
            while waiting and waiting[-1].due <= now:
                self._send(waiting.pop())
            pause = min(waiting[-1].due - now - _SPIN if waiting else 0.1, 0.1)
            for fd, _ in self._epoll.poll(max(pause, 0.0)):
                self._receive(fd)

    def _send(self, response: Response) -> None:
        try:
            client = self._free.pop() if self._free else self._connect()
        except OSError:
            return
        self._busy[client.socket.fileno()] = response
        try:
            client.send(response.planned.request)
        except OSError:
            self._drop(client.socket.fileno())

    def _connect(self) -> _Client:
        client = _Client(self._port, record=self._record, timeout=20)
        self._clients[client.socket.fileno()] = client
        self._epoll.register(client.socket.fileno(), select.EPOLLIN)
        return client

    def _receive(self, fd: int) -> None:
        client, response = self._clients[fd], self._busy.get(fd)
        try:
            complete = client.receive()
        except OSError:
            complete = False
            self._drop(fd)
        if response is None:  # the server closes a free connection
            return
        response.status, response.first = client.status, client.first
        response.events, response.pieces = client.events, client.pieces
        leave = response.planned.leave_after
        if complete:
            response.end = time.time()
            del self._busy[fd]
            self._free.append(client)
        elif leave is not None and client.events >= leave and fd in self._clients:
            response.end, response.left = time.time(), True
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._busy.pop(fd, None)
        if client in self._free:
            self._free.remove(client)
        client.socket.close()

    def close(self) -> None:
        for fd in list(self._clients):
            self._drop(fd)
        self._epoll.close()


def open_loop(
    port: int,
    plan: Sequence[Planned],
    *,
    record: bool = False,
    patience: float = 60.0,
    at: float = 0.0,
    look: Callable[[int], None] = lambda _: None,
) -> list[Response]:
    """Send each planned request at its time; what has not ended `patience` seconds after the last
    is given up.

    `look` is called once, `at` so many seconds from the start, with the number of responses that
    have begun and not ended.
    """
    loop = _OpenLoop(port, plan, record=record, patience=patience)
    with contextlib.closing(loop):
        loop.run(at, look)
    return loop.responses


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
