"""Which models have a name in the metrics and in the usage table; the others are `other`.

A key's holder can ask for any number of models where a provider takes any name. The rule
protected here: all workers together, over restarts too, name at most `MAX_MODELS` of them, and a
model that has a name in one worker has it in every other.

The names stand in a nameless file that the workers inherit, locked for as long as one is looked
up and added (fcntl(2): such a lock is the process's own, so it ends with a killed worker).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_MODELS = 200


class ModelLabels:
    """The models that are labels. Made before the workers are forked."""

    def __init__(self, limit: int = MAX_MODELS) -> None:
        self._limit = limit
        self._fd = _nameless_file()
        weakref.finalize(self, os.close, self._fd)
        self._names: set[str] = set()  # what this process has read of the file
        self._read = 0  # bytes

    def __contains__(self, name: str) -> bool:
        """Whether this process knows it already: a look at the file is for new names only."""
        return name in self._names

    @property
    def full(self) -> bool:
        """Whether there is no place left."""
        return len(self._names) >= self._limit

    def add(self, name: str) -> bool:
        """Whether `name` is a label, now or as from now."""
        if name not in self._names and not self.full:
            with self._locked():
                if name not in self._names and not self.full:
                    self._write([name])
        return name in self._names

    def take_up(self, names: Iterable[str]) -> None:
        """Names that are labels already, from an earlier run: they have their places."""
        with self._locked():
            self._write([name for name in dict.fromkeys(names) if name not in self._names])

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            self._catch_up()
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Read what other workers have added, up to the last whole line."""
        size = os.fstat(self._fd).st_size
        added = os.pread(self._fd, size - self._read, self._read)
        added = added[: added.rfind(b"\n") + 1]
        self._names.update(json.loads(line) for line in added.splitlines())
        self._read += len(added)

    def _write(self, names: list[str]) -> None:
        """Add a line for each; what a full disk does not take has no name."""
        lines = b"".join(json.dumps(name).encode() + b"\n" for name in names)
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, lines, self._read)
        self._catch_up()


def _nameless_file() -> int:
    fd, path = tempfile.mkstemp()
    Path(path).unlink()
    return fd
