"""Where there is no room for metrics, new series are not exposed, and nothing else happens."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from wrapper.telemetry.instruments import CALLS
from wrapper.telemetry.mapped import FIRST_SIZE, MappedValues

SERIES = 3000  # several times what fits into a file of the first size


def exposed(path: Path) -> dict[str, float]:
    return {key: value for key, value, *_ in MmapedDict.read_all_values_from_file(str(path))}


class Volume:
    """A file system with room for so many bytes in each file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        real = os.posix_fallocate

        def allocate(fd: int, offset: int, length: int) -> None:
            if offset + length > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd, offset, length)

        monkeypatch.setattr(os, "posix_fallocate", allocate)


def test_values_are_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    values = MappedValues(str(path))
    for number in range(SERIES):
        values.write_value(f"series {number}", float(number), 0.0)
    assert exposed(path) == {f"series {number}": float(number) for number in range(SERIES)}
    assert path.stat().st_blocks * 512 >= path.stat().st_size  # allocated, not a hole
    values.close()
    again = MappedValues(str(path))
    assert again.read_value("series 7")[0] == 7.0
    again.close()


def test_series_without_room_are_not_exposed_and_the_others_stay_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Volume(monkeypatch, FIRST_SIZE)
    path = tmp_path / "counter_1.db"
    values = MappedValues(str(path))
    for number in range(SERIES):
        values.write_value(f"series {number}", 1.0, 0.0)
    for number in range(SERIES):
        values.write_value(f"series {number}", 2.0, 0.0)
    found = exposed(path)
    assert values.full
    assert 1000 < len(found) < SERIES
    assert set(found.values()) == {2.0}
    assert len(caplog.records) == 1
    values.close()


def test_a_volume_without_any_room_exposes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Volume(monkeypatch, 0)
    values = MappedValues(str(tmp_path / "counter_1.db"))
    for number in range(SERIES):
        values.write_value(f"series {number}", 1.0, 0.0)
    assert list(tmp_path.iterdir()) == []
    values.close()


@pytest.mark.parametrize("key", ["web", 'a "quoted" \\ key', "schl\u00fcssel\u2028", ""])
def test_a_restored_counter_is_called_as_one_that_a_worker_counts(key: str) -> None:
    labels = [key, "groq", "llama", "completed"]
    metric = CALLS._metric
    name = metric._name
    expected = mmap_key(
        name, f"{name}_total", list(metric._labelnames), labels, metric._documentation
    )
    assert CALLS.key(tuple(labels)) == expected
