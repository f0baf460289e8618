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
    """Oldest first. Safe for greenlets that yield while they write.

    Where there are too many, `shed` is asked what has to stay of the oldest one, or None. (The
    end of a lease stays: there are no more of those than requests in flight.)
    """

    def __init__(self, where: str, shed: Callable[[T], T | None]) -> None:
        self._where = where
        self._shed = shed
        self.has_items = False
        self._shed_items: deque[T] = deque()
        self._items: deque[T] = deque()
        self._retry_at = 0.0
        self._lost = 0

    def __len__(self) -> int:
        return len(self._shed_items) + len(self._items)

    def add(self, item: T) -> None:
        """Keep `item` until it is written."""
        self._items.append(item)
        self.has_items = True
        if len(self._items) > MAX_WAITING:
            self._lost += 1
            rest = self._shed(self._items.popleft())
            if rest is not None:
                self._shed_items.append(rest)

    @property
    def rests(self) -> bool:
        """Whether writing has failed so lately that nothing is tried."""
        return time.monotonic() < self._retry_at

    def complaint(self, more: int = 0) -> StoreError:
        """That these wait, and `more` elsewhere."""
        lost = f", {self._lost} are lost" if self._lost else ""
        return StoreError(f"{self._where}: {len(self) + more} requests wait to be written{lost}")

    def failed(self) -> None:
        """Note that writing failed: nothing is tried for a while."""
        self._retry_at = time.monotonic() + RETRY_SECONDS

    def write(self, write: Callable[[T], None], *, now: bool = False) -> None:
        """Write what waits. Raises StoreError while something still does.

        `write` raises `Impossible` for what can never be written: it does not hold up the rest,
        and is reported last. `now`: also shortly after a failure.
        """
        if not now and self.rests:
            raise self.complaint()
        impossible: Impossible | None = None
        while queue := self._shed_items or self._items:
            item = queue.popleft()
            try:
                write(item)
            except Impossible as error:
                impossible = error
            except BaseException:
                queue.appendleft(item)
                self.failed()
                raise
        self.has_items = False
        if impossible is not None:
            raise impossible


class Impossible(StoreError):
    """What can never be written, though the store itself is well."""
