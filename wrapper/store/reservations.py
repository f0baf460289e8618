"""Admission and settlement in SQLite: what happens inside one transaction.

One row per subject has its window, the number of its leases and the money in them; one row per
lease says what it holds, so that whoever ends it (its worker, or another one after a crash) gives
back exactly that. `spent` is a running number beside the ledger: triggers add to it what the
ledger gains, and it is summed anew from the ledger where there is none, the period has changed or
a group has other members.

A worker that is killed stops its heartbeat. Its leases are ended by the others: tokens, money
and slots return, its requests stay counted. Where nobody has had a heartbeat for that long (the
file was locked, the machine slept), nothing can be said about any one worker, and each gets the
whole time again.

Invariant: every function here runs inside of BEGIN IMMEDIATE … COMMIT and yields to no other
greenlet. What it costs does not depend on the number of subjects, nor on the leases in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from sqlite3 import Cursor
from typing import Any, NamedTuple

from wrapper.store.limits import (
    MAX_COST,
    Demand,
    Lease,
    Refused,
    Standing,
    Subject,
    Violation,
    budget_reset,
    decide,
    violation,
)
from wrapper.store.spans import period
from wrapper.store.window import EMPTY, Window

# A worker whose last heartbeat is older than this many seconds is dead.
LEASE_SECONDS = 20.0
# Leases that one transaction ends: a worker's event loop stands still for that long.
REAP_BATCH = 500

_BY_NAME = """
SELECT name, id, second, counts, concurrent, reserved, spent, period, sources
FROM subject WHERE name IN ({})
"""
_BY_NAMES = tuple(_BY_NAME.format(", ".join("?" * count)) for count in range(5))
_WINDOW = "SELECT second, counts FROM subject WHERE id = ?"
_CREATE = "INSERT INTO subject VALUES (NULL, ?, ?, ?, 0, 0, 0, NULL, '') RETURNING id"
_WRITE = """
UPDATE subject SET second = ?, counts = ?, concurrent = ?, reserved = ?, spent = ?, period = ?,
sources = ? WHERE id = ?
"""
_GIVE_BACK = """
UPDATE subject SET counts = ?, concurrent = max(0, concurrent - ?), reserved = max(0, reserved - ?)
WHERE id = ?
"""
_HOLD = "INSERT INTO lease VALUES (?, ?, ?, ?, ?)"
_HELD = "SELECT tokens, cost, shares FROM lease WHERE worker = ? AND id = ?"
_END = "DELETE FROM lease WHERE worker = ? AND id = ? RETURNING tokens, cost, shares"
_OLDEST = "SELECT id, tokens, cost, shares FROM lease WHERE worker = ? ORDER BY id LIMIT ?"
_END_UP_TO = "DELETE FROM lease WHERE worker = ? AND id <= ?"
_IDS = "SELECT name, id FROM subject WHERE name IN ({})"

# Summed in two halves: years of cost can be more than 64 bits.
_COST = "SELECT total(cost_pico / 1000000), total(cost_pico % 1000000) FROM usage WHERE hour >= ?"
_SOURCES_PER_QUERY = 500


class Moment(NamedTuple):
    """Now: seconds by the monotonic clock, which windows and leases go by, and Unix time."""

    clock: float
    wall: float


class Account:
    """The row of one subject, advanced to the current second and budget period."""

    __slots__ = (
        *("changed", "concurrent", "ident", "period", "requests", "reserved", "sources"),
        *("spent", "tokens", "window"),
    )

    def __init__(self, row: Sequence[Any], second: int) -> None:
        self.ident: int = row[0]
        self.window = Window(row[1], row[2])
        self.concurrent: int = row[3]
        self.reserved: int = row[4]
        self.spent: int = row[5]
        self.period: int | None = row[6]
        self.sources: str = row[7]
        self.changed = False
        self.window.advance(second)
        self.requests = self.window.requests
        self.tokens = self.window.tokens

    def hold(self, demand: Demand) -> None:
        self.window.count(demand.tokens)
        self.requests += 1
        self.tokens += demand.tokens
        self.concurrent += 1
        self.reserved += demand.cost

    def row(self) -> tuple[int | str | bytes | None, ...]:
        """What `_WRITE` is given."""
        return (
            *(self.window.second, self.window.pack(), self.concurrent, self.reserved),
            *(self.spent, self.period, self.sources, self.ident),
        )


def admit(
    cursor: Cursor,
    lease: tuple[str, int],
    subjects: Sequence[Subject],
    demand: Demand,
    moment: Moment,
) -> Lease | Refused:
    """Reserve `demand` in all of `subjects`, or in none. `lease` is its worker and its id."""
    accounts = _accounts(cursor, subjects, moment)
    try:
        dry_run = _judge(subjects, accounts, demand, moment)
    except Refused as refused:
        _write(cursor, [account for account in accounts if account.changed])
        if not reap(cursor, lease[0], moment):
            return refused
        accounts = _accounts(cursor, subjects, moment)
        try:
            dry_run = _judge(subjects, accounts, demand, moment)
        except Refused as final:
            return final
    if any(account.reserved + demand.cost > MAX_COST for account in accounts):
        demand = Demand(demand.tokens, 0)  # only a dry run or no budget comes to this
    second = int(moment.clock)
    for account in accounts:
        account.hold(demand)
    _write(cursor, accounts)
    shares = " ".join(f"{account.ident}@{second}" for account in accounts)
    cursor.execute(_HOLD, (*lease, *demand, shares))
    standings = tuple(map(_standing, subjects, accounts, [moment] * len(accounts)))
    seconds = {subject.name: second for subject in subjects}
    return Lease(lease[1], lease[0], demand, standings, dry_run, seconds)


def move(
    cursor: Cursor, lease: Lease, old: Subject | None, new: Subject | None, moment: Moment
) -> Lease | Refused | None:
    """Give back the share of `old` and reserve the lease's demand in `new`.

    Returns what is reserved in `new`, as a lease. None: this lease holds nothing any more.
    """
    held = cursor.execute(_HELD, (lease.worker, lease.id)).fetchone()
    if held is None:
        return None
    demand = Demand(held[0], held[1])
    shares = held[2].split()
    gained: Lease | Refused = Lease(lease.id, lease.worker, demand)
    if new is not None:
        # Under another id, whose row is then merged into the lease's own.
        gained = admit(cursor, (lease.worker, -lease.id), (new,), demand, moment)
        if isinstance(gained, Refused):
            return gained
        gained.id = lease.id
        shares += cursor.execute(_END, (lease.worker, -lease.id)).fetchone()[2].split()
    if old is not None:
        [(_, ident)] = cursor.execute(_IDS.format("?"), (old.name,)).fetchall()
        given = [share for share in shares if share.partition("@")[0] == str(ident)]
        shares = [share for share in shares if share not in given]
        _give_back(cursor, [(demand, given)], -demand.tokens)
    cursor.execute(
        "UPDATE lease SET shares = ? WHERE worker = ? AND id = ?",
        (" ".join(shares), lease.worker, lease.id),
    )
    return gained


def end(cursor: Cursor, lease: Lease, tokens: int) -> None:
    """Give back what the lease holds; what stays counted are its true `tokens`."""
    held = cursor.execute(_END, (lease.worker, lease.id)).fetchone()
    if held is not None:
        demand = Demand(held[0], held[1])
        _give_back(cursor, [(demand, held[2].split())], tokens - demand.tokens)
        return
    # It was ended by another worker, which took this one for dead.
    names = list(lease.seconds)
    found = cursor.execute(_IDS.format(", ".join("?" * len(names))), names).fetchall()
    shares = [f"{ident}@{lease.seconds[name]}" for name, ident in found]
    _give_back(cursor, [(None, shares)], tokens)


def beat(cursor: Cursor, worker: str, moment: Moment) -> None:
    """Note that `worker` is alive."""
    _dead(cursor, moment)
    cursor.execute("INSERT OR REPLACE INTO worker VALUES (?, ?)", (worker, moment.clock))


def reap(cursor: Cursor, worker: str, moment: Moment) -> int:
    """End leases of dead workers, up to a bounded number: how many. `worker` is who asks."""
    ended = 0
    for dead in _dead(cursor, moment):
        if dead != worker:
            ended += end_all(cursor, dead, REAP_BATCH - ended)
        if ended >= REAP_BATCH:
            break
    return ended


def end_all(cursor: Cursor, worker: str, limit: int = -1) -> int:
    """End `limit` of the leases of `worker`, or all and then forget the worker: how many."""
    leases = cursor.execute(_OLDEST, (worker, limit)).fetchall()
    by_demand = [(Demand(tokens, cost), shares.split()) for _, tokens, cost, shares in leases]
    _give_back(cursor, by_demand, None)
    if leases:
        cursor.execute(_END_UP_TO, (worker, leases[-1][0]))
    if limit < 0 or len(leases) < limit:
        cursor.execute("DELETE FROM worker WHERE id = ?", (worker,))
    return len(leases)


def standing(cursor: Cursor, subjects: Sequence[Subject], moment: Moment) -> list[Standing]:
    """How much each of `subjects` uses. Writes nothing."""
    rows: dict[str, Sequence[Any]] = {}
    for some in _batches([subject.name for subject in subjects]):
        query = _BY_NAME.format(", ".join("?" * len(some)))
        rows.update((row[0], row[1:]) for row in cursor.execute(query, some))
    found = []
    for subject in subjects:
        fresh = (0, 0, EMPTY, 0, 0, 0, None, "")
        account = Account(rows.get(subject.name, fresh), int(moment.clock))
        _follow_period(cursor, subject, account, moment)
        found.append(_standing(subject, account, moment))
    return found


def _accounts(cursor: Cursor, subjects: Sequence[Subject], moment: Moment) -> list[Account]:
    """The accounts of `subjects`, in that order; those that are new are made."""
    names = [subject.name for subject in subjects]
    rows = {row[0]: row[1:] for row in cursor.execute(_BY_NAMES[len(names)], names).fetchall()}
    second = int(moment.clock)
    accounts = []
    for subject in subjects:
        row = rows.get(subject.name)
        if row is None:
            ident = cursor.execute(_CREATE, (subject.name, second, EMPTY)).fetchone()[0]
            row = (ident, second, EMPTY, 0, 0, 0, None, "")
        account = Account(row, second)
        if subject.limits.budget is not None:
            if account.sources != subject.fingerprint:
                _follow_sources(cursor, subject)
            _follow_period(cursor, subject, account, moment)
        accounts.append(account)
    return accounts


def _write(cursor: Cursor, accounts: Iterable[Account]) -> None:
    for account in accounts:
        cursor.execute(_WRITE, account.row())


def _follow_sources(cursor: Cursor, subject: Subject) -> None:
    """Let the ledger's triggers add to this budget the cost of other keys than before."""
    cursor.execute("DELETE FROM source WHERE subject = ?", (subject.name,))
    rows = [(source, subject.name) for source in subject.sources]
    cursor.executemany("INSERT OR IGNORE INTO source VALUES (?, ?)", rows)


def _follow_period(cursor: Cursor, subject: Subject, account: Account, moment: Moment) -> None:
    """Sum `spent` anew where it is of another period or of other sources."""
    if subject.limits.budget is None:
        return
    start, _ = period(subject.limits.budget_period, moment.wall)
    if account.period == start and account.sources == subject.fingerprint:
        return
    account.spent = _cost_since(cursor, subject.sources, start)
    account.period = start
    account.sources = subject.fingerprint
    account.changed = True


def _cost_since(cursor: Cursor, sources: Sequence[str], start: int) -> int:
    """What the ledger says that `sources` cost since `start`."""
    total = 0
    for kind, column in (("key:", "api_key"), ("provider:", "provider")):
        names = [name.removeprefix(kind) for name in sources if name.startswith(kind)]
        for some in _batches(names):
            query = f"{_COST} AND {column} IN ({', '.join('?' * len(some))})"
            high, low = cursor.execute(query, (start // 3600, *some)).fetchone()
            total += int(high) * 10**6 + int(low)
    return min(total, MAX_COST)


def _batches(names: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(names), _SOURCES_PER_QUERY):
        yield names[at : at + _SOURCES_PER_QUERY]


def _judge(
    subjects: Sequence[Subject], accounts: Sequence[Account], demand: Demand, moment: Moment
) -> tuple[Violation, ...]:
    """The violations in dry runs. Raises `Refused`."""
    found: list[Violation] = []
    for subject, account in zip(subjects, accounts, strict=True):
        found += _violations(subject, account, demand, moment)
    if not found:
        return ()
    standings = tuple(map(_standing, subjects, accounts, [moment] * len(accounts)))
    return decide(found, standings)


def _violations(
    subject: Subject, account: Account, demand: Demand, moment: Moment
) -> Iterator[Violation]:
    limits, window = subject.limits, account.window
    limit = limits.requests_per_minute
    if limit is not None and (over := account.requests + 1 - limit) > 0:
        wait = window.frees_requests(over) - moment.clock
        yield violation(subject, "requests", account.requests, wait, demand)
    limit = limits.tokens_per_minute
    if limit is not None and (over := account.tokens + demand.tokens - limit) > 0:
        wait = window.frees_tokens(over) - moment.clock
        yield violation(subject, "tokens", account.tokens, wait, demand)
    limit = limits.max_concurrent
    if limit is not None and account.concurrent >= limit:
        yield violation(subject, "concurrency", account.concurrent, 1, demand)
    limit = limits.budget
    used = account.spent + account.reserved
    if limit is not None and used + demand.cost > limit:
        yield violation(subject, "budget", used, budget_reset(limits, moment.wall), demand)


def _standing(subject: Subject, account: Account, moment: Moment) -> Standing:
    requests_empty, tokens_empty = account.window.empties()
    budgeted = subject.limits.budget is not None
    return Standing(
        subject,
        account.requests,
        account.tokens,
        account.concurrent,
        account.spent if budgeted else 0,
        account.reserved,
        max(0.0, requests_empty - moment.clock),
        max(0.0, tokens_empty - moment.clock),
        budget_reset(subject.limits, moment.wall),
    )


def _give_back(
    cursor: Cursor, leases: Iterable[tuple[Demand | None, list[str]]], tokens: int | None
) -> None:
    """Take the shares of `leases` out of their subjects' rows.

    Each lease comes with what it holds (None: nothing) and its shares; `tokens` is what its
    buckets gain, None for taking the whole estimate out of them.
    """
    slots: dict[int, int] = {}
    money: dict[int, int] = {}
    buckets: dict[int, dict[int, int]] = {}
    for demand, shares in leases:
        gain = tokens if tokens is not None else -demand.tokens if demand else 0
        for share in shares:
            ident_text, _, second_text = share.partition("@")
            ident, second = int(ident_text), int(second_text)
            slots[ident] = slots.get(ident, 0) + (demand is not None)
            money[ident] = money.get(ident, 0) + (demand.cost if demand else 0)
            seconds = buckets.setdefault(ident, {})
            seconds[second] = seconds.get(second, 0) + gain
    for ident, seconds in buckets.items():
        window = Window(*cursor.execute(_WINDOW, (ident,)).fetchone())
        for second, gain in seconds.items():
            window.correct(second, gain)
        cursor.execute(_GIVE_BACK, (window.pack(), slots[ident], money[ident], ident))


def _dead(cursor: Cursor, moment: Moment) -> list[str]:
    """The workers without a heartbeat for too long."""
    [newest] = cursor.execute("SELECT max(beat) FROM worker").fetchone()
    if newest is None:
        return []
    if not moment.clock - LEASE_SECONDS <= newest <= moment.clock:
        cursor.execute("UPDATE worker SET beat = ?", (moment.clock,))
        return []
    oldest = moment.clock - LEASE_SECONDS
    return [row[0] for row in cursor.execute("SELECT id FROM worker WHERE beat < ?", (oldest,))]
