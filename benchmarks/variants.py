"""The variants that are compared: each is gunicorn with one gevent worker and a relay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import driver
from harness import processes
from harness.gateway import Gateway
from harness.redisserver import RedisServer
from wrapper.store import Demand, Limits, Subject, open_store

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
    """A running variant: its port, a key for it, and its process."""

    port: int
    key: str
    process: subprocess.Popen[bytes] | None = None  # gunicorn's master; None for (direct)

    def worker(self) -> int:
        """The id of gunicorn's one worker."""
        return self.workers()[0]

    def workers(self) -> list[int]:
        """The ids of gunicorn's workers."""
        assert self.process is not None
        return processes.children(self.process.pid)

    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.process is None or self.process.poll() is None


@contextmanager
def naive(upstream: str) -> Iterator[Relay]:
    """`benchmarks.naive` in gunicorn with its gevent worker."""
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
def gateway(
    upstream: str,
    *,
    metering: bool = True,
    limits: Mapping[str, Any] | None = None,
    others: Mapping[str, Any] | None = None,
    number: int = 1,
    store: str | None = None,
    workers: int = 1,
) -> Iterator[Relay]:
    """The gateway as shipped, with everything enabled.

    `limits` are those of the key, `others` those of a `number` of other keys, `store` is
    WRAPPER_STORE.
    """
    config = CONFIG.format(upstream=upstream, metering=str(metering).lower())
    env = {"GROQ_API_KEY": PROVIDER_KEY} | ({"WRAPPER_STORE": store} if store else {})
    keys = {KEY: limits or {}}
    keys |= {f"another-{each}": others for each in range(number)} if others else {}
    with Gateway.prepared(config, workers=workers, keys=keys, env=env) as prepared:
        yield Relay(prepared.port, prepared.secrets[KEY], prepared.launch())


def unmetered(upstream: str) -> AbstractContextManager[Relay]:
    """The gateway with `[server] metering = false`: usage is not extracted."""
    return gateway(upstream, metering=False)


LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "max_concurrent": 10**6,
    "budget_usd": 10**6,
}


def limited(upstream: str) -> AbstractContextManager[Relay]:
    """A key with every kind of limit, in the SQLite file."""
    return gateway(upstream, limits=LIMITS)


def beside_limited(upstream: str) -> AbstractContextManager[Relay]:
    """A key without limits, while another one has them."""
    return gateway(upstream, others=LIMITS)


@contextmanager
def crowded(upstream: str) -> Iterator[Relay]:
    """As `limited`, with 2,000 more keys that have 10,000 requests in flight elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/usage.db"
        with gateway(upstream, limits=LIMITS, others=LIMITS, number=2000, store=url) as relay:
            store = open_store(url)
            limits = Limits(10**9, 10**12, 10**6, 10**18)
            subjects = [Subject(f"key:another-{each}", limits) for each in range(2000)]
            for each in range(10_000):
                store.admit(subjects[each % 2000 :][:1], Demand(500, 10**7))
            over = threading.Event()

            def renew() -> None:
                while not over.wait(5):
                    store.heartbeat()

            renewing = threading.Thread(target=renew)
            renewing.start()
            try:
                yield relay
            finally:
                over.set()
                renewing.join()
                store.close()


def four_workers(upstream: str) -> AbstractContextManager[Relay]:
    """The gateway with four workers."""
    return gateway(upstream, workers=4)


def four_workers_limited(upstream: str) -> AbstractContextManager[Relay]:
    """As `four_workers`; all of them serve one key with every kind of limit."""
    return gateway(upstream, workers=4, limits=LIMITS)


@contextmanager
def on_redis(upstream: str, *, limits: Mapping[str, Any] | None = None) -> Iterator[Relay]:
    """The store is a Redis of its own."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        try:
            url = server.start().url
            with gateway(upstream, limits=limits, store=url) as relay:
                yield relay
        finally:
            server.close()


def limited_on_redis(upstream: str) -> AbstractContextManager[Relay]:
    """As `limited`, in Redis."""
    return on_redis(upstream, limits=LIMITS)


Variant = Callable[[str], AbstractContextManager[Relay]]

VARIANTS: dict[str, Variant] = {
    "naive": naive,
    "gateway": gateway,
    "gateway, metering off": unmetered,
}

# Beside the gateway without limits, where the difference is what admission and settlement cost.
LIMITED: dict[str, Variant] = {
    "gateway": gateway,
    "another key has limits": beside_limited,
    "limits, SQLite": limited,
    "limits, 2,000 keys, 10,000 requests in flight": crowded,
    "no limits, Redis": on_redis,
    "limits, Redis": limited_on_redis,
}


HAMMERED: dict[str, Variant] = {
    "four workers": four_workers,
    "four workers, one key with limits": four_workers_limited,
}


def chat_request(key: str, orders: str = "", *, stream: bool = False) -> bytes:
    """A chat completion of some 400 bytes as an SDK sends it; `orders` go to the simulator."""
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


def wait_for_first_response(relay: Relay) -> float:
    """Repeat a chat completion until its status is 200; returns that `time.perf_counter()`."""
    request = chat_request(relay.key)
    while True:
        try:
            driver.run(relay.port, request, responses=1, connections=1)
        except (ConnectionError, driver.BenchmarkFailed):
            if not relay.alive():
                raise
            time.sleep(0.005)
        else:
            return time.perf_counter()
