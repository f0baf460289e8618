"""The tables in SQL: the ledger with its one write and its one query, and the reservations.

Invariant: only texts of this module are put together to SQL; values from outside are bound.
"""

from __future__ import annotations

from datetime import UTC, datetime

from wrapper.metering import Usage
from wrapper.store.base import Entry, Sums

SCHEMA_VERSION = 3

# SQLite's integers have 64 bits and become floats beyond. A sum of two of these does not.
_MAX = 4611686018427387904  # 2**62, also in SETTLE
_HIGH = 10**6

_LEDGER = """
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

# `spent` follows the ledger, whatever writes to it.
_SPEND = """
CREATE TRIGGER IF NOT EXISTS {name} AFTER {event} ON usage WHEN {cost} <> 0 BEGIN
    UPDATE subject SET spent = max(0, min(spent + {cost}, 4611686018427387904))
    WHERE period <= new.hour * 3600 AND name IN (
        SELECT subject FROM source
        WHERE source IN ('key:' || new.api_key, 'provider:' || new.provider)
    );
END
"""

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
    holders TEXT NOT NULL,          -- subject.id of those whose money is held
    next REAL NOT NULL,             -- Unix time of the gateway's next question
    booked INTEGER NOT NULL,
    PRIMARY KEY (provider, id)
) WITHOUT ROWID, STRICT
"""

_DEFERRED_DUE = "CREATE INDEX IF NOT EXISTS deferred_due ON deferred (next) WHERE booked = 0"
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
    0: (_LEDGER,),
    1: (
        *(_LEDGER_BY_KEY, _SUBJECT, _SOURCE, _LEASE, _WORKER, _BOOT),
        _SPEND.format(name="spend_new", event="INSERT", cost="new.cost_pico"),
        _SPEND.format(
            name="spend_more",
            event="UPDATE OF cost_pico",
            cost="(new.cost_pico - old.cost_pico)",
        ),
    ),
    2: (_DEFERRED, _DEFERRED_DUE, _ASKED, _BATCH_FILE),
}

SETTLE = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests,
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

COLUMNS = {
    "key": "api_key",
    "provider": "provider",
    "model": "model",
    "outcome": "outcome",
    "day": "hour / 24",
    "hour": "hour",
}

_NO_USE = Usage(0, 0, 0)

Values = tuple[int | float | str, ...]


def values(entry: Entry) -> Values:
    """What SETTLE is given for `entry`."""
    usage = entry.usage or _NO_USE
    return (
        int(entry.at // 3600),
        entry.key,
        entry.provider,
        entry.model,
        entry.outcome,
        entry.requests,
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


def label(dimension: str, value: int | float | str) -> str:
    """A value of a dimension as it is in `Sums.group`."""
    if dimension == "day":
        return datetime.fromtimestamp(int(value) * 86400, UTC).strftime("%Y-%m-%d")
    if dimension == "hour":
        return datetime.fromtimestamp(int(value) * 3600, UTC).strftime("%Y-%m-%dT%H:00Z")
    return str(value)
