"""Admission and settlement in the live file.

One account per subject has its window, the number of its leases and the money in them; one slot per
lease says what it holds, so that the worker that ends it (its own, or another one after a crash)
gives back exactly that. Settlement is one step: the record of the request, the end of its lease,
and what it cost in every budget that counts its key or its provider.

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
from operator import itemgetter
from sqlite3 import Cursor
from typing import Final, NamedTuple

from wrapper.store import accounts
from wrapper.store import live as files
from wrapper.store.accounts import NAME_BYTES, Moment, cost_since, hashed
from wrapper.store.base import Entry, StoreError
from wrapper.store.drain import Record, position_of, read_record, record
from wrapper.store.limits import (
    MAX_COST,
    Demand,
    Lease,
    Standing,
    Subject,
    Violation,
    decide,
)
from wrapper.store.live import ACCOUNTS, EPOCH, FREE, HEAD, LEASES, MEMBERS, SERIAL, VERSION
from wrapper.store.spans import period
from wrapper.store.window import Changes, Words

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
_MEMBER: Final = struct.Struct("=8sII")  # a key, its group's account, which list of members
_SLOT_BITS: Final = 24  # a lease's id is its serial and its slot
_SLOT: Final = (1 << _SLOT_BITS) - 1
_ID_BITS: Final = 63  # of a worker
_PER_SECOND: Final = 1_000_000  # a heartbeat is in microseconds

# An account, and in which list of members the key has to be (0: it needs none).
Budget = tuple[int, int]


class Held(NamedTuple):
    """What the words of a lease say, which begin at `at`. `shares`: accounts, and seconds of their
    windows.
    """

    at: int
    demand: Demand
    shares: list[tuple[int, int]]


class Reserved(NamedTuple):
    """What a step reserves: in which accounts, what they use then, and which limits in dry runs it
    exceeds.
    """

    demand: Demand
    accounts: list[int]
    standings: tuple[Standing, ...]
    dry_run: tuple[Violation, ...]


class Unknown(Exception):
    """The money of these subjects has to be summed first."""

    def __init__(self, subjects: list[Subject]) -> None:
        super().__init__([subject.name for subject in subjects])
        self.subjects = subjects


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

    def admit(self, subjects: Sequence[Subject], demand: Demand, now: Now) -> Lease:
        """Reserve `demand` in all of `subjects`, or in none. Raises Refused, Unknown."""
        live = self.live
        changes: Changes = {}
        try:
            live.lock()
            moment = now()
            second = int(moment.clock)
            if live.words[VERSION] != self._version:
                self._follow()
            if not 0.0 <= moment.clock - self._beat_at < LEASE_SECONDS / 2:
                self._beat(moment)
            reserved = self._reserve(subjects, demand, moment, changes)
            free = live.words[FREE]
            if not free:
                live.make_room(LEASES)
            words = live.words
            slot = free - 1 if free else words[LEASES.length]
            at = live.index_of(LEASES, slot)
            if free:
                changes[FREE] = words[at + _NEXT]
            else:
                changes[LEASES.length] = slot + 1
            serial = words[SERIAL] + 1
            changes[SERIAL] = changes[at + _SERIAL] = serial
            changes[at + _WORKER] = self._me
            changes[at + _TOKENS], changes[at + _COST] = reserved.demand
            _share(at + _SHARES, at + LEASES.words, reserved.accounts, second, changes)
            live.commit(changes)
        finally:
            live.unlock()
        return self._lease(serial << _SLOT_BITS | slot, reserved, second)

    def move(
        self, lease: Lease, old: Subject | None, new: Sequence[Subject], now: Now
    ) -> Lease | None:
        """Give back the share of `old` and reserve the lease's demand in `new`.

        Returns what is reserved in `new`, as a lease. None: this lease holds nothing any more.
        Raises Refused, Unknown.
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
            words, (tokens, cost) = live.words, held.demand
            gone = None if old is None else self._numbers[hashed(old.name)]
            share = held.at + _SHARES
            for number, second in held.shares:
                if number == gone:
                    at = live.index_of(ACCOUNTS, number)
                    accounts.give_back(words, at, second, -tokens, cost, changes)
                else:
                    changes[share], changes[share + 1] = number + 1, second
                    share += 2
            second = int(moment.clock)
            _share(share, held.at + LEASES.words, reserved.accounts, second, changes)
            live.commit(changes)
        finally:
            live.unlock()
        return self._lease(lease.id, reserved, second)

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
            changes: Changes = {held.at + _COST: 0}
            for number, _ in held.shares:
                at = live.index_of(ACCOUNTS, number)
                changes |= accounts.give_back_money(live.words, at, held.demand.cost)
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
                    changes |= accounts.forget_money(live.index_of(ACCOUNTS, number))
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
                number = self._open(subject)
                at = live.index_of(ACCOUNTS, number)
                changes = accounts.learn(at, subject, live.words[EPOCH], start, spent, held)
                if hashes and not accounts.has_members(live.words, at, subject):
                    self._register(hashes, number, changes)
                live.commit(changes)
            finally:
                live.unlock()

    def standings(self, cursor: Cursor, subjects: Sequence[Subject], now: Now) -> list[Standing]:
        """The standings of any number of subjects. Changes nothing."""
        found: list[Standing] = []
        for at in range(0, len(subjects), _STANDINGS):
            some = subjects[at : at + _STANDINGS]
            copies, moment = self._copies([subject.name for subject in some], now)
            epoch = self.live.words[EPOCH]
            for subject, copy in zip(some, copies, strict=True):
                if not accounts.knows_money(copy, 0, subject, moment.wall, epoch):
                    start, _ = period(subject.limits.budget_period, moment.wall)
                    sums = sums_of(cursor, subject, start)
                    _make(accounts.learn(0, subject, epoch, start, *sums), copy)
                _make(accounts.advance(copy, 0, moment), copy)
                found.append(accounts.standing(copy, 0, subject, moment))
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
            if self._cleared:
                self._beat_at = -math.inf  # this worker, too, is not known any more
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

    def _open(self, subject: Subject) -> int:
        """The account of a subject; a new one where it has none."""
        name = hashed(subject.name)
        number = self._numbers.get(name)
        if number is None:
            live = self.live
            live.make_room(ACCOUNTS)
            number = live.words[ACCOUNTS.length]
            changes = dict(enumerate(accounts.unused(name), live.index_of(ACCOUNTS, number)))
            changes[ACCOUNTS.length] = number + 1
            changes[VERSION] = live.words[VERSION] + 1
            live.commit(changes)
            self._follow()
        return number

    def _copies(self, names: Sequence[str], now: Now) -> tuple[list[Words[int]], Moment]:
        """The accounts as they are, and when that was."""
        try:
            self.live.lock()
            self._follow()
            return [self._copy(self._numbers.get(hashed(name))) for name in names], now()
        finally:
            self.live.unlock()

    def _copy(self, number: int | None) -> Words[int]:
        """An account that stays as it is now; one without anything where there is none."""
        if number is None:
            return memoryview(array("q", bytes(ACCOUNTS.slot)))
        at = self.live.index_of(ACCOUNTS, number)
        return memoryview(array("q", self.live.words[at : at + ACCOUNTS.words]))

    def _register(self, hashes: Sequence[bytes], number: int, changes: Changes) -> None:
        """Make these keys the members of a group's account, as its next list. Lists of before stay
        where they are, and count no more.
        """
        live = self.live
        if live.words[MEMBERS.length] + len(hashes) > live.words[MEMBERS.room]:
            self._drop_old_members(len(hashes))
        index = live.index_of(ACCOUNTS, number) + accounts.MEMBERS
        changes[index] = members = live.words[index] + 1
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
        present = {number: self._members_of(number) for _, number, _ in found}
        kept = [member for member in found if present[member[1]] == member[2]]
        live.replace(MEMBERS, b"".join([_MEMBER.pack(*member) for member in kept]), more)

    def _members_of(self, number: int) -> int:
        """Which of a group's lists of members is its present one."""
        return self.live.words[self.live.index_of(ACCOUNTS, number) + accounts.MEMBERS]

    def _reserve(
        self, subjects: Sequence[Subject], demand: Demand, moment: Moment, changes: Changes
    ) -> Reserved:
        """Count `demand` in all of `subjects`, or in none. It is for the caller to commit. Raises
        Refused, Unknown.
        """
        numbers = [*map(self._open, subjects)]
        words = self.live.words
        epoch, first = words[EPOCH], words[ACCOUNTS.at] // files.WORD
        standings = []
        for number, subject in zip(numbers, subjects, strict=True):
            at = first + number * ACCOUNTS.words
            standing = accounts.hold(words, at, subject, demand, moment, epoch, changes)
            if standing is None:
                changes.clear()
                return self._reserve_slowly(subjects, numbers, demand, moment, changes)
            standings.append(standing)
        return Reserved(demand, numbers, (*standings,), ())

    def _reserve_slowly(
        self,
        subjects: Sequence[Subject],
        numbers: list[int],
        demand: Demand,
        moment: Moment,
        changes: Changes,
    ) -> Reserved:
        """As `_reserve`, where something has to be done first or a limit is exceeded."""
        words, epoch = self.live.words, self.live.words[EPOCH]
        places = [self.live.index_of(ACCOUNTS, number) for number in numbers]
        for at in places:
            self.live.commit(accounts.advance(words, at, moment))
        pairs = [*zip(places, subjects, strict=True)]
        unknown = [
            subject
            for at, subject in pairs
            if not accounts.knows_money(words, at, subject, moment.wall, epoch)
        ]
        if unknown:
            raise Unknown(unknown)
        dry_run = self._decide(pairs, demand, moment)
        if not all(accounts.can_hold(words, at, demand.cost) for at in places):
            demand = Demand(demand.tokens, 0)  # only a dry run or no budget comes to this
        standings = [
            accounts.hold(words, at, subject, demand, moment, epoch, changes, anyway=True)
            for at, subject in pairs
        ]
        return Reserved(demand, numbers, tuple(filter(None, standings)), dry_run)

    def _decide(
        self, pairs: Sequence[tuple[int, Subject]], demand: Demand, moment: Moment
    ) -> tuple[Violation, ...]:
        """The limits in dry runs that `demand` exceeds. Raises `Refused` where it exceeds others,
        also after the leases of dead workers have ended.
        """
        words = self.live.words

        def violations() -> list[Violation]:
            each = (accounts.violations(words, *pair, demand, moment) for pair in pairs)
            return [*chain.from_iterable(each)]

        found, ended = violations(), 0
        while found and ended < REAP_BATCH and (more := self._reap(moment, _STEP)):
            ended += more
        if ended:
            found = violations()
        return decide(found, [accounts.standing(words, *pair, moment) for pair in pairs])

    def _settled(
        self, lease: Lease | None, tokens: int, budgets: Sequence[Budget], cost: int, since: int
    ) -> Changes:
        """The changes of a settlement."""
        live = self.live
        words, first = live.words, live.words[ACCOUNTS.at] // files.WORD
        changes: Changes = {}
        held = None if lease is None else self._found(lease)
        if held is not None:
            less, money = tokens - words[held + _TOKENS], words[held + _COST]
            for share in range(held + _SHARES, held + LEASES.words, 2):
                number = words[share]
                if not number:
                    break
                at = first + (number - 1) * ACCOUNTS.words
                accounts.give_back(words, at, words[share + 1], less, money, changes)
            self._free(held, changes)
        elif lease is not None:
            # Another worker has ended it, which took this one for dead.
            for name, second in lease.seconds.items():
                known = self._numbers.get(hashed(name))
                if known is not None:  # else it is of a file that was deleted
                    at = first + known * ACCOUNTS.words
                    accounts.correct(words, at, second, tokens, changes)
        for number, members in budgets:
            at = first + number * ACCOUNTS.words
            if not members or members == words[at + accounts.MEMBERS]:
                accounts.spend(words, at, cost, since, words[EPOCH], changes)
        return changes

    def _found(self, lease: Lease) -> int | None:
        """Where the words of a lease are; None where it has ended."""
        live, slot = self.live, lease.id & _SLOT
        if slot < live.words[LEASES.length]:
            at, words = live.index_of(LEASES, slot), live.words
            if words[at + _SERIAL] == lease.id >> _SLOT_BITS and words[at + _WORKER] == self._me:
                return at
        return None

    def _held(self, lease: Lease) -> Held | None:
        at = self._found(lease)
        return None if at is None else _held(self.live.words, at)

    def _free(self, at: int, changes: Changes) -> None:
        """Make the slot of the lease at `at` the first free one."""
        words = self.live.words
        changes[at + _WORKER] = 0
        changes[at + _NEXT] = words[FREE]
        changes[FREE] = (at - words[LEASES.at] // files.WORD) // LEASES.words + 1

    def _lease(self, ident: int, reserved: Reserved, second: int) -> Lease:
        demand, _, standings, dry_run = reserved
        seconds = {standing.subject.name: second for standing in standings}
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
        at = self._place(moment)
        self.live.commit({at: self._me, at + 1: _beat_of(moment)})
        self._beat_at = moment.clock

    def _place(self, moment: Moment) -> int:
        """Where this worker's words are, or where there is room for them."""
        workers = self._workers()
        at = next((at for at, worker, _ in workers if worker == self._me), None)
        if at is not None:
            return at
        first = files.WORKERS_INDEX
        places = range(first, first + files.WORKERS_WORDS, 2)
        if len(workers) == len(places):
            # Where all of them are dead, no worker ends their leases: `_dead` gives each of them
            # the whole time again and again.
            _, oldest, beat = min(workers, key=itemgetter(2))
            if beat < moment.clock - LEASE_SECONDS / 2:
                self._end_all(oldest, REAP_BATCH)
        taken = {at for at, _, _ in self._workers()}
        at = next((place for place in places if place not in taken), None)
        if at is None:
            raise StoreError(f"{self.live.path}: more than {len(places)} workers")
        return at

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
            held = _held(live.words, at)
            changes: Changes = {}
            self._free(at, changes)
            tokens, cost = held.demand
            for number, second in held.shares:
                account = live.index_of(ACCOUNTS, number)
                accounts.give_back(live.words, account, second, -tokens, cost, changes)
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


def _held(words: Words[int], at: int) -> Held:
    """What the words of a lease say."""
    return Held(at, Demand(words[at + _TOKENS], words[at + _COST]), _shares(words, at))


def _shares(words: Words[int], lease: int) -> list[tuple[int, int]]:
    """What a lease has a share of: accounts, and seconds of their windows."""
    found = []
    for at in range(lease + _SHARES, lease + LEASES.words, 2):
        number = words[at]
        if not number:
            break
        found.append((number - 1, words[at + 1]))
    return found


def _make(changes: Changes, words: Words[int]) -> None:
    """Make the changes in a copy."""
    for index, value in changes.items():
        words[index] = value


def _share(at: int, end: int, numbers: Sequence[int], second: int, changes: Changes) -> None:
    """Write into the words of a lease, from `at` on, that it has a share of these accounts."""
    for number in numbers:
        changes[at] = number + 1
        changes[at + 1] = second
        at += 2
    if at < end:
        changes[at] = 0
    elif at > end:
        raise ValueError("a request has at most four subjects")


def _beat_of(moment: Moment) -> int:
    """A heartbeat as it is in the file."""
    return int(moment.clock * _PER_SECOND)
