"""The SQLite file: made, opened, brought to this version, and what is wrong with it.

Invariant: the file is readable by its owner alone, and one of a newer version is left alone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wrapper.store.base import StoreError
from wrapper.store.schema import MIGRATIONS, SCHEMA_VERSION

# Opening takes its turn with the other workers, in seconds.
OPEN_SECONDS = 5.0
# The log's size at which a heartbeat has it copied into the file.
CHECKPOINT_BYTES = 4 * 2**20
# Pages in the log at which the next transaction does it where there is no heartbeat: 64 MiB.
CHECKPOINT_PAGES = 64_000

MOVE_AWAY = "move it away to begin a new one, or name another file in WRAPPER_STORE"
_WRITABLE = "WRAPPER_STORE must name a writable file"
# Of a database: what it begins with, and its version (sqlite.org/fileformat.html, section 1.3).
_HEAD = struct.Struct(">16s44xi")
_MAGIC = b"SQLite format 3\0"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.005

T = TypeVar("T")


def retry_while_busy(work: Callable[[], T], seconds: float) -> T:
    """What `work` returns. Where the file is busy, it is tried again after a cooperative sleep.

    Raises sqlite3.OperationalError where it still is after sleeps of `seconds` in all. Why not by
    the clock: on a machine that is overloaded or was stopped, time passes without a try.
    """
    slept = 0.0
    pause = _FIRST_PAUSE
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or slept >= seconds:
                raise
        time.sleep(pause)
        slept += pause
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def open_file(path: Path) -> sqlite3.Connection:
    """A connection in autocommit that waits for nobody; the file is made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before SQLite makes it: readable by the owner alone. Its log files take after it. One that
        # is there is not opened: closing it would drop the locks of this process's connections,
        # and another process could delete their log (sqlite.org/howtocorrupt.html, section 2.2).
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except (sqlite3.Error, OSError) as error:
        raise problem(path, error) from error
    try:
        version = retry_while_busy(lambda: _prepare(connection), OPEN_SECONDS)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise problem(path, error) from error
        raise
    if version != SCHEMA_VERSION:
        connection.close()
        raise _of_another_version(path, version)
    return connection


def examine(path: Path) -> None:
    """Raises StoreError where a start with this file would be refused, as far as that is seen
    without making or changing anything: it may be asked by another user than the gateway's.
    """
    try:
        directory = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryFile(dir=directory):
            pass  # SQLite makes files beside its own
        if not path.exists():
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise problem(path, error) from error
    if not head:
        return
    magic, version = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
    if magic != _MAGIC:
        raise problem(path, sqlite3.DatabaseError("file is not a database"))
    if version > SCHEMA_VERSION:
        raise _of_another_version(path, version)


def _of_another_version(path: Path, version: int) -> StoreError:
    return StoreError(
        f"{path}: made by another version of the gateway (schema {version}, "
        f"this one has {SCHEMA_VERSION}); use that version or name another file"
    )


def opened(path: Path, connection: sqlite3.Connection, open_beside: Callable[..., T]) -> T:
    """What `open_beside` opens for this database, which is closed where that fails."""
    try:
        return retry_while_busy(lambda: open_beside(path, connection, boot_id()), OPEN_SECONDS)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error | OSError):
            raise problem(path, error) from error
        raise


def log_is_long(path: Path) -> bool:
    """Whether it is time for a checkpoint."""
    try:
        path = path.resolve()
        return path.with_name(f"{path.name}-wal").stat().st_size >= CHECKPOINT_BYTES
    except OSError:
        return False


def checkpoint(path: Path) -> None:
    """Copy the log into the file, which waits for the disk: in another thread than the workers'
    requests are. Writers go on meanwhile.
    """
    connection = open_file(path)
    try:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    except sqlite3.Error as error:
        raise problem(path, error) from error
    finally:
        connection.close()


def problem(path: Path, error: Exception) -> StoreError:
    """What `error` means for the file at `path`, and what would be right."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, OSError):
        return StoreError(f"{path}: {error.strerror or type(error).__name__}; {_WRITABLE}")
    text = str(error)
    if "not a database" in text or "malformed" in text:
        return StoreError(f"{path}: {text}; {MOVE_AWAY}")
    if "readonly" in text or "unable to open" in text:
        return StoreError(f"{path}: {text}; {_WRITABLE}")
    return StoreError(f"{path}: {text}")


def _prepare(connection: sqlite3.Connection) -> int:
    """Settings and tables; returns the file's version. Can be tried again when busy."""
    # The rows are short: small pages make each commit write, and check, less.
    connection.execute("PRAGMA page_size = 1024")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    version = _version(connection)
    if version < SCHEMA_VERSION:
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            for number in range(_version(connection), SCHEMA_VERSION):
                for statement in MIGRATIONS[number]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        version = SCHEMA_VERSION
    return version


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def boot_id() -> str:
    """Names this start of the machine; the same text for all where the system has no name."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return "unknown"
