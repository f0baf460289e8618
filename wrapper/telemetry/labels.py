"""Which names are metric labels, and which series there are; all others are counted as `other`.

Where a provider accepts any name, a key owner can use any number of models; and a thousand keys
with twenty models each make more series than a scrape has time for.

Invariant: all workers together have at most `MAX_MODELS` model labels (and so for what else is
bounded here), and a name that is a label in one worker is a label in every other.

Names of the configuration are reserved: each has a place from the beginning and is a label
whatever was used before. (A reload that reserves names while all places are taken exceeds the
limit by these names, until the next start.)

The names are in a file that the workers inherit, locked while a name is looked up and added
(fcntl(2): the lock belongs to the process, so it ends with a killed worker). The file has the
order in which they became labels, and is kept beside the usage table for the next start:

* As long as the reserved names do not change, every label is the same after a restart. So no
  counter restored from the usage table, `other` included, goes down.
* Where more names are reserved than before and no place is left, the labels added last become
  part of `other`. Where a name is reserved that was counted in `other`, `other` starts lower.
* Without the file (the first start with it, a copied usage table) the reserved names and then
  those with the most requests are labels.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import weakref
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from wrapper.telemetry.instruments import OTHER

MAX_MODELS = 200
MAX_SERIES = 1000  # of one key, provider and model
MAX_TAGS = 2000  # of all keys, since the start
MAX_TAGS_OF_KEY = 200
MAX_KEYS = 1000  # of one key and provider, over all models without a series of their own

log = logging.getLogger("wrapper")


class Labels:
    """The names that are labels. Created before the workers are forked."""

    def __init__(self, limit: int = MAX_MODELS) -> None:
        self._limit = limit
        self._reserved: frozenset[str] = frozenset()
        fd, path = tempfile.mkstemp()
        Path(path).unlink()
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        self.names: set[str] = set()  # as far as this process has read the file
        self._read = 0  # bytes
        self._taken = 0  # places, by names that are reserved or labels

    def __contains__(self, name: str) -> bool:
        """Whether this process knows `name` as a label; does not read the file."""
        return name in self.names

    def reserve(self, names: Iterable[str]) -> None:
        """Reserve places for these names, in place of those reserved before."""
        self._reserved = frozenset(names)
        self._taken = len(self.names | self._reserved)

    def add(self, name: str) -> bool:
        """Make `name` a label where there is a place; whether it is one."""
        if name not in self.names and self._has_place(name):
            with self._locked():
                if name not in self.names and self._has_place(name):
                    self._write([name])
        return name in self.names or name in self._reserved

    def restore(self, requests: Mapping[str, int], file: Path | None = None) -> None:
        """Choose the labels of a new run among the names of the usage table, once, before any
        other is added.

        `requests` has the number of requests by name, `file` is where the names are kept.
        """
        kept = b""
        if file is not None:
            with contextlib.suppress(OSError):  # there is none yet
                kept = file.read_bytes()
            self._use(file)
        order = {name: at for at, name in enumerate(_names_in(kept))}
        ranked = sorted(requests, key=lambda name: (order.get(name, len(order)), -requests[name]))
        places = max(0, self._limit - len(self._reserved))
        others = [name for name in ranked if name not in self._reserved][:places]
        labels = self._reserved.union(others)
        self._write([name for name in ranked if name in labels])

    def _has_place(self, name: str) -> bool:
        return name in self._reserved or self._taken < self._limit

    def _use(self, file: Path) -> None:
        """Replace `file` by a new one for this run; a gateway that still runs keeps the old one."""
        new = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.dup2(fd, self._fd, inheritable=False)
            os.close(fd)
            new.replace(file)
        except OSError as error:
            log.warning("cannot keep the names of labels in %s: %s", file, error.strerror)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            self._catch_up()
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def _catch_up(self) -> None:
        """Read what other workers have added, up to the last complete line."""
        size = os.fstat(self._fd).st_size
        added = os.pread(self._fd, max(0, size - self._read), self._read)
        added = added[: added.rfind(b"\n") + 1]
        if added:
            self.names.update(_names_in(added))
            self._taken = len(self.names | self._reserved)
        self._read += len(added)

    def _write(self, names: list[str]) -> None:
        """Add a line for each name. On a full disk only reserved names become labels."""
        lines = b"".join(json.dumps(name).encode() + b"\n" for name in names)
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, lines, self._read)
        self._catch_up()


def _names_in(lines: bytes) -> Iterator[str]:
    """The names, one JSON string per line; damaged lines are left out."""
    for line in lines.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            name = json.loads(line)
            if isinstance(name, str):
                yield name


class UsageSeries(dict[tuple[str, str, str], tuple[str, str, str]]):
    """The labels of the series that counts for a key, provider and model: `series[labels]`.

    First come, first served, in the order of requests at a start; a key in force comes before one
    that is not. The others are added: a key's further models to the model `other`, and where there
    are too many keys, theirs to the key `other`.
    """

    def __init__(self, detailed: int = MAX_SERIES, keys: int = MAX_KEYS) -> None:
        super().__init__()
        self._limit = detailed
        self._detailed = Labels(detailed)
        self._keys = Labels(keys)

    def __missing__(self, labels: tuple[str, str, str]) -> tuple[str, str, str]:
        key, provider, _ = labels
        if self._detailed.add("\n".join(labels)):
            found = labels
        elif self._keys.add(f"{key}\n{provider}"):
            found = key, provider, OTHER
        else:
            found = OTHER, provider, OTHER
        if len(self) < 4 * self._limit:
            self[labels] = found
        return found

    def restore(
        self,
        requests: Mapping[tuple[str, str, str], int],
        in_force: Container[str],
        file: Path | None = None,
    ) -> None:
        """Choose the series of a new run, once, before any is used.

        `requests` has the requests of each key, provider and model, `in_force` the keys' names;
        the names are kept beside `file`.
        """
        chosen = requests
        if len(requests) > self._limit:
            chosen = {labels: n for labels, n in requests.items() if labels[0] in in_force}
        detailed = {"\n".join(labels): number for labels, number in chosen.items()}
        self._detailed.restore(detailed, file and file.with_name(f"{file.name}-series"))
        by_key: Counter[str] = Counter()
        for name, number in detailed.items():
            if name not in self._detailed:
                by_key[name.rpartition("\n")[0]] += number
        self._keys.restore(by_key, file and file.with_name(f"{file.name}-keys"))


class KeyTags:
    """Which tags of a key the usage table has rows of their own for; the others are `other`.

    First come, first served since the start: over all workers `MAX_TAGS`, and about
    `MAX_TAGS_OF_KEY` of one key, so that a key that makes up tags leaves room for the others.
    """

    def __init__(self, tags: int = MAX_TAGS, of_key: int = MAX_TAGS_OF_KEY) -> None:
        self._names = Labels(tags)
        self._of_key = of_key
        self._known: Counter[str] = Counter()  # by key, in this process

    def of(self, key: str, tag: str) -> str:
        """The tag, or `other`."""
        name = f"{key}\n{tag}"
        if name in self._names:
            return tag
        if self._known[key] >= self._of_key or not self._names.add(name):
            return OTHER
        self._known[key] += 1
        return tag
