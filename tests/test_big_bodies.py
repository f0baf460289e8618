"""Large bodies flow through one worker without filling its memory or holding up anybody else.

What is large comes from curl and goes to the simulator, each a process of its own, so that what
is measured is the gateway. Health checks beside it are answered while it goes on.
"""

from __future__ import annotations

import hashlib
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from harness import chat, processes, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.fairness import health_checks
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually
from harness.programs import require

if TYPE_CHECKING:
    from harness.gateway import GatewayFactory
    from harness.simulator import Simulator

MIB = 1 << 20
SIZE = 100 * MIB
MOST_MEMORY = 40 * MIB
TRANSFERS = 4
# For the median health check beside a transfer: the part of the worker's time for the transfer. One
# that does not yield to other requests makes them wait for all of it.
MOST_PART = 0.25
LIMITS = "[server]\nmax_body_bytes = 100_000\nmax_upload_bytes = 300_000_000\n"


@pytest.fixture(scope="module")
def one_worker(simulator: Simulator) -> Iterator[Gateway]:
    """A gateway of one worker that has done a bit of everything, so that nothing is new to it."""
    config = LIMITS + CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, keys=KEYS, env=PROVIDER_KEYS) as running:
        key = running.secrets["web-app"]
        small = b"x" * MIB
        for _ in range(3):
            for target in ("/openai/v1/_echo", "/v1/_echo"):
                head = request(running, target, (("Content-Length", str(len(small))),))
                raw.exchange(running.port, head + small)
            raw.exchange(running.port, raw.request(running.port, "GET", "/v1/models", key=key))
            chat.call(running, stream=True)
        yield running
        running.assert_clean()


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 MiB that take no room on the disk."""
    path = tmp_path_factory.mktemp("big") / "zeros.bin"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def request(gateway: Gateway, target: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    return raw.request(
        gateway.port, "POST", target, key=gateway.secrets["web-app"], headers=headers
    )


def check(gateway: Gateway, command: list[str]) -> None:
    """Run the command some times, and hold against the limits what it does to the worker."""
    (worker,) = gateway.workers()
    processes.reset_peak(worker)
    idle, before = processes.memory(worker).rss, processes.cpu_seconds(worker)
    with health_checks(gateway) as waits:
        for _ in range(TRANSFERS):
            done = subprocess.run(command, capture_output=True, check=True, timeout=250)
            assert done.stdout == b"200 "
    each = (processes.cpu_seconds(worker) - before) / TRANSFERS
    memory = processes.memory(worker).peak - idle
    assert memory < MOST_MEMORY, f"{memory / MIB:.1f} MiB above idle"
    assert statistics.median(waits) < MOST_PART * each, (each, sorted(waits))


def curl(gateway: Gateway, target: str, *options: str) -> list[str]:
    return [
        require("curl"),
        *("--silent", "--output", "/dev/null", "--write-out", "%{http_code} "),
        *("--max-time", "240", "-H", f"Authorization: Bearer {gateway.secrets['web-app']}"),
        *options,
        gateway.url + target,
    ]


def uploads(gateway: Gateway, zeros: Path, book: str) -> dict[str, list[str]]:
    file = ("-F", f"file=@{zeros};type=application/octet-stream")
    tagged = ("-H", f"x-sim-book: {book}", "-H", "Expect:")
    return {
        "plain": curl(gateway, "/openai/v1/_echo", *tagged, "-T", str(zeros)),
        "chunked": curl(
            gateway, "/v1/_echo", *tagged, "-H", "Transfer-Encoding: chunked", "-T", str(zeros)
        ),
        "form": curl(gateway, "/openai/v1/_echo", *tagged, *file, "-F", "model=gpt-x"),
        "routed form": curl(gateway, "/v1/_echo", *tagged, *file, "-F", "model=fast"),
    }


@pytest.mark.parametrize("how", ["plain", "chunked", "form", "routed form"])
def test_a_large_upload_takes_little_memory_and_does_not_delay_others(
    one_worker: Gateway, simulator: Simulator, zeros: Path, how: str
) -> None:
    book = f"big-{uuid4()}"
    check(one_worker, uploads(one_worker, zeros, book)[how])
    for seen in simulator.requests(book=book):
        assert seen["body_length"] >= SIZE
        if how in ("plain", "chunked"):
            with zeros.open("rb") as file:
                assert seen["body_sha256"] == hashlib.file_digest(file, "sha256").hexdigest()


def test_a_large_download_takes_little_memory_and_does_not_delay_others(
    one_worker: Gateway,
) -> None:
    download = curl(one_worker, f"/openai/v1/_bytes/{SIZE}")
    check(one_worker, download)


def test_a_slow_reader_of_a_large_download_holds_no_memory(one_worker: Gateway) -> None:
    """What he does not take is not taken from the provider either."""
    (worker,) = one_worker.workers()
    processes.reset_peak(worker)
    idle = processes.memory(worker).rss
    with raw.Connection(one_worker.port) as connection:
        key = one_worker.secrets["web-app"]
        target = f"/openai/v1/_bytes/{SIZE}"
        connection.send(raw.request(one_worker.port, "GET", target, key=key))
        assert connection.read_head().status == 200
        eventually(lambda: one_worker.in_flight() >= 1)
        for _ in range(20):
            one_worker.get("/healthz")
        assert processes.memory(worker).peak - idle < MOST_MEMORY
        connection.reset()


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("target", "kind", "size", "status"),
    [
        ("/v1/embeddings", "application/json", 100_001, 413),
        ("/v1/chat/completions", "application/json", 100_001, 413),
        ("/openai/v1/_echo", "application/json", 100_001, 413),
        ("/openai/v1/_echo", "application/json", 100_000, 200),
        ("/openai/v1/_echo", "application/octet-stream", 100_001, 200),
        ("/v1/_echo", "audio/wav", 1_000_000, 200),
    ],
)
def test_json_has_a_small_limit_and_uploads_a_large_one(
    one_worker: Gateway, target: str, kind: str, size: int, status: int, chunked: bool
) -> None:
    body = b'{"a": "' + b"x" * (size - 9) + b'"}'
    how = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))
    head = request(one_worker, target, (("Content-Type", kind), how))
    if chunked:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    answer = raw.exchange(one_worker.port, head + body)
    assert answer.status == status
    if status == 413:
        assert json.loads(answer.body)["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("target", ["/openai/v1/_echo", "/v1/_echo"])
@pytest.mark.parametrize("kind", ["audio/wav", "multipart/form-data; boundary=b"])
def test_an_upload_over_its_limit_is_refused_before_it_is_read(
    one_worker: Gateway, simulator: Simulator, target: str, kind: str
) -> None:
    book = f"big-{uuid4()}"
    headers = (("Content-Type", kind), ("Content-Length", "300000001"), ("x-sim-book", book))
    answer = raw.exchange(one_worker.port, request(one_worker, target, headers))
    assert answer.status == 413
    assert simulator.requests(book=book) == []


def test_a_chunked_upload_over_its_limit_is_broken_off_and_never_looks_whole(
    one_worker: Gateway, simulator: Simulator
) -> None:
    before = one_worker.config_file.read_text()
    one_worker.reconfigure(before.replace("300_000_000", "200_000"))
    book = f"big-{uuid4()}"
    head = request(
        one_worker, "/openai/v1/_echo", (("Transfer-Encoding", "chunked"), ("x-sim-book", book))
    )
    body = b"%x\r\n%b\r\n" % (150_000, b"x" * 150_000) * 2 + b"0\r\n\r\n"
    answer = raw.exchange(one_worker.port, head + body)
    assert answer.status == 413
    simulator.wait_for(
        lambda found: [seen["outcome"] for seen in found if book in str(seen)] == ["aborted"]
    )
    one_worker.reconfigure(before)


def test_a_provider_that_refuses_an_upload_early_is_heard(one_worker: Gateway, zeros: Path) -> None:
    headers = ("-H", "x-sim: early-413", "-H", "Expect:")
    command = curl(one_worker, "/openai/v1/_echo", *headers, "-T", str(zeros))
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout == b"413 "


@pytest.mark.parametrize("target", ["/openai/v1/_echo", "/v1/_echo"])
@pytest.mark.parametrize(
    "kind", ["audio/wav", "application/json", "multipart/form-data; boundary=b"]
)
def test_a_body_shorter_than_it_said_is_refused(
    one_worker: Gateway, target: str, kind: str
) -> None:
    headers = (("Content-Type", kind), ("Content-Length", "1000"))
    with raw.Connection(one_worker.port) as connection:
        connection.send(request(one_worker, target, headers) + b'{"a": 1}')
        connection.socket.shutdown(1)
        answer = connection.read()
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "incomplete_body"


@pytest.mark.parametrize("target", ["/openai/v1/_echo", "/v1/chat/completions"])
def test_a_body_that_drips_is_cut_off_however_often_something_comes(
    impatient_gateway: Gateway, target: str
) -> None:
    headers = (("Content-Type", "application/json"), ("Content-Length", "1000"))
    head = request(impatient_gateway, target, headers)
    began = time.monotonic()
    with raw.Connection(impatient_gateway.port) as connection:
        connection.send(head)
        connection.socket.settimeout(0.2)
        while time.monotonic() - began < PATIENCE:
            connection.send(b" ")
            try:
                answer = connection.read()
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("it goes on")
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "request_timeout")


def test_a_client_that_breaks_off_an_upload_which_the_provider_does_not_take_is_noticed(
    gateway_factory: GatewayFactory,
) -> None:
    """A reset, while bytes of theirs are still unread. (A polite end would stand behind them.)"""
    with socket.create_server(("127.0.0.1", 0)) as provider:  # it accepts nothing, reads nothing
        base = f"http://127.0.0.1:{provider.getsockname()[1]}/v1"
        gateway = gateway_factory(
            f'{LIMITS}[providers.far]\nbase_url = "{base}"\nfirst_byte_timeout = 600\n'
        )
        with raw.Connection(gateway.port) as connection:
            connection.send(request(gateway, "/far/v1/files", (("Content-Length", str(SIZE)),)))
            connection.socket.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.socket.sendall(bytes(SIZE))
            connection.reset()
        [line] = gateway.log_lines(lambda line: line["provider"] == "far")
        assert line["outcome"] == "client_abort"
