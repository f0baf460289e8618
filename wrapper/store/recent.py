"""What each of the last requests has used, for the caller who asks by the request's id.

The ledger has sums and no requests. This table beside it has a row per request, written in the same
step as the ledger's, in the order in which they ended: so a write costs the same whatever the table
has, and a request is looked for from the newest. A request that is written twice, as deferred work
is, is the newest one.

Invariant: it is bounded by age and by rows, and a request is found with the name of its key only.
"""

from __future__ import annotations

from sqlite3 import Cursor
from typing import Final

KEPT_SECONDS: Final = 7 * 86_400
KEPT_ROWS: Final = 100_000
TRIM_SECONDS: Final = 60.0  # between two looks for what is too old
TRIM_BATCH: Final = 1000  # rows that one transaction forgets

TABLE: Final = """
CREATE TABLE IF NOT EXISTS recent (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,               -- Unix time
    api_key TEXT NOT NULL,
    request TEXT NOT NULL,          -- as the caller knows it
    used TEXT NOT NULL              -- JSON
) STRICT
"""
ADD: Final = "INSERT INTO recent (at, api_key, request, used) VALUES (?, ?, ?, ?)"
_FIND = """
SELECT used FROM recent WHERE request = ? AND api_key = ? AND at >= ? ORDER BY id DESC LIMIT 1
"""
_TRIM = """
DELETE FROM recent WHERE id < (SELECT min(id) FROM recent) + ?
AND (at < ? OR id <= (SELECT max(id) FROM recent) - ?)
"""


def find(cursor: Cursor, key: str, request_id: str, now: float) -> str | None:
    """What the request of this key has used, as JSON; None where it is not known."""
    row = cursor.execute(_FIND, (request_id, key, now - KEPT_SECONDS)).fetchone()
    return None if row is None else row[0]


def trim(cursor: Cursor, now: float) -> int:
    """Forget rows that are too old or too many, up to a bounded number: how many."""
    return cursor.execute(_TRIM, (TRIM_BATCH, now - KEPT_SECONDS, KEPT_ROWS)).rowcount
