"""The store: the ledger of what each key used and cost, and the reservations of limits."""

from __future__ import annotations

from pathlib import Path

from wrapper.config.storeurl import is_redis
from wrapper.metering import PICO
from wrapper.store import sqlitefile
from wrapper.store.base import (
    DIMENSIONS,
    Entry,
    StoreError,
    Sums,
    UsageStore,
)
from wrapper.store.deferred import Deferred
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
from wrapper.store.objects import Table, TableFile
from wrapper.store.sqlite import SqliteStore

__all__ = [
    "DIMENSIONS",
    "PICO",
    "Deferred",
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
    "beside",
    "examine",
    "is_shared",
    "object_table",
    "open_existing",
    "open_store",
]


def open_store(url: str) -> UsageStore:
    """The store that `url` (WRAPPER_STORE) names.

    `sqlite:///data/usage.db` is a path from the working directory, `sqlite:////var/lib/usage.db`
    an absolute one; `config.storeurl` lists the forms of Redis. Nothing is opened or connected
    before the first use; `check()` is one. Raises StoreError for any other form.
    """
    path = _sqlite_path(url)
    if path is not None:
        return SqliteStore(path)
    if is_redis(url):
        from wrapper.store.redis import RedisStore  # redis-py costs 0.1 s to import

        return RedisStore(url)
    raise StoreError(
        f"WRAPPER_STORE: {url.partition(':')[0] or 'nothing'} is not supported;"
        " use sqlite:///data/usage.db or redis://host:6379/0"
    )


def open_existing(url: str) -> UsageStore:
    """As `open_store`, to read what is there. Raises StoreError where there is no file: a wrong
    name must not look as if nothing had been used.
    """
    path = _sqlite_path(url)
    if path is not None:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(f"there is no usage table at {path} (WRAPPER_STORE)") from None
        except OSError as error:
            raise sqlitefile.problem(path, error) from error
    return open_store(url)


def examine(url: str) -> None:
    """Raises StoreError where a start with this store would be refused, as far as that is seen
    without making or changing a file.
    """
    path = _sqlite_path(url)
    if path is not None:
        sqlitefile.examine(path)
        return
    store = open_store(url)
    try:
        store.check()
    finally:
        store.close()


def object_table(url: str, store: UsageStore) -> Table | None:
    """Where the places of stored objects are kept: in Redis, or in a file beside the store."""
    if is_redis(url):
        return store if isinstance(store, Table) else None
    path = beside(url, "-objects")
    return None if path is None else TableFile(path)


def is_shared(url: str) -> bool:
    """Whether gateways on several hosts may share the store that `url` names."""
    return is_redis(url)


def beside(url: str, suffix: str) -> Path | None:
    """A file beside the store's own, such as `data/usage.db-labels`; None where it is no file."""
    path = _sqlite_path(url)
    return None if path is None else Path(f"{path}{suffix}")


def _sqlite_path(url: str) -> Path | None:
    scheme, _, rest = url.partition(":///")
    return Path(rest) if scheme == "sqlite" and rest else None
