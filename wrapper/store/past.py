"""The ledger's sums of all hours that are over, kept beside it: a start does not read all of it.

`usage_past` has a row per key, provider, model and outcome for the hours before
`usage_past_until.hour`. Invariant: `usage_past` and the later rows of `usage` together are the sums
of all of `usage`, whatever is written late: a row of an hour that is over is added by a trigger.
"""

from __future__ import annotations

import sqlite3
from typing import Final

# The columns of schema 5; those of a later schema are for its migration to add.
_NUMBERS: Final = (
    *("requests", "prompt", "completion", "total", "cached", "reasoning", "seconds"),
    *("cost_pico", "unmetered", "unpriced", "bounded", "tokens_low", "tokens_high"),
    *("cost_low", "cost_high", "cost_input", "cost_cached", "cost_cache_write"),
    *("cost_output", "cost_other"),
)
_GROUP: Final = "api_key, provider, model, outcome"
_MOST: Final = 4611686018427387904  # 2**62, as in the ledger


def _more(name: str, value: str) -> str:
    return (
        f"{name} = max(0, min({name} + {value}, {_MOST}))"
        if name.startswith("cost_")
        else f"{name} = {name} + {value}"
    )


_ADD = (
    f"ON CONFLICT ({_GROUP}) DO UPDATE SET"
    f" {', '.join(_more(name, f'excluded.{name}') for name in _NUMBERS)}"
)
# A sum of costs in two halves: one of 64 bits that overflows is an error, a product is a float.
_SUMS = ", ".join(
    f"min(sum({name} / 1000000) * 1000000 + sum({name} % 1000000), {_MOST})"
    if name.startswith("cost_")
    else f"sum({name})"
    for name in _NUMBERS
)
_LATE = "new.hour < (SELECT hour FROM usage_past_until)"

TABLES: Final = (
    f"""
    CREATE TABLE usage_past (
        api_key TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        {", ".join(f"{n} {'REAL' if n == 'seconds' else 'INTEGER'} NOT NULL" for n in _NUMBERS)},
        PRIMARY KEY ({_GROUP})
    ) WITHOUT ROWID, STRICT
    """,
    "CREATE TABLE usage_past_until (hour INTEGER NOT NULL) STRICT",
    "INSERT INTO usage_past_until VALUES (0)",
    f"""
    CREATE TRIGGER past_new AFTER INSERT ON usage WHEN {_LATE} BEGIN
        INSERT INTO usage_past ({_GROUP}, {", ".join(_NUMBERS)})
        VALUES (new.api_key, new.provider, new.model, new.outcome,
            {", ".join(f"new.{name}" for name in _NUMBERS)})
        {_ADD};
    END
    """,  # noqa: S608
    f"""
    CREATE TRIGGER past_more AFTER UPDATE ON usage WHEN {_LATE} BEGIN
        UPDATE usage_past SET
            {", ".join(_more(name, f"new.{name} - old.{name}") for name in _NUMBERS)}
        WHERE api_key = new.api_key AND provider = new.provider
            AND model = new.model AND outcome = new.outcome;
    END
    """,  # noqa: S608
)

# The sums as they stand, and the rows that are not in them.
PAST: Final = f"SELECT {_GROUP}, {', '.join(_NUMBERS)} FROM usage_past"  # noqa: S608
LATER: Final = "usage WHERE hour >= (SELECT hour FROM usage_past_until)"

_FOLD = f"""
INSERT INTO usage_past ({_GROUP}, {", ".join(_NUMBERS)})
SELECT {_GROUP}, {_SUMS} FROM usage
WHERE hour >= (SELECT hour FROM usage_past_until) AND hour < ?
GROUP BY {_GROUP} {_ADD}
"""  # noqa: S608


def is_folded(cursor: sqlite3.Cursor, hour: int) -> bool:
    """Whether the hours before `hour` are in the sums."""
    until: int = cursor.execute("SELECT hour FROM usage_past_until").fetchone()[0]
    return until >= hour


def fold(cursor: sqlite3.Cursor, hour: int) -> None:
    """Add the hours before `hour` to the sums. In a transaction of the caller's."""
    if not is_folded(cursor, hour):
        cursor.execute(_FOLD, (hour,))
        cursor.execute("UPDATE usage_past_until SET hour = ?", (hour,))
