"""The usage table: right under many writers, unhurt by kill -9, plain about what is wrong."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import effort
from harness.poll import eventually
from wrapper.metering import Usage
from wrapper.metering.bounds import Bounds
from wrapper.store import PICO, Entry, StoreError, Sums, live, open_store, sqlite, waiting
from wrapper.store.sqlite import SqliteStore

ROOT = Path(__file__).resolve().parents[2]
HOUR = 3600.0
NOON = 20_000 * 24 * HOUR + 12 * HOUR  # 2024-10-04T12:00Z
USAGE = Usage(100, 10, 110, cached=40, reasoning=5)


def entry(**changes: Any) -> Entry:
    return Entry(NOON, "web", "groq", "llama", "completed", USAGE, 7_000_000)._replace(**changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "usage.db"


@pytest.fixture
def store(path: Path) -> SqliteStore:
    return SqliteStore(path)


def test_what_is_settled_is_summed(store: SqliteStore) -> None:
    for _ in range(3):
        store.settle(entry())
    store.settle(entry(at=NOON + 3599.9))
    assert store.all_time() == [
        Sums(
            ("web", "groq", "llama", "completed"),
            *(4, 400, 40, 440, 160, 20, 0.0, 28_000_000, 0, 0),
            cost_other=28_000_000,
        )
    ]


ALL_TIME = ("key", "provider", "model", "outcome")


def test_the_sums_of_all_time_are_those_of_the_ledger_whatever_is_written_late(path: Path) -> None:
    dice, now = random.Random(7), [NOON]
    store = SqliteStore(path, wall=lambda: now[0])
    for step in range(300):
        at = now[0] - dice.choice([0, 0, 0, 3600, 7200, 86400])
        usage = Usage(dice.randint(1, 9), 2, 3, cached=1, seconds=0.5)
        written = entry(at=at, model=dice.choice("abc"), cost=step, usage=usage)
        if step % 5 == 0:
            bounds = Bounds(1, 9, 2, dice.randint(2, 99))
            written = written._replace(usage=None, cost=None, bounds=bounds)
        store.settle(written)
        if step % 7 == 0:
            now[0] += dice.choice([0, 600, 3600, 40_000])
            store.heartbeat()
        if step % 10 == 0:
            assert store.all_time() == store.totals(by=ALL_TIME)
    store.close()
    again = SqliteStore(path, wall=lambda: now[0] + 10**6)
    assert again.all_time() == again.all_time() == again.totals(by=ALL_TIME)
    again.close()


def test_a_start_reads_the_hours_since_the_one_before_and_no_others(path: Path) -> None:
    now = [NOON]
    store = SqliteStore(path, wall=lambda: now[0])
    for hour in range(100):
        store.settle(entry(at=NOON + hour * 3600))
    now[0] += 200 * 3600
    store.heartbeat()
    reader = sqlite3.connect(path)
    folded, until = reader.execute(
        "SELECT requests, hour FROM usage_past, usage_past_until"
    ).fetchone()
    reader.close()
    assert (folded, until) == (100, int(now[0] // 3600) - 1)
    store.close()


def test_what_is_not_known_is_counted_as_such(store: SqliteStore) -> None:
    store.settle(entry(usage=None, cost=None, unmetered=True))
    store.settle(entry(cost=None))
    store.settle(entry(usage=None, cost=None, outcome="client_error"))
    store.settle(entry(usage=Usage(0, 0, 0, seconds=2.5), cost=0))
    (sums,) = store.totals()
    assert (sums.requests, sums.prompt, sums.unmetered, sums.unpriced) == (4, 100, 1, 1)
    assert sums.seconds == 2.5


def test_sums_are_grouped_by_what_was_asked_for(store: SqliteStore) -> None:
    store.settle(entry())
    store.settle(entry(key="batch", at=NOON - 13 * HOUR, outcome="client_abort"))
    store.settle(entry(provider="openai", model="gpt", at=NOON + HOUR))
    by_day = store.totals(by=("day", "key"))
    assert [row.group for row in by_day] == [("2024-10-03", "batch"), ("2024-10-04", "web")]
    assert [row.requests for row in by_day] == [1, 2]
    assert [row.group for row in store.totals(by=("hour",))] == [
        ("2024-10-03T23:00Z",),
        ("2024-10-04T12:00Z",),
        ("2024-10-04T13:00Z",),
    ]
    assert [row.group for row in store.totals(by=("outcome", "model"), key="web")] == [
        ("completed", "gpt"),
        ("completed", "llama"),
    ]
    with pytest.raises(ValueError, match="cannot group by 'colour'"):
        store.totals(by=("colour",))


def test_a_span_of_time_takes_the_whole_hours_that_it_touches(store: SqliteStore) -> None:
    for hours in range(-2, 3):
        store.settle(entry(at=NOON + hours * HOUR))
    assert store.totals(since=NOON)[0].requests == 3
    assert store.totals(since=NOON + 1)[0].requests == 3
    assert store.totals(until=NOON)[0].requests == 2
    assert store.totals(since=NOON - HOUR, until=NOON + 1)[0].requests == 2


def test_names_from_outside_are_only_names(store: SqliteStore) -> None:
    evil = "'; DROP TABLE usage; -- \x00 ☃"
    store.settle(entry(model=evil))
    assert store.totals(by=("model",), key="web")[0].group == (evil,)
    assert store.totals(key=evil)[0].requests == 0


def test_money_does_not_overflow(store: SqliteStore) -> None:
    for hour in range(3):
        for _ in range(2):
            store.settle(entry(at=NOON + hour * HOUR, cost=10**25))
    (sums,) = store.totals()
    assert sums.cost == 3 * 2**62
    assert sums.cost / PICO > 13_000_000


def test_the_file_is_its_owners_alone_and_in_wal_mode(path: Path, store: SqliteStore) -> None:
    store.settle(entry())
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_question_makes_no_file(path: Path, store: SqliteStore) -> None:
    assert store.all_time() == []
    assert store.totals()[0].requests == 0
    assert not path.parent.exists()


def test_what_was_settled_is_there_after_closing(path: Path, store: SqliteStore) -> None:
    store.settle(entry())
    store.close()
    store.settle(entry())
    assert SqliteStore(path).totals()[0].requests == 2


def test_addresses_of_stores(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/a.db").settle(entry())
    assert (tmp_path / "a.db").exists()
    for url in ("postgres://host/0", "redis://", "", "sqlite://", "sqlite:///", "/data/usage.db"):
        with pytest.raises(StoreError, match="WRAPPER_STORE"):
            open_store(url)


def test_a_file_that_is_no_database_is_said_to_be_none(path: Path, store: SqliteStore) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, but long enough to look like one\n" * 100)
    for use in (store.check, lambda: store.settle(entry()), store.totals):
        with pytest.raises(StoreError, match=r"usage\.db: file is not a database; move it away"):
            use()


def test_a_damaged_file_is_found_at_the_start(path: Path, store: SqliteStore) -> None:
    for index in range(3000):
        store.settle(entry(model=f"model-{index}"))
    store.close()
    content = bytearray(path.read_bytes())
    content[8192:40_960] = b"\x5a" * (40_960 - 8192)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="move it away"):
        SqliteStore(path).check()


def test_a_large_file_is_not_read_at_the_start_but_beside_the_requests(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3000):
        store.settle(entry(model=f"model-{index}"))
    store.close()
    content = bytearray(path.read_bytes())
    half = len(content) // 2 // 4096 * 4096
    content[half : half + 40_960] = b"\x5a" * 40_960
    path.write_bytes(content)
    SqliteStore(path).check_rest()  # there is none
    monkeypatch.setattr(sqlite, "CHECKED_BYTES", len(content) - 1)
    large = SqliteStore(path)
    large.check()
    with pytest.raises(StoreError, match="move it away"):
        large.check_rest()


def test_a_start_reads_no_more_of_a_ledger_of_many_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in steps of SQLite's virtual machine."""
    monkeypatch.setattr(sqlite, "CHECKED_BYTES", 0)

    def steps(hours: int) -> int:
        path = tmp_path / str(hours) / "usage.db"
        store = SqliteStore(path)
        for hour in range(hours):
            store.settle(entry(at=NOON + hour * HOUR))
        store.all_time()  # sums up the hours that are over
        store.close()
        counted = 0

        def step() -> int:
            nonlocal counted
            counted += 1
            return 0

        store = SqliteStore(path)
        store._here().connection.set_progress_handler(step, 1)
        store.check()
        [row] = store.all_time()
        assert row.requests == hours
        return counted

    assert 0 < steps(2000) <= steps(20) + 10


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file" / "usage.db", Path("/proc/usage.db"), tmp_path):
        with pytest.raises(StoreError, match="WRAPPER_STORE must name a writable file"):
            SqliteStore(bad).check()


def test_a_file_of_a_newer_version_is_left_alone(path: Path, store: SqliteStore) -> None:
    store.check()
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="made by another version of the gateway"):
        SqliteStore(path).check()


def test_after_a_fork_parent_and_child_write_on_their_own(store: SqliteStore) -> None:
    store.settle(entry())
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                for _ in range(50):
                    store.settle(entry())
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    for _ in range(50):
        store.settle(entry())
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    store.check()
    assert store.totals()[0].requests == 201


@pytest.fixture
def locked(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sqlite3.Connection]:
    """Another program that holds the file, until it is told to commit. Each settlement finds that
    the last transaction is long ago.
    """
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 0.0)
    store.settle(entry())
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield connection
    connection.close()


def test_a_locked_file_makes_requests_wait_and_loses_none(
    path: Path, store: SqliteStore, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.1)
    with pytest.raises(StoreError, match="locked"):
        store.settle(entry())
    with pytest.raises(StoreError, match="2 requests wait to be written"):
        store.settle(entry())
    locked.execute("COMMIT")

    def written() -> bool:
        with contextlib.suppress(StoreError):
            store.settle(entry(key="later"))
            return True
        return False

    eventually(written)
    assert store.totals(key="web")[0].requests == 3


def test_what_can_never_be_written_does_not_hold_up_what_waits_with_it(
    store: SqliteStore, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="locked"):
        store.settle(entry())
    with pytest.raises(StoreError, match="wait to be written"):
        store.settle(entry(key="\ud800"))
    locked.execute("COMMIT")
    monkeypatch.setattr(store._waiting, "_retry_at", 0.0)
    with pytest.raises(StoreError, match="surrogates"):
        store.settle(entry(key="later"))
    store.settle(entry(key="later"))
    assert [(s.group, s.requests) for s in store.totals(by=("key",))] == [
        (("later",), 2),
        (("web",), 2),
    ]


def test_a_locked_file_stops_the_worker_once_and_not_for_every_request(
    store: SqliteStore, locked: sqlite3.Connection
) -> None:
    with pytest.raises(StoreError, match="locked"):
        store.settle(entry())
    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreError, match="wait to be written"):
            store.settle(entry())
    assert time.monotonic() - start < 100 * sqlite.BUSY_SECONDS / 4
    locked.execute("COMMIT")
    store.close()
    assert store.totals()[0].requests == 102


def test_what_may_wait_in_memory_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_WAITING", 10)
    monkeypatch.setattr(live, "RING_BYTES", 400)  # room for a few
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 0.0)
    store = SqliteStore(path)
    store.settle(entry())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as locked:
        locked.execute("BEGIN IMMEDIATE")
        for _ in range(50):
            with pytest.raises(StoreError):
                store.settle(entry())
        with pytest.raises(StoreError, match="10 requests wait to be written") as caught:
            store.settle(entry())
        locked.execute("COMMIT")
    store.close()
    lost = int(str(caught.value).split(", ")[1].split()[0])
    assert 30 < lost < 41
    assert store.totals()[0].requests == 1 + 51 - lost


def test_what_waits_in_the_live_file_is_written_once_by_parent_or_child(
    store: SqliteStore, locked: sqlite3.Connection
) -> None:
    with pytest.raises(StoreError):
        store.settle(entry())
    locked.execute("COMMIT")
    child = os.fork()
    if not child:
        code = 1
        try:
            assert store.totals()[0].requests == 2
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert store.totals()[0].requests == 2
    store.close()
    assert store.totals()[0].requests == 2


def test_what_can_never_be_written_does_not_wait(path: Path, store: SqliteStore) -> None:
    for bad in (entry(model="\ud800"), entry(usage=Usage(2**70, 0, 0)), entry(model=None)):
        with pytest.raises(StoreError):
            store.settle(bad)
    store.settle(entry())
    assert store.totals()[0].requests == 1


def test_a_file_that_is_moved_while_in_use_is_noticed(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOOK_SECONDS", 0.0)
    store.settle(entry())
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(StoreError, match="was moved or deleted while in use"):
        store.settle(entry())


WRITER = """
import sys
from wrapper.store import Entry, open_store, sqlite
from wrapper.metering import Usage
from wrapper.metering.bounds import Bounds
sqlite.BUSY_SECONDS = 60  # four that do nothing but write may keep one of them waiting
store = open_store(sys.argv[1])
n = 0
while n < int(sys.argv[2]):
    n += 1
    usage = Usage(n, 1, n + 1)
    store.settle(Entry(7.2e7 + n // 10, "web", "groq", f"m{n % 5}", "completed", usage, n))
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
"""


def test_four_writers_of_which_two_are_killed_lose_nothing_that_was_acknowledged(
    path: Path, tmp_path: Path
) -> None:
    count = 4000
    files = [tmp_path / f"told{index}" for index in range(4)]
    outs = [file.open("wb") for file in files]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite:///{path}", str(goal)], stdout=out, cwd=ROOT
        )
        # The two that are killed must not come to their end before.
        for out, goal in zip(outs, (10**9, 10**9, count, count), strict=True)
    ]

    def acknowledged(index: int) -> int:
        return files[index].read_bytes().count(b"\n")

    try:
        deadline = time.monotonic() + 60
        while min(acknowledged(0), acknowledged(1)) < 500:
            assert time.monotonic() < deadline
            assert all(writer.poll() is None for writer in writers[:2])
        for writer in writers[:2]:
            writer.send_signal(signal.SIGKILL)
        assert [writer.wait(60) for writer in writers] == [-9, -9, 0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
        for out in outs:
            out.close()
    told = [acknowledged(index) for index in range(4)]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert told[2:] == [count, count]
    (sums,) = SqliteStore(path).totals()
    # Each killed writer may have one request in flight: written, and not yet told.
    assert sum(told) <= sums.requests <= sum(told) + 2
    least = sum(n * (n + 1) // 2 for n in told)
    assert least <= sums.prompt <= least + sum(n + 1 for n in told[:2])
    assert sums.cost == sums.prompt


def test_settling_costs_a_few_calls_however_much_is_on_record(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What that is in microseconds is told by `make bench`. Now and then it is a transaction."""
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 1e9)
    monkeypatch.setattr(sqlite, "LOOK_SECONDS", 1e9)
    for index in range(1000):
        store.settle(entry(key=f"key-{index % 50}", model=f"model-{index % 20}"))
    store.settle(entry())
    assert effort.calls(lambda: store.settle(entry())) < 40


def test_a_reader_leaves_the_locks_of_its_process_alone(path: Path, store: SqliteStore) -> None:
    """Else the next process that closes the file deletes the log that this one writes to."""
    other = f"""if True:
        from pathlib import Path
        from wrapper.store.sqlite import SqliteStore
        store = SqliteStore(Path({str(path)!r}))
        print(store.totals()[0].requests)
        store.close()
    """
    found = []
    for _ in range(2):
        store.settle(entry())
        reader = store.reader()
        reader.totals()
        reader.close()
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, check=True)
        found.append(int(done.stdout))
    assert found == [1, 2]
