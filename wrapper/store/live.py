"""The live file beside the database (`usage.db-live`): the records that are not in the database
yet, and the accounts, leases and workers of limits.

Every process maps the file. Its pages are the kernel's, so a killed process loses nothing that it
has written there; a power failure may cost the last moments, as the database's own
`synchronous = NORMAL` does. Its room is allocated when it is made: writing to a mapped page that a
full disk has no room for would end the process (SIGBUS).

Records. They are in a ring. A position is the number of bytes ever written, a record begins at
`position % ring`. Those from the tail to the head are not in the database yet. The database itself
says up to which position it has them (table `live`, which names the file by its id): a drain books
records and moves that position in one transaction, so each is booked once, whichever process
drains and whichever is killed meanwhile. Only one drains at a time, for SQLite has one writer.

Arrays. Accounts, leases and the members of groups are arrays of slots of one size, which only
become longer; `store.reservations` knows what is in them. An array without room is copied to the
file's end, where it has twice the room.

Lock. Whoever changes the file holds `flock` on a file description of its own. The kernel lets go of
it when its holder dies. It is held for microseconds, and no greenlet runs meanwhile; where it is
taken, a wait of more than a moment is cooperative, but not inside of a transaction.

Words. Everything but the records is words of 64 bits, each found by its index in the file, so that
a step reads and writes the words that it changes and nothing else of an account or a lease.

Invariant: a step's changes are made as a whole or not at all. One word is one store. More are
written down first (`commit`), then made; the process that takes the lock next makes what was
written down and not made, for its writer was killed or interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import secrets
import signal
import sqlite3
import struct
import time
import zlib
from array import array
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from wrapper.store.accounts import WORDS as ACCOUNT_WORDS
from wrapper.store.base import StoreError
from wrapper.store.window import Changes

SUFFIX: Final = "-live"
RING_BYTES = 1 << 22  # some 10,000 records
# How long the lock is tried, in seconds of sleep: its holder is stopped, or there is no CPU for it.
LOCK_SECONDS = 1.0
# The same inside of a transaction, for a while after it was in vain: the event loop stands still.
STUCK_LOCK_SECONDS = 0.02
_STUCK_FOR: Final = 5.0
_SPINS: Final = 10  # tries before there is a sleep
_STILL_SECONDS: Final = 0.001  # of sleep, before other greenlets run meanwhile
_TRY: Final = fcntl.LOCK_EX | fcntl.LOCK_NB

_MAGIC: Final = b"wrapper3"
_OLD_MAGICS: Final = (b"wrapper2",)  # their records are as today's, at the same place
_ID: Final = slice(8, 40)  # hexadecimal
_BOOT: Final = slice(40, 104)  # the machine's start; padded with zeros
_FROM: Final = slice(104, 120)  # the id of the file whose records it has taken; zeros where of none
_HEADER: Final = 4096  # bytes
_WORKERS_AT: Final = _HEADER
_WORKERS_BYTES: Final = 4096
_REDO_AT: Final = _WORKERS_AT + _WORKERS_BYTES
_REDO_BYTES: Final = 1 << 18
_RING_AT: Final = _REDO_AT + _REDO_BYTES

# Words of the header, in the order of the system.
HEAD: Final = 16  # where the next record goes
_TAIL: Final = 17
DRAINED: Final = 18  # when the database was written to, by the monotonic clock
_WAITING: Final = 19  # records between tail and head, for messages: a kill may leave it wrong
_REDO: Final = 20  # changes that are written down and may not be made
_SIZE: Final = 21  # of the file
_RING: Final = 22  # bytes of the ring
VERSION: Final = 23  # changes with each new account and member
CLEARED: Final = 24  # changes where the accounts begin anew
EPOCH: Final = 25  # sums of money that are known are of this one
FREE: Final = 26  # the first free lease, counted from 1
SERIAL: Final = 27  # of the newest lease
LISTS: Final = 28  # changes where the members of groups have another place
_SPARE: Final = 29  # where they were before; 0 where that has not their room
_ARRAYS: Final = 32  # three words for each array


WORD: Final = 8  # bytes
WORKERS_INDEX: Final = _WORKERS_AT // WORD
WORKERS_WORDS: Final = _WORKERS_BYTES // WORD
_REDO_INDEX: Final = _REDO_AT // WORD
_REDO_CHANGES: Final = _REDO_BYTES // (2 * WORD)


class Array(NamedTuple):
    """An array of slots. Its words are its place in the file in bytes, its room and its length."""

    at: int
    room: int
    length: int
    words: int  # of a slot
    first_room: int

    @property
    def slot(self) -> int:
        """The bytes of a slot."""
        return self.words * WORD


def _array(number: int, words: int, first_room: int) -> Array:
    word = _ARRAYS + 3 * number
    return Array(word, word + 1, word + 2, words, first_room)


ACCOUNTS: Final = _array(0, ACCOUNT_WORDS, 512)
LEASES: Final = _array(1, 13, 2048)
MEMBERS: Final = _array(2, 2, 1024)
_ALL: Final = (ACCOUNTS, LEASES, MEMBERS)

_FRAME: Final = struct.Struct("=II")  # of a record: its bytes, their checksum
_MASK: Final = 0xFFFFFFFF

TABLE: Final = "CREATE TABLE live (id TEXT PRIMARY KEY, position INTEGER NOT NULL) STRICT"

log = logging.getLogger("wrapper")
# A sleep in which no greenlet runs.
_stop: Any = getattr(signal, "sigtimedwait", None)


class LiveFile:
    """The file as one process has it open."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        status = os.fstat(fd)
        self.inode = status.st_ino
        self._map(status.st_size)
        self._try_lock()
        self.times: memoryview[float] = memoryview(self.map)[:_HEADER].cast("d")
        self._ring = self.words[_RING]
        self._stuck_until = 0.0
        self.id = self.map[_ID].decode("ascii", "replace")

    @property
    def is_drained(self) -> bool:
        """Whether all of it is in the database."""
        return self.words[HEAD] == self.words[_TAIL]

    @property
    def waiting(self) -> int:
        """How many records are not in the database yet, more or less."""
        return self.words[_WAITING]

    def append(self, payload: bytes, version: int) -> bool | None:
        """Keep a record; False where there is no room for it, None where the accounts are no more
        those of `version`: then nothing has changed.
        """
        words = self.words
        try:
            # `lock` and `unlock` without their calls: this is done once a request.
            try:
                fcntl.flock(self._fd, _TRY)
            except OSError:
                self._wait_for_lock(patient=True)
            if words[_REDO]:
                self._finish()
            if words[VERSION] != version:
                return None
            head = self.put(payload)
            if head is None:
                return False
            words[HEAD] = head  # from here on it is acknowledged
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def put(self, payload: bytes) -> int | None:
        """Write a record at the head: what the head is with it, None where there is no room.

        With the lock. It is kept from the moment at which `head_at` has that value.
        """
        words, ring = self.words, self._ring
        head, size = words[HEAD], _FRAME.size + len(payload)
        if head + size - words[_TAIL] > ring:
            return None
        data = _FRAME.pack(len(payload), zlib.crc32(payload, head & _MASK)) + payload
        at = _RING_AT + head % ring
        end = _RING_AT + ring
        if at + size <= end:
            self.map[at : at + size] = data
        else:  # it goes on at the ring's beginning
            self.map[at:end] = data[: end - at]
            self.map[_RING_AT : at + size - ring] = data[end - at :]
        words[_WAITING] += 1
        return head + size

    def read(self, position: int, most: int) -> tuple[list[bytes], int]:
        """Up to `most` records from `position` on, and where they end.

        To be called with the database's write lock: no other process moves the tail then, so what
        is read stays in place.
        """
        head = self.words[HEAD]
        end = start = max(position, self.words[_TAIL])
        found: list[bytes] = []
        while end < head and len(found) < most:
            payload = self._record(end)
            if payload is None:
                os.sched_yield()  # some processors may show the head before the record
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
        if position > self.words[_TAIL]:
            self.words[_TAIL] = position
            self.words[_WAITING] = 0
        self.times[DRAINED] = time.monotonic()

    def commit(self, changes: Changes) -> None:
        """Make all of these changes, with the lock: once they are written down, they are made."""
        words, count = self.words, len(changes)
        if count > _REDO_CHANGES:
            raise StoreError(f"{self.path}: too many limits hold for one request")
        redo = _packed_words(2 * count)
        self.map[_REDO_AT : _REDO_AT + redo.size] = redo.pack(*changes, *changes.values())
        words[_REDO] = count
        for index, value in changes.items():
            words[index] = value
        words[_REDO] = 0

    def index_of(self, slots: Array, number: int) -> int:
        """The index of a slot's first word. With the lock: an array may move."""
        return self.words[slots.at] // WORD + number * slots.words

    def make_room(self, slots: Array, more: int = 1) -> None:
        """So many slots can be added to the array. With the lock. Raises OSError.

        The file may be mapped anew: `words` are others then.
        """
        words = self.words
        used, room = words[slots.length], words[slots.room]
        if used + more <= room:
            return
        while room < used + more:
            room = 2 * room if room else slots.first_room
        at = words[_SIZE]
        size = at + _pages(room * slots.slot)
        _allocate(self._fd, at, size - at)
        self._map(size)
        old = words[slots.at]
        self.map[at : at + used * slots.slot] = self.map[old : old + used * slots.slot]
        self.commit({slots.at: at, slots.room: room, _SIZE: size})

    def replace(self, slots: Array, data: bytes, more: int) -> None:
        """Give an array this content and room for so many slots more: in its place before the
        present one, as long as half of its room is enough. With the lock. Raises OSError.
        """
        words = self.words
        used, room = len(data) // slots.slot, words[slots.room]
        at, spare, size = words[_SPARE], words[slots.at], words[_SIZE]
        while 2 * (used + more) > room:
            room, at, spare = 2 * room, 0, 0
        if not at:
            at, size = size, size + _pages(room * slots.slot)
            _allocate(self._fd, at, size - at)
            self._map(size)
        self.map[at : at + len(data)] = data
        new = {slots.at: at, slots.room: room, slots.length: used, _SPARE: spare, _SIZE: size}
        self.commit(new | {LISTS: words[LISTS] + 1, VERSION: words[VERSION] + 1})

    def lock(self, *, patient: bool = True) -> None:
        """Always inside of a `try` whose `finally` unlocks: a signal may raise at any moment.

        Not `patient`: no greenlet runs while it waits.
        """
        try:
            fcntl.flock(self._fd, _TRY)
        except OSError:
            self._wait_for_lock(patient)
        if self.words[_REDO]:
            self._finish()
        if self.words[_SIZE] != self._size:
            self._map(self.words[_SIZE])

    def unlock(self) -> None:
        """Without having the lock nothing happens."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def is_replaced(self) -> bool:
        """Whether another file is at its path by now, or none."""
        try:
            return self.path.stat().st_ino != self.inode
        except OSError:
            return True

    def close(self) -> None:
        """Give back what is open."""
        self.words.release()
        self.times.release()
        self.map.close()
        os.close(self._fd)

    @property
    def is_current(self) -> bool:
        """Whether its accounts and leases are as this version reads them."""
        return self.map[: len(_MAGIC)] == _MAGIC

    def fits(self, boot: str, position: int) -> bool:
        """Whether it was written since the machine's start, and says what the database says."""
        words = self.words
        return self._is_of(boot) and words[_TAIL] <= position <= words[HEAD]

    def _is_of(self, boot: str) -> bool:
        return bytes(self.map[_BOOT]) == _padded(boot)

    def recover(self, boot: str, position: int) -> None:
        """After a start of the machine, or where the database is newer or older than the file: keep
        the records from `position` on that are whole, and begin the accounts anew. A power failure
        may have kept some pages of the file and not others.

        With the database's write lock.
        """
        try:
            self._wait_for_lock(patient=False)
            if not (self._is_of(boot) and self.is_current):
                # Of changes that were written down, too, some pages may be missing; and those of
                # an older version were no words.
                self.words[_REDO] = 0
            self.lock()
            if self.fits(boot, position):
                return
            start, tail = position, self.words[_TAIL]
            head = self._whole_from(start)
            if head < tail:  # what the database has lost is not here any more
                start, head = tail, self._whole_from(tail)
            changes = {_TAIL: start, HEAD: head, DRAINED: 0, FREE: 0}
            changes |= {name: self.words[name] + 1 for name in (VERSION, CLEARED, EPOCH)}
            changes |= {slots.length: 0 for slots in _ALL}
            changes |= dict.fromkeys(range(WORKERS_INDEX, WORKERS_INDEX + WORKERS_WORDS), 0)
            # An array may have been moved in part: what is new goes where none can be.
            size = os.fstat(self._fd).st_size
            changes |= {_SIZE: size - size % 4096, _SPARE: 0}
            changes |= enumerate(array("q", _padded(boot)), _BOOT.start // WORD)
            self.commit(changes)
        finally:
            self.unlock()

    def _finish(self) -> None:
        """Make the changes that were written down and may not be made."""
        size = os.fstat(self._fd).st_size
        if size != self._size:
            self._map(size)
        words, count = self.words, self.words[_REDO]
        end = _REDO_INDEX + count
        for index, value in zip(words[_REDO_INDEX:end], words[end : end + count], strict=True):
            words[index] = value
        words[_REDO] = 0

    def _map(self, size: int) -> None:
        size -= size % 4096  # where it could not be made longer, a part of a page may be left
        # Another map shows the same pages: who has words of the former may go on reading them.
        try:
            self.map = mmap.mmap(self._fd, size)
        except OSError as error:  # it takes a file descriptor
            raise StoreError(f"{self.path}: cannot be mapped ({error.strerror})") from error
        self.words: memoryview[int] = memoryview(self.map).cast("q")
        self._size = size

    def _whole_from(self, position: int) -> int:
        """Where the whole records end that begin there."""
        first = position
        while position - first < self._ring:
            payload = self._record(position)
            if payload is None:
                break
            position += _FRAME.size + len(payload)
        return position

    def _record(self, position: int) -> bytes | None:
        """The record that begins there; None where there is none that is whole."""
        length, checksum = _FRAME.unpack(self._get(position, _FRAME.size))
        if not 0 < length <= self._ring - _FRAME.size:
            return None
        payload = self._get(position + _FRAME.size, length)
        return payload if zlib.crc32(payload, position & _MASK) == checksum else None

    def _get(self, position: int, size: int) -> bytes:
        at, end = _RING_AT + position % self._ring, _RING_AT + self._ring
        found = self.map[at : min(at + size, end)]
        if len(found) < size:  # it goes on at the ring's beginning
            found += self.map[_RING_AT : _RING_AT + size - len(found)]
        return found

    def _try_lock(self) -> None:
        """Raises StoreError where the file system has no locks: found out at the start."""
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, _TRY)
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except OSError as error:
            raise self._unlockable(error) from error

    def _unlockable(self, error: OSError) -> StoreError:
        problem = f"{self.path}: cannot be locked ({error.strerror})"
        return StoreError(f"{problem}; WRAPPER_STORE must name a file where flock works")

    def _wait_for_lock(self, patient: bool) -> None:
        """Its holder is mostly done in microseconds; else it has no CPU, which spinning would keep
        from it.
        """
        tries, slept, pause, most = 0, 0.0, 0.0001, LOCK_SECONDS
        if not patient and time.monotonic() < self._stuck_until:
            most = min(most, STUCK_LOCK_SECONDS)
        while True:
            try:
                fcntl.flock(self._fd, _TRY)
                self._stuck_until = 0.0
                return
            except BlockingIOError as error:
                if slept >= most:
                    self._stuck_until = time.monotonic() + _STUCK_FOR
                    problem = "is locked; a process that uses it is stopped"
                    raise StoreError(f"{self.path}: {problem}") from error
            except OSError as error:
                raise self._unlockable(error) from error
            tries += 1
            if tries <= _SPINS:
                continue
            # A switch to other greenlets and back takes longer than most of these waits.
            if _stop is None or (patient and slept > _STILL_SECONDS):
                time.sleep(pause)
            else:
                _stop((), pause)
            slept += pause
            pause = min(pause * 1.5, 0.005)


def open_live(database: Path, connection: sqlite3.Connection, boot: str) -> LiveFile:
    """The live file of this database, made where there is none. Can be tried again when busy."""
    # As SQLite names its own files: one live file, whatever links lead to the database.
    database = database.resolve()
    path = database.with_name(database.name + SUFFIX)
    live = _existing(path)
    known = None if live is None else _position(connection, live.id)
    if live is not None and known is not None and live.is_current and live.fits(boot, known):
        return live
    if live is not None:
        live.close()
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        # Others may have come before: they have made it, or are done with its recovery.
        live = _existing(path)
        if live is not None:
            known = _position(connection, live.id)
            if known is None:
                known = _taken_over(connection, live)
            if known is not None:
                live.recover(boot, known)
                tail = live.words[_TAIL]
                _move(connection, live.id, tail)
                if live.is_current:
                    return live
                known = max(known, tail)
            else:
                _set_aside(live)
                live = None
        elif path.exists():
            _rename(path, secrets.token_hex(4))
        made = _made(path, database, boot, live)
        connection.execute("INSERT INTO live VALUES (?, ?)", (made.id, known or 0))
        connection.execute("DELETE FROM live WHERE rowid <= last_insert_rowid() - 8")
        if live is not None:
            # What it has is the new one's; a process that still writes to it books what it adds.
            _move(connection, live.id, made.words[HEAD])
            live.close()
    return made


def _existing(path: Path) -> LiveFile | None:
    """The file, None where there is none, it is not ours or damaged."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        head = os.pread(fd, _HEADER, 0)
        # Afterwards, for another process may make it longer at the same time.
        if _is_possible(head, os.fstat(fd).st_size):
            return LiveFile(path, fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_possible(head: bytes, size: int) -> bool:
    """Whether a file of that size can begin so, and what its words name is in it."""
    if not head.startswith((_MAGIC, *_OLD_MAGICS)) or len(head) < _HEADER:
        return False
    words = struct.unpack(f"={_HEADER // WORD}Q", head)
    if not (words[_SIZE] <= size and 0 < words[_RING] <= size - _RING_AT):
        return False
    return head.startswith(_OLD_MAGICS) or (
        words[_REDO] <= _REDO_CHANGES
        and all(
            words[slots.length] <= words[slots.room]
            and words[slots.at] + words[slots.room] * slots.slot <= size
            for slots in _ALL
        )
        and (words[FREE] <= words[LEASES.length] or words[_REDO] > 0)  # not while it is changed
    )


def _position(connection: sqlite3.Connection, ident: str) -> int | None:
    """Up to where the database has the records of a file; None for another database's file."""
    row = connection.execute("SELECT position FROM live WHERE id = ?", (ident,)).fetchone()
    return None if row is None else int(row[0])


def _move(connection: sqlite3.Connection, ident: str, position: int) -> None:
    """The database has no records of a file before this position to book any more."""
    move = "UPDATE live SET position = ? WHERE id = ? AND position < ?"
    connection.execute(move, (position, ident, position))


def _taken_over(connection: sqlite3.Connection, live: LiveFile) -> int | None:
    """As `_position`, of a file that has the records of another one and came to its place, but the
    transaction that tells the database was not committed: a kill, or a full disk. Now it is told.
    """
    before = live.map[_FROM].hex()
    known = _position(connection, before)
    if known is not None:
        connection.execute("INSERT INTO live VALUES (?, ?)", (live.id, known))
        _move(connection, before, live.words[HEAD])
    return known


def _set_aside(live: LiveFile) -> None:
    """It belongs to a database that was at this place before: its records are not this one's."""
    if not live.is_drained:
        _rename(live.path, live.id[:8])
    live.close()


def _rename(path: Path, suffix: str) -> None:
    aside = path.with_name(f"{path.name}.{suffix}")
    log.warning("%s is of another database or damaged, moved to %s", path, aside.name)
    path.rename(aside)


def _made(path: Path, database: Path, boot: str, old: LiveFile | None) -> LiveFile:
    """A new file, which takes its place when it is complete. As readable as the database. It has
    the records of `old`, at the same positions.
    """
    ident = secrets.token_hex(16)
    new = path.with_name(f"{path.name}.{ident[:8]}.new")
    like = database.stat()
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, like.st_mode & 0o777)
        if os.geteuid() == 0:
            os.fchown(fd, like.st_uid, like.st_gid)
        ring = RING_BYTES if old is None else old.words[_RING]
        size = _RING_AT + _pages(ring)
        # Serials begin anywhere: a lease of a file that was deleted means none in this one.
        first = {_SIZE: size, _RING: ring, EPOCH: 1, VERSION: 1, CLEARED: 1}
        first[SERIAL] = secrets.randbits(40) << 8
        if old is not None:
            first |= {HEAD: old.words[HEAD], _TAIL: old.words[_TAIL]}
        for slots in _ALL:
            first[slots.at], first[slots.room] = size, slots.first_room
            size += _pages(slots.first_room * slots.slot)
        first[_SIZE] = size
        _allocate(fd, 0, size)
        os.pwrite(fd, _MAGIC + ident.encode() + _padded(boot), 0)
        for index, value in first.items():
            os.pwrite(fd, array("q", [value]).tobytes(), index * WORD)
        if old is not None:
            os.pwrite(fd, bytes.fromhex(old.id), _FROM.start)
            os.pwrite(fd, old.map[_RING_AT : _RING_AT + ring], _RING_AT)
        new.rename(path)
        return LiveFile(path, fd)
    except BaseException:
        os.close(fd)
        new.unlink(missing_ok=True)
        raise


def _pages(size: int) -> int:
    """The bytes of the pages that so many bytes fill."""
    return -(-size // 4096) * 4096


def _allocate(fd: int, at: int, size: int) -> None:
    """Make the file longer by zeros that have room, also where the system allocates none by itself
    (macOS, some file systems).
    """
    with contextlib.suppress(AttributeError):
        try:
            os.posix_fallocate(fd, at, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    while size > 0:
        written = os.pwrite(fd, bytes(min(size, 1 << 16)), at)
        at, size = at + written, size - written


@lru_cache(256)
def _packed_words(count: int) -> struct.Struct:
    return struct.Struct(f"={count}q")


def _padded(boot: str) -> bytes:
    size = _BOOT.stop - _BOOT.start
    return boot.encode()[:size].ljust(size, b"\0")
