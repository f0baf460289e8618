"""The account of a subject: what it uses, what a demand exceeds. A slot of the live file.

`spent` and `held` are sums over the database: the cost in the ledger since the budget's period
began, and the money that deferred work holds. They are known while `epoch` is that of the file;
then each settlement adds to `spent` what the ledger gains. They are summed anew where they are not
known, the period has changed or a group has other members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from sqlite3 import Cursor
from typing import Final, NamedTuple

from wrapper.store import window
from wrapper.store.limits import (
    MAX_COST,
    Demand,
    Standing,
    Subject,
    Violation,
    budget_reset,
    violation,
)
from wrapper.store.spans import period
from wrapper.store.window import Changes, Words

NAME_BYTES: Final = 16
# Words of 64 bits: the subject's name (two); what is summed: of what, which of a group's lists of
# members is its present one, in which epoch (0: it is not known), since when, the money that
# deferred work holds, the money spent; then the money in leases, and their number.
_FINGERPRINT: Final = 2
MEMBERS: Final = 3
_EPOCH: Final = 4
_PERIOD: Final = 5
_HELD: Final = 6
_SPENT: Final = 7
_RESERVED: Final = 8
_CONCURRENT: Final = 9
_WINDOW: Final = 10
WORDS: Final = _WINDOW + window.WORDS
_SECOND: Final = _WINDOW + window.SECOND
_REQUESTS: Final = _WINDOW + window.REQUESTS
_TOKENS: Final = _WINDOW + window.TOKENS
_BUCKETS: Final = _WINDOW + window.BUCKETS

# Summed in two halves: years of cost can be more than 64 bits.
_COST = """
SELECT total(cost_pico / 1000000 + cost_high / 1000000),
    total(cost_pico % 1000000 + cost_high % 1000000)
FROM usage WHERE hour >= ?"""
_NAMES_PER_QUERY = 500
# Above this many names a scan of the period is faster than the index; `+` stands for that.
_NAMES_BY_INDEX = 10


class Moment(NamedTuple):
    """Now: seconds by the monotonic clock, which windows and leases go by, and Unix time."""

    clock: float
    wall: float


def knows_money(words: Words[int], at: int, subject: Subject, wall: float, epoch: int) -> bool:
    """Whether the money spent and held is what a budget of the subject counts, or it has none."""
    limits = subject.limits
    if limits.budget is None:
        return True
    start, _ = period(limits.budget_period, wall)
    return (
        words[at + _PERIOD] == start
        and words[at + _EPOCH] == epoch
        and words[at + _FINGERPRINT] == subject.fingerprint_word
    )


def learn(at: int, subject: Subject, epoch: int, start: int, spent: int, held: int) -> Changes:
    """What a budget of the subject counts has been summed since `start`."""
    return {
        at + _FINGERPRINT: subject.fingerprint_word,
        at + _EPOCH: epoch,
        at + _PERIOD: start,
        at + _SPENT: min(spent, MAX_COST),
        at + _HELD: held,
    }


def forget_money(at: int) -> Changes:
    """It is to be summed anew."""
    return {at + _EPOCH: 0}


def has_members(words: Words[int], at: int, subject: Subject) -> bool:
    """Whether the list of a group's members that counts is that of the subject."""
    return words[at + _FINGERPRINT] == subject.fingerprint_word


def advance(words: Words[int], at: int, moment: Moment) -> Changes:
    """What brings the window to the current second."""
    return window.advance(words, at + _WINDOW, int(moment.clock))


def hold(
    words: Words[int],
    at: int,
    subject: Subject,
    demand: Demand,
    moment: Moment,
    epoch: int,
    changes: Changes,
    *,
    anyway: bool = False,
) -> Standing | None:
    """Count one lease more: what is used then. None where `demand` exceeds a limit (unless
    `anyway`), the money is not known, or the window is not that of the current second.

    Nearly every request has room, and needs this alone: so all is read at once, and the
    request is counted in its bucket here, without a call of `window`.
    """
    fields = words[at + _FINGERPRINT : at + _TOKENS + 1].tolist()
    fingerprint, _, known, since, held, spent, reserved, concurrent, second, requests, used = fields
    limits, (clock, wall), (tokens, cost) = subject.limits, moment, demand
    concurrent += 1
    requests += 1
    used += tokens
    reserved += cost
    if second != int(clock) or (held + reserved > MAX_COST and not anyway):
        return None
    most_requests, most_tokens, most_concurrent, most_money = limits.ceilings
    next_budget = None
    if limits.budget is None:
        spent = held = 0
    else:
        start, end = period(limits.budget_period, wall)
        if known != epoch or since != start or fingerprint != subject.fingerprint_word:
            return None
        next_budget = None if end is None else end - wall
    if not anyway and (
        requests > most_requests
        or used > most_tokens
        or concurrent > most_concurrent
        or spent + held + reserved > most_money
    ):
        return None
    bucket = at + _BUCKETS + second % window.SLOTS * 2
    changes[bucket] = words[bucket] + 1
    changes[at + _REQUESTS] = requests
    changes[at + _CONCURRENT] = concurrent
    if tokens:
        changes[bucket + 1] = words[bucket + 1] + tokens
        changes[at + _TOKENS] = used
    if cost:
        changes[at + _RESERVED] = reserved
    reset = tokens_reset = second + window.SLOTS - clock
    if not tokens:
        tokens_reset = max(0.0, window.tokens_empty(words, at + _WINDOW) - clock)
    reserved += held
    return Standing(
        subject, requests, used, concurrent, spent, reserved, reset, tokens_reset, next_budget
    )


def violations(
    words: Words[int], at: int, subject: Subject, demand: Demand, moment: Moment
) -> Iterator[Violation]:
    """Each limit that `demand` exceeds. The window is that of the current second."""
    limits = subject.limits
    limit, used = limits.requests_per_minute, words[at + _REQUESTS]
    if limit is not None and (over := used + 1 - limit) > 0:
        wait = window.frees_requests(words, at + _WINDOW, over) - moment.clock
        yield violation(subject, "requests", used, wait, demand)
    limit, used = limits.tokens_per_minute, words[at + _TOKENS]
    if limit is not None and (over := used + demand.tokens - limit) > 0:
        wait = window.frees_tokens(words, at + _WINDOW, over) - moment.clock
        yield violation(subject, "tokens", used, wait, demand)
    limit, used = limits.max_concurrent, words[at + _CONCURRENT]
    if limit is not None and used >= limit:
        yield violation(subject, "concurrency", used, 1, demand)
    limit = limits.budget
    used = words[at + _SPENT] + words[at + _HELD] + words[at + _RESERVED]
    if limit is not None and used + demand.cost > limit:
        yield violation(subject, "budget", used, budget_reset(limits, moment.wall), demand)


def can_hold(words: Words[int], at: int, cost: int) -> bool:
    """Whether the sum of the money in leases stays a number that others can add up."""
    return words[at + _HELD] + words[at + _RESERVED] + cost <= MAX_COST


def give_back(
    words: Words[int], at: int, second: int, tokens: int, cost: int, changes: Changes
) -> None:
    """Take one lease out, and add `tokens` to the second in which it is counted."""
    if tokens:
        window.correct(words, at + _WINDOW, second, tokens, changes)
    concurrent = words[at + _CONCURRENT]
    changes[at + _CONCURRENT] = concurrent - 1 if concurrent > 0 else 0
    if cost:
        reserved = words[at + _RESERVED]
        changes[at + _RESERVED] = reserved - cost if reserved > cost else 0


def give_back_money(words: Words[int], at: int, cost: int) -> Changes:
    """The leases hold so much less."""
    return {at + _RESERVED: max(0, words[at + _RESERVED] - cost)}


def correct(words: Words[int], at: int, second: int, tokens: int, changes: Changes) -> None:
    """Add `tokens` to a second if that still counts."""
    window.correct(words, at + _WINDOW, second, tokens, changes)


def spend(words: Words[int], at: int, cost: int, since: int, epoch: int, changes: Changes) -> None:
    """Add what the ledger has gained in the hour that began at `since`."""
    if words[at + _EPOCH] == epoch and words[at + _PERIOD] <= since:
        changes[at + _SPENT] = min(words[at + _SPENT] + cost, MAX_COST)


def standing(words: Words[int], at: int, subject: Subject, moment: Moment) -> Standing:
    """What is used now. The window is that of the current second."""
    clock, limits, ring = moment.clock, subject.limits, at + _WINDOW
    held, spent, reserved, concurrent, _, requests, tokens = words[at + _HELD : ring + 3].tolist()
    reset = None
    if limits.budget is None:
        spent = 0
    else:
        reserved += held
        reset = budget_reset(limits, moment.wall)
    return Standing(
        subject,
        requests,
        tokens,
        concurrent,
        spent,
        reserved,
        max(0.0, window.requests_empty(words, ring) - clock),
        max(0.0, window.tokens_empty(words, ring) - clock),
        reset,
    )


def unused(name: bytes) -> Sequence[int]:
    """The words of the account of a subject that has not been used."""
    return [*memoryview(name).cast("q"), *bytes(WORDS - _FINGERPRINT)]


@lru_cache(4096)
def hashed(name: str) -> bytes:
    """What stands for a subject's name in its slot."""
    text = name.encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=NAME_BYTES).digest()


def cost_since(cursor: Cursor, sources: Sequence[str], start: int) -> int:
    """What the ledger says that `sources` cost since `start`, without what is not booked yet."""
    total = 0
    for kind, column in (("key:", "api_key"), ("provider:", "provider")):
        names = [name.removeprefix(kind) for name in sources if name.startswith(kind)]
        for at in range(0, len(names), _NAMES_PER_QUERY):
            some = names[at : at + _NAMES_PER_QUERY]
            if len(some) > _NAMES_BY_INDEX:
                column = f"+{column}"
            query = f"{_COST} AND {column} IN ({', '.join('?' * len(some))})"
            high, low = cursor.execute(query, (start // 3600, *some)).fetchone()
            total += int(high) * 10**6 + int(low)
    return min(total, MAX_COST)
