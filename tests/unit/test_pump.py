"""Events that the event loop moves to the client, without the request's greenlet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import gevent
import gevent.socket
import pytest

from harness import effort
from wrapper import cancellation
from wrapper.cancellation import CancelScope, Interrupted, Scopes, wait_to_read
from wrapper.formats.http1 import ChunkedBody, Connection, Disconnected, parse_head, size_of_chunks
from wrapper.metering.stream import StreamExtractor
from wrapper.proxy.pump import MAX_VAIN, Pump
from wrapper.proxy.response import StreamingBody
from wrapper.record import RequestRecord
from wrapper.server.response import Response

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"
MODEL = b'data: {"model":"m","choices":[{"delta":{"content":"one"}}]}\n\n'
EVENT = b'data: {"choices":[{"delta":{"content":"two"}}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Taker:
    """A client that takes everything, or only so many bytes at once."""

    most: int = 1 << 30
    taken: bytes = b""
    waits: int = 0

    def send_now(self, data: bytes) -> int:
        self.taken += data[: self.most]
        return min(len(data), self.most)

    def send_rest(self, rest: bytes) -> None:
        self.waits += 1
        self.taken += rest


@dataclass
class Stream:
    """A stream whose content has begun, between two ends of a socket."""

    client: Any = field(default_factory=Taker)

    def __post_init__(self) -> None:
        ours, self.provider = gevent.socket.socketpair()
        connection = Connection(ours, wait_to_read)
        self.body = cast(ChunkedBody, ChunkedBody(connection, parse_head(HEAD, "POST")))
        self.extractor = StreamExtractor()
        self.extractor.feed(MODEL)
        self.extractor.marker = b'"content":"'
        self.record = RequestRecord("POST")
        self.scope = CancelScope(Scopes(), None)
        context: Any = SimpleNamespace(record=self.record, scope=self.scope)
        self.pump = Pump(context, self.body, self.extractor, self.client)

    def close(self) -> None:
        self.provider.close()
        self.body.connection.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


def over(sock: Any) -> Response:
    """The server's response over this socket."""
    connection: Any = SimpleNamespace(sock=sock)
    return Response(connection, closes=False)


def until(find: Callable[[], object], expected: object) -> None:
    deadline = time.monotonic() + 30
    while find() != expected:
        assert time.monotonic() < deadline
        gevent.sleep(0.001)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["lf", "crlf"])
def test_events_go_down_as_they_came_and_others_are_left(stream: Stream, end: bytes) -> None:
    event = chunk(EVENT.replace(b"\n\n", end))
    moving = gevent.spawn(stream.pump.move)
    for count in (1, 3, 1):
        expected = stream.client.taken + event * count
        stream.provider.sendall(event * count)
        until(lambda: stream.client.taken, expected)
        assert not moving.ready()
    stream.provider.sendall(chunk(USAGE))
    moving.get(timeout=30)
    assert stream.client.taken == event * 5
    assert stream.record.bytes_out == 5 * len(EVENT.replace(b"\n\n", end))
    assert stream.body.read1() == USAGE
    # Those of one piece count as one: a lower bound, and the last one may have no content.
    assert stream.extractor.extracted().content == 2


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (chunk(USAGE), USAGE),
        (chunk(EVENT) + chunk(USAGE), EVENT + USAGE),
        (chunk(b'data: {"error":{}}\n\n'), b'data: {"error":{}}\n\n'),
        (chunk(EVENT)[:-2], EVENT),
        (chunk(EVENT)[:-9], EVENT[:-7]),
        (chunk(EVENT[:-1]), EVENT[:-1]),
        (chunk(b"\n"), b"\n"),
        (chunk(b"\r\n"), b"\r\n"),
        (chunk(b"x\r\n"), b"x\r\n"),
        (chunk(b'data: {"us') + chunk(b'age":{}}\n\n'), b'data: {"usage":{}}\n\n'),
        (chunk(EVENT).replace(b"\r\n", b";x=1\r\n", 1), EVENT),
        (b"0" + chunk(EVENT), EVENT),
        (chunk(EVENT) + b"0\r\n\r\n", EVENT),
        (chunk(EVENT) + b"0\r\nx: 1\r\n\r\n", EVENT),
        (b"0\r\n\r\n", b""),
    ],
)
def test_what_has_to_be_looked_at_is_left_as_if_it_had_not_been_read(
    stream: Stream, sent: bytes, left: bytes
) -> None:
    stream.provider.sendall(sent)
    stream.pump.move()
    assert stream.client.taken == b""
    assert stream.record.bytes_out == 0
    assert stream.body.read1() == left


@pytest.mark.parametrize("line", [b"%x\r\n", b"%X\r\n"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["lf", "crlf"])
def test_the_size_of_events_is_that_of_their_chunks(line: bytes, end: bytes) -> None:
    """The sizes are those around which a size-line becomes longer."""
    for size in (4, 5, 14, 15, 16, 17, 0xFE, 0xFF, 0x100, 0xFFF, 0x1000, 0xABCD):
        event = b"x" * (size - len(end)) + end
        whole = line % size + event + b"\r\n"
        assert size_of_chunks(whole) == size
        assert size_of_chunks(whole * 2) == 2 * size
        for other in (size - 1, size + 1):
            assert size_of_chunks(line % other + event + b"\r\n") == 0
        assert size_of_chunks(line % size + event[:-1] + b"x\r\n") == 0
        assert size_of_chunks(whole[:-1]) == size_of_chunks(whole[1:]) == 0
    assert size_of_chunks(b"") == 0


def test_a_provider_that_closes_breaks_the_response_off(stream: Stream) -> None:
    stream.provider.sendall(chunk(EVENT))
    moving = gevent.spawn(stream.pump.move)
    until(lambda: stream.client.taken, chunk(EVENT))
    stream.provider.close()
    moving.get(timeout=30)
    with pytest.raises(Disconnected):
        stream.body.read1()


def test_an_event_that_has_begun_is_not_taken_for_a_whole_one(stream: Stream) -> None:
    stream.extractor.feed(b'data: {"usage":')
    stream.provider.sendall(chunk(b'{"prompt_tokens":3,"completion_tokens":2}}\n\n'))
    stream.pump.move()
    assert stream.client.taken == b""
    stream.extractor.feed(stream.body.read1())
    usage = stream.extractor.extracted().usage
    assert usage is not None
    assert usage.prompt == 3


def test_a_client_that_does_not_take_everything_is_waited_for_in_the_greenlet() -> None:
    stream = Stream(Taker(most=10))
    moving = gevent.spawn(stream.pump.move)
    for count in range(1, 4):
        stream.provider.sendall(chunk(EVENT))
        until(lambda: stream.client.waits, count)
        assert stream.client.taken == chunk(EVENT) * count
    stream.provider.sendall(b"0\r\n\r\n")
    moving.get(timeout=30)
    assert stream.body.read1() == b""
    stream.close()


def test_a_client_that_is_slow_gets_every_byte() -> None:
    ours, theirs = gevent.socket.socketpair()
    ours.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 4096)
    stream = Stream(over(ours))
    moving = gevent.spawn(stream.pump.move)
    sent = chunk(EVENT * 900)  # more than the system keeps for the client, less than one read
    for _ in range(3):
        stream.provider.sendall(sent)
        got = b""
        with gevent.Timeout(60):
            while len(got) < len(sent):
                got += theirs.recv(1000)
        assert got == sent
    stream.provider.sendall(chunk(USAGE))
    moving.get(timeout=30)
    assert stream.body.read1() == USAGE
    stream.close()
    ours.close()
    theirs.close()


def test_a_client_that_has_gone_ends_the_moving_with_its_error() -> None:
    ours, theirs = gevent.socket.socketpair()
    stream = Stream(over(ours))
    theirs.close()
    stream.provider.sendall(chunk(EVENT))
    with pytest.raises(BrokenPipeError):
        stream.pump.move()
    stream.close()
    ours.close()


@pytest.mark.parametrize("reason", [cancellation.TIMEOUT, cancellation.DRAINED])
def test_an_interruption_ends_the_moving_and_nothing_is_read_after_it(
    stream: Stream, reason: str
) -> None:
    moving = gevent.spawn(stream.pump.move)
    stream.provider.sendall(chunk(EVENT))
    until(lambda: stream.client.taken, chunk(EVENT))
    gevent.get_hub().loop.run_callback(stream.scope.interrupt, reason)
    with pytest.raises(Interrupted, match=reason):
        moving.get(timeout=30)
    stream.provider.sendall(chunk(USAGE))
    gevent.sleep(0.01)
    assert stream.client.taken == chunk(EVENT)
    assert stream.body.read1() == USAGE


def test_each_event_begins_a_wait_of_its_own(stream: Stream) -> None:
    """The idle timeout is for the time between two events."""
    moving = gevent.spawn(stream.pump.move)
    for count in range(1, 4):
        before = stream.scope._waits
        stream.provider.sendall(chunk(EVENT))
        until(lambda: stream.client.taken, chunk(EVENT) * count)
        assert stream.scope._waits > before
    moving.kill()


def test_nothing_is_moved_for_a_client_that_has_left(stream: Stream) -> None:
    stream.scope.client_left = True
    stream.pump.move()  # does not wait


def test_a_stream_of_which_nothing_can_be_moved_is_left_alone(stream: Stream) -> None:
    for _ in range(MAX_VAIN + 1):
        stream.provider.sendall(chunk(USAGE))
        stream.pump.move()
        assert stream.body.read1() == USAGE
    stream.pump.move()  # does not wait


def test_nothing_is_moved_before_the_responses_head(stream: Stream) -> None:
    """The head goes with the first bytes, and the chunk that was asked for is none of them."""
    stream.record.stream = True
    context: Any = SimpleNamespace(record=stream.record, scope=stream.scope)
    forwarded: Any = SimpleNamespace(
        attempt=None,
        response=SimpleNamespace(body=stream.body, read1=stream.body.read1),
        first=USAGE.replace(b"{", b'{"text":"x",', 1),
    )
    extractor, request = StreamExtractor(strip_usage=True), cast(Any, None)
    body = StreamingBody(context, request, forwarded, extractor, error_event=True)
    body.send_through(stream.client)
    stream.provider.sendall(chunk(EVENT))
    first = gevent.spawn(next, body)
    assert first.get(timeout=30) == EVENT
    assert stream.client.taken == b""
    second = gevent.spawn(next, body)
    stream.provider.sendall(chunk(EVENT))
    until(lambda: stream.client.taken, chunk(EVENT))
    second.kill()


def test_an_event_that_is_moved_takes_few_calls(stream: Stream) -> None:
    stream.provider.sendall(chunk(EVENT))
    gevent.socket.wait_read(stream.body.connection.sock.fileno(), timeout=30)
    stream.pump._receive, stream.pump._send = stream.body.connection.receive_now, len
    size_of_chunks(chunk(EVENT))  # what chunks of that size begin with is looked up once
    assert effort.calls(stream.pump._arrived) <= 14


def test_an_error_of_what_has_arrived_is_raised_where_it_is_waited_for(stream: Stream) -> None:
    def arrived() -> bool:
        raise ZeroDivisionError

    stream.provider.sendall(b"x")
    with pytest.raises(ZeroDivisionError):
        stream.scope.wait_for(stream.body.connection.sock, arrived)
