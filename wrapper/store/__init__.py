"""Use per key, kept beside the workers: what was settled, and the sums of it."""

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
from wrapper.store.sqlite import SqliteStore

__all__ = [
    "DEFAULT_URL",
    "DIMENSIONS",
    "PICO",
    "Entry",
    "StoreError",
    "Sums",
    "UsageStore",
    "all_time",
    "beside",
    "open_store",
]

DEFAULT_URL = "sqlite:///data/usage.db"


def open_store(url: str = DEFAULT_URL) -> UsageStore:
    """The store that `url` (WRAPPER_STORE) names.

    `sqlite:///data/usage.db` is a path from the working directory, `sqlite:////var/lib/usage.db`
    an absolute one. Nothing is opened before the first use; `check()` is one. Raises StoreError
    for any other form.
    """
    return SqliteStore(_path(url))


def beside(url: str, suffix: str) -> Path:
    """A file beside the store's own, such as `data/usage.db-labels`. Raises StoreError."""
    return Path(f"{_path(url)}{suffix}")


def _path(url: str) -> Path:
    scheme, _, rest = url.partition(":///")
    if scheme != "sqlite" or not rest:
        kind = url.partition(":")[0] or "nothing"
        raise StoreError(f"WRAPPER_STORE: {kind} is not supported; use sqlite:///data/usage.db")
    return Path(rest)
