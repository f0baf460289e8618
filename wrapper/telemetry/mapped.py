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
_NUMBER: Final = 8  # bytes: a value, and after it a timestamp

log = logging.getLogger("wrapper")
_Base: Any = mmap_dict.MmapedDict  # untyped


class MappedValues(_Base):  # type: ignore[misc]  # untyped
    """Values by key in a mapped file.

    The last slot of a file is never part of what readers see. Once a file cannot grow (`full`),
    keys without room share that slot: they can be written, and their values are not exposed.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        self.full = False
        self._numbers: memoryview[float] | None = None
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

    def slot(self, key: str) -> tuple[Any, int]:
        """Where the value of `key` is: the file's numbers, and the place of this one among them.

        A file that grows is mapped once more, and the earlier map still shows its beginning.
        """
        self.read_value(key)  # makes it where there is none
        if self._numbers is None or len(self._numbers) < self._capacity // _NUMBER:
            self._numbers = memoryview(self._m).cast("d")
        return self._numbers, self._positions[key] // _NUMBER

    def close(self) -> None:
        self._numbers = None
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


class MappedValue:
    """One value, in the file of this process.

    In place of prometheus_client's, which takes a lock, asks for the process id, and looks its key
    up each time: here a value is added to where it is. (All metrics are counted by one thread.)
    """

    _multiprocess = True

    def __init__(
        self,
        kind: str,
        metric_name: str,
        name: str,
        labelnames: list[str],
        labelvalues: list[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self._file = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind
        self._key: str = mmap_dict.mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self._locate()
        _process.values.append(self)

    def _locate(self) -> None:
        if _process.is_child:
            _process.begin()
        self._numbers, self._at = _process.file(self._file).slot(self._key)

    def inc(self, amount: float) -> None:
        """Add to it."""
        if _process.is_child:
            _process.begin()
        self._numbers[self._at] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Put another in its place."""
        if _process.is_child:
            _process.begin()
        self._numbers[self._at], self._numbers[self._at + 1] = value, timestamp or 0.0

    def get(self) -> float:
        """The present value."""
        if _process.is_child:
            _process.begin()
        value: float = self._numbers[self._at]
        return value

    def set_exemplar(self, exemplar: object) -> None:
        """There are none."""

    def get_exemplar(self) -> None:
        """There are none."""


class _Process:
    """The values of this process and their files. A forked one begins its own, at its first use."""

    def __init__(self) -> None:
        self.values: list[MappedValue] = []
        self._files: dict[str, MappedValues] = {}
        self.is_child = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.is_child = True

    def begin(self) -> None:
        """Leave the parent's files to it."""
        self.is_child = False
        self._files.clear()
        for value in self.values:
            value._locate()

    def file(self, name: str) -> MappedValues:
        """The file of this name for this process."""
        if name not in self._files:
            directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
            self._files[name] = MappedValues(str(directory / f"{name}_{os.getpid()}.db"))
        return self._files[name]


_process = _Process()
values.MmapedDict = MappedValues  # type: ignore[attr-defined]  # what files are read with
if values.ValueClass is not values.MutexValue:  # several processes
    values.ValueClass = MappedValue
