"""New connections to a provider: its addresses, TLS, and the certificates that are trusted.

Invariant: one dead address of a name delays a request, it does not fail it. All addresses share one
time budget; where one has not responded after 250 ms the next is tried beside it, and the first
connection that stands wins (RFC 8305, "Happy Eyeballs").

A thousand connections at the same time look up the name once: the system's resolver is asked in
threads, which a busy worker lets run for a few milliseconds now and then.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from requests.adapters import DEFAULT_CA_BUNDLE_PATH

from wrapper.cancellation import wait_for_writable, wait_to_read
from wrapper.config import Provider
from wrapper.formats.http1 import Connection

NEXT_ADDRESS: Final = 0.25  # seconds until the next address is tried (RFC 8305 section 8)
NAME_SECONDS: Final = 1.0  # how long what the resolver said is used again

Address = tuple[int, int, int, Any]  # family, type, protocol, address


class Name:
    """The name of a provider's host, looked up once for all connections that wait for it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._port = port
        self._lock = threading.Lock()
        self._found: list[Address] = []
        self._error: OSError | UnicodeError | None = None
        self._at = -math.inf
        self._is_address = False
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError, UnicodeError):
                socket.inet_pton(family, host)
                self._is_address = True
                self._found = [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, (host, port))]

    def addresses(self) -> list[Address]:
        """Raises OSError, or UnicodeError for a name that IDNA cannot spell."""
        asked = time.monotonic()
        if self._is_address or (self._found and asked < self._at + NAME_SECONDS):
            return self._found
        with self._lock:
            if self._at < asked:  # nobody has looked it up while this one waited
                self._look_up()
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._found

    def _look_up(self) -> None:
        try:
            self._found, self._error = addresses(self.host, self._port), None
        except (OSError, UnicodeError) as error:
            self._found, self._error = [], error
        self._at = time.monotonic()


def open_connection(name: Name, tls: ssl.SSLContext | None, timeout: float) -> Connection:
    """Connect, at most `timeout` seconds for all addresses, and again for the TLS handshake.

    Raises OSError (ssl.SSLError and TimeoutError among its kinds), or UnicodeError.
    """
    sock = connect(name.addresses(), timeout)
    try:
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # An end without TLS's close_notify may be an attacker's: a body that lasts until
            # the close is then incomplete (RFC 9112 section 9.8).
            sock = tls.wrap_socket(sock, server_hostname=name.host, suppress_ragged_eofs=False)
    except BaseException:
        sock.close()
        raise
    return Connection(sock, wait_to_read if hasattr(sock, "_read_event") else None)


def addresses(host: str, port: int) -> list[Address]:
    """The addresses of a name, best first, the families in turns (RFC 8305 section 4)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listed = [(family, kind, protocol, address) for family, kind, protocol, _, address in found]
    first = [each for each in listed if each[0] == listed[0][0]]
    other = [each for each in listed if each[0] != listed[0][0]]
    pairs = zip_longest(first, other)
    return [each for pair in pairs for each in pair if each is not None]


def connect(candidates: Iterable[Address], timeout: float) -> socket.socket:
    """The first connection that stands. Raises the last address's OSError, or TimeoutError."""
    end = time.monotonic() + timeout
    attempts = _Attempts()
    error: OSError = OSError("the name has no address")
    waiting = list(candidates)
    try:
        while waiting or attempts.pending:
            if waiting:
                attempts.start(waiting.pop(0))
            left = end - time.monotonic()
            won = attempts.wait(min(left, NEXT_ADDRESS) if waiting else left)
            if won is not None:
                return won
            error = attempts.error or error
            if time.monotonic() >= end:
                raise TimeoutError(f"no connection within {timeout:g} s")
    finally:
        attempts.close()
    raise error


class _Attempts:
    """Sockets that are being connected."""

    def __init__(self) -> None:
        self.pending: dict[int, socket.socket] = {}
        self.error: OSError | None = None

    def start(self, candidate: Address) -> None:
        family, kind, protocol, address = candidate
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not have, or no descriptor
            self.error = error
            return
        self.pending[sock.fileno()] = sock
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:  # no route, for example
            self._failed(sock, error)

    def wait(self, seconds: float) -> socket.socket | None:
        """A connection that stands; None when one has failed, or `seconds` have passed."""
        if not self.pending:
            return None
        ready = wait_for_writable(list(self.pending), seconds)
        # In a worker that is busy for longer than that, the time is over before its event loop has
        # looked at the sockets.
        found = [*self.pending.values()] if ready is None else [self.pending[ready]]
        for sock in found if ready is not None else filter(_is_connected, found):
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                self._forget(sock)
                return sock
            self._failed(sock, OSError(code, os.strerror(code)))
        return None

    def close(self) -> None:
        """Give up those that are still pending."""
        for sock in list(self.pending.values()):
            self._forget(sock)
            sock.close()

    def _failed(self, sock: socket.socket, error: OSError) -> None:
        self.error = error
        self._forget(sock)
        sock.close()

    def _forget(self, sock: socket.socket) -> None:
        del self.pending[sock.fileno()]


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def tls_context(provider: Provider) -> ssl.SSLContext:
    """One context for all connections: loading the certificates takes tens of milliseconds.

    Trusted are the provider's `ca_file`, else the system's certificates where OpenSSL looks for
    them (SSL_CERT_FILE and SSL_CERT_DIR say where else), and certifi's only where there are none.
    """
    if provider.ca_pem is not None:
        context = ssl.create_default_context(cadata=provider.ca_pem)
    elif has_system_certificates():
        context = ssl.create_default_context()
    else:
        context = ssl.create_default_context(cafile=DEFAULT_CA_BUNDLE_PATH)
    context.set_alpn_protocols(["http/1.1"])
    return context


def has_system_certificates() -> bool:
    """Whether OpenSSL finds certificates of the system, or of the variables in their place."""
    paths = ssl.get_default_verify_paths()
    file, directory = Path(paths.cafile or ""), Path(paths.capath or "")
    if paths.cafile and file.stat().st_size > 0:
        return True
    return bool(paths.capath) and any(directory.iterdir())
