"""Lines to stdout or stderr that never stop the program.

Invariant: what nobody reads, or too slowly, costs lines and nothing else. A pipe that is full would
block the writer, and with it everything that a worker or the master does. `QueuedOutput`, for
many lines, keeps what a reader is behind with, and loses and counts what is beyond; `Output`, for
few lines and where nothing else can run, waits for a moment and then loses and counts the line.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import io
import json
import math
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

ROOM = 256 << 10  # bytes that a slow reader may be behind: some hundred lines
FLUSH = 1.0  # seconds for a slow reader at the end
SHORT = 0.02  # seconds for a slow reader of stderr; nothing else is done meanwhile
PAUSE = 1.0  # seconds from one such wait to the next


def is_terminal(fd: int) -> bool:
    """Whether a person reads what is written to `fd`."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def wait_for_reader(fd: int, seconds: float) -> bool:
    """Whether `fd` can be written to within that time."""
    return bool(select.select((), (fd,), (), seconds)[1])


class Output:
    """Writes whole lines to `fd` without blocking; a slow reader is waited for once a second.

    `lost` counts the lines that were not written.
    """

    def __init__(
        self,
        fd: int,
        timeout: float = SHORT,
        wait: Callable[[int, float], bool] = wait_for_reader,
    ) -> None:
        self._inherited = fd
        self._fd = -1
        self._put: Callable[[int, bytes], int] = os.write
        self._timeout = timeout
        self._wait = wait
        self._wait_at = -math.inf
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Raises OSError (BlockingIOError: it is not read) where the line was not written."""
        try:
            if self._fd < 0:
                self._fd, self._put = _non_blocking(self._inherited)
            while line:
                try:
                    line = line[self._put(self._fd, line) :]
                except BlockingIOError:
                    now = time.monotonic()
                    if now < self._wait_at:
                        raise
                    self._wait_at = now + PAUSE
                    if not self._wait(self._fd, self._timeout):
                        raise
        except OSError:
            self.lost += 1
            raise


class QueuedOutput:
    """Writes whole lines to `fd` without ever waiting; what a slow reader is behind with is written
    by a thread as room comes.

    `lost` counts the lines that were not written.
    """

    def __init__(self, fd: int = 1, room: int = ROOM) -> None:
        self._inherited = fd
        self._fd = -1
        self._put: Callable[[int, bytes], int] = os.write
        self._room = room
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes
        self._lock = threading.Lock()
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Raises OSError (BlockingIOError: there is no room) where the line will not be written."""
        try:
            if self._fd < 0:
                self._fd, self._put = _non_blocking(self._inherited)
            if not self._queue:
                try:
                    line = line[self._put(self._fd, line) :]
                except BlockingIOError:
                    pass
                else:
                    if not line:
                        return
            if self._queued and self._queued + len(line) > self._room:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except OSError:
            self.lost += 1
            raise
        with self._lock:
            self._queue.append(line)
            self._queued += len(line)
            if len(self._queue) == 1:
                threading.Thread(target=self._write_queued, name="log", daemon=True).start()

    def flush(self, seconds: float = FLUSH) -> None:
        """Wait for the reader, for that long; the lines that are left are lost."""
        end = time.monotonic() + seconds
        while self._queue and time.monotonic() < end:
            time.sleep(0.01)
        self._drop()

    def _write_queued(self) -> None:
        """Whole lines: several processes write to one pipe, which takes them one at a time."""
        try:
            while True:
                select.select((), (self._fd,), ())
                with contextlib.suppress(BlockingIOError):
                    while True:
                        written = self._put(self._fd, self._queue[0])
                        with self._lock:
                            self._queued -= written
                            rest = self._queue.popleft()[written:]
                            if rest:
                                self._queue.appendleft(rest)
                            if not self._queue:
                                return
        except OSError:  # there is no reader any more
            self._drop()
        except IndexError:  # dropped at the end
            return

    def _drop(self) -> None:
        with self._lock:
            self.lost += len(self._queue)
            self._queue.clear()
            self._queued = 0


class Stderr(io.TextIOBase):
    """Takes the place of `sys.stderr`: for the log, and for whatever prints there."""

    def __init__(self, wait: Callable[[int, float], bool] = wait_for_reader, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._output = Output(fd, SHORT, wait)
        self._rest = ""
        self._untold = 0

    @property
    def lost(self) -> int:
        """The lines that were not written."""
        return self._output.lost

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._write(lines)
        return len(text)

    def _write(self, lines: list[str]) -> None:
        if self._untold:
            lines = [_told(self._untold), *lines]
        try:
            self._output.write("\n".join([*lines, ""]).encode(errors="backslashreplace"))
        except OSError:
            self._untold += 1
        else:
            self._untold = 0


def _told(lost: int) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    message = f"lines of this log were lost, because nobody read them: {lost}"
    return json.dumps({"time": at, "level": "warning", "message": message})


def _non_blocking(fd: int) -> tuple[int, Callable[[int, bytes], int]]:
    """A descriptor for the same file, and what writes to it without blocking.

    Why: O_NONBLOCK on `fd` itself would apply to every process that shares it, such as the master
    and the shell. Linux reopens a pipe or a terminal under this name (proc(5)). A regular file
    never blocks, a socket (systemd's journal) is told so with each line, and what else cannot be
    reopened (another system) is used as it is.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISSOCK(kind):
        return fd, _send
    if stat.S_ISFIFO(kind) or os.isatty(fd):
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    return fd, os.write


def _send(fd: int, data: bytes) -> int:
    """As `os.write`. (gevent's sockets would set O_NONBLOCK.)"""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
    try:
        return sock.send(data, _socket.MSG_DONTWAIT)
    finally:
        sock.detach()
