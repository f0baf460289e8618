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
from wrapper.store.limits import MAX_COST
from wrapper.store.live import LiveFile
from wrapper.store.schema import MAX_SUM, NUMBERS, SETTLE, values

# Records that one transaction books: a worker's event loop stands still for that long.
DRAIN_RECORDS: Final = 1000

# What can never be written.
IMPOSSIBLE: Final = (sqlite3.DataError, sqlite3.IntegrityError, OverflowError, UnicodeEncodeError)

_POSITION = "SELECT position FROM live WHERE id = ?"
_MOVE = "UPDATE live SET position = ? WHERE id = ?"
_GROUP: Final = 6  # columns of the primary key
_COST, _COST_HIGH = (_GROUP + list(NUMBERS).index(name) for name in ("cost_pico", "cost_high"))
_IS_COST: Final = [name.startswith("cost_") for name in NUMBERS]

log = logging.getLogger("wrapper")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Drained(NamedTuple):
    """`position`: what is before it is in the database, once it is committed. `more` is not."""

    position: int
    more: bool


class Record(NamedTuple):
    """What a record says of money: `hour` is Unix time / 3600, `cost` pico-USD."""

    hour: int
    key: str
    provider: str
    cost: int


def record(entry: Entry) -> tuple[bytes, int]:
    """The record of `entry`, and what it adds to budgets in pico-USD.

    Raises OverflowError, UnicodeEncodeError or TypeError for what the database would not take.
    """
    row: Any = values(entry)
    "".join(row[1:_GROUP])  # raises where they are no texts
    if max(row[_GROUP:]) > MAX_SUM:
        raise OverflowError("a number of more than 62 bits")
    found = entry.recent
    payload = _encode((row, None if found is None else (entry.at, entry.key, *found)))
    return payload, min(row[_COST] + row[_COST_HIGH], MAX_COST)


def read_record(payload: bytes) -> Record:
    """What the record says of money."""
    row: Any = _decode(payload)[0]
    hour, key, provider = row[:3]
    return Record(hour, key, provider, min(row[_COST] + row[_COST_HIGH], MAX_COST))


def add(cursor: sqlite3.Cursor, entry: Entry) -> int:
    """Add an entry to the ledger without a record: what it adds to budgets."""
    row: Any = values(entry)
    cursor.execute(SETTLE, row)
    if entry.recent is not None:
        cursor.execute(recent.ADD, (entry.at, entry.key, *entry.recent))
    return int(min(row[_COST] + row[_COST_HIGH], MAX_COST))


def position_of(cursor: sqlite3.Cursor, live: LiveFile) -> int:
    """Up to which position the database has the records of the file."""
    row = cursor.execute(_POSITION, (live.id,)).fetchone()
    if row is None:
        raise StoreError(f"{live.path}: is not of this database; restart the gateway")
    return int(row[0])


def drain(cursor: sqlite3.Cursor, live: LiveFile) -> Drained:
    """Book what is not booked yet, up to a bounded number of records."""
    if live.is_drained:
        return Drained(0, False)
    booked = position_of(cursor, live)
    found, position = live.read(booked, DRAIN_RECORDS)
    if position > booked:
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
    """Add the records to the ledger."""
    rows: dict[tuple[Any, ...], list[list[Any]]] = {}
    for row, _ in records:
        rows.setdefault(tuple(row[:_GROUP]), []).append(row[_GROUP:])
    cursor.executemany(SETTLE, [(*group, *_summed(of)) for group, of in rows.items()])
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


def _summed(rows: Sequence[Sequence[Any]]) -> list[Any]:
    sums = map(sum, zip(*rows, strict=True))
    both = zip(sums, _IS_COST, strict=True)
    return [min(number, MAX_SUM) if is_cost else number for number, is_cost in both]
