"""The store: the ledger of what each key used and cost, and the reservations of limits."""

from __future__ import annotations

from pathlib import Path

from wrapper.config.storeurl import is_redis
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
    an absolute one; `config.storeurl` lists the forms of Redis. Nothing is opened or connected
    before the first use; `check()` is one. Raises StoreError for any other form.
    """
    scheme, _, rest = url.partition(":///")
    if scheme == "sqlite" and rest:
        return SqliteStore(Path(rest))
    if is_redis(url):
        from wrapper.store.redis import RedisStore  # redis-py costs 0.1 s to import

        return RedisStore(url)
    raise StoreError(
        f"WRAPPER_STORE: {url.partition(':')[0] or 'nothing'} is not supported;"
        " use sqlite:///data/usage.db or redis://host:6379/0"
    )
