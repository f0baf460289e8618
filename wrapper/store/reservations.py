"""Admission and settlement in the live file.

One account per subject has its window, the number of its leases and the money in them; one slot per
lease says what it holds, so that whoever ends it (its worker, or another one after a crash) gives
back exactly that. Settlement is one step: the record of the request, the end of its lease, and what
it cost in every budget that counts its key or its provider.

A worker that is killed stops its heartbeat. Its leases are ended by the others: tokens, money
and slots return, its requests stay counted. Where nobody has had a heartbeat for that long (the
machine slept), nothing can be said about any one worker, and each gets the whole time again.

Invariants: each step is one `LiveFile.commit` under the file's lock and yields to no other
greenlet. What it costs does not depend on the number of subjects, nor on the leases in flight. The
time is read under the lock (`Now`), so that it never goes back from one step to the next: a process
that is stopped on its way to the lock would drop what others have counted since, as lying in the
future.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from sqlite3 import Cursor
from typing import Final, NamedTuple

from wrapper.store import live as files
from wrapper.store.accounts import (
    NAME_BYTES,
    Account,
    Moment,
    Use,
    cost_since,
    hashed,
    unused,
)
from wrapper.store.base import Entry, StoreError
from wrapper.store.drain import Record, position_of, read_record, record
from wrapper.store.limits import (
    MAX_COST,
    Demand,
    Lease,
    Refused,
    Standing,
    Subject,
    Violation,
    decide,
)
from wrapper.store.live import ACCOUNTS, EPOCH, FREE, LEASES, MEMBERS, SERIAL, VERSION, Change
from wrapper.store.spans import period

Now = Callable[[], Moment]

# A worker whose last heartbeat is older than this many seconds is dead.
LEASE_SECONDS = 20.0
# Leases that are ended at once: a worker's event loop stands still for that long.
REAP_BATCH = 500
_STEP: Final = 50  # leases that are ended while the lock is held
_STANDINGS: Final = 100  # accounts that are read while the lock is held

# A lease: its worker (0: none), its serial, its tokens and cost, the next free lease, and up to
# four accounts (counted from 1) with the seconds in which the request is counted.
_LEASE: Final = struct.Struct("=QQqqQ8Q")
_FREE: Final = struct.Struct("=QQqqQ")  # the beginning of a lease that is free
_WORKER: Final = struct.Struct("=Qd")  # a worker (0: none) and its last heartbeat
_MEMBER: Final = struct.Struct("=8sII")  # a key, its group's account, which list of members
_SLOT_BITS: Final = 24  # a lease's id is its serial and its slot

# An account, and in which list of members the key has to be (0: it needs none).
Budget = tuple[int, int]


class Held(NamedTuple):
    """What the slot of a lease says. `shares`: accounts, and seconds of their windows."""

    slot: int
    demand: Demand
    shares: list[tuple[int, int]]


class Unknown(NamedTuple):
    """Subjects whose money has to be summed first."""

    subjects: list[Subject]


class Reservations:
    """The limits' side of a live file, for one worker."""

    def __init__(self, live: files.LiveFile, worker: str) -> None:
        self.live = live
        self._worker = worker
        self._me = int(worker, 16)
        self._version = self._cleared = 0
        self._numbers: dict[bytes, int] = {}  # accounts by the hashes of their names
        self._members: dict[bytes, list[Budget]] = {}  # groups by the hashes of their keys
        self._known_members = (-1, 0)  # of which place, and how many
        self._budgets: dict[tuple[str, str], list[Budget]] = {}

    # Steps

    def admit(
        self, subjects: Sequence[Subject], demand: Demand, now: Now, *, beat: bool
    ) -> Lease | Refused | Unknown:
        """Reserve `demand` in all of `subjects`, or in none. `beat`: with a heartbeat."""
        live = self.live
        try:
            live.lock()
            moment = now()
            if live.words[VERSION] != self._version:
                self._follow()
            if beat:
                self._beat(moment)
            reserved = self._reserve(subjects, demand, moment)
            if isinstance(reserved, Refused | Unknown):
                return reserved
            demand, uses, dry_run = reserved
            live.make_room(LEASES)
            words = live.words
            free, serial = words[FREE], words[SERIAL] + 1
            if free:
                slot = free - 1
                at = live.slot_at(LEASES, slot)
                after = live.word(FREE, self._lease_at(at)[4])
            else:
                slot = words[LEASES.length]
                at = live.slot_at(LEASES, slot)
                after = live.word(LEASES.length, slot + 1)
            second = int(moment.clock)
            shares = [(self._numbers[use.account.name], second) for use in uses]
            data = self._packed(serial, demand, shares)
            changes = [self._change(use.account) for use in uses]
            live.commit([*changes, (at, data), after, live.word(SERIAL, serial)])
        finally:
            live.unlock()
        return self._lease(serial << _SLOT_BITS | slot, demand, uses, dry_run, second)

    def move(
        self, lease: Lease, old: Subject | None, new: Sequence[Subject], now: Now
    ) -> Lease | Refused | Unknown | None:
        """Give back the share of `old` and reserve the lease's demand in `new`.

        Returns what is reserved in `new`, as a lease. None: this lease holds nothing any more.
        """
        live = self.live
        try:
            live.lock()
            if live.words[VERSION] != self._version:
                self._follow()
            held = self._held(lease)
            if held is None:
                return None
            moment = now()
            reserved = self._reserve(new, held.demand, moment)
            if isinstance(reserved, Refused | Unknown):
                return reserved
            _, uses, dry_run = reserved
            changes = [self._change(use.account) for use in uses]
            shares = held.shares
            if old is not None:
                number = self._numbers[hashed(old.name)]
                account = self._account(number)
                for each, second in shares:
                    if each == number:
                        account.give_back(second, -held.demand.tokens, held.demand.cost)
                changes.append(self._change(account))
                shares = [share for share in shares if share[0] != number]
            second = int(moment.clock)
            shares += [(self._numbers[use.account.name], second) for use in uses]
            serial = lease.id >> _SLOT_BITS
            at = live.slot_at(LEASES, held.slot)
            live.commit([*changes, (at, self._packed(serial, held.demand, shares))])
        finally:
            live.unlock()
        return self._lease(lease.id, held.demand, uses, dry_run, second)

    def settle(self, entry: Entry, lease: Lease | None, tokens: int) -> bool:
        """Keep the record of `entry` and add its cost to the budgets that it counts against; give
        back what the lease holds, of which its true `tokens` stay counted. False: the file has no
        room for the record, and nothing has changed.

        Raises OverflowError, UnicodeEncodeError or TypeError for what the database would not take.
        """
        payload, cost = record(entry)
        live = self.live
        # Without a lease and without a budget it is the record alone.
        if lease is None and (not cost or self._budgets.get((entry.key, entry.provider)) == []):
            kept = live.append(payload, self._version)
            if kept is not None:
                return kept
        try:
            live.lock()
            if live.words[VERSION] != self._version:
                self._follow()
            head = live.put(payload)
            if head is None:
                return False
            since = int(entry.at // 3600) * 3600
            budgets = self._counting(entry.key, entry.provider) if cost else []
            changes = self._settled(lease, tokens, budgets, cost, since)
            live.commit([*changes, live.head(head)])
        finally:
            live.unlock()
        return True

    def end(self, lease: Lease, tokens: int) -> None:
        """Give back what the lease holds, of which `tokens` stay counted."""
        live = self.live
        try:
            live.lock()
            if live.words[VERSION] != self._version:
                self._follow()
            live.commit(self._settled(lease, tokens, [], 0, 0))
        finally:
            live.unlock()

    def demand_of(self, lease: Lease) -> Demand | None:
        """What a lease holds; None where it has ended. In a transaction."""
        live = self.live
        try:
            live.lock(patient=False)
            self._follow()
            held = self._held(lease)
        finally:
            live.unlock()
        return None if held is None else held.demand

    def take_money(self, lease: Lease) -> None:
        """The lease holds no money any more: what it held, something else holds."""
        live = self.live
        try:
            live.lock()
            if live.words[VERSION] != self._version:
                self._follow()
            held = self._held(lease)
            if held is None or not held.demand.cost:
                return
            changes = []
            for number, _ in held.shares:
                account = self._account(number)
                account.reserved = max(0, account.reserved - held.demand.cost)
                changes.append(self._change(account))
            data = self._packed(lease.id >> _SLOT_BITS, Demand(held.demand.tokens), held.shares)
            live.commit([*changes, (live.slot_at(LEASES, held.slot), data)])
        finally:
            live.unlock()

    # Money

    def forget_money(self, names: Iterable[str], counting: Iterable[tuple[str, str]]) -> None:
        """What these subjects, and the budgets that count these keys at these providers, have spent
        and hold is summed anew at its next use. In the transaction that changes it.
        """
        live = self.live
        try:
            live.lock(patient=False)
            self._follow()
            found = {self._numbers.get(hashed(name)) for name in names}
            found |= {number for pair in counting for number, _ in self._counting(*pair)}
            changes = []
            for number in found - {None}:
                account = self._account(number)  # type: ignore[arg-type]  # None is not in it
                account.epoch = 0
                changes.append(self._change(account))
            live.commit(changes)
        finally:
            live.unlock()

    def learn(self, cursor: Cursor, subjects: Sequence[Subject], wall: float) -> None:
        """Sum what these subjects have spent and hold. In a transaction that has booked records."""
        live = self.live
        for subject in subjects:
            start, _ = period(subject.limits.budget_period, wall)
            spent, held = sums_of(cursor, subject, start)
            keys = [name for name in subject.sources if subject.members]
            hashes = [hashed(name)[:8] for name in keys]
            try:
                live.lock(patient=False)
                self._follow()
                # What was settled since the transaction began is not in the database.
                position = position_of(cursor, live)
                sources = frozenset(subject.sources)
                for payload in live.read(position, 2**40)[0]:
                    spent += _cost_for(read_record(payload), sources, start)
                account = self._account(self._open(subject))
                fingerprint = bytes.fromhex(subject.fingerprint)
                changes = []
                if hashes and account.fingerprint != fingerprint:
                    account.members += 1
                    changes = self._registered(hashes, account)
                account.spent, account.held = min(spent, MAX_COST), held
                account.period, account.fingerprint = start, fingerprint
                account.epoch = live.words[EPOCH]
                live.commit([*changes, self._change(account)])
            finally:
                live.unlock()

    def standings(self, cursor: Cursor, subjects: Sequence[Subject], now: Now) -> list[Standing]:
        """The standings of any number of subjects. Changes nothing."""
        found: list[Standing] = []
        for at in range(0, len(subjects), _STANDINGS):
            some = subjects[at : at + _STANDINGS]
            accounts, moment = self._copies([subject.name for subject in some], now)
            epoch = self.live.words[EPOCH]
            for subject, account in zip(some, accounts, strict=True):
                if not account.knows_money(subject, moment.wall, epoch):
                    start, _ = period(subject.limits.budget_period, moment.wall)
                    account.spent, account.held = sums_of(cursor, subject, start)
                found.append(Use(subject, account, moment).standing())
        return found

    # Workers

    def any_worker(self) -> bool:
        """Whether any process has leases: else there is nothing to renew and nothing to end."""
        return any(worker for _, worker, _ in self._workers())

    def beat(self, now: Now) -> None:
        """Note that this worker is alive."""
        try:
            self.live.lock()
            self._beat(now())
        finally:
            self.live.unlock()

    def reap(self, now: Now) -> int:
        """End leases of dead workers, up to a bounded number: how many."""
        ended = 0
        while ended < REAP_BATCH:
            try:
                self.live.lock()
                self._follow()
                more = self._reap(now(), _STEP)
            finally:
                self.live.unlock()
            ended += more
            if more < _STEP:
                break
        return ended

    def end_all(self) -> None:
        """End all leases of this worker, and forget the worker."""
        more = _STEP
        while more == _STEP:
            try:
                self.live.lock()
                self._follow()
                more = self._end_all(self._me, _STEP)
            finally:
                self.live.unlock()

    # With the lock

    def _follow(self) -> None:
        """Learn which accounts and members others have added."""
        live, words = self.live, self.live.words
        if words[VERSION] == self._version:
            return
        if words[files.CLEARED] != self._cleared:
            self._cleared = words[files.CLEARED]
            self._numbers.clear()
            self._known_members = (-1, 0)
        for number in range(len(self._numbers), words[ACCOUNTS.length]):
            at = live.slot_at(ACCOUNTS, number)
            self._numbers[live.map[at : at + NAME_BYTES]] = number
        lists, known = self._known_members
        if lists != words[files.LISTS]:
            self._members.clear()
            known = 0
        at, length = live.slot_at(MEMBERS, known), words[MEMBERS.length] - known
        if length:
            data = live.map[at : at + length * MEMBERS.slot]
            for key, number, members in _MEMBER.iter_unpack(data):
                self._members.setdefault(key, []).append((number, members))
        self._known_members = words[files.LISTS], words[MEMBERS.length]
        self._budgets.clear()
        self._version = words[VERSION]

    def _counting(self, key: str, provider: str) -> list[Budget]:
        """The accounts whose budgets may count what this key costs at this provider."""
        found = self._budgets.get((key, provider))
        if found is None:
            hash_ = hashed(f"key:{key}")
            numbers = (self._numbers.get(hash_), self._numbers.get(hashed(f"provider:{provider}")))
            found = [(number, 0) for number in numbers if number is not None]
            found += dict.fromkeys(self._members.get(hash_[:8], ()))
            if len(self._budgets) > 10_000:
                self._budgets.clear()
            self._budgets[key, provider] = found
        return found

    def _account(self, number: int) -> Account:
        at = self.live.slot_at(ACCOUNTS, number)
        return Account(self.live.map[at : at + ACCOUNTS.slot])

    def _change(self, account: Account) -> Change:
        return self.live.slot_at(ACCOUNTS, self._numbers[account.name]), account.packed()

    def _open(self, subject: Subject) -> int:
        """The account of a subject; a new one where it has none."""
        name = hashed(subject.name)
        number = self._numbers.get(name)
        if number is None:
            live = self.live
            live.make_room(ACCOUNTS)
            number = live.words[ACCOUNTS.length]
            live.commit(
                [
                    (live.slot_at(ACCOUNTS, number), unused(name)),
                    live.word(ACCOUNTS.length, number + 1),
                    live.word(VERSION, live.words[VERSION] + 1),
                ]
            )
            self._follow()
        return number

    def _copies(self, names: Sequence[str], now: Now) -> tuple[list[Account], Moment]:
        """The accounts as they are, and when that was."""
        try:
            self.live.lock()
            self._follow()
            numbers = [self._numbers.get(hashed(name)) for name in names]
            copies = [
                Account(unused(hashed(name))) if number is None else self._account(number)
                for name, number in zip(names, numbers, strict=True)
            ]
            return copies, now()
        finally:
            self.live.unlock()

    def _registered(self, hashes: Sequence[bytes], account: Account) -> list[Change]:
        """The changes that make these keys the members of a group's account. Lists of before stay
        where they are, and count no more.
        """
        live, number = self.live, self._numbers[account.name]
        if live.words[MEMBERS.length] + len(hashes) > live.words[MEMBERS.room]:
            self._drop_old_members(len(hashes))
        length = live.words[MEMBERS.length]
        at = live.slot_at(MEMBERS, length)
        tail = _MEMBER.pack(b"", number, account.members)[8:]
        data = b"".join([each + tail for each in hashes])
        live.map[at : at + len(data)] = data  # not in the list yet
        return [
            live.word(MEMBERS.length, length + len(hashes)),
            live.word(VERSION, live.words[VERSION] + 1),
        ]

    def _drop_old_members(self, more: int) -> None:
        """Make room for more by leaving out the lists that count no more."""
        live, length = self.live, self.live.words[MEMBERS.length]
        at = live.slot_at(MEMBERS, 0)
        found = [*_MEMBER.iter_unpack(live.map[at : at + length * MEMBERS.slot])]
        present = {number: self._account(number).members for _, number, _ in found}
        kept = [member for member in found if present[member[1]] == member[2]]
        live.replace(MEMBERS, b"".join([_MEMBER.pack(*member) for member in kept]), more)

    def _reserve(
        self, subjects: Sequence[Subject], demand: Demand, moment: Moment
    ) -> tuple[Demand, list[Use], tuple[Violation, ...]] | Refused | Unknown:
        """Count `demand` in all of `subjects`, or in none: as it is reserved, and in what. It is
        for the caller to commit.
        """
        examined = self._examine(subjects, demand, moment)
        if isinstance(examined, Refused):
            ended = 0
            while ended < REAP_BATCH and (more := self._reap(moment, _STEP)):
                ended += more
            if ended:
                examined = self._examine(subjects, demand, moment)
        if isinstance(examined, Refused | Unknown):
            return examined
        uses, dry_run = examined
        for use in uses:
            if use.reserved + demand.cost > MAX_COST:
                demand = Demand(demand.tokens, 0)  # only a dry run or no budget comes to this
        for use in uses:
            use.hold(demand)
        return demand, uses, dry_run

    def _examine(
        self, subjects: Sequence[Subject], demand: Demand, moment: Moment
    ) -> tuple[list[Use], tuple[Violation, ...]] | Refused | Unknown:
        """The use of `subjects`, and which limits in dry runs `demand` exceeds, if it fits."""
        accounts = [self._account(self._open(subject)) for subject in subjects]
        epoch = self.live.words[EPOCH]
        unknown = [
            subject
            for subject, account in zip(subjects, accounts, strict=True)
            if not account.knows_money(subject, moment.wall, epoch)
        ]
        if unknown:
            return Unknown(unknown)
        uses = [Use(*pair, moment) for pair in zip(subjects, accounts, strict=True)]
        for use in uses:
            if not use.has_room(demand):
                break
        else:
            return uses, ()
        found = list(chain.from_iterable(use.violations(demand) for use in uses))
        try:
            return uses, decide(found, [use.standing() for use in uses])
        except Refused as refused:
            return refused

    def _settled(
        self, lease: Lease | None, tokens: int, budgets: Sequence[Budget], cost: int, since: int
    ) -> list[Change]:
        """The changes of a settlement."""
        live, changes = self.live, []
        accounts: dict[int, Account] = {}
        if lease is not None:
            held = self._held(lease)
            if held is not None:
                changes += self._freed(held)
            for name, second in lease.seconds.items():
                number = self._numbers.get(hashed(name))
                if number is None:  # of a file that was deleted
                    continue
                account = accounts[number] = self._account(number)
                if held is None:
                    # Another worker has ended it, which took this one for dead.
                    account.window.correct(second, tokens)
                else:
                    account.give_back(second, tokens - held.demand.tokens, held.demand.cost)
        epoch = live.words[EPOCH]
        for number, members in budgets:
            budget = accounts.get(number) or self._account(number)
            if not members or members == budget.members:
                budget.spend(cost, since, epoch)
                accounts[number] = budget
        return changes + [self._change(account) for account in accounts.values()]

    def _held(self, lease: Lease) -> Held | None:
        slot, serial = lease.id & (1 << _SLOT_BITS) - 1, lease.id >> _SLOT_BITS
        live = self.live
        if slot >= live.words[LEASES.length]:
            return None
        found = self._lease_at(live.slot_at(LEASES, slot))
        if found[:2] != (self._me, serial):
            return None
        return _held(slot, found)

    def _lease_at(self, at: int) -> tuple[int, ...]:
        return _LEASE.unpack(self.live.map[at : at + LEASES.slot])

    def _freed(self, held: Held) -> list[Change]:
        live = self.live
        data = _FREE.pack(0, 0, 0, 0, live.words[FREE])
        return [(live.slot_at(LEASES, held.slot), data), live.word(FREE, held.slot + 1)]

    def _packed(self, serial: int, demand: Demand, shares: Sequence[tuple[int, int]]) -> bytes:
        flat = [part for number, second in shares for part in (number + 1, second)]
        flat += bytes(8 - len(flat))
        return _LEASE.pack(self._me, serial, *demand, 0, *flat)

    def _lease(
        self,
        ident: int,
        demand: Demand,
        uses: Sequence[Use],
        dry_run: tuple[Violation, ...],
        second: int,
    ) -> Lease:
        standings = tuple([use.standing() for use in uses])
        seconds = {use.subject.name: second for use in uses}
        return Lease(ident, self._worker, demand, standings, dry_run, seconds)

    def _workers(self) -> list[tuple[int, int, float]]:
        """Each worker: where its slot is, who it is, and its last heartbeat."""
        at = files.WORKERS_AT
        data = self.live.map[at : at + files.WORKERS_BYTES]
        found = enumerate(_WORKER.iter_unpack(data))
        return [(at + n * _WORKER.size, who, beat) for n, (who, beat) in found if who]

    def _beat(self, moment: Moment) -> None:
        self._dead(moment)
        workers = self._workers()
        at = next((at for at, worker, _ in workers if worker == self._me), None)
        if at is None:
            taken = {at for at, _, _ in workers}
            places = range(files.WORKERS_AT, files.WORKERS_AT + files.WORKERS_BYTES, _WORKER.size)
            at = next((place for place in places if place not in taken), None)
            if at is None:
                raise StoreError(f"{self.live.path}: more than {len(places)} workers")
        self.live.commit([(at, _WORKER.pack(self._me, moment.clock))])

    def _dead(self, moment: Moment) -> list[int]:
        """The workers without a heartbeat for too long."""
        workers = self._workers()
        if not workers:
            return []
        newest = max(beat for _, _, beat in workers)
        if not moment.clock - LEASE_SECONDS <= newest <= moment.clock:
            now = moment.clock
            self.live.commit([(at, _WORKER.pack(worker, now)) for at, worker, _ in workers])
            return []
        oldest = moment.clock - LEASE_SECONDS
        return [worker for _, worker, beat in workers if beat < oldest]

    def _reap(self, moment: Moment, limit: int) -> int:
        ended = 0
        for dead in self._dead(moment):
            if dead != self._me and ended < limit:
                ended += self._end_all(dead, limit - ended)
        return ended

    def _end_all(self, worker: int, limit: int) -> int:
        """End leases of `worker`, up to `limit`, and forget it after the last: how many."""
        live = self.live
        at = live.slot_at(LEASES, 0)
        data = live.map[at : at + live.words[LEASES.length] * LEASES.slot]
        found = (
            _held(slot, lease)
            for slot, lease in enumerate(_LEASE.iter_unpack(data))
            if lease[0] == worker
        )
        ended = 0
        for held in found:
            if ended == limit:
                return ended
            changes = self._freed(held)
            for number, second in held.shares:
                account = self._account(number)
                account.give_back(second, -held.demand.tokens, held.demand.cost)
                changes.append(self._change(account))
            live.commit(changes)
            ended += 1
        if ended < limit:
            slots = [at for at, who, _ in self._workers() if who == worker]
            live.commit([(at, bytes(_WORKER.size)) for at in slots])
        return ended


def sums_of(cursor: Cursor, subject: Subject, start: int) -> tuple[int, int]:
    """What the database says that a subject has spent since `start`, and what of its money deferred
    work holds.
    """
    return cost_since(cursor, subject.sources, start), held_by_deferred(cursor, subject.name)


def held_by_deferred(cursor: Cursor, name: str) -> int:
    """The money of a subject that pending work holds."""
    rows: Iterable[tuple[int]] = cursor.execute(
        "SELECT cost FROM deferred, json_each(holders)"
        " WHERE booked = 0 AND cost > 0 AND json_each.value = ?",
        (name,),
    )
    return min(sum(cost for (cost,) in rows), MAX_COST)


def _cost_for(found: Record, sources: frozenset[str], start: int) -> int:
    """What a record adds to a budget that counts these sources since `start`."""
    is_counted = f"key:{found.key}" in sources or f"provider:{found.provider}" in sources
    return found.cost if is_counted and found.hour * 3600 >= start else 0


def _held(slot: int, found: tuple[int, ...]) -> Held:
    shares = [(found[at] - 1, found[at + 1]) for at in range(5, 13, 2) if found[at]]
    return Held(slot, Demand(*found[2:4]), shares)
