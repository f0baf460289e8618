"""The timeout of a request's head, apart from how long an idle connection is kept."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import gevent


class HeadTimeout(gevent.Timeout):  # type: ignore[misc]  # gevent has no types
    """Bounds the wait for a request's head: `head` seconds from its first byte, or, for the first
    request of a connection, from the connection on.

    In between a kept connection may be idle for `keepalive` seconds.
    """

    waiting: ClassVar[dict[Any, HeadTimeout]] = {}  # by the greenlet that waits
    answering: ClassVar[dict[Any, float]] = {}  # greenlets that have a head, since when

    def __init__(self, head: float, keepalive: float) -> None:
        super().__init__(head, False)
        self._head, self._keepalive = head, keepalive
        self._other: Any = None  # runs in place of this one's own timer, and throws this one
        self.since = 0.0

    def idle(self) -> None:
        """Begin to wait for the first byte of a further request."""
        self._restart(self._keepalive)

    def begun(self) -> None:
        """The first byte is here."""
        self._restart(self._head)

    def _restart(self, seconds: float) -> None:
        self.cancel()
        if self._other is not None:
            self._other.close()
        self._other = gevent.Timeout.start_new(seconds, self)

    def __enter__(self) -> HeadTimeout:
        greenlet = gevent.getcurrent()
        self.answering.pop(greenlet, None)
        self.waiting[greenlet] = self
        self.since = time.monotonic()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        greenlet = gevent.getcurrent()
        self.waiting.pop(greenlet, None)
        self.answering[greenlet] = time.monotonic()
        if self._other is not None:
            self._other.close()
        return super().__exit__(*error)
