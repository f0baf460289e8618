"""What is measured: the gateway, with and without each feature, an older version, and `naive`.

Each is gunicorn with one gevent worker, unless it says so. `peers` has relays of others.
"""

from __future__ import annotations

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import driver
from benchmarks.ledgers import Counted
from harness import processes
from harness.gateway import Gateway
from harness.redisserver import RedisServer
from wrapper.store import Demand, Limits, Subject, open_store

KEY = "benchmark"
PROVIDER_KEY = "provider-key-of-the-benchmark"
NAIVE_KEY = "sk-naive-benchmark"
MODEL = "openai/gpt-oss-20b"
PRICES = {"input": 0.10, "output": 0.50}  # USD for a million tokens
API = "/openai/v1"  # Groq's, whose streams end with their usage
PATH = "/v1/chat/completions"
PROVIDER_PATH = f"{API}/chat/completions"

CONFIG = """\
[server]
metering = {metering}

[providers.groq]
base_url = "{upstream}"
api_key = {{ env = "GROQ_API_KEY" }}
client_credentials = true

[[routes]]
model = "*"
targets = ["groq"]

[prices."{model}"]
input = {input}
output = {output}
"""

LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "max_concurrent": 10**6,
    "budget_usd": 10**6,
}


@dataclass
class Relay:
    """A running variant: where it is, a key for it, its first process, and what it has counted."""

    port: int
    key: str
    process: subprocess.Popen[bytes] | None = None  # None: no relay, the provider itself
    path: str = PATH
    headers: Mapping[str, str] = field(default_factory=dict)
    count: Callable[[], Counted | None] = lambda: None

    @property
    def pid(self) -> int:
        """The id of the first process: of gunicorn's master, of nginx's, …"""
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.process is None or self.process.poll() is None

    def request(self, orders: str = "", *, stream: bool = False) -> bytes:
        """A chat completion of some 400 bytes as an SDK sends it; `orders` go to the simulator."""
        body = (
            b'{"model":"%b","messages":[{"role":"system","content":"You are a'
            b' helpful assistant that answers in one sentence."},{"role":"user","content":"What is'
            b' the tallest mountain between the two rivers, and who climbed it first?"}],'
            b'"temperature":0.2,"max_tokens":4096,"stream":%b}'
            % (MODEL.encode(), b"true" if stream else b"false")
        )
        headers = {
            "Host": "127.0.0.1",
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "benchmark",
            "Authorization": f"Bearer {self.key}",
            "Content-Length": str(len(body)),
            **self.headers,
            **({"x-sim": orders} if orders else {}),
        }
        lines = (f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {self.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body

    def wait_for_first_response(self, deadline: float = 120.0) -> None:
        """Repeat a chat completion until its status is 200."""
        request = self.request()
        end = time.monotonic() + deadline
        while True:
            try:
                driver.run(self.port, request, responses=1, connections=1)
            except (ConnectionError, driver.BenchmarkFailed):
                if not self.alive() or time.monotonic() > end:
                    raise
                time.sleep(0.005)
            else:
                return


Variant = Callable[[str], AbstractContextManager[Relay]]


@contextmanager
def direct(upstream: str) -> Iterator[Relay]:
    """No relay: the delays of provider and load generator themselves."""
    yield Relay(int(upstream.rpartition(":")[2]), PROVIDER_KEY, path=PROVIDER_PATH)


@contextmanager
def started(
    command: list[str],
    *,
    env: Mapping[str, str],
    port: processes.ReservedPort,
    cwd: Path = processes.ROOT,
    **relay: Any,
) -> Iterator[Relay]:
    """A relay that is a program, which listens on `port`; says why where it failed."""
    with tempfile.TemporaryFile() as log:
        process = processes.start(command, env=env, stdout=log, stderr=log, cwd=cwd)
        try:
            yield Relay(port.number, process=process, **relay)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-3000:])
            raise
        finally:
            processes.stop(process)
            port.release()


def naive(upstream: str) -> AbstractContextManager[Relay]:
    """`benchmarks.naive`: it counts nothing."""
    port = processes.ReservedPort()
    options = f"-k gevent -w 1 -b 127.0.0.1:{port.number} --keep-alive 15".split()
    options += ["--worker-connections", "10000"]
    env = {
        "PATH": os.defpath,
        "NAIVE_UPSTREAM": upstream + API,
        "NAIVE_KEY": NAIVE_KEY,
        "NAIVE_PROVIDER_KEY": PROVIDER_KEY,
    }
    command = [sys.executable, "-m", "gunicorn", *options, "benchmarks.naive:app"]
    return started(command, env=env, port=port, key=NAIVE_KEY)


@contextmanager
def gateway(
    upstream: str,
    *,
    metering: bool = True,
    log_level: str = "info",
    limits: Mapping[str, Any] | None = LIMITS,
    others: Mapping[str, Any] | None = None,
    number: int = 1,
    store: str | None = None,
    workers: int = 1,
    by_path: bool = False,
    own_credential: bool = False,
    hook: str = "",
    root: Path = processes.ROOT,
) -> Iterator[Relay]:
    """The gateway as shipped, with everything that is not switched off here.

    `limits` are those of the key, `others` those of a `number` of other keys, `store` is
    WRAPPER_STORE; `by_path` calls the provider's own path, with the caller's `own_credential`;
    `hook` is for `hooked_gunicorn`; `root` is the directory of another version.
    """
    server = {"metering": str(metering).lower(), "upstream": upstream + API}
    config = CONFIG.format(**server, model=MODEL, **PRICES)
    env = {"GROQ_API_KEY": PROVIDER_KEY, "LOG_LEVEL": log_level}
    env |= {"WRAPPER_STORE": store} if store else {}
    env |= {"BENCHMARK_HOOK": hook} if hook else {}
    keys = {KEY: limits or {}}
    keys |= {f"another-{each}": others for each in range(number)} if others else {}
    options: dict[str, Any] = {"workers": workers, "keys": keys, "env": env, "root": root}
    if hook:
        options["gunicorn"] = Path(__file__).with_name("hooked_gunicorn.py")
    with Gateway.prepared(config, **options) as prepared:
        relay = Relay(
            prepared.port,
            PROVIDER_KEY if own_credential else prepared.secrets[KEY],
            prepared.launch(),
            path="/groq" + PROVIDER_PATH if by_path else PATH,
            count=functools.partial(_usage, prepared),
        )
        try:
            yield relay
        except BaseException:
            sys.stderr.write(prepared.stderr()[-3000:])
            raise


def _usage(gateway: Gateway) -> Counted:
    """`python -m wrapper usage`, by outcome."""
    command = [sys.executable, "-m", "wrapper", "usage", "--by", "outcome", "--format", "json"]
    found = subprocess.run(
        command, env=gateway.environment(), cwd=gateway.root, capture_output=True, check=True
    )
    rows = json.loads(found.stdout)["rows"]

    def total(name: str, *outcomes: str) -> float:
        chosen = (row for row in rows if not outcomes or row["outcome"] in outcomes)
        return float(sum(row.get(name, 0) for row in chosen))

    return Counted(
        completed=int(total("requests", "completed")),
        errors=int(total("requests", "upstream_error")),
        aborted=int(total("requests", "client_abort")),
        prompt=int(total("prompt_tokens")),
        completion=int(total("completion_tokens")),
        cost=total("cost_usd"),
        aborted_low=int(total("bounded_tokens_low")),
        aborted_high=int(total("bounded_tokens_high")),
    )


def feature(**how: Any) -> Variant:
    """The gateway with these options."""
    return functools.partial(gateway, **how)


@contextmanager
def crowded(upstream: str) -> Iterator[Relay]:
    """2,000 more keys have limits, and 10,000 requests in flight elsewhere."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/usage.db"
        with gateway(upstream, others=LIMITS, number=2000, store=url) as relay:
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


@contextmanager
def on_redis(upstream: str, **how: Any) -> Iterator[Relay]:
    """The store is a Redis of its own, whose CPU is not counted."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisServer(Path(directory))
        try:
            url = server.start().url
            with gateway(upstream, store=url, **how) as relay:
                yield relay
        finally:
            server.close()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The project as it was at that commit, in a temporary directory."""
    command = ["git", "archive", "--format=tar", commit]
    archive = subprocess.run(command, cwd=processes.ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="older-") as directory:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(directory, filter="data")
        yield Path(directory)


def older(root: Path) -> Variant:
    """Another version, with the same interpreter and packages, and limits where it knows them."""
    knows = any("budget_usd" in file.read_text() for file in root.glob("wrapper/**/*.py"))
    return feature(root=root, limits=LIMITS if knows else None)


# Each feature: the variant that has it, and the one that lacks it and nothing else.
FEATURES: dict[str, tuple[str, str]] = {
    "limits and budget on the key, SQLite": ("everything", "no limits"),
    "limits and budget on the key, Redis": ("limits, Redis", "no limits, Redis"),
    "limits on another key": ("another key has limits", "no limits"),
    "2,000 keys with 10,000 requests in flight": ("crowded", "everything"),
    "ledger in Redis in place of SQLite": ("no limits, Redis", "no limits"),
    "metering and ledger": ("no limits", "metering off"),
    "usage of the last requests": ("everything", "recent off"),
    "log": ("everything", "log off"),
    "gateway key in place of the caller's own": ("by path", "own credential"),
    "all of these": ("everything", "bare"),
}
FEATURED: dict[str, Variant] = {
    "everything": gateway,
    "no limits": feature(limits=None),
    "metering off": feature(limits=None, metering=False),
    "bare": feature(limits=None, metering=False, log_level="error"),
    "log off": feature(log_level="error"),
    "recent off": feature(hook="no-recent"),
    "another key has limits": feature(limits=None, others=LIMITS),
    "crowded": crowded,
    "by path": feature(limits=None, by_path=True),
    "own credential": feature(limits=None, by_path=True, own_credential=True),
    "no limits, Redis": functools.partial(on_redis, limits=None),
    "limits, Redis": on_redis,
}

WORKERS: dict[str, Variant] = {
    "1 worker": gateway,
    "2 workers": feature(workers=2),
    "4 workers": feature(workers=4),
    "4 workers, no limits": feature(workers=4, limits=None),
}
