"""The table of where objects live: remembered by every worker, bounded, never in the way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from wrapper.store import objects
from wrapper.store.objects import ObjectPlaces

PROVIDERS = ("groq", "openai")


def test_another_worker_and_another_run_find_what_one_has_remembered(tmp_path: Path) -> None:
    one, other = ObjectPlaces(tmp_path / "o"), ObjectPlaces(tmp_path / "o")
    assert other.find("resp_1", PROVIDERS) is None
    assert not (tmp_path / "o").exists()
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


def test_the_file_is_bounded_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "BUCKETS", 1)
    now = 10.0**9
    monkeypatch.setattr(objects.time, "time", lambda: now)
    places = ObjectPlaces(tmp_path / "o")
    places.remember("file_old", "file", "groq")
    for number in range(50):
        now += 1
        places.remember(f"resp_{number}", "response", "openai")
    assert places.find("file_old", PROVIDERS) == "groq", "responses make room for each other"
    kept = [n for n in range(50) if places.find(f"resp_{n}", PROVIDERS)]
    assert kept == [47, 48, 49]
    assert (tmp_path / "o").stat().st_size == objects.WAYS * 32
    places.close()


def test_without_a_file_nothing_is_remembered_and_nothing_fails() -> None:
    places = ObjectPlaces(None)
    places.remember("resp_1", "response", "openai")
    assert places.find("resp_1", PROVIDERS) is None


def test_a_file_that_cannot_be_used_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = ObjectPlaces(tmp_path / "missing" / "o")
    with caplog.at_level(logging.WARNING, "wrapper"):
        for _ in range(2):
            places.remember("resp_1", "response", "openai")
    assert len(caplog.messages) == 1
    assert places.find("resp_1", PROVIDERS) is None


def test_foreign_bytes_in_the_file_are_no_place(tmp_path: Path) -> None:
    (tmp_path / "o").write_bytes(os.urandom(100_000))
    places = ObjectPlaces(tmp_path / "o")
    assert places.find("resp_1", PROVIDERS) is None
    places.remember("resp_1", "response", "openai")
    assert places.find("resp_1", PROVIDERS) == "openai"
    places.close()
