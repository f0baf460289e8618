"""From the live file into the database: records are booked in groups, many in one transaction.

A record is the row of the ledger that a request adds to, as `schema.values` has it, and what the
caller may ask for later (`store.recent`). Rows of the same hour, key, provider, model and outcome
are added up before they are written, so a busy second is a few writes.

Invariant: `drain` books records and moves the position up to which the database has them, inside of
the caller's one transaction.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from wrapper.store import recent
from wrapper.store.base import Entry, StoreError
from wrapper.store.live import LiveFile
from wrapper.store.reservations import spend
from wrapper.store.schema import MAX_SUM, NUMBERS, SETTLE, cost_of, values

# Records that one transaction books: a worker's event loop stands still for that long.
DRAIN_RECORDS: Final = 1000

# What can never be written.
IMPOSSIBLE: Final = (sqlite3.DataError, sqlite3.IntegrityError, OverflowError, UnicodeEncodeError)

_POSITION = "SELECT position FROM live WHERE id = ?"
_MOVE = "UPDATE live SET position = ? WHERE id = ?"
_GROUP: Final = 6  # columns of the primary key
_IS_COST: Final = [name.startswith("cost_") for name in NUMBERS]

log = logging.getLogger("wrapper")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Drained(NamedTuple):
    """`position`: what is before it is in the database, once it is committed. `more` is not."""

    position: int
    more: bool


def record(entry: Entry) -> bytes:
    """The record of `entry`.

    Raises OverflowError, UnicodeEncodeError or TypeError for what the database would not take.
    """
    row: Any = values(entry)
    "".join(row[1:_GROUP])  # raises where they are no texts
    if max(row[_GROUP:]) > MAX_SUM:
        raise OverflowError("a number of more than 62 bits")
    found = entry.recent
    return _encode((row, None if found is None else (entry.at, entry.key, *found)))


def drain(cursor: sqlite3.Cursor, live: LiveFile) -> Drained:
    """Book what is not booked yet, up to a bounded number of records."""
    if live.is_drained:
        return Drained(0, False)
    row = cursor.execute(_POSITION, (live.id,)).fetchone()
    if row is None:
        raise StoreError(f"{live.path}: is not of this database; restart the gateway")
    found, position = live.read(row[0], DRAIN_RECORDS)
    if position > row[0]:
        records = [_decode(payload) for payload in found]
        try:
            cursor.execute("SAVEPOINT records")
            _book(cursor, records)
            cursor.execute("RELEASE records")
        except IMPOSSIBLE:
            cursor.execute("ROLLBACK TO records")
            cursor.execute("RELEASE records")
            _book_each(cursor, records)
        cursor.execute(_MOVE, (position, live.id))
    return Drained(position, len(found) == DRAIN_RECORDS)


def _book(cursor: sqlite3.Cursor, records: Sequence[Any]) -> None:
    """Add the records to the ledger and to the budgets that they count against."""
    rows: dict[tuple[Any, ...], list[Any]] = {}
    for row, _ in records:
        group, numbers = tuple(row[:_GROUP]), row[_GROUP:]
        known = rows.get(group)
        rows[group] = numbers if known is None else list(map(_added, known, numbers, _IS_COST))
    cursor.executemany(SETTLE, [(*group, *numbers) for group, numbers in rows.items()])
    for (hour, key, provider, *_), numbers in rows.items():
        spend(cursor, key, provider, hour * 3600, cost_of(numbers))
    cursor.executemany(recent.ADD, [used for _, used in records if used is not None])


def _book_each(cursor: sqlite3.Cursor, records: Sequence[Any]) -> None:
    """As `_book`, without those that cannot be written: sums of more than 63 bits."""
    for each in records:
        cursor.execute("SAVEPOINT record")
        try:
            _book(cursor, [each])
        except IMPOSSIBLE as error:
            cursor.execute("ROLLBACK TO record")
            log.error("usage of %s cannot be written: %s", each[0][1], error)
        cursor.execute("RELEASE record")


def _added(known: Any, more: Any, is_cost: bool) -> Any:
    return min(known + more, MAX_SUM) if is_cost else known + more
