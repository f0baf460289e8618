"""`python -m benchmarks.attacks`: what one party does to all others, at the size of the report.

Each attack is made by a process of its own on a gateway with two workers as it is shipped. Beside
it, at the same time: four streams with an event every 20 ms, `/healthz`, `/readyz` and `/metrics`
each on a new connection, and calls of another key. The same stream through a gateway that nobody
attacks shows what the machine itself does: read the longest gap of a stream beside that one.

    PYTHONPATH=tests python -m benchmarks.attacks            every attack
    PYTHONPATH=tests python -m benchmarks.attacks E3 E8      some
    … --output benchmarks/attacks.md                         write the table
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from harness import chat, processes, raw
from harness.defaults import CONFIG, PROVIDER_KEYS
from harness.gateway import Gateway
from harness.simulator import Simulator
from wrapper.store import Entry, open_store

SECONDS = 12.0  # of each attack
MIB = 1 << 20
BODY = 26_000_000  # bytes: a little less than the largest JSON body
KEYS: dict[str, dict[str, Any]] = {
    "attacker": {},
    "narrow": {"models": ["llama-*"]},
    "owner": {},
    "stream": {},
}
ODD = """
[providers.odd]
base_url = "http://127.0.0.1:{odd}/v1"
"""
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


# --- what is measured beside an attack ---------------------------------------------------------


@dataclass
class Seen:
    """The longest waits in seconds, and how the calls of another key went."""

    waits: dict[str, float] = field(default_factory=dict)
    served: int = 0
    refused: int = 0

    def wait(self, name: str, seconds: float) -> None:
        self.waits[name] = max(self.waits.get(name, 0.0), seconds)


class Watch:
    """Streams, health checks, scrapes and calls beside an attack, in threads of this process."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def stream(self, gateway: Gateway, name: str) -> None:
        """Read a stream with an event every 20 ms; the longest time without a piece is `name`."""

        def read() -> None:
            while not self._over.is_set():
                orders = "events=2000; gap=0.02"
                began = chat.begin(gateway, orders=orders, stream=True, key="stream", deadline=120)
                with contextlib.suppress(AssertionError, OSError), began as connection:
                    answer = connection.read_head()
                    last = time.monotonic()
                    for _ in connection.body(answer):
                        now = time.monotonic()
                        self.seen.wait(name, now - last)
                        last = now
                        if self._over.is_set():
                            break

        self._run(read)

    def path(self, gateway: Gateway, path: str, every: float) -> None:
        """GET a path on a new connection again and again."""

        def get() -> None:
            while not self._over.wait(every):
                began = time.monotonic()
                with contextlib.suppress(OSError):
                    gateway.get(path, timeout=60)
                self.seen.wait(path, time.monotonic() - began)

        self._run(get)

    def calls(self, gateway: Gateway) -> None:
        """Chat calls of another key."""

        def call() -> None:
            while not self._over.wait(0.1):
                status = 0
                with contextlib.suppress(AssertionError, OSError):
                    status = chat.call(gateway, key="owner", deadline=60).status
                self.seen.served += status == 200
                self.seen.refused += status != 200

        self._run(call)

    def _run(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work, daemon=True))


# --- the attacks, each in a process of its own --------------------------------------------------


@dataclass
class Target:
    """What an attacker knows."""

    port: int
    keys: dict[str, str]
    odd: socket.socket
    directory: Path

    def post(self, body: bytes, *, key: str, path: str = "/v1/chat/completions") -> bytes:
        return raw.request(self.port, "POST", path, body, key=self.keys[key])


Attack = Callable[[Target, float], None]
Work = Callable[[], object]


def _connections(target: Target, count: int, first: bytes) -> list[socket.socket]:
    """Connections on which `first` was sent."""
    made = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            made.append(socket.create_connection(("127.0.0.1", target.port), timeout=20))
            made[-1].sendall(first)
    return made


def _drip(target: Target, count: int, first: bytes, seconds: float) -> None:
    """Open connections with `first`, then send a byte on each now and then.

    Those that are closed come again, a hundred a second: this is a crowd and not a flood.
    """
    end = time.monotonic() + seconds
    held = _connections(target, count, first)
    while time.monotonic() < end:
        time.sleep(0.5)
        left = []
        for sock in held:
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
                left.append(sock)
        held = left + _connections(target, min(50, count - len(left)), first)


def _slow_bodies(target: Target, seconds: float) -> None:
    head = raw.request(
        target.port,
        "POST",
        "/openai/v1/chat/completions",
        b"",
        key="sk-made-up",
        headers=(("Content-Type", "application/json"),),
    ).replace(b"Content-Length: 0", b"Content-Length: 20000")
    _drip(target, 2000, head + b'{"model":"gpt-x","messages":"', seconds)


def _slow_heads(target: Target, seconds: float) -> None:
    _drip(target, 3000, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", seconds)


def _slow_readers(target: Target, seconds: float) -> None:
    end = time.monotonic() + seconds
    page = raw.request(target.port, "GET", "/docs/swagger-ui-bundle.js") * 4
    held = _connections(target, 1000, page)
    time.sleep(max(0.0, end - time.monotonic()))
    del held


def _idle_connections(target: Target, seconds: float) -> None:
    end = time.monotonic() + seconds
    held = _connections(target, 2300, raw.request(target.port, "GET", "/healthz"))
    time.sleep(max(0.0, end - time.monotonic()))
    del held


def _at_once(count: int, seconds: float, work: Work) -> None:
    """`work` again and again in `count` threads."""
    end = time.monotonic() + seconds

    def repeat() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError, OSError):
                work()

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)


def _many_values(target: Target, seconds: float) -> None:
    body = b'{"model":"llama-x","tools":[' + b",".join([b"{}"] * (BODY // 3)) + b"]}"
    request = target.post(body, key="narrow")
    _at_once(6, seconds, lambda: raw.exchange(target.port, request, deadline=60))


def _held_bodies(target: Target, seconds: float) -> None:
    """The provider reads what comes and says nothing."""
    body = b'{"model":"m","x":"' + b"a" * BODY + b'"}'
    request = target.post(body, key="attacker", path="/odd/v1/chat/completions")
    stop = time.monotonic() + seconds

    def read(sock: socket.socket) -> None:
        sock.settimeout(0.2)
        while time.monotonic() < stop:
            with contextlib.suppress(TimeoutError):
                sock.recv(MIB)

    _serve(target.odd, read)
    _at_once(60, seconds, lambda: raw.exchange(target.port, request, deadline=seconds))


def _flood(target: Target, seconds: float, head: bytes, piece: bytes, callers: int = 3) -> None:
    """The provider sends `piece` for ever to some streams at once."""
    pieces = piece * max(1, 200_000 // len(piece))
    stop = time.monotonic() + seconds

    def send(sock: socket.socket) -> None:
        sock.sendall(head)
        while time.monotonic() < stop:
            sock.sendall(pieces)

    _serve(target.odd, send)
    _at_once(callers, seconds, lambda: _read_all(target, "/odd/v1/chat/completions", seconds))


def _read_all(target: Target, path: str, seconds: float) -> None:
    request = target.post(chat.body("m", stream=True), key="attacker", path=path)
    with socket.create_connection(("127.0.0.1", target.port), timeout=seconds + 30) as sock:
        sock.sendall(request)
        end = time.monotonic() + seconds
        while time.monotonic() < end and sock.recv(MIB):
            pass


USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
)


def _usage_chunks(target: Target, seconds: float) -> None:
    _flood(target, seconds, EVENTS + b"\r\n", USAGE)


def _one_byte_chunks(target: Target, seconds: float) -> None:
    _flood(target, seconds, EVENTS + CHUNKED, b"1\r\na\r\n")


def _one_byte_chunks_of_json(target: Target, seconds: float) -> None:
    body = b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"
    _serve(target.odd, lambda sock: sock.sendall(JSON + CHUNKED + body))
    _at_once(3, seconds, lambda: _read_all(target, "/odd/v1/chat/completions", seconds))


def _gzip_stream(target: Target, seconds: float) -> None:
    """Events that differ, so that 1.6 MB unfold to some 30 MB and no more."""
    packer = zlib.compressobj(wbits=31)
    event = b'data: {"choices":[{"delta":{"content":"%d"}}],"usage":{"a":[%d]}}\n\n'
    packed, number = b"", 0
    while len(packed) < 1_600_000:
        packed += packer.compress(b"".join(event % (n, n) for n in range(number, number + 1000)))
        number += 1000
    packed += packer.flush()
    head = EVENTS + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    _serve(target.odd, lambda sock: sock.sendall(head + packed))
    _at_once(3, seconds, lambda: _read_all(target, "/odd/v1/chat/completions", seconds))


def _model_list(target: Target, seconds: float) -> None:
    pieces = b"1\r\n \r\n" * 30_000
    stop = time.monotonic() + seconds

    def send(sock: socket.socket) -> None:
        sock.sendall(JSON + CHUNKED)
        while time.monotonic() < stop:
            sock.sendall(pieces)

    _serve(target.odd, send)
    request = raw.request(target.port, "GET", "/v1/models", key=target.keys["attacker"])
    _at_once(3, seconds, lambda: raw.exchange(target.port, request, deadline=60))


def _usage_reports(target: Target, seconds: float) -> None:
    path = "/usage?since=2020-01-01"
    request = raw.request(target.port, "GET", path, key=target.keys["attacker"])
    _at_once(3, seconds, lambda: raw.exchange(target.port, request, deadline=60))


def _many_keys(target: Target, seconds: float) -> None:
    """20,000 keys in a file that is dated in the future, and changes twice."""
    file = target.directory / "keys.toml"
    text = file.read_text()
    end = time.monotonic() + seconds
    for turn in range(2):
        names = range(turn, turn + 20_000)
        digests = ((n, hashlib.sha256(b"%d" % n).hexdigest()) for n in names)
        many = "".join(f'[keys.many{n}]\nsha256 = "{digest}"\n' for n, digest in digests)
        new = file.with_suffix(".new")
        new.write_text(text + many)
        new.chmod(0o600)
        os.utime(new, (time.time() + 86400, time.time() + 86400))
        new.replace(file)
        time.sleep(seconds / 2)
    time.sleep(max(0.0, end - time.monotonic()))


def _streams_beyond_the_files(target: Target, seconds: float) -> None:
    """300 streams, where 256 files may be open."""
    orders = (("x-sim", "events=2000; gap=0.02"),)
    body, key = chat.body(stream=True), target.keys["attacker"]
    request = raw.request(
        target.port, "POST", "/v1/chat/completions", body, key=key, headers=orders
    )
    _at_once(300, seconds, lambda: _read_raw(target, request, seconds))


def _read_raw(target: Target, request: bytes, seconds: float) -> None:
    with socket.create_connection(("127.0.0.1", target.port), timeout=seconds) as sock:
        sock.sendall(request)
        while sock.recv(MIB):
            time.sleep(0.5)


def _nothing(_: Target, seconds: float) -> None:
    time.sleep(seconds)


def _serve(listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
    """Let the odd provider talk on each connection once it has read the head of a request."""

    def handle(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            received = b""
            while b"\r\n\r\n" not in received:
                received += sock.recv(65536) or b"\r\n\r\n"
            talk(sock)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=handle, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


# --- gateways that are started in another way ---------------------------------------------------

START = processes.start


class Guarded(Gateway):
    """Started by another program."""

    guard: tuple[str, ...] = ()

    def launch(self, *command: str) -> subprocess.Popen[bytes]:
        def start(program: Any, **how: Any) -> subprocess.Popen[bytes]:
            return START([*self.guard, *program], **how)

        with mock.patch.object(processes, "start", start):
            return super().launch(*command)


class FewFiles(Guarded):
    """With 256 open files."""

    guard = ("prlimit", "--nofile=256:256", "--")


def large_ledger(path: Path, keys: int, models: int, hours: int) -> None:
    """Write rows into the usage table: keys × models × hours of them."""
    store = open_store(f"sqlite:///{path}")
    store.settle(Entry(0.0, "key-0", "groq", "m-0", "completed"))  # makes the file
    store.close()
    now = int(time.time()) // 3600
    with contextlib.closing(sqlite3.connect(path)) as database:
        columns = [column[1] for column in database.execute("PRAGMA table_info(usage)")]
        names = ("hour", "api_key", "provider", "model", "outcome")
        rest = [name for name in columns if name not in names]
        values = ["'' " if name == "tag" else "1" for name in rest]
        sql = (  # the names are the table's own
            f"INSERT INTO usage ({', '.join((*names, *rest))})"
            f" VALUES (?, ?, 'groq', ?, 'completed', {', '.join(values)})"
        )
        rows = (
            (now - hour, "attacker" if keys == 1 else f"key-{key}", f"m-{model}")
            for hour in range(1, hours + 1)
            for key in range(keys)
            for model in range(models)
        )
        database.executemany(sql, rows)
        database.commit()


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One attack: the line of the report, who does what, and how its gateway is made."""

    number: str
    what: str
    attack: Attack
    kind: type[Gateway] = Gateway
    workers: int = 2
    ledger: tuple[int, int, int] | None = None


LINES = (
    Line("none", "nobody", _nothing),
    Line("E1", "2,000 slow bodies with a made-up bearer", _slow_bodies),
    Line("E2 heads", "3,000 slow request heads", _slow_heads),
    Line("E2 readers", "1,000 slow readers of a page of 1 MB", _slow_readers),
    Line("E2 idle", "2,300 idle connections", _idle_connections),
    Line("E3", "six bodies of 25 MiB of values at once, restricted key", _many_values),
    Line("E4", "60 held bodies of 25 MiB", _held_bodies),
    Line("E5", "three streams of nothing but usage chunks", _usage_chunks),
    Line("E6", "three endless streams in chunks of 1 byte", _one_byte_chunks),
    Line("E6 JSON", "300,000 chunks of 1 byte, three at once", _one_byte_chunks_of_json),
    Line("E7", "gzip event streams of 1.6 MB, three at once", _gzip_stream),
    Line("E8", "a model list in chunks of 1 byte", _model_list),
    Line(
        "E9", "GET /usage over 500,000 rows, three callers", _usage_reports, ledger=(1, 100, 5000)
    ),
    Line("E10", "20,000 keys, dated in the future, reloaded twice", _many_keys),
    Line("E14", "300 streams where 256 files may be open", _streams_beyond_the_files, FewFiles),
    Line("E18", "1,000 keys × 20 models, 4 workers", _nothing, workers=4, ledger=(1000, 20, 1)),
)


@dataclass
class Result:
    """What was measured beside one attack."""

    line: Line
    start: float
    seen: Seen
    peak: int
    killed: int

    def row(self) -> str:
        wait = self.seen.waits
        calls = f"{self.seen.served} of {self.seen.served + self.seen.refused}"
        gaps = (wait.get(name, float("nan")) for name in ("gap", "control"))
        paths = (wait.get(name, float("nan")) for name in ("/healthz", "/readyz", "/metrics"))
        cells = [
            self.line.number,
            self.line.what,
            *(f"{seconds * 1000:.0f}" for seconds in (*gaps, *paths)),
            calls,
            f"{self.peak / MIB:.0f}",
            str(self.killed),
            f"{self.start:.1f}",
        ]
        return "| " + " | ".join(cells) + " |"


HEAD = """\
| line | attack | stream's gap, ms | not attacked, ms | health, ms | ready, ms | metrics, ms \
| another key's calls served | highest RSS of a worker, MiB | workers killed | start, s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def measure(line: Line, simulator: Simulator, control: Gateway, seconds: float) -> Result:
    """Start a gateway, attack it and look."""
    with contextlib.ExitStack() as held:
        odd = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        config = ODD.replace("{odd}", str(odd.getsockname()[1]))
        if line.number == "E8":  # its models are listed where a route leads to it
            config += '\n[[routes]]\nmodel = "odd-*"\ntargets = ["odd"]\n'
        config += CONFIG.replace("{simulator}", simulator.url)
        made = line.kind(config, workers=line.workers, keys=KEYS, env=PROVIDER_KEYS)
        if line.ledger:
            large_ledger(made.directory / "usage.db", *line.ledger)
        began = time.monotonic()
        gateway = held.enter_context(made)
        start = time.monotonic() - began
        workers = gateway.workers()
        for worker in workers:
            processes.reset_peak(worker)
        target = Target(gateway.port, gateway.secrets, odd, gateway.directory)
        watch = Watch()
        for _ in range(4):
            watch.stream(gateway, "gap")
        watch.stream(control, "control")
        for path, every in (("/healthz", 0.1), ("/readyz", 0.1), ("/metrics", 0.5)):
            watch.path(gateway, path, every)
        watch.calls(gateway)
        attacker = multiprocessing.get_context("fork").Process(
            target=line.attack, args=(target, seconds), daemon=True
        )
        attacker.start()
        with watch:
            attacker.join(seconds + 30)
        attacker.kill()
        peak = max((processes.memory(worker).peak for worker in gateway.workers()), default=0)
        killed = len(set(workers) - set(gateway.workers()))
        for text in gateway.stderr().splitlines():
            if "event loop blocked" in text:
                print(text, file=sys.stderr)
    return Result(line, start, watch.seen, peak, killed)


def main() -> None:
    """Make the attacks, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("lines", nargs="*", help="the lines, such as E3; none: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each lasts")
    parser.add_argument("--output", type=Path, help="a file for the table")
    options = parser.parse_args()
    rows = [HEAD]
    print(HEAD, flush=True)
    with running() as (simulator, control):
        for line in LINES:
            if (
                not options.lines
                or line.number in options.lines
                or line.number.split()[0] in options.lines
            ):
                rows.append(measure(line, simulator, control, options.seconds).row())
                print(rows[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(["# Attacks", "", *rows]) + "\n")


@contextlib.contextmanager
def running() -> Iterator[tuple[Simulator, Gateway]]:
    """The provider, and a gateway that nobody attacks."""
    with Simulator() as simulator:
        config = CONFIG.replace("{simulator}", simulator.url)
        with Gateway(config, keys=KEYS, env=PROVIDER_KEYS) as control:
            yield simulator, control


if __name__ == "__main__":
    main()
