"""A client's connection: its requests are read and responded to one after the other.

Theory of operation. A connection is one greenlet, which runs `serve`: wait for the next request,
read its head into a WSGI environment, call the application, write what that gives, read what is
left of the request's body, and again. A head that is all there and of the usual form is read by
`head`; anything else by gunicorn's parser, from the bytes that have come.

While a connection waits for a request it has a deadline: `HEAD` seconds for what is left of the
last request's body, `keepalive` seconds in which a kept connection may be idle, and `HEAD` seconds
for the next head from its first byte on. (A new connection's first head has them from the
beginning.) Deadlines are numbers that the worker looks at several times a second
(`Connections.sweep`): timers would be made and freed three times for each request. Everything else
on the socket has `body_timeout`, for each wait; after the last response what the client still
sends is discarded for `LINGER_SECONDS`.

What this saves beside gunicorn's own loop, of a short call: reading in vain before each request,
two changes of the socket's timeout, gunicorn's objects for a request, its body and its buffers.

Invariants: a response is never lost because its connection was closed too early; where it is not
known where the next request begins, there is none.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.socket
from gevent import get_hub
from gunicorn.http import wsgi
from gunicorn.http.unreader import SocketUnreader

from wrapper.cancellation import STOOD_STILL, yield_if_due
from wrapper.config import Server
from wrapper.proxy.body import PIECE
from wrapper.proxy.timeouts import HEAD
from wrapper.server.head import LONGEST, MOST_FIELDS, read_head, without_root
from wrapper.server.response import Response
from wrapper.server.strict_request import StrictRequest

if TYPE_CHECKING:
    from wrapper.server.worker import Worker

log = logging.getLogger("wrapper")

PIPELINED_IN_A_ROW: Final = 8  # requests of one connection, before others are served
LINGER_SECONDS: Final = 2
SLOW_SECONDS: Final = 0.5  # a response of the gateway itself has been sent within this time
IDLE_SECONDS: Final = 0.5  # a head that is being sent arrives within this time

clock = time.monotonic

_HTTP_1_1: Final = "HTTP/1.1"


class WaitedTooLong(BaseException):
    """Ends the wait for a request; a BaseException so that nothing takes it for a failed read."""


class Connections:
    """Those of a worker, and which of them wait for a request: the longest wait first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Connection) -> None:
        """It is counted until `closed`."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """It is served no more."""
        self._open.discard(connection)
        self.waiting.pop(connection, None)

    def sweep(self, late: float) -> None:
        """End the waits whose time is over.

        The call comes `late` seconds later than it should. Time in which the worker stood still
        does not count: the head may have come meanwhile.
        """
        now, more = clock(), late if late > STOOD_STILL else 0.0
        for connection in self.waiting:
            connection.deadline += more
            if now >= connection.deadline:
                get_hub().loop.run_callback(self._end, connection)

    def _end(self, connection: Connection) -> None:
        """Runs in the event loop, a moment later."""
        if connection in self.waiting and clock() >= connection.deadline:
            connection.greenlet.throw(WaitedTooLong())

    def make_room(self, in_progress: Callable[[], set[Any]]) -> None:
        """Close connections before there is no place for another one, health checks among them.

        Those go first that have waited longest for a request, be they idle or slow to send its
        head, then those that take their time with a response of the gateway itself. Proxy requests
        stay (`in_progress` gives their greenlets): `max_in_flight` bounds them.
        """
        too_many = len(self._open) - self._most
        if too_many <= 0:
            return
        greenlets, slow = in_progress(), clock() - SLOW_SECONDS
        responding = [
            each
            for each in self._open
            if each not in self.waiting and each.since < slow and each.greenlet not in greenlets
        ]
        responding.sort(key=lambda each: each.since)
        for connection in [*self.waiting, *responding][:too_many]:
            self.closed(connection)
            connection.wake()

    def close_idle(self) -> None:
        """Close those on which no request is being sent or served."""
        for connection in self.waiting:
            get_hub().loop.run_callback(self._end_idle, connection)

    def _end_idle(self, connection: Connection) -> None:
        """Runs in the event loop, a moment later: a request may have come meanwhile."""
        if connection in self.waiting and clock() - connection.since > IDLE_SECONDS:
            connection.greenlet.throw(WaitedTooLong())


class Connection:
    """One connection; see the module's docstring. `client` and `server` are its addresses.

    `since` is when it began to wait for a request, had the first bytes of one, or had its head.
    `keeps`: another request may follow the present one.
    """

    def __init__(
        self, worker: Worker, connections: Connections, sock: Any, client: Any, server: Any
    ) -> None:
        cfg = worker.cfg
        self.greenlet = gevent.getcurrent()
        self.sock = sock
        self.since = clock()
        self.deadline = math.inf
        self.keeps = True
        self.method, self.version = "", _HTTP_1_1
        self._worker, self._cfg, self._connections = worker, cfg, connections
        self._client, self._server = client, server
        self._keepalive = cfg.keepalive
        self._head_seconds = min(HEAD, cfg.keepalive or HEAD)
        self._requests = 0
        self._ahead = b""  # read, and not used yet
        self._input: Input | None = None  # of the present request, if `head` has read it
        self._request: Any = None  # the present one, if gunicorn has
        self._proxy_info: Any = {}
        self._longest = min(LONGEST, cfg.limit_request_line, cfg.limit_request_field_size)
        is_plain = type(sock) is gevent.socket.socket
        self._wait = partial(get_hub().wait, sock._read_event) if is_plain else None
        # What all environments of the connection have: `read_head` copies it, in one step.
        self._base = {"gunicorn.socket": sock, "wsgi.url_scheme": "http"}
        self._base |= {"SERVER_PROTOCOL": _HTTP_1_1}
        if is_plain and isinstance(client, tuple) and isinstance(server, tuple):
            self._base |= {"REMOTE_ADDR": client[0], "REMOTE_PORT": str(client[1])}
            self._base |= {"SERVER_NAME": server[0], "SERVER_PORT": str(server[1])}
        else:  # TLS, or a Unix socket
            self._longest = 0
        if cfg.proxy_protocol != "off" or cfg.header_map != "dangerous":
            self._longest = 0
        if cfg.limit_request_fields < MOST_FIELDS:
            self._longest = 0

    def serve(self) -> None:
        """Serve one request after the other, until the connection is to be closed.

        Raises gunicorn's exceptions for what is no request, and OSError.
        """
        goes_on = True
        while goes_on:
            server: Server = self._worker.runtime.snapshot.settings.server
            environ = self._next(server.root_path)
            if environ is None:
                return
            if self.sock.timeout != server.body_timeout:
                self.sock.settimeout(server.body_timeout)
            try:
                goes_on = self._respond(environ)
            except (TimeoutError, ConnectionResetError) as error:
                # The client reads no more or has gone, or the response broke off.
                if self.version != _HTTP_1_1:
                    reset(self.sock)
                if not isinstance(error, TimeoutError):
                    raise
                return
            finally:
                if not self.keeps:
                    linger(self.sock)
            del environ  # an idle connection has no use for it
            # The wait for more bytes lets the others run; requests that are here already do not.
            if (self._ahead or self._request) and not self._requests % PIPELINED_IN_A_ROW:
                gevent.sleep(1e-6)

    # --- a request comes in ----------------------------------------------------------------------

    def _next(self, root: str) -> dict[str, Any] | None:
        """The environment of the next request; None where there is none."""
        waiting = self._connections.waiting
        self.since = clock()
        self.deadline = self.since + self._head_seconds
        waiting[self] = None
        try:
            if not self._finish_body():
                return None
            self._requests += 1
            if not self._ahead and not self._receive():
                return None
            head, end, rest = self._ahead.partition(b"\r\n\r\n")
            usual = end and len(head) < self._longest
            environ = read_head(head, self._base, root) if usual else None
            if environ is None:
                return self._next_by_gunicorn(root)
            self._ahead = rest
        except (WaitedTooLong, TimeoutError):
            return None
        finally:
            waiting.pop(self, None)
            self.since = clock()
        self.method, self.version = environ["REQUEST_METHOD"], _HTTP_1_1
        options = environ.get("HTTP_CONNECTION")
        self.keeps = options is None or not says_close(options)
        length = int(environ.get("CONTENT_LENGTH", 0))
        self._input = Input(self, length, has_come=len(rest) >= length)
        environ["wsgi.input"] = self._input
        return environ

    def _receive(self) -> bool:
        """Wait for the first bytes of a request; whether some came."""
        if self._requests == 1:
            self.sock.settimeout(None)  # the deadline is counted
            self._ahead = self.sock.recv(PIECE)
            self.since = clock()
            return bool(self._ahead)
        self.deadline = self.since + self._keepalive
        if self._wait is not None:
            self._wait()  # to read in vain before would be a call to the system for each request
        else:
            self.sock.settimeout(None)
        self._ahead = self.sock.recv(PIECE)
        self.since = clock()
        self.deadline = self.since + self._head_seconds
        return bool(self._ahead)

    def _next_by_gunicorn(self, root: str) -> dict[str, Any]:
        """As `_next`, for a head that has not come as a whole or is unusual. Raises what gunicorn's
        parser does.
        """
        unreader = SocketUnreader(self.sock)
        unreader.unread(self._ahead)
        self._ahead = b""
        self.sock.settimeout(None)  # the deadline is counted
        request = StrictRequest(self._cfg, unreader, self._client, self._requests)
        self._proxy_info = request.proxy_protocol_info or self._proxy_info
        request.proxy_protocol_info = self._proxy_info
        if root:
            request.uri = without_root(request.uri, root)
            request.path = without_root(request.path, root)
        request.body.force_close = self.force_close  # for the application
        request.body.take_buffered = unreader.take_buffered  # what follows a handshake
        self._request, self._input = request, None
        self.method, self.version = request.method, "HTTP/{}.{}".format(*request.version)
        _, environ = wsgi.create(request, self.sock, self._client, self._server, self._cfg)
        says = says_close(environ.get("HTTP_CONNECTION", ""))
        self.keeps = not says and not request.should_close()
        made: dict[str, Any] = environ
        return made

    def _finish_body(self) -> bool:
        """Discard what the application has left of the request's body; whether its end is known."""
        if self._request is not None:
            body = self._request.body
            while not body.failed and body.read(1024):
                pass
            self._ahead = self._request.unreader.take_buffered()
            self._request = None
            return not body.failed
        return self._input is None or self._input.discard()

    def force_close(self) -> None:
        """The present request is the last one."""
        self.keeps = False

    def take_ahead(self, most: int | None = None) -> bytes:
        """Bytes that have been read and not used, at `most` so many."""
        data = self._ahead[:most]
        self._ahead = self._ahead[len(data) :]
        return data

    def forget(self) -> None:
        """Break the cycles with this object, which only a garbage collection would free."""
        self._input = self._request = None

    def wake(self) -> None:
        """End what it waits for, as if the client had closed it."""
        with contextlib.suppress(OSError, AttributeError):
            self.sock._sock.shutdown(socket.SHUT_RDWR)

    # --- and its response goes out ---------------------------------------------------------------

    def _respond(self, environ: dict[str, Any]) -> bool:
        """Call the application and send what it gives; whether the connection goes on."""
        worker = self._worker
        worker.nr += 1
        if worker.alive and worker.nr >= worker.max_requests:
            worker.log.info("Autorestarting worker after current request.")
            worker.alive = False
        response = Response(self, closes=not worker.alive or not self._keepalive)
        try:
            body = worker.application(environ, response.start_response)
            try:
                pieces = iter(body)
                # Not over TLS: the pump writes to the plain socket below gevent's.
                if response.chunked and self._wait and hasattr(pieces, "send_through"):
                    pieces.send_through(response)
                for piece in pieces:
                    last = getattr(pieces, "ended", False)
                    response.write(piece, last=last)
                    if last:
                        break
                response.close()
            finally:
                if hasattr(body, "close"):
                    body.close()
        except OSError:
            raise
        except (Exception, SystemExit):
            if not response.head_is_sent:
                raise
            # Something else on the connection would look like a part of the response.
            log.exception("a response was cut off")
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
                self.sock.close()
            return False
        return self.keeps and not response.closes


class Input:
    """A request's body of a known length, as the application reads it (`wsgi.input`).

    `has_come`: all of it came with the head.
    """

    __slots__ = ("_connection", "_left", "has_come")

    def __init__(self, connection: Connection, length: int, *, has_come: bool) -> None:
        self._connection = connection
        self._left = length
        self.has_come = has_come

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer at the end of the body or of the connection."""
        size = min(size, self._left)
        data = self._connection.take_ahead(size)
        self._left -= len(data)
        if len(data) == size:
            return data
        pieces, missing = [data], size - len(data)
        while missing and (more := self._connection.sock.recv(min(missing, PIECE))):
            pieces.append(more)
            missing -= len(more)
            self._left -= len(more)
        return b"".join(pieces)

    def discard(self) -> bool:
        """Read what is left; whether that could be done."""
        while self._left and self.read(PIECE):
            pass
        return not self._left

    def force_close(self) -> None:
        """Close the connection after this request."""
        self._connection.force_close()

    def take_buffered(self) -> bytes:
        """What follows a handshake and has been read with it."""
        return self._connection.take_ahead()


@lru_cache(maxsize=64)
def says_close(options: str) -> bool:
    """Whether a Connection header has the option `close` (RFC 9110 section 7.6.1).

    Clients send few different ones: they are split once.
    """
    return "close" in options.lower().replace(",", " ").split()


def linger(sock: Any) -> None:
    """Shut down the sending side, then discard what the client still sends for a moment.

    Closing with unread bytes would reset the connection, and the client could lose the response
    (RFC 9112 section 9.6).
    """
    try:
        sock.shutdown(socket.SHUT_WR)
        with gevent.Timeout(LINGER_SECONDS, False):
            while sock.recv(PIECE):
                yield_if_due()  # else a client that never stops keeps all others from running
    except OSError:
        pass


def reset(sock: Any) -> None:
    """Close the connection with a reset.

    To an HTTP/1.0 client an orderly close is the end of the response (RFC 9112 section 6.3 (8)).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
