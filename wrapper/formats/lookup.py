"""What is worked out once for each key, and then looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lookup(dict[K, V]):
    """What `find` gives for a key: `lookup[key]`. At most `most` are kept, then none.

    What it saves beside `lru_cache`: half of each look-up, of which a request makes some forty for
    its headers.
    """

    def __init__(self, find: Callable[[K], V], most: int = 1024) -> None:
        super().__init__()
        self._find = find
        self._most = most

    def __missing__(self, key: K) -> V:
        value = self._find(key)
        if len(self) >= self._most:
            self.clear()
        self[key] = value
        return value
