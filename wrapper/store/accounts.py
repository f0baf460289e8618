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
from wrapper.store.window import WORDS as WINDOW_WORDS
from wrapper.store.window import Changes, Window, Words

NAME_BYTES: Final = 16
# Words of 64 bits: the subject's name (two); what is summed: of what, which of a group's lists of
# members is its present one, in which epoch (0: it is not known), since when, the money that
# deferred work holds, the money spent; then the money in leases, and their number.
_FINGERPRINT: Final = 2
_MEMBERS: Final = 3
_EPOCH: Final = 4
_PERIOD: Final = 5
_HELD: Final = 6
_SPENT: Final = 7
_RESERVED: Final = 8
_CONCURRENT: Final = 9
_WINDOW: Final = 10
WORDS: Final = _WINDOW + WINDOW_WORDS
_NOTHING: Final = memoryview(bytes(8 * WORDS)).cast("q")

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


class Account:
    """The account that begins at the word `at`.

    It is what the words say, with what a step has changed in it since.
    """

    __slots__ = (
        *("_at", "_changes", "concurrent", "epoch", "fingerprint", "held", "members", "period"),
        *("reserved", "spent", "window"),
    )

    def __init__(self, words: Words[int], at: int, changes: Changes) -> None:
        self._at = at
        self._changes = changes
        self.fingerprint: int
        self.members: int
        self.epoch: int
        self.period: int
        self.held: int
        self.spent: int
        self.reserved: int
        self.concurrent: int
        fields = words[at + _FINGERPRINT : at + _WINDOW].tolist()
        self.fingerprint, self.members, self.epoch, self.period = fields[:4]
        self.held, self.spent, self.reserved, self.concurrent = fields[4:]
        self.window = Window(words, at + _WINDOW, changes)

    def knows_money(self, subject: Subject, wall: float, epoch: int) -> bool:
        """Whether `spent` and `held` are what a budget of the subject counts, or it has none."""
        limits = subject.limits
        if limits.budget is None:
            return True
        start, _ = period(limits.budget_period, wall)
        return (
            self.period == start
            and self.epoch == epoch
            and self.fingerprint == subject.fingerprint_word
        )

    def learn(self, fingerprint: int, epoch: int, start: int, held: int, spent: int) -> None:
        """What a budget of the subject counts has been summed since `start`."""
        at, changes = self._at, self._changes
        changes[at + _FINGERPRINT] = self.fingerprint = fingerprint
        changes[at + _EPOCH] = self.epoch = epoch
        changes[at + _PERIOD] = self.period = start
        changes[at + _HELD] = self.held = held
        changes[at + _SPENT] = self.spent = spent

    def forget_money(self) -> None:
        """It is to be summed anew."""
        self._changes[self._at + _EPOCH] = self.epoch = 0

    def next_members(self) -> None:
        """A group's new list of members counts in place of the old one."""
        self._changes[self._at + _MEMBERS] = self.members = self.members + 1

    def spend(self, cost: int, since: int, epoch: int) -> None:
        """Add what the ledger has gained in the hour that began at `since`."""
        if self.epoch == epoch and self.period <= since:
            self._changes[self._at + _SPENT] = self.spent = min(self.spent + cost, MAX_COST)

    def hold(self, demand: Demand) -> None:
        """Count one lease more."""
        at, changes = self._at, self._changes
        self.window.count(demand.tokens)
        changes[at + _CONCURRENT] = self.concurrent = self.concurrent + 1
        if demand.cost:
            changes[at + _RESERVED] = self.reserved = self.reserved + demand.cost

    def give_back(self, second: int, tokens: int, cost: int) -> None:
        """Take one lease out, and add `tokens` to the second in which it is counted."""
        self.window.correct(second, tokens)
        self._changes[self._at + _CONCURRENT] = self.concurrent = max(0, self.concurrent - 1)
        if cost:
            self.give_back_money(cost)

    def give_back_money(self, cost: int) -> None:
        """The leases hold so much less."""
        self._changes[self._at + _RESERVED] = self.reserved = max(0, self.reserved - cost)


class Use:
    """What a subject uses at a moment: its account, advanced to the current second."""

    __slots__ = ("_moment", "account", "number", "subject")

    def __init__(self, subject: Subject, number: int, account: Account, moment: Moment) -> None:
        self.subject = subject
        self.number = number
        self.account = account
        self._moment = moment
        window, second = account.window, int(moment.clock)
        if second != window.second:
            window.advance(second)

    @property
    def reserved(self) -> int:
        """The money that is not spent yet: in leases, and held by deferred work."""
        account = self.account
        has_budget = self.subject.limits.budget is not None
        return account.reserved + account.held if has_budget else account.reserved

    def has_room(self, demand: Demand) -> bool:
        """Whether `demand` exceeds no limit."""
        limits, account = self.subject.limits, self.account
        limit = limits.requests_per_minute
        if limit is not None and account.window.requests >= limit:
            return False
        limit = limits.tokens_per_minute
        if limit is not None and account.window.tokens + demand.tokens > limit:
            return False
        limit = limits.max_concurrent
        if limit is not None and account.concurrent >= limit:
            return False
        limit = limits.budget
        return limit is None or (
            account.spent + account.held + account.reserved + demand.cost <= limit
        )

    def violations(self, demand: Demand) -> Iterator[Violation]:
        """Each limit that `demand` exceeds."""
        subject, account, limits = self.subject, self.account, self.subject.limits
        window, concurrent = account.window, account.concurrent
        limit = limits.requests_per_minute
        if limit is not None and (over := window.requests + 1 - limit) > 0:
            wait = window.frees_requests(over) - self._moment.clock
            yield violation(subject, "requests", window.requests, wait, demand)
        limit = limits.tokens_per_minute
        if limit is not None and (over := window.tokens + demand.tokens - limit) > 0:
            wait = window.frees_tokens(over) - self._moment.clock
            yield violation(subject, "tokens", window.tokens, wait, demand)
        limit = limits.max_concurrent
        if limit is not None and concurrent >= limit:
            yield violation(subject, "concurrency", concurrent, 1, demand)
        limit = limits.budget
        used = account.spent + self.reserved
        if limit is not None and used + demand.cost > limit:
            wait_ = budget_reset(limits, self._moment.wall)
            yield violation(subject, "budget", used, wait_, demand)

    def standing(self) -> Standing:
        """What is used now."""
        account, limits, (clock, wall) = self.account, self.subject.limits, self._moment
        window = account.window
        requests_empty, tokens_empty = window.empties()
        spent, reserved, reset = 0, account.reserved, None
        if limits.budget is not None:
            spent, reserved = account.spent, reserved + account.held
            reset = budget_reset(limits, wall)
        return Standing(
            self.subject,
            window.requests,
            window.tokens,
            account.concurrent,
            spent,
            reserved,
            max(0.0, requests_empty - clock),
            max(0.0, tokens_empty - clock),
            reset,
        )


def unused(name: bytes) -> Sequence[int]:
    """The words of the account of a subject that has not been used."""
    return [*memoryview(name).cast("q"), *bytes(WORDS - _FINGERPRINT)]


def nothing() -> Account:
    """The account of a subject that has none yet."""
    return Account(_NOTHING, 0, {})


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
