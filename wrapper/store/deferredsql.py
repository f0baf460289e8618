"""Deferred work in SQLite: what happens inside one transaction. See `store.deferred`."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Cursor

from wrapper.store.base import Entry
from wrapper.store.deferred import FORGET_BATCH, GAP_SECONDS, KEPT_SECONDS, Deferred, pause
from wrapper.store.limits import MAX_COST, Lease
from wrapper.store.reservations import settle

_REMEMBER = """
INSERT OR IGNORE INTO deferred VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', ?, 0, ?)
"""
_HOLDERS = "UPDATE deferred SET holders = ?, cost = ? WHERE provider = ? AND id = ?"
_LEASE = "SELECT cost, shares FROM lease WHERE worker = ? AND id = ?"
_TAKE_MONEY = "UPDATE lease SET cost = 0 WHERE worker = ? AND id = ?"
_HOLD = "UPDATE subject SET reserved = min(reserved + ?, ?) WHERE name = ? RETURNING id"
_GIVE_BACK = "UPDATE subject SET reserved = max(0, reserved - ?) WHERE id = ?"
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
# What the machine's start has cleared is still held for what is pending.
_HOLDING = "SELECT cost, holders FROM deferred WHERE booked = 0 AND cost > 0"
_HOLD_BY_ID = "UPDATE subject SET reserved = min(reserved + ?, ?) WHERE id = ?"


def remember(cursor: Cursor, deferred: Deferred, lease: Lease | None, due: float) -> None:
    """Keep a record, and let it hold the money that its request's lease holds."""
    cursor.execute(_REMEMBER, (*deferred[:-1], due, deferred.tag))
    if not cursor.rowcount or lease is None or not deferred.cost:
        return
    held = cursor.execute(_LEASE, (lease.worker, lease.id)).fetchone()
    if held is not None:
        cost = held[0]
        holders = [int(share.partition("@")[0]) for share in held[1].split()]
        cursor.execute(_TAKE_MONEY, (lease.worker, lease.id))
    else:  # it was ended by another worker, or before this could be written
        cost = deferred.cost
        found = [cursor.execute(_HOLD, (cost, MAX_COST, s.name)).fetchone() for s in lease.subjects]
        holders = [row[0] for row in found if row]
    text = " ".join(map(str, holders))
    cursor.execute(_HOLDERS, (text, cost, deferred.provider, deferred.id))


def pending(cursor: Cursor, provider: str, ids: Sequence[str]) -> list[Deferred]:
    """Those of `ids` that are not booked yet."""
    query = _PENDING.format(", ".join("?" * len(ids)))
    return [Deferred(*row) for row in cursor.execute(query, (provider, *ids)).fetchall()]


def book(cursor: Cursor, deferred: Deferred, entries: Sequence[Entry]) -> bool:
    """Whether the record was pending: then it is booked, with these rows."""
    found = cursor.execute(_BOOK, (deferred.provider, deferred.id)).fetchone()
    if found is None:
        return False
    for entry in entries:
        settle(cursor, entry, None, 0)
    cost, holders = found
    for ident in holders.split() if cost else ():
        cursor.execute(_GIVE_BACK, (cost, int(ident)))
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


def hold_after_boot(cursor: Cursor) -> None:
    """The money that pending records hold is reserved, where nothing else is."""
    for cost, holders in cursor.execute(_HOLDING).fetchall():
        for ident in holders.split():
            cursor.execute(_HOLD_BY_ID, (cost, MAX_COST, int(ident)))
