"""Which models have a name in the metrics: the same ones in every worker, and not too many."""

from __future__ import annotations

import os
import signal

from wrapper.telemetry.labels import ModelLabels


def in_child(work: object) -> int:
    """Do `work` in a forked process, as a worker would; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = int(not work())  # type: ignore[operator]
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_places_are_shared_by_all_workers() -> None:
    labels = ModelLabels(limit=3)
    assert in_child(lambda: labels.add("a") and labels.add("b")) == 0
    assert in_child(lambda: labels.add("c") and labels.add("a")) == 0
    assert not labels.add("d")
    assert all(labels.add(name) for name in "abc")


def test_many_workers_at_once_name_no_more_than_there_are_places() -> None:
    labels = ModelLabels(limit=50)

    def worker(number: int) -> int:
        pid = os.fork()
        if pid == 0:
            named = [labels.add(f"{number}-{at}") for at in range(40)]
            os._exit(sum(named))
        return pid

    pids = [worker(number) for number in range(4)]
    named = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sum(named) == 50


def test_a_worker_that_is_killed_with_the_lock_blocks_nobody() -> None:
    labels = ModelLabels()

    def die() -> None:
        with labels._locked():
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die) == -signal.SIGKILL
    assert labels.add("a")


def test_names_of_an_earlier_run_keep_their_places_however_many_they_are() -> None:
    labels = ModelLabels(limit=2)
    labels.take_up(["a", "b", "c", "a"])
    assert [labels.add(name) for name in "abcd"] == [True, True, True, False]


def test_any_text_is_a_name() -> None:
    labels = ModelLabels()
    names = ["a\nb", "ü", "\udc80", "", '"', "\u2028"]
    assert in_child(lambda: all(labels.add(name) for name in names)) == 0
    assert labels.add("another")
    assert all(name in labels for name in names)


def test_half_a_line_is_no_name_and_is_written_over() -> None:
    labels = ModelLabels()
    labels.add("a")
    os.pwrite(labels._fd, b'"half of a long na', labels._read)
    assert in_child(lambda: labels.add("b")) == 0
    assert labels.add("c")
    assert all(name in labels for name in "abc")
