"""The listening socket and its connections, each with one greenlet and one request at a time."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from gevent import ssl
from gevent.server import StreamServer

from wrapper.simulator.books import Books
from wrapper.simulator.control import control
from wrapper.simulator.http import BadRequest, Connection, Left, Request
from wrapper.simulator.turn import Provider, Turn

_BACKLOG = 4096
_ACCEPTED_AT_ONCE = 1000
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n"
    b"Connection: close\r\n\r\nBad request\n"
)


class Simulator:
    """The provider on its socket, with TLS where there is a certificate (a PEM file, its key in
    it). Raises OSError when it cannot listen, or cannot read the certificate.
    """

    def __init__(
        self, host: str, port: int, provider: Provider, certificate: Path | None = None
    ) -> None:
        self._provider = provider
        self._tls: Any = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._books: Books = provider.books
        listener = socket.create_server((host, port), backlog=_BACKLOG)
        listener.setblocking(False)
        self.port: int = listener.getsockname()[1]
        self._server: Any = StreamServer(listener, self._connection)
        self._server.max_accept = _ACCEPTED_AT_ONCE

    def start(self) -> None:
        """Begin to accept connections."""
        self._server.start()

    def serve_forever(self) -> None:
        """Serve until `stop`."""
        self._server.serve_forever(stop_timeout=0)

    def stop(self) -> None:
        """Stop listening and end `serve_forever`."""
        self._server.stop(timeout=0)

    def _connection(self, sock: socket.socket, _address: object) -> None:
        books = self._books
        books.connections += 1
        books.accepted += 1
        number = books.accepted
        try:
            with contextlib.suppress(OSError, Left):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                connection = Connection(sock, number)
                while self._serve(connection):
                    connection.served += 1
        finally:
            books.connections -= 1
            sock.close()

    def _serve(self, connection: Connection) -> bool:
        """Serve one request; returns whether the connection may be used again."""
        try:
            request = connection.head()
        except BadRequest:
            connection.sock.sendall(_BAD_REQUEST)
            return False
        if request is None:
            return False
        if request.path.startswith("/_sim/"):
            return self._control(connection, request)
        return Turn(self._provider, connection, request).run()

    def _control(self, connection: Connection, request: Request) -> bool:
        for _ in connection.body(request):
            pass
        status, body = control(self._books, request)
        connection.sock.sendall(
            b"HTTP/1.1 %d Simulated\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )
        return True
