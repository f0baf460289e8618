"""Ends a request's waits early: the client has gone, a deadline has passed, the worker drains.

Theory of operation. A request is one greenlet, and most of its life it waits for the provider
inside `with scope:`. Three things may end such a wait. The client's socket turns readable and a
peek finds it closed (RFC 9112 section 9.6 allows taking that as a cancellation); a deadline has
passed; the worker drains. Each throws `Interrupted` into the greenlet from the event loop, at a
moment when the greenlet is parked, so that nothing is interrupted half way. Outside of `with
scope:` the cause is only noted and is raised at the next wait: what the server writes is never
interrupted.

Deadlines are numbers, which one timer of the worker looks at every `SWEEP` seconds: a timer for
each deadline would be made and freed three times a request. Time in which the worker did not run
at all (the machine was suspended, or starved it) does not count: what the wait was for may have
come meanwhile, and nobody has looked.

Invariant: when the client has gone, the wait for the provider ends: at once, or after `grace` where
the rest of the response is read for its usage, or where the provider's work goes on without it.

All requests of a worker share one event loop. Whatever goes on without a wait for as long as the
other side likes (bytes that never stop coming, a body that has to be searched) calls
`yield_if_due` between two pieces of its work, and then takes a few milliseconds at a time.

This is the only module below `server` that knows gevent. Without a gunicorn socket (unit tests,
Flask's test client) a scope keeps deadlines on the socket timeouts alone.
"""

from __future__ import annotations

import math
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any, Final, TypeVar

import gevent
from gevent import get_hub, getcurrent
from gevent.event import Event
from gevent.hub import Waiter
from gevent.threadpool import ThreadPool

CLIENT_GONE: Final = "client_gone"
TIMEOUT: Final = "timeout"
DRAINED: Final = "drained"
SWEEP: Final = 0.25  # seconds; a deadline is noticed up to that much later
STOOD_STILL: Final = 1.0  # seconds by which a look at the deadlines is late where nothing has run
PIECE: Final = 65536  # bytes of a response that are written at once
FIRST_PIECE: Final = 1024
THREADS: Final = 2  # for `in_thread`
TURN: Final = 0.005  # seconds of work in one turn of the event loop
LATE: Final = 0.01  # seconds between a timer's time and its turn, in a worker that is very busy
MOST_LOOKS: Final = 20  # turns of such a worker's event loop
UPLOAD_CHECK: Final = 0.5  # seconds between two checks of a client whose bytes are waiting
_CLOSED_BY_PEER: Final = frozenset({7, 8})  # Linux: TCP_CLOSE, TCP_CLOSE_WAIT

clock = time.monotonic

T = TypeVar("T")


class Interrupted(BaseException):
    """Why a wait ended early; a BaseException so that no library takes it for a failed socket.

    `sent`: the provider may have seen the request.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = False


class _Swept:
    """Waits with deadlines, which one timer of the worker looks at while there are any."""

    timer: Any = None
    swept = 0.0  # when it has looked last

    def watch(self) -> None:
        """Begin to look at the deadlines."""
        self.swept = clock()
        self.timer = get_hub().loop.timer(SWEEP, SWEEP)
        self.timer.start(self._sweep)

    def look(self, now: float, more: float) -> bool:
        """Postpone the deadlines by `more` seconds, and end the waits whose time is over at `now`:
        whether there are any left.

        Runs in the event loop.
        """
        raise NotImplementedError

    def _sweep(self) -> None:
        now = clock()
        late, self.swept = now - self.swept - SWEEP, now
        if not self.look(now, late if late > STOOD_STILL else 0.0):
            self.timer.stop()
            self.timer.close()
            self.timer = None


class Scopes(_Swept, set["CancelScope"]):
    """The cancel scopes of one worker that are open: requests whose body is being read, or that are
    with a provider.
    """

    draining = False

    def __init__(self) -> None:
        super().__init__()
        self._left: deque[CancelScope] = deque()  # by their clients
        self._again: Any = None

    def end(self, scope: CancelScope) -> None:
        """End the wait of a request whose client has gone.

        Why not at once: where thousands leave together (a proxy in front of them ends), that takes
        half a second. The events of the others pass after each `TURN` of it.
        """
        self._left.append(scope)
        if len(self._left) == 1:
            get_hub().loop.run_callback(self._end_some)

    def _end_some(self) -> None:
        """Runs in the event loop."""
        if self._again is not None:
            self._again.close()
            self._again = None
        turn = clock() + TURN
        while self._left:
            self._left.popleft().interrupt(CLIENT_GONE)
            if self._left and clock() >= turn:
                # A callback would do no better: the loop runs all of them before it looks round.
                self._again = get_hub().loop.timer(1e-6)
                self._again.start(self._end_some)
                return

    def drain(self) -> None:
        """End every wait, now and from now on, each as `drained`."""
        self.draining = True
        for scope in self:
            get_hub().loop.run_callback(scope.interrupt, DRAINED)

    def look(self, now: float, more: float) -> bool:
        if more:
            for scope in self:
                scope.postpone(more)
        for scope in [*self]:  # a copy: an interrupted request may end at once
            scope.check(now)
        return bool(self)


class CancelScope:
    """The waits of one request: `open`, wait inside `with scope`, `close`."""

    __slots__ = (
        *("_deadline", "_idle", "_io", "_readable", "_scopes", "_seen", "_since", "_sock"),
        *("_waiting", "_waits"),
        *("_grace_ends", "client_left", "grace", "greenlet", "reason"),
    )

    def __init__(self, scopes: Scopes, sock: Any | None) -> None:
        self._scopes = scopes
        self._sock: Any = getattr(sock, "_sock", None)  # gevent's plain, non-blocking socket
        # The watcher that the socket has: nobody reads from it while its client is watched. A new
        # one for each request takes three calls of the system more. (TLS reads also to write.)
        is_tls = isinstance(sock, ssl.SSLSocket)
        self._readable: Any = None if is_tls else getattr(sock, "_read_event", None)
        self.greenlet: Any = None  # that of the request
        self._io: Any = None
        self._deadline = math.inf
        self._idle = 0.0  # the idle timeout in seconds, 0 for none
        self._waits = 0  # begun so far
        self._seen = 0  # `_waits` at the last check
        self._since = 0.0  # when a check has first found that wait
        self._waiting = False
        # How long waits go on when the client has gone, in seconds, and since then until when.
        self.grace = 0.0
        self._grace_ends = math.inf
        self.client_left = False
        self.reason: str | None = None

    def open(self) -> None:
        """The request is in progress: it counts, and it can be drained."""
        if self._scopes.draining:
            self.reason = self.reason or DRAINED
        self.greenlet = getcurrent()
        self._scopes.add(self)

    def close(self) -> None:
        """No interruption after this."""
        self._scopes.discard(self)
        self.stop_watching()

    def watch_client(self, *, uploading: bool = False) -> None:
        """Begin to watch for the client's leaving.

        While its request body is `uploading` the socket is readable anyhow, and unread bytes may
        stand before the end: then the state of the connection is checked instead.
        """
        if self._io is not None:
            self.stop_watching()
        if self._sock is None:
            return
        if not uploading:
            self._io = self._readable or get_hub().loop.io(self._sock.fileno(), 1)
            self._io.start(self._client_readable)
        elif hasattr(socket, "TCP_INFO"):
            self._io = get_hub().loop.timer(UPLOAD_CHECK, UPLOAD_CHECK)
            self._io.start(self._check_connection)

    def stop_watching(self) -> None:
        """Whoever reads from the client now notices their leaving."""
        if self._io is not None:
            self._io.stop()
            if self._io is not self._readable:
                self._io.close()
            self._io = None

    def set_deadline(self, seconds: float) -> None:
        """Waits end `seconds` from now at the latest.

        Setting a deadline clears the idle timeout, and a deadline that has passed: the next target
        has its own time.
        """
        if self.reason == TIMEOUT:
            self.reason = None
        self._deadline, self._idle = clock() + seconds, 0.0
        if self._scopes.timer is None and self._sock is not None:
            self._scopes.watch()

    def set_idle_timeout(self, seconds: float) -> bool:
        """Each wait from now on ends after `seconds`, or up to two sweeps later.

        Whether that is possible here. For a stream of many short waits it costs nothing.
        """
        self._idle = seconds
        return self._sock is not None

    def postpone(self, seconds: float) -> None:
        """All deadlines are that much later."""
        self._deadline += seconds
        self._since += seconds
        self._grace_ends += seconds

    def check(self, now: float) -> None:
        """Runs in the event loop: has the deadline passed, or has one wait been too long?"""
        if now >= self._deadline:
            self.interrupt(TIMEOUT)
        elif self._seen != self._waits:
            self._seen, self._since = self._waits, now
        elif self._idle and self._waiting and now - self._since >= self._idle:
            self.interrupt(TIMEOUT)
        if now >= self._grace_ends:
            self.interrupt(CLIENT_GONE)

    def leave(self) -> None:
        """The client has gone: end the present wait, or the one after the grace period."""
        if self.client_left:
            return
        self.client_left = True
        if self._io is not None:
            self._io.stop()
        if self.grace:
            self._grace_ends = clock() + self.grace
        else:
            self._scopes.end(self)

    def interrupt(self, reason: str) -> None:
        """Runs in the event loop: end the present wait, or the next one."""
        self.reason = self.reason or reason
        if self._waiting:
            self._waiting = False
            self.greenlet.throw(Interrupted(reason))

    def __enter__(self) -> None:
        if self.reason is not None:
            raise Interrupted(self.reason)
        self.greenlet = getcurrent()
        self._waits += 1
        self._waiting = True

    def __exit__(self, *_: object) -> None:
        self._waiting = False

    def wait_for(self, sock: Any, arrived: Callable[[], bool]) -> None:
        """Wait until `arrived` returns true, which the event loop calls whenever there is something
        to read from `sock`. It must not wait.

        Raises Interrupted, and what `arrived` raises. What it saves: two switches of greenlets, and
        the beginning and the end of a wait, for each event of a stream.
        """
        waiter: Any = Waiter()
        watcher = sock._read_event

        def readable() -> None:
            self._waits += 1  # one wait has ended, the next one begins
            try:
                has_ended = arrived()
            except BaseException:  # noqa: BLE001  # raised in the request's greenlet
                self._waiting = False
                waiter.throw(*sys.exc_info())
                return
            if has_ended:
                self._waiting = False
                waiter.switch(None)

        with self:
            watcher.start(readable)
            try:
                waiter.get()
            finally:
                watcher.stop()

    def _check_connection(self) -> None:
        """Runs in the event loop: has the client closed or reset the connection? (tcp(7))"""
        try:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:  # not TCP
            return
        if state in _CLOSED_BY_PEER:
            self.leave()

    def _client_readable(self) -> None:
        """Runs in the event loop. Bytes mean pipelining; they may stand before the end."""
        try:
            gone = not self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self.leave()
        else:
            self.watch_client(uploading=True)


class _Readers(_Swept, dict[Any, float]):
    """Greenlets that wait to read from a socket, and until when."""

    def look(self, now: float, more: float) -> bool:
        for greenlet, deadline in [*self.items()]:
            if more:
                self[greenlet] = deadline + more
            elif now >= deadline and greenlet in self:
                greenlet.throw(TimeoutError("timed out"))
        return bool(self)


_readers = _Readers()


def wait_to_read(sock: Any, seconds: float | None) -> None:
    """Wait until there is something to read from gevent's `sock`. TimeoutError after `seconds`, or
    up to a sweep later.

    What it saves: gevent makes and frees a timer for each wait that does not last for ever.
    """
    if seconds is None:
        get_hub().wait(sock._read_event)
        return
    greenlet = getcurrent()
    _readers[greenlet] = clock() + seconds
    if _readers.timer is None:
        _readers.watch()
    try:
        get_hub().wait(sock._read_event)
    finally:
        del _readers[greenlet]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block may take `seconds`, however many waits it is made of; then it is Interrupted.

    Where the event loop comes to its timers too late, the block gets a few more of its turns: what
    it waits for may be there, and this thread did not look.
    """
    greenlet, began = getcurrent(), time.monotonic()
    looks = [began + seconds]
    timer = get_hub().loop.timer(max(seconds, 0.001), LATE)

    def look() -> None:
        now = time.monotonic()
        if now - looks[-1] > LATE and len(looks) < MOST_LOOKS:
            looks.append(now + LATE)
        else:
            greenlet.throw(Interrupted(TIMEOUT))

    # From now: the event loop's own time is that of its last turn, in a command perhaps long ago.
    timer.start(look, update=True)
    try:
        yield
    finally:
        timer.stop()
        timer.close()


def wait_for_writable(numbers: Iterable[int], seconds: float) -> int | None:
    """The first of these descriptors that can be written to; None where none can in that time.

    In place of `select.poll`, whose functions are the deepest that a request calls: with them the
    stack of its greenlet takes a page of memory more, for as long as a stream lasts.
    """
    loop, waiter = get_hub().loop, Waiter()
    watchers = list(map(loop.io, numbers, repeat(2)))
    timer = loop.timer(max(0.0, seconds))
    try:
        for number, watcher in zip(numbers, watchers, strict=True):
            watcher.start(waiter.switch, number)
        timer.start(waiter.switch, None, update=True)
        found: int | None = waiter.get()
    finally:
        for each in (*watchers, timer):
            each.stop()
            each.close()
    return found


class Beside:
    """Work in greenlets beside the request's own, which ends with the block at the latest."""

    def __init__(self, *works: Callable[[], None]) -> None:
        self._works = works
        self._greenlets: list[Any] = []
        self._noticed: Any = Event()
        self.error: BaseException | None = None

    def __enter__(self) -> Beside:
        self._greenlets = [gevent.spawn(self._run, work) for work in self._works]
        return self

    def __exit__(self, *_: object) -> None:
        gevent.killall(self._greenlets)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  # the loop would print it; `wait` raises it
            self.error = self.error or error

    def notice(self) -> None:
        """End a `wait` that is not for all of them."""
        self._noticed.set()

    def wait(self, seconds: float, *, for_all: bool = False) -> None:
        """Until one of them, or all, have ended, at most `seconds`. Raises what one of them did."""
        if for_all:
            gevent.wait(self._greenlets, timeout=seconds)
        else:
            gevent.wait([*self._greenlets, self._noticed], timeout=seconds, count=1)
        if self.error is not None:
            raise self.error


class _Turn:
    """The present turn of the event loop: its number, and when its first piece of work ended."""

    number = -1
    began = 0.0


def yield_if_due() -> None:
    """Let the worker's other requests run once this turn of the event loop has lasted `TURN`.

    To be called between two pieces of work on bytes from outside. Reading and writing wait only
    when there is nothing to read and no room to write, and how much work a byte makes is up to its
    sender: so time is measured, and for all requests of the turn together. A sleep of zero would
    not do: the loop looks at its sockets only when it goes round.
    """
    number, now = get_hub().loop.iteration, clock()
    if number != _Turn.number:
        _Turn.number, _Turn.began = number, now
    elif now - _Turn.began > TURN:
        gevent.sleep(1e-6)


def in_pieces(data: bytes) -> Iterator[bytes]:
    """A large response of the gateway itself, to be sent without holding up the others.

    The first piece is small, because the server copies it behind the head; the others are views.
    So a client that does not read on holds no copy.
    """
    yield data[:FIRST_PIECE]
    view = memoryview(data)
    for start in range(FIRST_PIECE, len(data), PIECE):
        yield view[start : start + PIECE]  # type: ignore[misc]  # joined and sent as bytes are
        yield_if_due()


def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of the operating system while the other requests go on.

    For what waits or computes in C without holding Python's lock. It must not use what belongs to
    this thread, such as a connection.
    """
    pool = getattr(get_hub(), "wrapper_threads", None)
    if pool is None:  # apart from the pool that resolves names
        pool = get_hub().wrapper_threads = ThreadPool(THREADS)
    result: list[T] = []

    def run() -> Exception | None:
        try:
            result.append(work())
        except Exception as error:  # noqa: BLE001  # the pool would print it
            return error
        return None

    error = pool.apply(run)
    if error is not None:
        raise error
    return result[0]
