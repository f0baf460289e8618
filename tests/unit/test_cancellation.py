"""Waits that end early."""

from __future__ import annotations

import itertools
import socket
import time
from types import SimpleNamespace

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from wrapper import cancellation
from wrapper.cancellation import CancelScope, Interrupted, Scopes, wait_to_read, within


def test_a_block_ends_after_its_time() -> None:
    with pytest.raises(Interrupted) as ended, within(0.01):
        gevent.sleep(60)
    assert ended.value.reason == cancellation.TIMEOUT


def test_a_block_in_time_is_not_interrupted_later() -> None:
    with within(0.02):
        gevent.sleep(0)
    gevent.sleep(0.1)


def test_the_time_begins_now_however_long_the_event_loop_has_not_run() -> None:
    gevent.sleep(0.001)
    time.sleep(0.4)  # the thread's, not the loop's
    with within(0.3):
        gevent.sleep(0.01)


def test_what_is_there_when_a_busy_event_loop_comes_to_its_timers_is_in_time() -> None:
    """The time was over while another greenlet worked; what the block waits for came meanwhile."""
    there = Event()

    def work() -> None:
        busy_until = time.monotonic() + 0.2
        while time.monotonic() < busy_until:
            pass
        gevent.spawn(gevent.spawn, there.set)  # two turns later

    with within(0.05):
        gevent.spawn(work)
        assert there.wait()


def test_a_loop_that_is_always_late_ends_the_block_all_the_same() -> None:
    done = False

    def work() -> None:
        while not done:
            busy_until = time.monotonic() + 0.03
            while time.monotonic() < busy_until:
                pass
            gevent.sleep(0.0001)

    worker = gevent.spawn(work)
    with pytest.raises(Interrupted), within(0.01):
        gevent.sleep(60)
    done = True
    worker.join()


@pytest.mark.parametrize("of", ["total", "idle"])
def test_time_in_which_the_worker_did_not_run_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """What a wait was for has perhaps come while the machine stood still, and nobody has looked."""
    now = 1000.0
    monkeypatch.setattr(cancellation, "clock", lambda: now)
    scopes = Scopes()
    ours, theirs = socket.socketpair()
    scope = CancelScope(scopes, SimpleNamespace(_sock=ours))
    scope.open()
    scope.set_deadline(10 if of == "total" else 10_000)
    if of == "idle":
        scope.set_idle_timeout(10)
        scope._waits, scope._waiting = 1, True  # as `with scope` does, without its greenlet
        monkeypatch.setattr(
            CancelScope, "interrupt", lambda self, why: setattr(self, "reason", why)
        )

    def runs(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds / cancellation.SWEEP)):
            now += cancellation.SWEEP
            scopes._sweep()

    runs(5)
    now += 60  # and nothing runs
    runs(4.5)
    assert scope.reason is None
    runs(1)
    assert scope.reason == cancellation.TIMEOUT
    scope.close()
    scopes._sweep()
    assert scopes.timer is None
    ours.close()
    theirs.close()


def test_a_wait_to_read_ends_when_something_comes_or_after_its_time() -> None:
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        for seconds in (None, 60.0):
            gevent.spawn_later(0.01, theirs.sendall, b"x")
            wait_to_read(ours, seconds)
            assert ours.recv(1) == b"x"
        with pytest.raises(TimeoutError):
            wait_to_read(ours, 0.01)
    assert not cancellation._readers


def test_a_wait_to_read_does_not_end_while_the_worker_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(cancellation, "clock", lambda: now)
    readers = cancellation._Readers()
    monkeypatch.setattr(cancellation, "_readers", readers)
    ours, theirs = gevent.socket.socketpair()
    waiting = gevent.spawn(wait_to_read, ours, 10.0)
    while not readers:
        gevent.sleep(0.001)
    readers.timer.stop()  # the test lets it run
    for still, runs in ((0, 5), (60, 4.5), (0, 1)):
        assert not waiting.ready()
        now += still
        for _ in range(round(runs / cancellation.SWEEP)):
            now += cancellation.SWEEP
            gevent.get_hub().loop.run_callback(readers._sweep)
            gevent.sleep(0.001)
    with pytest.raises(TimeoutError):
        waiting.get(timeout=30)
    ours.close()
    theirs.close()


def test_of_many_clients_that_leave_together_some_are_ended_in_each_turn_of_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counted in turns: here each look at the clock is a millisecond."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(cancellation, "clock", clock)
    scopes = Scopes()
    many = [CancelScope(scopes, None) for _ in range(100)]
    for scope in many:
        scope.leave()
        scope.leave()
    assert all(scope.client_left for scope in many)
    ended = [0]
    while ended[-1] < len(many):
        gevent.sleep(1e-6)  # one turn, in which everything else happens too
        ended.append(sum(scope.reason == cancellation.CLIENT_GONE for scope in many))
    assert max(after - before for before, after in itertools.pairwise(ended)) <= 6
    one = CancelScope(scopes, None)
    one.leave()
    while one.reason is None:
        gevent.sleep(1e-6)
