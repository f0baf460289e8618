"""Admission and settlement in SQLite: what happens inside one transaction.

One row per subject has its window, the number of its leases and the money in them; one row per
lease says what it holds, so that whoever ends it (its worker, or another one after a crash) gives
back exactly that.

A worker that is killed stops its heartbeat. Its leases are ended by the others: tokens, money
and slots return, its requests stay counted. Where nobody has had a heartbeat for that long (the
file was locked, the machine slept), nothing can be said about any one worker, and each gets the
whole time again.

Invariant: every function here runs inside of BEGIN IMMEDIATE … COMMIT and yields to no other
greenlet. What it costs does not depend on the number of subjects, nor on the leases in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from sqlite3 import Cursor

from wrapper.store.accounts import Account, Moment, accounts_of
from wrapper.store.base import Entry
from wrapper.store.limits import MAX_COST, Demand, Lease, Refused, Subject, Violation, decide
from wrapper.store.recent import ADD
from wrapper.store.schema import SETTLE, cost_of, values

# A worker whose last heartbeat is older than this many seconds is dead.
LEASE_SECONDS = 20.0
# Leases that one transaction ends: a worker's event loop stands still for that long.
REAP_BATCH = 500

# window_correct is that of store.window. What is spent counts in the period that is summed.
_GIVE_BACK = """
UPDATE subject SET counts = window_correct(second, counts, ?, ?),
concurrent = max(0, concurrent - ?), reserved = max(0, reserved - ?) WHERE id = ?
"""
_SETTLE = """
UPDATE subject SET counts = window_correct(second, counts, ?, ?),
concurrent = max(0, concurrent - ?), reserved = max(0, reserved - ?),
spent = CASE WHEN period <= ? THEN min(spent + ?, 4611686018427387904) ELSE spent END
WHERE name = ?
"""
_SPEND = """
UPDATE subject SET spent = min(spent + ?, 4611686018427387904) WHERE period <= ? AND name = ?
"""
_BUDGETS = """
SELECT subject FROM source WHERE source = ? UNION ALL SELECT subject FROM source WHERE source = ?
"""
_HOLD = "INSERT INTO lease VALUES (?, ?, ?, ?, ?)"
_HELD = "SELECT tokens, cost, shares FROM lease WHERE worker = ? AND id = ?"
_SHARES = "UPDATE lease SET shares = ? WHERE worker = ? AND id = ?"
_END = "DELETE FROM lease WHERE worker = ? AND id = ? RETURNING tokens, cost"
_OLDEST = "SELECT id, tokens, cost, shares FROM lease WHERE worker = ? ORDER BY id LIMIT ?"
_END_UP_TO = "DELETE FROM lease WHERE worker = ? AND id <= ?"
_ID = "SELECT id FROM subject WHERE name = ?"

# The row of a subject, and the second of its window in which a request is counted.
Share = tuple[int, int]


def admit(
    cursor: Cursor,
    lease: tuple[str, int],
    subjects: Sequence[Subject],
    demand: Demand,
    moment: Moment,
) -> Lease | Refused:
    """Reserve `demand` in all of `subjects`, or in none. `lease` is its worker and its id."""
    reserved = _reserve(cursor, lease[0], subjects, demand, moment)
    if isinstance(reserved, Refused):
        return reserved
    demand, accounts, dry_run = reserved
    second = int(moment.clock)
    shares = _text([(account.ident, second) for account in accounts])
    cursor.execute(_HOLD, (*lease, *demand, shares))
    return _lease(lease, demand, accounts, dry_run, second)


def move(
    cursor: Cursor, lease: Lease, old: Subject | None, new: Sequence[Subject], moment: Moment
) -> Lease | Refused | None:
    """Give back the share of `old` and reserve the lease's demand in `new`.

    Returns what is reserved in `new`, as a lease. None: this lease holds nothing any more.
    """
    name = (lease.worker, lease.id)
    held = cursor.execute(_HELD, name).fetchone()
    if held is None:
        return None
    demand, shares = Demand(*held[:2]), _shares(held[2])
    reserved = _reserve(cursor, lease.worker, new, demand, moment)
    if isinstance(reserved, Refused):
        return reserved
    _, accounts, dry_run = reserved
    if old is not None:
        [ident] = cursor.execute(_ID, (old.name,)).fetchone()
        for share in shares:
            if share[0] == ident:
                _give_back(cursor, share, demand, -demand.tokens)
        shares = [share for share in shares if share[0] != ident]
    second = int(moment.clock)
    shares += [(account.ident, second) for account in accounts]
    cursor.execute(_SHARES, (_text(shares), *name))
    return _lease(name, demand, accounts, dry_run, second)


def settle(cursor: Cursor, entry: Entry | None, lease: Lease | None, tokens: int) -> None:
    """Add `entry` to the ledger and to the budgets that it counts against; give back what the lease
    holds, of which its true `tokens` stay counted.
    """
    cost = since = 0
    budgets: list[str] = []
    if entry is not None:
        row = values(entry)
        cursor.execute(SETTLE, row)
        if entry.recent is not None:
            cursor.execute(ADD, (entry.at, entry.key, *entry.recent))
        cost = min(cost_of(row[6:]), MAX_COST)
        if cost:
            since = int(entry.at // 3600) * 3600
            budgets = _budgets(cursor, entry.key, entry.provider)
    if lease is not None:
        held = cursor.execute(_END, (lease.worker, lease.id)).fetchone()
        # Where it is gone, another worker has ended it, which took this one for dead.
        count, reserved, cost_reserved = (1, *held) if held else (0, 0, 0)
        for name, second in lease.seconds.items():
            spent = 0
            if name in budgets:
                budgets.remove(name)
                spent = cost
            more = tokens - reserved
            cursor.execute(_SETTLE, (second, more, count, cost_reserved, since, spent, name))
    for name in budgets:  # of a subject that got its limits after the admission
        cursor.execute(_SPEND, (cost, since, name))


def spend(cursor: Cursor, key: str, provider: str, since: int, cost: int) -> None:
    """Add the cost of the hour that began at `since` to the budgets that it counts against."""
    if cost:
        cost = min(cost, MAX_COST)
        for name in _budgets(cursor, key, provider):
            cursor.execute(_SPEND, (cost, since, name))


def _budgets(cursor: Cursor, key: str, provider: str) -> list[str]:
    """The subjects whose budgets count what this key costs at this provider."""
    sources = (f"key:{key}", f"provider:{provider}")
    return list(chain.from_iterable(cursor.execute(_BUDGETS, sources)))


def beat(cursor: Cursor, worker: str, moment: Moment) -> None:
    """Note that `worker` is alive."""
    _dead(cursor, moment)
    cursor.execute("INSERT OR REPLACE INTO worker VALUES (?, ?)", (worker, moment.clock))


def reap(cursor: Cursor, worker: str, moment: Moment) -> int:
    """End leases of dead workers, up to a bounded number: how many. `worker` is who asks."""
    ended = 0
    for dead in _dead(cursor, moment):
        if dead != worker and ended < REAP_BATCH:
            ended += end_all(cursor, dead, REAP_BATCH - ended)
    return ended


def end_all(cursor: Cursor, worker: str, limit: int) -> int:
    """End leases of `worker`, up to `limit`, and forget the worker after the last: how many."""
    leases = cursor.execute(_OLDEST, (worker, limit)).fetchall()
    for _, tokens, cost, shares in leases:
        for share in _shares(shares):
            _give_back(cursor, share, Demand(tokens, cost), -tokens)
    if leases:
        cursor.execute(_END_UP_TO, (worker, leases[-1][0]))
    if len(leases) < limit:
        cursor.execute("DELETE FROM worker WHERE id = ?", (worker,))
    return len(leases)


def _reserve(
    cursor: Cursor, worker: str, subjects: Sequence[Subject], demand: Demand, moment: Moment
) -> tuple[Demand, list[Account], tuple[Violation, ...]] | Refused:
    """Count `demand` in all of `subjects`, or in none: as it was reserved, and in what."""
    accounts, dry_run = _examine(cursor, subjects, demand, moment)
    if isinstance(dry_run, Refused) and reap(cursor, worker, moment):
        accounts, dry_run = _examine(cursor, subjects, demand, moment)
    if isinstance(dry_run, Refused):
        return dry_run
    for account in accounts:
        if account.reserved + demand.cost > MAX_COST:
            demand = Demand(demand.tokens, 0)  # only a dry run or no budget comes to this
    for account in accounts:
        account.hold(cursor, demand)
    return demand, accounts, dry_run


def _examine(
    cursor: Cursor, subjects: Sequence[Subject], demand: Demand, moment: Moment
) -> tuple[list[Account], tuple[Violation, ...] | Refused]:
    """The accounts of `subjects`, and which limits in dry runs `demand` exceeds, if it fits."""
    accounts = accounts_of(cursor, subjects, moment)
    for account in accounts:
        if not account.has_room(demand):
            break
    else:
        return accounts, ()
    found = list(chain.from_iterable(account.violations(demand) for account in accounts))
    try:
        return accounts, decide(found, [account.standing() for account in accounts])
    except Refused as refused:
        return accounts, refused


def _lease(
    name: tuple[str, int],
    demand: Demand,
    accounts: Sequence[Account],
    dry_run: tuple[Violation, ...],
    second: int,
) -> Lease:
    standings = tuple([account.standing() for account in accounts])
    seconds = {account.subject.name: second for account in accounts}
    return Lease(name[1], name[0], demand, standings, dry_run, seconds)


def _give_back(cursor: Cursor, share: Share, demand: Demand, tokens: int) -> None:
    """Take one lease out of a subject; the bucket of its request gains `tokens`."""
    ident, second = share
    cursor.execute(_GIVE_BACK, (second, tokens, 1, demand.cost, ident))


def _text(shares: Iterable[Share]) -> str:
    return " ".join([f"{ident}@{second}" for ident, second in shares])


def _shares(text: str) -> list[Share]:
    parts = (share.partition("@") for share in text.split())
    return [(int(ident), int(second)) for ident, _, second in parts]


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
