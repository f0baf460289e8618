"""The table of where objects live: remembered by every worker, bounded, never in the way."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.processes import ReservedPort
from wrapper.store import objects
from wrapper.store.objects import ObjectPlaces, Table, TableFile
from wrapper.store.redis import RedisStore

if TYPE_CHECKING:
    from harness.redisserver import RedisServer

PROVIDERS = ("groq", "openai")


@pytest.fixture(params=["file", "redis"])
def open_table(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Table]:
    """Opens the same table as another worker does."""
    if request.param == "file":
        return lambda: TableFile(tmp_path / "o")
    server: RedisServer = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return lambda: RedisStore(server.url)


def test_another_worker_and_another_run_find_what_one_has_remembered(
    open_table: Callable[[], Table],
) -> None:
    one, other = ObjectPlaces(open_table()), ObjectPlaces(open_table())
    assert other.find("resp_1", PROVIDERS) is None
    one.remember("resp_1", "response", "openai")
    assert other.find("resp_1", PROVIDERS) == "openai"
    assert other.find("resp_2", PROVIDERS) is None
    one.close()
    assert one.find("resp_1", PROVIDERS) == "openai"
    one.remember("resp_1", "response", "groq")
    assert other.find("resp_1", PROVIDERS) == "groq"
    assert other.find("resp_1", ("openai", "else")) is None, "a provider that is gone"
    one.close()
    other.close()


def test_a_file_is_made_for_the_first_object(tmp_path: Path) -> None:
    places = ObjectPlaces(TableFile(tmp_path / "o"))
    assert places.find("resp_1", PROVIDERS) is None
    assert not (tmp_path / "o").exists()
    places.remember("resp_1", "response", "openai")
    assert (tmp_path / "o").stat().st_mode & 0o777 == 0o600
    places.close()


def test_the_table_is_bounded_and_the_oldest_go_first(
    open_table: Callable[[], Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "BUCKETS", 1)
    now = 10.0**9
    monkeypatch.setattr(objects.time, "time", lambda: now)
    table = open_table()
    places = ObjectPlaces(table)
    places.remember("file_old", "file", "groq")
    for number in range(50):
        now += 1
        places.remember(f"resp_{number}", "response", "openai")
    assert places.find("file_old", PROVIDERS) == "groq", "responses make room for each other"
    kept = [n for n in range(50) if places.find(f"resp_{n}", PROVIDERS)]
    assert kept == [47, 48, 49]
    assert len(table.read(0, 10**6)) == objects.WAYS * 32
    places.close()


def test_without_a_file_nothing_is_remembered_and_nothing_fails() -> None:
    places = ObjectPlaces(None)
    places.remember("resp_1", "response", "openai")
    assert places.find("resp_1", PROVIDERS) is None


def test_a_file_that_cannot_be_used_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = ObjectPlaces(TableFile(tmp_path / "missing" / "o"))
    with caplog.at_level(logging.WARNING, "wrapper"):
        for _ in range(2):
            places.remember("resp_1", "response", "openai")
    assert len(caplog.messages) == 1
    assert places.find("resp_1", PROVIDERS) is None


def test_redis_that_is_away_is_told_once_and_nothing_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusing = ReservedPort()
    places = ObjectPlaces(RedisStore(f"redis://127.0.0.1:{refusing.number}/0"))
    with caplog.at_level(logging.WARNING, "wrapper"):
        for _ in range(3):
            places.remember("resp_1", "response", "openai")
            assert places.find("resp_1", PROVIDERS) is None
    assert len(caplog.messages) == 1
    refusing.release()


def test_foreign_bytes_in_the_file_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(os.urandom(100_000))
    places = ObjectPlaces(TableFile(tmp_path / "o"))
    assert places.find("resp_1", PROVIDERS) is None
    places.remember("resp_1", "response", "openai")
    assert places.find("resp_1", PROVIDERS) == "openai"
    places.close()
