"""gunicorn's gevent worker: strict parsing, errors in OpenAI's shape, a graceful shutdown.

Invariants: a head that another server could read in a second way is refused; a response is never
lost because its connection was closed too early; when the worker stops, every open request ends
with an error event and is recorded.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
import sys
import time
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http.errors import InvalidRequestLine, ObsoleteFolding
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.ggevent import GeventWorker

from wrapper.runtime import Runtime, runtime_of
from wrapper.server import lifecycle
from wrapper.server.malformed import malformed_response
from wrapper.server.watchdog import Watchdog

INVALID_TARGET = re.compile(rb"[A-Z]+ /[^ \r\n]*[\x00-\x1f\x7f-\xff][^ \r\n]* HTTP/1\.[01]\b")
BODY_PIECE = 65536  # bytes
PIPELINED_IN_A_ROW = 8  # requests of one connection, before the other connections are served
LINGER_SECONDS = 2
QUIT_DRAIN_SECONDS = 1  # for open requests to end, where the stop is not graceful
QUIT_SECONDS = 5  # then SIGALRM ends a worker that should have exited
DRAIN_AHEAD = 5  # seconds before gunicorn's graceful timeout
SLOW_SECONDS = 0.5  # a response of the gateway itself has been sent within this time
IDLE_SECONDS = 0.5  # a head that is being sent arrives within this time


class InvalidTarget(InvalidRequestLine):  # type: ignore[misc]  # gunicorn has no types
    """The request target has characters that no URI has (RFC 3986 section 2)."""


class StrictRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request whose head is checked against the grammar again.

    The C parser accepts a bare LF as line terminator, folded lines, and several spaces in the
    request line; another server on the way may not (RFC 9112 sections 2.2, 3 and 5.2).
    """

    def parse_request_line(self, line_bytes: bytes) -> None:
        try:
            super().parse_request_line(line_bytes)
        except InvalidRequestLine as error:
            raise _classified(error, line_bytes) from None

    def _parse_fast(self, unreader: Any, buf: bytearray) -> bytes:
        try:
            rest: bytes = super()._parse_fast(unreader, buf)
        except InvalidRequestLine as error:
            raise _classified(error, bytes(buf)) from None
        head = bytes(buf[: len(buf) - len(rest)])
        if head.count(b"\n") != head.count(b"\r\n"):
            raise InvalidRequestLine("bare LF as line terminator")
        if b"\r\n " in head or b"\r\n\t" in head:
            raise ObsoleteFolding("folded line")
        if head.lstrip(b"\r\n").split(b"\r\n", 1)[0].count(b" ") != 2:
            raise InvalidRequestLine("several spaces")
        return rest


def _classified(error: InvalidRequestLine, head: bytes) -> InvalidRequestLine:
    """`InvalidTarget` where only the target of the request line is wrong, else `error`."""
    return InvalidTarget("") if INVALID_TARGET.match(head) else error


class HeadTimeout(gevent.Timeout):  # type: ignore[misc]  # gevent has no types
    """Bounds the wait for a request's head; `waiting` maps each waiting greenlet to its start, and
    `answering` each that has a head.
    """

    def __init__(
        self, seconds: float, waiting: dict[Any, float], answering: dict[Any, float]
    ) -> None:
        super().__init__(seconds, False)
        self._waiting = waiting
        self._answering = answering

    def __enter__(self) -> HeadTimeout:
        greenlet = gevent.getcurrent()
        self._answering.pop(greenlet, None)
        self._waiting[greenlet] = time.monotonic()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        greenlet = gevent.getcurrent()
        self._waiting.pop(greenlet, None)
        self._answering[greenlet] = time.monotonic()
        return super().__exit__(*error)


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module's docstring. `config/gunicorn.py` calls the public methods from its hooks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wsgi: Any = None  # the application, from `load_wsgi` on
        self._quitting = False
        # By the greenlets of the connections: sockets; those that wait for a head, since when; the
        # others, since when.
        self._clients: dict[Any, Any] = {}
        self._waiting: dict[Any, float] = {}
        self._answering: dict[Any, float] = {}
        self._crowded = self.worker_connections * 5 // 6
        self._lost_lines = getattr(sys.stderr, "lost", 0)  # in the master, before

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn once, before the first worker.

        The proxy reads a body in pieces of 64 KiB. If gunicorn received more at once, the rest
        would be copied again for each piece, and the worker's other requests would wait.
        """
        RequestParser.mesg_class = StrictRequest
        SocketUnreader.max_body_chunk = BODY_PIECE

    def start(self) -> None:
        """Follow the configuration files, and drain when the worker stops."""
        lifecycle.start_worker(self._runtime)
        gevent.spawn(self._drain_at_stop)
        Watchdog(self._runtime.telemetry.event_loop_lagged, self._look_around).start()

    def interrupt(self) -> None:
        """Ctrl-C or SIGQUIT: end open requests with an error event and record them, do not wait."""
        scopes = self._runtime.scopes
        scopes.drain()
        with gevent.Timeout(QUIT_DRAIN_SECONDS, False):
            while scopes:
                gevent.sleep(0.02)

    def close(self) -> None:
        """The worker exits: write the usage that the store has not taken yet."""
        if self.wsgi is not None:
            self._runtime.store.close()

    @property
    def _runtime(self) -> Runtime:
        return runtime_of(self.wsgi)

    def handle_quit(self, sig: Any, frame: Any) -> None:
        """Only once: Ctrl-C in a terminal reaches every process, then the master sends SIGQUIT."""
        if not self._quitting:
            self._quitting = True
            signal.setitimer(signal.ITIMER_REAL, QUIT_SECONDS)
            super().handle_quit(sig, frame)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        req.body.force_close = req.force_close  # the application closes the connection with it
        sock.settimeout(self._runtime.snapshot.settings.server.body_timeout)
        try:
            return super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:  # the client stopped reading
            if req.version < (1, 1):
                reset(sock)
            raise StopIteration() from None
        except ConnectionResetError:  # by the client, or because the response broke off
            if req.version < (1, 1):
                reset(sock)
            raise
        finally:
            sock.settimeout(None)  # the next request's head has a timeout of its own
            if not req.req_number % PIPELINED_IN_A_ROW:
                gevent.sleep(1e-6)
            if req.should_close():
                linger(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to what could not be read as a request. Its bytes are not logged."""
        if isinstance(exc, gevent.GreenletExit | SystemExit):
            return
        response = malformed_response(self._runtime, exc, addr[0] if addr else "")
        try:
            util.write_nonblock(client, response)
            linger(client)
        except OSError:
            self.log.debug("cannot send error response")

    def timeout_ctx(self) -> HeadTimeout:
        """The context in which gunicorn waits for a request's head."""
        return HeadTimeout(self.cfg.keepalive, self._waiting, self._answering)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        greenlet = gevent.getcurrent()
        self._clients[greenlet] = client
        try:
            self._make_room()
            super().handle(listener, client, addr)
        finally:
            for each in (self._clients, self._waiting, self._answering):
                each.pop(greenlet, None)

    def _make_room(self) -> None:
        """Close connections before there is no place for another one, health checks among them.

        Those go first that have waited longest for a request, be they idle or slow to send its
        head, then those that take their time with a response of the gateway itself. What is with
        a provider stays: `max_in_flight` bounds it.
        """
        too_many = len(self._clients) - self._crowded
        if too_many <= 0:
            return
        proxied = {scope.greenlet for scope in self._runtime.scopes}
        slow = time.monotonic() - SLOW_SECONDS
        answering = [
            greenlet
            for greenlet, since in self._answering.items()
            if since < slow and greenlet not in proxied
        ]
        for greenlet in [*self._waiting, *answering][:too_many]:
            self._waiting.pop(greenlet, None)
            client = self._clients.pop(greenlet, None)
            with contextlib.suppress(OSError, AttributeError):
                client._sock.shutdown(socket.SHUT_RDWR)  # wakes its greenlet with the end

    def _look_around(self) -> None:
        """Several times a second."""
        self._make_room()
        lost = getattr(sys.stderr, "lost", 0)
        if lost > self._lost_lines:
            self._runtime.telemetry.lines_lost(lost - self._lost_lines)
            self._lost_lines = lost

    def _drain_at_stop(self) -> None:
        """When the worker stops, close idle connections at once, and end what is still open with
        an error event shortly before gunicorn would cut it off.
        """
        while self.alive:
            gevent.sleep(0.5)
        grace = self.cfg.graceful_timeout
        end = time.monotonic() + max(grace - DRAIN_AHEAD, grace / 2)
        while time.monotonic() < end:
            self._close_idle()
            gevent.sleep(0.25)
        self._runtime.scopes.drain()

    def _close_idle(self) -> None:
        """Close the connections on which no request is being sent or served."""
        for greenlet, since in list(self._waiting.items()):
            if time.monotonic() - since > IDLE_SECONDS:
                greenlet.kill(block=False)


def linger(sock: Any) -> None:
    """Shut down the sending side, then discard what the client still sends for a moment.

    Closing with unread bytes would reset the connection, and the client could lose the response
    (RFC 9112 section 9.6).
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        with gevent.Timeout(LINGER_SECONDS, False):
            while sock.recv(65536):
                pass
    except OSError:
        pass


def reset(sock: Any) -> None:
    """Close the connection with a reset.

    To an HTTP/1.0 client an orderly close is the end of the response (RFC 9112 section 6.3 (8)).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
