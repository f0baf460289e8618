"""Full garbage collections at moments at which they hold nobody up.

By itself Python makes one whenever the objects of a process have grown by a quarter. While
thousands of streams begin that is several times, a tenth of a second each in which no other request
is served, and nothing is found: a request leaves no cycles behind. So the automatic ones are off.
One is made when few requests are in progress, whose objects are soon gone through, or when the
memory of the worker has doubled since the last. The younger generations, which take a few
milliseconds, are collected as usual.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sized
from typing import Final

SECONDS: Final = 1.0  # between two looks
FEW: Final = 50  # requests in progress
DUE: Final = 10  # collections of the middle generation since the last full one, as Python has it
MORE: Final = 64 << 20  # bytes of memory, beside twice what there was
NEVER: Final = 1_000_000_000


class Garbage:
    """Of one worker, with the requests `in_progress` and its resident `memory` in bytes."""

    def __init__(self, in_progress: Sized, memory: Callable[[], int]) -> None:
        self._in_progress = in_progress
        self._memory = memory
        self._after = memory()

    def run(self) -> None:
        """Take the place of the automatic full collections; never returns."""
        younger, middle, _ = gc.get_threshold()
        gc.set_threshold(younger, middle, NEVER)
        while True:
            time.sleep(SECONDS)
            self.look()

    def look(self) -> None:
        """Collect where it is time."""
        if len(self._in_progress) > FEW:
            if self._memory() < 2 * self._after + MORE:
                return
        elif gc.get_count()[2] < DUE:
            return
        gc.collect()
        self._after = self._memory()
