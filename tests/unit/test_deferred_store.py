"""Deferred work is remembered, asked about and booked once: one suite over SQLite and Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.forks import Child, in_children
from harness.poll import eventually
from harness.redisserver import RedisServer
from wrapper.metering import Usage
from wrapper.store import Deferred, Demand, Entry, Lease, Limits, Subject, UsageStore, deferredsql
from wrapper.store.deferred import GAP_SECONDS, LONGEST_PAUSE, pause
from wrapper.store.redis import RedisStore
from wrapper.store.sqlite import SqliteStore

NOON = 1_764_158_400.0
WEB = Subject("key:web", Limits(max_concurrent=100, tokens_per_minute=10**6, budget=10**12))
TEAM = Subject("group:team", Limits(budget=10**12), ("web",))
WORK = Deferred("openai", "resp_1", "response", "web", "m", "/v1/responses?v=1", NOON, 700, tag="t")


class World:
    """One store, seen by any number of workers, and its clock."""

    def __init__(self, redis_url: str | None, directory: Path) -> None:
        self._redis_url = redis_url
        self.path = directory / "usage.db"
        self.now = NOON
        self._workers: list[Any] = []

    def worker(self) -> Any:
        store: SqliteStore | RedisStore
        if self._redis_url is None:
            store = SqliteStore(self.path, lambda: self.now, lambda: self.now)
        else:
            store = RedisStore(self._redis_url, lambda: self.now, lambda: self.now)
        self._workers.append(store)
        return store

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
    made: UsageStore = world.worker()
    return made


def entry(**changes: Any) -> Entry:
    used = Usage(100, 10, 110, cached=40, reasoning=5)
    made = Entry(NOON, "web", "openai", "m", "completed", used, 500, requests=0)
    return made._replace(**changes)


def create(store: UsageStore, work: Deferred = WORK) -> Lease:
    """A request that has started the work, from its admission to its end."""
    lease = store.admit([WEB, TEAM], Demand(50, 700))
    store.remember(work, lease, 10.0)
    store.settle(entry(usage=None, cost=None, requests=1, deferred=True), lease)
    return lease


def reserved(store: UsageStore) -> list[int]:
    return [standing.reserved for standing in store.standing([WEB, TEAM])]


def test_what_is_booked_is_in_the_ledger_once(store: UsageStore) -> None:
    create(store)
    assert store.pending("openai", ["resp_1", "resp_2"]) == [WORK]
    assert store.pending("groq", ["resp_1"]) == []
    assert store.book(WORK, [entry(), entry(model="n", cost=None)])
    assert not store.book(WORK, [entry()])
    assert store.pending("openai", ["resp_1"]) == []
    [m, n] = store.totals(by=("model",))
    assert (m.requests, m.prompt, m.completion, m.cost) == (1, 100, 10, 500)
    assert (n.requests, n.prompt, n.unpriced) == (0, 100, 1)


def test_what_was_booked_cannot_be_remembered_again(store: UsageStore) -> None:
    create(store)
    assert store.book(WORK, [entry()])
    create(store)  # the same object again: an idempotent request that was repeated
    assert reserved(store) == [0, 0]
    assert not store.book(WORK, [entry()])
    assert store.totals()[0].prompt == 100


def test_what_is_unknown_is_not_booked(store: UsageStore) -> None:
    assert not store.book(WORK, [entry()])
    assert store.totals()[0].requests == 0


def test_money_is_held_from_the_creation_to_the_booking(store: UsageStore) -> None:
    create(store)
    assert reserved(store) == [700, 700]
    [web, _] = store.standing([WEB, TEAM])
    assert (web.concurrent, web.tokens, web.spent) == (0, 50, 0)
    assert store.book(WORK, [entry()])
    assert reserved(store) == [0, 0]
    assert [standing.spent for standing in store.standing([WEB, TEAM])] == [500, 500]


def test_a_dead_worker_takes_no_money_of_what_it_started(world: World) -> None:
    alive, dead = world.worker(), world.worker()
    lease = dead.admit([WEB, TEAM], Demand(50, 700))
    dead.remember(WORK, lease, 10.0)
    alive.heartbeat()
    for _ in range(6):
        world.now += 5
        alive.heartbeat()
    assert alive.standing([WEB])[0].concurrent == 0
    assert reserved(alive) == [700, 700]
    assert alive.book(WORK, [])
    assert reserved(alive) == [0, 0]


def test_money_of_a_lease_that_has_ended_is_held_again(store: UsageStore) -> None:
    lease = store.admit([WEB, TEAM], Demand(50, 700))
    store.settle(entry(usage=None, cost=None, requests=1, deferred=True), lease)
    assert reserved(store) == [0, 0]
    store.remember(WORK, lease, 10.0)  # as where the store was not in reach at first
    assert reserved(store) == [700, 700]
    store.remember(WORK, lease, 10.0)
    assert reserved(store) == [700, 700]
    assert store.book(WORK, [])
    assert reserved(store) == [0, 0]


def test_a_start_of_the_machine_leaves_the_money_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "usage.db", lambda: NOON, lambda: NOON)
    create(store)
    store.admit([WEB], Demand(1, 1))
    store.close()
    boot = tmp_path / "boot_id"
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    again = SqliteStore(tmp_path / "usage.db", lambda: NOON, lambda: NOON)
    assert reserved(again) == [700, 700]
    assert again.book(WORK, [entry()])
    assert reserved(again) == [0, 0]
    again.close()


def test_questions_are_asked_by_one_at_a_bounded_rate_and_ever_less_often(world: World) -> None:
    one, other = world.worker(), world.worker()
    for number in range(2):
        one.remember(WORK._replace(id=f"resp_{number}"), None, 10.0 + number)
    assert one.take(10.0) is None
    world.now += 20
    first = one.take(10.0)
    assert first == WORK._replace(id="resp_0")
    assert other.take(10.0) is None, "within a second of the last question"
    world.now += GAP_SECONDS
    assert other.take(10.0) == WORK._replace(id="resp_1")
    world.now += GAP_SECONDS
    assert one.take(10.0) is None
    world.now += 20
    again = other.take(10.0)
    assert again is not None
    assert (again.id, again.asks) == ("resp_0", 1)
    assert one.book(first, [])
    assert one.book(again._replace(id="resp_1"), [])
    world.now += 100_000
    assert one.take(10.0) is None
    assert [pause(10.0, asks) for asks in range(3)] == [10.0, 20.0, 40.0]
    assert pause(10.0, 10**6) == LONGEST_PAUSE


def test_what_is_hastened_is_asked_about_next(world: World) -> None:
    store = world.worker()
    store.remember(WORK, None, 3000.0)
    store.hasten(WORK)
    assert store.take(10.0) == WORK
    store.book(WORK, [])
    store.hasten(WORK)
    world.now += 5
    assert store.take(10.0) is None


def test_a_files_content_is_kept(store: UsageStore) -> None:
    assert store.file("openai", "file-1") is None
    store.remember_file("openai", "file-1", "{}")
    store.remember_file("openai", "file-1", '{"a": "☃"}')
    assert store.file("openai", "file-1") == '{"a": "☃"}'
    assert store.file("groq", "file-1") is None


def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    now = [NOON]
    store = SqliteStore(tmp_path / "usage.db", lambda: now[0], lambda: now[0])
    for number in range(3):
        store.remember(WORK._replace(id=f"resp_{number}"), None, 10.0)
    assert store.book(WORK, [])
    store.remember_file("openai", "file-1", "{}")
    now[0] += 32 * 86_400
    taken = store.take(10.0)
    assert taken is not None
    assert taken.id in ("resp_0", "resp_2")
    assert store.file("openai", "file-1") is None
    store.remember(WORK, None, 10.0)
    assert store.pending("openai", ["resp_1"]) == [WORK], "the booked one has been forgotten"
    plan = store._here().execute(f"EXPLAIN QUERY PLAN {deferredsql._FORGET}", (NOON, 500))
    assert "deferred_booked" in str(plan.fetchall())
    store.close()


def test_of_many_processes_one_books(world: World) -> None:
    world.worker().remember(WORK, None, 10.0)
    results = in_children(4, lambda _: world.worker().book(WORK, [entry()]))
    assert sorted(results) == [False, False, False, True]
    assert world.worker().totals()[0].prompt == 100


def test_processes_that_are_killed_while_they_book_leave_nothing_twice(world: World) -> None:
    count = 120
    works = [WORK._replace(id=f"resp_{number}") for number in range(count)]
    parent = world.worker()
    for work in works:
        lease = parent.admit([WEB, TEAM], Demand(5, 700))
        parent.remember(work, lease, 10.0)
        parent.settle(entry(usage=None, cost=None, requests=1, deferred=True), lease)

    def book_all() -> None:
        store = world.worker()
        for work in works:
            store.book(work, [entry()])

    for booked in (count // 6, count // 3, count // 2):
        victims = [Child(book_all) for _ in range(2)]
        eventually(lambda least=booked: parent.totals()[0].prompt >= 100 * least)
        for victim in victims:
            victim.kill()
    ids = [work.id for work in works]
    pending = [*parent.pending("openai", ids[:60]), *parent.pending("openai", ids[60:])]
    [sums] = parent.totals()
    assert sums.prompt == 100 * (count - len(pending))
    assert reserved(parent) == [700 * len(pending)] * 2
    book_all()
    [sums] = parent.totals()
    assert (sums.requests, sums.prompt, sums.cost) == (count, 100 * count, 500 * count)
    assert reserved(parent) == [0, 0]
