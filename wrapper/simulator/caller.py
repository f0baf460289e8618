"""The side that asked: waiting on its behalf, and noticing at once when it leaves.

A closed connection shows only when something is written. Whoever waits here therefore watches
the socket: readable and empty means gone; readable with bytes means that the next request is
already there, and then there is nothing more to learn from watching.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from array import array
from typing import Any

import gevent

from wrapper.simulator.http import Left
from wrapper.simulator.ticker import Place, Ticker

_FOREVER = 86_400.0
_LOOK_EVERY = 0.02
_ESTABLISHED = b"\1"  # TCP_ESTABLISHED of tcp_states.h


class Caller:
    """One request's way back. Every method raises `Left` once the other side has gone."""

    __slots__ = ("_place", "_sock", "_ticker", "_watcher", "gone", "sent")

    def __init__(self, sock: socket.socket, ticker: Ticker) -> None:
        self._sock = sock
        self._ticker = ticker
        self._watcher: Any = None
        self._place: Place | None = None
        self.gone = False
        self.sent = 0

    def send(self, data: bytes) -> None:
        """Send all of it; returns when the system has taken the last byte."""
        if self.gone:
            raise Left
        try:
            count = self._sock.send(data)
            if count < len(data):
                self._sock.sendall(data[count:])
        except OSError as problem:
            self.gone = True
            raise Left from problem
        self.sent += len(data)

    def wait(self, until: float) -> None:
        """Wait until `until` on the monotonic clock."""
        if self.gone:
            raise Left
        if self._watcher is None:
            self._watcher = gevent.get_hub().loop.io(self._sock.fileno(), 1)
            self._watcher.start(self._readable)
        self._place = self._ticker.place(until)
        if self._place is not None:
            gevent.get_hub().switch()
            self._place = None
        if self.gone:
            raise Left

    def pause(self, seconds: float) -> None:
        """Wait for some seconds."""
        if seconds > 0:
            self.wait(time.monotonic() + seconds)

    def stall(self) -> None:
        """Send nothing more until the other side leaves."""
        while True:
            self.pause(_FOREVER)

    def stall_reading(self, seconds: float) -> None:
        """Read nothing more for some seconds, or until the other side leaves if that shows.

        It shows with a reset alone: a polite close waits behind the bytes that are not read.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            if state != _ESTABLISHED:
                self.gone = True
                raise Left
            gevent.sleep(_LOOK_EVERY)

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
            if self._place is not None:
                self._place.wake()
