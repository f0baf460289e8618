"""prometheus_client's files of values, with their room allocated before it is written to.

Why: the library makes its files larger without allocating anything, and writing to a mapped page
that the file system has no room for ends the process (SIGBUS), be it a worker or the master.

Invariant: where there is no room, new series are not exposed and everything else goes on. The
series that have room stay exact.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final

from prometheus_client import mmap_dict, values

FIRST_SIZE: Final = 1 << 16  # bytes, as prometheus_client has it
SLOT: Final = 16  # bytes of a value
_HEADER: Final = 8

log = logging.getLogger("wrapper")
_Base: Any = mmap_dict.MmapedDict  # untyped


class MappedValues(_Base):  # type: ignore[misc]  # untyped
    """Values by key in a mapped file.

    The last slot of a file is never part of what readers see. Once a file cannot grow (`full`),
    keys without room share that slot: they can be written, and their values are not exposed.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self.full = False
        try:
            if not read_mode:
                _allocate_first(filename)
            super().__init__(filename, read_mode)
        except OSError as error:
            _report(filename, error)
            self.full = True
            self._f: Any = None
            self._capacity = FIRST_SIZE
            self._m = mmap.mmap(-1, FIRST_SIZE)
            self._used = _HEADER
            self._positions: dict[str, int] = {}

    def _init_value(self, key: str) -> None:
        size = 4 + len(key.encode()) + _HEADER + SLOT  # with the most padding
        while not self.full and self._used + size > self._capacity - SLOT:
            self._grow()
        if self._used + size > self._capacity - SLOT:
            self._positions[key] = self._capacity - SLOT
        else:
            super()._init_value(key)

    def _grow(self) -> None:
        try:
            _allocate(self._f.fileno(), 2 * self._capacity)
            grown = mmap.mmap(self._f.fileno(), 2 * self._capacity)
        except OSError as error:
            _report(self._fname, error)
            self.full = True
            return
        self._capacity *= 2
        self._m = grown

    def close(self) -> None:
        if self._f is None:
            self._m.close()
        super().close()


def _allocate_first(filename: str) -> None:
    """Lay out a new file, so that it is never seen without its first bytes."""
    fd = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(fd).st_size == 0:
            _allocate(fd, FIRST_SIZE)
            os.pwrite(fd, struct.pack("i", _HEADER), 0)
    except OSError:
        Path(filename).unlink()
        raise
    finally:
        os.close(fd)


def _allocate(fd: int, size: int) -> None:
    """Make the file that long, its room allocated where the system can do that (not macOS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


def _report(filename: str, error: OSError) -> None:
    log.error("no room for metrics, new series are not exposed: %s: %s", filename, error.strerror)


values.MmapedDict = MappedValues  # type: ignore[attr-defined]  # what it keeps its values with
