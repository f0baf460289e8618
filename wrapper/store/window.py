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

_REQUESTS = struct.Struct(f"<{SLOTS}I")
_TOKENS = struct.Struct(f"<{SLOTS}Q")
_REQUEST = struct.Struct("<I")
_TOKEN = struct.Struct("<Q")
_TOKENS_AT = _REQUESTS.size  # behind the requests
EMPTY = bytes(_REQUESTS.size + _TOKENS.size)


class Window:
    """The buckets of one subject. `second` is the newest one, `data` is the ring."""

    __slots__ = ("data", "second")

    def __init__(self, second: int, data: bytes) -> None:
        self.second = second
        self.data = bytearray(data)

    @property
    def requests(self) -> int:
        return sum(_REQUESTS.unpack_from(self.data))

    @property
    def tokens(self) -> int:
        return sum(_TOKENS.unpack_from(self.data, _TOKENS_AT))

    def advance(self, second: int) -> None:
        """Make `second` the newest: drop what is too old for it, or in its future."""
        if second > self.second:
            self._drop(max(self.second + 1, second - SLOTS + 1), second)
        elif second < self.second:
            self._drop(max(second + 1, self.second - SLOTS + 1), self.second)
        self.second = second

    def _drop(self, first: int, last: int) -> None:
        for second in range(first, last + 1):
            at = second % SLOTS
            _REQUEST.pack_into(self.data, at * _REQUEST.size, 0)
            _TOKEN.pack_into(self.data, _TOKENS_AT + at * _TOKEN.size, 0)

    def count(self, tokens: int) -> None:
        """One request more, in the newest bucket."""
        data, at = self.data, self.second % SLOTS
        request, token = at * _REQUEST.size, _TOKENS_AT + at * _TOKEN.size
        _REQUEST.pack_into(data, request, _REQUEST.unpack_from(data, request)[0] + 1)
        if tokens:
            _TOKEN.pack_into(data, token, _TOKEN.unpack_from(data, token)[0] + tokens)

    def correct(self, second: int, tokens: int) -> None:
        """Add `tokens`, which may be negative, to `second` if that still counts."""
        if tokens and self.second - SLOTS < second <= self.second:
            at = _TOKENS_AT + second % SLOTS * _TOKEN.size
            [old] = _TOKEN.unpack_from(self.data, at)
            _TOKEN.pack_into(self.data, at, max(0, old + tokens))

    def frees_requests(self, count: int) -> int:
        """The second at which at least `count` of the requests no longer count."""
        return self._frees(count, _REQUESTS.unpack_from(self.data))

    def frees_tokens(self, count: int) -> int:
        """The second at which at least `count` of the tokens no longer count."""
        return self._frees(count, _TOKENS.unpack_from(self.data, _TOKENS_AT))

    def _frees(self, count: int, buckets: tuple[int, ...]) -> int:
        for second in range(self.second - SLOTS + 1, self.second + 1):
            count -= buckets[second % SLOTS]
            if count <= 0:
                return second + SLOTS
        return self.second + SLOTS

    def empties(self) -> tuple[int, int]:
        """The seconds at which no request, and no token, counts any more."""
        data, at = self.data, self.second % SLOTS
        requests = tokens = self.second + SLOTS
        if not _REQUEST.unpack_from(data, at * _REQUEST.size)[0]:
            requests = self._empties(_REQUESTS.unpack_from(data))
        if not _TOKEN.unpack_from(data, _TOKENS_AT + at * _TOKEN.size)[0]:
            tokens = self._empties(_TOKENS.unpack_from(data, _TOKENS_AT))
        return requests, tokens

    def _empties(self, buckets: tuple[int, ...]) -> int:
        second = self.second
        while second > self.second - SLOTS and not buckets[second % SLOTS]:
            second -= 1
        return second + SLOTS
