"""The row of a subject in SQLite: what it uses, what a demand exceeds.

`spent` is a running number beside the ledger: each settlement adds to it what the ledger gains, and
it is summed anew from the ledger where there is none yet, the budget's period has changed or a
group has other members.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from sqlite3 import Cursor
from typing import Any, NamedTuple

from wrapper.store.limits import (
    MAX_COST,
    Demand,
    Standing,
    Subject,
    Violation,
    budget_reset,
    violation,
)
from wrapper.store.spans import period
from wrapper.store.window import EMPTY, Window

_ROWS = """
SELECT name, id, second, counts, concurrent, reserved, spent, period, sources
FROM subject WHERE name IN ({})
"""
_ROWS_OF = tuple(_ROWS.format(", ".join("?" * count)) for count in range(5))
_CREATE = "INSERT INTO subject VALUES (NULL, ?, ?, ?, 0, 0, 0, NULL, '') RETURNING id"
_FRESH = (0, EMPTY, 0, 0, 0, None, "")
_HOLD = """
UPDATE subject SET second = ?, counts = ?, concurrent = concurrent + 1, reserved = reserved + ?
WHERE id = ?
"""
_SPENT = "UPDATE subject SET spent = ?, period = ?, sources = ? WHERE id = ?"

# Summed in two halves: years of cost can be more than 64 bits.
_COST = """
SELECT total(cost_pico / 1000000 + cost_high / 1000000),
    total(cost_pico % 1000000 + cost_high % 1000000)
FROM usage WHERE hour >= ?"""
_NAMES_PER_QUERY = 500
# Above this many names a scan of the period is faster than the index; `+` stands for that.
_NAMES_BY_INDEX = 10


class Moment(NamedTuple):
    """Now: seconds by the monotonic clock, which windows and leases go by, and Unix time."""

    clock: float
    wall: float


class Account:
    """The row of `subject`, advanced to the current second."""

    __slots__ = (
        *("_moment", "_window", "concurrent", "ident", "period", "requests", "reserved"),
        *("sources", "spent", "subject", "tokens"),
    )

    def __init__(self, subject: Subject, row: Sequence[Any], moment: Moment) -> None:
        self.subject = subject
        self._moment = moment
        self.ident: int
        self.concurrent: int
        self.reserved: int
        self.spent: int
        self.period: int | None
        self.sources: str
        self.ident, newest, counts, self.concurrent, self.reserved, *rest = row
        self.spent, self.period, self.sources = rest
        self._window = window = Window(newest, counts)
        second = int(moment.clock)
        if second != newest:
            window.advance(second)
        self.requests = window.requests
        self.tokens = window.tokens

    def has_room(self, demand: Demand) -> bool:
        """Whether `demand` exceeds no limit."""
        limits = self.subject.limits
        limit = limits.requests_per_minute
        if limit is not None and self.requests >= limit:
            return False
        limit = limits.tokens_per_minute
        if limit is not None and self.tokens + demand.tokens > limit:
            return False
        limit = limits.max_concurrent
        if limit is not None and self.concurrent >= limit:
            return False
        limit = limits.budget
        return limit is None or self.spent + self.reserved + demand.cost <= limit

    def violations(self, demand: Demand) -> Iterator[Violation]:
        """Each limit that `demand` exceeds."""
        subject, limits = self.subject, self.subject.limits
        limit = limits.requests_per_minute
        if limit is not None and (over := self.requests + 1 - limit) > 0:
            wait = self._window.frees_requests(over) - self._moment.clock
            yield violation(subject, "requests", self.requests, wait, demand)
        limit = limits.tokens_per_minute
        if limit is not None and (over := self.tokens + demand.tokens - limit) > 0:
            wait = self._window.frees_tokens(over) - self._moment.clock
            yield violation(subject, "tokens", self.tokens, wait, demand)
        limit = limits.max_concurrent
        if limit is not None and self.concurrent >= limit:
            yield violation(subject, "concurrency", self.concurrent, 1, demand)
        limit = limits.budget
        used = self.spent + self.reserved
        if limit is not None and used + demand.cost > limit:
            wait_ = budget_reset(limits, self._moment.wall)
            yield violation(subject, "budget", used, wait_, demand)

    def hold(self, cursor: Cursor, demand: Demand) -> None:
        """Count one lease more, here and in the row."""
        window = self._window
        window.count(demand.tokens)
        self.requests += 1
        self.tokens += demand.tokens
        self.concurrent += 1
        self.reserved += demand.cost
        cursor.execute(_HOLD, (window.second, window.data, demand.cost, self.ident))

    def standing(self) -> Standing:
        """What is used now."""
        requests_empty, tokens_empty = self._window.empties()
        limits = self.subject.limits
        return Standing(
            self.subject,
            self.requests,
            self.tokens,
            self.concurrent,
            self.spent if limits.budget is not None else 0,
            self.reserved,
            max(0.0, requests_empty - self._moment.clock),
            max(0.0, tokens_empty - self._moment.clock),
            budget_reset(limits, self._moment.wall),
        )

    def follow_ledger(self, cursor: Cursor) -> bool:
        """Sum `spent` anew where it is of another period or other sources: whether it was."""
        limits = self.subject.limits
        if limits.budget is None:
            return False
        start, _ = period(limits.budget_period, self._moment.wall)
        if self.period == start and self.sources == self.subject.fingerprint:
            return False
        self.spent = _cost_since(cursor, self.subject.sources, start)
        self.period = start
        self.sources = self.subject.fingerprint
        return True


def accounts_of(cursor: Cursor, subjects: Sequence[Subject], moment: Moment) -> list[Account]:
    """The accounts of a few subjects, in that order; their rows exist and are up to date."""
    names = [subject.name for subject in subjects]
    rows = {row[0]: row[1:] for row in cursor.execute(_ROWS_OF[len(names)], names).fetchall()}
    found = []
    for subject in subjects:
        row = rows.get(subject.name)
        if row is None:
            new = (subject.name, int(moment.clock), EMPTY)
            row = (*cursor.execute(_CREATE, new).fetchone(), *_FRESH)
        account = Account(subject, row, moment)
        known = account.sources
        if account.follow_ledger(cursor):
            if known != account.sources:
                _count_sources(cursor, subject)
            spent = (account.spent, account.period, account.sources, account.ident)
            cursor.execute(_SPENT, spent)
        found.append(account)
    return found


def standings_of(cursor: Cursor, subjects: Sequence[Subject], moment: Moment) -> list[Standing]:
    """The standings of any number of subjects. Writes nothing."""
    rows: dict[str, Sequence[Any]] = {}
    for names in _batches([subject.name for subject in subjects]):
        query = _ROWS.format(", ".join("?" * len(names)))
        rows.update((row[0], row[1:]) for row in cursor.execute(query, names))
    found = []
    for subject in subjects:
        account = Account(subject, rows.get(subject.name, (0, *_FRESH)), moment)
        account.follow_ledger(cursor)
        found.append(account.standing())
    return found


def _count_sources(cursor: Cursor, subject: Subject) -> None:
    """From now on settlements add the cost of these sources to this budget."""
    cursor.execute("DELETE FROM source WHERE subject = ?", (subject.name,))
    rows = [(source, subject.name) for source in subject.sources]
    cursor.executemany("INSERT OR IGNORE INTO source VALUES (?, ?)", rows)


def _cost_since(cursor: Cursor, sources: Sequence[str], start: int) -> int:
    """What the ledger says that `sources` cost since `start`."""
    total = 0
    for kind, column in (("key:", "api_key"), ("provider:", "provider")):
        names = [name.removeprefix(kind) for name in sources if name.startswith(kind)]
        for some in _batches(names):
            if len(some) > _NAMES_BY_INDEX:
                column = f"+{column}"
            query = f"{_COST} AND {column} IN ({', '.join('?' * len(some))})"
            high, low = cursor.execute(query, (start // 3600, *some)).fetchone()
            total += int(high) * 10**6 + int(low)
    return min(total, MAX_COST)


def _batches(names: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(names), _NAMES_PER_QUERY):
        yield names[at : at + _NAMES_PER_QUERY]
