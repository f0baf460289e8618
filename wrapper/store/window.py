"""The requests and tokens of the last minute, in one bucket per second.

A ring of 61 buckets: the second that runs and the 60 before it. Any 60 seconds, however they are
shifted, lie within 61 whole ones, so a limit on the ring's sum holds for all of them. A bucket
is found by its second modulo 61, and a ring is 732 bytes whatever it counts.

Seconds come from a clock that does not jump. Should it be set back nevertheless, the buckets that
lie in the future are dropped: they would close the window for as long as the clock was set back.
"""

from __future__ import annotations

import struct

SLOTS = 61

_RING = struct.Struct(f"<{SLOTS}I{SLOTS}Q")
_TOKENS = struct.Struct("<Q")
_TOKENS_AT = SLOTS * 4  # behind the requests
EMPTY = bytes(_RING.size)


class Window:
    """The buckets of one subject. `second` is the newest one."""

    __slots__ = ("_slots", "second")

    def __init__(self, second: int, data: bytes) -> None:
        self.second = second
        self._slots = list(_RING.unpack(data))

    def pack(self) -> bytes:
        return _RING.pack(*self._slots)

    @property
    def requests(self) -> int:
        return sum(self._slots[:SLOTS])

    @property
    def tokens(self) -> int:
        return sum(self._slots[SLOTS:])

    def advance(self, second: int) -> None:
        """Make `second` the newest: drop what is too old for it, or in its future."""
        if second > self.second:
            self._drop(max(self.second + 1, second - SLOTS + 1), second)
        elif second < self.second:
            self._drop(max(second + 1, self.second - SLOTS + 1), self.second)
        self.second = second

    def _drop(self, first: int, last: int) -> None:
        slots = self._slots
        for second in range(first, last + 1):
            slots[second % SLOTS] = slots[second % SLOTS + SLOTS] = 0

    def count(self, tokens: int) -> None:
        """One request more, in the newest bucket."""
        at = self.second % SLOTS
        self._slots[at] += 1
        self._slots[at + SLOTS] += tokens

    def frees_requests(self, count: int) -> int:
        """The second at which at least `count` of the requests no longer count."""
        return self._frees(count, 0)

    def frees_tokens(self, count: int) -> int:
        """The second at which at least `count` of the tokens no longer count."""
        return self._frees(count, SLOTS)

    def _frees(self, count: int, offset: int) -> int:
        for second in range(self.second - SLOTS + 1, self.second + 1):
            count -= self._slots[second % SLOTS + offset]
            if count <= 0:
                return second + SLOTS
        return self.second + SLOTS

    def empties(self) -> tuple[int, int]:
        """The seconds at which no request, and no token, counts any more."""
        found = []
        for offset in (0, SLOTS):
            second = self.second
            while second > self.second - SLOTS and not self._slots[second % SLOTS + offset]:
                second -= 1
            found.append(second + SLOTS)
        return found[0], found[1]


def count(newest: int, data: bytes, second: int, tokens: int) -> bytes:
    """A ring whose newest bucket was `newest`, with one request more in `second`."""
    window = Window(newest, data)
    window.advance(second)
    window.count(tokens)
    return window.pack()


def correct(newest: int, data: bytes, second: int, tokens: int) -> bytes:
    """A ring with `tokens`, which may be negative, added to `second` if that still counts."""
    if not newest - SLOTS < second <= newest:
        return data
    at = _TOKENS_AT + second % SLOTS * _TOKENS.size
    [old] = _TOKENS.unpack_from(data, at)
    return data[:at] + _TOKENS.pack(max(0, old + tokens)) + data[at + _TOKENS.size :]
