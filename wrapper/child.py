"""Work that would hold up the event loop, done in a forked child."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Final


class ChildFailed(Exception):
    """The child ended without a result."""


SECONDS: Final = 120.0
# What a terminal or a service manager sends to every process of the gateway.
_SIGNALS: Final = frozenset(
    (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
)


def in_child(work: Callable[[], bytes], niceness: int = 0) -> bytes:
    """Run `work` in a forked child and return its result, waiting as for any other peer.

    The child closes every inherited connection first, so that it keeps none of them open, and
    then only computes and writes. A signal ends it: the worker's handlers would wait on the event
    loop that it has closed, for ever and with the locks that it holds.

    With `niceness` (nice(2)) others go first: not for what somebody waits for, since on a busy
    machine it hardly gets on. Raises ChildFailed, also where nothing comes for `SECONDS`.
    """
    reading, writing = socket.socketpair()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        reading.close()
        writing.close()
        raise
    if pid == 0:
        status = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.nice(niceness)
            fd = os.dup2(writing.fileno(), 3)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            os.set_blocking(fd, True)
            data = memoryview(work())
            while data:
                data = data[os.write(fd, data) :]
            status = 0
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    writing.close()
    reading.settimeout(SECONDS)
    try:
        with reading:
            pieces = list(iter(lambda: reading.recv(65536), b""))
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise ChildFailed(f"nothing came from the child in {SECONDS:g} s") from None
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, code = os.waitpid(pid, 0)
    if code:
        raise ChildFailed(f"the child ended with status {code}")
    return b"".join(pieces)
