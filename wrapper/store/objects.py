"""Where stored objects live: a small table from an object's id to the provider that created it.

The table is buckets of a few fixed-size records, chosen by the id's hash: in a file beside the
ledger that the workers of one host share, or in Redis as one string. A new object takes the place
of the oldest in its bucket, of a stored response before a file or a batch, so the table never grows
beyond 8 MiB (about 262,000 objects).

Invariant: it is a hint and never a condition. Whatever fails here (no table, a full disk, Redis
that is away, a record that was overwritten), a request goes where it would go without the table.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from wrapper.store.base import StoreError

BUCKETS: Final = 65536
WAYS: Final = 4  # records of a bucket
_RECORD: Final = struct.Struct("=16s8sd")  # hash of the id, hash of the provider, when
_BUCKET_BYTES: Final = WAYS * _RECORD.size
_EMPTY: Final = bytes(16)
# Responses are created by the thousand; this is how much older they count.
_SHORT_LIVED: Final = {"response": 30 * 86400.0}

log = logging.getLogger("wrapper")


@runtime_checkable
class Table(Protocol):
    """Bytes by their place; those that were never written are zeros or missing at the end.

    Both methods may raise OSError or StoreError.
    """

    def read(self, offset: int, size: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def close(self) -> None:
        """Give back what is open; the next use opens it again."""


class TableFile:
    """The table in a file, which the first write creates."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._open(os.O_RDWR), size, offset)
        except FileNotFoundError:
            return b""

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._open(os.O_RDWR | os.O_CREAT), data, offset)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _open(self, flags: int) -> int:
        if self._file is None:
            self._file = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        return self._file


class ObjectPlaces:
    """What is remembered in `table`; nothing where that is None."""

    def __init__(self, table: Table | None) -> None:
        self._table = table
        self._failing = False

    def remember(self, object_id: str, kind: str, provider: str) -> None:
        """An object of this kind was created at `provider`."""
        if self._table is None:
            return
        key, age = _hash(object_id, 16), _SHORT_LIVED.get(kind, 0.0)
        offset = _offset(key)
        try:
            records = _records(self._table.read(offset, _BUCKET_BYTES))
            way = min(range(WAYS), key=lambda way: (records[way][0] != key, records[way][2]))
            record = _RECORD.pack(key, _hash(provider, 8), time.time() - age)
            self._table.write(offset + way * _RECORD.size, record)
        except (OSError, StoreError) as error:
            self._failed(error)

    def find(self, object_id: str, providers: Iterable[str]) -> str | None:
        """The one of `providers` that has created the object; None where that is not known."""
        if self._table is None:
            return None
        key = _hash(object_id, 16)
        try:
            records = _records(self._table.read(_offset(key), _BUCKET_BYTES))
        except (OSError, StoreError) as error:
            self._failed(error)
            return None
        places = {record[1] for record in records if record[0] == key}
        return next((name for name in providers if _hash(name, 8) in places), None)

    def close(self) -> None:
        """Give back what is open; the next use opens it again."""
        if self._table is not None:
            self._table.close()

    def _failed(self, error: Exception) -> None:
        if not self._failing:
            log.warning("cannot remember where objects are stored: %s", error)
        self._failing = True


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def _offset(key: bytes) -> int:
    return int.from_bytes(key[:4], "big") % BUCKETS * _BUCKET_BYTES


def _records(bucket: bytes) -> list[tuple[bytes, bytes, float]]:
    """The records of a bucket; beyond the end of the file they are empty."""
    return [
        (key, provider, when if key != _EMPTY else 0.0)
        for key, provider, when in _RECORD.iter_unpack(bucket.ljust(_BUCKET_BYTES, b"\0"))
    ]
