"""Start and stop: configuration problems are listed, open requests end with an error event."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually
from wrapper.config.loading import default_workers

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import GatewayFactory
    from harness.raw import Answer
    from harness.simulator import Simulator

GRACE = 10  # seconds; the gateway ends streams itself five seconds before


class Calls:
    """Requests that run beside the test, each in a thread of its own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._threads: list[threading.Thread] = []
        self.answers: list[Answer] = []

    def start(self, **how: Any) -> None:
        def run() -> None:
            self.answers.append(chat.call(self._gateway, **how))

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def under_way(self) -> None:
        count = len(self._threads)
        eventually(
            lambda: self._gateway.in_flight() >= count,
            what=f"{count} calls in flight",
        )

    def finished(self) -> list[Answer]:
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.answers


# --- stop -------------------------------------------------------------------------------------


def test_sigterm_lets_calls_in_flight_finish(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory(workers=2, env={"GRACEFUL_TIMEOUT": "120"})
    calls, book = Calls(gateway), chat.mark()
    for n in range(6):
        calls.start(orders="events=80; gap=0.05", book=book, stream=True)
        calls.start(orders=f"delay=4.{n}", book=book)
    eventually(lambda: len(simulator.requests(book=book)) == 12, what="all at the provider")
    assert gateway.stop() == 0
    answers = calls.finished()
    assert [answer.status for answer in answers] == [200] * 12
    assert all(answer.clean_end for answer in answers)
    streams = [a for a in answers if a.header("content-type") == "text/event-stream"]
    assert len(streams) == 6
    assert {chat.events(answer.body)[-1] for answer in streams} == {b"[DONE]"}
    assert {line["outcome"] for line in gateway.log() if line["path"] == chat.PATH} == {"completed"}


def test_requests_that_do_not_finish_in_time_end_with_an_error_event(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory(env={"GRACEFUL_TIMEOUT": str(GRACE)})
    book = chat.mark()
    calls = Calls(gateway)
    calls.start(orders="events=10000; gap=0.05", book=book, stream=True)
    calls.start(orders="stall=3; events=9", book=book, stream=True)
    calls.start(orders="stall-before", book=book)
    calls.under_way()
    eventually(lambda: len(simulator.requests(book=book)) == 3, what="all at the provider")
    assert gateway.stop() == 0
    *streams, whole = sorted(calls.finished(), key=lambda answer: answer.status)
    for stream in streams:
        assert stream.status == 200
        assert not stream.clean_end
        last = json.loads(chat.events(stream.body)[-1])["error"]
        assert (last["type"], last["code"]) == ("api_error", "upstream_interrupted")
        assert "restart" in last["message"]
    assert whole.status == 503
    assert whole.header("retry-after")
    assert chat.error(whole)["type"] == "api_error"
    assert [line["outcome"] for line in gateway.log() if line["path"] == chat.PATH] == [
        "drained"
    ] * 3
    eventually(
        lambda: all(r["outcome"] == "aborted" for r in simulator.requests(book=book)),
        what="the provider's work ended",
    )
    assert "graceful timeout" not in gateway.stderr()


def test_ctrl_c_ends_open_requests_at_once_with_an_error_event_and_records_them(
    gateway_factory: GatewayFactory, simulator: Simulator
) -> None:
    gateway = gateway_factory(workers=2, env={"GRACEFUL_TIMEOUT": "60"})
    book = chat.mark()
    calls = Calls(gateway)
    for _ in range(4):
        calls.start(orders="events=10000; gap=0.05", book=book, stream=True)
    calls.start(orders="stall-before", book=book)
    calls.under_way()
    eventually(lambda: len(simulator.requests(book=book)) == 5, what="all at the provider")
    os.killpg(gateway.pid, signal.SIGINT)  # as a terminal does it: to every process
    assert gateway.process.wait(PATIENCE) == 0
    answers = calls.finished()
    assert len(answers) == 5
    for answer in answers:
        if answer.status == 200:
            assert not answer.clean_end
            last = json.loads(chat.events(answer.body)[-1])["error"]
            assert last["code"] == "upstream_interrupted"
        else:  # no byte of the response had arrived
            assert answer.status == 503
            assert chat.error(answer)["code"] == "overloaded"
    assert [line["outcome"] for line in gateway.log() if line["path"] == chat.PATH] == [
        "drained"
    ] * 5
    assert "Traceback" not in gateway.stderr()
    assert "failed with" not in gateway.stderr()


def test_an_upload_that_never_ends_does_not_delay_the_stop(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(env={"GRACEFUL_TIMEOUT": str(GRACE)})
    asked = chat.request(gateway)
    with raw.Connection(gateway.port).send(asked[:-30]) as connection:
        eventually(lambda: gateway.in_flight() == 1, what="in flight")
        assert gateway.stop() == 0
        answer = connection.read()
    assert answer.status == 503
    assert chat.error(answer)["code"] == "overloaded"


def test_a_503_of_the_stop_closes_the_connection(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(env={"GRACEFUL_TIMEOUT": str(GRACE)})
    first, second = chat.request(gateway, orders="stall-before"), chat.request(gateway)
    stopping = threading.Thread(target=gateway.stop)
    with raw.Connection(gateway.port).send(first + second) as connection:
        eventually(lambda: gateway.in_flight() == 1, what="in flight")
        stopping.start()
        answer = connection.read()
        assert answer.status == 503
        assert answer.header("connection") == "close"
        assert connection.is_closed_by_peer()
    stopping.join()
    assert gateway.process.returncode == 0


def test_a_killed_worker_is_replaced_and_the_others_go_on(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory(workers=2)
    calls = Calls(gateway)
    before = set(gateway.workers())
    os.kill(gateway.workers()[0], signal.SIGKILL)
    eventually(lambda: len(set(gateway.workers()) - before) == 1, what="a new one")
    for _ in range(8):
        calls.start()
    assert [answer.status for answer in calls.finished()] == [200] * 8


# --- start ------------------------------------------------------------------------------------


SERVE = ("-m", "wrapper", "serve")


def refused(config: str, *command: str, **env: str) -> str:
    """The stderr of a gateway that cannot start; it exits with 1 and without a traceback."""
    with Gateway.prepared(config, keys=KEYS, env={**PROVIDER_KEYS, **env}) as gateway:
        status = gateway.launch(*command).wait(PATIENCE)
        said = gateway.stderr()
    assert status == 1, said
    assert "Traceback" not in said
    assert "Listening" not in said
    return said


def test_a_gateway_that_cannot_start_lists_every_problem() -> None:
    config = """\
[server]
max_body_bytes = "many"
colour = "blue"

[providers.groq]
base_url = "groq.example"
api_key = "gsk_a-literal-secret"

[[routes]]
model = "*"
targets = ["grok"]
"""
    said = refused(config)
    for text in (
        "server.max_body_bytes",
        "server.colour",
        "providers.groq.base_url",
        "providers.groq.api_key",
        "grok",
        "gateway.toml",
    ):
        assert text in said
    assert "gsk_a-literal-secret" not in said
    assert "[ERROR]" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("WEB_CONCURRENCY", "0"),
        ("GRACEFUL_TIMEOUT", "soon"),
        ("LOG_LEVEL", "loud"),
        ("WRAPPER_STORE", "mysql://x"),
        ("WRAPPER_CONFIG", "/nowhere/gateway.toml"),
    ],
)
def test_a_mistake_in_the_environment_is_reported_like_any_other(
    simulator: Simulator, name: str, value: str
) -> None:
    said = refused(CONFIG.replace("{simulator}", simulator.url), **{name: value})
    assert name in said or value in said


@pytest.mark.parametrize("value", ["x", "4.0", "0"])
def test_a_number_of_workers_that_gunicorn_cannot_read_is_reported(
    simulator: Simulator, value: str
) -> None:
    said = refused(CONFIG.replace("{simulator}", simulator.url), *SERVE, WEB_CONCURRENCY=value)
    wanted = "write an integer from 1 to 256"
    assert said == f"environment: WEB_CONCURRENCY: is '{value}'; {wanted}\n"


def test_an_empty_number_of_workers_counts_as_not_set(simulator: Simulator) -> None:
    """As .env.example has it, and what reads such a file for the gateway passes it on."""
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {**PROVIDER_KEYS, "WEB_CONCURRENCY": ""}
    with Gateway.prepared(config, keys=KEYS, env=env) as gateway:
        gateway.start(*SERVE)
        assert chat.call(gateway).status == 200
        eventually(lambda: len(gateway.workers()) == default_workers(), what="the default number")
        assert gateway.stop() == 0


def test_a_store_that_cannot_be_opened_is_reported(simulator: Simulator, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = f"sqlite:///{tmp_path / 'file' / 'usage.db'}"
    said = refused(CONFIG.replace("{simulator}", simulator.url), WRAPPER_STORE=store)
    assert "usage.db" in said


def test_without_any_credential_it_is_alive_but_not_ready(simulator: Simulator) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    with Gateway(config, keys=KEYS, ready_path="/healthz") as gateway:
        assert gateway.get("/healthz")[0] == 200
        status, body = gateway.get("/readyz")
        assert status == 503
        assert json.loads(body)["status"] == "not ready"
        answer = chat.call(gateway)
        assert (answer.status, chat.error(answer)["code"]) == (502, "upstream_auth")
        assert "GROQ_API_KEY" in chat.error(answer)["message"]
        assert "no provider has a credential" in gateway.stderr()


def test_a_keys_file_that_is_not_there_is_told_at_the_start(simulator: Simulator) -> None:
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {**PROVIDER_KEYS, "WRAPPER_KEYS": "/nowhere/keys.toml"}
    with Gateway(config, env=env) as gateway:
        said = gateway.stderr()
    assert "keys file /nowhere/keys.toml does not exist: every key is refused" in said


def test_health_needs_no_key_and_reveals_no_details(gateway: Gateway) -> None:
    assert gateway.get("/healthz") == (200, b'{"status":"ok"}')
    status, body = gateway.get("/readyz")
    assert status == 200
    assert json.loads(body)["status"] == "ready"


def test_nothing_is_left_in_the_temporary_directory_after_a_clean_stop(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory()
    assert chat.call(gateway).status == 200
    run = gateway.run_directory()
    assert list(run.glob("metrics/*.db"))
    assert gateway.stop() == 0
    assert not run.exists()
    assert list((gateway.directory / "tmp").iterdir()) == []


def test_a_start_removes_what_a_killed_run_left_and_nothing_else(
    gateway_factory: GatewayFactory,
) -> None:
    def run_of(gateway: Gateway) -> Path:
        """The file of its run that is locked while it lives."""
        return gateway.run_directory() / "alive"

    going_on, killed = gateway_factory(), gateway_factory()
    kept, left = run_of(going_on), run_of(killed)
    killed.kill()
    assert left.exists()
    killed.restart()
    assert not left.exists()
    assert kept.exists()


def test_usage_that_cannot_be_written_at_a_stop_is_written_by_the_next_start(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory()
    path = gateway.directory / "usage.db"
    with sqlite3.connect(path, isolation_level=None) as held:
        assert chat.call(gateway).status == 200
        held.execute("BEGIN EXCLUSIVE")
        assert chat.call(gateway).status == 200
        assert gateway.stop() == 0
    held.close()
    assert "Traceback" not in gateway.stderr()
    gateway.restart()
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT sum(requests) FROM usage").fetchone() == (2,)
    reader.close()


def test_a_worker_notices_the_end_of_its_first_child(gateway_factory: GatewayFactory) -> None:
    """The kernel drops SIGCHLD (proc(5): SigCgt) where no handler is there before the fork."""
    gateway = gateway_factory(workers=2)

    def catches(worker: int) -> bool:
        status = Path(f"/proc/{worker}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGCHLD - 1) & 1)

    name = "gateway_worker_resident_memory_bytes"
    eventually(
        lambda: {int(w) for (w,) in gateway.metrics().by(name, "worker")} == {*gateway.workers()},
        what="both workers have started",
    )
    # One of them has had a child, for the scrape; the other one has not.
    assert all(map(catches, gateway.workers()))
