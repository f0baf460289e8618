"""Stores that are locked, full, gone or elsewhere: an error that says so, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.forks import Child
from harness.poll import eventually
from harness.redisserver import RedisServer
from wrapper.metering import Usage
from wrapper.store import (
    Demand,
    Entry,
    Limits,
    StoreError,
    Subject,
    open_store,
    redis,
    redislink,
    redisurl,
    sqlite,
    waiting,
)
from wrapper.store.redis import RedisStore
from wrapper.store.redislink import PREFIX
from wrapper.store.reservations import Reservations
from wrapper.store.schema import MIGRATIONS
from wrapper.store.sqlite import SqliteStore

WEB = Subject("key:web", Limits(max_concurrent=100, budget=10**12))


def entry(**changes: Any) -> Entry:
    usage = Usage(10, 0, 10)
    return Entry(time.time(), "web", "groq", "m", "completed", usage, 7)._replace(**changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


# SQLite

OLD_SETTLE = """
INSERT INTO usage VALUES (?, 'web', 'groq', 'llama', 'completed', 1, 2, 3, 5, 0, 0, 0.0, ?, 0, 0)
ON CONFLICT DO UPDATE SET requests = requests + 1, cost_pico = cost_pico + excluded.cost_pico
"""


def test_a_file_of_version_1_is_brought_to_this_one(path: Path) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    for statement in MIGRATIONS[0]:
        old.execute(statement)
    old.execute("PRAGMA user_version = 1")
    for _ in range(3):
        old.execute(OLD_SETTLE, (int(time.time() // 3600), 7))
    old.close()
    store = SqliteStore(path)
    lease = store.admit([WEB], Demand(5, 5))
    assert lease.standings[0].spent == 21
    store.settle(entry(), lease)
    store.check()
    assert store.totals()[0].requests == 4
    assert store.standing([WEB])[0].spent == 28
    store.close()


def test_after_a_boot_windows_and_leases_are_gone_and_money_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    store.settle(entry(), store.admit([WEB], Demand(5, 5)))
    store.admit([WEB], Demand(5, 5))
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    [standing] = SqliteStore(path).standing([WEB])
    assert (standing.requests, standing.tokens, standing.concurrent) == (0, 0, 0)
    assert (standing.reserved, standing.spent) == (0, 7)
    boot.unlink()  # a system that does not tell
    assert SqliteStore(path).standing([WEB])[0].spent == 7


def test_a_locked_file_refuses_admission_and_is_found_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 0.0)
    store = SqliteStore(path)
    lease = store.admit([WEB], Demand())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.admit([WEB], Demand())
    with pytest.raises(StoreError, match="not in reach a moment ago"):
        store.admit([WEB], Demand())
    assert store.standing([WEB])[0].concurrent == 1  # readers wait for nobody
    with pytest.raises(StoreError, match="locked"):
        store.settle(entry(), lease)
    other.execute("COMMIT")
    other.close()

    def admitted() -> bool:
        with contextlib.suppress(StoreError):
            store.admit([WEB], Demand())
            return True
        return False

    eventually(admitted)
    store._waiting._retry_at = 0.0
    store.heartbeat()
    assert store.standing([WEB])[0].concurrent == 1
    assert store.totals()[0].requests == 1
    store.close()


def test_a_lock_that_is_short_is_waited_for(path: Path) -> None:
    store = SqliteStore(path)
    store.check()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    waits = 0

    def sleep(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 5:
            other.execute("COMMIT")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        store.settle(entry(), store.admit([WEB], Demand()))
    assert waits == 5
    other.close()
    store.close()


def test_a_full_disk_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "DOWN_SECONDS", 0.0)
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 0.0)
    store = SqliteStore(path)
    held = [store.admit([WEB], Demand(5, 5)) for _ in range(50)]
    connection = sqlite3.connect(path)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    assert store._cursor is not None
    store._cursor.execute(f"PRAGMA max_page_count = {pages}")
    problems = set()
    for number, lease in enumerate(held):
        try:
            store.settle(entry(model=f"a long name of a model {number}" * 20), lease)
        except StoreError as error:
            problems.add(str(error).partition(": ")[2].lstrip("0123456789 "))
    assert problems == {"database or disk is full", "requests wait to be written"}
    store._cursor.execute("PRAGMA max_page_count = 1000000")
    store._waiting._retry_at = 0.0
    store.heartbeat()
    assert store.totals()[0].requests == 50
    assert store.standing([WEB])[0].spent == 50 * 7
    store.check()
    store.close()


# Redis


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """One that writes each command down before it answers."""
    monkeypatch.setattr(redislink, "DOWN_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    found = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    try:
        yield found.start()
    finally:
        found.close()


def test_redis_that_is_killed_and_started_under_load_counts_each_request_once(
    server: RedisServer, tmp_path: Path
) -> None:
    stop, counts = tmp_path / "stop", tmp_path / "counts"

    def work() -> int:
        store, settled = open_store(server.url), 0
        last_beat = time.monotonic()
        while not stop.exists():
            with contextlib.suppress(StoreError):
                lease = store.admit([WEB], Demand(5, 5))
                settled += 1
                with contextlib.suppress(StoreError):
                    store.settle(entry(), lease)
                counts.touch()
            if time.monotonic() > last_beat + 0.1:
                last_beat = time.monotonic()
                with contextlib.suppress(StoreError):
                    store.heartbeat()

        def tidy() -> bool:
            """What waits is written, and leases whose admission had no reply have ended."""
            with contextlib.suppress(StoreError):
                store.heartbeat()
                return not store._waiting  # type: ignore[attr-defined]
            return False

        eventually(tidy)
        return settled

    children = [Child(work) for _ in range(2)]
    for _ in range(3):
        counts.unlink(missing_ok=True)
        eventually(counts.exists, what="requests are admitted")
        server.stop()
        server.start()
    counts.unlink(missing_ok=True)
    eventually(counts.exists, what="requests are admitted after the last start")
    stop.touch()
    settled = sum(child.result() for child in children)
    store = open_store(server.url)
    assert store.totals()[0].requests == settled
    [standing] = store.standing([WEB])
    assert (standing.spent, standing.reserved, standing.concurrent) == (settled * 7, 0, 0)
    store.close()


def test_redis_that_does_not_answer_is_given_up_soon(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redisurl, "REPLY_SECONDS", 0.3)
    store = RedisStore(server.url)
    lease = store.admit([WEB], Demand(5, 5))
    server.signal(signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(StoreError, match="Timeout"):
        store.admit([WEB], Demand(5, 5))
    assert time.monotonic() - start < 30
    with pytest.raises(StoreError):
        store.settle(entry(), lease)
    server.signal(signal.SIGCONT)

    def tidy() -> bool:
        """Nobody holds the lease whose admission was not replied to."""
        with contextlib.suppress(StoreError):
            store.heartbeat()
        return store.standing([WEB])[0].concurrent == 0 and not store._waiting

    eventually(tidy, retry_on=(StoreError,))
    assert store.totals()[0].requests == 1
    store.close()


def test_a_reply_that_is_lost_repeats_nothing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks after the script has run: it is run again on a new one."""
    store = RedisStore(server.url)
    store.release(store.admit([WEB], Demand()))
    call = redislink._call
    lost = 0

    def lose(connection: Any, *command: str | int) -> Any:
        nonlocal lost
        reply = call(connection, *command)
        if lost % 2 == 0:
            lost += 1
            raise redislink.redis.exceptions.ConnectionError("the reply is lost")
        lost += 1
        return reply

    monkeypatch.setattr(redislink, "_call", lose)
    other = Subject("provider:q", Limits(max_concurrent=9))
    for _ in range(3):
        lease = store.admit([WEB], Demand(5, 5))
        assert lease.standings[0].concurrent == 1
        store.settle(entry(), lease)
    lease = store.admit([WEB], Demand(5, 5))
    store.move(lease, other)
    store.settle(entry(), lease)
    monkeypatch.undo()
    assert lost == 18
    assert store.totals()[0].requests == 4
    found = store.standing([WEB, other])
    assert [(s.concurrent, s.requests, s.tokens) for s in found] == [(0, 5, 40), (0, 1, 10)]
    store.close()


def test_connections_that_break_are_replaced_as_often_as_it_takes(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.command("FLUSHALL")
    store = RedisStore(redis_server.url)
    call = redislink._call

    def interrupted(connection: Any, *command: Any) -> Any:
        call(connection, *command)
        raise KeyboardInterrupt  # as gevent's exceptions do

    for _ in range(150):
        with monkeypatch.context() as patch:
            patch.setattr(redislink, "_call", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.admit([WEB], Demand(1, 1))
        store.settle(entry())
    store.heartbeat()
    assert store.standing([WEB])[0].concurrent == 0
    assert store.totals()[0].requests == 150
    store.close()


def test_where_too_much_waits_rows_are_lost_and_leases_end(
    path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_WAITING", 5)
    redis_server.command("FLUSHALL")
    for store in (SqliteStore(path), RedisStore(redis_server.url)):
        held = [store.admit([WEB], Demand(1, 1)) for _ in range(10)]
        with monkeypatch.context() as patch:
            patch.setattr(Reservations, "settle", lambda *_: False)  # no room in the live file
            patch.setattr(store, "_write", lambda _: (_ for _ in ()).throw(StoreError("gone")))
            for lease in held:
                with pytest.raises(StoreError):
                    store.settle(entry(), lease)
            for _ in range(8):
                with pytest.raises(StoreError):
                    store.settle(entry())
        store._waiting._retry_at = 0.0
        store.heartbeat()
        assert store.standing([WEB])[0].concurrent == 0
        assert store.totals()[0].requests == 18 - 13
        store.close()


def test_after_a_fork_parent_and_child_have_connections_of_their_own(server: RedisServer) -> None:
    store = RedisStore(server.url)
    lease = store.admit([WEB], Demand())

    def work() -> int:
        store.settle(entry())
        return store.admit([WEB], Demand()).standings[0].concurrent

    children = [Child(work) for _ in range(3)]
    for _ in range(50):
        store.settle(entry())
    assert {child.result() for child in children} <= {2, 3, 4}
    store.settle(entry(), lease)
    assert store.totals()[0].requests == 54
    store.close()


def test_redis_that_was_flushed_or_restarted_empty_is_used_on(redis_server: RedisServer) -> None:
    redis_server.command("FLUSHALL")
    store = RedisStore(redis_server.url)
    lease = store.admit([WEB], Demand(5, 5))
    redis_server.command("FLUSHALL")
    redis_server.command("SCRIPT", "FLUSH")
    store.settle(entry(), lease)
    assert store.standing([WEB])[0].spent == 7
    store.close()


def test_where_configuration_is_forbidden_check_says_nothing(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("ACL", "SETUSER", "wrapper", "on", ">geheim", "~*", "+@all", "-config")
    host = redis_server.url.removeprefix("redis://")
    store = RedisStore(f"redis://wrapper:geheim@{host}")
    store.check()
    assert not caplog.records
    store.settle(entry())
    store.close()


def test_no_error_shows_the_password(redis_server: RedisServer) -> None:
    host = redis_server.url.removeprefix("redis://")
    for url in (
        f"redis://nobody:geheim@{host}",
        "redis://:geheim@127.0.0.1:1/0",
        "redis+sentinel://:geheim@127.0.0.1:1/mymaster/0",
        "redis+cluster://:geheim@127.0.0.1:1",
    ):
        store = open_store(url)
        for use in (store.check, lambda s=store: s.settle(entry())):
            with pytest.raises(StoreError) as caught:
                use()
            assert "geheim" not in f"{caught.value}{caught.value.__cause__}"
            assert "127.0.0.1:" in str(caught.value)
    for url in (
        "redis://:geheim@",
        "redis://:geheim@host:99999",
        "redis://:geheim@host/x",
        "redis://:geheim@host/0/1",
        "redis://:geheim@a,b",
        "redis://:geheim@host?socket_timeout=geheim",
        "redis+sentinel://:geheim@host",
        "redis+else://:geheim@host",
        "redis://:ge heim@host",
    ):
        with pytest.raises(StoreError, match="WRAPPER_STORE") as caught:
            open_store(url)
        assert "geheim" not in str(caught.value)


def test_a_cluster_has_all_keys_on_one_node(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes")
    try:
        server.start()
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        eventually(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
        for url in (f"redis+cluster://127.0.0.1:{server.port}", f"{server.url}?cluster=true"):
            store = open_store(url)
            store.check()
            store.settle(entry(), store.admit([WEB], Demand(5, 5)))
            store.heartbeat()
            store.close()
        assert store.totals(by=("key",))[0].requests == 2
    finally:
        server.close()


def test_a_cluster_of_three_masters_is_found_from_any_of_them_and_when_its_slot_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's keys are all in one slot: they move to another node while the store is used."""
    monkeypatch.setattr("wrapper.store.waiting.RETRY_SECONDS", 0.1)
    servers: list[RedisServer] = []
    try:
        for number in range(3):
            directory = tmp_path / str(number)
            directory.mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "30000")
            servers.append(RedisServer(directory, *options))
            servers[-1].start()
        for server, first, last in zip(
            servers, ("0", "5461", "10923"), ("5460", "10922", "16383"), strict=True
        ):
            server.command("CLUSTER", "ADDSLOTSRANGE", first, last)
        for server in servers[1:]:
            meet = ("CLUSTER", "MEET", "127.0.0.1", str(server.port), str(server.bus_port))
            assert servers[0].command(*meet) == b"+OK\r\n"
        ready = (b"cluster_state:ok", b"cluster_known_nodes:3", b"cluster_slots_ok:16384")
        for server in servers:
            eventually(
                lambda server=server: all(  # type: ignore[misc]
                    text in server.command("CLUSTER", "INFO") for text in ready
                ),
                60,
                what="each node knows the whole cluster",
            )
        slot = int(servers[0].command("CLUSTER", "KEYSLOT", PREFIX)[1:])
        at = min(slot * 3 // 16384, 2)
        owner, other = servers[at], servers[(at + 1) % 3]
        store = open_store(f"redis+cluster://127.0.0.1:{other.port}")
        store.check()
        store.settle(entry(), store.admit([WEB], Demand(5, 5)))
        lease = store.admit([WEB], Demand(5, 5))
        assert owner.command("DBSIZE") != b":0\r\n"
        assert {server.command("DBSIZE") for server in servers if server is not owner} == {
            b":0\r\n"
        }
        _move_slot(slot, owner, other)
        for settled in (None, lease):
            with contextlib.suppress(StoreError):  # what is not written yet waits
                store.settle(entry(), settled)
        eventually(
            lambda: store.heartbeat() is None,
            60,
            retry_on=(StoreError,),
            what="what waits is written",
        )
        assert store.totals()[0].requests == 3
        assert store.standing([WEB])[0].concurrent == 0
        assert owner.command("DBSIZE") == b":0\r\n"
        store.close()
    finally:
        for server in servers:
            server.close()


def _move_slot(slot: int, owner: RedisServer, other: RedisServer) -> None:
    """As `redis-cli --cluster reshard` does it."""
    ids = [server.command("CLUSTER", "MYID").split()[1].decode() for server in (owner, other)]
    assert other.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[0]) == b"+OK\r\n"
    assert owner.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[1]) == b"+OK\r\n"
    reply = owner.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1000")
    keys = [line.decode() for line in reply.split(b"\r\n") if line.startswith(PREFIX.encode())]
    moved = owner.command(
        *("MIGRATE", "127.0.0.1", str(other.port), "", "0", "30000", "KEYS", *keys)
    )
    assert moved == b"+OK\r\n"
    for server in (other, owner):
        assert server.command("CLUSTER", "SETSLOT", str(slot), "NODE", ids[1]) == b"+OK\r\n"


def test_a_sentinel_names_the_master(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.command("FLUSHALL")
    file = tmp_path / "sentinel.conf"
    file.write_text(f"sentinel monitor mymaster 127.0.0.1 {redis_server.port} 1\n")
    sentinel = RedisServer(tmp_path, str(file), "--sentinel")
    try:
        sentinel.start()
        store = open_store(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/mymaster/0")
        store.check()
        store.settle(entry(), store.admit([WEB], Demand(5, 5)))
        assert store.totals()[0].requests == 1
        store.close()
    finally:
        sentinel.close()


def test_a_server_that_moves_away_is_looked_for_anew(redis_server: RedisServer) -> None:
    redis_server.command("FLUSHALL")
    store = RedisStore(redis_server.url)
    store.settle(entry())
    redis_server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreError, match="read only"):
        store.settle(entry())
    redis_server.command("REPLICAOF", "NO", "ONE")
    store._waiting._retry_at = 0.0
    store.heartbeat()
    assert store.totals()[0].requests == 2
    store.close()


def test_the_module_redis_is_the_one_of_redis_py() -> None:
    assert redis.__name__ == "wrapper.store.redis"
    assert redislink.redis.__name__ == "redis"
