"""What a stranger, a key's holder or an odd provider may try, and what comes of it: nothing."""

from __future__ import annotations

import contextlib
import resource
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, processes, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.fairness import others_are_served
from harness.gateway import Gateway
from harness.poll import eventually

if TYPE_CHECKING:
    from harness.gateway import GatewayFactory
    from harness.simulator import Simulator

# To a reader of forms the model is llama-x; to one of JSON that stops where it ends, gpt-6-sol.
JSON_THEN_FORM = (
    b'{"model":"gpt-6-sol"}\r\n--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    b"llama-x\r\n--b--\r\n"
)
Talk = Callable[[Any, list[bytes]], None]


@contextlib.contextmanager
def provider(talk: Talk) -> Iterator[tuple[int, list[bytes]]]:
    """A provider by hand: `talk(socket, requests)` for each connection. Its port, what it got."""
    requests: list[bytes] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                talk(self.request, requests)

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 64
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield server.server_address[1], requests
        finally:
            server.shutdown()
            serving.join()


def answers_all(sock: Any, requests: list[bytes]) -> None:
    """An empty list for everything, a moment later."""
    while request := sock.recv(65536):
        requests.append(request)
        threading.Event().wait(0.3)
        sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n"
            b'{"data":[]}'
        )


def sends_a_body_after_a_head(sock: Any, requests: list[bytes]) -> None:
    """What no HEAD has comes when the connection is used again, and looks like an answer."""
    before = b""
    while request := sock.recv(65536):
        requests.append(request)
        body = b"poison" if before.startswith(b"HEAD") else b"right"
        length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        sock.sendall(length + (b"" if request.startswith(b"HEAD") else body))
        before = request


def get(gateway: Gateway, target: str, *, method: str = "GET", key: str = "web-app") -> raw.Answer:
    request = raw.request(gateway.port, method, target, key=gateway.secrets.get(key, key))
    return raw.exchange(gateway.port, request, head_only=method == "HEAD")


# --- what is not theirs -------------------------------------------------------------------------


def test_what_a_provider_sends_after_a_head_is_never_the_next_callers_answer(
    gateway_factory: GatewayFactory,
) -> None:
    with provider(sends_a_body_after_a_head) as (port, requests):
        config = f'[providers.odd]\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        gateway = gateway_factory(CONFIG + config)
        for _ in range(3):
            assert get(gateway, "/odd/v1/a", method="HEAD").status == 200
            assert get(gateway, "/odd/v1/b").body == b"right"
        assert len(requests) == 6


def test_a_callers_own_credential_travels_without_the_gateways_secret_headers(
    gateway_factory: GatewayFactory,
) -> None:
    with provider(answers_all) as (port, requests):
        config = f"""
[providers.own]
base_url = "http://127.0.0.1:{port}/v1"
client_credentials = true
headers = {{ "api-key" = {{ env = "SECRET_HEADER" }}, "x-team" = "red" }}
"""
        gateway = gateway_factory(CONFIG + config, env={"SECRET_HEADER": "the-gateways-own"})
        assert get(gateway, "/own/v1/x", key="somebodys-own").status == 200
        assert get(gateway, "/own/v1/x").status == 200
    theirs, ours = (request.lower() for request in requests)
    assert b"the-gateways-own" not in theirs
    assert b"x-team: red" in theirs
    assert b"api-key: the-gateways-own" in ours


def test_no_web_page_may_read_the_metrics(gateway: Gateway) -> None:
    request = raw.request(
        gateway.port, "GET", "/metrics", headers=(("Origin", "https://any.example"),)
    )
    answer = raw.exchange(gateway.port, request)
    assert (answer.status, answer.header("access-control-allow-origin")) == (200, None)


@pytest.mark.parametrize(
    ("target", "kind", "body"),
    [
        (chat.PATH, "application/json", b'{"model":"llama-x","Model":"gpt-6-sol"}'),
        (chat.PATH, "application/json", b'{"model":"llama-x","MODEL":"gpt-6-sol"}'),
        (chat.PATH, "application/json", b'{"model":"llama-x","mode\\u004c":"gpt-6-sol"}'),
        ("/openai/v1/anything", "application/json", b'{"Model":"gpt-6-sol"}'),
        (
            "/openai/v1/chat/completions",
            "multipart/form-data; boundary=b",
            JSON_THEN_FORM,
        ),
        (
            "/openai/v1/anything",
            "multipart/form-data; boundary=b",
            b" " + JSON_THEN_FORM,
        ),
        ("/openai/v1/threads/runs", "application/json", b'{"assistant_id":"asst_1"}'),
        ("/openai/v1/threads/thread_1/runs", "application/json", b'{"assistant_id":"asst_1"}'),
        ("/v1/videos", "application/json", b'{"prompt":"a cat"}'),
        ("/openai/v1/fine_tuning/alpha/graders/run", "application/json", b'{"grader":{}}'),
        # OpenRouter tries these in place of `model`.
        (chat.PATH, "application/json", b'{"model":"llama-x","models":["llama-y","gpt-6-sol"]}'),
        ("/openai/v1/responses", "application/json", b'{"model":"llama-x","models":"gpt-6-sol"}'),
        (chat.PATH, "application/json", b'{"model":"llama-x","models":[],"models":["gpt-6-sol"]}'),
        # What comes after a semicolon is left out by some.
        ("/openai/v1/batches;x", "application/json", b'{"input_file_id":"file-1"}'),
        ("/openai/v1/threads/runs%3bx", "application/json", b'{"assistant_id":"asst_1"}'),
        (
            chat.PATH,
            "application/json; charset=utf-7",
            b'{"model":"llama-x","x":"+ACI-,+ACI-model+ACI-:+ACI-gpt-6-sol"}',
        ),
    ],
)
def test_a_narrow_key_hides_no_other_model(
    gateway: Gateway, simulator: Simulator, target: str, kind: str, body: bytes
) -> None:
    book = chat.mark()
    head = [
        f"POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}",
        f"Authorization: Bearer {gateway.secrets['narrow']}",
        f"Content-Type: {kind}\r\nx-sim-book: {book}\r\n\r\n",
    ]
    answer = raw.exchange(gateway.port, "\r\n".join(head).encode() + body)
    assert answer.status in (400, 403), answer.body
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_header_makes_another_method_of_it(
    gateway: Gateway, simulator: Simulator, header: str
) -> None:
    book = chat.mark()
    assert chat.call(gateway, book=book, headers=((header, "GET"),)).status == 400
    assert simulator.requests(book=book) == []
    assert chat.call(gateway, book=book, headers=((header, "post"),)).status == 200


# --- what is not counted ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_streams_use_is_counted_whatever_its_type_is_called(gateway: Gateway, kind: str) -> None:
    body = chat.body("gpt-6-sol", stream=True)
    head = (
        f"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    )
    head += f"Authorization: Bearer {gateway.secrets['web-app']}\r\n"
    head += f"Content-Type: {kind}\r\n\r\n" if kind else "\r\n"
    answer = raw.exchange(gateway.port, head.encode() + body)
    assert answer.status == 200
    assert b'"usage":{' not in answer.body.replace(b" ", b"")
    line = gateway.log_line(answer.header("x-request-id") or "")
    assert line["completion_tokens"] > 0


def test_the_provider_is_not_offered_a_coding_that_the_gateway_cannot_read(
    gateway: Gateway, simulator: Simulator
) -> None:
    for asked in ("*", "zstd, *;q=0.5"):
        book = chat.mark()
        assert chat.call(gateway, book=book, headers=(("Accept-Encoding", asked),)).status == 200
        (seen,) = simulator.requests(book=book)
        headers = {name.lower(): value for name, value in seen["headers"]}
        assert headers["accept-encoding"] == "identity"


# --- what takes a worker's time -----------------------------------------------------------------


def test_chunks_of_one_byte_do_not_delay_other_requests(gateway_factory: GatewayFactory) -> None:
    gateway = gateway_factory()
    head = (
        f"POST {chat.PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {gateway.secrets['web-app']}\r\n\r\n"
    )
    body = b"1\r\na\r\n" * 700_000 + b"0\r\n\r\n"
    with others_are_served(gateway):  # 2 s at once, were it not taken in turns
        answer = raw.exchange(gateway.port, head.encode() + body)
    assert answer.status == 400


def test_a_million_fields_do_not_delay_other_requests(gateway_factory: GatewayFactory) -> None:
    gateway = gateway_factory()
    fields = b",".join(b'"%x":1' % number for number in range(1_000_000))
    body = b'{"model":"m","x":"\\u0041",' + fields + b"}"
    with others_are_served(gateway):  # 4 s and 400 MB, were they all looked at
        answer = chat.call(gateway, body)
    assert (answer.status, chat.error(answer)["code"]) == (400, "invalid_body")
    many = b'{"model":"fast",' + fields[:20_000].rpartition(b",")[0] + b"}"
    assert chat.call(gateway, many).status == 400  # the alias would have to be changed in it


def test_concurrent_requests_for_the_models_are_one_request_to_the_provider(
    gateway_factory: GatewayFactory,
) -> None:
    with provider(answers_all) as (port, requests):
        config = f'[providers.asked]\nbase_url = "http://127.0.0.1:{port}/v1"\n'
        gateway = gateway_factory(CONFIG + config)
        with ThreadPoolExecutor(20) as callers:
            answers = callers.map(lambda _: get(gateway, "/v1/models").status, range(20))
            assert set(answers) == {200}
    assert len(requests) == 1


def test_a_client_that_pipelines_and_leaves_ends_the_providers_work(
    gateway: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    with chat.begin(gateway, book=book, orders="stall-before") as connection:
        simulator.wait_for(lambda seen: [r for r in seen if r["book"] == book])
        connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: simulator.requests(book=book)[0]["outcome"])


def test_it_may_open_as_many_files_as_its_environment_allows(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = min(hard, 300)

    class Gateway300(Gateway):
        def launch(self) -> subprocess.Popen[bytes]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
            try:
                return super().launch()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway300(config, keys=KEYS, env=PROVIDER_KEYS) as gateway:
        (worker,) = gateway.workers()
        limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
        found = next(line.split()[3] for line in limits if line.startswith("Max open files"))
        assert int(found) == min(hard, 65536)


# --- what is left behind ------------------------------------------------------------------------


def test_a_full_disk_under_stdout_costs_the_lines_and_nothing_else(simulator: Simulator) -> None:
    class FullDisk(Gateway):
        def launch(self) -> subprocess.Popen[bytes]:
            self.stdout_file = Path("/dev/full")
            return super().launch()

    config = CONFIG.replace("{simulator}", simulator.url)
    with FullDisk(config, keys=KEYS, env=PROVIDER_KEYS) as gateway:
        with raw.Connection(gateway.port) as connection:
            for stream in (False, True, False):
                answer = connection.send(chat.request(gateway, stream=stream)).read()
                assert (answer.status, answer.clean_end) == (200, True)
            assert connection.send(chat.request(gateway, b"{")).read().status == 400
        metrics = gateway.metrics()
        assert metrics.value("api_requests_unsettled") == 0
        assert metrics.value("requests_in_flight") == 0
        assert metrics.value("api_key_requests_total", outcome="completed") == 3
        assert gateway.stderr().count("request lines cannot be written") == 1
        gateway.assert_clean()


def test_a_thousand_mixed_calls_leave_nothing_behind(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory()
    (worker,) = gateway.workers()
    upload = (
        f"POST /openai/v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {gateway.secrets['narrow']}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ).encode()
    kinds = [
        chat.request(gateway),
        chat.request(gateway, stream=True),
        chat.request(gateway, b'{"model":'),
        chat.request(gateway, model="gpt-6-sol", key="narrow"),
        chat.request(gateway, key="sk-wr-unknown"),
        chat.request(gateway, orders="status=500"),
        chat.request(gateway, orders="cut=1", stream=True),
        chat.request(gateway, orders="reset=0"),
        chat.request(gateway, target="/nowhere/at/all"),
        raw.request(gateway.port, "HEAD", "/groq/openai/v1/models", key=gateway.secrets["web-app"]),
        raw.request(gateway.port, "GET", "/usage", key=gateway.secrets["web-app"]),
        upload,
    ]

    def call(request: bytes) -> None:
        with raw.Connection(gateway.port) as connection:
            connection.send(request).read(head_only=request.startswith(b"HEAD"))

    def open_files() -> int:
        return len(list(Path(f"/proc/{worker}/fd").iterdir()))

    for request in kinds * 3:
        call(request)
    eventually(lambda: simulator.stats()["open"] == 0)
    before = open_files()
    for request in kinds * 80:
        call(request)
    eventually(lambda: open_files() <= before + 2, what="the descriptors of before")
    metrics = gateway.metrics()
    assert metrics.value("requests_in_flight") == 0
    assert metrics.value("api_requests_unsettled") == 0
    left = {path.name[:8] for path in (gateway.directory / "tmp").iterdir()}
    assert left <= {"wrapper-"}  # the run's own, where there is no /dev/shm
    assert processes.children(worker) == []
