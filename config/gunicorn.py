"""gunicorn's configuration: gevent workers, strict parsing, an orderly start and end.

Started as `gunicorn -c config/gunicorn.py wsgi:app`; the environment and `.env` say where to
listen and with how many workers. A configuration that cannot be served ends the start with
every problem listed and exit code 1. gunicorn reads this file again on SIGHUP.
"""

from gevent import monkey

monkey.patch_all()

# The patch above must come before anything that imports ssl, socket or threading.
import os  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import socket as sockets  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, ClassVar  # noqa: E402

import gevent  # noqa: E402
from gunicorn import util  # noqa: E402
from gunicorn.http.errors import InvalidRequestLine, ObsoleteFolding  # noqa: E402
from gunicorn.http.message import Request  # noqa: E402
from gunicorn.http.parser import RequestParser  # noqa: E402
from gunicorn.http.unreader import SocketUnreader  # noqa: E402
from gunicorn.workers.ggevent import GeventWorker  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wrapper.server import lifecycle as launch  # noqa: E402

ODD_TARGET = re.compile(rb"[A-Z]+ /[^ \r\n]*[\x00-\x1f\x7f-\xff][^ \r\n]* HTTP/1\.[01]\b")
IN_A_ROW = 8  # requests that came together are served before the other connections' turn
LINGER_SECONDS = 2
QUICK_SECONDS = 1  # for what is open to be ended, where a stop is not to wait
END_SECONDS = 5  # after this the system ends a worker that should have gone at once
DRAIN_AHEAD = 5  # seconds before the graceful timeout: streams still open are ended in words

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))  # until gunicorn has its own

_where = launch.prepare()

bind = _where.bind
workers = _where.workers
graceful_timeout = _where.graceful_timeout

# One load of the code for all workers: they start at once and share its memory.
preload_app = True
worker_connections = launch.CONNECTIONS  # above max_in_flight: health checks are still answered
keepalive = 15  # also the deadline for a request's head; SDKs reuse idle connections for 5 s
timeout = 60
max_requests = 0
backlog = 2048
control_socket_disable = True
proc_name = "wrapper"
worker_tmp_dir = launch.memory_directory()  # the workers' signs of life wait for no disk

# Parsing: the C parser where it is installed; nothing of a peer's claims about itself is
# believed, and a header that could be read in two ways is refused.
http_parser = "auto"
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
header_map = "refuse"
limit_request_line = 8190
limit_request_field_size = 16380
limit_request_fields = 100

accesslog = None  # the gateway writes its own line for each request
errorlog = "-"
loglevel = _where.log_level


# A body is taken in pieces of 64 KiB (`call.PIECE`). Received by the megabyte, what is left of
# one would be copied again for each piece of it, and others would wait meanwhile.
SocketUnreader.max_body_chunk = 65536


class InvalidTarget(InvalidRequestLine):  # type: ignore[misc]  # gunicorn has no types
    """The path has characters in it that no path has (RFC 3986 section 2)."""


def told_apart(error: InvalidRequestLine, head: bytes) -> InvalidRequestLine:
    """`error`, or what it is more exactly: all but the path is as it should be."""
    return InvalidTarget("") if ODD_TARGET.match(head) else error


class StrictRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request whose head is held against the grammar again.

    The C parser takes a bare line feed for a line's end, folded lines, and several spaces in
    the request line; another server on the way here may not (RFC 9112 sections 2.2, 3 and 5.2).
    """

    def parse_request_line(self, line_bytes: bytes) -> None:
        try:
            super().parse_request_line(line_bytes)
        except InvalidRequestLine as error:
            raise told_apart(error, line_bytes) from None

    def _parse_fast(self, unreader: Any, buf: bytearray) -> bytes:
        try:
            rest: bytes = super()._parse_fast(unreader, buf)
        except InvalidRequestLine as error:
            raise told_apart(error, bytes(buf)) from None
        head = bytes(buf[: len(buf) - len(rest)])
        if head.count(b"\n") != head.count(b"\r\n"):
            raise InvalidRequestLine("bare LF as line terminator")
        if b"\r\n " in head or b"\r\n\t" in head:
            raise ObsoleteFolding("a folded line")
        if head.lstrip(b"\r\n").split(b"\r\n", 1)[0].count(b" ") != 2:
            raise InvalidRequestLine("several spaces")
        return rest


RequestParser.mesg_class = StrictRequest


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker with errors in OpenAI's shape and connections closed in peace."""

    quitting = False

    def handle_quit(self, sig: Any, frame: Any) -> None:
        """Once: Ctrl-C reaches every process of a terminal, and then comes the master's word."""
        if not self.quitting:
            self.quitting = True
            signal.setitimer(signal.ITIMER_REAL, END_SECONDS)
            super().handle_quit(sig, frame)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
        sock.settimeout(launch.patience(self.wsgi))
        try:
            return super().handle_request(listener_name, req, sock, addr)
        except TimeoutError:  # the client takes nothing any more
            if req.version < (1, 1):
                cut(sock)
            raise StopIteration() from None
        except ConnectionResetError:  # the answer broke off, or the client did
            if req.version < (1, 1):
                cut(sock)
            raise
        finally:
            sock.settimeout(None)  # what a request's body may take is not for the next one's head
            if not req.req_number % IN_A_ROW:
                gevent.sleep(1e-6)
            if req.should_close():
                linger(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what never became a request; of its bytes nothing is logged."""
        if isinstance(exc, gevent.GreenletExit | SystemExit):
            return
        answer = launch.refusal(self.wsgi, exc, addr[0] if addr else "")
        try:
            util.write_nonblock(client, answer)
            linger(client)
        except OSError:
            self.log.debug("The refusal could not be sent.")

    def timeout_ctx(self) -> "HeadTimeout":
        """Bounds the wait for a request's head."""
        return HeadTimeout(self.cfg.keepalive, False)

    def drain(self) -> None:
        """Let idle connections go at once when the worker stops, and end what is still open
        shortly before gunicorn would cut it without a word.
        """
        while self.alive:
            gevent.sleep(0.5)
        end = time.monotonic() + max(graceful_timeout - DRAIN_AHEAD, graceful_timeout / 2)
        while time.monotonic() < end:
            HeadTimeout.let_go()
            gevent.sleep(0.25)
        launch.drain(self.wsgi)


class HeadTimeout(gevent.Timeout):  # type: ignore[misc]  # gevent has no types
    """The wait for the next request on a connection, and who is waiting since when."""

    waiting: ClassVar[dict[Any, float]] = {}

    def __enter__(self) -> "HeadTimeout":
        self.waiting[gevent.getcurrent()] = time.monotonic()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        self.waiting.pop(gevent.getcurrent(), None)
        return super().__exit__(*error)

    @classmethod
    def let_go(cls) -> None:
        """End the waits that are idle: a head on its way does not take half a second."""
        for greenlet, since in list(cls.waiting.items()):
            if time.monotonic() - since > 0.5:
                greenlet.kill(block=False)


def linger(sock: Any) -> None:
    """Say that nothing more comes, then take what is still on its way for a moment.

    Closing with unread bytes would reset the connection and with it the answer (RFC 9112
    section 9.6).
    """
    try:
        sock.shutdown(sockets.SHUT_WR)
        with gevent.Timeout(LINGER_SECONDS, False):
            while sock.recv(65536):
                pass
    except OSError:
        pass


def cut(sock: Any) -> None:
    """End the connection with a reset.

    To an HTTP/1.0 client an orderly end is the end of the answer (RFC 9112 section 6.3 (8)).
    """
    sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


worker_class = Worker


def pre_request(worker: Any, req: Any) -> None:
    """Let the application ask for the connection's end through its input."""
    req.body.force_close = req.force_close


def post_worker_init(worker: Any) -> None:
    """Follow the configuration files, and watch for the end."""
    launch.start_worker(worker.wsgi)
    gevent.spawn(worker.drain)


def worker_int(worker: Any) -> None:
    """Ctrl-C or SIGQUIT: nobody waits for open streams, but each is ended in words and booked."""
    launch.drain(worker.wsgi)
    with gevent.Timeout(QUICK_SECONDS, False):
        while launch.active(worker.wsgi):
            gevent.sleep(0.02)


def worker_exit(server: Any, worker: Any) -> None:
    """The worker's own end, after its last request.

    The master calls it too, for a worker that was gone already when it was to be told to go: nobody
    calls `child_exit` for that one then.
    """
    if os.getpid() != worker.pid:
        launch.worker_gone(worker.pid)
    elif getattr(worker, "wsgi", None) is not None:
        launch.end_worker(worker.wsgi)


def child_exit(server: Any, worker: Any) -> None:
    """A worker is gone: settle its gauges and count what it owed."""
    launch.worker_gone(worker.pid)


def on_exit(server: Any) -> None:
    """The last one turns off the light."""
    launch.clean_up()
