"""Work in a forked child: its result, its end, and what a signal does to it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from wrapper import child
from wrapper.child import ChildFailed, in_child


def test_the_result_of_any_length_comes_back() -> None:
    assert in_child(lambda: b"") == b""
    assert in_child(lambda: b"ab" * 3_000_000) == b"ab" * 3_000_000
    assert in_child(lambda: str(os.nice(0)).encode(), niceness=3) == b"%d" % (os.nice(0) + 3)


def test_a_child_without_a_result_has_failed() -> None:
    with pytest.raises(ChildFailed):
        in_child(lambda: os._exit(3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_the_child_whatever_its_parent_does_with_it(number: signal.Signals) -> None:
    """A worker's handler sleeps on an event loop that the child does not have."""
    seen: list[int] = []

    def work() -> bytes:
        os.kill(os.getpid(), number)
        time.sleep(60)
        return b"went on"

    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with pytest.raises(ChildFailed):
            in_child(work)
        os.kill(os.getpid(), number)  # the parent's own handlers are as before
        assert seen == [number]
        assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(number, before)


def test_where_no_child_can_be_made_signals_still_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    with pytest.raises(BlockingIOError):
        in_child(lambda: b"")
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_child_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS", 0.1)
    with pytest.raises(ChildFailed, match="nothing came from the child"):
        in_child(lambda: b"%d" % (time.sleep(600) or 1))
