"""The tables in SQL: the ledger with its one write and its one query, and deferred work.

Invariant: only texts of this module are put together to SQL; values from outside are bound.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from operator import add
from typing import Any

from wrapper.metering import Usage
from wrapper.store import live, past, recent
from wrapper.store.base import ALL_TIME_BY, Entry, Sums

SCHEMA_VERSION = 11

# SQLite's integers have 64 bits and become floats beyond. A sum of two of these does not.
MAX_SUM = 4611686018427387904  # 2**62
_HIGH = 10**6

_LEDGER_1 = """
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

# With the tag of a request, the parts of the cost, and what is known between bounds alone.
_LEDGER = """
CREATE TABLE usage_new (
    hour INTEGER NOT NULL,          -- Unix time / 3600
    api_key TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    tag TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt INTEGER NOT NULL,
    completion INTEGER NOT NULL,
    total INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    seconds REAL NOT NULL,
    cost_pico INTEGER NOT NULL,     -- 1e-12 USD, and so are those below
    unmetered INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    bounded INTEGER NOT NULL,
    tokens_low INTEGER NOT NULL,
    tokens_high INTEGER NOT NULL,
    cost_low INTEGER NOT NULL,
    cost_high INTEGER NOT NULL,
    cost_input INTEGER NOT NULL,
    cost_cached INTEGER NOT NULL,
    cost_cache_write INTEGER NOT NULL,
    cost_output INTEGER NOT NULL,
    cost_other INTEGER NOT NULL,    -- of units beside tokens
    PRIMARY KEY (hour, api_key, provider, model, outcome, tag)
) WITHOUT ROWID, STRICT
"""
_MOVE = """
INSERT INTO usage_new
SELECT hour, api_key, provider, model, outcome, '', requests, prompt, completion, total, cached,
    reasoning, seconds, cost_pico, unmetered, unpriced, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
FROM usage
"""

# Not in the index: what SETTLE changes. An index costs a write only with a new row.
_LEDGER_BY_KEY = "CREATE INDEX IF NOT EXISTS usage_by_key ON usage (api_key, hour)"

_SUBJECT = """
CREATE TABLE IF NOT EXISTS subject (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,      -- key:NAME, group:NAME, provider:NAME
    second INTEGER NOT NULL,        -- the newest bucket of `counts`, by the monotonic clock
    counts BLOB NOT NULL,           -- store.window
    concurrent INTEGER NOT NULL,    -- leases
    reserved INTEGER NOT NULL,      -- 1e-12 USD in leases
    spent INTEGER NOT NULL,         -- 1e-12 USD in the ledger since `period`
    period INTEGER,                 -- Unix time; NULL: `spent` is not known
    sources TEXT NOT NULL           -- fingerprint of what `spent` is summed from
) STRICT
"""

_SOURCE = """
CREATE TABLE IF NOT EXISTS source (  -- whose cost counts against which budget
    source TEXT NOT NULL,           -- key:NAME, provider:NAME
    subject TEXT NOT NULL,
    PRIMARY KEY (source, subject)
) WITHOUT ROWID, STRICT
"""

_LEASE = """
CREATE TABLE IF NOT EXISTS lease (
    worker TEXT NOT NULL,
    id INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    shares TEXT NOT NULL,           -- subject.id@second, one for each subject
    PRIMARY KEY (worker, id)
) WITHOUT ROWID, STRICT
"""

_WORKER = """
CREATE TABLE IF NOT EXISTS worker (
    id TEXT PRIMARY KEY,
    beat REAL NOT NULL              -- the last heartbeat, by the monotonic clock
) WITHOUT ROWID, STRICT
"""

_BOOT = "CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL) STRICT"

_DEFERRED = """
CREATE TABLE IF NOT EXISTS deferred (  -- store.deferred
    provider TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    api_key TEXT NOT NULL,
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    created REAL NOT NULL,          -- Unix time
    cost INTEGER,                   -- 1e-12 USD that are held; NULL: the key has no budget
    asks INTEGER NOT NULL,
    holders TEXT NOT NULL,          -- JSON: the names of those whose money is held
    next REAL NOT NULL,             -- Unix time of the gateway's next question
    booked INTEGER NOT NULL,
    PRIMARY KEY (provider, id)
) WITHOUT ROWID, STRICT
"""

_HOLDERS = """
UPDATE deferred SET holders = (
    SELECT json_group_array(name) FROM subject
    WHERE instr(' ' || deferred.holders || ' ', ' ' || subject.id || ' ')
)
"""
_DEFERRED_DUE = "CREATE INDEX IF NOT EXISTS deferred_due ON deferred (next) WHERE booked = 0"
_DEFERRED_BOOKED = "CREATE INDEX deferred_booked ON deferred (created) WHERE booked = 1"
_ASKED = "CREATE TABLE IF NOT EXISTS asked (at REAL NOT NULL) STRICT"

_BATCH_FILE = """
CREATE TABLE IF NOT EXISTS batch_file (
    provider TEXT NOT NULL,
    id TEXT NOT NULL,
    created REAL NOT NULL,          -- Unix time
    content TEXT NOT NULL,          -- what its requests name and may use
    PRIMARY KEY (provider, id)
) WITHOUT ROWID, STRICT
"""

# What makes a file of the version before one of this version.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    0: (_LEDGER_1,),
    1: (_LEDGER_BY_KEY, _SUBJECT, _SOURCE, _LEASE, _WORKER, _BOOT),
    2: (_DEFERRED, _DEFERRED_DUE, _ASKED, _BATCH_FILE),
    3: (
        *(_LEDGER, _MOVE, "DROP TABLE usage", "ALTER TABLE usage_new RENAME TO usage"),
        _LEDGER_BY_KEY,
    ),
    4: past.TABLES,
    # Triggers of earlier versions took longer than all else of a settlement.
    5: ("DROP TRIGGER IF EXISTS spend_new", "DROP TRIGGER IF EXISTS spend_more"),
    6: (recent.TABLE,),
    7: ("ALTER TABLE deferred ADD COLUMN tag TEXT NOT NULL DEFAULT ''",),
    8: (_DEFERRED_BOOKED,),
    9: (live.TABLE,),
    # Reservations are in the live file from then on; deferred work names whose money it holds.
    10: (
        _HOLDERS,
        *(f"DROP TABLE {name}" for name in ("subject", "source", "lease", "worker", "boot")),
    ),
}

# The sums of a row, in the order of `Sums`. In a shared store each has a letter.
NUMBERS = {
    "requests": "r",
    "prompt": "p",
    "completion": "c",
    "total": "t",
    "cached": "a",
    "reasoning": "g",
    "seconds": "s",
    "cost_pico": "$",
    "unmetered": "n",
    "unpriced": "u",
    "bounded": "b",
    "tokens_low": "l",
    "tokens_high": "h",
    "cost_low": "L",
    "cost_high": "H",
    "cost_input": "i",
    "cost_cached": "d",
    "cost_cache_write": "w",
    "cost_output": "o",
    "cost_other": "x",
}
_COSTS = frozenset(name for name in NUMBERS if name.startswith("cost_"))


def _raised(name: str) -> str:
    added = f"{name} + excluded.{name}"
    return f"{name} = min({added}, {MAX_SUM})" if name in _COSTS else f"{name} = {added}"


_PLACES = ", ".join("?" * (6 + len(NUMBERS)))
SETTLE = (
    f"INSERT INTO usage VALUES ({_PLACES})"  # noqa: S608
    f" ON CONFLICT DO UPDATE SET {', '.join(map(_raised, NUMBERS))}"
)


def _summed(name: str) -> str:
    """Costs are summed in two halves: years of them can be more than 64 bits."""
    if name in _COSTS:
        high, low = f"sum({name} / {_HIGH})", f"sum({name} % {_HIGH})"
        return f"coalesce({high}, 0), coalesce({low}, 0)"
    return f"coalesce(sum({name}), {0.0 if name == 'seconds' else 0})"


_SUMS = ", ".join(map(_summed, NUMBERS))


def _positions() -> Iterator[tuple[int, int]]:
    at = 0
    for name in NUMBERS:
        yield at, _HIGH if name in _COSTS else 0
        at += 2 if name in _COSTS else 1


_AT = tuple(_positions())  # where the sums are in a row, and by what the first half is multiplied

COLUMNS = {
    "key": "api_key",
    "provider": "provider",
    "model": "model",
    "outcome": "outcome",
    "tag": "tag",
    "day": "hour / 24",
    "hour": "hour",
}

_NO_USE = Usage(0, 0, 0)

Values = tuple[int | float | str, ...]


def values(entry: Entry) -> Values:
    """What SETTLE is given for `entry`."""
    usage, bounds = entry.usage or _NO_USE, entry.bounds
    cost = entry.cost if bounds is None else bounds.cost_high
    tokens = entry.cost_by_kind if sum(entry.cost_by_kind) <= MAX_SUM else (0, 0, 0, 0)
    return (
        int(entry.at // 3600),
        entry.key,
        entry.provider,
        entry.model,
        entry.outcome,
        entry.tag,
        entry.requests,
        usage.prompt,
        usage.completion,
        usage.total,
        usage.cached,
        usage.reasoning,
        usage.seconds,
        min(entry.cost or 0, MAX_SUM),
        entry.unmetered,
        (entry.usage is not None or bounds is not None) and cost is None,
        bounds is not None,
        *((bounds.tokens_low, bounds.tokens_high) if bounds else (0, 0)),
        *((min(bounds.cost_low or 0, MAX_SUM), min(cost or 0, MAX_SUM)) if bounds else (0, 0)),
        *tokens,
        max(0, min(entry.cost or 0, MAX_SUM) - sum(tokens)),
    )


def all_time(cursor: sqlite3.Cursor) -> list[Sums]:
    """The sums of the whole ledger by `ALL_TIME_BY`, in a transaction of the caller's.

    Those of the hours before are read as they stand: to add them up once more to the later rows, in
    SQL, would take three times as long.
    """
    by = len(ALL_TIME_BY)
    found = {row[:by]: Sums(row[:by], *row[by:]) for row in cursor.execute(past.PAST)}
    groups = ", ".join(COLUMNS[name] for name in ALL_TIME_BY)
    for row in cursor.execute(f"SELECT {groups}, {_SUMS} FROM {past.LATER} GROUP BY {groups}"):  # noqa: S608
        later = sums(row, ALL_TIME_BY)
        before = found.get(later.group)
        if before is not None:
            later = Sums(later.group, *map(add, before[1:], later[1:]))
        found[later.group] = later
    return [found[group] for group in sorted(found)]


def query(
    since: float | None, until: float | None, by: tuple[str, ...], key: str | None
) -> tuple[str, list[int | str]]:
    """The question for `totals`, and the values bound in it."""
    where: list[str] = []
    bound: list[int | str] = []
    if since is not None:
        where.append("hour >= ?")
        bound.append(int(since // 3600))
    if until is not None:
        where.append("hour < ?")
        bound.append(-int(-until // 3600))
    if key is not None:
        where.append("api_key = ?")
        bound.append(key)
    groups = ", ".join(COLUMNS[name] for name in by)
    parts = ["SELECT", f"{groups}," if by else "", _SUMS, "FROM usage"]
    if where:
        parts += ["WHERE", " AND ".join(where)]
    if by:
        parts += ["GROUP BY", groups, "ORDER BY", groups]
    return " ".join(parts), bound


def sums(row: tuple[int | float | str, ...], by: tuple[str, ...]) -> Sums:
    """One row of the answer to `query`."""
    group = tuple(label(name, value) for name, value in zip(by, row, strict=False))
    numbers: Any = row[len(by) :]
    return Sums(
        group, *[numbers[at] * high + numbers[at + 1] if high else numbers[at] for at, high in _AT]
    )


def label(dimension: str, value: int | float | str) -> str:
    """A value of a dimension as it is in `Sums.group`."""
    if dimension == "day":
        return datetime.fromtimestamp(int(value) * 86400, UTC).strftime("%Y-%m-%d")
    if dimension == "hour":
        return datetime.fromtimestamp(int(value) * 3600, UTC).strftime("%Y-%m-%dT%H:00Z")
    return "-" if dimension == "tag" and not value else str(value)
