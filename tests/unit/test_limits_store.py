"""Admission and settlement, one suite over SQLite and Redis."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.redisserver import RedisServer
from wrapper.admission import Admission
from wrapper.metering import Usage
from wrapper.metering.bounds import Bounds
from wrapper.store import (
    Demand,
    Entry,
    Lease,
    Limits,
    Refused,
    Subject,
    Sums,
    UsageStore,
    recent,
    redisledger,
)
from wrapper.store.redis import RedisStore
from wrapper.store.sqlite import SqliteStore

NOON = 1_764_158_400.0  # 2025-11-26T12:00Z, a Wednesday
DAY = 86_400.0
USD = 10**12


class World:
    """One store, seen by any number of workers, and the clocks that they go by."""

    def __init__(self, redis_url: str | None, directory: Path) -> None:
        self._redis_url = redis_url
        self._path = directory / "usage.db"
        self.clock = 5000.25
        self.wall = NOON + 0.25
        self._workers: list[Any] = []

    def worker(self) -> UsageStore:
        """A store as a further process has it."""
        store: SqliteStore | RedisStore
        if self._redis_url is None:
            store = SqliteStore(self._path, lambda: self.clock, lambda: self.wall)
        else:
            store = RedisStore(self._redis_url, lambda: self.wall, lambda: self.wall)
        self._workers.append(store)
        return store

    def passes(self, seconds: float, *alive: UsageStore) -> None:
        """Time goes on, with the heartbeats of the workers that are alive."""
        while seconds > 0:
            step = min(5.0, seconds)
            self.clock += step
            self.wall += step
            seconds -= step
            for worker in alive:
                worker.heartbeat()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


@pytest.fixture(params=["sqlite", "redis"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = None
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        url = server.url
    made = World(url, tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(world: World) -> UsageStore:
    return world.worker()


def key(name: str = "web", **limits: Any) -> Subject:
    return Subject(f"key:{name}", Limits(**limits))


def group(*members: str, **limits: Any) -> Subject:
    return Subject("group:team", Limits(**limits), members)


def provider(name: str = "groq", **limits: Any) -> Subject:
    return Subject(f"provider:{name}", Limits(**limits))


def entry(world: World, tokens: int = 10, cost: int = 0, **changes: Any) -> Entry:
    usage = Usage(tokens, 0, tokens)
    return Entry(world.wall, "web", "groq", "m", "completed", usage, cost)._replace(**changes)


def refused(store: UsageStore, *subjects: Subject, tokens: int = 0, cost: int = 0) -> Refused:
    with pytest.raises(Refused) as caught:
        store.admit(subjects, Demand(tokens, cost))
    return caught.value


def test_requests_count_for_sixty_seconds_and_the_second_they_were_made_in(
    world: World, store: UsageStore
) -> None:
    web = key(requests_per_minute=2)
    first = store.admit([web], Demand())
    assert (first.standings[0].requests, first.standings[0].requests_left) == (1, 1)
    assert first.standings[0].requests_reset == pytest.approx(60.75)
    world.passes(10, store)
    store.admit([web], Demand())
    found = refused(store, web)
    assert (found.subject, found.reason, found.limit, found.used) == (web, "requests", 2, 2)
    assert (found.retry_after, found.never) == (51, False)  # 50.75 s
    assert str(found) == "key:web: requests, 2 of 2 used"
    assert found.standings[0].requests_left == 0
    world.passes(50.5, store)
    assert refused(store, web).retry_after == 1
    world.passes(0.25, store)
    store.admit([web], Demand())


def test_a_request_passes_after_the_seconds_that_its_refusal_named(
    world: World, store: UsageStore
) -> None:
    web = key(tokens_per_minute=100)
    for tokens in (30, 30, 30):
        store.admit([web], Demand(tokens))
        world.passes(7, store)
    found = refused(store, web, tokens=60)
    assert found.retry_after is not None
    world.passes(found.retry_after - 1, store)
    refused(store, web, tokens=60)
    world.passes(1, store)
    store.admit([web], Demand(60))


def test_true_tokens_take_the_place_of_the_estimate(world: World, store: UsageStore) -> None:
    web = key(tokens_per_minute=100)
    lease = store.admit([web], Demand(80))
    assert refused(store, web, tokens=21).used == 80
    store.settle(entry(world, tokens=15), lease)
    [standing] = store.standing([web])
    assert (standing.tokens, standing.tokens_left, standing.concurrent) == (15, 85, 0)
    store.admit([web], Demand(85))


def test_use_that_is_not_known_settles_at_the_estimate(world: World, store: UsageStore) -> None:
    admission = Admission(store)
    web = key(tokens_per_minute=100, budget=5 * USD)
    lease = admission.admit([web], Demand(80, USD))
    bound = admission.bound(lease)
    admission.settle(entry(world, usage=None, cost=bound, unmetered=True), lease)
    [standing] = store.standing([web])
    assert (standing.tokens, standing.spent, standing.reserved) == (80, USD, 0)
    [sums] = store.totals()
    assert (sums.cost, sums.total, sums.unmetered) == (USD, 0, 1)


def test_use_that_is_bounded_is_no_sum_and_settles_at_its_high_end(
    world: World, store: UsageStore
) -> None:
    web = key(tokens_per_minute=100, budget=5 * USD)
    for high in (USD, 2 * USD):
        lease = store.admit([web], Demand(40, high))
        bounds = Bounds(3, 40, 5, high)
        store.settle(entry(world, usage=None, cost=None, bounds=bounds), lease)
    store.settle(entry(world, usage=None, cost=None, bounds=Bounds(1, 2, None, None)))
    [standing] = store.standing([web])
    assert (standing.tokens, standing.spent, standing.reserved) == (80, 3 * USD, 0)
    [sums] = store.totals()
    assert (sums.requests, sums.cost, sums.total, sums.unmetered) == (3, 0, 0, 0)
    assert (sums.bounded, sums.tokens_low, sums.tokens_high) == (3, 7, 82)
    assert (sums.cost_low, sums.cost_high, sums.unpriced) == (10, 3 * USD, 1)
    # A budget that is summed anew counts the high end, too.
    [standing] = store.standing([key(tokens_per_minute=100, budget=5 * USD, budget_period="week")])
    assert standing.spent == 3 * USD


def test_the_parts_of_the_cost_are_summed(world: World, store: UsageStore) -> None:
    for kinds, cost in (((1, 2, 3, 4), 10), ((5, 0, 0, 6), 20), ((0, 0, 0, 0), 7)):
        store.settle(entry(world, cost=cost, cost_by_kind=kinds))
    [sums] = store.totals()
    assert (sums.cost, sums.cost_by_kind) == (37, (6, 2, 3, 10, 16))


def test_a_request_that_used_nothing_settles_at_nothing(world: World, store: UsageStore) -> None:
    web = key(tokens_per_minute=100, budget=5 * USD)
    lease = store.admit([web], Demand(80, USD))
    store.settle(entry(world, usage=None, cost=None, outcome="client_error"), lease)
    [standing] = store.standing([web])
    assert (standing.requests, standing.tokens, standing.spent) == (1, 0, 0)


def test_slots_are_held_until_the_lease_ends(world: World, store: UsageStore) -> None:
    web = key(max_concurrent=2)
    leases = [store.admit([web], Demand()) for _ in range(2)]
    found = refused(store, web)
    assert (found.reason, found.limit, found.used, found.retry_after) == ("concurrency", 2, 2, 1)
    store.settle(entry(world), leases[0])
    store.admit([web], Demand())
    store.release(leases[1])
    store.release(leases[1])
    assert store.standing([web])[0].concurrent == 1


def test_a_demand_above_the_whole_limit_never_fits(store: UsageStore) -> None:
    for subject, demand in (
        (key(tokens_per_minute=100), Demand(101, 0)),
        (key(budget=5, budget_period="day"), Demand(0, 6)),
    ):
        found = refused(store, subject, tokens=demand.tokens, cost=demand.cost)
        assert (found.never, found.retry_after) == (True, None)


def test_all_subjects_or_none(store: UsageStore) -> None:
    web, team = key(requests_per_minute=5), group("web", requests_per_minute=5)
    groq = provider(max_concurrent=1)
    store.admit([web, team, groq], Demand(7))
    assert refused(store, web, team, groq, tokens=7).subject == groq
    assert [(s.requests, s.tokens) for s in store.standing([web, team, groq])] == [(1, 7)] * 3


def test_of_several_limits_the_one_that_lasts_longest_is_reported(
    world: World, store: UsageStore
) -> None:
    web = key(requests_per_minute=1, max_concurrent=1, budget=10, budget_period="day")
    team = group("web", tokens_per_minute=5)
    store.settle(entry(world, cost=10), store.admit([web], Demand(0, 10)))
    assert refused(store, web).reason == "requests"
    found = refused(store, web, cost=1)
    assert (found.reason, found.retry_after) == ("budget", 43_200)
    found = refused(store, web, team, tokens=6, cost=1)
    assert (found.subject, found.reason, found.never) == (team, "tokens", True)


def test_a_budget_that_is_only_reserved_has_room_at_any_moment(
    world: World, store: UsageStore
) -> None:
    web = key(budget=10, budget_period="day")
    lease = store.admit([web], Demand(0, 4))
    store.settle(entry(world, cost=4), lease)
    lease = store.admit([web], Demand(0, 5))
    found = refused(store, web, cost=6)  # beside what is spent it fits
    assert (found.retry_after, found.used, found.reserved) == (1, 9, 5)
    found = refused(store, web, cost=7)
    assert (found.retry_after, found.used, found.reserved) == (43_200, 9, 0)
    # Another limit lasts longer: that one is told.
    team = group("web", budget=8, budget_period="total")
    found = refused(store, web, team, cost=6)
    assert (found.subject, found.retry_after, found.reserved) == (team, None, 0)
    store.settle(entry(world, cost=0), lease)
    store.admit([web], Demand(0, 6))


def test_a_groups_limits_hold_over_all_its_keys(world: World, store: UsageStore) -> None:
    team = group("web", "batch", requests_per_minute=3, budget=10)
    for name in ("web", "batch", "web"):
        lease = store.admit([key(name, requests_per_minute=9), team], Demand(0, 1))
        store.settle(entry(world, key=name, cost=2), lease)
    assert refused(store, key("batch", requests_per_minute=9), team).subject == team
    assert store.standing([team])[0].spent == 6


def test_a_dry_run_counts_and_refuses_nothing(store: UsageStore) -> None:
    web = key(requests_per_minute=1, enforce=False)
    assert store.admit([web], Demand()).dry_run == ()
    [violation] = store.admit([web], Demand()).dry_run
    assert (violation.subject, violation.reason, violation.used) == (web, "requests", 1)
    assert store.standing([web])[0].requests == 2
    team = group("web", requests_per_minute=1)
    store.admit([web, team], Demand())
    assert refused(store, web, team).subject == team


def test_a_limit_that_is_lowered_holds_for_the_next_request(
    world: World, store: UsageStore
) -> None:
    leases = [store.admit([key(max_concurrent=5)], Demand(0, 3)) for _ in range(4)]
    found = refused(store, key(max_concurrent=2))
    assert (found.limit, found.used) == (2, 4)
    assert store.standing([key(max_concurrent=2)])[0].concurrent_left == 0
    for lease in leases:
        store.settle(entry(world), lease)
    store.admit([key(max_concurrent=2)], Demand())


def test_a_second_settlement_of_a_lease_does_nothing(world: World, store: UsageStore) -> None:
    web = key(max_concurrent=5, budget=100)
    leases = [store.admit([web], Demand(5, 5)) for _ in range(2)]
    for _ in range(3):
        store.settle(entry(world, tokens=3, cost=4), leases[0])
    store.release(leases[0])
    [standing] = store.standing([web])
    assert (standing.concurrent, standing.tokens) == (1, 8)
    assert (standing.spent, standing.reserved) == (4, 5)
    assert store.totals()[0].requests == 1


def test_without_limits_nothing_touches_the_store(tmp_path: Path) -> None:
    admission = Admission(SqliteStore(tmp_path / "usage.db"))
    lease = admission.admit([key(), group("web"), provider()], Demand(5, 5))
    assert (lease.subjects, lease.standings, lease.demand) == ((), (), Demand(5, 5))
    admission.move(lease, provider("openai"))
    admission.release(lease)
    assert admission.standing([]) == []
    assert list(tmp_path.iterdir()) == []


def test_an_empty_lease_settles_as_none(world: World, store: UsageStore) -> None:
    admission = Admission(store)
    lease = admission.admit([], Demand(5))
    admission.settle(entry(world), lease)
    admission.settle(entry(world), lease)
    admission.settle(entry(world))
    assert store.totals()[0].requests == 2


def test_a_lease_ends_whose_tokens_the_clock_has_taken_out_of_the_window(
    world: World, store: UsageStore
) -> None:
    web = key(tokens_per_minute=10, max_concurrent=3)
    lease = store.admit([web], Demand(5))
    for seconds in (-3600, 3600):
        world.wall += seconds
        store.release(store.admit([web], Demand()))
    store.release(lease)
    [standing] = store.standing([web])
    assert (standing.tokens, standing.concurrent) == (0, 0)


# Failover


def test_a_lease_moves_to_another_provider(world: World, store: UsageStore) -> None:
    web, groq, openai = key(max_concurrent=5), provider(budget=100), provider("openai", budget=100)
    lease = store.admit([web, groq], Demand(7, 5))
    store.move(lease, openai)
    assert lease.subjects == (web, openai)
    assert [s.subject for s in lease.standings] == [web, openai]
    assert [
        (s.requests, s.tokens, s.concurrent, s.reserved) for s in used(store, web, groq, openai)
    ] == [
        (1, 7, 1, 5),
        (1, 0, 0, 0),
        (1, 7, 1, 5),
    ]
    store.settle(entry(world, provider="openai", tokens=4, cost=3), lease)
    assert [
        (s.tokens, s.concurrent, s.reserved, s.spent) for s in used(store, web, groq, openai)
    ] == [
        (4, 0, 0, 0),
        (0, 0, 0, 0),
        (4, 0, 0, 3),
    ]


def used(store: UsageStore, *subjects: Subject) -> list[Any]:
    return store.standing(subjects)


def test_a_move_that_is_refused_changes_nothing(world: World, store: UsageStore) -> None:
    groq, openai = provider(max_concurrent=3), provider("openai", max_concurrent=1)
    other = store.admit([openai], Demand())
    lease = store.admit([groq], Demand(7))
    before = used(store, groq, openai)
    with pytest.raises(Refused) as caught:
        store.move(lease, openai)
    assert caught.value.subject == openai
    assert used(store, groq, openai) == before
    assert lease.subjects == (groq,)
    store.release(other)
    store.move(lease, openai)
    store.release(lease)
    assert [s.concurrent for s in used(store, groq, openai)] == [0, 0]


def test_a_lease_moves_to_and_from_a_provider_without_limits(
    world: World, store: UsageStore
) -> None:
    admission = Admission(store)
    web, groq = key(max_concurrent=5), provider(max_concurrent=5)
    lease = admission.admit([web, provider("openai")], Demand(3))
    admission.move(lease, groq)
    assert [s.concurrent for s in used(store, web, groq)] == [1, 1]
    admission.move(lease, groq)
    admission.move(lease, provider("openai"))
    assert [s.concurrent for s in used(store, web, groq)] == [1, 0]
    assert lease.subjects == (web,)
    empty = admission.admit([], Demand(3))
    admission.move(empty, groq)
    assert used(store, groq)[0].tokens == 3
    admission.settle(entry(world, tokens=1), empty)
    assert [(s.concurrent, s.tokens) for s in used(store, groq)] == [(0, 1)]


# Budgets


def test_a_budget_is_the_ledger_and_what_is_reserved(world: World, store: UsageStore) -> None:
    store.settle(entry(world, cost=3 * USD))  # before there was a budget
    web = key(budget=10 * USD)
    lease = store.admit([web], Demand(0, 4 * USD))
    assert (lease.standings[0].spent, lease.standings[0].budget_left) == (3 * USD, 3 * USD)
    assert refused(store, web, cost=3 * USD + 1).used == 7 * USD
    store.settle(entry(world, cost=USD), lease)
    store.settle(entry(world, cost=2 * USD))  # by a request without a lease
    assert store.standing([web])[0].spent == 6 * USD
    store.admit([web], Demand(0, 4 * USD))


@pytest.mark.parametrize(
    ("period", "start", "seconds"),
    [
        ("day", NOON - DAY / 2, 43_199.75),
        ("week", NOON - 2.5 * DAY, 4.5 * DAY - 0.25),
        ("month", NOON - 25.5 * DAY, 4.5 * DAY - 0.25),
        ("total", 0.0, None),
    ],
)
def test_budgets_begin_anew_with_their_period(
    world: World, store: UsageStore, period: str, start: float, seconds: float | None
) -> None:
    web = key(budget=10, budget_period=period)
    store.settle(entry(world, at=start, cost=4))
    if start:
        store.settle(entry(world, at=start - 1, cost=4))
    assert store.standing([web])[0].spent == 4
    store.admit([web], Demand(0, 6))
    found = refused(store, web, cost=7)
    assert found.retry_after == (None if seconds is None else math.ceil(seconds))
    assert found.standings[0].budget_reset == (
        None if seconds is None else pytest.approx(seconds, abs=0.01)
    )
    assert not found.never
    if seconds is None:
        return
    world.wall += seconds
    world.clock += seconds
    assert store.standing([web])[0].spent == 0
    lease = store.admit([web], Demand(0, 4))  # 6 are still reserved
    # What ends now belongs to now; what ended before, to the period before.
    store.settle(entry(world, cost=1, at=world.wall - 3601), None)
    store.settle(entry(world, cost=3), lease)
    assert [(s.spent, s.reserved) for s in store.standing([web])] == [(3, 6)]


def test_a_group_with_other_members_is_summed_anew(world: World, store: UsageStore) -> None:
    spent = {"web": 1, "batch": 20, "other": 300}
    for name, cost in spent.items():
        store.settle(entry(world, key=name, cost=cost))
    for members in (("web", "batch"), ("batch", "other"), ("web",)):
        team = group(*members, budget=10_000)
        assert used(store, team)[0].spent == sum(spent[name] for name in members)
        store.release(store.admit([team], Demand()))
        for name in spent:
            store.settle(entry(world, key=name, cost=7))
            spent[name] += 7
        assert used(store, team)[0].spent == sum(spent[name] for name in members)


def test_budgets_are_exact_beyond_what_a_float_can_tell(world: World, store: UsageStore) -> None:
    budget = 2**60 + 1
    web = key(budget=budget)
    store.settle(entry(world, cost=2**60 - 2))
    lease = store.admit([web], Demand(0, 1))
    assert refused(store, web, cost=3).used == 2**60 - 1
    assert lease.standings[0].budget_left == 2
    store.admit([web], Demand(0, 2))
    assert refused(store, web, cost=1).used == budget


def test_money_does_not_overflow(world: World, store: UsageStore) -> None:
    web = key(budget=2**70, budget_period="total", enforce=False)
    assert web.limits.budget == 2**62
    for _ in range(3):
        lease = store.admit([web], Demand(10**30, 10**30))
        store.settle(entry(world, tokens=10**18, cost=10**25), lease)
    store.admit([web], Demand(0, 2**61))
    [standing] = store.standing([web])
    assert (standing.spent, standing.reserved) == (2**62, 2**61)
    assert store.totals()[0].cost == 2**62


# Workers that die


def test_the_leases_of_a_killed_worker_end_within_thirty_seconds(world: World) -> None:
    alive, dead = world.worker(), world.worker()
    web, team = key(max_concurrent=3, budget=100), group("web", tokens_per_minute=100)
    alive.heartbeat()
    settled = dead.admit([web, team], Demand(10, 10))
    dead.settle(entry(world, tokens=4, cost=4), settled)
    for _ in range(2):
        dead.admit([web, team], Demand(10, 10))
    kept = alive.admit([web, team], Demand(10, 10))
    assert refused(alive, web, team).reason == "concurrency"
    world.passes(20, alive)
    assert used(alive, web)[0].concurrent == 3
    world.passes(5, alive)
    for standing in used(alive, web, team):
        assert (standing.concurrent, standing.reserved) == (1, 10)
        assert (standing.requests, standing.tokens) == (4, 14)  # requests stay counted
    assert used(alive, web)[0].spent == 4
    alive.settle(entry(world), kept)
    assert used(alive, web)[0].concurrent == 0


def test_a_refusal_looks_for_dead_workers_first(world: World) -> None:
    alive, other, dead = world.worker(), world.worker(), world.worker()
    web = key(max_concurrent=1)
    other.heartbeat()
    dead.admit([web], Demand())
    world.passes(20.5, other)
    alive.admit([web], Demand())
    assert used(alive, web)[0].concurrent == 1


def test_a_worker_with_heartbeats_keeps_its_leases(world: World) -> None:
    one, two = world.worker(), world.worker()
    web = key(max_concurrent=1)
    lease = one.admit([web], Demand(5))
    world.passes(120, one, two)
    refused(two, web)
    one.settle(entry(world), lease)
    two.admit([web], Demand())


def test_a_worker_that_only_seemed_dead_gives_nothing_back_twice(world: World) -> None:
    alive, slow = world.worker(), world.worker()
    web = key(max_concurrent=5, budget=100)
    first, second = (slow.admit([web], Demand(10, 10)) for _ in range(2))
    kept = alive.admit([web], Demand(10, 10))
    world.passes(25, alive)
    assert used(alive, web)[0].concurrent == 1
    slow.settle(entry(world, tokens=7, cost=8), first)
    slow.release(second)
    [standing] = used(alive, web)
    assert (standing.concurrent, standing.tokens) == (1, 17)
    assert (standing.spent, standing.reserved) == (8, 10)
    again = slow.admit([web], Demand())
    world.passes(15, alive)  # an admission is a heartbeat, too
    assert used(alive, web)[0].concurrent == 2
    slow.settle(entry(world), again)
    alive.settle(entry(world), kept)
    assert used(alive, web)[0].concurrent == 0


def test_a_lease_that_was_ended_is_admitted_anew_where_it_moves(world: World) -> None:
    alive, slow = world.worker(), world.worker()
    web, groq, openai = key(max_concurrent=5), provider(budget=9), provider("openai", budget=9)
    lease = slow.admit([web, groq], Demand(3, 4))
    alive.heartbeat()
    world.passes(25, alive)
    slow.move(lease, openai)
    assert lease.subjects == (web, openai)
    assert [(s.concurrent, s.reserved) for s in used(alive, web, groq, openai)] == [
        (1, 4),
        (0, 0),
        (1, 4),
    ]
    slow.settle(entry(world), lease)
    assert [s.concurrent for s in used(alive, web, groq, openai)] == [0, 0, 0]


def test_where_nobody_had_a_heartbeat_nobody_is_taken_for_dead(world: World) -> None:
    """The store was out of reach, or the machine slept."""
    one, two = world.worker(), world.worker()
    web = key(max_concurrent=5)
    one.admit([web], Demand())
    two.admit([web], Demand())
    world.passes(300)
    one.heartbeat()
    assert used(one, web)[0].concurrent == 2
    world.passes(25, one)
    assert used(one, web)[0].concurrent == 1


def test_many_leases_of_a_dead_worker_end_in_pieces(world: World) -> None:
    alive, dead = world.worker(), world.worker()
    web = key(max_concurrent=5000)
    alive.heartbeat()
    for _ in range(1200):
        dead.admit([web], Demand(1, 1))
    world.passes(25, alive)
    [standing] = used(alive, web)
    assert (standing.concurrent, standing.reserved, standing.requests) == (0, 0, 1200)


def test_a_worker_that_stops_ends_its_leases(world: World) -> None:
    one, two = world.worker(), world.worker()
    web = key(max_concurrent=5)
    for worker in (one, two):
        worker.admit([web], Demand(3))
    one.close()
    [standing] = used(two, web)
    assert (standing.concurrent, standing.tokens) == (1, 3)


# Windows


@pytest.mark.parametrize("limit", ["requests", "tokens"])
def test_no_sixty_seconds_hold_more_than_the_limit(world: World, limit: str) -> None:
    numbers = itertools.count()

    @given(
        st.lists(
            st.tuples(st.sampled_from((0.0, 0.125, 0.5, 1.0, 9.0, 29.75, 60.0)), st.integers(1, 5)),
            max_size=60,
        )
    )
    @settings(max_examples=15, deadline=None)
    def check(steps: list[tuple[float, int]]) -> None:
        store = world.worker()
        limits = {"requests_per_minute": 4} if limit == "requests" else {"tokens_per_minute": 10}
        web = key(f"k{next(numbers)}", **limits)
        admitted: list[tuple[float, int]] = []
        for pause, tokens in steps:
            world.clock += pause
            world.wall += pause
            try:
                store.admit([web], Demand(tokens))
            except Refused:
                continue
            admitted.append((world.clock, 1 if limit == "requests" else tokens))
        for start, _ in admitted:
            inside = sum(size for at, size in admitted if start <= at < start + 60)
            assert inside <= (4 if limit == "requests" else 10)

    check()


def test_a_jump_of_the_wall_clock_opens_and_closes_no_window_for_longer_than_it_lasts(
    world: World, store: UsageStore
) -> None:
    web = key(requests_per_minute=1)
    for jump in (3600.0, -3600.0, -90_000.0):
        world.wall += jump
        world.passes(61, store)
        store.admit([web], Demand())
        refused(store, web)


def test_other_budgets_than_before_after_a_jump_are_summed_anew(
    world: World, store: UsageStore
) -> None:
    web = key(budget=10, budget_period="day")
    store.settle(entry(world, cost=8), store.admit([web], Demand(0, 8)))
    world.wall += DAY
    store.settle(entry(world, cost=5), store.admit([web], Demand(0, 5)))
    assert used(store, web)[0].spent == 5
    world.wall -= DAY
    assert refused(store, web, cost=1).used == 13


# The ledger


def test_both_stores_sum_the_ledger_alike(world: World, store: UsageStore) -> None:
    for hours in range(-30, 3):
        for name, model in (("web", "☃ 'a\x00"), ("batch", "b"), ("web", "b")):
            at = world.wall + hours * 3600
            usage = Usage(hours + 40, 2, hours + 42, cached=1, reasoning=1, seconds=0.25)
            store.settle(entry(world, at=at, key=name, model=model, usage=usage, cost=10**17))
    store.settle(entry(world, usage=None, cost=None, unmetered=True))
    store.settle(entry(world, cost=None, key="web"))
    [all_] = store.totals()
    numbers = (101, 2574 + 10, 198, 2772 + 10, 99, 99, 24.75, 99 * 10**17, 1, 1)
    assert all_ == Sums((), *numbers, cost_other=99 * 10**17)
    assert store.totals(by=("outcome",)) == [all_._replace(group=("completed",))]
    by_day = store.totals(by=("day", "key"))
    assert [row.group for row in by_day] == [
        ("2025-11-25", "batch"),
        ("2025-11-25", "web"),
        ("2025-11-26", "batch"),
        ("2025-11-26", "web"),
    ]
    assert sum(row.cost for row in by_day) == 99 * 10**17
    assert [r.group for r in store.totals(since=world.wall + 7200, by=("hour", "model"))] == [
        ("2025-11-26T14:00Z", "b"),
        ("2025-11-26T14:00Z", "☃ 'a\x00"),
    ]
    assert store.totals(until=world.wall - 29 * 3600 - 1, key="web")[0].requests == 2
    assert store.totals(key="nobody") == [Sums((), 0, 0, 0, 0, 0, 0, 0.0, 0, 0, 0)]
    assert store.totals(key="nobody", by=("day",)) == []
    with pytest.raises(ValueError, match="cannot group by 'colour'"):
        store.totals(by=("colour",))


def test_what_the_last_requests_have_used_is_kept_for_their_key(
    world: World, store: UsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (recent, redisledger):
        monkeypatch.setattr(module, "KEPT_ROWS", 5)
    for number in range(8):
        world.passes(1, store)
        store.settle(entry(world, at=world.wall, recent=(f"req_{number}", str(number))))
    store.settle(entry(world, at=world.wall, key="batch", recent=("req_7", "another")))
    store.settle(entry(world, at=world.wall), store.admit([key()], Demand()))
    world.passes(recent.TRIM_SECONDS + 5, store)
    assert store.recent("web", "req_2") is None
    assert [store.recent("web", f"req_{number}") for number in (4, 7)] == ["4", "7"]
    assert store.recent("batch", "req_7") == "another"
    assert store.recent("batch", "req_6") is None
    store.settle(entry(world, at=world.wall, recent=("req_7", "again")))
    assert store.recent("web", "req_7") == "again"
    if isinstance(store, SqliteStore):  # Redis has clocks of its own
        world.wall += recent.KEPT_SECONDS - 60
        assert store.recent("web", "req_7") == "again"
        world.wall += 61
        assert store.recent("web", "req_7") is None


def test_what_can_never_be_written_still_ends_its_lease(world: World, store: UsageStore) -> None:
    from wrapper.store import StoreError

    web = key(max_concurrent=1)
    for bad in ({"model": "\ud800"}, {"usage": Usage(2**70, 0, 0)}, {"model": None}):
        lease = store.admit([web], Demand(5))
        with pytest.raises(StoreError):
            store.settle(entry(world, **bad), lease)
    assert used(store, web)[0].concurrent == 0
    store.settle(entry(world))
    assert store.totals()[0].requests == 1


def test_names_with_separators_are_names(world: World, store: UsageStore) -> None:
    odd = Subject("key:a b@1:{x}\n☃", Limits(max_concurrent=2, budget=100))
    lease = store.admit([odd], Demand(5, 5))
    name = odd.name.removeprefix("key:")
    store.settle(entry(world, key=name, cost=3), lease)
    [standing] = used(store, odd)
    assert (standing.concurrent, standing.tokens, standing.spent) == (0, 10, 3)


def test_a_lease_says_all_that_headers_need(store: UsageStore) -> None:
    web = key(requests_per_minute=10, tokens_per_minute=100, max_concurrent=4, budget=50)
    lease = store.admit([web], Demand(30, 20))
    assert isinstance(lease, Lease)
    [standing] = lease.standings
    assert standing.subject is web
    assert (standing.requests_left, standing.tokens_left) == (9, 70)
    assert (standing.concurrent_left, standing.budget_left) == (3, 30)
    assert 60 <= standing.tokens_reset <= 61
    assert key().limits.requests_per_minute is None
    assert used(store, key())[0].requests_left is None


def test_no_password_in_what_is_logged(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with caplog.at_level(logging.WARNING):
        RedisStore(redis_server.url + "?cluster=no").check()
    redis_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert "appendonly is no" in caplog.text
    assert "maxmemory-policy is allkeys-lru" in caplog.text
