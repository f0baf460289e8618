"""Work that would hold up the event loop, done in a forked child."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable


class ChildFailed(Exception):
    """The child ended without a result."""


def in_child(work: Callable[[], bytes]) -> bytes:
    """Run `work` in a forked child and return its result, waiting as for any other peer.

    The child closes every inherited connection first, so that it keeps none of them open, and
    then only computes and writes. Raises ChildFailed.
    """
    reading, writing = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.nice(5)
            fd = os.dup2(writing.fileno(), 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            os.set_blocking(fd, True)
            data = memoryview(work())
            while data:
                data = data[os.write(fd, data) :]
            status = 0
        finally:
            os._exit(status)
    writing.close()
    with reading:
        pieces = list(iter(lambda: reading.recv(65536), b""))
    _, code = os.waitpid(pid, 0)
    if code:
        raise ChildFailed(f"the child ended with status {code}")
    return b"".join(pieces)
