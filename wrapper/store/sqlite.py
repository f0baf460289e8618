"""The store in an SQLite file beside the workers.

The ledger is one row per hour, key, provider, model and outcome. A settlement is a record in the
live file (`store.live`), in one step with the end of its lease (`store.reservations`); every
transaction begins with booking these records (`store.drain`), whoever wrote them. A settlement
makes one where the last was `DRAIN_SECONDS` ago: that saves a busy worker the transaction of nearly
every request. Whoever reads the ledger books first, too. Admission needs the live file alone; it
makes a transaction where the last was that long ago, and so fails while the database is out of
reach.

Write-ahead logging lets readers and the one writer go on side by side; with `synchronous = NORMAL`
nothing waits for the disk but a checkpoint (https://www.sqlite.org/wal.html), which a worker makes
in another thread; and a killed process loses nothing that it acknowledged, for the pages are the
kernel's by then.

Waiting. SQLite itself never waits here, for it would stop the worker's event loop: a file that
is busy is tried again after a cooperative sleep, until a deadline. Between the begin of a
transaction and its end nothing sleeps, so no lock is held while other greenlets run.

Time. All workers are on one machine: windows and leases go by its monotonic clock, which nobody
can set. It starts anew with the machine, so after a boot the accounts begin anew.

Invariants. A connection belongs to the process that opened it: after a fork the child opens its
own and leaves the inherited one alone, unclosed (https://www.sqlite.org/howtocorrupt.html,
section 2.6). A file that cannot be written just now (locked by another program, full disk)
neither stops the worker nor loses a request: what the live file has no room for waits in memory,
and until all is written `settle` says that it waits.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from wrapper.store import deferredsql, past, recent, sqlitefile
from wrapper.store.accounts import Moment
from wrapper.store.base import Entry, StoreError, Sums, check_dimensions, true_tokens
from wrapper.store.deferred import Deferred
from wrapper.store.drain import IMPOSSIBLE, add, drain
from wrapper.store.limits import (
    Demand,
    Lease,
    Standing,
    Subject,
    bounded,
    nothing_used,
)
from wrapper.store.live import DRAINED, LiveFile, open_live
from wrapper.store.reservations import REAP_BATCH, Reservations, Unknown
from wrapper.store.schema import all_time, query, sums
from wrapper.store.waiting import Impossible, Waiting

# How long a busy file is tried again, in seconds of sleep: a write takes microseconds, unless some
# other program holds the file.
BUSY_SECONDS = 1.0
# How old the last transaction of any process may be where a settlement needs none.
DRAIN_SECONDS = 0.05
# How long admission fails at once after a failure, in seconds.
DOWN_SECONDS = 1.0
# How often the file is looked for, in seconds.
LOOK_SECONDS = 1.0
# How often old records of deferred work are looked for, in seconds.
FORGET_SECONDS = 3600.0
CHECKED_BYTES = 16 << 20  # a file of that size is checked in a tenth of a second

_NOTHING = Sums((), 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0)

T = TypeVar("T")


class Settlement(NamedTuple):
    """What `settle` writes where the live file has no room: a row of the ledger, the end of a lease
    with its tokens, or both.
    """

    entry: Entry | None
    lease: Lease | None
    tokens: int

    def shed(self) -> Settlement | None:
        """What stays where the row is lost: the end of the lease."""
        return None if self.lease is None else self._replace(entry=None)


class SqliteStore:
    """Opened in each process at its first use."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall = wall
        self._pid = 0
        self._cursor: sqlite3.Cursor | None = None
        self._live: LiveFile | None = None
        self._reservations: Reservations | None = None
        self._inode = 0
        self._look_at = 0.0
        self._waiting: Waiting[Settlement] = Waiting(str(path), Settlement.shed)
        self._down_until = 0.0
        self._worker = ""
        self._forget_at = 0.0
        self._trim_at = 0.0
        # What a parent process has open, or another greenlet may use: kept, so that it stays open.
        self._inherited: list[object] = []

    def check(self) -> None:
        if not self._is_large():
            self._check_pages()

    def check_rest(self) -> None:
        def check_apart() -> None:
            store = self.reader()
            try:
                store._check_pages()
            finally:
                store.close()

        if self._is_large():
            _in_thread(check_apart)

    def _is_large(self) -> bool:
        """Whether reading all pages of the file would hold up a start."""
        pages: int
        size: int
        pages, size = self._try(
            lambda: (
                self._here().execute("SELECT * FROM pragma_page_count, pragma_page_size").fetchone()
            )
        )
        return pages * size > CHECKED_BYTES

    def _check_pages(self) -> None:
        problems = self._try(lambda: self._here().execute("PRAGMA quick_check(1)").fetchone())
        if problems != ("ok",):
            raise StoreError(f"{self._path}: damaged ({problems[0]}); {sqlitefile.MOVE_AWAY}")

    def settle(self, entry: Entry, lease: Lease | None = None) -> None:
        tokens = 0
        if lease is not None:
            if lease.settled:
                return
            lease.settled = True
            if lease.standings:
                tokens = true_tokens(entry, lease)
            else:
                lease = None
        reservations, is_kept = self._reservations, False
        if reservations is not None and self._pid == os.getpid() and not self._waiting.has_items:
            # Otherwise nothing is written: the long way says what is wrong, or waits.
            try:
                is_kept = reservations.settle(entry, lease, tokens)
            except (OverflowError, TypeError, UnicodeEncodeError, StoreError):
                is_kept = False
        if reservations is None or not is_kept:
            self._settle(Settlement(entry, lease, tokens))
            return
        now = time.monotonic()
        if (
            now >= self._look_at
            or not 0.0 <= now - reservations.live.times[DRAINED] < DRAIN_SECONDS
        ):
            self._book_kept(reservations.live)

    def _book_kept(self, live: LiveFile) -> None:
        """Book what the live file has. Raises StoreError where that has to wait."""
        if self._waiting.rests:
            raise self._waiting.complaint(live.waiting)
        try:
            self._transact(_nothing)
        except BaseException:
            self._waiting.failed()
            raise
        self._look_now_and_then()

    def release(self, lease: Lease) -> None:
        if lease.standings and not lease.settled:
            lease.settled = True
            self._try(lambda: self._opened().end(lease, 0))

    def admit(self, subjects: Sequence[Subject], demand: Demand) -> Lease:
        return self._step(Reservations.admit, subjects, bounded(demand))

    def move(self, lease: Lease, provider: Subject | None) -> None:
        if lease.settled or lease.is_at(provider):
            return
        old, kept = lease.provider, lease.without_provider()
        gained = [provider] if provider else []
        moved = None
        if lease.standings:
            moved = self._step(Reservations.move, lease, old, gained)
        if moved is not None:
            lease.adopt(kept, moved)
        elif kept or gained:
            lease.adopt([], self.admit([*kept, *gained], lease.demand))

    def standing(self, subjects: Sequence[Subject]) -> list[Standing]:
        if self._missing():
            return [nothing_used(subject, self._wall()) for subject in subjects]
        self._book()
        return self._try(lambda: self._opened().standings(self._here(), subjects, self._moment))

    def heartbeat(self) -> None:
        if self._missing():
            return
        reservations = self._try(self._opened)
        if reservations.has_beaten or reservations.any_worker():
            reservations.beat(self._moment)
            self.reap()
        if not reservations.live.is_drained:
            self._transact(_nothing)
        if self._waiting:
            self._waiting.write(self._write)
        if not self._try(lambda: past.is_folded(self._here(), self._hour())):
            _in_thread(self._fold_apart)
        self._trim()
        if sqlitefile.log_is_long(self._path):
            _in_thread(lambda: sqlitefile.checkpoint(self._path))

    def _trim(self) -> None:
        """Forget what the oldest of the recent requests have used."""
        now = self._wall()
        if now < self._trim_at:
            return
        self._trim_at = now + recent.TRIM_SECONDS
        while self._transact(lambda cursor: recent.trim(cursor, now)) >= recent.TRIM_BATCH - 1:
            time.sleep(0)  # the other greenlets' turn

    def _fold_apart(self) -> None:
        """In another thread, and so on a connection of its own."""
        store = self.reader()
        try:
            store._transact(store._fold)
        finally:
            store.close()

    def _fold(self, cursor: sqlite3.Cursor) -> None:
        past.fold(cursor, self._hour())

    def _hour(self) -> int:
        """The hour before the present one: the clocks of workers may differ by a little."""
        return int(self._wall() // 3600) - 1

    def reap(self) -> int:
        total = 0
        while True:
            ended = self._try(self._opened).reap(self._moment)
            total += ended
            if ended < REAP_BATCH:
                return total
            time.sleep(0)  # the other greenlets' turn

    def totals(
        self,
        since: float | None = None,
        until: float | None = None,
        by: tuple[str, ...] = (),
        key: str | None = None,
    ) -> list[Sums]:
        check_dimensions(by)
        if self._missing():
            return [] if by else [_NOTHING]
        self._book()
        text, bound = query(since, until, by, key)
        rows = self._try(lambda: self._here().execute(text, bound).fetchall())
        return [sums(row, by) for row in rows]

    def all_time(self) -> list[Sums]:
        if self._missing():
            return []

        def work(cursor: sqlite3.Cursor) -> list[Sums]:
            self._fold(cursor)
            return all_time(cursor)

        return self._transact(work)

    def remember(self, deferred: Deferred, lease: Lease | None, delay: float) -> None:
        due = self._wall() + delay

        def work(cursor: sqlite3.Cursor) -> bool:
            return deferredsql.remember(cursor, self._opened(), deferred, lease, due)

        if self._transact(work) and lease is not None:
            self._opened().take_money(lease)

    def pending(self, provider: str, ids: Sequence[str]) -> list[Deferred]:
        if self._missing() or not ids:
            return []
        return self._try(lambda: deferredsql.pending(self._here(), provider, ids))

    def book(self, deferred: Deferred, entries: Sequence[Entry]) -> bool:
        return self._transact(
            lambda cursor: deferredsql.book(cursor, self._opened(), deferred, entries)
        )

    def take(self, first: float) -> Deferred | None:
        now = self._wall()
        if self._missing():
            return None
        if now >= self._forget_at:
            forgotten = self._transact(lambda cursor: deferredsql.forget(cursor, now))
            self._forget_at = now if forgotten else now + FORGET_SECONDS
        if not self._try(lambda: deferredsql.is_due(self._here(), now)):
            return None
        return self._transact(lambda cursor: deferredsql.take(cursor, now, first))

    def hasten(self, deferred: Deferred) -> None:
        now = self._wall()
        self._transact(lambda cursor: deferredsql.hasten(cursor, deferred, now))

    def remember_file(self, provider: str, file_id: str, content: str) -> None:
        row = (provider, file_id, self._wall(), content)
        statement = "INSERT OR REPLACE INTO batch_file VALUES (?, ?, ?, ?)"
        self._try(lambda: self._here().execute(statement, row))

    def file(self, provider: str, file_id: str) -> str | None:
        if self._missing():
            return None
        query = "SELECT content FROM batch_file WHERE provider = ? AND id = ?"
        row = self._try(lambda: self._here().execute(query, (provider, file_id)).fetchone())
        return None if row is None else row[0]

    def recent(self, key: str, request_id: str) -> str | None:
        if self._missing():
            return None
        self._book()
        return self._try(lambda: recent.find(self._here(), key, request_id, self._wall()))

    def reader(self) -> SqliteStore:
        return SqliteStore(self._path, self._clock, self._wall)

    def close(self) -> None:
        self._own()
        try:
            if self._waiting:
                self._waiting.write(self._write, now=True)
            if self._reservations is not None and self._reservations.has_beaten:
                self._reservations.end_all()
            if self._live is not None and not self._live.is_drained:
                # Another process may book it as well, or the next start.
                with contextlib.suppress(StoreError):
                    self._transact(_nothing)
        finally:
            if self._cursor is not None:
                self._cursor.connection.close()
            if self._live is not None:
                self._live.close()
            self._cursor = self._live = self._reservations = None

    def _own(self) -> None:
        """Forget what belongs to a parent process."""
        pid = os.getpid()
        if pid == self._pid:
            return
        self._inherited += [self._cursor, self._live]
        self._cursor = self._live = self._reservations = None
        self._waiting = Waiting(str(self._path), Settlement.shed)
        self._worker = secrets.token_hex(8)
        self._pid = pid

    def _missing(self) -> bool:
        """Whether there is no file. A query makes none, least of all one of another owner."""
        self._own()
        return self._cursor is None and not self._path.exists()

    def _here(self) -> sqlite3.Cursor:
        self._own()
        if self._cursor is None:
            connection = sqlitefile.open_file(self._path)
            live = sqlitefile.opened(self._path, connection, open_live)
            self._inode = self._path.stat().st_ino
            # Opening may yield to a greenlet that opens it too: one of the two is dropped, idle.
            self._cursor, self._live = connection.cursor(), live
            self._reservations = Reservations(live, self._worker)
        return self._cursor

    def _opened(self) -> Reservations:
        self._here()
        if self._reservations is None:
            raise StoreError(f"{self._path}: was closed meanwhile")
        return self._reservations

    def _moment(self) -> Moment:
        return Moment(self._clock(), self._wall())

    def _step(self, step: Callable[..., T], *args: object) -> T:
        """What a step of the reservations returns, once the money of all its subjects is known."""
        while True:
            try:
                return step(self._in_reach(), *args, self._moment)
            except Unknown as unknown:
                self._learn(unknown.subjects, self._wall())
            except OSError as error:
                raise sqlitefile.problem(self._path, error) from error

    def _in_reach(self) -> Reservations:
        """The reservations, where the database was written to just now; else it is tried.

        Raises StoreError where it is out of reach: what is settled could not be booked.
        """
        reservations = self._reservations
        if reservations is not None and self._pid == os.getpid():
            age = time.monotonic() - reservations.live.times[DRAINED]
            if 0.0 <= age < DRAIN_SECONDS:
                return reservations
        self._reserve(_nothing)
        return self._opened()

    def _learn(self, subjects: Sequence[Subject], wall: float) -> None:
        self._reserve(lambda cursor: self._opened().learn(cursor, subjects, wall))

    def _reserve(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """As `_transact`; fails at once shortly after a failure."""
        if time.monotonic() < self._down_until:
            raise StoreError(f"{self._path}: not in reach a moment ago")
        try:
            return self._transact(work)
        except StoreError:
            self._down_until = time.monotonic() + DOWN_SECONDS
            raise

    def _settle(self, settlement: Settlement) -> None:
        self._own()
        if self._waiting or self._waiting.rests:
            self._waiting.add(settlement)
            self._waiting.write(self._write)
            return
        try:
            self._write(settlement)
        except Impossible:
            raise
        except BaseException:
            self._waiting.add(settlement)
            self._waiting.failed()
            raise
        self._look_now_and_then()

    def _look_now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()

    def _write(self, settlement: Settlement) -> None:
        entry, lease, tokens = settlement
        try:
            if entry is not None:
                self._transact(lambda cursor: self._add(cursor, entry))
        except Impossible:
            self._end(lease, tokens)
            raise
        self._end(lease, tokens)

    def _add(self, cursor: sqlite3.Cursor, entry: Entry) -> None:
        if add(cursor, entry):
            self._opened().forget_money((), [(entry.key, entry.provider)])

    def _end(self, lease: Lease | None, tokens: int) -> None:
        """End a lease whose entry is written: this must not fail, or the entry would be repeated.
        Where the file is locked for that long, the lease ends with its worker.
        """
        if lease is not None:
            with contextlib.suppress(StoreError):
                self._opened().end(lease, tokens)

    def _try(self, work: Callable[[], T]) -> T:
        """What `work` returns, one statement outside of a transaction."""
        try:
            return sqlitefile.retry_while_busy(work, BUSY_SECONDS)
        except IMPOSSIBLE as error:
            raise Impossible(f"{self._path}: {error}") from error
        except (sqlite3.Error, OSError) as error:
            raise sqlitefile.problem(self._path, error) from error

    def _transact(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """What `work` returns, in one transaction that is committed whole or not at all.

        What the live file has is booked before, in several transactions where it is much.
        """
        while True:
            cursor = self._begin()
            try:
                live = self._live
                if live is None:  # it is opened with the cursor, and closed with it
                    raise StoreError(f"{self._path}: was closed meanwhile")
                drained = drain(cursor, live)
                result = None if drained.more else work(cursor)
                cursor.execute("COMMIT")
            except BaseException as error:
                if cursor.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                if isinstance(error, IMPOSSIBLE):
                    raise Impossible(f"{self._path}: {error}") from error
                if isinstance(error, sqlite3.Error | OSError):
                    raise sqlitefile.problem(self._path, error) from error
                raise
            live.drained(drained.position)
            if not drained.more:
                return result  # type: ignore[return-value]  # it is what `work` has returned
            time.sleep(0)  # the other greenlets' turn

    def _book(self) -> None:
        """Bring the database up to date for a question: what was acknowledged is in it.

        Where it cannot be written (another program has locked it, the disk is full), a question is
        answered as before that; a file that this process may never write is an error.
        """
        self._try(self._here)
        if self._live is None or self._live.is_drained or time.monotonic() < self._down_until:
            return
        try:
            self._transact(_nothing)
        except StoreError as error:
            if "readonly" in str(error):
                raise
            self._down_until = time.monotonic() + DOWN_SECONDS

    def _begin(self) -> sqlite3.Cursor:
        if self._cursor is not None and self._pid == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                return self._cursor.execute("BEGIN IMMEDIATE")
        return self._try(lambda: self._here().execute("BEGIN IMMEDIATE"))

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
        if self._live is not None and self._live.is_replaced():
            # Its records have just been booked; later ones would be lost with this process.
            self._inherited += [self._cursor, self._live]
            self._cursor = self._live = self._reservations = None
            self._here()


def _nothing(_: sqlite3.Cursor) -> None:
    """No work: the transaction does what each one does."""


def _in_thread(work: Callable[[], T]) -> T:
    from wrapper.cancellation import in_thread  # gevent: the commands do without it

    return in_thread(work)
