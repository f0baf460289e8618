"""A kept connection that the provider closes: what is sent again, and what never is."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from harness.poll import PATIENCE
from wrapper import errors
from wrapper.config import Provider, Secret
from wrapper.formats.http1 import Connection
from wrapper.upstream import Upstream, UpstreamResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY = b'{"model": "m"}'
METHODS = {"POST": BODY, "PUT": BODY, "DELETE": None, "GET": None, "HEAD": None}

Behaviour = Callable[[socket.socket], None]


class Peer:
    """A provider that responds to the first `responses` requests of its first connection and then
    does `then`, and to one of each other connection.

    `requests` counts the whole requests that it has read, `connections` what it has accepted.
    """

    def __init__(self, then: Behaviour, responses: int = 1) -> None:
        self.then = then
        self.responses = responses
        self.requests = 0
        self.connections = 0
        self.closes = threading.Event()  # now
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._held.append(sock)
            threading.Thread(target=self._talk, args=(sock,), daemon=True).start()

    def _talk(self, sock: socket.socket) -> None:
        is_first = self.connections == 1
        for _ in range(self.responses if is_first else 1):
            if not self.read(sock):
                return
            sock.sendall(OK if is_first else OK.replace(b"ok", b"OK"))
        if is_first:
            self.then(sock)

    def read(self, sock: socket.socket) -> bool:
        """Read one request."""
        data = b""
        while b"\r\n\r\n" not in data or not (data.endswith((b"\r\n\r\n", BODY))):
            more = sock.recv(65536)
            if not more:
                return False
            data += more
        self.requests += 1
        return True

    def close(self) -> None:
        self._listener.close()
        for sock in self._held:
            sock.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Peer]]:
    made: list[Peer] = []

    def start(then: Behaviour, responses: int = 1) -> Peer:
        made.append(Peer(then, responses))
        return made[-1]

    yield start
    for provider in made:
        provider.close()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def upstream_of(provider: Peer, **settings: float) -> Upstream:
    return Upstream(Provider("p", f"{provider.url}/v1", Secret("any"), **settings))  # type: ignore[arg-type]


def call(upstream: Upstream, method: str = "POST") -> UpstreamResponse:
    response = upstream.send(method, "/v1/x", {}, METHODS[method])
    while response.read1():
        pass
    return response


def close_between(monkeypatch: pytest.MonkeyPatch, provider: Peer, arrived: str) -> None:
    """The provider closes after the connection was found quiet, and before the request is sent.

    `arrived`: the state of our socket that is waited for, as tcp(7) counts them.
    """
    quiet = Connection.is_quiet

    def is_quiet(self: Connection) -> bool:
        found = quiet(self)
        provider.closes.set()
        end = time.monotonic() + PATIENCE
        wanted = {"closed": 7, "close-wait": 8}[arrived]
        while self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != wanted:
            assert time.monotonic() < end
            time.sleep(0.001)
        return found

    monkeypatch.setattr(Connection, "is_quiet", is_quiet)


needs_tcp_info = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="Linux only")


@needs_tcp_info
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("how", "arrived"), [("close", "close-wait"), ("reset", "closed")])
@pytest.mark.parametrize("before", [1, 4])
def test_a_request_that_meets_the_providers_close_on_its_way_is_sent_again(
    serve: Callable[..., Peer],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    how: str,
    arrived: str,
    before: int,
) -> None:
    def then(sock: socket.socket) -> None:
        provider.closes.wait(PATIENCE)
        (reset if how == "reset" else socket.socket.close)(sock)

    provider = serve(then, before)
    upstream = upstream_of(provider)
    for _ in range(before):
        call(upstream)
    close_between(monkeypatch, provider, arrived)
    assert call(upstream, method).status == 200
    assert (provider.requests, provider.connections) == (before + 1, 2)
    upstream.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("before", [1, 4])
def test_a_request_that_was_read_is_sent_again_only_where_it_reads(
    serve: Callable[..., Peer], method: str, how: str, before: int
) -> None:
    def then(sock: socket.socket) -> None:
        provider.read(sock)
        (reset if how == "reset" else socket.socket.close)(sock)

    provider = serve(then, before)
    upstream = upstream_of(provider)
    for _ in range(before):
        call(upstream)
    if method in ("GET", "HEAD"):
        assert call(upstream, method).status == 200
        assert (provider.requests, provider.connections) == (before + 2, 2)
    else:
        with pytest.raises(errors.UpstreamProtocolError) as caught:
            call(upstream, method)
        assert caught.value.sent
        assert (provider.requests, provider.connections) == (before + 1, 1)
    upstream.close()


@pytest.mark.parametrize("method", METHODS)
def test_on_a_new_connection_nothing_is_sent_again(method: str) -> None:
    accepted = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drop() -> None:
            nonlocal accepted
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                accepted += 1
                sock.recv(65536)
                sock.close()

        serving = threading.Thread(target=drop, daemon=True)
        serving.start()
        port = listener.getsockname()[1]
        upstream = Upstream(Provider("p", f"http://127.0.0.1:{port}/v1"))
        with pytest.raises(errors.UpstreamProtocolError):
            call(upstream, method)
    assert accepted == 1


def test_part_of_an_answer_is_an_answer(serve: Callable[[Behaviour], Peer]) -> None:
    def then(sock: socket.socket) -> None:
        provider.read(sock)
        sock.sendall(b"HTTP/1.1 2")
        sock.close()

    provider = serve(then)
    upstream = upstream_of(provider)
    call(upstream)
    with pytest.raises(errors.UpstreamProtocolError):
        call(upstream, "GET")
    assert provider.connections == 1


def test_a_body_that_streams_through_is_not_sent_again(
    serve: Callable[[Behaviour], Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def then(sock: socket.socket) -> None:
        provider.closes.wait(PATIENCE)
        sock.close()

    provider = serve(then)
    upstream = upstream_of(provider)
    call(upstream)
    close_between(monkeypatch, provider, "close-wait")
    with pytest.raises(errors.UpstreamProtocolError):
        upstream.send("POST", "/v1/x", {}, iter([BODY]))
    assert provider.connections == 1


def test_an_idle_connection_serves_again_within_its_time_only(
    serve: Callable[[Behaviour], Peer],
) -> None:
    def then(sock: socket.socket) -> None:
        while provider.read(sock):
            sock.sendall(OK)

    provider = serve(then)
    upstream = upstream_of(provider, keepalive=600)
    for _ in range(3):
        call(upstream)
    assert provider.connections == 1
    brief = upstream_of(provider, keepalive=0.001)
    for _ in range(2):
        call(brief)
        time.sleep(0.002)
    assert provider.connections == 3
    upstream.close()
    brief.close()
