"""Tests in several processes, some of which need the machine to themselves.

A test marked `alone` measures what other tests would disturb. It waits until no other test runs,
and none starts until it is over. Two locks (flock(2)) on files of the checkout do that: every test
holds `_RUNNING`, shared or alone; `_NEXT` is passed through before, so that tests which keep
starting do not hold up one that waits.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

_NEXT = Path(__file__)
_RUNNING = Path(__file__).with_name("__init__.py")


@contextlib.contextmanager
def running(*, alone: bool) -> Iterator[None]:
    """Wait until a test may run, and let no other one disturb it where it is to be `alone`."""
    with _RUNNING.open() as file:
        with _NEXT.open() as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
