"""gunicorn's gevent worker: strict parsing, errors in OpenAI's shape, a graceful shutdown.

Invariants: a response is never lost because its connection was closed too early; when the worker
stops, every open request ends with an error event and is recorded.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import gevent
from gunicorn import util
from gunicorn.http.errors import NoMoreData
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.ggevent import GeventWorker

from wrapper.proxy.body import PIECE
from wrapper.proxy.deferred import remember_waiting
from wrapper.runtime import Runtime, runtime_of
from wrapper.server import lifecycle
from wrapper.server.connection import Connection, Connections, linger
from wrapper.server.malformed import malformed_response
from wrapper.server.watchdog import Watchdog
from wrapper.store import StoreError

log = logging.getLogger("wrapper")

UNSENT = 262_144  # bytes of a connection that the system keeps and has not sent yet
QUIT_DRAIN_TURNS = 50  # of 20 ms, for open requests to end, where the stop is not graceful
QUIT_SECONDS = 5  # then SIGALRM ends a worker that should have exited
DRAIN_AHEAD = 5  # seconds before gunicorn's graceful timeout
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """See the module's docstring. `config/gunicorn.py` calls the public methods from its hooks."""

    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wsgi: Any = None  # the application, from `load_wsgi` on
        self._quitting = False
        self._stop_asker: Callable[[], None] = lambda: None
        self._connections = Connections(self.worker_connections * 5 // 6)
        self._lost_lines = getattr(sys.stderr, "lost", 0)  # in the master, before

    @classmethod
    def setup(cls) -> None:
        """Called by gunicorn once, before the first worker.

        The proxy reads a body in pieces of 64 KiB. If gunicorn received more at once, the rest
        would be copied again for each piece, and the worker's other requests would wait. A 426
        says with `Upgrade` what is supported; the application sends that header with no other.
        """
        # gevent would note which greenlet spawned each one, and where: half a kilobyte for each
        # connection.
        gevent.config.track_greenlet_tree = False
        util.hop_headers.discard("upgrade")
        SocketUnreader.max_body_chunk = PIECE

    def start(self) -> None:
        """Follow the configuration files, and drain when the worker stops."""
        # A setting of gunicorn is looked up through two functions: as attributes they cost nothing.
        self.cfg.__dict__.update({name: each.get() for name, each in self.cfg.settings.items()})
        # gevent does it with the first watcher of a child, which is made after the fork: a first
        # child that has ended by then would be waited for in vain.
        gevent.get_hub().loop.install_sigchld()
        for listener in self.sockets:
            bound_unsent(listener)
        self._stop_asker = lifecycle.start_worker(self.runtime, is_first=self.age == 1)
        gevent.spawn(self._drain_at_stop)
        Watchdog(self.runtime.telemetry.event_loop_lagged, self._look_around).start()

    def interrupt(self) -> None:
        """Ctrl-C or SIGQUIT: end open requests with an error event and record them, do not wait."""
        self._stop_asker()
        scopes = self.runtime.scopes
        scopes.drain()
        for _ in range(QUIT_DRAIN_TURNS):  # a time would be over where the machine stands still
            if not scopes:
                break
            gevent.sleep(0.02)

    def close(self) -> None:
        """The worker exits: write the times and the usage that are not written yet."""
        if self.wsgi is not None:
            self.runtime.telemetry.publish()
            self.runtime.telemetry.log.flush()
            remember_waiting(self.runtime)
            if lost := len(self.runtime.unremembered):
                log.error("deferred work that the store has not taken is not metered: %d", lost)
            try:
                self.runtime.store.close()
            except StoreError as error:
                log.error("usage that was not written is lost: %s", error)

    # Cached: both are needed for each request.
    @cached_property
    def runtime(self) -> Runtime:
        """What it serves with."""
        return runtime_of(self.wsgi)

    @cached_property
    def application(self) -> Any:
        """The function that handles a request."""
        return self.wsgi.wsgi_app

    def handle_quit(self, sig: Any, frame: Any) -> None:
        """Only once: Ctrl-C in a terminal reaches every process, then the master sends SIGQUIT."""
        if not self._quitting:
            self._quitting = True
            signal.setitimer(signal.ITIMER_REAL, QUIT_SECONDS)
            super().handle_quit(sig, frame)

    def handle_error(self, _: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to what could not be read as a request. Its bytes are not logged."""
        if isinstance(exc, gevent.GreenletExit | SystemExit):
            return
        response = malformed_response(self.runtime, exc, addr[0] if addr else "", self.cfg)
        try:
            util.write_nonblock(client, response)
            linger(client)
        except OSError:
            self.log.debug("cannot send error response")

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        connections = self._connections
        connection = Connection(self, connections, client, addr, listener.getsockname())
        connections.opened(connection)
        try:
            connections.make_room(self._in_progress)
            connection.serve()
            self.log.debug("Closing connection.")
        except NoMoreData:
            self.log.debug("Ignored premature client disconnection.")
        except OSError as error:
            if error.errno in _GONE or isinstance(error, ssl.SSLError):
                self.log.debug("Ignored a connection that broke off.")
            else:
                self.log.exception("Socket error processing request.")
        except BaseException as error:  # noqa: BLE001
            self.handle_error(None, client, addr, error)
        finally:
            connections.closed(connection)
            connection.forget()
            util.close(client)

    def _in_progress(self) -> set[Any]:
        return {scope.greenlet for scope in self.runtime.scopes}

    def _look_around(self, late: float) -> None:
        """Called several times a second, `late` seconds later than planned."""
        self._connections.sweep(late)
        self._connections.make_room(self._in_progress)
        lost = getattr(sys.stderr, "lost", 0)
        if lost > self._lost_lines:
            self.runtime.telemetry.lines_lost(lost - self._lost_lines)
            self._lost_lines = lost

    def _drain_at_stop(self) -> None:
        """When the worker stops, close idle connections at once, and end what is still open with
        an error event shortly before gunicorn would cut it off.
        """
        while self.alive:
            gevent.sleep(0.5)
        self._stop_asker()
        grace = self.cfg.graceful_timeout
        end = time.monotonic() + max(grace - DRAIN_AHEAD, grace / 2)
        while time.monotonic() < end:
            self._connections.close_idle()
            gevent.sleep(0.25)
        self.runtime.scopes.drain()


def bound_unsent(listener: Any) -> None:
    """Let the system keep at most UNSENT bytes for a client that does not read.

    By itself it keeps some megabytes for each connection, which count as memory of the container.
    What is on its way is not bounded, so a fast client far away is as fast as before. Connections
    have the option from their listener.
    """
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):  # it is no TCP socket
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
