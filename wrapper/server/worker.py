"""gunicorn's gevent worker: strict parsing, errors in OpenAI's shape, a graceful shutdown.

Invariants: a response is never lost because its connection was closed too early; when the worker
stops, every open request ends with an error event and is recorded.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.ggevent import GeventWorker

from wrapper.proxy.deferred import remember_waiting
from wrapper.proxy.timeouts import HEAD
from wrapper.runtime import Runtime, runtime_of
from wrapper.server import lifecycle
from wrapper.server.head_timeout import HeadTimeout
from wrapper.server.malformed import malformed_response
from wrapper.server.strict_request import StrictRequest
from wrapper.server.watchdog import Watchdog
from wrapper.server.wsgi import Environments, Response
from wrapper.store import StoreError

log = logging.getLogger("wrapper")

BODY_PIECE = 65536  # bytes
UNSENT = 262_144  # bytes of a connection that the system keeps and has not sent yet
PIPELINED_IN_A_ROW = 8  # requests of one connection, before the other connections are served
LINGER_SECONDS = 2
QUIT_DRAIN_TURNS = 50  # of 20 ms, for open requests to end, where the stop is not graceful
QUIT_SECONDS = 5  # then SIGALRM ends a worker that should have exited
DRAIN_AHEAD = 5  # seconds before gunicorn's graceful timeout
SLOW_SECONDS = 0.5  # a response of the gateway itself has been sent within this time
IDLE_SECONDS = 0.5  # a head that is being sent arrives within this time


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module's docstring. `config/gunicorn.py` calls the public methods from its hooks."""

    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wsgi: Any = None  # the application, from `load_wsgi` on
        self._environments: Any = None  # from `start` on
        self._quitting = False
        self._stop_asking: Callable[[], None] = lambda: None
        self._clients: dict[Any, Any] = {}  # sockets, by the greenlets of the connections
        self._crowded = self.worker_connections * 5 // 6
        self._lost_lines = getattr(sys.stderr, "lost", 0)  # in the master, before

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn once, before the first worker.

        The proxy reads a body in pieces of 64 KiB. If gunicorn received more at once, the rest
        would be copied again for each piece, and the worker's other requests would wait. A 426
        says with `Upgrade` what is supported; the application sends that header with no other.
        """
        RequestParser.mesg_class = StrictRequest
        # Of each greenlet, who has begun it and where: half a kilobyte of every connection.
        gevent.config.track_greenlet_tree = False
        util.hop_headers.discard("upgrade")
        SocketUnreader.max_body_chunk = BODY_PIECE

    def start(self) -> None:
        """Follow the configuration files, and drain when the worker stops."""
        # A setting of gunicorn is looked up through two functions, and some thirty are for each
        # request: as attributes they cost nothing.
        self.cfg.__dict__.update({name: each.get() for name, each in self.cfg.settings.items()})
        self._environments = Environments(self.cfg)
        # gevent does it with the first watcher of a child, which is made after the fork: a first
        # child that has ended by then would be waited for in vain.
        gevent.get_hub().loop.install_sigchld()
        for listener in self.sockets:
            bound_unsent(listener)
        self._stop_asking = lifecycle.start_worker(self._runtime, is_first=self.age == 1)
        gevent.spawn(self._drain_at_stop)
        Watchdog(self._runtime.telemetry.event_loop_lagged, self._look_around).start()

    def interrupt(self) -> None:
        """Ctrl-C or SIGQUIT: end open requests with an error event and record them, do not wait."""
        self._stop_asking()
        scopes = self._runtime.scopes
        scopes.drain()
        for _ in range(QUIT_DRAIN_TURNS):  # a time would be over where the machine stands still
            if not scopes:
                break
            gevent.sleep(0.02)

    def close(self) -> None:
        """The worker exits: write the times and the usage that are not written yet."""
        if self.wsgi is not None:
            self._runtime.telemetry.publish()
            self._runtime.telemetry.log.flush()
            remember_waiting(self._runtime)
            if lost := len(self._runtime.unremembered):
                log.error("deferred work that the store has not taken is not metered: %d", lost)
            try:
                self._runtime.store.close()
            except StoreError as error:
                log.error("usage that was not written is lost: %s", error)

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
        req.body.take_buffered = req.unreader.take_buffered  # what follows a handshake
        server = self._runtime.snapshot.settings.server
        if server.root_path:
            strip_root(req, server.root_path)
        sock.settimeout(server.body_timeout)
        try:
            self._respond(listener_name, req, sock, addr)
        except (gevent.GreenletExit, SystemExit):
            pass
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

    def _respond(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """As gunicorn's `handle_request` does, without its clock, access log and hooks, which are
        not used here.

        Raises StopIteration where the connection closes after the response.
        """
        response = Response(req, sock, self.cfg)
        try:
            environ = self._environments.of(req, sock, addr, listener_name)
            self.nr += 1
            if self.alive and self.nr >= self.max_requests:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            if not self.alive or not self.cfg.keepalive:
                response.force_close()
            body = self.wsgi(environ, response.start_response)
            try:
                pieces = iter(body)
                if response.chunked and hasattr(pieces, "send_through") and not self.cfg.is_ssl:
                    pieces.send_through(response)
                for piece in pieces:
                    response.write(piece, last=getattr(pieces, "ended", False))
                response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
        except (StopIteration, OSError):
            raise
        except (Exception, SystemExit):
            if not response.headers_sent:
                raise
            # Something else on the connection would look like a part of the response.
            log.exception("a response was cut off")
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            raise StopIteration() from None
        if response.should_close():
            raise StopIteration()

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
        return HeadTimeout(min(HEAD, self.cfg.keepalive), self.cfg.keepalive)

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        greenlet = gevent.getcurrent()
        self._clients[greenlet] = client
        try:
            self._make_room()
            super().handle(listener, client, addr)
        finally:
            for each in (self._clients, HeadTimeout.waiting, HeadTimeout.answering):
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
            for greenlet, since in HeadTimeout.answering.items()
            if since < slow and greenlet not in proxied
        ]
        for greenlet in [*HeadTimeout.waiting, *answering][:too_many]:
            HeadTimeout.waiting.pop(greenlet, None)
            client = self._clients.pop(greenlet, None)
            with contextlib.suppress(OSError, AttributeError):
                client._sock.shutdown(socket.SHUT_RDWR)  # wakes its greenlet with the end

    def _look_around(self, late: float) -> None:
        """Several times a second, and how many seconds `late`."""
        HeadTimeout.sweep(late)
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
        self._stop_asking()
        grace = self.cfg.graceful_timeout
        end = time.monotonic() + max(grace - DRAIN_AHEAD, grace / 2)
        while time.monotonic() < end:
            self._close_idle()
            gevent.sleep(0.25)
        self._runtime.scopes.drain()

    def _close_idle(self) -> None:
        """Close the connections on which no request is being sent or served."""
        for greenlet, timeout in list(HeadTimeout.waiting.items()):
            if time.monotonic() - timeout.since > IDLE_SECONDS:
                greenlet.kill(block=False)


def strip_root(req: Any, root: str) -> None:
    """Take `root` off the request's target, where it begins with it."""
    if req.uri.startswith(root) and req.uri[len(root) : len(root) + 1] in ("/", "?", ""):
        rest = req.uri[len(root) :]
        req.uri = rest if rest.startswith("/") else "/" + rest
        req.path = req.path[len(root) :] or "/"


def bound_unsent(listener: Any) -> None:
    """Let the system keep at most UNSENT bytes for a client that does not read.

    By itself it keeps some megabytes for each connection, which count as memory of the container.
    What is on its way is not bounded, so a fast client far away is as fast as before. Connections
    have the option from their listener.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # it is no TCP socket
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


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
