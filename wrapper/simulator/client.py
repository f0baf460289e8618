"""The client of one request: sending to it, waiting, and noticing at once when it disconnects.

A closed connection shows only when something is written. While waiting, the socket is watched
instead: readable and empty means that the client is gone; readable with bytes means that the next
request is already there, and then watching can tell nothing more.
"""

from __future__ import annotations

import fcntl
import math
import socket
import struct
import termios
import time
from array import array
from typing import Any

import gevent

from wrapper.simulator.http import ClientGone

_FOREVER = 86_400.0
_POLL_SECONDS = 0.02
_ESTABLISHED = b"\1"  # TCP_ESTABLISHED of tcp_states.h


class Waiter:
    """A waiting greenlet; it can be woken before its time."""

    __slots__ = ("greenlet",)

    def __init__(self, greenlet: Any) -> None:
        self.greenlet: Any = greenlet

    def wake(self) -> None:
        """Resume the greenlet now, unless it has been resumed already."""
        greenlet, self.greenlet = self.greenlet, None
        if greenlet is not None:
            greenlet.switch()


class TimerWheel:
    """Wakes greenlets at their times, no earlier and at most one `step` (seconds) later.

    Why: a timer per event would cost more than the event. Waiting greenlets are put into slots,
    and one repeating timer, which runs only while some are waiting, wakes whole slots.
    """

    def __init__(self, step: float = 0.001) -> None:
        self._step = step
        self._slots: dict[int, list[Waiter]] = {}
        self._reached = 0
        self._timer: Any = None

    def add(self, until: float) -> Waiter | None:
        """Add the current greenlet, which must then switch to the hub. None: no need to wait."""
        if until <= time.monotonic():
            return None
        waiter = Waiter(gevent.getcurrent())
        slot = math.ceil(until / self._step)
        if self._timer is None:
            self._reached = int(time.monotonic() / self._step)
            self._timer = gevent.get_hub().loop.timer(self._step, self._step)
            self._timer.start(self._tick)
        self._slots.setdefault(max(slot, self._reached + 1), []).append(waiter)
        return waiter

    def _tick(self) -> None:
        now = int(time.monotonic() / self._step)
        if now - self._reached > 10_000:
            due = sorted(slot for slot in self._slots if slot <= now)
        else:
            due = [slot for slot in range(self._reached + 1, now + 1) if slot in self._slots]
        self._reached = now
        for slot in due:
            for waiter in self._slots.pop(slot):
                waiter.wake()
        if not self._slots and self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None


class Client:
    """Where the response to one request goes. Every method raises `ClientGone` once it has
    disconnected.
    """

    __slots__ = ("_sock", "_timers", "_waiter", "_watcher", "gone", "sent")

    def __init__(self, sock: socket.socket, timers: TimerWheel) -> None:
        self._sock = sock
        self._timers = timers
        self._watcher: Any = None
        self._waiter: Waiter | None = None
        self.gone = False
        self.sent = 0

    def send(self, data: bytes) -> None:
        """Send all of it; returns when the system has taken the last byte."""
        if self.gone:
            raise ClientGone
        try:
            count = self._sock.send(data)
            if count < len(data):
                self._sock.sendall(data[count:])
        except OSError as problem:
            self.gone = True
            raise ClientGone from problem
        self.sent += len(data)

    def wait(self, until: float) -> None:
        """Wait until `until` on the monotonic clock."""
        if self.gone:
            raise ClientGone
        if self._watcher is None:
            self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), 1)
            self._watcher.start(self._readable)
        self._waiter = self._timers.add(until)
        if self._waiter is not None:
            gevent.get_hub().switch()
            self._waiter = None
        if self.gone:
            raise ClientGone

    def pause(self, seconds: float) -> None:
        """Wait for some seconds."""
        if seconds > 0:
            self.wait(time.monotonic() + seconds)

    def stall(self) -> None:
        """Send nothing more until the client disconnects."""
        while True:
            self.pause(_FOREVER)

    def stall_reading(self, seconds: float) -> None:
        """Read nothing more for some seconds, or until the client resets the connection.

        A normal close cannot be seen: it is queued behind the bytes that are not read.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            if state != _ESTABLISHED:
                self.gone = True
                raise ClientGone
            gevent.sleep(_POLL_SECONDS)

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def done(self) -> None:
        """Stop watching. Must be called before the connection is read again."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def _readable(self) -> None:
        waiting = array("i", [0])
        try:
            fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, waiting)
        except OSError:
            waiting[0] = 0
        if self._watcher is not None:
            self._watcher.stop()
        if not waiting[0]:
            self.gone = True
            if self._waiter is not None:
                self._waiter.wake()
