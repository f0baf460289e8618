"""What is compared: each variant is gunicorn with one gevent worker and one way to relay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from benchmarks import driver
from harness import processes
from harness.gateway import Gateway

KEY = "benchmark"
PROVIDER_KEY = "provider-key-of-the-benchmark"
NAIVE_KEY = "sk-naive-benchmark"

CONFIG = """\
[server]
metering = {metering}

[providers.groq]
base_url = "{upstream}/v1"
api_key = {{ env = "GROQ_API_KEY" }}

[[routes]]
model = "*"
targets = ["groq"]
"""


@dataclass
class Relay:
    """Something that answers chat completions: where, for which key, and which process works."""

    port: int
    key: str
    process: subprocess.Popen[bytes] | None = None  # gunicorn's master; None without a relay

    def worker(self) -> int:
        """The id of gunicorn's one worker."""
        assert self.process is not None
        return processes.children(self.process.pid)[0]

    def alive(self) -> bool:
        """Whether it can still begin to answer."""
        return self.process is None or self.process.poll() is None


@contextmanager
def naive(upstream: str) -> Iterator[Relay]:
    """`benchmarks.naive` under the same server with the same worker class."""
    port = processes.ReservedPort()
    options = f"-k gevent -w 1 -b 127.0.0.1:{port.number} --keep-alive 15".split()
    env = {
        "PATH": os.defpath,
        "NAIVE_UPSTREAM": f"{upstream}/v1",
        "NAIVE_KEY": NAIVE_KEY,
        "NAIVE_PROVIDER_KEY": PROVIDER_KEY,
    }
    command = [sys.executable, "-m", "gunicorn", *options, "benchmarks.naive:app"]
    with tempfile.TemporaryFile() as log:
        process = processes.start(command, env=env, stdout=log.fileno(), stderr=log.fileno())
        try:
            yield Relay(port.number, NAIVE_KEY, process)
        finally:
            processes.stop(process)
            port.release()


@contextmanager
def gateway(upstream: str, *, metering: bool = True) -> Iterator[Relay]:
    """The gateway as it comes, with everything switched on."""
    config = CONFIG.format(upstream=upstream, metering=str(metering).lower())
    env = {"GROQ_API_KEY": PROVIDER_KEY}
    with Gateway.prepared(config, keys={KEY: {}}, env=env) as prepared:
        yield Relay(prepared.port, prepared.secrets[KEY], prepared.launch())


def unmetered(upstream: str) -> AbstractContextManager[Relay]:
    """The gateway with `[server] metering = false`: nothing reads the answers' use."""
    return gateway(upstream, metering=False)


Variant = Callable[[str], AbstractContextManager[Relay]]

VARIANTS: dict[str, Variant] = {
    "naive": naive,
    "gateway": gateway,
    "gateway, metering off": unmetered,
}


def chat_request(key: str, orders: str = "", *, stream: bool = False) -> bytes:
    """A chat completion as an SDK would send it, of some 400 bytes; `orders` for the simulator."""
    body = (
        b'{"model":"openai/gpt-oss-20b","messages":[{"role":"system","content":"You are a'
        b' helpful assistant that answers in one sentence."},{"role":"user","content":"What is'
        b' the tallest mountain between the two rivers, and who climbed it first?"}],'
        b'"temperature":0.2,"max_tokens":4096,"stream":%b}' % (b"true" if stream else b"false")
    )
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
        "Content-Type: application/json\r\nUser-Agent: benchmark\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n"
    )
    if orders:
        head += f"x-sim: {orders}\r\n"
    return head.encode() + b"\r\n" + body


def wait_for_first_answer(relay: Relay) -> float:
    """Ask until a chat completion is answered with 200; the `time.perf_counter()` of that."""
    request = chat_request(relay.key)
    while True:
        try:
            driver.run(relay.port, request, answers=1, connections=1)
        except (ConnectionError, driver.BenchmarkFailed):
            if not relay.alive():
                raise
            time.sleep(0.005)
        else:
            return time.perf_counter()
