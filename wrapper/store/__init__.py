"""The store: the ledger of what each key used and cost, and the reservations of limits."""

from __future__ import annotations

from pathlib import Path

from wrapper.store.base import (
    DIMENSIONS,
    PICO,
    Entry,
    StoreError,
    Sums,
    UsageStore,
    all_time,
)
from wrapper.store.limits import (
    Demand,
    Lease,
    Limits,
    Reason,
    Refused,
    Standing,
    Subject,
    Violation,
)
from wrapper.store.sqlite import SqliteStore

__all__ = [
    "DEFAULT_URL",
    "DIMENSIONS",
    "PICO",
    "Demand",
    "Entry",
    "Lease",
    "Limits",
    "Reason",
    "Refused",
    "Standing",
    "StoreError",
    "Subject",
    "Sums",
    "UsageStore",
    "Violation",
    "all_time",
    "open_store",
]

DEFAULT_URL = "sqlite:///data/usage.db"


def open_store(url: str = DEFAULT_URL) -> UsageStore:
    """The store that `url` (WRAPPER_STORE) names.

    `sqlite:///data/usage.db` is a path from the working directory, `sqlite:////var/lib/usage.db`
    an absolute one. Nothing is opened before the first use; `check()` is one. Raises StoreError
    for any other form.
    """
    scheme, _, rest = url.partition(":///")
    if scheme != "sqlite" or not rest:
        kind = url.partition(":")[0] or "nothing"
        raise StoreError(f"WRAPPER_STORE: {kind} is not supported; use sqlite:///data/usage.db")
    return SqliteStore(Path(rest))
