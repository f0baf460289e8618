"""What arrives is read and reported byte for byte."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from harness import raw
from wrapper.simulator.api.echo import PATTERN

if TYPE_CHECKING:
    from harness.simulator import Simulator


def echoed(answer: raw.Answer) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer.body)
    return found


def test_the_target_and_the_headers_are_reported_as_received(simulator: Simulator) -> None:
    answer = raw.exchange(
        simulator.port,
        b"PURGE /x/%2e%2E//%zz?a=%20&&b HTTP/1.1\r\nhOsT: h\r\nX-Twice: 1\r\nx-twice:  2 \r\n\r\n",
    )
    echo = echoed(answer)
    assert (echo["method"], echo["target"]) == ("PURGE", "/x/%2e%2E//%zz?a=%20&&b")
    assert echo["headers"] == [["hOsT", "h"], ["X-Twice", "1"], ["x-twice", "2"]]
    assert echo["body_length"] == 0


def test_a_chunked_body_is_joined(simulator: Simulator) -> None:
    answer = raw.exchange(
        simulator.port,
        b"POST /v1/_echo/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
    )
    echo = echoed(answer)
    assert echo["body_base64"] == base64.b64encode(b"abcde").decode()
    assert echo["body_sha256"] == hashlib.sha256(b"abcde").hexdigest()


def test_a_raw_echo_returns_the_body(simulator: Simulator) -> None:
    body = bytes(range(256)) * 1000
    headers = (("x-sim", "echo=raw"), ("Content-Type", "application/x-odd"))
    asked = raw.request(simulator.port, "PUT", "/v1/_echo/a", headers=headers)
    asked = asked[:-2] + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    answer = raw.exchange(simulator.port, asked)
    assert answer.body == body
    assert answer.header("content-type") == "application/x-odd"


def test_expect_is_answered_before_the_body(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(
            b"POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert connection.read_head().status == 100
        assert echoed(connection.send(b"abc").read())["body_length"] == 3


def test_head_has_the_head_of_get_and_no_body(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        for _ in range(2):
            asked = raw.request(simulator.port, "HEAD", "/v1/_bytes/500")
            answer = connection.send(asked).read(head_only=True)
            assert answer.header("content-length") == "500"


def test_pipelined_requests_are_answered_in_order(simulator: Simulator) -> None:
    with raw.Connection(simulator.port) as connection:
        connection.send(
            raw.request(simulator.port, "GET", "/one", headers=(("x-sim", "delay=0.05"),))
            + raw.request(simulator.port, "GET", "/two")
        )
        assert [echoed(connection.read())["target"] for _ in range(2)] == ["/one", "/two"]


def test_a_request_that_is_not_http_is_refused(simulator: Simulator) -> None:
    assert raw.exchange(simulator.port, b"hello\r\n\r\n").status == 400


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [("bytes=0-9", 0, 10), ("bytes=70000-", 70_000, 100_000), ("bytes=-5", 99_995, 100_000)],
)
def test_a_range_of_a_download(simulator: Simulator, asked: str, start: int, end: int) -> None:
    request = raw.request(simulator.port, "GET", "/v1/_bytes/100000", headers=(("Range", asked),))
    answer = raw.exchange(simulator.port, request)
    assert answer.status == 206
    assert answer.header("content-range") == f"bytes {start}-{end - 1}/100000"
    assert answer.body == (PATTERN * 2)[start:end]


def test_a_range_outside_and_a_known_version(simulator: Simulator) -> None:
    outside = (("Range", "bytes=900-"),)
    request = raw.request(simulator.port, "GET", "/v1/_bytes/500", headers=outside)
    assert raw.exchange(simulator.port, request).status == 416
    known = (("If-None-Match", '"sim-500"'),)
    request = raw.request(simulator.port, "GET", "/v1/_bytes/500", headers=known)
    assert raw.exchange(simulator.port, request).status == 304


def test_a_multipart_field_is_found_after_a_large_file(simulator: Simulator) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + b"\r\n--\r\n-" * 30_000
        + b'\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nmy-model\r\n--b--\r\n'
    )
    headers = (("x-sim-book", "form"),)
    asked = raw.request(simulator.port, "POST", "/v1/audio/transcriptions", headers=headers)
    asked = asked[:-2] + (
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    assert raw.exchange(simulator.port, asked).status == 200
    (record,) = simulator.requests(book="form")
    assert record["model"] == "my-model"
    assert record["body_length"] == len(body)
    assert len(base64.b64decode(record["body_base64"])) == 65536


def test_a_large_upload_is_hashed_and_not_kept(simulator: Simulator) -> None:
    block = bytes(range(256)) * 256
    digest = hashlib.sha256()
    with raw.Connection(simulator.port) as connection:
        connection.send(b"POST /u HTTP/1.1\r\nHost: h\r\nContent-Length: 33554432\r\n\r\n")
        for _ in range(512):
            connection.send(block)
            digest.update(block)
        assert echoed(connection.read())["body_sha256"] == digest.hexdigest()
