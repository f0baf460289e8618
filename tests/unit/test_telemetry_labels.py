"""Which models are metric labels: the same ones in every worker and run, and not too many."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from wrapper.telemetry.labels import Labels, UsageSeries


def in_child(work: object) -> int:
    """Run `work` in a forked process, as a worker would; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(not work())  # type: ignore[operator]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_places_are_shared_by_all_workers() -> None:
    labels = Labels(limit=3)
    assert in_child(lambda: labels.add("a") and labels.add("b")) == 0
    assert in_child(lambda: labels.add("c") and labels.add("a")) == 0
    assert not labels.add("d")
    assert all(labels.add(name) for name in "abc")


def test_many_workers_at_once_name_no_more_than_there_are_places() -> None:
    labels = Labels(limit=50)

    def worker(number: int) -> int:
        pid = os.fork()
        if pid == 0:
            named = [labels.add(f"{number}-{at}") for at in range(40)]
            os._exit(sum(named))
        return pid

    pids = [worker(number) for number in range(4)]
    named = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sum(named) == 50


def test_a_worker_that_is_killed_with_the_lock_blocks_no_other() -> None:
    labels = Labels()

    def die() -> None:
        with labels._locked():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    assert labels.add("a")


def test_labels_of_an_earlier_run_stay_labels_however_often_others_are_used(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    requests = dict(zip("abcdef", range(6), strict=True))
    first = Labels(limit=3)
    first.restore({}, file)
    assert in_child(lambda: first.add("c") and first.add("a") and first.add("b")) == 0
    for _ in range(2):
        labels = Labels(limit=3)
        labels.restore(requests, file)
        assert [name for name in "abcdef" if name in labels] == ["a", "b", "c"]
        assert [labels.add(name) for name in "abcdef"] == [True, True, True, False, False, False]


def test_without_the_file_the_names_with_the_most_requests_are_labels(tmp_path: Path) -> None:
    for file in (None, tmp_path / "labels"):
        labels = Labels(limit=3)
        labels.reserve(["a"])
        labels.restore({"a": 1, "b": 2, "c": 3, "d": 4}, file)
        assert [name for name in "abcd" if name in labels] == ["a", "c", "d"]


def test_names_that_are_not_in_the_usage_table_any_more_take_no_place(tmp_path: Path) -> None:
    first = Labels(limit=2)
    first.restore({"a": 1, "b": 1}, tmp_path / "labels")
    labels = Labels(limit=2)
    labels.restore({"b": 1}, tmp_path / "labels")
    assert labels.add("c")
    assert not labels.add("a")


def test_a_gateway_that_still_runs_keeps_its_labels_when_the_next_one_starts(
    tmp_path: Path,
) -> None:
    old, new = Labels(limit=3), Labels(limit=3)
    old.restore({"a": 1}, tmp_path / "labels")
    new.restore({}, tmp_path / "labels")
    assert old.add("b")
    assert new.add("c")
    assert "a" not in new
    assert "b" not in new
    assert in_child(lambda: old.add("d") and not old.add("c")) == 0


def test_reserved_names_are_labels_whatever_came_before() -> None:
    labels = Labels(limit=3)
    labels.reserve(["x", "y"])
    assert [labels.add(name) for name in "abxyb"] == [True, False, True, True, False]
    labels.reserve(["z"])  # a reload; x and y are labels already
    assert [labels.add(name) for name in "zxyab"] == [True, True, True, True, False]


def test_where_more_names_are_reserved_the_labels_added_last_give_way(tmp_path: Path) -> None:
    first = Labels(limit=3)
    first.restore({}, tmp_path / "labels")
    assert all(first.add(name) for name in "bca")
    labels = Labels(limit=3)
    labels.reserve(["new"])
    labels.restore(dict.fromkeys("abc", 1), tmp_path / "labels")
    assert [name for name in "abc" if name in labels] == ["b", "c"]


def test_a_damaged_file_costs_no_more_than_its_damaged_lines(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_bytes(b'"a"\n\xff\n{}\n' + b"[" * 100_000 + b'\n"b"\n"half')
    labels = Labels(limit=2)
    labels.restore(dict.fromkeys(["c", "b", "a"], 1), file)
    assert [name for name in "abc" if name in labels] == ["a", "b"]


def test_where_the_file_cannot_be_kept_the_gateway_starts_all_the_same(tmp_path: Path) -> None:
    labels = Labels(limit=2)
    labels.restore({"a": 1}, tmp_path / "missing" / "labels")
    assert "a" in labels
    assert labels.add("b")


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    Labels().restore({"a": 1}, tmp_path / "labels")
    (file,) = tmp_path.iterdir()
    assert file.name == "labels"
    assert file.stat().st_mode & 0o777 == 0o600


def test_any_text_is_a_name() -> None:
    labels = Labels()
    names = ["a\nb", "ü", "\udc80", "", '"', "\u2028"]
    assert in_child(lambda: all(labels.add(name) for name in names)) == 0
    assert labels.add("another")
    assert all(name in labels for name in names)


def test_an_incomplete_line_is_no_name_and_is_overwritten() -> None:
    labels = Labels()
    labels.add("a")
    os.pwrite(labels._fd, b'"half of a long na', labels._read)
    assert in_child(lambda: labels.add("b")) == 0
    assert labels.add("c")
    assert all(name in labels for name in "abc")


def test_series_of_usage_are_bounded_and_their_sums_are_not(tmp_path: Path) -> None:
    used = {(f"key-{k}", "groq", f"model-{m}"): 100 * k + m for k in range(30) for m in range(5)}
    in_force = {f"key-{k}" for k in range(15, 30)}

    def started() -> UsageSeries:
        series = UsageSeries(detailed=40, keys=7)
        series.restore(used, in_force, tmp_path / "labels")
        return series

    series = started()
    found = {labels: series[labels] for labels in used}
    assert sum(own == labels for labels, own in found.items()) == 40
    assert len(set(found.values())) == 40 + 7 + 1
    assert found["key-29", "groq", "model-4"] == ("key-29", "groq", "model-4")  # the most used
    assert found["key-0", "groq", "model-0"] == ("other", "groq", "other")  # not in force
    by_key = {own[0] for labels, own in found.items() if labels[0] == "key-21"}
    assert by_key == {"key-21"}  # a key in force keeps its own sums
    assert series["new", "groq", "m"] == ("other", "groq", "other")
    # What grows afterwards changes nothing at the next start: no counter goes down.
    used["key-16", "groq", "model-0"] += 10**6
    again = started()
    assert {labels: again[labels] for labels in used} == found


def test_a_few_series_are_all_of_their_own_in_force_or_not() -> None:
    series = UsageSeries(detailed=4, keys=2)
    series.restore({("gone", "groq", "m"): 1}, in_force=())
    assert series["gone", "groq", "m"] == ("gone", "groq", "m")
    for model in ("a", "b", "c"):
        assert series["new", "groq", model][2] == model
    assert series["new", "groq", "d"] == ("new", "groq", "other")
