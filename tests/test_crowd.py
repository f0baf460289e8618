"""A worker with few files and more connections than it has places for: short requests are served.

The limit of open files makes the worker small, so that a small crowd fills it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from harness import chat, processes, raw
from harness.defaults import CONFIG, KEYS, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.poll import PATIENCE, eventually

if TYPE_CHECKING:
    from harness.gateway import GatewayFactory
    from harness.simulator import Simulator

FILES = 200
PLACES = 54  # for requests at once, with so many files
CROWD = 120  # more than all connections of the worker, fewer than its queue takes


class Guarded(Gateway):
    """A gateway that is started by another program, which limits it."""

    guard: tuple[str, ...] = ()

    def launch(self) -> subprocess.Popen[bytes]:
        with mock.patch.object(processes, "start", self._start):
            return super().launch()

    def _start(self, command: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
        return START([*self.guard, *command], **how)


START = processes.start


class FewFiles(Guarded):
    guard = ("prlimit", f"--nofile={FILES}:{FILES}", "--")


class LittleSharedMemory(Guarded):
    """In a mount namespace of its own."""

    mount = "mount -t tmpfs -o size=600k none /dev/shm && exec"
    guard = ("unshare", "--mount", "sh", "-c", mount + ' "$@"', "sh")


class LittleVolume(Guarded):
    """Uploads and the ledger are on one volume of 64 MiB, as in a small container."""

    @property
    def guard(self) -> tuple[str, ...]:  # type: ignore[override]
        mount = f"mount -t tmpfs -o size=64m none {self.directory / 'tmp'} && exec"
        return ("unshare", "--mount", "sh", "-c", mount + ' "$@"', "sh")


@pytest.fixture(scope="module")
def small(simulator: Simulator) -> Iterator[Gateway]:
    config = CONFIG.replace("{simulator}", simulator.url)
    with FewFiles(config, keys=KEYS, env=PROVIDER_KEYS) as gateway:
        yield gateway
        gateway.assert_clean()


def idle(connection: raw.Connection, port: int) -> None:
    """Has made a request, and keeps the connection."""
    connection.send(raw.request(port, "GET", "/healthz"))


def slow_head(connection: raw.Connection, port: int) -> None:
    connection.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")


def slow_reader(connection: raw.Connection, port: int) -> None:
    """Asks for a page of a megabyte and reads nothing of it."""
    connection.send(raw.request(port, "GET", "/docs/swagger-ui-bundle.js") * 4)


@pytest.mark.parametrize("attack", [idle, slow_head, slow_reader])
def test_a_crowd_does_not_keep_short_requests_and_streams_from_being_served(
    small: Gateway, attack: Callable[[raw.Connection, int], None]
) -> None:
    with contextlib.ExitStack() as held:
        stream = chat.begin(small, orders="events=100; gap=0.01", stream=True)
        answer = held.enter_context(stream).read_head()
        for _ in range(CROWD):
            attack(held.enter_context(raw.Connection(small.port)), small.port)
        for path in ("/healthz", "/readyz", "/metrics"):
            began = time.monotonic()
            assert small.get(path, timeout=30)[0] == 200
            assert time.monotonic() - began < 14  # 15 s and more, were nobody sent away
        assert chat.call(small).status == 200
        for _ in stream.body(answer):
            pass
        assert answer.clean_end


def test_a_client_that_does_not_read_takes_little_memory(
    gateway_factory: GatewayFactory,
) -> None:
    gateway = gateway_factory()
    (worker,) = gateway.workers()
    page = raw.request(gateway.port, "GET", "/docs/swagger-ui-bundle.js")
    assert gateway.exchange(page).status == 200
    before = processes.memory(worker).rss
    with contextlib.ExitStack() as held:
        readers = [held.enter_context(raw.Connection(gateway.port)) for _ in range(50)]
        for reader in readers:
            reader.send(page * 4)
        ports = {reader.socket.getsockname()[1] for reader in readers}
        eventually(
            lambda: all(waiting(gateway.port).get(port, 0) > 0 for port in ports),
            what="the system keeps a part of each response",
        )
        for _ in range(10):
            assert gateway.get("/healthz", timeout=30)[0] == 200
        # Without a bound the system keeps some megabytes, and the worker a copy of the page.
        assert max(waiting(gateway.port)[port] for port in ports) < 1 << 20
        assert processes.memory(worker).rss - before < 50 * (1 << 20) / 2


def test_a_stream_takes_less_than_30_kib(gateway_factory: GatewayFactory) -> None:
    """With everything on: limits of the key, metering, log. It takes 20, and 4 more with each page
    that the stack of its greenlet grows by: so deep is no request while it connects.
    """
    limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9, "budget_usd": 1000}
    gateway = gateway_factory(keys={"web-app": limits})
    (worker,) = gateway.workers()

    def streams(held: contextlib.ExitStack, count: int) -> None:
        orders = "events=2; stall=1"
        opened = [
            held.enter_context(chat.begin(gateway, orders=orders, stream=True, deadline=60))
            for _ in range(count)
        ]
        assert {each.read_head().status for each in opened} == {200}

    with contextlib.ExitStack() as held:
        streams(held, 50)  # what the first ones need once
        before = processes.memory(worker).rss
        streams(held, 300)
        assert (processes.memory(worker).rss - before) / 300 < 30 << 10


# gunicorn's configuration as it is shipped, and a worker that collects garbage when it is asked to.
COUNTING = """
__file__ = {shipped!r}
exec(compile(open(__file__).read(), __file__, "exec"))
import gc, gevent
initialized, directory = post_worker_init, Path({directory!r})

def count():
    while True:
        gevent.sleep(0.02)
        if (directory / "asked").exists():
            found = gc.collect()
            (directory / "asked").unlink()
            (directory / "found.new").write_text(str(found))
            (directory / "found.new").rename(directory / "found")

def post_worker_init(worker):
    initialized(worker)
    gc.disable()
    gevent.spawn(count)
"""


class Counting(Gateway):
    def launch(self) -> subprocess.Popen[bytes]:
        def start(command: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
            at = command.index("-c") + 1
            own = self.directory / "counting.py"
            own.write_text(COUNTING.format(shipped=command[at], directory=str(self.directory)))
            return START([*command[:at], str(own), *command[at + 1 :]], **how)

        with mock.patch.object(processes, "start", start):
            return super().launch()

    def garbage(self) -> int:
        """The objects in cycles that nothing refers to."""
        (self.directory / "found").unlink(missing_ok=True)
        (self.directory / "asked").touch()
        return int(eventually((self.directory / "found").read_text, retry_on=(OSError,)))


def test_requests_leave_nothing_for_the_garbage_collector(simulator: Simulator) -> None:
    """However they end: full collections are rare (`server.garbage`)."""
    config, count = CONFIG.replace("{simulator}", simulator.url), 10
    limited = {"requests_per_minute": 10**6, "budget_usd": 1000}
    with Counting(config, keys={**KEYS, "limited": limited}, env=PROVIDER_KEYS) as gateway:

        def abort() -> None:
            orders = "events=2; stall=1"
            with chat.begin(gateway, orders=orders, stream=True, deadline=60) as connection:
                assert connection.read_head().status == 200

        kinds: dict[str, Callable[[], object]] = {
            "unary": lambda: chat.call(gateway),
            "stream": lambda: chat.call(gateway, stream=True),
            "limits": lambda: chat.call(gateway, stream=True, key="limited"),
            "wrong key": lambda: chat.call(gateway, key="none"),
            "no address": lambda: chat.call(gateway, target="/v1/none"),
            "provider's error": lambda: chat.call(gateway, orders="status=429"),
            "breaks off": lambda: chat.call(gateway, orders="events=9; cut=3", stream=True),
            "client leaves": abort,
        }
        for call in kinds.values():  # what the first ones leave, once
            call()
        for kind, call in kinds.items():
            gateway.garbage()
            for _ in range(count):
                call()
            if kind == "client leaves":
                eventually(lambda: gateway.metrics().value("requests_in_flight") == 0)
            assert gateway.garbage() < 4 * count, kind  # one request was 16 and more


def waiting(port: int) -> dict[int, int]:
    """The bytes that the system keeps for the clients of a port, by the client's port: proc(5)."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if int(local.partition(":")[2], 16) == port:
            found[int(remote.partition(":")[2], 16)] = int(queues.partition(":")[0], 16)
    return found


def test_as_many_requests_as_the_files_allow_are_served_and_the_rest_refused(
    small: Gateway, simulator: Simulator
) -> None:
    told = [line for line in small.stderr().splitlines() if "open file limit" in line]
    assert len(told) == 1
    assert f"at most {PLACES} requests" in told[0]
    book = chat.mark()
    with contextlib.ExitStack() as held:
        for _ in range(PLACES):
            held.enter_context(chat.begin(small, orders="stall-before", book=book))
        eventually(lambda: len(simulator.requests(book=book)) == PLACES, what="requests under way")
        for _ in range(20):
            refused = held.enter_context(chat.begin(small)).read()
            assert (refused.status, chat.error(refused)["code"]) == (503, "overloaded")
    eventually(lambda: chat.call(small).status == 200, what="places are free again")
    assert all(line.startswith(("{", "[")) for line in small.stderr().splitlines())


def test_a_stderr_that_nobody_reads_costs_lines_and_nothing_else(simulator: Simulator) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)

    class Unread(Gateway):
        def launch(self) -> subprocess.Popen[bytes]:
            self.stderr_file = self.directory / "stderr"
            self.stderr_file.symlink_to(f"/proc/{os.getpid()}/fd/{writing}")
            return super().launch()

        def stderr(self) -> str:
            return ""

    config = CONFIG.replace("{simulator}", simulator.url)
    try:
        with Unread(config, keys=KEYS, env={**PROVIDER_KEYS, "LOG_LEVEL": "debug"}) as gateway:
            for _ in range(5):
                assert chat.call(gateway).status == 200
            lost = {"stream": "stderr"}
            eventually(lambda: gateway.metrics().value("log_lines_lost_total", **lost) > 0)
            os.read(reading, 1 << 20)
            gateway.get("/healthz")
            text = eventually(lambda: os.read(reading, 1 << 20).decode(), what="it is told")
            assert "lines of this log were lost" in text
    finally:
        os.close(reading)
        os.close(writing)


def test_the_watchdog_measures_a_standstill_and_shows_the_stack() -> None:
    code = """
from gevent import monkey
monkey.patch_all()
import time
import gevent
from gevent.monkey import get_original
from wrapper.server.watchdog import Watchdog

lags = []
Watchdog(lags.append, lambda late: None).start()

def stands_still():
    get_original("time", "sleep")(3.0)

gevent.sleep(0.3)
stands_still()
gevent.sleep(0.3)
print(max(lags))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        cwd=processes.ROOT,
    )
    assert float(done.stdout) > 0.5
    (line,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert line["message"].startswith("event loop blocked")
    assert any("stands_still" in frame for frame in line["stack"])


def test_every_worker_measures_its_event_loop(small: Gateway) -> None:
    eventually(
        lambda: small.metrics().value("event_loop_lag_seconds_count") > 1,
        what="measurements of the event loop",
    )


def test_uploads_leave_room_for_the_ledger(simulator: Simulator, tmp_path: Path) -> None:
    check = ["unshare", "--mount", "true"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    config = CONFIG.replace("{simulator}", simulator.url)
    env = {**PROVIDER_KEYS, "WRAPPER_STORE": f"sqlite:///{tmp_path / 'tmp' / 'usage.db'}"}
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with LittleVolume(config, keys=KEYS, env=env, directory=tmp_path) as gateway:
        key = gateway.secrets["web-app"]
        headers = (
            ("Content-Type", "multipart/form-data; boundary=b"),
            ("Content-Length", str(63 << 20)),
        )
        target = "/v1/audio/transcriptions"
        asked = raw.request(gateway.port, "POST", target, key=key, headers=headers)
        with raw.Connection(gateway.port) as upload:  # its model would come after the file
            refused = upload.send(asked + form + b"x" * 100_000).read()
        assert (refused.status, chat.error(refused)["code"]) == (503, "overloaded")
        assert refused.header("retry-after") is not None
        for _ in range(5):
            assert chat.call(gateway).status == 200
        gateway.idle()
        _, body = gateway.get("/usage", headers={"Authorization": f"Bearer {key}"})
        assert json.loads(body)["totals"]["prompt_tokens"] > 0


def test_full_shared_memory_costs_metrics_and_nothing_else(simulator: Simulator) -> None:
    check = [*LittleSharedMemory.guard, "true"]
    if subprocess.run(check, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    config = CONFIG.replace("{simulator}", simulator.url)
    keys: dict[str, Any] = {f"key-{number}-{'x' * 50}": {} for number in range(40)}
    with LittleSharedMemory(config, keys=keys, env=PROVIDER_KEYS) as gateway:
        (worker,) = gateway.workers()
        for name in keys:
            for model in ("llama-a", "llama-b", "llama-c"):
                assert chat.call(gateway, key=name, model=model).status == 200
        assert gateway.workers() == [worker]
        assert gateway.stderr().count("no room for metrics") >= 1
        assert gateway.metrics().value("http_requests_total", path="/v1/chat/completions") == 120
