"""Clients that leave, stall or hurry: the provider's work ends within a second, nothing leaks."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.poll import PATIENCE, eventually
from wrapper.store import SqliteStore

if TYPE_CHECKING:
    from harness.gateway import Gateway, GatewayFactory, LogLine
    from harness.raw import Connection
    from harness.simulator import Simulator

SOON = 1.0  # seconds, from the contract
BUSY = 30.0  # seconds that a machine may stand still
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
leaving = pytest.mark.parametrize("rudely", [False, True], ids=["fin", "rst"])


def leave(connection: Connection, rudely: bool) -> None:
    if rudely:
        connection.reset()
    else:
        connection.close()


def arrived(simulator: Simulator, book: str) -> None:
    eventually(lambda: simulator.requests(book=book), what="the call at the provider")


def cancelled(simulator: Simulator, book: str) -> None:
    """The provider's work ends, and soon."""
    left = time.time()
    (seen,) = eventually(
        lambda: [r for r in simulator.requests(book=book) if r["outcome"] is not None],
        what="the end of the provider's work",
    )
    assert seen["outcome"] == "aborted"
    assert seen["abort_noticed"] - left < SOON + BUSY


def logged(gateway: Gateway, **wanted: object) -> LogLine:
    return gateway.log_lines(lambda line: wanted.items() <= line.items())[-1]


@both_ways
@leaving
@pytest.mark.parametrize("orders", ["stall-before", "delay=600"])
def test_leaving_before_the_first_byte_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator, orders: str, stream: bool, rudely: bool
) -> None:
    book = chat.mark()
    model = f"left-early-{book}"
    connection = chat.begin(gateway, model=model, orders=orders, book=book, stream=stream)
    arrived(simulator, book)
    leave(connection, rudely)
    cancelled(simulator, book)
    (line,) = gateway.log_lines(lambda line: line["model"] == model)
    assert (line["outcome"], line["status"]) == ("client_abort", 499)


@leaving
@pytest.mark.parametrize("orders", ["stall=3; events=9", "gap=0.05; events=100000"])
def test_leaving_a_stream_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator, orders: str, rudely: bool
) -> None:
    book = chat.mark()
    connection = chat.begin(gateway, orders=orders, book=book, stream=True)
    answer = connection.read_head()
    assert next(connection.body(answer))
    leave(connection, rudely)
    cancelled(simulator, book)
    request_id = answer.header("x-request-id")
    assert request_id
    line = gateway.log_line(request_id)
    assert (line["outcome"], line["status"], line["stream"]) == ("client_abort", 200, True)


@leaving
def test_leaving_in_the_middle_of_a_whole_answer_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator, rudely: bool
) -> None:
    book = chat.mark()
    connection = chat.begin(gateway, orders="size=50000; events=4; stall=50", book=book)
    answer = connection.read_head()
    assert next(connection.body(answer))
    leave(connection, rudely)
    cancelled(simulator, book)


@leaving
def test_leaving_while_a_small_answer_is_awaited_to_its_end_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator, rudely: bool
) -> None:
    book = chat.mark()
    model = f"left-small-{book}"
    connection = chat.begin(gateway, model=model, orders="stall=50", book=book)
    arrived(simulator, book)
    leave(connection, rudely)
    cancelled(simulator, book)
    (line,) = gateway.log_lines(lambda line: line["model"] == model)
    assert (line["outcome"], line["bounded"]) == ("client_abort", "aborted")


@both_ways
def test_leaving_while_the_gateway_is_still_connecting_ends_the_attempt(
    impatient_gateway: Gateway, stream: bool
) -> None:
    before = sum(line["provider"] == "slowdeaf" for line in impatient_gateway.log())
    connection = chat.begin(impatient_gateway, model="slowdeaf", stream=stream)
    eventually(lambda: impatient_gateway.in_flight() == 1, what="in flight")
    connection.close()
    impatient_gateway.idle()  # much earlier than at the provider's connect_timeout
    *_, line = impatient_gateway.log_lines(
        lambda line: line["provider"] == "slowdeaf", count=before + 1
    )
    assert line["outcome"] == "client_abort"


def test_fifty_clients_that_leave_at_once_are_all_noticed(
    gateway: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    many = [
        chat.begin(gateway, orders="stall-before", book=book, stream=n % 2 == 0) for n in range(50)
    ]
    eventually(lambda: len(simulator.requests(book=book)) == 50, what="all calls")
    for connection in many:
        connection.close()
    eventually(
        lambda: all(r["outcome"] == "aborted" for r in simulator.requests(book=book)),
        what="all cancelled",
    )
    assert chat.call(gateway).status == 200


# --- half a request ---------------------------------------------------------------------------


@leaving
def test_leaving_with_half_a_body_sent_reaches_no_provider(
    gateway: Gateway, simulator: Simulator, rudely: bool
) -> None:
    book = chat.mark()
    asked = chat.request(gateway, model=f"half-{book}", book=book)
    connection = raw.Connection(gateway.port).send(asked[:-30])
    in_flight_at_least_one(gateway)
    leave(connection, rudely)
    gateway.idle()
    assert simulator.requests(book=book) == []


def in_flight_at_least_one(gateway: Gateway) -> None:
    eventually(lambda: gateway.in_flight() >= 1, what="in flight")


def test_leaving_in_the_middle_of_an_upload_that_flows_through_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator
) -> None:
    target = f"/openai/v1/upload-{chat.mark()}"
    headers = (("Content-Type", "application/octet-stream"), ("Content-Length", "1000000"))
    key = gateway.secrets["web-app"]
    asked = raw.request(gateway.port, "POST", "/groq" + target, key=key, headers=headers)
    with raw.Connection(gateway.port).send(asked + b"x" * 100_000):
        (seen,) = eventually(lambda: simulator.requests(target=target), what="the upload's begin")
        assert seen["outcome"] is None
    eventually(
        lambda: simulator.requests(target=target)[0]["outcome"] in ("aborted", "broken"),
        what="the end of the provider's work",
    )


def test_a_body_that_is_held_back_ends_in_a_408(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    book, began = chat.mark(), time.monotonic()
    asked = chat.request(impatient_gateway, book=book)
    with raw.Connection(impatient_gateway.port).send(asked[:-30]) as connection:
        answer = connection.read()
        assert connection.is_closed_by_peer()
    assert time.monotonic() - began > 0.9
    assert (answer.status, chat.error(answer)["code"]) == (408, "request_timeout")
    assert simulator.requests(book=book) == []


def test_a_kept_connection_may_idle_longer_than_a_body_may_take(
    impatient_gateway: Gateway,
) -> None:
    """The body's timeout (here 1 s) is not the deadline of the next request."""
    with raw.Connection(impatient_gateway.port) as connection:
        asked = chat.request(impatient_gateway)
        assert connection.send(asked).read().status == 200
        connection.socket.settimeout(1.5)
        with pytest.raises(TimeoutError):
            connection.socket.recv(1)
        connection.socket.settimeout(PATIENCE)
        assert connection.send(asked).read().status == 200


# --- clients that do not read ------------------------------------------------------------------


def test_a_client_that_reads_nothing_is_cut(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    connection = raw.Connection(impatient_gateway.port)
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    orders = "events=4000; size=60000"
    connection.send(chat.request(impatient_gateway, orders=orders, book=book, stream=True))
    with connection:
        eventually(
            lambda: simulator.requests(book=book)[0]["outcome"] == "aborted",
            what="the end of the stream that nobody reads",
            retry_on=(AssertionError, IndexError, TimeoutError),
        )
        line = logged(impatient_gateway, outcome="client_abort")
        assert line["bytes_out"] > 0
        # The time that was waited for the client is not the gateway's own.
        assert line["overhead_ms"] < line["duration_ms"] / 2


def test_a_slow_reader_gets_everything(gateway: Gateway) -> None:
    """It takes a little within every timeout, so it is not cut."""
    orders = "events=100; size=60000"
    with chat.begin(gateway, orders=orders, stream=True) as connection:
        answer = connection.read_head()
        for count, _ in enumerate(connection.body(answer)):
            if count in (10, 20):
                time.sleep(0.4)  # this is the test's subject, not a wait for something
    assert answer.clean_end
    assert chat.events(answer.body)[-1] == b"[DONE]"


# --- clients that hurry -----------------------------------------------------------------------


@both_ways
def test_a_pipelined_request_is_no_leaving(
    gateway: Gateway, simulator: Simulator, stream: bool
) -> None:
    first, second = chat.mark(), chat.mark()
    asked = chat.request(gateway, orders="delay=0.3", book=first, stream=stream)
    asked += chat.request(gateway, book=second)
    with raw.Connection(gateway.port).send(asked) as connection:
        answers = [connection.read(), connection.read()]
    assert [answer.status for answer in answers] == [200, 200]
    assert json.loads(answers[1].body)["object"] == "chat.completion"
    for book in (first, second):
        assert [r["outcome"] for r in simulator.requests(book=book)] == ["completed"]


def test_a_request_that_comes_while_a_stream_runs_waits_its_turn(gateway: Gateway) -> None:
    with chat.begin(gateway, orders="events=10; gap=0.03", stream=True) as connection:
        answer = connection.read_head()
        pieces = connection.body(answer)
        next(pieces)
        connection.socket.sendall(chat.request(gateway))
        for _ in pieces:
            pass
        assert answer.clean_end
        assert chat.events(answer.body)[-1] == b"[DONE]"
        assert connection.read().status == 200


def test_work_that_goes_on_without_its_client_is_remembered(
    gateway_factory: GatewayFactory,
) -> None:
    """A client that left before the response could else have batches and videos for nothing."""
    arrived, left = threading.Event(), threading.Event()

    def respond(sent: bytes) -> bytes:
        kind = "batch" if b"/batches" in sent.split(b"\r\n")[0] else "video"
        arrived.set()
        assert left.wait(PATIENCE)
        made = {"id": f"{kind}_1", "object": kind, "status": "in_progress"}
        return raw.response(json.dumps(made).encode(), "Content-Type: application/json")

    with raw.scripted(respond) as provider:
        config = f'[providers.far]\nbase_url = "{provider.url}/v1"\n'
        config += 'api_key = { env = "OPENAI_API_KEY" }\n'
        gateway = gateway_factory(config + '[[routes]]\nmodel = "*"\ntargets = ["far"]\n')
        for path, body in (
            ("/v1/batches", {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}),
            ("/v1/videos", {"model": "sora-2", "prompt": "A calico cat."}),
        ):
            arrived.clear()
            left.clear()
            key = gateway.secrets["web-app"]
            content = json.dumps(body).encode()
            with raw.Connection(gateway.port) as connection:
                connection.send(raw.request(gateway.port, "POST", path, content, key=key))
                assert arrived.wait(PATIENCE)
            time.sleep(0.2)  # for the gateway to notice; without it this holds, too
            left.set()
        with contextlib.closing(SqliteStore(gateway.directory / "usage.db")) as store:
            eventually(
                lambda: len(store.pending("far", ["batch_1", "video_1"])) == 2,
                what="both in the store",
            )
