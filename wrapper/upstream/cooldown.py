"""Whether a provider should be asked last for a short time, because it keeps failing.

A cooldown begins with the third failure in a row. It lasts as long as a 429 asks (`Retry-After`),
else for `seconds`; should the next request fail as well, for twice as long, up to a minute. A
response that is no failure ends it. Per worker. What happens to a caller's own credential says
nothing about the gateway's account and does not count.
"""

from __future__ import annotations

import time

FAILURES = 3
LONGEST = 60.0
LONGEST_ASKED = 300.0

clock = time.monotonic


class Cooldown:
    """That of one provider. `seconds` = 0: never."""

    __slots__ = ("_pause", "_seconds", "_until", "failures")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pause = seconds
        self._until = 0.0
        self.failures = 0

    @property
    def is_on(self) -> bool:
        return self._until > clock()

    def failed(self, asked: str | None = None) -> float:
        """Note a failure; `asked` is its `Retry-After`. Returns the seconds of the cooldown that
        begins with it, else 0.
        """
        self.failures += 1
        if self.failures < FAILURES or not self._seconds or self.is_on:
            return 0.0
        pause = self._pause
        self._pause = min(2 * pause, max(LONGEST, self._seconds))
        if asked is not None and asked.isascii() and asked.isdigit():
            pause = min(float(asked[:9]), LONGEST_ASKED) or pause
        self._until = clock() + pause
        return pause

    def recovered(self) -> None:
        """Note a response that is no failure."""
        self.failures = 0
        self._pause = self._seconds
        self._until = 0.0
