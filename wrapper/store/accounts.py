"""The account of a subject: what it uses, what a demand exceeds. A slot of the live file.

`spent` and `held` are sums over the database: the cost in the ledger since the budget's period
began, and the money that deferred work holds. They are known while `epoch` is that of the file;
then each settlement adds to `spent` what the ledger gains. They are summed anew where they are not
known, the period has changed or a group has other members.
"""

from __future__ import annotations

import hashlib
import struct
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
from wrapper.store.window import EMPTY, Window

# The subject, the second of the window, the leases and the money in them; then what is summed: the
# money spent, that held by deferred work, since when (-1: it has no budget), of what, in which
# epoch; and which of a group's lists of members is its present one.
_FIELDS: Final = struct.Struct("=16sqqqqqq8sQQ")
NAME_BYTES: Final = 16
NO_PERIOD: Final = -1

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
    """A slot as it was read. `packed` is what it is to become."""

    __slots__ = (
        *("concurrent", "epoch", "fingerprint", "held", "members", "name", "period", "reserved"),
        *("spent", "window"),
    )

    def __init__(self, data: bytes) -> None:
        self.name: bytes
        self.concurrent: int
        self.reserved: int
        self.spent: int
        self.held: int
        self.period: int
        self.fingerprint: bytes
        self.epoch: int
        self.members: int
        fields = _FIELDS.unpack_from(data)
        self.name, second, self.concurrent, self.reserved, self.spent, self.held = fields[:6]
        self.period, self.fingerprint, self.epoch, self.members = fields[6:]
        self.window = Window(second, data[_FIELDS.size :])

    def packed(self) -> bytes:
        """The slot with these values."""
        return (
            _FIELDS.pack(
                *(self.name, self.window.second, self.concurrent, self.reserved, self.spent),
                *(self.held, self.period, self.fingerprint, self.epoch, self.members),
            )
            + self.window.data
        )

    def knows_money(self, subject: Subject, wall: float, epoch: int) -> bool:
        """Whether `spent` and `held` are what a budget of the subject counts, or it has none."""
        limits = subject.limits
        if limits.budget is None:
            return True
        start, _ = period(limits.budget_period, wall)
        return (
            self.period == start
            and self.epoch == epoch
            and self.fingerprint == bytes.fromhex(subject.fingerprint)
        )

    def spend(self, cost: int, since: int, epoch: int) -> None:
        """Add what the ledger has gained in the hour that began at `since`."""
        if self.epoch == epoch and NO_PERIOD < self.period <= since:
            self.spent = min(self.spent + cost, MAX_COST)

    def give_back(self, second: int, tokens: int, cost: int) -> None:
        """Take one lease out, and add `tokens` to the second in which it is counted."""
        self.window.correct(second, tokens)
        self.concurrent = max(0, self.concurrent - 1)
        self.reserved = max(0, self.reserved - cost)


class Use:
    """What a subject uses at a moment: its account, advanced to the current second."""

    __slots__ = ("_moment", "account", "requests", "reserved", "spent", "subject", "tokens")

    def __init__(self, subject: Subject, account: Account, moment: Moment) -> None:
        self.subject = subject
        self.account = account
        self._moment = moment
        window, second = account.window, int(moment.clock)
        if second != window.second:
            window.advance(second)
        self.requests = window.requests
        self.tokens = window.tokens
        has_budget = subject.limits.budget is not None
        self.spent = account.spent if has_budget else 0
        self.reserved = account.reserved + account.held if has_budget else account.reserved

    def has_room(self, demand: Demand) -> bool:
        """Whether `demand` exceeds no limit."""
        limits = self.subject.limits
        limit = limits.requests_per_minute
        if limit is not None and self.requests >= limit:
            return False
        limit = limits.tokens_per_minute
        if limit is not None and self.tokens + demand.tokens > limit:
            return False
        limit = limits.max_concurrent
        if limit is not None and self.account.concurrent >= limit:
            return False
        limit = limits.budget
        return limit is None or self.spent + self.reserved + demand.cost <= limit

    def violations(self, demand: Demand) -> Iterator[Violation]:
        """Each limit that `demand` exceeds."""
        subject, limits = self.subject, self.subject.limits
        window, concurrent = self.account.window, self.account.concurrent
        limit = limits.requests_per_minute
        if limit is not None and (over := self.requests + 1 - limit) > 0:
            wait = window.frees_requests(over) - self._moment.clock
            yield violation(subject, "requests", self.requests, wait, demand)
        limit = limits.tokens_per_minute
        if limit is not None and (over := self.tokens + demand.tokens - limit) > 0:
            wait = window.frees_tokens(over) - self._moment.clock
            yield violation(subject, "tokens", self.tokens, wait, demand)
        limit = limits.max_concurrent
        if limit is not None and concurrent >= limit:
            yield violation(subject, "concurrency", concurrent, 1, demand)
        limit = limits.budget
        used = self.spent + self.reserved
        if limit is not None and used + demand.cost > limit:
            wait_ = budget_reset(limits, self._moment.wall)
            yield violation(subject, "budget", used, wait_, demand)

    def hold(self, demand: Demand) -> None:
        """Count one lease more."""
        account = self.account
        account.window.count(demand.tokens)
        account.concurrent += 1
        account.reserved += demand.cost
        self.requests += 1
        self.tokens += demand.tokens
        self.reserved += demand.cost

    def standing(self) -> Standing:
        """What is used now."""
        requests_empty, tokens_empty = self.account.window.empties()
        return Standing(
            self.subject,
            self.requests,
            self.tokens,
            self.account.concurrent,
            self.spent,
            self.reserved,
            max(0.0, requests_empty - self._moment.clock),
            max(0.0, tokens_empty - self._moment.clock),
            budget_reset(self.subject.limits, self._moment.wall),
        )


def unused(name: bytes, second: int = 0) -> bytes:
    """The slot of a subject that has not been used."""
    return _FIELDS.pack(name, second, 0, 0, 0, 0, NO_PERIOD, bytes(8), 0, 0) + EMPTY


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
