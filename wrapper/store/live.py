"""The live file beside the database (`usage.db-live`): what was acknowledged and is not in it yet.

Every process that writes maps the file. Its pages are the kernel's, so a killed process loses
nothing that it has written there; a power failure may cost the last moments, as the database's own
`synchronous = NORMAL` does. Its room is allocated when it is made: writing to a mapped page that a
full disk has no room for would end the process (SIGBUS).

It has a ring of records. A position is the number of bytes ever written, a record begins at
`position % RING_BYTES`. Those from the tail to the head are not in the database yet. The database
itself says up to which position it has them (table `live`, which names the file by its id): a
drain books records and moves that position in one transaction, so each is booked once, whoever
drains and whoever is killed meanwhile. Only one drains at a time, for SQLite has one writer.

Lock. Whoever changes the file holds `flock` on a file description of its own. The kernel lets go of
it when its holder dies. It is held for microseconds, and no greenlet runs meanwhile; where it is
taken, the wait for it is cooperative.

Invariant: a record is published by one aligned 8-byte store, of the head, after all of it is
there; whoever is killed or interrupted half way has written nothing.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import secrets
import sqlite3
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Final

from wrapper.store.base import StoreError

SUFFIX: Final = "-live"
RING_BYTES: Final = 1 << 22  # some 10,000 records
# How long the lock is tried, in seconds of sleep: its holder is stopped, or there is no CPU for it.
LOCK_SECONDS: Final = 1.0
_SPINS: Final = 50  # tries that only let others run, before there is a sleep

_HEADER: Final = 4096  # bytes
_SIZE: Final = _HEADER + RING_BYTES
_MAGIC: Final = b"wrapper1"
_ID: Final = slice(8, 40)  # hexadecimal
_BOOT: Final = slice(40, 104)  # the machine's start; padded with zeros
# 8 bytes each, in the order of the system.
_HEAD: Final = 16
_TAIL: Final = 17
_DRAINED: Final = 18  # when the database was written to, by the monotonic clock
_TRY: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_WAITING: Final = 19  # records between tail and head, for messages: a kill may leave it wrong
_FRAME: Final = struct.Struct("=II")  # bytes that follow, their checksum

TABLE: Final = "CREATE TABLE live (id TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT"

log = logging.getLogger("wrapper")


class LiveFile:
    """The file as one process has it open."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self._map = mmap.mmap(fd, status.st_size)
        self._words: memoryview[int] = memoryview(self._map)[:_HEADER].cast("Q")
        self._times: memoryview[float] = memoryview(self._map)[:_HEADER].cast("d")
        self.id = self._map[_ID].decode("ascii", "replace")

    @property
    def is_drained(self) -> bool:
        """Whether all of it is in the database."""
        return self._words[_HEAD] == self._words[_TAIL]

    @property
    def drained_at(self) -> float:
        """When any process has last written to the database, by the monotonic clock."""
        return self._times[_DRAINED]

    @property
    def waiting(self) -> int:
        """How many records are not in the database yet, more or less."""
        return self._words[_WAITING]

    def append(self, payload: bytes) -> bool:
        """Keep a record; False where there is no room for it."""
        size = _FRAME.size + len(payload)
        fd, words = self._fd, self._words
        try:
            # `_lock` and `_unlock` without their calls: this is done once a request.
            try:
                fcntl.flock(fd, _TRY)
            except BlockingIOError:
                self._wait_for_lock()
            head = words[_HEAD]
            if head + size - words[_TAIL] > RING_BYTES:
                return False
            data = _FRAME.pack(len(payload), zlib.crc32(payload, head & 0xFFFFFFFF)) + payload
            at = _HEADER + head % RING_BYTES
            if at + size <= _SIZE:
                self._map[at : at + size] = data
            else:  # it goes on at the ring's beginning
                self._map[at:_SIZE] = data[: _SIZE - at]
                self._map[_HEADER : at + size - RING_BYTES] = data[_SIZE - at :]
            words[_HEAD] = head + size  # from here on it is acknowledged
            words[_WAITING] += 1
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)
        return True

    def read(self, position: int, most: int) -> tuple[list[bytes], int]:
        """Up to `most` records from `position` on, and where they end.

        To be called by whoever holds the database's write lock: nobody else moves the tail, so what
        is read stays in place.
        """
        head = self._words[_HEAD]
        end = start = max(position, self._words[_TAIL])
        found: list[bytes] = []
        while end < head and len(found) < most:
            payload = self._record(end)
            if payload is None:
                log.error("%s: damaged, %d bytes of usage are lost", self.path, head - end)
                return found, head
            found.append(payload)
            end += _FRAME.size + len(payload)
        return found, max(end, start)

    def drained(self, position: int) -> None:
        """What is before `position` is in the database for good.

        Without the lock: a tail that another process sets back only costs room until it is moved.
        """
        if position > self._words[_TAIL]:
            self._words[_TAIL] = position
            self._words[_WAITING] = 0
        self._times[_DRAINED] = time.monotonic()

    def is_replaced(self) -> bool:
        """Whether another file is at its path by now, or none."""
        try:
            return self.path.stat().st_ino != self.inode
        except OSError:
            return True

    def close(self) -> None:
        """Give back what is open."""
        self._words.release()
        self._times.release()
        self._map.close()
        os.close(self._fd)

    def is_of(self, boot: str, position: int) -> bool:
        """Whether it was written since the machine's start, and as far as the database says."""
        return bytes(self._map[_BOOT]) == _padded(boot) and position <= self._words[_HEAD]

    def recover(self, boot: str, position: int) -> None:
        """After a start of the machine, or where the database is newer than the file: keep the
        records from `position` on that are whole. A power failure may have kept some pages of the
        file and not others.
        """
        try:
            self._lock()
            if self.is_of(boot, position):
                return
            start, tail = position, self._words[_TAIL]
            head = self._whole_from(start)
            if head < tail:  # what the database has lost is not here any more
                start, head = tail, self._whole_from(tail)
            self._words[_TAIL] = start
            self._words[_HEAD] = head
            self._times[_DRAINED] = 0.0
            self._map[_BOOT] = _padded(boot)
        finally:
            self._unlock()

    def _whole_from(self, position: int) -> int:
        """Where the whole records end that begin there."""
        first = position
        while position - first < RING_BYTES:
            payload = self._record(position)
            if payload is None:
                break
            position += _FRAME.size + len(payload)
        return position

    def _record(self, position: int) -> bytes | None:
        """The record that begins there; None where there is none that is whole."""
        length, checksum = _FRAME.unpack(self._get(position, _FRAME.size))
        if not 0 < length <= RING_BYTES - _FRAME.size:
            return None
        payload = self._get(position + _FRAME.size, length)
        return payload if zlib.crc32(payload, position & 0xFFFFFFFF) == checksum else None

    def _get(self, position: int, size: int) -> bytes:
        at = _HEADER + position % RING_BYTES
        found = self._map[at : at + size]
        if len(found) < size:  # it goes on at the ring's beginning
            found += self._map[_HEADER : _HEADER + size - len(found)]
        return found

    def _lock(self) -> None:
        """Always inside of a `try` whose `finally` unlocks: a signal may raise at any moment."""
        try:
            fcntl.flock(self._fd, _TRY)
        except BlockingIOError:
            self._wait_for_lock()

    def _wait_for_lock(self) -> None:
        tries, slept, pause = 0, 0.0, 0.0005
        while True:
            try:
                fcntl.flock(self._fd, _TRY)
                return
            except BlockingIOError as error:
                if slept >= LOCK_SECONDS:
                    problem = "is locked; a process that uses it is stopped"
                    raise StoreError(f"{self.path}: {problem}") from error
            tries += 1
            if tries <= _SPINS:
                os.sched_yield()
                continue
            time.sleep(pause)
            slept += pause
            pause = min(pause * 1.5, 0.005)

    def _unlock(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


def open_live(database: Path, connection: sqlite3.Connection, boot: str) -> LiveFile:
    """The live file of this database, made where there is none. Can be tried again when busy."""
    path = database.with_name(database.name + SUFFIX)
    live = _existing(path)
    known = None if live is None else _position(connection, live.id)
    if live is not None and known is not None and live.is_of(boot, known):
        return live
    if live is not None:
        live.close()
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        # Others may have come before: they have made it, or are done with its recovery.
        live = _existing(path)
        if live is not None:
            known = _position(connection, live.id)
            if known is not None:
                live.recover(boot, known)
                return live
            _set_aside(live)
        elif path.exists():
            _rename(path, secrets.token_hex(4))
        live = _made(path, database, boot)
        connection.execute("INSERT INTO live VALUES (?, 0)", (live.id,))
        connection.execute("DELETE FROM live WHERE rowid <= last_insert_rowid() - 8")
    return live


def _existing(path: Path) -> LiveFile | None:
    """The file, None where there is none or it is of another make."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(fd).st_size == _SIZE and os.pread(fd, len(_MAGIC), 0) == _MAGIC:
        return LiveFile(path, fd)
    os.close(fd)
    return None


def _position(connection: sqlite3.Connection, ident: str) -> int | None:
    """Up to where the database has the records of a file; None for another database's file."""
    row = connection.execute("SELECT position FROM live WHERE id = ?", (ident,)).fetchone()
    return None if row is None else int(row[0])


def _set_aside(live: LiveFile) -> None:
    """It belongs to a database that was at this place before: its records are not this one's."""
    if not live.is_drained:
        _rename(live.path, live.id[:8])
    live.close()


def _rename(path: Path, suffix: str) -> None:
    aside = path.with_name(f"{path.name}.{suffix}")
    log.warning("%s is of another database, moved to %s", path, aside.name)
    path.rename(aside)


def _made(path: Path, database: Path, boot: str) -> LiveFile:
    """A new file, which takes its place when it is complete. As readable as the database."""
    ident = secrets.token_hex(16)
    new = path.with_name(f"{path.name}.{ident[:8]}.new")
    like = database.stat()
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, like.st_mode & 0o777)
        if os.geteuid() == 0:
            os.fchown(fd, like.st_uid, like.st_gid)
        _allocate(fd)
        os.pwrite(fd, _MAGIC + ident.encode() + _padded(boot), 0)
        new.rename(path)
        return LiveFile(path, fd)
    except BaseException:
        os.close(fd)
        new.unlink(missing_ok=True)
        raise


def _allocate(fd: int) -> None:
    """Give the file its room, where the system can do that (not macOS)."""
    allocate: Any = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        allocate(fd, 0, _SIZE)
    else:
        os.ftruncate(fd, _SIZE)


def _padded(boot: str) -> bytes:
    size = _BOOT.stop - _BOOT.start
    return boot.encode()[:size].ljust(size, b"\0")
