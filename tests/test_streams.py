"""Event streams: each event as it comes, byte for byte, whatever the provider's framing."""

from __future__ import annotations

import json
import queue
import re
import socket
import threading
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw

if TYPE_CHECKING:
    from harness.gateway import Gateway, GatewayFactory
    from harness.raw import Answer
    from harness.simulator import Simulator

VARIES = re.compile(rb'"sim_t":[0-9.]+|"id":\s*"[^"]+"|"created":\s*[0-9]+|\d+\.\d{5,}')


def own(simulator: Simulator, target: str, orders: str, content: bytes) -> Answer:
    """What the provider itself answers."""
    return raw.post(simulator.port, target, content, headers=chat.told(orders))


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "gpt-6-luna"])
@pytest.mark.parametrize("framing", ["", "; framing=no-length", "; framing=http10", "; close"])
@pytest.mark.parametrize("events", [1, 3])
def test_each_event_comes_as_soon_as_it_is_sent(
    gateway: Gateway, framing: str, model: str, events: int
) -> None:
    """The provider sends so many and no more: one held back until the next would never come."""
    orders = f"events=5; stall={events}{framing}"
    with chat.begin(gateway, orders=orders, model=model, stream=True) as connection:
        answer = connection.read_head()
        pieces = connection.body(answer)
        while answer.body.count(b"\n\n") < events:
            next(pieces)
    assert answer.body.endswith(b"\n\n")
    assert answer.header("content-length") is None


@pytest.mark.parametrize(
    "orders",
    [
        "",
        "crlf",
        "cr",
        "comment",
        "no-space",
        "multi-data",
        "no-done",
        "split",
        "merge=4",
        "drip=0.0002; events=4",
        "usage-null",
        "no-usage",
        "groq-error",
        "error-event",
        "malformed-json",
        "framing=chunk-ext",
        "framing=no-length",
        "size=100000; events=5",
    ],
)
@pytest.mark.parametrize(
    ("target", "model"),
    [("/openai/v1/chat/completions", "llama-x"), ("/v1/chat/completions", "gpt-x")],
    ids=["groq", "openai"],
)
def test_a_stream_arrives_byte_for_byte(
    gateway: Gateway, simulator: Simulator, target: str, model: str, orders: str
) -> None:
    """The caller asks for the use himself, so that nothing has to be put in or taken out."""
    content = chat.body(model, stream=True, stream_options={"include_usage": True})
    expected = own(simulator, target, orders, content)
    answer = chat.call(gateway, content, orders=orders)
    assert answer.status == expected.status == 200
    assert VARIES.sub(b"", answer.body) == VARIES.sub(b"", expected.body)
    assert answer.header("content-type") == expected.header("content-type")
    assert answer.clean_end


@pytest.mark.parametrize("orders", ["", "crlf", "split", "merge=4", "drip=0.0002; events=4"])
def test_usage_that_the_client_did_not_ask_for_is_removed(
    gateway: Gateway, simulator: Simulator, orders: str
) -> None:
    """One event less than the provider sent, and not a byte of the others changed."""
    asking = chat.body("gpt-x", stream=True, stream_options={"include_usage": True})
    sent = own(simulator, "/v1/chat/completions", orders, asking).body
    (usage,) = re.findall(rb'data: [^\r\n]*"usage":\{[^\r\n]*(?:\r\n\r\n|\n\n)', sent)
    answer = chat.call(gateway, chat.body("gpt-x", stream=True), orders=orders)
    assert VARIES.sub(b"", answer.body) == VARIES.sub(b"", sent.replace(usage, b""))
    request_id = answer.header("x-request-id")
    assert request_id
    assert gateway.log_line(request_id)["completion_tokens"] > 0


@pytest.mark.parametrize("model", ["llama-x", "gpt-x"])
def test_a_compressed_stream_flows_and_stays_compressed(gateway: Gateway, model: str) -> None:
    """Its events are flushed one by one; the use was asked for, so nothing is put in."""
    content = chat.body(model, stream=True, stream_options={"include_usage": True})
    orders, headers = "encoding=gzip; events=6", (("Accept-Encoding", "gzip"),)
    stalled = f"{orders}; stall=2"  # the second event must not wait for the third
    with chat.begin(gateway, content, orders=stalled, headers=headers) as connection:
        answer = connection.read_head()
        assert answer.header("content-encoding") == "gzip"
        unpack, text = zlib.decompressobj(31), b""
        pieces = connection.body(answer)
        while text.count(b"data:") < 2:
            text += unpack.decompress(next(pieces))
    answer = chat.call(gateway, content, orders=orders, headers=headers)
    assert answer.header("content-encoding") == "gzip"
    assert chat.events(zlib.decompress(answer.body, 31))[-1] == b"[DONE]"


def test_many_streams_at_once_do_not_wait_for_each_other(
    gateway: Gateway, simulator: Simulator
) -> None:
    """Of forty that never end each one has begun."""
    book = chat.mark()
    with ExitStack() as held:
        for _ in range(40):
            begun = chat.begin(gateway, orders="events=9; stall=1", book=book, stream=True)
            held.enter_context(begun)
            assert next(begun.body(begun.read_head()))
        assert len(simulator.requests(book=book, outcome=None)) == 40


def test_the_chunks_of_events_that_come_alone_are_passed_on_as_they_are(
    gateway_factory: GatewayFactory,
) -> None:
    """The event loop moves them (`proxy.pump`): what it sends is what the provider has sent."""
    event = b'data: {"model":"m","choices":[{"delta":{"content":"and a calico cat"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            raw._read_request(sock)
            while data := told.get():
                sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, args=(listener,))
        serving.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = f'[providers.far]\nbase_url = "{url}/v1"\napi_key = {{ env = "OPENAI_API_KEY" }}\n'
        gateway = gateway_factory(config + '[[routes]]\nmodel = "*"\ntargets = ["far"]\n')
        told.put(head + b"%x\r\n%b\r\n" % (len(event), event))
        body = chat.body("m", stream=True, stream_options={"include_usage": True})
        asked = raw.request(
            gateway.port, "POST", "/v1/chat/completions", body, key=gateway.secrets["web-app"]
        )
        with raw.Connection(gateway.port, deadline=60).send(asked) as connection:
            answer = connection.read_head()
            assert connection._line() == b"%X" % len(event)
            assert connection._exactly(len(event) + 2) == event + b"\r\n"
            for _ in range(3):
                told.put(b"%x\r\n%b\r\n" % (len(event), event))
                assert connection._line() == b"%x" % len(event)
                assert connection._exactly(len(event) + 2) == event + b"\r\n"
            told.put(b"%x\r\n%b\r\n0\r\n\r\n" % (len(usage), usage))
            assert b"".join(connection.body(answer)) == usage
        told.put(b"")
        serving.join()
    line = gateway.log_line(answer.header("x-request-id") or "", deadline=60)
    assert line["bytes_out"] == 4 * len(event) + len(usage)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 4)
    assert line["outcome"] == "completed"


def test_two_calls_on_one_connection_do_not_see_each_other(gateway: Gateway) -> None:
    with raw.Connection(gateway.port) as connection:
        for stream in (True, False, True, False):
            answer = connection.send(chat.request(gateway, stream=stream)).read()
            assert answer.clean_end
            if stream:
                assert chat.events(answer.body)[-1] == b"[DONE]"
            else:
                assert json.loads(answer.body)["object"] == "chat.completion"


def test_the_head_of_a_stream_is_answered_without_a_body(gateway: Gateway, key: str) -> None:
    asked = raw.request(gateway.port, "HEAD", "/v1/models/x", key=key)
    answer = raw.exchange(gateway.port, asked, head_only=True)
    assert answer.status in (200, 404)
    assert answer.body == b""
