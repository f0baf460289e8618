"""What the requests of one worker share: memory and disk for bodies, places for callers.

Invariant: no caller takes all of it. One holder (a key, or everybody who uses a provider
credential of their own together) gets a part, so that the others are served meanwhile; callers
whom nothing has authenticated yet get a small part.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Final

HOLDERS_PART: Final = 2  # the half of an amount for one holder
UNAUTHENTICATED_PART: Final = 8
REMEMBERED: Final = 4096  # credentials that a provider has accepted
SPARE_PART: Final = 8  # of a volume that uploads leave free, between these bytes
LEAST_SPARE: Final = 32 << 20
MOST_SPARE: Final = 1 << 30


class Quota:
    """Bytes that are held now, by holder."""

    def __init__(self) -> None:
        self.held = 0
        self._by_holder: Counter[str] = Counter()

    def take(self, holder: str, size: int, limit: int, part: int = HOLDERS_PART) -> bool:
        """Hold `size` more bytes, unless all together would hold more than `limit` or this holder
        more than its part. Whoever holds nothing may always have what is left.
        """
        mine = self._by_holder[holder]
        if self.held + size > limit and self.held:
            return False
        if mine + size > limit // part and mine:
            return False
        self._by_holder[holder] += size
        self.held += size
        return True

    def give(self, holder: str, size: int) -> None:
        """`size` bytes are not held any more."""
        self.held -= size
        self._by_holder[holder] -= size
        if not self._by_holder[holder]:
            del self._by_holder[holder]


class Holding:
    """What one request holds of a quota."""

    __slots__ = ("_holder", "_limit", "_part", "_quota", "size")

    def __init__(self, quota: Quota, holder: str, limit: int, part: int = HOLDERS_PART) -> None:
        self._quota = quota
        self._holder = holder
        self._limit = limit
        self._part = part
        self.size = 0

    def take(self, size: int) -> bool:
        """Hold `size` more bytes, where that is possible."""
        taken = self._quota.take(self._holder, size, self._limit, self._part)
        if taken:
            self.size += size
        return taken

    def release(self) -> None:
        """Give all of it back."""
        size, self.size = self.size, 0
        if size:
            self._quota.give(self._holder, size)


class Newcomers(set[Hashable]):
    """The requests in progress whose caller nothing has authenticated yet: they come with a
    credential for a provider, and that provider has not accepted it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._accepted: OrderedDict[int, None] = OrderedDict()

    def is_known(self, credential: Hashable) -> bool:
        """Whether a provider accepted this credential not long ago."""
        return hash(credential) in self._accepted

    def accepted(self, request: Hashable, credential: Hashable) -> None:
        """The provider accepted it: neither this request nor its next ones are newcomers'."""
        self.discard(request)
        self._accepted[hash(credential)] = None
        self._accepted.move_to_end(hash(credential))
        if len(self._accepted) > REMEMBERED:
            self._accepted.popitem(last=False)


class Capacity:
    """The shared amounts of one worker. `places` are requests at once, as the system allows."""

    def __init__(self) -> None:
        self.places = sys.maxsize
        self.memory = Quota()
        self.disk = Quota()
        self.newcomers = Newcomers()


def has_room(directory: str, size: int) -> bool:
    """Whether `size` more bytes leave enough free on the volume for what matters more than
    uploads: the ledger may be on it.
    """
    try:
        volume = os.statvfs(directory)
    except OSError:  # writing there will say what is wrong
        return True
    total, free = volume.f_blocks * volume.f_frsize, volume.f_bavail * volume.f_frsize
    return free - size >= min(max(total // SPARE_PART, LEAST_SPARE), MOST_SPARE)
