"""Standard output, written to without ever waiting for long.

Who reads the lines may be slow, or have gone: a pipe that nobody empties would stop the whole
worker at its next line. The rule protected here: a line that cannot be taken costs the line, never
the callers. A reader that is just slow is waited for, for a moment and once.
"""

from __future__ import annotations

import os
import select
import stat

PATIENCE = 1.0  # seconds for a slow reader; the others run meanwhile


class Output:
    """Takes whole lines; `fd` is the descriptor as it was given to the process."""

    def __init__(self, fd: int = 1) -> None:
        self._given = fd
        self._fd = -1
        self._patient = True

    def write(self, line: bytes) -> None:
        """Raises OSError (BlockingIOError: nobody reads) where the line was not taken."""
        if self._fd < 0:
            self._fd = _not_waiting(self._given)
        try:
            self._write_all(line)
        except OSError:
            self._patient = False  # the next ones are not held up as well
            raise
        self._patient = True

    def _write_all(self, line: bytes) -> None:
        while True:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:
                if not self._patient or not select.select((), (self._fd,), (), PATIENCE)[1]:
                    raise
            if not line:
                return


def _not_waiting(fd: int) -> int:
    """A descriptor for the same place that does not wait.

    Setting the given one to non-blocking would do so for every process that has it: the master,
    the shell. Linux opens a pipe or a terminal anew by this name (proc(5)); a file never waits,
    and what cannot be opened anew (a socket, another system) is used as it is.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind) or os.isatty(fd):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return fd
    return fd
