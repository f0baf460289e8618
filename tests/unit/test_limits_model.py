"""Both stores against a model that is too simple to be wrong.

The model keeps every request and every ledger row, and sums them anew for each question. Whatever
happens in between (settlements, crashes, other limits, clocks that jump), the stores' running
sums have to say the same.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness.redisserver import RedisServer
from wrapper.admission import Admission
from wrapper.metering import Usage
from wrapper.store import Demand, Entry, Lease, Limits, Refused, Subject
from wrapper.store.redis import RedisStore
from wrapper.store.spans import period
from wrapper.store.sqlite import SqliteStore

pytestmark = pytest.mark.usefixtures("patient_stores")

START = 1_764_165_911.25  # 2025-11-26T14:05:11Z, a Wednesday
LEASE_SECONDS = 20
PROVIDERS = ("provider:p", "provider:q")
NAMES = ("key:a", "key:b", "group:g", *PROVIDERS)


@dataclass
class Held:
    """A request of the model: what it reserved, and in which second of which subject."""

    worker: int
    demand: Demand
    seconds: dict[str, int]
    key: str
    lease: Lease
    ended: bool = False  # by another worker


@dataclass
class Account:
    """Second → [requests, tokens]. `newest`: the last second in which anything was admitted,
    `oldest`: the first one that was known when the clock jumped.
    """

    buckets: dict[int, list[int]] = field(default_factory=dict)
    newest: int = 0
    oldest: int = 0

    def add(self, second: int, tokens: int) -> None:
        if self.oldest <= second <= self.newest:
            bucket = self.buckets.setdefault(second, [0, 0])
            bucket[1] = max(0, bucket[1] + tokens)

    def used(self, second: int) -> tuple[int, int]:
        counted = [b for at, b in self.buckets.items() if second - 60 <= at <= second]
        return sum(b[0] for b in counted), sum(b[1] for b in counted)


class Model:
    """The truth, and what should be refused."""

    def __init__(self) -> None:
        self.accounts = {name: Account() for name in NAMES}
        self.ledger: list[tuple[float, str, str, int]] = []
        self.held: list[Held] = []

    def leases(self, name: str) -> list[Held]:
        return [held for held in self.held if name in held.seconds and not held.ended]

    def spent(self, subject: Subject, wall: float) -> int:
        if subject.limits.budget is None:
            return 0
        start, _ = period(subject.limits.budget_period, wall)
        return sum(
            cost
            for at, key, provider, cost in self.ledger
            if at // 3600 * 3600 >= start and {key, provider} & set(subject.sources)
        )

    def reserved(self, name: str) -> int:
        return sum(held.demand.cost for held in self.leases(name))

    def violations(
        self, subject: Subject, demand: Demand, clock: float, wall: float
    ) -> Iterator[tuple[str, int | None, bool]]:
        """Reason, retry_after, never."""
        limits, account = subject.limits, self.accounts[subject.name]

        def after(index: int, own: int, limit: int) -> int | None:
            """The first whole second at which it fits, found by trying each."""
            fits = (
                wait
                for wait in range(1, 63)
                if account.used(math.floor(clock + wait))[index] + own <= limit
            )
            return next(fits, None)

        requests, tokens = account.used(int(clock))
        limit = limits.requests_per_minute
        if limit is not None and requests + 1 > limit:
            yield "requests", after(0, 1, limit), False
        limit = limits.tokens_per_minute
        if limit is not None and tokens + demand.tokens > limit:
            yield "tokens", after(1, demand.tokens, limit), demand.tokens > limit
        limit = limits.max_concurrent
        if limit is not None and len(self.leases(subject.name)) >= limit:
            yield "concurrency", 1, False
        limit = limits.budget
        if limit is not None:
            spent = self.spent(subject, wall)
            if spent + self.reserved(subject.name) + demand.cost > limit:
                _, end = period(limits.budget_period, wall)
                never = demand.cost > limit
                wait = None if end is None or never else math.ceil(end - wall)
                yield "budget", 1 if spent + demand.cost <= limit else wait, never

    def admit(self, subjects: list[Subject], demand: Demand, clock: float) -> dict[str, int]:
        second = int(clock)
        for subject in subjects:
            account = self.accounts[subject.name]
            account.newest = second
            bucket = account.buckets.setdefault(second, [0, 0])
            bucket[0] += 1
            bucket[1] += demand.tokens
        return {subject.name: second for subject in subjects}

    def give_back(self, held: Held, tokens: int) -> None:
        for name, second in held.seconds.items():
            self.accounts[name].add(second, tokens if held.ended else tokens - held.demand.tokens)

    def drop_others(self, name: str, second: int) -> None:
        """After a jump of the clock to `second` only its own minute is known."""
        account = self.accounts[name]
        account.buckets = {
            at: b for at, b in account.buckets.items() if second - 60 <= at <= second
        }
        account.newest = min(account.newest, second)
        account.oldest = second - 60


small = st.one_of(st.none(), st.integers(1, 5))
some = st.one_of(st.none(), st.integers(10, 100))
limits_ = st.builds(
    Limits,
    requests_per_minute=small,
    tokens_per_minute=some,
    max_concurrent=small,
    budget=some,
    budget_period=st.sampled_from(("day", "week", "month", "total")),
    enforce=st.sampled_from((True, True, True, False)),
)
demands = st.builds(Demand, tokens=st.integers(0, 40), cost=st.integers(0, 40))
members_ = st.sampled_from((("a",), ("b",), ("a", "b")))


class Machine(RuleBasedStateMachine):
    """Three workers, of which some are killed, do what a gateway does."""

    stores: Any  # () -> Iterator of stores, set below
    one_clock: bool  # windows and calendar go by one clock, which may jump

    @initialize()
    def begin(self) -> None:
        self.clock = 1000.5 if not self.one_clock else START
        self.wall = START
        self.model = Model()
        self.exit = contextlib.ExitStack()
        self.make = self.exit.enter_context(
            type(self).stores(lambda: self.clock, lambda: self.wall)
        )
        self.workers: list[Any] = []
        self.beats: list[float] = []
        self.dead: set[int] = set()
        self.subjects = {name: Subject(name, Limits()) for name in NAMES}
        for _ in range(3):
            self.start_worker()

    def teardown(self) -> None:
        if hasattr(self, "exit"):
            self.exit.close()

    def start_worker(self) -> None:
        self.workers.append(self.make())
        self.beats.append(self.clock)
        self.workers[-1].heartbeat()

    def live(self, number: int) -> int:
        alive = [index for index in range(len(self.workers)) if index not in self.dead]
        return alive[number % len(alive)]

    def passes(self, seconds: float) -> None:
        """Time goes on by less than the workers' leases last, with a heartbeat of each."""
        self.clock += seconds
        self.wall += seconds
        self.beat()

    def beat(self) -> None:
        for index in range(len(self.workers)):
            if index not in self.dead:
                self.beats[index] = self.clock
                self.workers[index].heartbeat()
        for held in self.model.held:
            late = self.clock - self.beats[held.worker] > LEASE_SECONDS
            if held.worker in self.dead and late and not held.ended:
                self.model.give_back(held, 0)
                held.ended = True

    @rule(
        worker=st.integers(0, 2),
        key=st.sampled_from(("a", "b")),
        provider=st.sampled_from(PROVIDERS),
        demand=demands,
    )
    def admit(self, worker: int, key: str, provider: str, demand: Demand) -> None:
        group = self.subjects["group:g"]
        wanted = [self.subjects[f"key:{key}"], self.subjects[provider]]
        if key in group.members:
            wanted.insert(1, group)
        limited = [subject for subject in wanted if subject.limits]
        found = [
            (subject, *violation)
            for subject in limited
            for violation in self.model.violations(subject, demand, self.clock, self.wall)
        ]
        refusing = [one for one in found if one[0].limits.enforce]
        index = self.live(worker)
        admission = Admission(self.workers[index])
        if refusing:
            with pytest.raises(Refused) as caught:
                admission.admit(wanted, demand)
            refused = caught.value
            assert (refused.subject, refused.reason) in [one[:2] for one in refusing]
            never = any(one[3] for one in refusing)
            waits = [one[2] for one in refusing]
            assert refused.never == never
            if never or None in waits:
                assert refused.retry_after is None
            else:
                assert refused.retry_after == max(filter(None, waits))
            return
        lease = admission.admit(wanted, demand)
        assert [(v.subject, v.reason, v.retry_after, v.never) for v in lease.dry_run] == found
        seconds = self.model.admit(limited, demand, self.clock)
        assert lease.seconds == seconds
        held = Held(index, demand, seconds, key, lease)
        self.model.held.append(held)
        for standing in lease.standings:
            self.check(standing)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), true=demands, how=st.sampled_from(("known", "known", "none", "unknown")))
    def settle(self, data: Any, true: Demand, how: str) -> None:
        held = data.draw(st.sampled_from(self.model.held))
        if held.worker in self.dead:
            return
        provider = data.draw(st.sampled_from(("p", "q")))
        usage = Usage(true.tokens, 0, true.tokens) if how == "known" else None
        admission = Admission(self.workers[held.worker])
        cost = {"known": true.cost, "none": None, "unknown": admission.bound(held.lease)}[how]
        entry = Entry(
            self.wall, held.key, provider, "m", "completed", usage, cost, how == "unknown"
        )
        admission.settle(entry, held.lease)
        admission.settle(entry, held.lease)
        tokens = {"known": true.tokens, "none": 0, "unknown": held.demand.tokens}[how]
        if how == "unknown" and any(s.limits.budget is not None for s in held.lease.subjects):
            cost = held.demand.cost
        self.model.ledger.append((self.wall, f"key:{held.key}", f"provider:{provider}", cost or 0))
        self.model.give_back(held, tokens)
        self.model.held.remove(held)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        held = data.draw(st.sampled_from(self.model.held))
        if held.worker not in self.dead:
            Admission(self.workers[held.worker]).release(held.lease)
            self.model.give_back(held, 0)
            self.model.held.remove(held)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data(), provider=st.sampled_from((None, *PROVIDERS)))
    def move(self, data: Any, provider: str | None) -> None:
        held = data.draw(st.sampled_from(self.model.held))
        if held.worker in self.dead:
            return
        new = self.subjects[provider] if provider else None
        old = held.lease.provider
        if new is not None and new.limits and old is not None and old.name == new.name:
            return
        violations = (
            self.model.violations(new, held.demand, self.clock, self.wall)
            if new is not None and new.limits.enforce
            else ()
        )
        admission = Admission(self.workers[held.worker])
        if next(iter(violations), None):
            with pytest.raises(Refused):
                admission.move(held.lease, new)
            return
        admission.move(held.lease, new)
        if old is not None:
            second = held.seconds.pop(old.name)
            self.model.accounts[old.name].add(second, -held.demand.tokens)
        if new is not None and new.limits:
            held.seconds |= self.model.admit([new], held.demand, self.clock)
        assert held.lease.seconds == held.seconds

    @rule(key=st.sampled_from(("a", "b")), cost=st.integers(0, 40))
    def settle_without_lease(self, key: str, cost: int) -> None:
        entry = Entry(self.wall, key, "p", "m", "completed", Usage(1, 1, 2), cost)
        self.workers[self.live(0)].settle(entry)
        self.model.ledger.append((self.wall, f"key:{key}", "provider:p", cost))

    @rule(name=st.sampled_from(NAMES), limits=limits_, members=members_)
    def reload(self, name: str, limits: Limits, members: tuple[str, ...]) -> None:
        self.subjects[name] = Subject(name, limits, members if name == "group:g" else ())

    @rule(seconds=st.sampled_from((0.25, 1.0, 3.5, 9.75)))
    def time_passes(self, seconds: float) -> None:
        self.passes(seconds)

    @rule()
    def a_minute_passes(self) -> None:
        for _ in range(7):
            self.passes(9.75)

    @rule(worker=st.integers(0, 2))
    def kill(self, worker: int) -> None:
        if len(self.workers) < 6:
            self.dead.add(self.live(worker))
            self.start_worker()

    @rule(seconds=st.sampled_from((-90_000.0, -3600.0, -4.0, 4.0, 3600.0, 90_000.0, 2_700_000.0)))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.wall += seconds
        if not self.one_clock:
            return
        self.clock += seconds
        if seconds < 0 or seconds > LEASE_SECONDS:
            self.beats = [self.clock] * len(self.beats)
        self.beat()
        # The next admission drops what lies in the future or far in the past.
        for name in NAMES:
            touch = Subject(name, Limits(requests_per_minute=10**6), ("a", "b"))
            lease = self.workers[self.live(0)].admit([touch], Demand())
            self.workers[self.live(0)].release(lease)
            self.model.drop_others(name, int(self.clock))
            self.model.admit([touch], Demand(), self.clock)

    @invariant()
    def sums_are_those_of_the_model(self) -> None:
        if hasattr(self, "workers"):
            for standing in self.workers[self.live(0)].standing(list(self.subjects.values())):
                self.check(standing)

    def check(self, standing: Any) -> None:
        name = standing.subject.name
        requests, tokens = self.model.accounts[name].used(int(self.clock))
        assert (standing.requests, standing.tokens) == (requests, tokens)
        assert standing.concurrent == len(self.model.leases(name))
        assert standing.reserved == self.model.reserved(name)
        assert standing.spent == self.model.spent(standing.subject, self.wall)


def test_sqlite_is_like_the_model(tmp_path: Path) -> None:
    numbers = itertools.count()

    @contextlib.contextmanager
    def stores(clock: Any, wall: Any) -> Iterator[Any]:
        path = tmp_path / f"{next(numbers)}.db"
        with contextlib.ExitStack() as exit_:

            def make() -> SqliteStore:
                store = SqliteStore(path, clock, wall)
                exit_.callback(lambda: store._live and store._live.close())
                exit_.callback(lambda: store._cursor and store._cursor.connection.close())
                return store

            yield make
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()

    run(stores, one_clock=False)


def test_redis_is_like_the_model(redis_server: RedisServer) -> None:
    @contextlib.contextmanager
    def stores(clock: Any, wall: Any) -> Iterator[Any]:
        redis_server.command("FLUSHALL")
        with contextlib.ExitStack() as exit_:

            def make() -> RedisStore:
                store = RedisStore(redis_server.url, clock, wall)
                exit_.callback(store._link.close)
                return store

            yield make

    run(stores, one_clock=True)


def run(stores: Any, *, one_clock: bool) -> None:
    machine = type("Machine", (Machine,), {"stores": staticmethod(stores), "one_clock": one_clock})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
