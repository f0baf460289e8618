"""Lines to stdout or stderr that never stop the program.

Invariant: what nobody reads costs lines and nothing else. A pipe that is full would block the
writer, and with it everything that a worker or the master does; here the line is lost and counted.
"""

from __future__ import annotations

import io
import json
import os
import select
import stat
import time
from collections.abc import Callable

TIMEOUT = 1.0  # seconds for a slow reader of the request log; other requests are served meanwhile
SHORT = 0.02  # seconds for a slow reader of stderr; nothing else is done meanwhile


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
    """Writes whole lines to `fd` without blocking; a slow reader is waited for once.

    `lost` counts the lines that were not written.
    """

    def __init__(
        self,
        fd: int = 1,
        timeout: float = TIMEOUT,
        wait: Callable[[int, float], bool] = wait_for_reader,
    ) -> None:
        self._inherited = fd
        self._fd = -1
        self._timeout = timeout
        self._wait = wait
        self._may_wait = True
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Raises OSError (BlockingIOError: it is not read) where the line was not written."""
        may_wait = self._may_wait
        self._may_wait = False  # after a failure lines are dropped at once
        try:
            if self._fd < 0:
                self._fd = _non_blocking(self._inherited)
            while line:
                try:
                    line = line[os.write(self._fd, line) :]
                except BlockingIOError:
                    if not may_wait or not self._wait(self._fd, self._timeout):
                        raise
        except OSError:
            self.lost += 1
            raise
        self._may_wait = True


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


def _non_blocking(fd: int) -> int:
    """A non-blocking descriptor for the same file.

    Why: O_NONBLOCK on `fd` itself would apply to every process that shares it, such as the master
    and the shell. Linux reopens a pipe or a terminal under this name (proc(5)). A regular file
    never blocks, and what cannot be reopened (a socket, another system) is used as it is.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind) or os.isatty(fd):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return fd
    return fd
