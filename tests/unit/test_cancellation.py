"""Waits that end early."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent.event import Event

from wrapper import cancellation
from wrapper.cancellation import Interrupted, within


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
