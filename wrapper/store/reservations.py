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

import math
import struct
from array import array
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
    nothing,
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
from wrapper.store.live import ACCOUNTS, EPOCH, FREE, HEAD, LEASES, MEMBERS, SERIAL, VERSION
from wrapper.store.spans import period
from wrapper.store.window import Changes

Now = Callable[[], Moment]

# A worker whose last heartbeat is older than this many seconds is dead.
LEASE_SECONDS = 20.0
# Leases that are ended at once: a worker's event loop stands still for that long.
REAP_BATCH = 500
_STEP: Final = 50  # leases that are ended while the lock is held
_STANDINGS: Final = 100  # accounts that are read while the lock is held

# Words of a lease: its worker (0: none), its serial, its tokens and cost, the next free lease, and
# up to four accounts (counted from 1, 0 after the last) with the seconds in which the request is
# counted.
_WORKER: Final = 0
_SERIAL: Final = 1
_TOKENS: Final = 2
_COST: Final = 3
_NEXT: Final = 4
_SHARES: Final = 5
_MOST_SHARES: Final = 4
_MEMBER: Final = struct.Struct("=8sII")  # a key, its group's account, which list of members
_SLOT_BITS: Final = 24  # a lease's id is its serial and its slot
_ID_BITS: Final = 63  # of a worker
_PER_SECOND: Final = 1_000_000  # a heartbeat is in microseconds

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
        self._me = int(worker, 16) % (1 << _ID_BITS)
        self._beat_at = -math.inf
        self._version = self._cleared = 0
        self._numbers: dict[bytes, int] = {}  # accounts by the hashes of their names
        self._members: dict[bytes, list[Budget]] = {}  # groups by the hashes of their keys
        self._known_members = (-1, 0)  # of which place, and how many
        self._budgets: dict[tuple[str, str], list[Budget]] = {}

    # Steps

    def admit(
        self, subjects: Sequence[Subject], demand: Demand, now: Now
    ) -> Lease | Refused | Unknown:
        """Reserve `demand` in all of `subjects`, or in none."""
        live = self.live
        changes: Changes = {}
        try:
            live.lock()
            moment = now()
            self._follow()
            if not 0.0 <= moment.clock - self._beat_at < LEASE_SECONDS / 2:
                self._beat(moment)
            reserved = self._reserve(subjects, demand, moment, changes)
            if isinstance(reserved, Refused | Unknown):
                return reserved
            demand, uses, dry_run = reserved
            live.make_room(LEASES)
            words = live.words
            free, serial = words[FREE], words[SERIAL] + 1
            slot = free - 1 if free else words[LEASES.length]
            at = live.index_of(LEASES, slot)
            if free:
                changes[FREE] = words[at + _NEXT]
            else:
                changes[LEASES.length] = slot + 1
            changes[SERIAL] = changes[at + _SERIAL] = serial
            changes[at + _WORKER] = self._me
            changes[at + _TOKENS], changes[at + _COST] = demand
            second = int(moment.clock)
            _share(at, [(use.number, second) for use in uses], changes)
            live.commit(changes)
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
        changes: Changes = {}
        try:
            live.lock()
            self._follow()
            held = self._held(lease)
            if held is None:
                return None
            moment = now()
            reserved = self._reserve(new, held.demand, moment, changes)
            if isinstance(reserved, Refused | Unknown):
                return reserved
            _, uses, dry_run = reserved
            shares = held.shares
            if old is not None:
                number = self._numbers[hashed(old.name)]
                account = self._account(number, changes)
                for each, second in shares:
                    if each == number:
                        account.give_back(second, -held.demand.tokens, held.demand.cost)
                shares = [share for share in shares if share[0] != number]
            second = int(moment.clock)
            shares += [(use.number, second) for use in uses]
            _share(live.index_of(LEASES, held.slot), shares, changes)
            live.commit(changes)
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
            self._follow()
            head = live.put(payload)
            if head is None:
                return False
            budgets = self._counting(entry.key, entry.provider) if cost else ()
            changes = self._settled(lease, tokens, budgets, cost, int(entry.at // 3600) * 3600)
            changes[HEAD] = head
            live.commit(changes)
        finally:
            live.unlock()
        return True

    def end(self, lease: Lease, tokens: int) -> None:
        """Give back what the lease holds, of which `tokens` stay counted."""
        live = self.live
        try:
            live.lock()
            self._follow()
            live.commit(self._settled(lease, tokens, (), 0, 0))
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
            self._follow()
            held = self._held(lease)
            if held is None or not held.demand.cost:
                return
            changes: Changes = {live.index_of(LEASES, held.slot) + _COST: 0}
            for number, _ in held.shares:
                self._account(number, changes).give_back_money(held.demand.cost)
            live.commit(changes)
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
            changes: Changes = {}
            for number in found:
                if number is not None:
                    self._account(number, changes).forget_money()
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
                number, fingerprint = self._open(subject), subject.fingerprint_word
                changes: Changes = {}
                account = self._account(number, changes)
                if hashes and account.fingerprint != fingerprint:
                    account.next_members()
                    self._register(hashes, number, account.members, changes)
                epoch = live.words[EPOCH]
                account.learn(fingerprint, epoch, start, held, min(spent, MAX_COST))
                live.commit(changes)
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
                found.append(Use(subject, 0, account, moment).standing())
        return found

    # Workers

    @property
    def has_beaten(self) -> bool:
        """Whether this worker has had a heartbeat: else it has no leases."""
        return self._beat_at > -math.inf

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
            at = words[ACCOUNTS.at] + number * ACCOUNTS.slot
            self._numbers[live.map[at : at + NAME_BYTES]] = number
        lists, known = self._known_members
        if lists != words[files.LISTS]:
            self._members.clear()
            known = 0
        at, length = words[MEMBERS.at] + known * MEMBERS.slot, words[MEMBERS.length] - known
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

    def _account(self, number: int, changes: Changes) -> Account:
        live = self.live
        return Account(live.words, live.index_of(ACCOUNTS, number), changes)

    def _open(self, subject: Subject) -> int:
        """The account of a subject; a new one where it has none."""
        name = hashed(subject.name)
        number = self._numbers.get(name)
        if number is None:
            live = self.live
            live.make_room(ACCOUNTS)
            number = live.words[ACCOUNTS.length]
            changes = dict(enumerate(unused(name), live.index_of(ACCOUNTS, number)))
            changes[ACCOUNTS.length] = number + 1
            changes[VERSION] = live.words[VERSION] + 1
            live.commit(changes)
            self._follow()
        return number

    def _copies(self, names: Sequence[str], now: Now) -> tuple[list[Account], Moment]:
        """The accounts as they are, and when that was."""
        try:
            self.live.lock()
            self._follow()
            numbers = [self._numbers.get(hashed(name)) for name in names]
            return [
                nothing() if number is None else self._copy(number) for number in numbers
            ], now()
        finally:
            self.live.unlock()

    def _copy(self, number: int) -> Account:
        """An account that stays as it is now."""
        at = self.live.index_of(ACCOUNTS, number)
        copy = array("q", self.live.words[at : at + ACCOUNTS.words])
        return Account(memoryview(copy), 0, {})

    def _register(
        self, hashes: Sequence[bytes], number: int, members: int, changes: Changes
    ) -> None:
        """Make these keys the members of a group's account, as its list `members`. Lists of before
        stay where they are, and count no more.
        """
        live = self.live
        if live.words[MEMBERS.length] + len(hashes) > live.words[MEMBERS.room]:
            self._drop_old_members(len(hashes))
        length = live.words[MEMBERS.length]
        at = live.words[MEMBERS.at] + length * MEMBERS.slot
        tail = _MEMBER.pack(b"", number, members)[8:]
        data = b"".join([each + tail for each in hashes])
        live.map[at : at + len(data)] = data  # not in the list yet
        changes[MEMBERS.length] = length + len(hashes)
        changes[VERSION] = live.words[VERSION] + 1

    def _drop_old_members(self, more: int) -> None:
        """Make room for more by leaving out the lists that count no more."""
        live, length = self.live, self.live.words[MEMBERS.length]
        at = live.words[MEMBERS.at]
        found = [*_MEMBER.iter_unpack(live.map[at : at + length * MEMBERS.slot])]
        present = {number: self._account(number, {}).members for _, number, _ in found}
        kept = [member for member in found if present[member[1]] == member[2]]
        live.replace(MEMBERS, b"".join([_MEMBER.pack(*member) for member in kept]), more)

    def _reserve(
        self, subjects: Sequence[Subject], demand: Demand, moment: Moment, changes: Changes
    ) -> tuple[Demand, list[Use], tuple[Violation, ...]] | Refused | Unknown:
        """Count `demand` in all of `subjects`, or in none: as it is reserved, and in what. It is
        for the caller to commit.
        """
        examined = self._examine(subjects, demand, moment, changes)
        if isinstance(examined, Refused):
            ended = 0
            while ended < REAP_BATCH and (more := self._reap(moment, _STEP)):
                ended += more
            if ended:
                changes.clear()
                examined = self._examine(subjects, demand, moment, changes)
        if isinstance(examined, Refused | Unknown):
            return examined
        uses, dry_run = examined
        for use in uses:
            if use.reserved + demand.cost > MAX_COST:
                demand = Demand(demand.tokens, 0)  # only a dry run or no budget comes to this
        for use in uses:
            use.account.hold(demand)
        return demand, uses, dry_run

    def _examine(
        self, subjects: Sequence[Subject], demand: Demand, moment: Moment, changes: Changes
    ) -> tuple[list[Use], tuple[Violation, ...]] | Refused | Unknown:
        """The use of `subjects`, and which limits in dry runs `demand` exceeds, if it fits."""
        numbers = [self._open(subject) for subject in subjects]
        epoch = self.live.words[EPOCH]
        uses, unknown, has_room = [], [], True
        for subject, number in zip(subjects, numbers, strict=True):
            account = self._account(number, changes)
            if not account.knows_money(subject, moment.wall, epoch):
                unknown.append(subject)
            use = Use(subject, number, account, moment)
            uses.append(use)
            has_room = has_room and use.has_room(demand)
        if unknown:
            return Unknown(unknown)
        if has_room:
            return uses, ()
        found = list(chain.from_iterable(use.violations(demand) for use in uses))
        try:
            return uses, decide(found, [use.standing() for use in uses])
        except Refused as refused:
            return refused

    def _settled(
        self, lease: Lease | None, tokens: int, budgets: Sequence[Budget], cost: int, since: int
    ) -> Changes:
        """The changes of a settlement."""
        live = self.live
        changes: Changes = {}
        accounts: dict[int, Account] = {}
        held = None if lease is None else self._held(lease)
        if held is not None:
            self._free(held.slot, changes)
            for number, second in held.shares:
                account = accounts[number] = self._account(number, changes)
                account.give_back(second, tokens - held.demand.tokens, held.demand.cost)
        elif lease is not None:
            # Another worker has ended it, which took this one for dead.
            for name, second in lease.seconds.items():
                known = self._numbers.get(hashed(name))
                if known is not None:  # else it is of a file that was deleted
                    account = accounts[known] = self._account(known, changes)
                    account.window.correct(second, tokens)
        epoch = live.words[EPOCH]
        for number, members in budgets:
            budget = accounts.get(number) or self._account(number, changes)
            if not members or members == budget.members:
                budget.spend(cost, since, epoch)
        return changes

    def _held(self, lease: Lease) -> Held | None:
        slot, serial = lease.id & (1 << _SLOT_BITS) - 1, lease.id >> _SLOT_BITS
        live = self.live
        if slot >= live.words[LEASES.length]:
            return None
        at = live.index_of(LEASES, slot)
        found = live.words[at : at + LEASES.words].tolist()
        if found[_WORKER] != self._me or found[_SERIAL] != serial:
            return None
        return _held(slot, found)

    def _free(self, slot: int, changes: Changes) -> None:
        """Make a lease's slot the first free one."""
        live = self.live
        at = live.index_of(LEASES, slot)
        changes[at + _WORKER] = 0
        changes[at + _NEXT] = live.words[FREE]
        changes[FREE] = slot + 1

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
        """Each worker: where its words are, who it is, and its last heartbeat."""
        first = files.WORKERS_INDEX
        found = self.live.words[first : first + files.WORKERS_WORDS].tolist()
        return [
            (first + at, found[at], found[at + 1] / _PER_SECOND)
            for at in range(0, len(found), 2)
            if found[at]
        ]

    def _beat(self, moment: Moment) -> None:
        self._dead(moment)
        workers = self._workers()
        at = next((at for at, worker, _ in workers if worker == self._me), None)
        if at is None:
            taken = {at for at, _, _ in workers}
            first = files.WORKERS_INDEX
            places = range(first, first + files.WORKERS_WORDS, 2)
            at = next((place for place in places if place not in taken), None)
            if at is None:
                raise StoreError(f"{self.live.path}: more than {len(places)} workers")
        self.live.commit({at: self._me, at + 1: _beat_of(moment)})
        self._beat_at = moment.clock

    def _dead(self, moment: Moment) -> list[int]:
        """The workers without a heartbeat for too long."""
        workers = self._workers()
        if not workers:
            return []
        newest = max(beat for _, _, beat in workers)
        if not moment.clock - LEASE_SECONDS <= newest <= moment.clock:
            self.live.commit({at + 1: _beat_of(moment) for at, _, _ in workers})
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
        first, length = live.index_of(LEASES, 0), live.words[LEASES.length]
        workers = live.words[first : first + length * LEASES.words : LEASES.words].tolist()
        ended = 0
        for slot, each in enumerate(workers):
            if each != worker:
                continue
            if ended == limit:
                return ended
            at = first + slot * LEASES.words
            held = _held(slot, live.words[at : at + LEASES.words].tolist())
            changes: Changes = {}
            self._free(slot, changes)
            for number, second in held.shares:
                account = self._account(number, changes)
                account.give_back(second, -held.demand.tokens, held.demand.cost)
            live.commit(changes)
            ended += 1
        if ended < limit:
            live.commit({at: 0 for at, who, _ in self._workers() if who == worker})
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


def _held(slot: int, found: Sequence[int]) -> Held:
    """What the words of a lease say."""
    shares = []
    for at in range(_SHARES, len(found), 2):
        if not found[at]:
            break
        shares.append((found[at] - 1, found[at + 1]))
    return Held(slot, Demand(found[_TOKENS], found[_COST]), shares)


def _share(lease: int, shares: Sequence[tuple[int, int]], changes: Changes) -> None:
    """Write into the words of a lease what it has a share of."""
    at = lease + _SHARES
    for number, second in shares:
        changes[at], changes[at + 1] = number + 1, second
        at += 2
    if len(shares) < _MOST_SHARES:
        changes[at] = 0


def _beat_of(moment: Moment) -> int:
    """A heartbeat as it is in the file."""
    return int(moment.clock * _PER_SECOND)
