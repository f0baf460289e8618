"""A large keys.toml, read once for all processes of a run.

Reading some ten thousand keys takes seconds, and every worker needs them. So one process, beside
the event loops, reads the file and leaves the result in the run directory; the others take it from
there: in pieces, between which a worker's other requests go on.

Invariant: what is taken is what reading the file itself would give: it belongs to one state of the
file, and a file that was written within the last moments is not prepared yet, because a second
write in the same tick of the clock leaves the same stamp.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wrapper.config.files import TICK_NS, replace_file, stamp
from wrapper.config.settings import Stamp, frozen
from wrapper.steps import Pause, no_pause

LARGE = 65536  # bytes of a keys file: some hundred keys, some ten milliseconds
NAME = "keys.prepared"
_UNREADABLE = (OSError, ValueError, EOFError, pickle.UnpicklingError)


class Prepared:
    """The results of reading, in `directory`, which only this user can read.

    Each is a row of pieces; whoever takes it makes a `pause` after every piece.
    """

    def __init__(self, directory: Path, pause: Pause = no_pause) -> None:
        self._directory = directory
        self._pause = pause

    def get(self, found: Stamp) -> list[Any] | None:
        """What reading the file in that state gave; None where nobody has read it."""
        # Written by this program, in a directory of mode 0700.
        with contextlib.suppress(*_UNREADABLE), (self._directory / NAME).open("rb") as file:
            if pickle.load(file) == found:  # noqa: S301
                pieces = []
                for _ in range(pickle.load(file)):  # noqa: S301
                    pieces.append(pickle.load(file))  # noqa: S301
                    self._pause()
                return pieces
        return None

    def is_needed(self, path: Path) -> bool:
        """Whether the file is so large that it should be prepared, and has not been yet."""
        found = stamp(path)
        if found is None or found[1] <= LARGE:
            return False
        with contextlib.suppress(*_UNREADABLE), (self._directory / NAME).open("rb") as file:
            return bool(pickle.load(file) != found)  # noqa: S301
        return True

    def prepare(self, path: Path, read: Callable[[], Sequence[object]]) -> None:
        """Keep what `read` gives for the file, unless another process has done so meanwhile.

        Blocks for as long as reading takes. Raises OSError.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            if not self.is_needed(path):
                return
            while _is_fresh(found := stamp(path)):
                os.sched_yield()  # not sleep: it is gevent's, and a child has closed its event loop
            pieces = read()
            if stamp(path) == found:
                written = b"".join(map(_dumped, (found, len(pieces), *pieces)))
                replace_file(self._directory / NAME, written)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_fresh(found: Stamp) -> bool:
    return found is not None and 0 <= time.time_ns() - found[0] < TICK_NS


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Read-only mappings as what makes them."""
        return (frozen, (dict(value),)) if isinstance(value, MappingProxyType) else NotImplemented


def _dumped(value: object) -> bytes:
    written = io.BytesIO()
    _Pickler(written, pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue()
