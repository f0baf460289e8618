"""Usage in an SQLite file beside the workers.

One table, one row per hour, key, provider, model and outcome, one UPSERT per request in
autocommit: the write is over when `settle` returns. Write-ahead logging lets readers and the
one writer go on side by side; with `synchronous = NORMAL` nothing waits for the disk but a
checkpoint (https://www.sqlite.org/wal.html), and a killed process loses nothing that it
acknowledged, for the pages are the kernel's by then.

The rule protected here: a connection belongs to the process that opened it. After a fork the
child opens its own and leaves the inherited one alone, unclosed
(https://www.sqlite.org/howtocorrupt.html, section 2.6).
"""

from __future__ import annotations

import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

from wrapper.store.base import DIMENSIONS, Entry, StoreError, Sums
from wrapper.usage import Usage

SCHEMA_VERSION = 1

# How long a writer waits for another one, in seconds. A write takes microseconds.
BUSY_SECONDS = 5.0
# Pages in the log before they are copied into the file, which waits for the disk: 16 MiB.
CHECKPOINT_PAGES = 4000

# SQLite's integers have 64 bits and become floats beyond. A sum of two of these does not.
_MAX = 4611686018427387904  # 2**62, also in _SETTLE
_HIGH = 10**6

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    hour INTEGER NOT NULL,          -- Unix time / 3600
    api_key TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    total INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    seconds REAL NOT NULL,
    cost_pico INTEGER NOT NULL,     -- 1e-12 USD
    unmetered INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    PRIMARY KEY (hour, api_key, provider, model, outcome)
) WITHOUT ROWID, STRICT
"""

_SETTLE = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + 1,
    prompt = prompt + excluded.prompt,
    completion = completion + excluded.completion,
    total = total + excluded.total,
    cached = cached + excluded.cached,
    reasoning = reasoning + excluded.reasoning,
    seconds = seconds + excluded.seconds,
    cost_pico = min(cost_pico + excluded.cost_pico, 4611686018427387904),
    unmetered = unmetered + excluded.unmetered,
    unpriced = unpriced + excluded.unpriced
"""

# The cost is summed in two halves: years of it can be more than 64 bits.
_SUMS = f"""
coalesce(sum(requests), 0), coalesce(sum(prompt), 0), coalesce(sum(completion), 0),
coalesce(sum(total), 0), coalesce(sum(cached), 0), coalesce(sum(reasoning), 0),
coalesce(sum(seconds), 0.0), coalesce(sum(cost_pico / {_HIGH}), 0),
coalesce(sum(cost_pico % {_HIGH}), 0), coalesce(sum(unmetered), 0), coalesce(sum(unpriced), 0)
"""

_COLUMNS = {
    "key": "api_key",
    "provider": "provider",
    "model": "model",
    "outcome": "outcome",
    "day": "hour / 24",
    "hour": "hour",
}

_NONE = Usage(0, 0, 0)
_NOTHING = Sums((), 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0)


class SqliteStore:
    """Opened in each process at its first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = 0
        self._cursor: sqlite3.Cursor | None = None
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
        usage = entry.usage or _NONE
        values = (
            int(entry.at // 3600),
            entry.key,
            entry.provider,
            entry.model,
            entry.outcome,
            usage.prompt,
            usage.completion,
            usage.total,
            usage.cached,
            usage.reasoning,
            usage.seconds,
            min(entry.cost or 0, _MAX),
            entry.unmetered,
            entry.usage is not None and entry.cost is None,
        )
        try:
            self._here().execute(_SETTLE, values)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise self._problem(error) from error

    def totals(
        self,
        since: float | None = None,
        until: float | None = None,
        by: tuple[str, ...] = (),
        key: str | None = None,
    ) -> list[Sums]:
        unknown = [name for name in by if name not in _COLUMNS]
        if unknown:
            raise ValueError(f"cannot group by {unknown[0]!r}; one of {', '.join(DIMENSIONS)}")
        if self._cursor is None and not self._path.exists():
            # A question makes no file, least of all one that belongs to who asks.
            return [] if by else [_NOTHING]
        query, values = _query(since, until, by, key)
        try:
            rows = self._here().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._problem(error) from error
        return [_sums(row, by) for row in rows]

    def close(self) -> None:
        if self._cursor is not None and self._pid == os.getpid():
            self._cursor.connection.close()
        self._cursor = None
        self._pid = 0

    def _here(self) -> sqlite3.Cursor:
        """The cursor of this very process."""
        pid = os.getpid()
        if self._cursor is not None:
            if self._pid == pid:
                return self._cursor
            self._inherited.append(self._cursor)
        self._cursor = self._open()
        self._pid = pid
        return self._cursor

    def _open(self) -> sqlite3.Cursor:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Before SQLite makes it: readable by the owner alone. Its log files take after it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
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
            _turn_on_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                connection.execute("COMMIT")
                version = SCHEMA_VERSION
        except sqlite3.Error as error:
            raise self._problem(error) from error
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self._path}: made by another version of the gateway (schema {version}, "
                f"this one has {SCHEMA_VERSION}); use that version or name another file"
            )

    def _problem(self, error: Exception) -> StoreError:
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            return StoreError(f"{self._path}: {reason}; WRAPPER_STORE must name a writable file")
        text = str(error)
        if "not a database" in text or "malformed" in text:
            return StoreError(f"{self._path}: {text}; {_MOVE_AWAY}")
        if "readonly" in text or "unable to open" in text:
            return StoreError(f"{self._path}: {text}; WRAPPER_STORE must name a writable file")
        return StoreError(f"{self._path}: {text}")


_MOVE_AWAY = "move it away to begin a new one, or name another file in WRAPPER_STORE"


def _turn_on_wal(connection: sqlite3.Connection) -> None:
    """The switch needs the file for itself and does not wait for its turn: so it is tried."""
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _query(
    since: float | None, until: float | None, by: tuple[str, ...], key: str | None
) -> tuple[str, list[int | str]]:
    where: list[str] = []
    values: list[int | str] = []
    if since is not None:
        where.append("hour >= ?")
        values.append(int(since // 3600))
    if until is not None:
        where.append("hour < ?")
        values.append(-int(-until // 3600))
    if key is not None:
        where.append("api_key = ?")
        values.append(key)
    groups = ", ".join(_COLUMNS[name] for name in by)
    # Only the texts of this module are put together here: what came from outside is bound.
    query = ["SELECT", f"{groups}," if by else "", _SUMS, "FROM usage"]
    if where:
        query += ["WHERE", " AND ".join(where)]
    if by:
        query += ["GROUP BY", groups, "ORDER BY", groups]
    return " ".join(query), values


def _sums(row: tuple[int | float | str, ...], by: tuple[str, ...]) -> Sums:
    group = tuple(_label(name, value) for name, value in zip(by, row, strict=False))
    numbers = [value for value in row[len(by) :] if not isinstance(value, str)]
    requests, prompt, completion, total, cached, reasoning = map(int, numbers[:6])
    seconds, high, low, unmetered, unpriced = numbers[6:]
    return Sums(
        group,
        requests,
        prompt,
        completion,
        total,
        cached,
        reasoning,
        float(seconds),
        int(high) * _HIGH + int(low),
        int(unmetered),
        int(unpriced),
    )


def _label(dimension: str, value: int | float | str) -> str:
    if dimension == "day":
        return datetime.fromtimestamp(int(value) * 86400, UTC).strftime("%Y-%m-%d")
    if dimension == "hour":
        return datetime.fromtimestamp(int(value) * 3600, UTC).strftime("%Y-%m-%dT%H:00Z")
    return str(value)
