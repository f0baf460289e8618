"""Interrupts a request from outside: its client has left, its time is up, the worker stops.

Theory of operation. A request is one greenlet, and most of its life it waits for the provider
inside `with watch:`. Three things may end that wait early. The client's socket turns
readable and a peek finds it closed (RFC 9112 section 9.6 allows taking that as a cancellation);
the deadline's timer fires; the worker drains. Each throws `Interrupted` into the greenlet from
the event loop, at which moment the greenlet is parked, so nothing is interrupted half way.
Outside of it the cause is only noted and is raised at the next wait: gunicorn's own
writing is never torn apart.

The rule protected here: a provider never goes on working for somebody who is not there.

This is the only module of the package that knows gevent. Without a socket of gunicorn's (unit
tests, Flask's test client) `Watch` keeps deadlines on the socket timeouts alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import gevent
from gevent import get_hub, getcurrent

CLIENT_GONE: Final = "client_gone"
TIMEOUT: Final = "timeout"
DRAINED: Final = "drained"
LOOKS: Final = 4  # at a wait, in the time that it may take
TURN: Final = 1 << 18  # bytes that a request may move without letting the others run
UPLOAD_LOOK: Final = 0.5  # seconds between two looks at a client whose bytes wait
_CLOSED_BY_PEER: Final = frozenset({7, 8})  # Linux: TCP_CLOSE, TCP_CLOSE_WAIT

_active: set[Watch] = set()
_reading: set[Watch] = set()
_draining = False


class Interrupted(BaseException):
    """Why a wait ended early; a BaseException so that no library takes it for a failed socket."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Watch:
    """Watches over one request: `start`, wait inside `with watch`, `stop`."""

    __slots__ = (
        *("_beats", "_greenlet", "_idle", "_io", "_quiet", "_seen", "_sock", "_timer"),
        *("_waiting", "reason"),
    )

    def __init__(self, sock: Any | None) -> None:
        self._sock: Any = getattr(sock, "_sock", None)  # gevent's plain, non-blocking socket
        self._greenlet: Any = None
        self._io: Any = None
        self._timer: Any = None
        self._idle: Any = None
        self._beats = 0  # waits begun
        self._seen = 0  # `_beats` at the last look
        self._quiet = 0  # looks in a row that found the same wait
        self._waiting = False
        self.reason: str | None = DRAINED if _draining else None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """As `with watch`, while the request's body is read and its client not yet watched."""
        _reading.add(self)
        try:
            with self:
                yield
        finally:
            _reading.discard(self)

    def start(self, *, uploading: bool = False) -> None:
        """Begin watching the client; `uploading` while its request body is still flowing.

        Then its socket is readable anyhow, and bytes may stand in front of its farewell: the
        state of the connection is looked at instead, until `uploaded`.
        """
        _active.add(self)
        if not uploading:
            self.uploaded()
        else:
            self._look_now_and_then()

    def uploaded(self) -> None:
        """The request body has been read: from now on a readable socket means something."""
        self._end("_io")
        if self._sock is not None:
            self._io = get_hub().loop.io(self._sock.fileno(), 1)
            self._io.start(self._client_readable)

    def _look_now_and_then(self) -> None:
        self._end("_io")
        if self._sock is not None and hasattr(socket, "TCP_INFO"):
            self._io = get_hub().loop.timer(UPLOAD_LOOK, UPLOAD_LOOK)
            self._io.start(self._look_at_client)

    def deadline(self, seconds: float | None) -> None:
        """The wait ends `seconds` from now at the latest; None lifts the deadline, and `idle` too.

        One that has passed is over with its deadline: the next target has its own time.
        """
        if self.reason == TIMEOUT:
            self.reason = None
        self._end("_timer", "_idle")
        if seconds is not None and self._sock is not None:
            self._timer = get_hub().loop.timer(max(seconds, 0.001))
            self._timer.start(self._interrupt, TIMEOUT)

    def idle(self, seconds: float) -> bool:
        """Every single wait from now on ends after `seconds`, or up to a quarter of that later.

        Whether that can be watched here. One timer looks at it four times in that time, which
        for a stream of many short waits costs much less than a timeout for each.
        """
        if self._sock is None:
            return False
        look = max(seconds / LOOKS, 0.001)
        self._idle = get_hub().loop.timer(look, look)
        self._idle.start(self._look)
        return True

    def stop(self) -> None:
        """No interruption after this, whatever happens."""
        _active.discard(self)
        self.deadline(None)
        self._end("_io")

    def _end(self, *watchers: str) -> None:
        """Stop and forget these watchers of the event loop, where they are set."""
        for name in watchers:
            watcher = getattr(self, name)
            if watcher is not None:
                watcher.stop()
                watcher.close()
                setattr(self, name, None)

    def __enter__(self) -> None:
        if self.reason is not None:
            raise Interrupted(self.reason)
        self._greenlet = getcurrent()
        self._beats += 1
        self._waiting = True

    def __exit__(self, *_: object) -> None:
        self._waiting = False

    def _look(self) -> None:
        """Runs in the event loop: is it still the same wait?"""
        same = self._waiting and self._beats == self._seen
        self._quiet = self._quiet + 1 if same else 0
        self._seen = self._beats
        if self._quiet >= LOOKS:
            self._interrupt(TIMEOUT)

    def _look_at_client(self) -> None:
        """Runs in the event loop: has the client closed or reset the connection? (tcp(7))"""
        try:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:  # not TCP
            return
        if state in _CLOSED_BY_PEER:
            self._io.stop()
            self._interrupt(CLIENT_GONE)

    def _client_readable(self) -> None:
        """Runs in the event loop. Bytes mean pipelining: they stand in front of a farewell."""
        try:
            gone = not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._io.stop()
            self._interrupt(CLIENT_GONE)
        else:
            self._look_now_and_then()

    def _interrupt(self, reason: str) -> None:
        self.reason = self.reason or reason
        if self._waiting:
            self._waiting = False
            self._greenlet.throw(Interrupted(reason))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block may take `seconds`, however many waits it is made of; then it is Interrupted."""
    timer = gevent.Timeout.start_new(seconds, Interrupted(TIMEOUT))
    try:
        yield
    finally:
        timer.close()


def take_turns(moved: int) -> int:
    """Let the other requests of a worker run after each 256 KiB; `moved` is what came since then.

    Returns the new `moved`. Reading and writing wait only when there is nothing to read and no
    room to write, so a large body between two fast peers would otherwise keep the worker for
    itself. A sleep of no time at all would not do: the loop looks at sockets only when it goes
    round.
    """
    if moved < TURN:
        return moved
    gevent.sleep(1e-6)
    return 0


def drain() -> None:
    """End every wait in this worker, now and from now on, each as `drained`."""
    global _draining
    _draining = True
    for watch in _active | _reading:
        gevent.get_hub().loop.run_callback(watch._interrupt, DRAINED)


def active() -> int:
    """Requests in this worker whose body is being read, or that are with a provider."""
    return len(_reading) + len(_active)
