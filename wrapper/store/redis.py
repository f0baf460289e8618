"""The store in Redis or Valkey (6.2 or later), for gateways on several hosts.

Each operation is one Lua script, and so one round trip and one atomic step; `lua/common.lua` says
which keys there are. They go by the server's clock, which is the same for all hosts; buckets in
its future are dropped, so that a clock that was set back closes no window. All keys have the hash
tag `{wrapper}`: in a cluster they are on one node.

A connection may break between a script and its reply, and then nobody knows whether it ran. So
every script may be repeated: an admission by its lease's id, a settlement by its number, which
the server remembers until this process says that it will not come again. An admission whose reply
is lost for good leaves a lease that nobody holds: a heartbeat finds and ends it.

Invariants. A connection belongs to the process that opened it. A server that cannot be reached
costs about a second at most, once a second; meanwhile settlements wait in memory. No error has
the password in it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from wrapper.store import redisledger
from wrapper.store.base import ALL_TIME_BY, Entry, StoreError, Sums, check_dimensions, true_tokens
from wrapper.store.deferred import (
    GAP_SECONDS,
    KEPT_SECONDS,
    LONGEST_PAUSE,
    Deferred,
    object_name,
    restored,
    stored,
)
from wrapper.store.limits import (
    Demand,
    Lease,
    Standing,
    Subject,
    bounded,
    decide,
    violation,
)
from wrapper.store.redislink import PREFIX, Link, Unreachable
from wrapper.store.redisurl import RedisAddress
from wrapper.store.spans import period
from wrapper.store.waiting import Impossible, Waiting

log = logging.getLogger(__name__)

# An admission is a heartbeat where the last one is older than this many seconds.
RENEW_SECONDS = 10.0
# For how long after a lost reply each heartbeat looks for leases that nobody holds, in seconds.
DOUBT_SECONDS = 30.0
REAP_BATCH = 500  # as in lua/common.lua
_OBJECTS = f"{PREFIX}:objects"


class Settlement(NamedTuple):
    """What `settle.lua` is given; `number` is this process's count of them."""

    number: int
    entry: dict[str, Any] | None
    lease: Lease | None
    tokens: int


class RedisStore:
    """Connects in each process at its first use. `clock`: instead of the server's, for tests."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._address = RedisAddress(url)
        self._clock = clock
        self._wall = wall
        self._pid = 0
        self._inherited: list[Link] = []
        self._start()

    def _start(self) -> None:
        """What belongs to this process alone."""
        self._link = Link(self._address)
        self._waiting: Waiting[Settlement] = Waiting(self._address.shown, self._shed)
        self._worker = secrets.token_hex(8)
        self._last_lease = 0
        self._last_number = 0
        self._beat_at = -math.inf
        self._doubted_at: float | None = None  # when a reply was lost
        # Leases that are being admitted, held or settled, and settlements that may be repeated.
        self._leases: set[int] = set()
        self._unsettled: dict[int, None] = {}

    def check_rest(self) -> None:
        """There is nothing left."""

    def check(self) -> None:
        self._own()
        self._link.commands([("PING",)])
        for option, right in (("appendonly", ("yes",)), ("maxmemory-policy", ("noeviction",))):
            try:
                [found] = self._link.commands([("CONFIG", "GET", option)])
            except Unreachable:
                raise
            except StoreError:
                continue  # not allowed here
            value = found[1].decode() if found else right[0]
            if value not in right:
                log.warning(
                    "%s: %s is %s: usage and limits can get lost; set it to %s",
                    *(self._address.shown, option, value, right[0]),
                )

    def settle(self, entry: Entry, lease: Lease | None = None) -> None:
        self._own()
        if lease is not None:
            if lease.settled:
                return
            lease.settled = True
            if not lease.subjects:
                lease = None
        tokens = 0 if lease is None else true_tokens(entry, lease)
        try:
            row = redisledger.row(entry)
        except Impossible as error:
            if lease is not None:
                self._settle(None, lease, tokens)
            raise Impossible(f"{self._address.shown}: {error}") from error
        self._settle(row, lease, tokens)

    def release(self, lease: Lease) -> None:
        self._own()
        if lease.subjects and not lease.settled:
            lease.settled = True
            self._settle(None, lease, 0)

    def admit(self, subjects: Sequence[Subject], demand: Demand) -> Lease:
        self._own()
        demand = bounded(demand)
        self._last_lease += 1
        ident = self._last_lease
        now = time.monotonic()
        request = {
            "worker": self._worker,
            "id": ident,
            "tokens": demand.tokens,
            "cost": str(demand.cost),
            "beat": now - self._beat_at >= RENEW_SECONDS,
        }
        self._leases.add(ident)
        try:
            result = self._reserve("admit", request, subjects)
            lease = self._lease(ident, demand, subjects, result)
        except BaseException:
            self._leases.discard(ident)
            raise
        if request["beat"]:
            self._beat_at = now
        return lease

    def move(self, lease: Lease, provider: Subject | None) -> None:
        self._own()
        if lease.settled or lease.is_at(provider):
            return
        old, kept = lease.provider, lease.without_provider()
        gained = [provider] if provider else []
        if lease.subjects:
            request = {"worker": lease.worker, "id": lease.id, "old": old.name if old else ""}
            result = self._reserve("move", request, gained)
            if "gone" not in result:
                share = self._lease(lease.id, lease.demand, gained, result)
                lease.adopt(kept, share)
                return
            self._leases.discard(lease.id)
        if kept or gained:
            lease.adopt([], self.admit([*kept, *gained], lease.demand))

    def standing(self, subjects: Sequence[Subject]) -> list[Standing]:
        self._own()
        result = self._run("standing", {}, subjects)
        return _standings(subjects, result)

    def heartbeat(self) -> None:
        self._own()
        now = time.monotonic()
        self._reap(beat=True)
        self._beat_at = now
        if self._waiting:
            self._waiting.write(self._write)
        if self._doubted_at is not None:
            self._end_unknown()
            if now > self._doubted_at + DOUBT_SECONDS:
                self._doubted_at = None

    def reap(self) -> int:
        self._own()
        return self._reap()

    def totals(
        self,
        since: float | None = None,
        until: float | None = None,
        by: tuple[str, ...] = (),
        key: str | None = None,
    ) -> list[Sums]:
        check_dimensions(by)
        self._own()
        return redisledger.totals(self._link, since, until, by, key)

    def all_time(self) -> list[Sums]:
        return self.totals(by=ALL_TIME_BY)

    def remember(self, deferred: Deferred, lease: Lease | None, delay: float) -> None:
        request: dict[str, Any] = {
            "what": "remember",
            "name": object_name(deferred.provider, deferred.id),
            "record": stored(deferred),
            "delay": delay,
            "cost": str(deferred.cost or 0),
            "subjects": [subject.name for subject in lease.subjects] if lease else [],
        }
        if lease is not None and lease.subjects:
            request["lease"] = {"worker": lease.worker, "id": lease.id}
        self._deferred(request)

    def pending(self, provider: str, ids: Sequence[str]) -> list[Deferred]:
        if not ids:
            return []
        self._own()
        names = [object_name(provider, ident) for ident in ids]
        [found] = self._link.commands([("HMGET", f"{PREFIX}:deferred", *names)])
        pairs = zip(names, found, strict=True)
        return [restored(each, _text(held)) for each, held in pairs if held is not None]

    def book(self, deferred: Deferred, entries: Sequence[Entry]) -> bool:
        request = {
            "what": "book",
            "name": object_name(deferred.provider, deferred.id),
            "token": secrets.token_hex(8),
            "entries": [redisledger.row(entry) for entry in entries],
            "kept": int(KEPT_SECONDS),
        }
        return bool(self._deferred(request)["booked"])

    def take(self, first: float) -> Deferred | None:
        request = {"what": "take", "gap": GAP_SECONDS, "longest": LONGEST_PAUSE, "first": first}
        found = self._deferred(request)
        if "name" not in found:
            return None
        return restored(found["name"], found["record"])._replace(asks=int(found["asks"]))

    def hasten(self, deferred: Deferred) -> None:
        self._deferred({"what": "hasten", "name": object_name(deferred.provider, deferred.id)})

    def remember_file(self, provider: str, file_id: str, content: str) -> None:
        key = f"{PREFIX}:file:{object_name(provider, file_id)}"
        self._own()
        self._link.commands([("SET", key, content, "EX", int(KEPT_SECONDS))])

    def file(self, provider: str, file_id: str) -> str | None:
        self._own()
        [found] = self._link.commands([("GET", f"{PREFIX}:file:{object_name(provider, file_id)}")])
        return None if found is None else found.decode()

    def _deferred(self, request: dict[str, Any]) -> dict[str, Any]:
        self._own()
        return self._run("deferred", request)

    def recent(self, key: str, request_id: str) -> str | None:
        self._own()
        name = redisledger.recent_name(key, request_id)
        [found] = self._link.commands([("GET", f"{PREFIX}:recent:{name}")])
        return None if found is None else found.decode()

    def reader(self) -> None:
        return None

    def close(self) -> None:
        self._own()
        self._link.close()  # a failure a moment ago is no reason not to try
        try:
            if self._waiting:
                self._waiting.write(self._write, now=True)
            if self._last_lease:
                self._reap(leave=True)
        finally:
            self._link.close()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the table of objects; see `store.objects`."""
        self._own()
        [found] = self._link.commands([("GETRANGE", _OBJECTS, offset, offset + size - 1)])
        table: bytes = found
        return table

    def write(self, offset: int, data: bytes) -> None:
        """Write into the table of objects."""
        self._own()
        self._link.commands([("SETRANGE", _OBJECTS, offset, data)])

    def _own(self) -> None:
        """Forget what belongs to a parent process; its connections stay open for it."""
        pid = os.getpid()
        if pid != self._pid:
            self._inherited.append(self._link)
            self._start()
            self._pid = pid

    def _run(
        self, name: str, request: dict[str, Any], subjects: Sequence[Subject] | None = None
    ) -> dict[str, Any]:
        if self._clock is not None:
            request["now"] = self._clock()
        if subjects is None:
            return self._link.run(name, request)
        wall = self._wall()
        request["subjects"] = [_described(subject, wall) for subject in subjects]
        result = self._link.run(name, request)
        if "sources" in result:
            # The server knows other members of a group, or none yet.
            for described, subject in zip(request["subjects"], subjects, strict=True):
                described["sources"] = subject.sources
            result = self._link.run(name, request)
        return result

    def _reserve(
        self, name: str, request: dict[str, Any], subjects: Sequence[Subject]
    ) -> dict[str, Any]:
        try:
            return self._run(name, request, subjects)
        except BaseException:
            self._doubted_at = time.monotonic()
            raise

    def _lease(
        self, ident: int, demand: Demand, subjects: Sequence[Subject], result: dict[str, Any]
    ) -> Lease:
        """The lease that the server granted. Raises `Refused`."""
        standings = tuple(_standings(subjects, result))
        found = (
            violation(subjects[index - 1], reason, int(used), None if wait < 0 else wait, demand)
            for index, reason, used, wait in result["violations"] or ()
        )
        dry_run = decide(found, standings)
        reserved = Demand(demand.tokens, int(result["cost"]))
        seconds = {subject.name: int(result["second"]) for subject in subjects}
        return Lease(ident, self._worker, reserved, standings, dry_run, seconds)

    def _settle(self, row: dict[str, Any] | None, lease: Lease | None, tokens: int) -> None:
        self._last_number += 1
        settlement = Settlement(self._last_number, row, lease, tokens)
        self._unsettled[settlement.number] = None
        if self._waiting:
            self._waiting.add(settlement)
            self._waiting.write(self._write)
            return
        try:
            self._write(settlement)
        except BaseException:
            self._waiting.add(settlement)
            self._waiting.failed()
            raise

    def _shed(self, settlement: Settlement) -> Settlement | None:
        """What stays of a settlement whose row is lost: the end of its lease."""
        if settlement.lease is not None:
            return settlement._replace(entry=None)
        del self._unsettled[settlement.number]
        return None

    def _write(self, settlement: Settlement) -> None:
        number, entry, lease, tokens = settlement
        request: dict[str, Any] = {
            "worker": self._worker,
            "number": number,
            "low": next(iter(self._unsettled)),
        }
        if entry is not None:
            request["entry"] = entry
        if lease is not None:
            shares = list(lease.seconds.items())
            request["lease"] = {"worker": lease.worker, "id": lease.id, "tokens": tokens}
            request["lease"]["shares"] = shares
        self._run("settle", request)
        del self._unsettled[number]
        if lease is not None:
            self._leases.discard(lease.id)

    def _reap(self, **what: bool) -> int:
        total = 0
        while True:
            ended = int(self._run("heartbeat", {"worker": self._worker, **what})["ended"])
            total += ended
            if ended < REAP_BATCH:
                return total

    def _end_unknown(self) -> None:
        """End leases whose admission was never replied to."""
        [found] = self._link.commands([("HKEYS", f"{PREFIX}:leases:{self._worker}")])
        for ident in {int(name) for name in found} - self._leases:
            self._settle(None, Lease(ident, self._worker, Demand()), 0)


def _text(held: bytes) -> str:
    """The record in what the server keeps of it."""
    text: str = msgspec.json.decode(held)["text"]
    return text


def _described(subject: Subject, wall: float) -> dict[str, Any]:
    """What a script is given for `subject`; a limit that there is none of is left out."""
    limits = subject.limits
    found: dict[str, Any] = {"name": subject.name, "enforce": limits.enforce}
    if limits.requests_per_minute is not None:
        found["requests"] = limits.requests_per_minute
    if limits.tokens_per_minute is not None:
        found["tokens"] = limits.tokens_per_minute
    if limits.max_concurrent is not None:
        found["concurrent"] = limits.max_concurrent
    if limits.budget is not None:
        found["budget"] = str(limits.budget)
        found["bounds"] = _bounds(limits.budget_period, int(wall // 86_400))
        found["fingerprint"] = subject.fingerprint
    return found


@lru_cache(64)
def _bounds(name: str, day: int) -> tuple[int, ...]:
    """When the period before this one, this one, the next and the one after that begin."""
    start, stop = period(name, day * 86_400)
    if stop is None:
        return ()
    return period(name, start - 1)[0], start, stop, period(name, stop)[1] or 0


def _standings(subjects: Sequence[Subject], result: dict[str, Any]) -> list[Standing]:
    found = []
    for subject, row in zip(subjects, result["standings"] or (), strict=True):
        requests, tokens, concurrent, spent, reserved, requests_reset, tokens_reset, stop = row
        found.append(
            Standing(
                *(subject, int(requests), int(tokens), int(concurrent), int(spent), int(reserved)),
                *(max(0.0, requests_reset), max(0.0, tokens_reset), None if stop < 0 else stop),
            )
        )
    return found
