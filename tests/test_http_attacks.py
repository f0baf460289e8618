"""Malformed requests, and those that two servers could read in two ways, with either parser."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import eventually

if TYPE_CHECKING:
    from harness.raw import Answer
    from harness.simulator import Simulator

HEAD_DEADLINE = 1  # seconds, by gunicorn's own option; 15 as shipped
LIMIT = 100_000
PARSERS = ["python", *(["fast"] if importlib.util.find_spec("gunicorn_h1c") else [])]


@pytest.fixture(scope="module", params=PARSERS)
def parser(request: pytest.FixtureRequest) -> str:
    """Each of gunicorn's parsers."""
    name: str = request.param
    return name


def one_worker(simulator: Simulator, arguments: str, settings: str = "") -> Gateway:
    config = f"[server]\nmax_body_bytes = {LIMIT}\n{settings}\n"
    config += CONFIG.replace("{simulator}", simulator.url)
    return Gateway(config, keys=KEYS, env={**PROVIDER_KEYS, "GUNICORN_CMD_ARGS": arguments})


@pytest.fixture(scope="module")
def gateway(parser: str, simulator: Simulator) -> Iterator[Gateway]:
    """One worker, with a low limit."""
    with one_worker(simulator, f"--http-parser {parser}") as running:
        yield running


@pytest.fixture(scope="module")
def hasty(parser: str, simulator: Simulator) -> Iterator[Gateway]:
    """Another one with short deadlines for a head and for a client that does not read."""
    arguments = f"--http-parser {parser} --keep-alive {HEAD_DEADLINE}"
    with one_worker(simulator, arguments, "body_timeout = 2\n") as running:
        yield running


@pytest.fixture(autouse=True)
def still_healthy(request: pytest.FixtureRequest, simulator: Simulator) -> Iterator[None]:
    """Nothing of a refused request reaches the provider, and the next request is served."""
    names = sorted({"gateway", "hasty"} & set(request.fixturenames))
    used = [request.getfixturevalue(name) for name in names]
    simulator.reset()
    yield
    assert [r["target"] for r in simulator.requests() if "smuggled" in r["target"]] == []
    for gateway in used:
        assert chat.call(gateway).status == 200
        gateway.assert_clean()


def head(gateway: Gateway, *lines: str, request: str = f"POST {chat.PATH} HTTP/1.1") -> bytes:
    usual = ["Host: gateway", f"Authorization: Bearer {gateway.secrets['web-app']}"]
    return "\r\n".join([request, *usual, *lines]).encode("latin-1") + b"\r\n\r\n"


def refused(gateway: Gateway, sent: bytes, status: int = 400) -> Answer:
    """The only response to `sent`: the connection is closed after it."""
    with raw.Connection(gateway.port).send(sent) as connection:
        answer = connection.read()
        assert answer.status == status, answer
        details = chat.error(answer)
        assert details["type"] == "invalid_request_error"
        assert connection.socket.recv(65536) == b""
    return answer


SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: gateway\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", CHUNKED],
        [CHUNKED, "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: +5"],
        ["Content-Length: -5"],
        ["Content-Length: 5x"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5_0"],
        ["Content-Length: \xb2"],
        ["Content-Length: "],
        ["Content-Length : 5"],
        [" Content-Length: 5"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: \x0bchunked"],
        ["Transfer-Encoding: chunked\x00"],
        ["X: a\r\n folded: b"],
        ["X: a\r\n\tfolded"],
        ["X: a\nContent-Length: 5"],
        ["X: a\rY: b"],
        ["X: a\0b"],
        ["X: a\x01b"],
        ["no colon"],
        [": no name"],
        ["X@Y: a"],
        ["X Y: a"],
        ["Host: other"],
    ],
    ids=lambda lines: repr("|".join(lines)),
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(
    gateway: Gateway, lines: list[str]
) -> None:
    refused(gateway, head(gateway, *lines) + b"0\r\n\r\n" + SMUGGLED)


@pytest.mark.parametrize("line", ["", "Host_: a\r\n", "H_ost: a\r\n", "X-Host: a\r\n"])
def test_only_http_1_0_may_leave_out_the_host(gateway: Gateway, line: str) -> None:
    """RFC 9112 section 3.2."""
    old, new = (f"GET /healthz HTTP/{version}\r\n{line}\r\n".encode() for version in ("1.0", "1.1"))
    assert raw.exchange(gateway.port, old).status == 200
    details = chat.error(refused(gateway, new))
    assert details["code"] == "invalid_request"
    assert "Host" in details["message"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize(
    "line",
    [
        *("Host", "Host : gateway", "Host: a b", "Host: a/b", "Host: a@b", "Host: a, b"),
        *("Host: a:b", "Host: [::1", "Host: caf\xe9", "Host: a\r\nHost: a"),
    ],
)
def test_a_host_that_is_none_is_refused(gateway: Gateway, line: str, version: str) -> None:
    sent = f"GET /healthz HTTP/{version}\r\n{line}\r\n\r\n".encode("latin-1")
    assert chat.error(refused(gateway, sent))["code"] == "invalid_request"


@pytest.mark.parametrize(
    "host",
    ["", "a", "a:", "a:80", "[::1]", "[::1]:80", "[fe80::1%25eth0]", "xn--bcher-kva.example"],
)
def test_a_host_of_any_valid_form_is_served(gateway: Gateway, host: str) -> None:
    sent = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"
    assert raw.exchange(gateway.port, sent.encode()).status == 200


@pytest.mark.parametrize("char", "!#$%&'*+-.^_`|~09AZaz")
def test_a_header_with_any_character_that_a_name_may_have_is_served(
    gateway: Gateway, char: str
) -> None:
    lines = [f"X{char}Trace: 1", f"{char}X1{char}: 1"]
    sent = head(gateway, *lines, request="GET /healthz HTTP/1.1")
    assert raw.exchange(gateway.port, sent).status == 200


def test_an_underscore_makes_no_length_and_no_coding(gateway: Gateway) -> None:
    """What follows is read as the headers with a hyphen say, and as nothing else."""
    body = chat.body()
    usual = f"Content-Length: {len(body)}"
    for odd in ("Transfer_Encoding: chunked", "Content_Length: 0", "Content-Length_: 0"):
        with raw.Connection(gateway.port) as connection:
            for lines in ([odd, usual], [usual, odd]):
                assert connection.send(head(gateway, *lines) + body).read().status == 200
    for odd in ("Transfer_Encoding: chunked", "Content_Length: 5"):
        with raw.Connection(gateway.port) as connection:
            sent = head(gateway, odd, request="GET /healthz HTTP/1.1")
            answer = connection.send(sent + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").read()
            assert answer.status == 200
            assert connection.read().status == 200


@pytest.mark.parametrize("name", ["Author_ization", "Authorization_", "_Authorization"])
def test_an_underscore_makes_no_credential(gateway: Gateway, name: str) -> None:
    lines = ["Host: gateway", f"{name}: Bearer {gateway.secrets['web-app']}"]
    sent = "\r\n".join([f"POST {chat.PATH} HTTP/1.1", *lines]) + "\r\n\r\n"
    assert raw.exchange(gateway.port, sent.encode()).status == 401


@pytest.mark.parametrize("coding", ["xchunked", "gzip", "gzip, chunked", "identity", "deflate"])
def test_a_transfer_coding_that_is_not_known_is_refused(gateway: Gateway, coding: str) -> None:
    sent = head(gateway, f"Transfer-Encoding: {coding}") + b"0\r\n\r\n" + SMUGGLED
    with raw.Connection(gateway.port).send(sent) as connection:
        answer = connection.read()
        assert answer.status in (400, 415, 501)
        chat.error(answer)
        assert connection.is_closed_by_peer()


@pytest.mark.parametrize(
    "text",
    [
        b"POST /v1/chat/completions HTTP/1.1\nHost: a\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\n\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nHost: a\n\n",
        b"\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET\t/healthz\tHTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /health z HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTP/1.10\r\nHost: a\r\n\r\n",
        b"GET /healthz HTTPS/1.1\r\nHost: a\r\n\r\n",
        b"get /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G@T /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /healthz\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
    ],
)
def test_what_is_not_a_request_gets_openais_error_and_nothing_else(
    gateway: Gateway, text: bytes
) -> None:
    before = gateway.metrics().value("http_requests_total", path="(unmatched)", status="400")
    answer = refused(gateway, text)
    assert b"gunicorn" not in answer.body
    line = gateway.log_line(answer.header("x-request-id") or "")
    assert (line["status"], line["outcome"], line["path"]) == (400, "client_error", "(unmatched)")
    after = gateway.metrics().value("http_requests_total", path="(unmatched)", status="400")
    assert after == before + 1


@pytest.mark.parametrize("odd", [b"\0", b"\x01", b"\t", b"\x7f", b"\xe9"])
def test_a_path_with_a_control_character_is_an_invalid_path(gateway: Gateway, odd: bytes) -> None:
    answer = refused(gateway, b"GET /openai/v1/a%bb HTTP/1.1\r\nHost: a\r\n\r\n" % odd)
    assert chat.error(answer)["code"] == "invalid_path"


@pytest.mark.parametrize(
    ("text", "status", "why"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "longer than 8190 bytes."),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "than 16380 bytes"),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: a\r\n" * 150 + b"\r\n", 431, "more than 100."),
    ],
    ids=["line", "field", "fields"],
)
def test_a_head_that_is_too_large_is_refused_with_the_limit(
    gateway: Gateway, text: bytes, status: int, why: str
) -> None:
    assert why in chat.error(refused(gateway, text, status))["message"]


@pytest.mark.parametrize(
    "text", [b"GET /" + b"a" * 3_000_000, b"GET / HTTP/1.1\r\nX: " + b"a" * 3_000_000]
)
def test_a_head_that_never_ends_is_cut_off(gateway: Gateway, text: bytes) -> None:
    with raw.Connection(gateway.port) as connection:
        try:
            connection.send(text)
            assert connection.read().status in (400, 414, 431)
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed while it was still sending


@pytest.mark.parametrize("start", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"])
def test_a_slow_head_times_out(hasty: Gateway, start: bytes) -> None:
    with raw.Connection(hasty.port).send(start) as connection:
        assert connection.is_closed_by_peer()


def test_a_head_that_arrives_byte_by_byte_times_out_too(hasty: Gateway) -> None:
    """The deadline is for the whole head, not for each wait."""
    text = iter(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 10_000)
    with raw.Connection(hasty.port, deadline=0.1) as connection:

        def ended() -> bool:
            connection.socket.sendall(bytes([next(text)]))
            return connection.is_closed_by_peer()

        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            eventually(ended, what="the end of the connection")


# --- bodies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b" 2\r\n{}\r\n0\r\n\r\n",
        b"2_0\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"2;\n=x\r\n{}\r\n0\r\n\r\n",
        b"\r\n",
        b"a" * 20_000,
        b"0\r\nbad trailer\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: a\nY: b\r\n\r\n",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_malformed_chunk_is_a_400_with_openais_error(gateway: Gateway, body: bytes) -> None:
    sent = head(gateway, CHUNKED, "Content-Type: application/json") + body
    with raw.Connection(gateway.port).send(sent) as connection:
        answer = connection.read()
        assert answer.status == 400
        assert chat.error(answer)["code"] in ("incomplete_body", "invalid_json")
        assert connection.is_closed_by_peer()


def chunked(content: bytes, size: int = 1000) -> bytes:
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


def test_a_well_formed_chunked_body_is_accepted(gateway: Gateway, simulator: Simulator) -> None:
    book = chat.mark()
    sent = head(gateway, CHUNKED, f"x-sim-book: {book}", "x-sim: echo=raw")
    content = chat.body(filler="x" * 5000)
    answer = raw.exchange(gateway.port, sent + chunked(content, 7))
    assert (answer.status, answer.body) == (200, content)
    (seen,) = simulator.requests(book=book)
    assert seen["body_length"] == len(content)


def test_a_chunked_body_that_ends_early_is_incomplete(gateway: Gateway) -> None:
    content = chunked(chat.body())
    sent = head(gateway, CHUNKED, "Content-Type: application/json") + content[:-7]
    with raw.Connection(gateway.port).send(sent) as connection:
        connection.socket.shutdown(socket.SHUT_WR)
        answer = connection.read()
    assert (answer.status, chat.error(answer)["code"]) == (400, "incomplete_body")


def test_a_client_that_reads_no_responses_times_out(hasty: Gateway) -> None:
    """Also without a key: responses that wait to be sent use memory."""
    asked = raw.request(hasty.port, "GET", "/docs/swagger-ui-bundle.js")
    with raw.Connection(hasty.port).send(asked * 20) as connection:

        def is_reset() -> bool:
            try:
                connection.socket.send(b" ")
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        eventually(is_reset, what="the end of the connection")
        hasty.idle()


def test_many_pipelined_requests_do_not_block_other_connections(gateway: Gateway) -> None:
    """The worker is stopped until both connections have sent: it finds them at the same time."""
    many = 1000
    before = len(list(gateway.log()))
    asked = raw.request(gateway.port, "GET", "/healthz")
    [worker] = gateway.workers()
    with raw.Connection(gateway.port) as connection, raw.Connection(gateway.port) as other:
        os.kill(worker, signal.SIGSTOP)
        try:
            connection.send(asked * many)
            other.send(raw.request(gateway.port, "GET", "/readyz"))
        finally:
            os.kill(worker, signal.SIGCONT)
        assert other.read().status == 200
        for _ in range(many):
            assert connection.read().status == 200
    lines = gateway.log_lines(lambda _: True, count=before + many + 1)[before:]
    place = [line["path"] for line in lines].index("/readyz")
    assert place < many / 2, "the other connection was served last"


def test_an_http_1_0_client_that_reads_too_slowly_sees_that_the_response_broke_off(
    hasty: Gateway,
) -> None:
    asked = chat.request(hasty, orders="events=200; size=65536", stream=True)
    asked = asked.replace(b" HTTP/1.1", b" HTTP/1.0", 1)
    with raw.Connection(hasty.port) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.send(asked)
        hasty.log_lines(lambda line: line["outcome"] == "client_abort")
        hasty.idle()
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: connection.socket.recv(65536), b""))


@pytest.mark.parametrize("by", ["length", "chunks"])
@pytest.mark.parametrize("size", [LIMIT + 1, 20_000_000], ids=["just", "far"])
def test_a_body_over_the_limit_is_a_413_that_a_client_which_sends_all_first_can_read(
    gateway: Gateway, simulator: Simulator, by: str, size: int
) -> None:
    book = chat.mark()
    start = b'{"model": "m", "x": "'
    content = start + b"x" * (size - len(start) - 2) + b'"}'
    mark = f"x-sim-book: {book}"
    if by == "length":
        sent = head(gateway, f"Content-Length: {len(content)}", mark) + content
    else:
        sent = head(gateway, CHUNKED, mark) + chunked(content, 60_000)
    with raw.Connection(gateway.port).send(sent) as connection:
        answer = connection.read()
        assert (answer.status, chat.error(answer)["code"]) == (413, "request_too_large")
        assert connection.is_closed_by_peer()
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize("by", ["length", "chunks"])
def test_a_body_of_exactly_the_limit_is_accepted(gateway: Gateway, by: str) -> None:
    start = chat.body()[:-1] + b', "x": "'
    content = start + b"x" * (LIMIT - len(start) - 2) + b'"}'
    assert len(content) == LIMIT
    if by == "length":
        sent = head(gateway, f"Content-Length: {len(content)}") + content
    else:
        sent = head(gateway, CHUNKED) + chunked(content, 999)
    assert raw.exchange(gateway.port, sent).status == 200


def test_bytes_after_a_body_are_the_next_request(gateway: Gateway) -> None:
    with raw.Connection(gateway.port) as connection:
        connection.send(chat.request(gateway) + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.read().status == 200
        assert connection.read().body == b'{"status":"ok"}'


def test_a_client_that_waits_for_100_continue_gets_it(gateway: Gateway) -> None:
    content = chat.body()
    sent = head(gateway, "Expect: 100-continue", f"Content-Length: {len(content)}")
    with raw.Connection(gateway.port).send(sent) as connection:
        assert connection.read().status == 100
        assert connection.send(content).read().status == 200


@pytest.mark.parametrize("value", ["200-ok", "100-continue, more", "x"])
def test_another_expectation_is_a_417(gateway: Gateway, value: str) -> None:
    refused(gateway, head(gateway, f"Expect: {value}", "Content-Length: 2") + b"{}", 417)


@pytest.mark.parametrize("request_line", ["GET /x HTTP/1.0", "GET /healthz HTTP/1.0"])
def test_an_http_1_0_client_gets_a_response_and_a_close(
    gateway: Gateway, request_line: str
) -> None:
    sent = head(gateway, request=request_line)
    with raw.Connection(gateway.port).send(sent) as connection:
        answer = connection.read()
        assert answer.status in (200, 404)
        assert connection.is_closed_by_peer()


def test_an_http_1_0_client_gets_a_stream_without_chunks(gateway: Gateway) -> None:
    content = chat.body(stream=True)
    line = f"POST {chat.PATH} HTTP/1.0"
    sent = head(gateway, f"Content-Length: {len(content)}", request=line) + content
    answer = raw.exchange(gateway.port, sent)
    assert answer.header("transfer-encoding") is None
    assert chat.events(answer.body)[-1] == b"[DONE]"


def test_forwarding_headers_of_a_client_are_not_trusted(gateway: Gateway) -> None:
    lines = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "Forwarded: for=6.6.6.6"]
    lines += ["X-Real-Ip: 6.6.6.6", f"Content-Length: {len(chat.body())}"]
    answer = raw.exchange(gateway.port, head(gateway, *lines) + chat.body())
    request_id = answer.header("x-request-id")
    assert request_id
    assert gateway.log_line(request_id)["client"] == "127.0.0.1"


def test_the_body_of_a_refused_request_is_never_read_as_a_request(gateway: Gateway) -> None:
    refused_head = (
        f"POST {chat.PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n"
    )
    following = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    with raw.Connection(gateway.port) as connection:
        connection.send(refused_head.encode() + SMUGGLED + following)
        assert connection.read().status == 401
        assert connection.read().body == b'{"status":"ok"}'


@pytest.mark.parametrize("more", ["", "Connection: keep-alive"])
def test_chunked_framing_of_an_http_1_0_client_is_refused(gateway: Gateway, more: str) -> None:
    line = f"POST {chat.PATH} HTTP/1.0"
    refused(gateway, head(gateway, CHUNKED, more or "X: a", request=line) + b"0\r\n\r\n" + SMUGGLED)


def test_trailers_change_nothing_that_was_decided(gateway: Gateway, simulator: Simulator) -> None:
    book = chat.mark()
    trailers = b"x-sim-book: other\r\nX-Late: 1\r\n\r\n"
    sent = head(gateway, CHUNKED, f"x-sim-book: {book}") + chunked(chat.body())[:-2] + trailers
    assert raw.exchange(gateway.port, sent).status == 200
    (seen,) = simulator.requests(book=book)
    assert "x-late" not in {name.lower() for name, _ in seen["headers"]}
