"""The live file: what was acknowledged is booked once, whoever is killed and whatever is moved."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.forks import Child
from harness.poll import eventually
from wrapper.metering import Usage
from wrapper.metering.bounds import Bounds
from wrapper.store import (
    Deferred,
    Demand,
    Entry,
    Lease,
    Limits,
    Refused,
    StoreError,
    Subject,
    accounts,
    drain,
    live,
    sqlite,
    window,
)
from wrapper.store.reservations import Reservations, Unknown
from wrapper.store.schema import MIGRATIONS
from wrapper.store.sqlite import SqliteStore

pytestmark = pytest.mark.usefixtures("patient_stores")

NOON = 20_000 * 86_400 + 43_200.0


def entry(**changes: Any) -> Entry:
    usage = Usage(100, 10, 110, cached=40, reasoning=5)
    return Entry(NOON, "web", "groq", "llama", "completed", usage, 7)._replace(**changes)


def opened(path: Path) -> SqliteStore:
    return SqliteStore(path, wall=lambda: NOON)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last transaction is never long ago, and the files are not looked for."""
    monkeypatch.setattr(sqlite, "DRAIN_SECONDS", 1e9)
    monkeypatch.setattr(sqlite, "LOOK_SECONDS", 1e9)


@pytest.fixture
def store(path: Path, busy: None) -> Iterator[SqliteStore]:
    """A store that keeps all further settlements in its live file."""
    made = opened(path)
    made.settle(entry())
    yield made
    with contextlib.suppress(StoreError):
        made.close()


def in_database(path: Path) -> int:
    """The requests that are in the database itself."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT total(requests) FROM usage").fetchone()[0])


def beside(path: Path) -> list[str]:
    """The files beside the database, without those that SQLite makes."""
    names = {file.name for file in path.parent.iterdir()}
    return sorted(names - {path.name, f"{path.name}-wal", f"{path.name}-shm"})


def test_a_settlement_is_in_the_live_file_and_whoever_asks_finds_it(
    path: Path, store: SqliteStore
) -> None:
    for number in range(30):
        store.settle(entry(model=f"m{number % 3}", recent=(f"r{number}", f"used {number}")))
    assert in_database(path) == 1
    other = opened(path)
    assert other.totals()[0].requests == 31
    assert other.recent("web", "r29") == "used 29"
    assert in_database(path) == 31
    other.close()


def test_questions_of_each_kind_book_first(path: Path, store: SqliteStore) -> None:
    web = Subject("key:web", Limits(budget=10**9, budget_period="total"))
    questions = (
        lambda: store.totals()[0].requests,
        lambda: store.all_time()[0].requests,
        lambda: store.standing([web])[0].spent // 7,
        lambda: store.admit([web], Demand()).standings[0].spent // 7,
    )
    for number, question in enumerate(questions):
        store.settle(entry())
        assert question() == number + 2
    store.settle(entry(recent=("r", "used")))
    assert store.recent("web", "r") == "used"
    store.settle(entry())
    store.heartbeat()
    assert in_database(path) == len(questions) + 3


def test_rows_are_added_up_as_one_by_one(tmp_path: Path, busy: None) -> None:
    dice = random.Random(5)
    one, many = opened(tmp_path / "one.db"), opened(tmp_path / "many.db")
    subjects = [
        Subject("key:a", Limits(budget=10**18, budget_period="total")),
        Subject("provider:p", Limits(budget=10**18, budget_period="total")),
    ]
    for store in (one, many):
        store.release(store.admit(subjects, Demand()))
    for step in range(400):
        written = entry(
            at=NOON - dice.choice([0, 0, 3600, 86_400]),
            key=dice.choice("ab"),
            provider=dice.choice("pq"),
            model=dice.choice(["m", "'; \x00 ☃"]),
            tag=dice.choice(["", "t"]),
            usage=Usage(dice.randint(0, 2**40), 2, 3, cached=1, seconds=0.5),
            cost=dice.choice([None, step, 2**61]),
            cost_by_kind=(dice.randint(0, step), 0, 0, 0) if step % 2 else (0, 0, 0, 0),
            requests=dice.choice([1, 1, 0]),
        )
        if step % 5 == 0:
            bounds = Bounds(1, 9, 2, dice.randint(2, 99))
            written = written._replace(usage=None, cost=None, bounds=bounds)
        many.settle(written)
        one.settle(written)
        one.heartbeat()
    by = ("key", "provider", "model", "outcome", "tag", "hour")
    assert many.totals(by=by) == one.totals(by=by)
    assert many.all_time() == one.all_time()
    assert [s.spent for s in many.standing(subjects)] == [s.spent for s in one.standing(subjects)]
    for store in (one, many):
        store.close()


def test_more_than_one_transaction_takes_is_booked_in_several(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "DRAIN_RECORDS", 10)
    for _ in range(35):
        store.settle(entry())
    assert store.totals()[0].requests == 36
    for _ in range(20):
        store.settle(entry())
    assert store.totals()[0].requests == 56


def test_the_ring_goes_round_and_what_has_no_room_is_written_at_once(
    path: Path, store: SqliteStore
) -> None:
    used = "x" * 300_000
    for number in range(40):
        store.settle(entry(recent=(f"r{number}", used)))
    store.settle(entry(recent=("huge", "y" * live.RING_BYTES)))
    assert in_database(path) == 42
    assert store.recent("web", "huge") == "y" * live.RING_BYTES
    assert store.totals()[0].requests == 42


def test_a_sum_that_the_database_cannot_hold_stops_nothing_else(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        store.settle(entry(key="huge", usage=Usage(2**62, 0, 0)))
    store.settle(entry())
    assert [(s.group, s.requests) for s in store.totals(by=("key",))] == [
        (("huge",), 1),
        (("web",), 2),
    ]
    assert caplog.text.count("usage of huge cannot be written") == 2


def test_it_is_as_readable_as_the_database(path: Path, store: SqliteStore) -> None:
    file = path.with_name("usage.db-live")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    store.close()
    file.unlink()
    path.chmod(0o640)
    opened(path).check()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_lock_of_another_program_leaves_questions_their_answer(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    store.settle(entry())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.totals()[0].requests == 1  # what was acknowledged before the lock
        store.settle(entry())  # is kept all the same
        other.execute("COMMIT")
    store._down_until = 0.0
    assert store.totals()[0].requests == 3


def test_a_store_that_closes_while_the_file_is_locked_leaves_all_to_the_next_start(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    store.settle(entry())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.close()
    assert in_database(path) == 1
    assert opened(path).totals()[0].requests == 2


# Files that are moved


def test_a_live_file_that_is_deleted_while_in_use_is_made_anew(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.settle(entry())
    path.with_name("usage.db-live").unlink()
    store.settle(entry())
    other = opened(path)  # has made one of its own
    assert other.totals()[0].requests == 1
    store._look_at = 0.0
    store.settle(entry())
    assert in_database(path) == 4
    store.settle(entry())
    assert other.totals()[0].requests == 5
    other.close()


def test_records_of_another_database_are_kept_and_never_booked(
    path: Path, store: SqliteStore
) -> None:
    store.settle(entry())
    store.settle(entry())
    store._cursor = None  # as a process that was killed
    for file in path.parent.glob("usage.db*"):
        if file.name != "usage.db-live":
            file.rename(file.with_name(f"old-{file.name}"))
    new = opened(path)
    new.settle(entry(key="new"))
    assert [row.group for row in new.totals(by=("key",))] == [("new",)]
    new.close()
    [aside] = path.parent.glob("usage.db-live.*")
    # Put back beside their database they are booked.
    aside.rename(path.with_name("old-usage.db-live"))
    assert opened(path.with_name("old-usage.db")).totals()[0].requests == 3


def test_a_file_of_another_make_is_moved_aside(path: Path, busy: None) -> None:
    path.with_name("usage.db-live").write_bytes(b"something else")
    store = opened(path)
    store.settle(entry())
    store.settle(entry())
    assert store.totals()[0].requests == 2
    [aside] = path.parent.glob("usage.db-live.*")
    assert aside.read_bytes() == b"something else"
    store.close()


def test_a_copy_of_the_database_alone_is_one_without_records(
    path: Path, store: SqliteStore
) -> None:
    store.settle(entry())
    copy = path.with_name("copy.db")
    with (
        contextlib.closing(sqlite3.connect(path)) as old,
        contextlib.closing(sqlite3.connect(copy)) as new,
    ):
        old.backup(new)
    with contextlib.closing(opened(copy)) as other:
        other.settle(entry())
        assert other.totals()[0].requests == 2
    assert store.totals()[0].requests == 2


def test_an_older_copy_of_the_live_file_books_nothing_twice(path: Path, store: SqliteStore) -> None:
    file = path.with_name("usage.db-live")
    old = file.read_bytes()
    for _ in range(5):
        store.settle(entry())
    middle = file.read_bytes()
    for _ in range(5):
        store.settle(entry())
    store.close()
    for copy in (middle, old):
        file.write_bytes(copy)
        with contextlib.closing(opened(path)) as again:
            assert again.totals()[0].requests == 11
    with contextlib.closing(opened(path)) as again:
        again.settle(entry())
        again.settle(entry())
        assert again.totals()[0].requests == 13


# Processes that are killed, and power failures


def test_after_a_power_failure_what_is_whole_is_booked(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is older than the records, and the last of these is torn."""
    file = path.with_name("usage.db-live")
    store.settle(entry())
    header = file.read_bytes()[:4096]
    for _ in range(3):
        store.settle(entry())
    content = bytearray(header + file.read_bytes()[4096:])
    end = content.rstrip(b"\0")
    content[len(end) - 20 : len(end)] = bytes(20)
    store._cursor = None
    file.write_bytes(content)
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    again = opened(path)
    assert again.totals()[0].requests == 4
    again.settle(entry())
    assert again.totals()[0].requests == 5
    again.close()


def test_after_a_power_failure_what_was_written_down_to_be_done_is_not_trusted(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header says that there is something to do, the pages that say what are of before."""
    store.settle(entry())
    store._cursor = None
    with path.with_name("usage.db-live").open("r+b") as file:
        file.seek(live._REDO * 8)
        file.write((900).to_bytes(8, "little"))
        file.seek(live._REDO_AT)
        file.write(random.Random(1).randbytes(900))
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    with contextlib.closing(opened(path)) as again:
        assert again.totals()[0].requests == 2
        again.settle(entry())
        assert again.totals()[0].requests == 3


def test_after_a_power_failure_an_array_that_was_moved_in_part_shares_no_room(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is the new one, the file's end is that of before."""
    store._cursor = None
    with path.with_name("usage.db-live").open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.write(bytes(1 << 20))
        file.seek(live.ACCOUNTS.at * 8)
        file.write(end.to_bytes(8, "little"))
        file.seek(live._REDO * 8)
        file.write((100).to_bytes(8, "little"))
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    with contextlib.closing(opened(path)) as again:
        keys = [Subject(f"key:{number}", Limits(max_concurrent=9)) for number in range(600)]
        leases = [again.admit([key], Demand()) for key in keys * 4]  # more than there is room for
        assert {each.concurrent for each in again.standing(keys)} == {4}
        for lease in leases:
            again.release(lease)
        assert {each.concurrent for each in again.standing(keys)} == {0}


@pytest.mark.parametrize(
    "word",
    [
        *(live._SIZE, live._RING, live._REDO, live.FREE),
        *(word for array in live._ALL for word in array[:3]),
    ],
)
def test_a_file_whose_header_is_damaged_is_moved_aside(path: Path, busy: None, word: int) -> None:
    with contextlib.closing(opened(path)) as store:
        store.settle(entry())
    with path.with_name("usage.db-live").open("r+b") as file:
        file.seek(word * 8)
        file.write((10**12).to_bytes(8, "little"))
    with contextlib.closing(opened(path)) as again:
        lease = again.admit([Subject("key:web", Limits(max_concurrent=1))], Demand())
        again.settle(entry(), lease)
        assert again.totals()[0].requests == 2
    assert len(list(path.parent.glob("usage.db-live.*"))) == 1


def test_all_links_to_a_database_lead_to_one_live_file(path: Path, tmp_path: Path) -> None:
    key = Subject("key:web", Limits(max_concurrent=1))
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    with contextlib.closing(opened(path)) as one, contextlib.closing(opened(link)) as other:
        lease = one.admit([key], Demand())
        with pytest.raises(Refused):
            other.admit([key], Demand())
        one.settle(entry(), lease)
        assert other.totals()[0].requests == 1
    assert [file.name for file in link.parent.iterdir()] == ["link.db"]


def test_a_file_system_without_locks_is_found_out_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(StoreError, match=r"cannot be locked .*; WRAPPER_STORE must name"):
        opened(path).check()


class Stop(BaseException):
    """As a signal's handler raises it."""


class Tripwire:
    """A memory that raises at its `at`th write, before or after it."""

    def __init__(self, memory: Any, count: list[int], at: int, *, after: bool) -> None:
        self._memory, self._count, self._at, self._after = memory, count, at, after

    def __getitem__(self, index: Any) -> Any:
        return self._memory[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._count[0] += 1
        stop = self._count[0] == self._at
        if stop and not self._after:
            raise Stop
        self._memory[index] = value
        if stop:
            raise Stop

    def release(self) -> None:
        self._memory.release()

    def close(self) -> None:
        self._memory.close()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_writer_that_stops_at_any_write_has_written_all_or_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("live") / "usage.db"
    ring = data.draw(st.sampled_from([200, 333, 4096]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "RING_BYTES", ring)
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute(live.TABLE)
        file = live.open_live(path, connection, "boot")
        model: list[bytes] = []
        position = 0
        for number in range(data.draw(st.integers(1, 40))):
            payload = bytes([number + 1]) * data.draw(st.integers(1, 60))
            at = data.draw(st.integers(0, 6))
            count, words, memory = [0], file.words, file.map
            after = data.draw(st.booleans())
            file.words = Tripwire(words, count, at, after=after)  # type: ignore[assignment]
            file.map = Tripwire(memory, count, at, after=after)  # type: ignore[assignment]
            kept: bool | None = None
            with contextlib.suppress(Stop):
                kept = file.append(payload, file.words[live.VERSION])
            file.words, file.map = words, memory
            found, end = file.read(position, 10**6)
            if kept is None:
                assert found in (model, [*model, payload])
            else:
                assert found == ([*model, payload] if kept else model)
            model = found
            if data.draw(st.booleans()):
                position, model = end, []
                file.drained(position)
        assert file.read(position, 10**6)[0] == model
        file.close()
        connection.close()


KEY = Subject("key:web", Limits(requests_per_minute=9, budget=10**9, budget_period="total"))
TEAM = Subject("group:team", Limits(tokens_per_minute=10**6, budget=10**9), ("web", "mate"))
GROQ = Subject("provider:groq", Limits(max_concurrent=5))
OTHER = Subject("provider:other", Limits(max_concurrent=5, budget=10**9, budget_period="total"))
ALL = (KEY, TEAM, GROQ, OTHER)
WORKER = "00000000000000aa"


def now() -> accounts.Moment:
    return accounts.Moment(5000.5, NOON)


def one_lease(r: Reservations, cursor: sqlite3.Cursor) -> Lease:
    """All money is known, and one request is running."""
    with pytest.raises(Unknown):
        r.admit([KEY, TEAM, GROQ], Demand(), now)
    r.learn(cursor, (KEY, TEAM, OTHER), NOON)
    found = r.admit([KEY, TEAM, GROQ], Demand(50, 60), now)
    assert isinstance(found, Lease)
    return found


STEPS: dict[str, Callable[[Reservations, sqlite3.Cursor, Lease], object]] = {
    "admit": lambda r, _, lease: r.admit([KEY, TEAM, GROQ], Demand(7, 8), now),
    "settle": lambda r, _, lease: r.settle(entry(), lease, 110),
    "settle without a lease": lambda r, _, lease: r.settle(entry(), None, 0),
    "end": lambda r, _, lease: r.end(lease, 3),
    "move": lambda r, _, lease: r.move(lease, GROQ, [OTHER], now),
    "take the money": lambda r, _, lease: r.take_money(lease),
    "learn": lambda r, cursor, lease: r.learn(
        cursor, [Subject("group:team", TEAM.limits, ("mate", "new"))], NOON
    ),
    "end all": lambda r, _, lease: r.end_all(),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_stops_at_any_write_is_made_whole_or_not_at_all(path: Path, name: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    cursor = connection.cursor()
    for number in sorted(MIGRATIONS):
        for statement in MIGRATIONS[number]:
            cursor.execute(statement)
    first = live.open_live(path, connection, "boot")
    lease = one_lease(Reservations(first, WORKER), cursor)
    start = bytes(first.map)

    def state() -> object:
        """As another process finds it."""
        file = live.open_live(path, connection, "boot")
        try:
            other = Reservations(file, "00000000000000bb")
            other.any_worker()
            standings = other.standings(cursor, ALL, now)
            copies, _ = other._copies([subject.name for subject in ALL], now)
            members = [copy[accounts._FINGERPRINT : accounts._EPOCH].tolist() for copy in copies]
            counting = other._counting("new", "groq")
            held = Reservations(file, WORKER).demand_of(lease)
            return standings, held, members, counting, file.read(0, 10**6)[0], file.words[live.FREE]
        finally:
            file.close()

    before, states = state(), []
    for at in range(1, 200):
        first.map[: len(start)] = start
        file = live.open_live(path, connection, "boot")
        step = Reservations(file, WORKER)
        words, memory, count = file.words, file.map, [0]
        file.words = Tripwire(words, count, at, after=at % 2 == 0)  # type: ignore[assignment]
        file.map = Tripwire(memory, count, at, after=at % 2 == 0)  # type: ignore[assignment]
        stopped = True
        with contextlib.suppress(Stop):
            STEPS[name](step, cursor, lease)
            stopped = False
        file.words, file.map = words, memory
        file.close()
        states.append(state())
        if not stopped:
            break
    assert not stopped
    after = states.pop()
    assert after != before
    assert all(found in (before, after) for found in states)
    assert before in states
    assert after in states
    first.close()
    connection.close()


@contextlib.contextmanager
def stopped_holder(path: Path) -> Iterator[None]:
    """Another process has the lock and does nothing."""
    ready = path.with_name("ready")

    def hold() -> None:
        other = opened(path)
        other.check()
        assert other._live is not None
        other._live.lock()
        ready.touch()
        time.sleep(600)

    holder = Child(hold)
    try:
        eventually(ready.exists, 60)
        yield
    finally:
        holder.kill()


def test_a_lock_whose_holder_is_stopped_makes_requests_wait_in_memory(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOCK_SECONDS", 0.01)
    assert store._live is not None
    with stopped_holder(path):
        with pytest.raises(StoreError, match="a process that uses it is stopped"):
            store._live.append(b"x", 0)
        with pytest.raises(StoreError, match="a process that uses it is stopped"):
            store.settle(entry())  # waits in memory
    store._waiting._retry_at = 0.0
    store.settle(entry())
    assert store.totals()[0].requests == 3


def test_a_lock_whose_holder_is_stopped_does_not_stop_the_event_loop_for_long(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(live, "_STUCK_FOR", 1e9)
    pauses: list[float] = []
    monkeypatch.setattr(live, "_stop", lambda _, seconds: pauses.append(seconds))
    key = Subject("key:web", Limits(budget=10**9, budget_period="total"))
    store.release(store.admit([key], Demand()))
    with stopped_holder(path):
        with pytest.raises(StoreError, match="a process that uses it is stopped"):
            store.settle(entry())  # the record, then the row in a transaction
        assert 0 < sum(pauses) < 0.1


def write_for_ever(path: Path, told: Path, every: int) -> None:
    """Settle requests, and tell of each when it is acknowledged. Every `every`th has a lease."""
    store = opened(path)
    limits = Limits(max_concurrent=10**6, budget=10**15, budget_period="total")
    key, number = told.name, 0
    subjects = [Subject(f"key:{key}", limits), Subject("provider:groq", limits)]
    with told.open("wb", buffering=0) as out:
        while True:
            number += 1
            lease = store.admit(subjects, Demand(5, 5)) if number % every == 0 else None
            settled = entry(
                at=NOON + number // 50,
                key=key,
                model=f"m{number % 5}",
                usage=Usage(number, 1, number + 1),
                cost=number,
                recent=(f"r{number}", "used"),
            )
            store.settle(settled, lease)
            out.write(b"%d\n" % number)


def test_whoever_is_killed_at_whatever_moment_loses_nothing_and_books_nothing_twice(
    path: Path, tmp_path: Path
) -> None:
    """Rounds of writers that are all killed, in the middle of what they do."""
    dice = random.Random(3)
    told: dict[str, int] = {}
    for round_ in range(5):
        files = [tmp_path / f"writer-{round_}-{index}" for index in range(3)]
        writers = [
            Child(lambda file=file, n=(3, 10**9, 10**9)[i]: write_for_ever(path, file, n))  # type: ignore[misc]
            for i, file in enumerate(files)
        ]
        least = dice.randint(2, 600)
        try:
            eventually(
                lambda: min(f.stat().st_size for f in files) > least,  # noqa: B023
                120,
                retry_on=(FileNotFoundError,),
            )
        finally:
            for writer in writers:
                writer.kill()
        for file in files:
            told[file.name] = int(file.read_bytes().split(b"\n")[-2])
    store = opened(path)
    budget = Limits(budget=10**15, budget_period="total")
    # First, for it takes the lock: a step that a killed writer had written down is done then.
    [spent] = store.standing([Subject("provider:groq", budget)])
    rows = {row.group[0]: row for row in store.totals(by=("key",))}
    for key, count in told.items():
        row = rows[key]
        # Its last request may have been written and not told.
        assert row.requests in (count, count + 1)
        assert row.prompt == row.cost == row.requests * (row.requests + 1) // 2
        last = key, count
    assert store.recent(last[0], f"r{last[1]}") == "used"
    assert spent.spent == sum(row.cost for row in rows.values())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        [kept] = connection.execute("SELECT count(*) FROM recent").fetchone()
    assert kept == sum(row.requests for row in rows.values())
    store.close()
    # The dead workers' leases end: first nobody is taken for dead, for nobody had a heartbeat.
    now = [time.monotonic() + 100]
    store = SqliteStore(path, lambda: now[0], lambda: NOON)
    for _ in range(8):
        store.heartbeat()
        now[0] += 5
    subjects = [Subject(f"key:{key}", budget) for key in told]
    for standing in store.standing([Subject("provider:groq", budget), *subjects]):
        assert (standing.concurrent, standing.reserved) == (0, 0)
    file = store._live
    assert file is not None
    for number in range(file.words[live.ACCOUNTS.length]):
        at = file.index_of(live.ACCOUNTS, number) + accounts._WINDOW
        _, requests, tokens, *buckets = file.words[at : at + window.WORDS].tolist()
        assert (requests, tokens) == (sum(buckets[::2]), sum(buckets[1::2]))
    del file
    store.close()


def test_what_others_count_before_a_process_has_the_lock_stays_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped on its way to the lock comes with a time that is long over."""
    key = Subject("key:web", Limits(tokens_per_minute=100))
    second = 1000.0
    store, other = (SqliteStore(path, lambda: second, lambda: NOON) for _ in range(2))
    store.settle(entry(usage=Usage(30, 0, 30)), store.admit([key], Demand(30, 0)))
    assert store._live is not None
    lock = store._live.lock

    def stopped_before() -> None:
        nonlocal second
        monkeypatch.undo()
        second += 3
        other.settle(entry(usage=Usage(60, 0, 60)), other.admit([key], Demand(60, 0)))
        lock()

    monkeypatch.setattr(store._live, "lock", stopped_before)
    with pytest.raises(Refused):
        store.admit([key], Demand(20, 0))
    assert second > 1000
    [standing] = store.standing([key])
    assert (standing.tokens, standing.requests) == (90, 2)
    other.close()
    store.close()


def test_a_request_with_more_subjects_than_a_lease_has_room_for_holds_nothing(
    store: SqliteStore,
) -> None:
    subjects = [Subject(f"key:{number}", Limits(max_concurrent=9)) for number in range(5)]
    with pytest.raises(ValueError, match="at most four subjects"):
        store.admit(subjects, Demand())
    lease = store.admit(subjects[1:], Demand())
    assert [each.concurrent for each in store.standing(subjects)] == [0, 1, 1, 1, 1]
    store.release(lease)
    assert {each.concurrent for each in store.standing(subjects)} == {0}


def test_more_money_than_a_store_can_add_up_stops_no_counting(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request's money is held by deferred work and, for a moment, still by its lease."""
    limits = Limits(requests_per_minute=9, budget=2**62, budget_period="total", enforce=False)
    web = Subject("key:web", limits)
    monkeypatch.setattr(Reservations, "take_money", lambda *_: None)
    first = store.admit([web], Demand(0, 2**62))
    work = Deferred("groq", "resp_1", "response", "web", "m", "/", NOON, 2**62)
    store.remember(work, first, 60)
    second = store.admit([web], Demand(1, 1))
    assert [(each.requests, each.concurrent) for each in second.standings] == [(2, 2)]
    store.release(first)
    store.release(second)
    [standing] = store.standing([web])
    assert (standing.requests, standing.concurrent, standing.reserved) == (2, 0, 2**62)


def test_leases_end_of_a_worker_that_is_killed_after_the_accounts_began_anew(
    path: Path, busy: None
) -> None:
    """A database is put back to an earlier state, and a further process starts."""
    clock = [1000.0]
    one, other = (SqliteStore(path, lambda: clock[0], lambda: NOON) for _ in range(2))
    web = Subject("key:web", Limits(max_concurrent=1))
    one.settle(entry(), one.admit([web], Demand()))
    one.totals()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE live SET position = 0")
    other.check()
    one.admit([web], Demand())  # and dies
    for _ in range(6):
        clock[0] += 5
        other.heartbeat()
    assert other.standing([web])[0].concurrent == 0
    other.close()


def test_a_live_file_that_ends_in_a_part_of_a_page_is_read(path: Path, store: SqliteStore) -> None:
    """A disk was full in the middle of a write that makes it longer."""
    file = path.with_name("usage.db-live")
    with file.open("ab") as end:
        end.write(b"\0" * 4099)
    web = Subject("key:web", Limits(max_concurrent=1))
    with contextlib.closing(opened(path)) as other:
        lease = other.admit([web], Demand())
        assert other._live is not None
        words = other._live.words
        words[live._REDO_INDEX], words[live._REDO_INDEX + 1] = live._WAITING, 0
        words[live._REDO] = 1  # a step is to be finished
        with pytest.raises(Refused):
            store.admit([web], Demand())
        other.release(lease)


def test_a_file_full_of_dead_workers_has_room_for_new_ones_again(path: Path, busy: None) -> None:
    """Its workers died faster than any of them ended what others had left."""
    clock = [1000.0]
    web = Subject("key:web", Limits(max_concurrent=1000))
    one = SqliteStore(path, lambda: clock[0], lambda: NOON)
    one.check()
    assert one._live is not None
    for number in range(1, live.WORKERS_WORDS // 2 + 1):
        worker = Reservations(one._live, f"{number:x}")
        worker.admit([web], Demand(), lambda: accounts.Moment(clock[0], NOON))
    with pytest.raises(StoreError, match="more than 256 workers"):
        one.admit([web], Demand())
    for _ in range(12):
        clock[0] += 5
        with contextlib.suppress(StoreError):
            one.heartbeat()
    assert [each.concurrent for each in one.admit([web], Demand()).standings] == [1]
    one.close()


# Arrays that grow


def test_accounts_leases_and_members_have_room_for_any_number(
    path: Path, busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_ALL", [array._replace(first_room=2) for array in live._ALL])
    one, two = opened(path), opened(path)
    limits = Limits(max_concurrent=3, budget=10**6, budget_period="total")
    keys = [Subject(f"key:k{number}", limits) for number in range(40)]
    leases = []
    for _ in range(2):
        for number, key in enumerate(keys):
            store = (one, two)[number % 2]
            members = tuple(f"k{n}" for n in range(number + 1))
            team = Subject("group:team", Limits(budget=10**9, budget_period="total"), members)
            leases.append((store, key, store.admit([key, team], Demand(1, 10))))
    assert {standing.concurrent for standing in one.standing(keys)} == {2}
    for store, key, lease in leases:
        store.settle(entry(key=key.name.removeprefix("key:"), cost=5), lease)
    assert {s[3:6] for s in two.standing(keys)} == {(0, 10, 0)}
    assert one.standing([team])[0].spent == two.standing([team])[0].spent == 40 * 2 * 5
    for key in keys:  # without a lease, from a process that has not seen the group
        three = opened(path)
        three.settle(entry(key=key.name.removeprefix("key:"), cost=1))
        three.close()
    assert one.admit([team], Demand()).standings[0].spent == 40 * 11
    for store in (one, two):
        store.close()


def test_a_file_system_that_allocates_nothing_by_itself_is_written_to(
    path: Path, busy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    monkeypatch.setattr(live, "_ALL", [array._replace(first_room=2) for array in live._ALL])
    store = opened(path)
    for number in range(9):
        key = Subject(f"key:{number}", Limits(max_concurrent=1))
        store.settle(entry(), store.admit([key], Demand()))
    assert store.totals()[0].requests == 9
    file = path.with_name("usage.db-live")
    assert file.stat().st_blocks * 512 >= file.stat().st_size
    store.close()


def test_a_group_whose_members_change_all_the_time_takes_a_bounded_room(
    path: Path, store: SqliteStore
) -> None:
    budget = Limits(budget=10**9, budget_period="total")
    lists = [tuple(f"k{n}" for n in range(first, first + 300)) for first in (0, 150)]
    teams = [Subject("group:team", budget, members) for members in lists]
    steady = Subject("group:steady", budget, ("k200",))
    store.release(store.admit([steady], Demand()))
    sizes = set()
    for turn in range(40):
        store.release(store.admit([teams[turn % 2]], Demand()))
        sizes.add(path.with_name("usage.db-live").stat().st_size)
    assert len(sizes) <= 3
    for key in ("k0", "k160", "k200", "k449"):
        store.settle(entry(key=key, cost=1))
    spent = [standing.spent for standing in store.standing([teams[1], steady])]
    assert spent == [3, 1]
    assert store.admit([teams[0]], Demand()).standings[0].spent == 3
    assert store.admit([steady], Demand()).standings[0].spent == 1


def test_a_process_without_a_file_descriptor_for_a_longer_file_loses_no_request(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(max_concurrent=5, budget=10**6)
    web = Subject("key:web", limits)
    lease = store.admit([web], Demand(0, 9))
    with contextlib.closing(opened(path)) as other:
        for number in range(600):
            other.release(other.admit([Subject(f"key:{number}", limits)], Demand()))

    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", full)
        with pytest.raises(StoreError, match="Too many open files"):
            store.settle(entry(), lease)  # waits in memory
        with pytest.raises(StoreError, match="Too many open files"):
            store.admit([web], Demand())
    store._waiting._retry_at = store._down_until = 0.0
    store.heartbeat()
    [standing] = store.standing([web])
    assert (standing.concurrent, standing.spent, standing.reserved) == (0, 14, 0)
    assert store.totals()[0].requests == 2


def test_a_file_that_cannot_grow_refuses_admission(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    limits = Limits(max_concurrent=5, budget=10**6)
    store.release(store.admit([Subject("key:0", limits)], Demand()))
    monkeypatch.setattr(live, "_allocate", full)

    def use_many() -> None:
        for number in range(600):
            store.release(store.admit([Subject(f"key:{number}", limits)], Demand()))

    with pytest.raises(StoreError, match="No space left on device"):
        use_many()
    store._down_until = 0.0
    many = Subject("group:team", limits, tuple(map(str, range(2000))))
    with pytest.raises(StoreError, match="No space left on device"):
        store.admit([many], Demand())
    store._down_until = 0.0
    store.release(store.admit([Subject("key:0", limits)], Demand()))
    monkeypatch.undo()
    assert store.admit([many], Demand()).standings[0].concurrent == 1


# Older databases


def test_deferred_work_of_an_older_database_holds_its_money(path: Path) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    for number in range(10):
        for statement in MIGRATIONS[number]:
            old.execute(statement)
    old.execute("PRAGMA user_version = 10")
    for number, name in enumerate(("key:web", "key:mate", "group:team"), 11):
        old.execute("INSERT INTO subject VALUES (?, ?, 0, x'', 0, 0, 0, NULL, '')", (number, name))
    for ident, holders in (("resp_1", "11 13"), ("resp_2", ""), ("resp_3", "1 12 3")):
        row = ("openai", ident, "response", "web", "m", "/", NOON, 700, 0, holders, NOON, 0, "")
        old.execute(f"INSERT INTO deferred VALUES ({', '.join('?' * 13)})", row)
    old.close()
    store = opened(path)
    limits = Limits(budget=10**9)
    subjects = [Subject(name, limits) for name in ("key:web", "key:mate", "group:team")]
    assert [standing.reserved for standing in store.standing(subjects)] == [700, 700, 700]
    [pending] = store.pending("openai", ["resp_1"])
    assert store.book(pending, [])
    assert [standing.reserved for standing in store.standing(subjects)] == [0, 700, 0]
    store.close()


def make_older(path: Path, words: dict[int, int] | None = None) -> None:
    """The live file is of the version before, with these words in its header."""
    with path.with_name("usage.db-live").open("r+b") as file:
        file.write(b"wrapper2")
        for index, value in (words or {}).items():
            file.seek(index * 8)
            file.write(value.to_bytes(8, "little"))


def test_a_live_file_of_an_older_version_gives_its_records_to_a_new_one(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process of that version still writes to it."""
    for _ in range(3):
        store.settle(entry())
    # Its arrays are no ones of today, and it has changes of its own kind that were not made.
    make_older(path, {live.ACCOUNTS.at: 10**12, live._REDO: 900})
    monkeypatch.setattr(live.LiveFile, "_finish", lambda self: None)  # the old one's is another
    key = Subject("key:web", Limits(max_concurrent=1))
    with contextlib.closing(opened(path)) as new:
        lease = new.admit([key], Demand())
        assert in_database(path) == 4
        store.settle(entry())
        new.settle(entry(), lease)
        assert new.totals()[0].requests == 5
        store._look_at = 0.0
        store.settle(entry())
        assert new.totals()[0].requests == 7
        store.settle(entry())  # to the new file by now
        assert new.totals()[0].requests == 8
    assert beside(path) == ["usage.db-live"]


def test_an_upgrade_that_is_killed_before_the_database_has_it_loses_no_record(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process of that version still writes to the file of before."""
    for _ in range(3):
        store.settle(entry())
    make_older(path)
    monkeypatch.setattr(live.LiveFile, "_finish", lambda self: None)  # the old one's is another
    make = live._made

    def killed(*args: Any) -> None:
        make(*args).close()
        raise Stop

    with monkeypatch.context() as patch, contextlib.closing(opened(path)) as new:
        patch.setattr(live, "_made", killed)
        with pytest.raises(Stop):
            new.check()
    assert in_database(path) == 1
    store.settle(entry())
    with contextlib.closing(opened(path)) as new:
        new.settle(entry())
        assert new.totals()[0].requests == 5
    assert store.totals()[0].requests == 6  # with what it has added itself
    assert beside(path) == ["usage.db-live"]


def test_records_of_an_older_version_survive_a_power_failure(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        store.settle(entry())
    store._cursor = None
    make_older(path)
    boot = path.with_name("boot_id")
    boot.write_text("another start of the machine\n")
    monkeypatch.setattr("wrapper.store.sqlitefile._BOOT_ID", boot)
    for number in range(4, 7):
        with contextlib.closing(opened(path)) as again:
            assert again.totals()[0].requests == number
            again.settle(entry())
