"""Limits over several processes: exact while they hammer, whole again after kill -9."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import processes
from harness.forks import Child, in_children
from harness.poll import PATIENCE, eventually
from harness.redisserver import RedisServer
from wrapper.metering import Usage
from wrapper.store import Demand, Entry, Limits, Refused, Subject, open_store
from wrapper.store.redis import RedisStore
from wrapper.store.sqlite import SqliteStore

pytestmark = pytest.mark.usefixtures("patient_stores")

KINDS = ("key:web", "group:team", "provider:groq")
FREE = Limits(requests_per_minute=10**9)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/usage.db"
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    yield server.url


def subjects(limited: str, limits: Limits) -> list[Subject]:
    """Key, group and provider, of which one has these limits and the others all they want."""
    return [
        Subject(name, limits if name == limited else FREE, ("web", "batch") if ":t" in name else ())
        for name in KINDS
    ]


def entry(tokens: int, cost: int) -> Entry:
    usage = Usage(tokens, 0, tokens)
    return Entry(time.time(), "web", "groq", "m", "completed", usage, cost)


@pytest.mark.parametrize("limited", KINDS)
def test_four_processes_are_admitted_exactly_as_often_as_the_limit_says(
    url: str, limited: str
) -> None:
    wanted = subjects(limited, Limits(requests_per_minute=50))

    def hammer(_: int) -> int:
        store, admitted = open_store(url), 0
        for _ in range(125):
            try:
                lease = store.admit(wanted, Demand(5, 5))
            except Refused:
                continue
            admitted += 1
            store.settle(entry(3, 2), lease)
        store.close()
        return admitted

    assert sum(in_children(4, hammer)) == 50
    store = open_store(url)
    for standing in store.standing(wanted):
        assert (standing.requests, standing.tokens, standing.concurrent) == (50, 150, 0)
    assert store.totals()[0].total == 150
    store.close()


@pytest.mark.parametrize("limited", KINDS)
def test_four_processes_hold_exactly_as_many_slots_as_there_are(
    url: str, limited: str, tmp_path: Path
) -> None:
    wanted = subjects(limited, Limits(max_concurrent=20))
    go_on = tmp_path / "go on"

    def hammer(number: int) -> int:
        store, held = open_store(url), []
        for _ in range(60):
            try:
                held.append(store.admit(wanted, Demand(5, 5)))
            except Refused:
                if held and random.random() < 0.3:
                    store.settle(entry(3, 2), held.pop())
        (tmp_path / str(number)).touch()
        eventually(go_on.exists)
        for lease in held:
            store.settle(entry(3, 2), lease)
        store.close()
        return len(held)

    children = [Child(lambda number=number: hammer(number)) for number in range(4)]  # type: ignore[misc]
    eventually(lambda: all((tmp_path / str(number)).exists() for number in range(4)))
    store = open_store(url)
    held = [standing.concurrent for standing in store.standing(wanted)]
    go_on.touch()
    assert held == [sum(child.result() for child in children)] * 3
    assert held[0] <= 20
    assert [standing.concurrent for standing in store.standing(wanted)] == [0] * 3
    store.close()


@pytest.mark.parametrize("limited", KINDS)
@pytest.mark.parametrize("kind", ["tokens", "budget"])
def test_tokens_and_money_are_never_overspent_and_true_at_the_end(
    url: str, limited: str, kind: str
) -> None:
    limit = 5000
    limits = Limits(tokens_per_minute=limit) if kind == "tokens" else Limits(budget=limit)
    budgeted = Limits(budget=10**15)
    wanted = [
        subject if subject.name == limited else Subject(subject.name, budgeted, subject.members)
        for subject in subjects(limited, limits)
    ]

    def hammer(number: int) -> list[int]:
        store, dice = open_store(url), random.Random(number)
        used, most, held = 0, 0, []
        for _ in range(100):
            estimate = dice.randint(50, 200)
            true = dice.randint(0, estimate)
            try:
                held.append((store.admit(wanted, Demand(estimate, estimate)), true))
            except Refused as refused:
                most = max(most, refused.used)
            if len(held) > 2:
                lease, true = held.pop(0)
                store.settle(entry(true, true), lease)
                used += true
        for lease, true in held:
            store.settle(entry(true, true), lease)
            used += true
        store.close()
        return [used, most]

    results = in_children(4, hammer)
    used = sum(result[0] for result in results)
    assert max(result[1] for result in results) <= limit
    assert used <= limit
    store = open_store(url)
    for standing in store.standing(wanted):
        assert (standing.tokens, standing.reserved, standing.concurrent) == (used, 0, 0)
        if standing.subject.limits.budget is not None:
            assert standing.spent == used
    assert store.totals()[0].cost == used
    store.close()


def test_what_a_killed_process_held_is_back_within_thirty_seconds(url: str, tmp_path: Path) -> None:
    web = Subject("key:web", Limits(max_concurrent=100, budget=1000, tokens_per_minute=1000))
    ready = tmp_path / "ready"
    ahead = 0.0
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        store: Any = SqliteStore(path, lambda: time.monotonic() + ahead)
    else:
        store = RedisStore(url, lambda: time.time() + ahead)

    def work() -> None:
        mine = open_store(url)
        for number in range(20):
            lease = mine.admit([web], Demand(10, 10))
            if number < 5:
                mine.settle(entry(4, 4), lease)
        ready.touch()
        time.sleep(600)

    child = Child(work)
    eventually(ready.exists)
    assert store.standing([web])[0].concurrent == 15
    child.kill()
    for _ in range(5):
        store.heartbeat()
        ahead += 5.0
    store.heartbeat()
    [standing] = store.standing([web])
    assert (standing.concurrent, standing.reserved, standing.spent) == (0, 0, 20)
    assert (standing.requests, standing.tokens) == (20, 20)
    assert store.totals()[0].requests == 5
    store.close()


PATCHED = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent
from wrapper.store import Demand, Entry, Limits, Refused, StoreError, Subject, open_store, sqlite

sqlite.DRAIN_SECONDS = 0.0
store = open_store(sys.argv[1])
web = Subject("key:web", Limits(max_concurrent=30))
held, refused = [], []

def request():
    try:
        held.append(store.admit([web], Demand(1, 1)))
    except Refused as error:
        refused.append(error)

gevent.joinall([gevent.spawn(request) for _ in range(100)], raise_error=True)
print(len(held), len(refused), store.standing([web])[0].concurrent, flush=True)

sys.stdin.readline()  # the store is out of reach now
ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1

ticker = gevent.spawn(tick)
try:
    store.settle(Entry(time.time(), "web", "groq", "m", "completed"), held.pop())
except StoreError as error:
    print("waits", ticks >= 5, flush=True)
sys.stdin.readline()
store.close()
print("closed", flush=True)
"""


def patched(url: str) -> Any:
    """A process as a worker is: the standard library is gevent's."""
    return processes.start(
        [sys.executable, "-c", PATCHED, url],
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_store_out_of_reach_stops_no_other_greenlet(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    path = tmp_path / "usage.db"
    redis_server.command("FLUSHALL")
    open_store(f"sqlite:///{path}").check()
    other = sqlite3.connect(path, isolation_level=None)
    blocks: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        (
            f"sqlite:///{path}",
            lambda: other.execute("BEGIN IMMEDIATE"),
            lambda: other.execute("COMMIT"),
        ),
        (
            redis_server.url,
            lambda: redis_server.signal(signal.SIGSTOP),
            lambda: redis_server.signal(signal.SIGCONT),
        ),
    ]
    for url, block, unblock in blocks:
        process = patched(url)
        try:
            assert process.stdout.readline() == b"30 70 30\n"
            block()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"waits True\n"
            unblock()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"closed\n"
            assert process.wait(PATIENCE) == 0
        finally:
            with contextlib.suppress(sqlite3.OperationalError):  # nothing is locked
                unblock()
            process.kill()
            process.communicate()
        store = open_store(url)
        assert store.standing([Subject("key:web", FREE)])[0].concurrent == 0
        store.close()
    other.close()
