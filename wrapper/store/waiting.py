"""Settlements that could not be written yet, in memory and bounded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from wrapper.store.base import StoreError

# How long nothing is tried after a failure, in seconds, and how many may wait meanwhile.
RETRY_SECONDS = 5.0
MAX_WAITING = 10_000

T = TypeVar("T")


class Waiting(Generic[T]):
    """Oldest first. Safe for greenlets that yield while they write."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._items: deque[T] = deque()
        self._retry_at = 0.0
        self._lost = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, item: T) -> T | None:
        """Keep `item`. Where there are too many the oldest one is lost: that one."""
        self._items.append(item)
        if len(self._items) <= MAX_WAITING:
            return None
        self._lost += 1
        return self._items.popleft()

    def failed(self) -> None:
        """Note that writing failed: nothing is tried for a while."""
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def write(self, write: Callable[[T], None], *, now: bool = False) -> None:
        """Write what waits. Raises StoreError while something still does.

        `write` raises `Impossible` for what can never be written: it does not hold up the rest,
        and is reported last. `now`: also shortly after a failure.
        """
        if not now and time.monotonic() < self._retry_at:
            lost = f", {self._lost} are lost" if self._lost else ""
            waiting = len(self._items)
            raise StoreError(f"{self._where}: {waiting} requests wait to be written{lost}")
        impossible: Impossible | None = None
        while self._items:
            item = self._items.popleft()
            try:
                write(item)
            except Impossible as error:
                impossible = error
            except BaseException:
                self._items.appendleft(item)
                self.failed()
                raise
        if impossible is not None:
            raise impossible


class Impossible(StoreError):
    """What can never be written, though the store itself is well."""
