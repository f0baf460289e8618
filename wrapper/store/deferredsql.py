"""Deferred work in SQLite: what happens inside one transaction. See `store.deferred`."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

import msgspec

from wrapper.store.base import Entry
from wrapper.store.deferred import FORGET_BATCH, GAP_SECONDS, KEPT_SECONDS, Deferred, pause
from wrapper.store.drain import add
from wrapper.store.limits import Lease
from wrapper.store.reservations import Reservations

_REMEMBER = """
INSERT OR IGNORE INTO deferred VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '[]', ?, 0, ?)
"""
_HOLDERS = "UPDATE deferred SET holders = ?, cost = ? WHERE provider = ? AND id = ?"
_PENDING = """
SELECT provider, id, kind, api_key, model, target, created, cost, asks, tag FROM deferred
WHERE booked = 0 AND provider = ? AND id IN ({})
"""
_BOOK = """
UPDATE deferred SET booked = 1 WHERE provider = ? AND id = ? AND booked = 0
RETURNING cost, holders
"""
_NEXT = "SELECT 1 FROM deferred WHERE booked = 0 AND next <= ? LIMIT 1"
_DUE = """
SELECT provider, id, kind, api_key, model, target, created, cost, asks, tag FROM deferred
WHERE booked = 0 AND next <= ? ORDER BY next LIMIT 1
"""
_ASKED = "UPDATE deferred SET asks = asks + 1, next = ? WHERE provider = ? AND id = ?"
_HASTEN = "UPDATE deferred SET next = ? WHERE provider = ? AND id = ? AND booked = 0"
_FORGET = """
DELETE FROM deferred WHERE (provider, id) IN (
    SELECT provider, id FROM deferred WHERE booked = 1 AND created < ? LIMIT ?
)
"""
_FORGET_FILES = """
DELETE FROM batch_file WHERE (provider, id) IN (
    SELECT provider, id FROM batch_file WHERE created < ? LIMIT ?
)
"""


def remember(
    cursor: Cursor,
    reservations: Reservations,
    deferred: Deferred,
    lease: Lease | None,
    due: float,
) -> bool:
    """Keep a record, and let it hold the money that its request's lease holds: whether it does."""
    cursor.execute(_REMEMBER, (*deferred[:-1], due, deferred.tag))
    if not cursor.rowcount or lease is None or not deferred.cost:
        return False
    held = reservations.demand_of(lease)
    # Else it was ended by another worker, or before this could be written.
    cost = deferred.cost if held is None else held.cost
    names = [subject.name for subject in lease.subjects]
    text = msgspec.json.encode(names).decode()
    cursor.execute(_HOLDERS, (text, cost, deferred.provider, deferred.id))
    reservations.forget_money(names, ())
    return True


def pending(cursor: Cursor, provider: str, ids: Sequence[str]) -> list[Deferred]:
    """Those of `ids` that are not booked yet."""
    query = _PENDING.format(", ".join("?" * len(ids)))
    return [Deferred(*row) for row in cursor.execute(query, (provider, *ids)).fetchall()]


def book(
    cursor: Cursor, reservations: Reservations, deferred: Deferred, entries: Sequence[Entry]
) -> bool:
    """Whether the record was pending: then it is booked, with these rows."""
    found = cursor.execute(_BOOK, (deferred.provider, deferred.id)).fetchone()
    if found is None:
        return False
    cost, holders = found
    spent = [(entry.key, entry.provider) for entry in entries if add(cursor, entry)]
    reservations.forget_money(msgspec.json.decode(holders) if cost else (), spent)
    return True


def is_due(cursor: Cursor, now: float) -> bool:
    """Whether `take` may find one."""
    return cursor.execute(_NEXT, (now,)).fetchone() is not None


def take(cursor: Cursor, now: float, first: float) -> Deferred | None:
    """The record to ask about now, if there is one and it is time to ask at all."""
    asked = cursor.execute("SELECT at FROM asked").fetchone()
    if asked is not None and 0 <= now - asked[0] < GAP_SECONDS:
        return None
    row = cursor.execute(_DUE, (now,)).fetchone()
    if row is None:
        return None
    found = Deferred(*row)
    cursor.execute("DELETE FROM asked")
    cursor.execute("INSERT INTO asked VALUES (?)", (now,))
    later = now + pause(first, found.asks + 1)
    cursor.execute(_ASKED, (later, found.provider, found.id))
    return found


def hasten(cursor: Cursor, deferred: Deferred, due: float) -> None:
    """Ask about it next."""
    cursor.execute(_HASTEN, (due, deferred.provider, deferred.id))


def forget(cursor: Cursor, now: float) -> int:
    """Forget what was booked long ago, and files of long ago, up to a bounded number: how many."""
    before = (now - KEPT_SECONDS, FORGET_BATCH)
    count = 0
    for statement in (_FORGET, _FORGET_FILES):
        cursor.execute(statement, before)
        count += cursor.rowcount
    return count
