"""Usage in an SQLite file beside the workers.

One table, one row per hour, key, provider, model and outcome, one UPSERT per request in
autocommit: the write is over when `settle` returns. Write-ahead logging lets readers and the
one writer go on side by side; with `synchronous = NORMAL` nothing waits for the disk but a
checkpoint (https://www.sqlite.org/wal.html), and a killed process loses nothing that it
acknowledged, for the pages are the kernel's by then.

Two rules are protected here. A connection belongs to the process that opened it: after a fork
the child opens its own and leaves the inherited one alone, unclosed
(https://www.sqlite.org/howtocorrupt.html, section 2.6). And a file that cannot be written just
now (locked by another program, full disk) neither stops the worker nor loses a request: what
waits is written with a later one, and until then `settle` says that it waits.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from pathlib import Path

from wrapper.store.base import DIMENSIONS, Entry, StoreError, Sums
from wrapper.store.schema import (
    COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    SETTLE,
    Values,
    query,
    sums,
    values,
)

# How long a write waits for another one's end, in seconds: it takes microseconds, unless some
# other program holds the file. The whole worker waits with it.
BUSY_SECONDS = 0.5
# How long nothing is tried after a failure, and how much may wait meanwhile.
RETRY_SECONDS = 5.0
MAX_WAITING = 10_000
# How often the file is looked for, in seconds.
LOOK_SECONDS = 1.0
# Opening takes its turn with the other workers, in seconds.
OPEN_SECONDS = 5.0
# Pages in the log before they are copied into the file, which waits for the disk: 16 MiB.
CHECKPOINT_PAGES = 4000

_MOVE_AWAY = "move it away to begin a new one, or name another file in WRAPPER_STORE"
# What can never be written, and therefore does not wait.
_IMPOSSIBLE = (sqlite3.DataError, sqlite3.IntegrityError, OverflowError, UnicodeEncodeError)
_NOTHING = Sums((), 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0)


class SqliteStore:
    """Opened in each process at its first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = 0
        self._cursor: sqlite3.Cursor | None = None
        self._inode = 0
        self._look_at = 0.0
        self._waiting: deque[Values] = deque()
        self._retry_at = 0.0
        self._lost = 0
        # Cursors of a parent process: kept, so that nothing closes them here.
        self._inherited: list[sqlite3.Cursor] = []

    def check(self) -> None:
        try:
            problems = self._here().execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            raise self._problem(error) from error
        if problems != ("ok",):
            raise StoreError(f"{self._path}: damaged ({problems[0]}); {_MOVE_AWAY}")

    def settle(self, entry: Entry) -> None:
        self._own()
        if self._waiting:
            self._wait(values(entry))
            self._write_waiting()
            return
        bound = values(entry)
        try:
            self._here().execute(SETTLE, bound)
        except _IMPOSSIBLE as error:
            raise self._problem(error) from error
        except (sqlite3.Error, StoreError) as error:
            self._wait(bound)
            self._retry_at = time.monotonic() + RETRY_SECONDS
            raise self._problem(error) from error
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()

    def totals(
        self,
        since: float | None = None,
        until: float | None = None,
        by: tuple[str, ...] = (),
        key: str | None = None,
    ) -> list[Sums]:
        unknown = [name for name in by if name not in COLUMNS]
        if unknown:
            raise ValueError(f"cannot group by {unknown[0]!r}; one of {', '.join(DIMENSIONS)}")
        self._own()
        if self._cursor is None and not self._path.exists():
            # A question makes no file, least of all one that belongs to who asks.
            return [] if by else [_NOTHING]
        text, bound = query(since, until, by, key)
        try:
            rows = self._here().execute(text, bound).fetchall()
        except sqlite3.Error as error:
            raise self._problem(error) from error
        return [sums(row, by) for row in rows]

    def close(self) -> None:
        self._own()
        try:
            if self._waiting:
                self._retry_at = 0.0
                self._write_waiting()
        finally:
            if self._cursor is not None:
                self._cursor.connection.close()
            self._cursor = None

    def _own(self) -> None:
        """Forgets what belongs to a parent process."""
        pid = os.getpid()
        if pid == self._pid:
            return
        if self._cursor is not None:
            self._inherited.append(self._cursor)
        self._cursor = None
        self._waiting.clear()
        self._pid = pid

    def _here(self) -> sqlite3.Cursor:
        self._own()
        if self._cursor is None:
            self._cursor = self._open()
        return self._cursor

    def _wait(self, bound: Values) -> None:
        self._waiting.append(bound)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1

    def _write_waiting(self) -> None:
        """Writes what waits, oldest first. Raises StoreError while something still does."""
        now = time.monotonic()
        if now < self._retry_at:
            lost = f", {self._lost} are lost" if self._lost else ""
            waiting = len(self._waiting)
            raise StoreError(f"{self._path}: {waiting} requests wait to be written{lost}")
        impossible: Exception | None = None
        try:
            cursor = self._here()
            while self._waiting:
                try:
                    cursor.execute(SETTLE, self._waiting[0])
                except _IMPOSSIBLE as error:
                    impossible = error
                self._waiting.popleft()
        except (sqlite3.Error, StoreError) as error:
            self._retry_at = now + RETRY_SECONDS
            raise self._problem(error) from error
        if impossible is not None:
            raise self._problem(impossible) from impossible

    def _look(self) -> None:
        try:
            same = self._path.stat().st_ino == self._inode
        except OSError:
            same = False
        if not same:
            raise StoreError(
                f"{self._path}: was moved or deleted while in use, what is written now is lost;"
                " restart the gateway"
            )

    def _open(self) -> sqlite3.Cursor:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Before SQLite makes it: readable by the owner alone. Its log files take after it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=OPEN_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._inode = self._path.stat().st_ino
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection.cursor()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            # The rows are short: small pages make each commit write, and check, less.
            connection.execute("PRAGMA page_size = 1024")
            _turn_on_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
                version = SCHEMA_VERSION
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        except sqlite3.Error as error:
            raise self._problem(error) from error
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self._path}: made by another version of the gateway (schema {version}, "
                f"this one has {SCHEMA_VERSION}); use that version or name another file"
            )

    def _problem(self, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            return StoreError(f"{self._path}: {reason}; WRAPPER_STORE must name a writable file")
        text = str(error)
        if "not a database" in text or "malformed" in text:
            return StoreError(f"{self._path}: {text}; {_MOVE_AWAY}")
        if "readonly" in text or "unable to open" in text:
            return StoreError(f"{self._path}: {text}; WRAPPER_STORE must name a writable file")
        return StoreError(f"{self._path}: {text}")


def _turn_on_wal(connection: sqlite3.Connection) -> None:
    """The switch needs the file for itself and does not wait for its turn: so it is tried."""
    deadline = time.monotonic() + OPEN_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
