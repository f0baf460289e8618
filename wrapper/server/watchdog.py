"""Measures how long the event loop of a worker stood still, and shows what it was doing.

A greenlet sleeps for short times and measures how much later it wakes. A thread of the operating
system, which runs beside the event loop, sees that the greenlet does not wake and writes the stack
of the main thread. It writes to stderr itself: a log handler's lock may be what the main thread
holds.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable

import gevent
from gevent.monkey import get_original

# Seconds between two measurements: each is some 0.2 ms of work, whatever else the worker does.
INTERVAL = 0.25
STANDSTILL = 0.5  # seconds, beyond which the stack is written
FRAMES = 12  # of the stack, the innermost ones


class Watchdog:
    """One for each worker. `observe` gets each measured delay in seconds, and then `each` does."""

    def __init__(self, observe: Callable[[float], None], each: Callable[[float], None]) -> None:
        self._observe = observe
        self._each = each
        self._woken = time.monotonic()

    def start(self) -> None:
        """Begin to measure; call it in the main thread."""
        gevent.spawn(self._measure)
        get_original("_thread", "start_new_thread")(
            self._look, (get_original("_thread", "get_ident")(),)
        )

    def _measure(self) -> None:
        while True:
            gevent.sleep(INTERVAL)
            before, self._woken = self._woken, time.monotonic()
            late = max(0.0, self._woken - before - INTERVAL)
            self._observe(late)
            self._each(late)

    def _look(self, main: int) -> None:
        """Runs in a thread of its own."""
        sleep, told = get_original("time", "sleep"), 0.0
        while True:
            sleep(INTERVAL)
            woken = self._woken
            if time.monotonic() - woken > INTERVAL + STANDSTILL and woken != told:
                told = woken
                frame = sys._current_frames().get(main)
                sys.stderr.write(_line(traceback.extract_stack(frame)))


def _line(stack: traceback.StackSummary) -> str:
    innermost = itertools.islice(reversed(stack), FRAMES)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "level": "warning",
        "message": f"event loop blocked for more than {STANDSTILL:g} s",
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in innermost],
    }
    return json.dumps(line) + "\n"
