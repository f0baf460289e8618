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
SECOND: Final = 0
REQUESTS: Final = 1
TOKENS: Final = 2
BUCKETS: Final = 3
WORDS: Final = BUCKETS + 2 * SLOTS

Words = memoryview  # of format "q"
Changes = dict[int, int]
"""What a step changes: new words by their indices, each once. Until it is made, the words are as
they were.
"""


def advance(words: Words[int], at: int, second: int) -> Changes:
    """What makes `second` the newest of the window at `at`: what is too old for it, or in its
    future, is dropped.
    """
    before, requests, tokens = words[at : at + BUCKETS].tolist()
    changes = {at + SECOND: second}
    if requests or tokens:
        last = max(before, second)
        for each in range(max(min(before, second) + 1, last - SLOTS + 1), last + 1):
            bucket = _bucket(at, each)
            if words[bucket]:
                requests -= words[bucket]
                changes[bucket] = 0
            if words[bucket + 1]:
                tokens -= words[bucket + 1]
                changes[bucket + 1] = 0
        changes[at + REQUESTS], changes[at + TOKENS] = requests, tokens
    return changes


def correct(words: Words[int], at: int, second: int, tokens: int, changes: Changes) -> None:
    """Add `tokens`, which may be negative, to `second` if that still counts."""
    newest = words[at + SECOND]
    if newest - SLOTS < second <= newest:
        index = _bucket(at, second) + 1
        before = words[index]
        changes[index] = max(0, before + tokens)
        changes[at + TOKENS] = words[at + TOKENS] + max(tokens, -before)


def frees_requests(words: Words[int], at: int, count: int) -> int:
    """The second at which at least `count` of the requests no longer count."""
    return _frees(words, at, count, 0)


def frees_tokens(words: Words[int], at: int, count: int) -> int:
    """The second at which at least `count` of the tokens no longer count."""
    return _frees(words, at, count, 1)


def _frees(words: Words[int], at: int, count: int, kind: int) -> int:
    newest = words[at + SECOND]
    for second in range(newest - SLOTS + 1, newest + 1):
        count -= words[_bucket(at, second) + kind]
        if count <= 0:
            return second + SLOTS
    return newest + SLOTS


def requests_empty(words: Words[int], at: int) -> int:
    """The second at which no request counts any more."""
    return _empties(words, at, words[at + REQUESTS], 0)


def tokens_empty(words: Words[int], at: int) -> int:
    """The second at which no token counts any more."""
    return _empties(words, at, words[at + TOKENS], 1)


def _empties(words: Words[int], at: int, total: int, kind: int) -> int:
    newest = second = words[at + SECOND]
    if not total:
        return newest
    while second > newest - SLOTS and not words[_bucket(at, second) + kind]:
        second -= 1
    return second + SLOTS


def _bucket(at: int, second: int) -> int:
    """Where the requests of a second are; its tokens are the next word."""
    return at + BUCKETS + second % SLOTS * 2
