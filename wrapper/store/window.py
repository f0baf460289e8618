"""The requests and tokens of the last minute, in one bucket per second.

A ring of 61 buckets: the second that runs and the 60 before it. Any 60 seconds, however they are
shifted, lie within 61 whole ones, so a limit on the ring's sum holds for all of them. A bucket
is found by its second modulo 61, and a ring has the same size whatever it counts. The sums are kept
beside it, so that a request looks at the buckets that it changes, and at no others.

Seconds come from a clock that does not jump. Should it be set back nevertheless, the buckets that
lie in the future are dropped: they would close the window for as long as the clock was set back.
"""

from __future__ import annotations

from typing import Final

SLOTS: Final = 61

# Words of 64 bits: the newest second, the sums of the requests and of the tokens, and for each
# bucket its requests and its tokens.
_REQUESTS: Final = 1
_TOKENS: Final = 2
_BUCKETS: Final = 3
WORDS: Final = _BUCKETS + 2 * SLOTS

Words = memoryview  # of format "q"
Changes = dict[int, int]
"""What a step changes: new words by their indices. Nothing is changed before the step is made."""


class Window:
    """The window that begins at the word `at`. `second` is its newest one.

    What it counts is what the words say, with what has been changed since.
    """

    __slots__ = ("_at", "_changes", "_words", "requests", "second", "tokens")

    def __init__(self, words: Words[int], at: int, changes: Changes) -> None:
        self._words = words
        self._at = at
        self._changes = changes
        self.second: int
        self.requests: int
        self.tokens: int
        self.second, self.requests, self.tokens = words[at : at + _BUCKETS].tolist()

    def advance(self, second: int) -> None:
        """Make `second` the newest: drop what is too old for it, or in its future."""
        if self.requests or self.tokens:
            newest = max(second, self.second)
            first = max(min(second, self.second) + 1, newest - SLOTS + 1)
            for each in range(first, newest + 1):
                self._drop(self._bucket(each))
        self._changes[self._at] = self.second = second

    def _drop(self, bucket: int) -> None:
        requests, tokens = self._get(bucket), self._get(bucket + 1)
        if requests:
            self._add_requests(bucket, -requests)
        if tokens:
            self._add_tokens(bucket + 1, -tokens)

    def count(self, tokens: int) -> None:
        """One request more, in the newest bucket."""
        bucket = self._bucket(self.second)
        self._add_requests(bucket, 1)
        if tokens:
            self._add_tokens(bucket + 1, tokens)

    def correct(self, second: int, tokens: int) -> None:
        """Add `tokens`, which may be negative, to `second` if that still counts."""
        if tokens and self.second - SLOTS < second <= self.second:
            index = self._bucket(second) + 1
            self._add_tokens(index, max(tokens, -self._get(index)))

    def frees_requests(self, count: int) -> int:
        """The second at which at least `count` of the requests no longer count."""
        return self._frees(count, 0)

    def frees_tokens(self, count: int) -> int:
        """The second at which at least `count` of the tokens no longer count."""
        return self._frees(count, 1)

    def _frees(self, count: int, kind: int) -> int:
        for second in range(self.second - SLOTS + 1, self.second + 1):
            count -= self._get(self._bucket(second) + kind)
            if count <= 0:
                return second + SLOTS
        return self.second + SLOTS

    def empties(self) -> tuple[int, int]:
        """The seconds at which no request, and no token, counts any more."""
        return self._empties(self.requests, 0), self._empties(self.tokens, 1)

    def _empties(self, total: int, kind: int) -> int:
        second = self.second
        if not total:
            return second
        while second > self.second - SLOTS and not self._get(self._bucket(second) + kind):
            second -= 1
        return second + SLOTS

    def _bucket(self, second: int) -> int:
        return self._at + _BUCKETS + second % SLOTS * 2

    def _get(self, index: int) -> int:
        changed = self._changes.get(index)
        return self._words[index] if changed is None else changed

    def _add_requests(self, index: int, more: int) -> None:
        changes = self._changes
        changes[index] = self._get(index) + more
        changes[self._at + _REQUESTS] = self.requests = self.requests + more

    def _add_tokens(self, index: int, more: int) -> None:
        changes = self._changes
        changes[index] = self._get(index) + more
        changes[self._at + _TOKENS] = self.tokens = self.tokens + more
