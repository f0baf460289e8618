"""Every fault, seen by a client that reads the socket byte by byte."""

from __future__ import annotations

import json
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from harness import raw
from harness.poll import PATIENCE

if TYPE_CHECKING:
    from harness.simulator import Simulator

CHAT = {"model": "m", "messages": [{"role": "user", "content": "how are you"}]}
MEASURED = 0.005  # what a timer may be early by


def chat_request(simulator: Simulator, instructions: str, *, stream: bool = False) -> bytes:
    body = json.dumps(CHAT | ({"stream": True} if stream else {})).encode()
    return raw.request(
        simulator.port, "POST", "/v1/chat/completions", body, headers=(("x-sim", instructions),)
    )


def ask(simulator: Simulator, instructions: str, *, stream: bool = False) -> raw.Answer:
    return raw.exchange(simulator.port, chat_request(simulator, instructions, stream=stream))


def everything(simulator: Simulator, instructions: str, *, stream: bool = False) -> bytes:
    """All bytes until the connection ends, however it ends."""
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=PATIENCE) as sock:
        sock.sendall(chat_request(simulator, instructions, stream=stream))
        return until_end(sock)


def until_end(sock: socket.socket) -> bytes:
    received = b""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return received + b"<reset>"
        if not data:
            return received
        received += data


def events_in(received: bytes) -> int:
    return received.count(b"data: ")


def test_a_delay_holds_back_the_head(simulator: Simulator) -> None:
    begun = time.monotonic()
    assert ask(simulator, "delay=0.2").status == 200
    assert time.monotonic() - begun >= 0.2 - MEASURED


def test_a_status_comes_with_the_error_that_belongs_to_it(simulator: Simulator) -> None:
    answer = ask(simulator, "status=429; retry-after=7; should-retry=false; message=slow down")
    assert answer.status == 429
    assert answer.header("retry-after") == "7"
    assert answer.header("x-should-retry") == "false"
    assert json.loads(answer.body)["error"] == {
        "message": "slow down",
        "type": "tokens",
        "param": None,
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(simulator: Simulator, status: int) -> None:
    with raw.Connection(simulator.port) as connection:
        for _ in range(2):
            answer = connection.send(chat_request(simulator, f"status={status}")).read()
            assert answer.status == status
            assert answer.header("content-length") is None


def test_a_redirect_has_the_given_location(simulator: Simulator) -> None:
    answer = ask(simulator, "redirect=http://elsewhere/v1")
    assert (answer.status, answer.header("location")) == (307, "http://elsewhere/v1")


def test_own_headers_can_be_set(simulator: Simulator) -> None:
    answer = ask(simulator, "set=X-One: 1; set=X-Two: 2; content-type=text/odd")
    assert (answer.header("x-one"), answer.header("x-two")) == ("1", "2")
    assert answer.header("content-type") == "text/odd"


def test_every_answer_has_what_a_gateway_must_take_out(simulator: Simulator) -> None:
    answer = ask(simulator, "")
    for name in ("set-cookie", "openai-organization", "openai-project"):
        assert answer.header(name)
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.header("x-request-id") or "")


def test_malformed_json_breaks_off_within_right_framing(simulator: Simulator) -> None:
    answer = ask(simulator, "malformed-json")
    assert answer.clean_end
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)
    stream = ask(simulator, "malformed-json", stream=True)
    second = stream.body.split(b"\n\n")[1]
    with pytest.raises(json.JSONDecodeError):
        json.loads(second[6:])


def test_use_can_be_left_out_or_null(simulator: Simulator) -> None:
    assert "usage" not in json.loads(ask(simulator, "no-usage").body)
    assert json.loads(ask(simulator, "usage-null").body)["usage"] is None


def test_a_stall_before_the_answer_lasts_until_the_caller_leaves(simulator: Simulator) -> None:
    with raw.Connection(simulator.port, deadline=0.3) as connection:
        connection.send(chat_request(simulator, "stall-before; book=stall-before"))
        with pytest.raises(TimeoutError):
            connection.read_head()
    simulator.wait_for(
        lambda found: [r["outcome"] for r in found if r["book"] == "stall-before"] == ["aborted"]
    )


def test_a_stall_comes_after_so_many_events(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(chat_request(simulator, "stall=3", stream=True))
        answer = connection.read_head()
        pieces = connection.body(answer)
        while events_in(answer.body) < 3:
            next(pieces)
        connection.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            next(pieces)
    assert events_in(answer.body) == 3


def test_a_reset_before_the_head(simulator: Simulator) -> None:
    assert everything(simulator, "reset=0") == b"<reset>"


def test_a_reset_comes_after_so_many_events(simulator: Simulator) -> None:
    # A reset may overtake what was sent before it; paced, all of it has been read by then.
    received = everything(simulator, "reset=3; gap=0.05", stream=True)
    assert received.endswith(b"<reset>")
    assert events_in(received) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_ends_without_the_last_chunk(simulator: Simulator, stream: bool) -> None:
    answer = ask(simulator, "cut=4", stream=stream)
    assert not answer.clean_end
    if stream:
        assert events_in(answer.body) == 4
    else:
        assert len(answer.body) == 4


def test_a_cut_of_a_download_comes_after_so_many_bytes(simulator: Simulator) -> None:
    headers = (("x-sim", "cut=100000"),)
    asked = raw.request(simulator.port, "GET", "/v1/_bytes/1000000", headers=headers)
    answer = raw.exchange(simulator.port, asked)
    assert (answer.header("content-length"), len(answer.body)) == ("1000000", 100_000)
    assert not answer.clean_end


def test_a_kept_connection_is_closed_on_receipt(simulator: Simulator) -> None:
    assert everything(simulator, "close-on-receipt") == b""
    with raw.Connection(simulator.port) as connection:
        assert connection.send(chat_request(simulator, "close-on-receipt=kept")).read().status
        connection.send(chat_request(simulator, "close-on-receipt=kept"))
        with pytest.raises(ConnectionError):
            connection.read_head()


def test_an_idle_connection_is_closed(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        assert connection.send(chat_request(simulator, "idle-close=0.1")).read().status == 200
        assert connection.is_closed_by_peer()


def test_413_comes_before_the_body_is_read(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nx-sim: early-413\r\n"
            b"Expect: 100-continue\r\nContent-Length: 1000000\r\n\r\nbeginning"
        )
        answer = connection.read()
        assert answer.status == 413
        assert json.loads(answer.body)["error"]["code"] == "request_too_large"
        assert connection.is_closed_by_peer()


def test_a_body_that_is_not_read_any_more_blocks_its_sender(simulator: Simulator) -> None:
    head = b"POST /unread HTTP/1.1\r\nHost: h\r\nx-sim: read-stall=65536; delay=%d\r\n"
    head += b"Content-Length: 100000000\r\n\r\n"
    with raw.Connection(simulator.port, deadline=0.5) as connection:
        connection.send(head % 60)
        with pytest.raises(TimeoutError):
            connection.send(bytes(100_000_000))
        connection.reset()
    simulator.wait_for(
        lambda found: [r["outcome"] for r in found if r["target"] == "/unread"] == ["aborted"]
    )
    with raw.Connection(simulator.port) as connection, pytest.raises(ConnectionError):
        connection.send(head % 1 + bytes(100_000_000))


def test_a_body_can_be_read_slowly(simulator: Simulator) -> None:
    begun = time.monotonic()
    headers = (("x-sim", "read-gap=0.05"),)
    assert raw.post(simulator.port, "/slow", bytes(200_000), headers=headers).status == 200
    assert time.monotonic() - begun > 0.15


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"model": 5, "messages": {}}',
        b'{"model": "m", "messages": [1], "tools": [{"function": {"parameters": {"enum": []}}}]}',
        b'{"model": "m", "messages": [1], "response_format": {"type": "json_schema"}}',
        b'{"model": "m", "messages": [1], "tools": [{}], "tool_choice": {"function": "x"}}',
    ],
)
def test_a_request_that_makes_no_sense_is_a_400(simulator: Simulator, body: bytes) -> None:
    assert raw.post(simulator.port, "/v1/chat/completions", body).status == 400


def test_a_head_drips(simulator: Simulator) -> None:
    begun = time.monotonic()
    answer = ask(simulator, "header-drip=0.001")
    assert answer.status == 200
    assert time.monotonic() - begun > 0.3


def test_a_body_drips(simulator: Simulator) -> None:
    answer = ask(simulator, "drip=0.001; events=2", stream=True)
    assert {len(chunk) for _, chunk in answer.chunks} <= {0, 1}
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_events_keep_their_gap(simulator: Simulator) -> None:
    answer = ask(simulator, "stamp; gap=0.05; events=5", stream=True)
    times = [float(at) for at in re.findall(rb'"sim_t": ?([0-9.]+)', answer.body)]
    assert times[-1] - times[0] >= 0.05 * (len(times) - 1) - 0.01
    assert len(answer.chunks) == 8


def test_close_is_announced_and_done(simulator: Simulator) -> None:
    received = everything(simulator, "close")
    assert b"\r\nConnection: close\r\n" in received
    assert received.endswith(b"}\n")


FRAMINGS = {
    "cl-te": rb"\r\nContent-Length: \d+\r\nTransfer-Encoding: chunked\r\n",
    "bad-te": rb"\r\nTransfer-Encoding: xchunked\r\n",
    "cl-negative": rb"\r\nContent-Length: -5\r\n",
    "cl-double": rb"\r\nContent-Length: (\d+)\r\nContent-Length: (?!\1)\d+\r\n",
    "cl-list": rb"\r\nContent-Length: (\d+), \1\r\n",
    "cl-garbage": rb"\r\nContent-Length: \d+x\r\n",
    "nul-header": rb"\r\nX-Nul: a\0b\r\n",
    "no-length": rb"\AHTTP/1.1 200 OK\r\n(?!.*(Content-Length|Transfer-Encoding)).*\[DONE\]\n\n\Z",
    "http10": rb"\AHTTP/1.0 200 OK\r\n(?!.*(Content-Length|Transfer-Encoding))",
    "100": rb"\AHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "101": rb"\AHTTP/1.1 101 Switching Protocols\r\n",
    "103": rb"\AHTTP/1.1 103 Early Hints\r\n.*\r\n\r\nHTTP/1.1 200 OK\r\n",
    "bad-chunk": rb"\r\n\r\nzz\r\ndata: ",
    "chunk-ext": rb'\r\n\r\n[0-9a-f]+;sim="a;b"\r\ndata: ',
    "trailers": rb"\r\n0\r\nX-Sim-Trailer: simulated\r\n\r\n\Z",
    "long-header": rb"\r\nX-Long: a{131072}\r\n",
    "many-headers": rb"\r\nX-Many-399: 399\r\n",
    "bad-status": rb"\AHTTP/1.1 okay fine\r\n",
    "lf": rb"\AHTTP/1.1 200 OK\n[^\r]*\n\n",
    "fold": rb"\r\nX-Folded: a\r\n b\r\n",
    "garbage": rb"\A\x16\x03\x01",
    "long-body": rb"\r\n0\r\n\r\nmore\Z",
}


@pytest.mark.parametrize("how", sorted(FRAMINGS))
def test_framing_is_broken_as_instructed(simulator: Simulator, how: str) -> None:
    received = everything(simulator, f"framing={how}; close", stream=True)
    assert re.search(FRAMINGS[how], received, re.DOTALL)


def test_a_short_body_ends_before_its_length(simulator: Simulator) -> None:
    answer = ask(simulator, "framing=short-body")
    assert not answer.clean_end
    assert int(answer.header("content-length") or 0) == len(answer.body) + 64


def test_a_long_body_runs_into_the_next_answer(simulator: Simulator) -> None:
    received = everything(simulator, "framing=long-body; close")
    assert received.endswith(b'}\n{"simulated": "more than was declared"}')


def test_an_order_in_the_body_works_too(simulator: Simulator) -> None:
    body = json.dumps(CHAT | {"x_sim": "status=503"}).encode()
    assert raw.post(simulator.port, "/v1/chat/completions", body).status == 503
    headers = (("x-sim", "status=502"),)
    answer = raw.post(simulator.port, "/v1/chat/completions", body, headers=headers)
    assert answer.status == 502
