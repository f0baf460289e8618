"""One clock for all waiting streams.

A timer per event would cost more than the event. So waiting greenlets are put into slots of a
wheel, and one repeating timer, which runs only while somebody waits, wakes whole slots.
"""

from __future__ import annotations

import math
import time
from typing import Any

import gevent


class Place:
    """A waiting greenlet's place in the wheel; it may leave early."""

    __slots__ = ("greenlet",)

    def __init__(self, greenlet: Any) -> None:
        self.greenlet: Any = greenlet

    def wake(self) -> None:
        """Continue the greenlet now; nothing happens if it has been continued already."""
        greenlet, self.greenlet = self.greenlet, None
        if greenlet is not None:
            greenlet.switch()


class Ticker:
    """Wakes greenlets at their times, no earlier and at most one `step` (seconds) later."""

    def __init__(self, step: float = 0.001) -> None:
        self._step = step
        self._slots: dict[int, list[Place]] = {}
        self._reached = 0
        self._timer: Any = None

    def place(self, until: float) -> Place | None:
        """Enter the current greenlet, which must then switch to the hub. None: it is time."""
        if until <= time.monotonic():
            return None
        place = Place(gevent.getcurrent())
        slot = math.ceil(until / self._step)
        if self._timer is None:
            self._reached = int(time.monotonic() / self._step)
            self._timer = gevent.get_hub().loop.timer(self._step, self._step)
            self._timer.start(self._tick)
        self._slots.setdefault(max(slot, self._reached + 1), []).append(place)
        return place

    def _tick(self) -> None:
        now = int(time.monotonic() / self._step)
        if now - self._reached > 10_000:
            due = sorted(slot for slot in self._slots if slot <= now)
        else:
            due = [slot for slot in range(self._reached + 1, now + 1) if slot in self._slots]
        self._reached = now
        for slot in due:
            for place in self._slots.pop(slot):
                place.wake()
        if not self._slots and self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
