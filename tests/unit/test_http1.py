"""The strict client: any split of the bytes reads the same, and what is ambiguous is refused."""

from __future__ import annotations

import socket
import time
from typing import Any, cast

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wrapper import errors
from wrapper.config import Provider
from wrapper.formats.http1 import (
    Body,
    ChunkedBody,
    Connection,
    Disconnected,
    Head,
    ProtocolError,
    parse_head,
)
from wrapper.upstream import Upstream, adapter


class Script:
    """A socket that gives these pieces, then its end."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]
        self.sent = b""

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def send(self, data: bytes) -> int:
        taken = data[:3]
        self.sent += taken
        return len(taken)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def settimeout(self, seconds: float | None) -> None:
        """It never waits."""

    def close(self) -> None:
        """Nothing to give back."""


def connection(*pieces: bytes) -> Connection:
    return Connection(cast(socket.socket, Script(list(pieces))))


def read(peer: Connection, method: str = "POST") -> tuple[Head, bytes]:
    """The head and the whole body."""
    head = peer.read_head(method, 1.0)
    body, pieces = head.reader(peer, head), []
    while piece := body.read1():
        pieces.append(piece)
    assert body.complete
    assert body.read1() == b""
    return head, b"".join(pieces)


def read_on(peer: Connection) -> Body:
    """The body after the head."""
    head = peer.read_head("GET", 1.0)
    return head.reader(peer, head)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


HELLO = b"hello, \r\n0\r\n\r\nworld"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX: a\r\n\r\n%b" % (len(HELLO), HELLO)
CHUNKS = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: a\r\n\r\n"
    b'7\r\nhello, \r\n00c ; a="b;c"\r\n\r\n0\r\n\r\nworld\r\n0\r\nTrailer: x\r\nOther:\r\n\r\n'
)
CLOSED = b"HTTP/1.0 200 OK\r\nX: a\r\n\r\n" + HELLO
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"

places = st.lists(st.integers(0, 500), max_size=12)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS, CLOSED, INTERIM + LENGTH, INTERIM + CHUNKS])
@given(at=places)
@example(at=list(range(500)))
def test_an_answer_reads_the_same_however_its_bytes_are_cut(answer: bytes, at: list[int]) -> None:
    head, body = read(connection(*cut(answer, at)))
    assert (head.status, head.reason, ("X", "a") in head.headers) == (200, "OK", True)
    assert body == HELLO


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS])
@given(at=places)
def test_two_answers_on_one_connection_come_apart_however_they_are_cut(
    answer: bytes, at: list[int]
) -> None:
    peer = connection(*cut(answer + answer.replace(b"200 OK", b"404 No"), at))
    assert read(peer)[0].status == 200
    assert read(peer)[0].status == 404


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS])
@given(end=st.integers(0, 400), at=places)
def test_an_answer_that_ends_early_never_looks_whole(
    answer: bytes, end: int, at: list[int]
) -> None:
    shorter = answer[: end % len(answer)]
    with pytest.raises(Disconnected):
        read(connection(*cut(shorter, at)))


@given(chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=20), at=places)
def test_any_chunks_give_their_bytes(chunks: list[bytes], at: list[int]) -> None:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
    peer = connection(*cut(answer, at))
    assert read(peer)[1] == b"".join(chunks)
    assert peer.reusable


def test_what_has_arrived_together_comes_out_together() -> None:
    """Events that wait leave in one piece, and none waits for the next."""
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    peer = connection(start + b"1\r\na\r\n1\r\nb\r\n1\r", b"\nc\r\n", b"1\r\nd\r\n0\r\n\r\n")
    body = read_on(peer)
    assert [body.read1() for _ in range(4)] == [b"ab", b"c", b"d", b""]
    assert body.complete


def test_the_end_is_known_with_the_last_bytes_where_it_came_with_them() -> None:
    for answer in (LENGTH, CHUNKS):
        peer = connection(answer)
        body = read_on(peer)
        assert body.read1() == HELLO
        assert body.complete


# --- strictness -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 600 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1 2x0 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/11 200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\nK",
        b"HTTP/1.1 200 O\rK",
        b"ICY 200 OK",
        b"220 smtp.example",
        b"\x16\x03\x01",
    ],
)
def test_a_status_line_that_is_none_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(line + b"\r\nContent-Length: 0", "GET")


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, "OK"),
        (b"HTTP/1.1 200", 200, ""),
        (b"HTTP/1.1 200 ", 200, ""),
        (b"HTTP/1.0 404 Not Found", 404, "Not Found"),
        (b"HTTP/1.1 599 caf\xe9 \t!", 599, "caf\xe9 \t!"),
    ],
)
def test_a_status_line_is_read(line: bytes, status: int, reason: str) -> None:
    head = parse_head(line, "GET")
    assert (head.status, head.reason) == (status, reason)


@pytest.mark.parametrize(
    "lines",
    [
        [b"no colon"],
        [b""],
        [b": value"],
        [b"Name : value"],
        [b" Name: value"],
        [b"Na me: value"],
        [b"Na\0me: value"],
        [b"N\xe9: value"],
        [b"Name: a\0b"],
        [b"Name: a\nb"],
        [b"Name: a\rb"],
        [b"Name: a\x7f"],
        [b"Name: a", b" folded"],
        [b"Name: a", b"\tfolded"],
        [b"Content-Length: -5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 5x"],
        [b"Content-Length: 0x5"],
        [b"Content-Length: 5 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: 5.0"],
        [b"Content-Length: \xb2"],
        [b"Content-Length: 1" + b"0" * 15],
        [b"Content-Length:"],
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5", b"content-length: 6"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked, gzip"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding:"],
    ],
    ids=lambda lines: repr(b"|".join(lines)),
)
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_headers_that_could_be_read_in_two_ways_are_refused(
    lines: list[bytes], method: str
) -> None:
    with pytest.raises(ProtocolError):
        parse_head(b"\r\n".join([b"HTTP/1.1 200 OK", *lines]), method)


def test_chunks_are_not_believed_of_an_old_server() -> None:
    with pytest.raises(ProtocolError):
        parse_head(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked", "GET")


def test_values_come_without_the_space_around_them_and_else_as_they_are() -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\nA:b\r\nC: \t d  e\xe9 \t\r\nF:\r\na: again", "GET")
    assert head.headers == [("A", "b"), ("C", "d  e\xe9"), ("F", ""), ("a", "again")]
    assert head.first == {}


def test_of_the_headers_that_are_read_the_first_one_counts() -> None:
    lines = [b"X-Request-Id: a", b"Connection: x", b"x-request-id: b", b"connection: close"]
    head = parse_head(b"\r\n".join([b"HTTP/1.1 200 OK", *lines]), "GET")
    assert head.first == {"x-request-id": "a", "connection": "x,close"}
    assert not head.keep_alive


@pytest.mark.parametrize(
    ("method", "text", "length", "chunked"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0012", 12, False),
        ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", None, True),
        ("GET", b"HTTP/1.1 200 OK", None, False),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 12", 0, False),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", 0, False),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 12", 0, False),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12", 0, False),
        ("GET", b"HTTP/1.1 103 Early Hints", 0, False),
    ],
)
def test_the_bodys_length_follows_the_standards_order(
    method: str, text: bytes, length: int | None, chunked: bool
) -> None:
    head = parse_head(text, method)
    assert (head.length, head.reader is ChunkedBody) == (length, chunked)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"HTTP/1.1 200 OK", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nConnection: X, CLOSE", False),
        (b"HTTP/1.1 200 OK\r\nConnection: X\r\nConnection: close", False),
        (b"HTTP/1.0 200 OK", False),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive, close", False),
    ],
)
def test_a_connection_is_kept_where_both_sides_say_so(text: bytes, kept: bool) -> None:
    assert parse_head(text, "GET").keep_alive is kept
    peer = connection(text + b"\r\nContent-Length: 0\r\n\r\n")
    read(peer)
    assert peer.reusable is kept


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\na\r\n",
        b"1_0\r\n",
        b"1 1\r\n",
        b"1\n",
        b"1;\0\r\n",
        b"f" * 16 + b"\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n\n",
        b"1\r\na\r\r",
        b"1\r\na0\r\n\r\n",
        b"1;" + b"a" * 2000,
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n folded: a\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n",
    ],
    ids=lambda body: repr(body[:24]),
)
@given(at=places)
def test_malformed_chunks_are_refused_however_they_are_cut(body: bytes, at: list[int]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    peer = connection(*cut(answer + b"x" * 20, at))
    with pytest.raises(ProtocolError):
        read(peer)
    assert not peer.reusable


def test_an_upgrade_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(ProtocolError):
        connection(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n").read_head("GET", 1)


def test_interim_answers_without_end_are_refused() -> None:
    with pytest.raises(ProtocolError):
        connection(*[b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 100).read_head("GET", 1)


@pytest.mark.parametrize("piece", [b"a" * 100, b"a" * 60_000])
def test_a_head_without_end_is_refused(piece: bytes) -> None:
    start = b"HTTP/1.1 200 OK\r\nX: "
    with pytest.raises(ProtocolError):
        connection(start, *[piece] * (200_000 // len(piece))).read_head("GET", 1)


@pytest.mark.parametrize("answer", [LENGTH, CHUNKS])
def test_what_follows_unasked_ends_the_connections_use(answer: bytes) -> None:
    peer = connection(answer + b"more")
    assert read(peer)[1] == HELLO
    assert not peer.reusable


@given(data=st.binary(max_size=300))
@example(data=b"HTTP/1.1 200 OK\r\n\r\n")
def test_any_bytes_are_an_answer_or_a_protocol_error(data: bytes) -> None:
    try:
        head, _ = read(connection(data))
    except ProtocolError:
        return
    assert 200 <= head.status <= 599


# --- sending ----------------------------------------------------------------------------------


def test_a_request_goes_out_as_it_is() -> None:
    peer = connection()
    script: Any = peer.sock
    peer.send(b"HEAD", b"body", 1)
    peer.send(b"HEAD", None, 1)
    peer.send(b"HEAD", iter([b"a", b"b"]), 1)
    assert script.sent == b"HEADbodyHEADHEADab"


def test_a_server_that_answers_early_and_stops_reading_is_heard() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        theirs.shutdown(socket.SHUT_RD)
        peer = Connection(ours)
        peer.send(b"POST / HTTP/1.1\r\n\r\n", b"x" * 5_000_000, 5)
        assert peer.read_head("POST", 5).status == 413


def test_an_idle_connection_is_quiet_until_something_comes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Connection(ours)
        assert peer.is_quiet()
        theirs.sendall(b"HTTP/1.1 408 Timeout\r\n\r\n")
        assert not peer.is_quiet()
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert not Connection(ours).is_quiet()


def test_a_name_that_nobody_resolves_is_waited_for_no_longer_than_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter, "open_connection", lambda *_: gevent.sleep(600))
    upstream = Upstream(Provider("far", "http://far.invalid/v1", connect_timeout=0.1))
    began = time.monotonic()
    with pytest.raises(errors.UpstreamTimeout, match="connect_timeout") as caught:
        upstream.send("GET", "/v1/models", {}, None, None)
    assert time.monotonic() - began < 60
    assert not caught.value.sent
