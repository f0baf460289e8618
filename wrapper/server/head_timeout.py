"""The timeout of a request's head, apart from how long an idle connection is kept."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import gevent

from wrapper.cancellation import STOOD_STILL

clock = time.monotonic


class HeadTimeout(BaseException):
    """Bounds the wait for a request's head: `head` seconds from its first byte, or, for the first
    request of a connection, from the connection on.

    In between a kept connection may be idle for `keepalive` seconds. A context manager, and what
    ends its block. The deadline is a number that `sweep` looks at, which the worker calls several
    times a second: timers would be made and freed three times for each request.
    """

    waiting: ClassVar[dict[Any, HeadTimeout]] = {}  # by the greenlet that waits
    answering: ClassVar[dict[Any, float]] = {}  # greenlets that have a head, since when

    def __init__(self, head: float, keepalive: float) -> None:
        super().__init__()
        self._head, self._keepalive = head, keepalive
        self._deadline = 0.0
        self.since = 0.0

    def idle(self) -> None:
        """Begin to wait for the first byte of a further request."""
        self._deadline = clock() + self._keepalive

    def begun(self) -> None:
        """The first byte is here."""
        self._deadline = clock() + self._head

    def __enter__(self) -> HeadTimeout:
        greenlet = gevent.getcurrent()
        self.answering.pop(greenlet, None)
        self.waiting[greenlet] = self
        self.since = clock()
        self._deadline = self.since + self._head
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        greenlet = gevent.getcurrent()
        self.waiting.pop(greenlet, None)
        self.answering[greenlet] = clock()
        return error is self

    @classmethod
    def sweep(cls, late: float) -> None:
        """End the waits whose time is over.

        The call comes `late` seconds later than it should. Time in which the worker stood still
        does not count: the head may have come meanwhile.
        """
        now, more = clock(), late if late > STOOD_STILL else 0.0
        for greenlet, timeout in cls.waiting.items():
            timeout._deadline += more
            if now >= timeout._deadline:
                gevent.get_hub().loop.run_callback(timeout._end, greenlet)

    def _end(self, greenlet: Any) -> None:
        """Runs in the event loop, a moment later."""
        if self.waiting.get(greenlet) is self:
            greenlet.throw(self)
