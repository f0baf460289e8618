"""Where stored objects live: a small table from an object's id to the provider that created it.

A file beside the ledger, shared by the workers of one host: buckets of a few fixed-size records,
chosen by the id's hash. A new object takes the place of the oldest in its bucket, of a stored
response before a file or a batch, so the file never grows beyond 8 MiB (about 262,000 objects).

Invariant: it is a hint and never a condition. Whatever fails here (no file, a full disk, a record
that was overwritten), a request goes where it would go without the table.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

BUCKETS: Final = 65536
WAYS: Final = 4  # records of a bucket
_RECORD: Final = struct.Struct("=16s8sd")  # hash of the id, hash of the provider, when
_BUCKET_BYTES: Final = WAYS * _RECORD.size
_EMPTY: Final = bytes(16)
# Responses are created by the thousand; this is how much older they count.
_SHORT_LIVED: Final = {"response": 30 * 86400.0}

log = logging.getLogger("wrapper")


class ObjectPlaces:
    """The table in the file `path`; None where there is none, as beside a store in Redis."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: int | None = None
        self._failing = False

    def remember(self, object_id: str, kind: str, provider: str) -> None:
        """An object of this kind was created at `provider`."""
        key, age = _hash(object_id, 16), _SHORT_LIVED.get(kind, 0.0)
        offset = _offset(key)
        try:
            file = self._open(os.O_RDWR | os.O_CREAT)
            if file is None:
                return
            records = _records(os.pread(file, _BUCKET_BYTES, offset))
            way = min(range(WAYS), key=lambda way: (records[way][0] != key, records[way][2]))
            record = _RECORD.pack(key, _hash(provider, 8), time.time() - age)
            os.pwrite(file, record, offset + way * _RECORD.size)
        except OSError as error:
            self._failed(error)

    def find(self, object_id: str, providers: Iterable[str]) -> str | None:
        """The one of `providers` that has created the object; None where that is not known."""
        key = _hash(object_id, 16)
        try:
            file = self._open(os.O_RDWR)
            if file is None:
                return None
            records = _records(os.pread(file, _BUCKET_BYTES, _offset(key)))
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed(error)
            return None
        places = {record[1] for record in records if record[0] == key}
        return next((name for name in providers if _hash(name, 8) in places), None)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def _open(self, flags: int) -> int | None:
        if self._file is None and self._path is not None:
            self._file = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        return self._file

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            log.warning("cannot use %s: %s", self._path, error.strerror)
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
