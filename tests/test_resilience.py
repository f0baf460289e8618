"""One party cannot stop the others: what a worker does for one of them never holds up the rest.

Each test runs an attack that would take a worker for seconds, and asks the same worker something
small all the while. A worker that does the work in turns answers within some ten milliseconds; one
that does not answers when the attack is over. The limit (`harness.fairness`) lies between the two,
far from both.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, processes, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.fairness import others_are_served
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually
from wrapper.metering import Usage
from wrapper.store import Entry, open_store
from wrapper.telemetry.labels import MAX_KEYS, MAX_SERIES

if TYPE_CHECKING:
    from harness.simulator import Simulator

ATTACK = PATIENCE  # seconds; a gateway that bounds it ends it earlier
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"

Talk = Callable[[Any], None]


class Provider:
    """A provider that reads one request of each connection and then does as `talk` does."""

    def __init__(self, port: int) -> None:
        self.talk: Talk = lambda _: None
        self.config = f"""
[providers.odd]
base_url = "http://127.0.0.1:{port}/v1"
total_timeout = 1

[providers.silent]
base_url = "http://127.0.0.1:{port}/v1"
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                received = b""
                while b"\r\n\r\n" not in received:
                    received += self.request.recv(65536) or b"\r\n\r\n"
                made.talk(self.request)

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 64
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        made = Provider(server.server_address[1])
        try:
            yield made
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture(scope="module")
def attacked(provider: Provider, simulator: Simulator) -> Iterator[Gateway]:
    """One worker with `provider` beside the usual ones."""
    server = "[server]\nbody_memory_bytes = 17_000_000\n"
    config = server + CONFIG.replace("{simulator}", simulator.url) + provider.config
    keys: dict[str, Any] = {**KEYS, "second": {}, "third": {}}
    with Gateway(config, keys=keys, env=PROVIDER_KEYS) as gateway:
        yield gateway
        gateway.assert_clean()


def endless(head: bytes, piece: bytes) -> Talk:
    """Sends `head`, and `piece` again and again, until the other side leaves or ATTACK is over."""
    pieces = piece * max(1, 200_000 // len(piece))

    def talk(sock: Any) -> None:
        sock.sendall(head)
        end = time.monotonic() + ATTACK
        while time.monotonic() < end:
            sock.sendall(pieces)

    return talk


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_and_drop(gateway: Gateway, request: bytes) -> None:
    """Send `request` and read whatever comes, until the gateway closes the connection."""
    with raw.Connection(gateway.port) as connection:
        connection.send(request)
        with contextlib.suppress(ConnectionError):
            assert connection.is_closed_by_peer()


def asked(gateway: Gateway, body: bytes | None = None) -> bytes:
    """A streamed chat at the odd provider, which closes the connection when it is over."""
    body = chat.body("m", stream=True) if body is None else body
    return raw.request(
        gateway.port,
        "POST",
        "/odd/v1/chat/completions",
        body,
        key=gateway.secrets["web-app"],
        headers=(("Connection", "close"),),
    )


# --- a provider ---------------------------------------------------------------------------------

USAGE_ONLY = (
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        pytest.param(EVENTS + b"\r\n", USAGE_ONLY, id="usage chunks that are taken out"),
        pytest.param(EVENTS + CHUNKED, chunk(b"a"), id="chunks of one byte"),
        pytest.param(EVENTS + b"\r\n", b"\n", id="blank lines"),
    ],
)
def test_an_endless_response_delays_nobody_and_ends_at_its_deadline(
    attacked: Gateway, provider: Provider, head: bytes, piece: bytes
) -> None:
    provider.talk = endless(head, piece)
    before = len(list(attacked.log()))
    with others_are_served(attacked):
        read_and_drop(attacked, asked(attacked))
    lines = attacked.log_lines(lambda line: line["provider"] == "odd", count=1)
    assert len(list(attacked.log())) > before
    assert lines[-1]["duration_ms"] < ATTACK / 2 * 1000  # not what the provider pleased


def test_a_compressed_stream_that_unfolds_delays_nobody(
    attacked: Gateway, provider: Provider
) -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"a":[1,1]}}\n\n'
    packed = gzip.compress(event * 400_000)

    def talk(sock: Any) -> None:
        head = EVENTS + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        sock.sendall(head + packed)

    provider.talk = talk
    with others_are_served(attacked):
        read_and_drop(attacked, asked(attacked))


def test_an_endless_list_of_models_delays_nobody(attacked: Gateway, provider: Provider) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + CHUNKED
    provider.talk = endless(head, chunk(b" "))
    request = raw.request(attacked.port, "GET", "/v1/models", key=attacked.secrets["web-app"])
    with others_are_served(attacked):
        answer = raw.exchange(attacked.port, request)
    assert answer.status == 200


# --- a key owner --------------------------------------------------------------------------------


def test_a_body_of_millions_of_values_delays_nobody(attacked: Gateway) -> None:
    values = b",".join([b"{}"] * 4_000_000)
    body = b'{"model":"llama-x","tools":[' + values + b"]}"
    (worker,) = attacked.workers()
    processes.reset_peak(worker)
    before = processes.memory(worker).rss
    with others_are_served(attacked):
        answer = chat.call(attacked, body, key="narrow")
    assert (answer.status, chat.error(answer)["param"]) == (400, "tools")
    assert processes.memory(worker).peak - before < 8 * len(body)  # 40 times, were all looked into


def test_bodies_are_held_within_a_budget_of_memory(attacked: Gateway, provider: Provider) -> None:
    release = threading.Event()

    def talk(sock: Any) -> None:
        sock.settimeout(0.05)
        while not release.is_set():
            with contextlib.suppress(TimeoutError):
                sock.recv(1 << 20)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    provider.talk = talk
    (worker,) = attacked.workers()
    processes.reset_peak(worker)
    before = processes.memory(worker).rss
    body = b'{"model":"m","x":"' + b"a" * (4 << 20) + b'"}'
    with contextlib.ExitStack() as held:

        def begin(key: str) -> raw.Connection:
            asked = raw.request(
                attacked.port,
                "POST",
                "/silent/v1/chat/completions",
                body,
                key=attacked.secrets[key],
            )
            return held.enter_context(raw.Connection(attacked.port)).send(asked)

        waiting = [begin("web-app") for _ in range(2)]
        eventually(lambda: attacked.in_flight() == 2, what="two bodies are held")
        refused = begin("web-app").read()  # its part is used up
        assert (refused.status, chat.error(refused)["code"]) == (503, "overloaded")
        assert refused.header("retry-after") is not None
        waiting += [begin("second"), begin("second")]
        eventually(lambda: attacked.in_flight() == 4, what="another key has its own part")
        assert begin("third").read().status == 503  # the worker's budget is
        assert chat.call(attacked).status == 200  # small bodies are not counted
        release.set()
        assert [connection.read().status for connection in waiting] == [200] * 4
        assert begin("web-app").read().status == 200  # the memory has been given back
    assert processes.memory(worker).peak - before < 10 * len(body)


# --- an operator --------------------------------------------------------------------------------


def test_thousands_of_keys_are_read_beside_the_requests(attacked: Gateway) -> None:
    many = "".join(
        f'[keys.many{n}]\nsha256 = "{hashlib.sha256(b"%d" % n).hexdigest()}"\n' for n in range(9000)
    )
    before, text = attacked.reloads(), attacked.keys_file.read_text()
    with others_are_served(attacked):
        attacked.write_keys(text + many)
        attacked.wait_for_reload(before)
    assert "9005 keys" in attacked.stderr()
    assert chat.call(attacked).status == 200


# --- growth -------------------------------------------------------------------------------------


def test_hundreds_of_keys_with_twenty_models_are_as_many_series_as_a_scrape_has_time_for(
    simulator: Simulator, tmp_path: Path
) -> None:
    usage = Usage(3, 4, 7)
    store = open_store(f"sqlite:///{tmp_path / 'usage.db'}")
    for key in range(300):
        for model in range(20):
            store.settle(Entry(0.0, f"key-{key}", "groq", f"m-{model}", "completed", usage, 5))
    store.close()
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {**PROVIDER_KEYS, "WRAPPER_STORE": f"sqlite:///{tmp_path / 'usage.db'}"}
    with Gateway(config, workers=2, keys=KEYS, env=env) as gateway:
        metrics = gateway.metrics()
        _, text = gateway.get("/metrics")
        assert text.count(b"\napi_key_requests_total{") < MAX_SERIES + MAX_KEYS + 10
        assert metrics.value("api_key_requests_total") == 6_000
        assert metrics.value("api_key_requests_total", api_key="key-7") == 20
        assert metrics.value("token_usage_total") == 42_000
